//! `obelysk inspect`: what a proof file says of itself. Nothing is verified.

use super::args::InspectArgs;
use super::exit::Failure;
use super::home::{Home, read_bounded};
use super::output::{Out, hex, size};
use super::verify::MAX_PROOF_BYTES;
use obelysk_node::{ModelFolder, NodeSuite};
use obelysk_protocol::circuit::{PublicInput, segment_count};
use obelysk_protocol::verifier::aggregate::{Outline, Stated as _};
use obelysk_protocol::verifier::bytes::Reader;
use obelysk_protocol::verifier::opening::{CombinedProof, OpeningProof};
use obelysk_protocol::verifier::proof::{Header, opening_shape, read_claims};
use serde::Serialize;
use serde_json::json;

/// Bytes of one segment.
#[derive(Debug, Serialize)]
struct SegmentBytes {
    name: String,
    claims: usize,
    opening: usize,
    columns: usize,
}

/// Runs `inspect`.
pub fn run(out: &Out, home: &Home, args: &InspectArgs) -> Result<(), Failure> {
    let bytes = read_bounded(&args.proof, MAX_PROOF_BYTES)?;
    let mut r = Reader::new(&bytes);
    let header = Header::read(&mut r).map_err(|e| Failure::input(format!("{}: {e}", args.proof.display())))?;
    let header_bytes = bytes.len() - r.remaining();
    let model = match &args.model {
        Some(model) => Some(home.open(model)?),
        None => home.by_id(&header.model_id),
    };
    if let Some(model) = model.as_ref().filter(|m| m.id != header.model_id) {
        let text = format!("the proof is of model {}, not of {}", hex(&header.model_id), hex(&model.id));
        return Err(Failure::input(text));
    }
    let parts = model.as_ref().map(|m| segments(m, &header, &mut r)).transpose()?;
    let (segments, joint) = parts.map_or((None, None), |(segments, joint)| (Some(segments), joint));
    let sequences: Vec<_> = header.sequences.iter().map(|s| [s.prompt, s.completion]).collect();
    let roots: Vec<String> = header.roots.iter().map(|r| hex(r)).collect();
    out.json(&json!({
        "version": header.version, "suite": header.suite, "mode": header.mode, "model_id": hex(&header.model_id),
        "ids": header.ids, "sequences": sequences, "output": header.output, "roots": roots, "seed_nonce": header.seed_nonce,
        "proof_bytes": bytes.len(), "header_bytes": header_bytes, "segments": segments,
        "joint_opening_bytes": joint, "verified": false,
    }));
    out.heading(&format!("{} ({}), not verified", args.proof.display(), size(bytes.len() as u64)));
    out.field("version", header.version);
    out.field("hash suite", header.suite);
    out.field("mode", header.mode);
    out.field("model id", hex(&header.model_id));
    out.field("tokens", format_args!("{} {:?}", header.ids.len(), header.ids));
    if sequences.is_empty() {
        out.field("output", format_args!("{} channels", header.output.len()));
    } else {
        out.field("sequences", format_args!("{sequences:?} (prompt, completion)"));
    }
    out.field("seed nonce", header.seed_nonce);
    out.field("header", format_args!("{header_bytes} bytes"));
    match &segments {
        Some(segments) => segments.iter().zip(&roots).for_each(|(s, root)| {
            let text = format!("claims {:>8}  opening {:>10}  {} columns  root {root}", s.claims, s.opening, s.columns);
            out.field(&s.name, text);
        }),
        None => {
            roots.iter().for_each(|root| out.field("root", root));
            out.line("The model is not registered here: register it, or pass --model, to see its segments.");
        }
    }
    if let Some(bytes) = joint {
        out.field("all segments", format_args!("opening {bytes:>10}"));
    }
    Ok(())
}

/// Bytes of the segments, and of what opens them all.
fn segments(model: &ModelFolder, header: &Header, r: &mut Reader<'_>) -> Result<(Vec<SegmentBytes>, Option<usize>), Failure> {
    let input = PublicInput { ids: header.ids.clone(), sequences: header.sequences.clone(), output: header.output.clone() };
    let statement = Outline::new::<NodeSuite>(&model.registered, input, header.mode)?;
    let params = model.registered.opening();
    let (mut out, mut rows) = (Vec::new(), Vec::new());
    for segment in 0..segment_count(&model.registered.descriptor) {
        let c = &*statement.circuit(&model.registered, segment)?;
        let start = r.remaining();
        read_claims(r, c, params.h as usize)?;
        let middle = r.remaining();
        let shape = opening_shape(c, &params);
        if statement.mode.opens_each() {
            OpeningProof::read(r, &shape)?;
        } else {
            OpeningProof::read_rows(r, &shape)?;
            rows.extend(shape.row_counts());
        }
        let (claims, opening) = (start - middle, middle - r.remaining());
        out.push(SegmentBytes { name: c.name.clone(), claims, opening, columns: c.columns.len() });
    }
    let start = r.remaining();
    let joint = (!statement.mode.opens_each()).then(|| CombinedProof::read(r, &params, &rows)).transpose()?;
    match r.remaining() {
        0 => Ok((out, joint.map(|_| start))),
        n => Err(Failure::input(format!("{n} bytes follow the last part: this is not a whole proof and nothing else"))),
    }
}
