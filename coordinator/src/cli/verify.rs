//! `obelysk verify`: one thread, no weights, nothing but the proof and the registration.

use super::args::VerifyArgs;
use super::exit::{Code, Failure};
use super::generate::{pairs, tell};
use super::home::{Home, read_bounded};
use super::output::{Out, hex, size};
use super::prompts::{Chat, PromptReader};
use obelysk_model::IntegerModel;
use obelysk_model::infer;
use obelysk_node::{ModelFolder, NodeSuite};
use obelysk_protocol::verifier::aggregate::{Accepted, verify_bytes};
use obelysk_protocol::verifier::bytes::Reader;
use obelysk_protocol::verifier::proof::Header;
use std::time::Instant;

/// Far above any proof this version can make; a larger file is not read into memory.
pub const MAX_PROOF_BYTES: u64 = 1 << 30;

/// Runs `verify`.
pub fn run(out: &Out, home: &Home, args: &VerifyArgs) -> Result<(), Failure> {
    let model = home.open(&args.model)?;
    let bytes = read_bounded(&args.proof, MAX_PROOF_BYTES)?;
    if args.chat.chat && args.prompt.is_none() {
        return Err(Failure::input("--chat is about the prompt: give the user's message with --prompt, or leave --chat away"));
    }
    let read = |text: &String| PromptReader::open(&model.path)?.prompt(text, Chat::asked(&args.chat));
    let prompt = args.prompt.as_ref().map(read).transpose()?;
    let started = Instant::now();
    let outcome = verify_bytes::<NodeSuite>(&model.registered, &bytes);
    let seconds = started.elapsed().as_secs_f64();
    let mode = Header::read(&mut Reader::new(&bytes)).ok().map(|header| header.mode);
    let outcome = outcome
        .map_err(anyhow::Error::from)
        .and_then(|accepted| asked(&model, (prompt.as_deref(), args.completion.as_deref()), &accepted).map(|()| accepted));
    json(out, &model, (&bytes, mode), (&outcome, seconds));
    match outcome {
        Ok(accepted) => {
            out.line(console::style("accepted").green().bold());
            print(out, &model, &accepted, (bytes.len(), seconds));
            Ok(())
        }
        Err(reason) => {
            out.line(format_args!("{}: {reason}", console::style("rejected").red().bold()));
            Err(Failure { code: Code::Rejected, error: reason })
        }
    }
}

/// Whether the first sequence is the one the caller expects: the prompt's tokens, the completion's text.
fn asked(model: &ModelFolder, (prompt, completion): (Option<&[u32]>, Option<&str>), accepted: &Accepted) -> anyhow::Result<()> {
    if prompt.is_none() && completion.is_none() {
        return Ok(());
    }
    let Some(first) = accepted.sequences.first() else {
        anyhow::bail!("the proof is of an encoder's text, it has no completion")
    };
    let (proved, rest) = accepted.ids.split_at(first.prompt as usize);
    anyhow::ensure!(
        prompt.is_none_or(|expected| expected == proved),
        "the proof is valid, but its prompt is another text than the one given"
    );
    if let Some(text) = completion {
        let tokenizer = IntegerModel::load_tokenizer(&model.path)?;
        let proved = rest.get(..first.completion as usize).unwrap_or(&[]);
        let told = [tokenizer.decode(proved, false)?, tokenizer.decode(proved, true)?];
        anyhow::ensure!(
            told.iter().any(|told| told == text),
            "the proof is valid, but its completion is another text than the one given"
        );
    }
    Ok(())
}

fn json(
    out: &Out,
    model: &ModelFolder,
    (bytes, mode): (&[u8], Option<u8>),
    (outcome, seconds): (&anyhow::Result<Accepted>, f64),
) {
    let accepted = outcome.as_ref().ok();
    out.json(&serde_json::json!({
        "accepted": accepted.is_some(),
        "security_bits": accepted.map(|a| a.security_bits),
        "seconds": seconds,
        "proof_bytes": bytes.len(),
        "model_id": hex(&model.id),
        "mode": mode,
        "reason": outcome.as_ref().err().map(ToString::to_string),
        "ids": accepted.map(|a| &a.ids),
        "sequences": accepted.map(|a| pairs(&a.sequences)),
        "texts": accepted.map(|a| tell(model, &a.ids, &a.sequences)),
        "digest": accepted.map(|a| hex(&a.digest)),
        "embedding": accepted.and_then(|a| embedding(model, a)),
    }));
}

/// The sentence embedding of an encoder: a public formula of the proven sums.
pub fn embedding(model: &ModelFolder, accepted: &Accepted) -> Option<Vec<f32>> {
    let encoder = model.registered.descriptor.encoder()?;
    Some(infer::embedding(&encoder.output, &accepted.output, accepted.ids.len()))
}

/// Prints what an accepted proof says.
pub fn print(out: &Out, model: &ModelFolder, accepted: &Accepted, (bytes, seconds): (usize, f64)) {
    out.field("security", format_args!("{:.1} bits", accepted.security_bits));
    out.field("mode", accepted.mode as u8);
    out.field("model id", hex(&model.id));
    out.field("tokens", format_args!("{} {:?}", accepted.ids.len(), accepted.ids));
    if let Some(vector) = embedding(model, accepted) {
        let first: Vec<String> = vector.iter().take(8).map(|v| format!("{v:+.5}")).collect();
        out.field("embedding", format_args!("[{}, …]", first.join(", ")));
    }
    super::generate::print(out, &tell(model, &accepted.ids, &accepted.sequences));
    out.field("proof size", size(bytes as u64));
    out.field("verified in", format_args!("{:.3} s on one thread", seconds));
}
