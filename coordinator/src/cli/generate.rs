//! Prompts in, completed sequences out: what `generate` prints and `prove` proves for decoders.

use super::args::GenerateArgs;
use super::exit::Failure;
use super::home::Home;
use super::output::{Out, hex};
use super::prompts::{Asked, Prompt, Refused, prompts};
use obelysk_model::infer::decoder::generate_batch;
use obelysk_model::source::WEIGHT_BYTES;
use obelysk_model::{IntegerModel, StoredModel, WeightSource};
use obelysk_node::ModelFolder;
use obelysk_protocol::circuit::Sequence;
use obelysk_protocol::circuit::descriptor::{Decoder, MAX_TOKENS};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Largest `generation_config.json`.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Prompts with their completions.
#[derive(Debug, Default)]
pub struct Generated {
    /// All tokens: prompt and completion, sequence after sequence.
    pub ids: Vec<u32>,
    /// How they are cut.
    pub sequences: Vec<Sequence>,
    /// Lines of a batch that were left out.
    pub refused: Vec<Refused>,
}

/// A sequence as text.
#[derive(Clone, Debug, Serialize)]
pub struct Told {
    /// Text of the prompt.
    pub prompt: String,
    /// Text of the completion.
    pub completion: String,
    /// Tokens of both.
    pub tokens: [u32; 2],
}

/// Runs `generate`.
pub fn run(out: &Out, home: &Home, args: &GenerateArgs) -> Result<(), Failure> {
    let model = home.open(&args.model)?;
    let made = generate(out, &model, &Asked::from(args))?;
    let told = tell(&model, &made.ids, &made.sequences);
    out.json(&serde_json::json!({
        "model_id": hex(&model.id), "ids": made.ids, "sequences": pairs(&made.sequences), "texts": told, "refused": made.refused,
    }));
    print(out, &told);
    Ok(())
}

/// Prints sequences.
pub fn print(out: &Out, told: &[Told]) {
    for t in told {
        out.field("prompt", format_args!("{:?} ({} tokens)", t.prompt, t.tokens[0]));
        out.field("completion", format_args!("{:?} ({} tokens)", t.completion, t.tokens[1]));
    }
}

/// Lengths of prompts and completions.
pub fn pairs(sequences: &[Sequence]) -> Vec<[u32; 2]> {
    sequences.iter().map(|s| [s.prompt, s.completion]).collect()
}

/// Texts of sequences by the model's tokenizer; none without one.
pub fn tell(model: &ModelFolder, ids: &[u32], sequences: &[Sequence]) -> Vec<Told> {
    let Ok(tokenizer) = IntegerModel::load_tokenizer(&model.path) else { return Vec::new() };
    let text = |ids: &[u32], special: bool| tokenizer.decode(ids, special).unwrap_or_default();
    let mut at = 0;
    sequences
        .iter()
        .map(|s| {
            let (middle, end) = (at + s.prompt as usize, at + (s.prompt + s.completion) as usize);
            let (prompt, completion) = (ids.get(at..middle).unwrap_or(&[]), ids.get(middle..end).unwrap_or(&[]));
            at = end;
            // What begins a text is the tokenizer's; what a completion ends with is the model's own choice.
            Told { prompt: text(prompt, false), completion: text(completion, true), tokens: [s.prompt, s.completion] }
        })
        .collect()
}

/// Completes what was asked for, greedily, with the integer model.
pub fn generate(out: &Out, model: &ModelFolder, asked: &Asked<'_>) -> Result<Generated, Failure> {
    let d = model.registered.descriptor.decoder();
    let d = d.ok_or_else(|| Failure::input("this model is an encoder: give --text, it has no completions"))?;
    let (prompts, refused) = prompts(model, d, asked)?;
    for r in &refused {
        out.note(&format!("line {}: {}; left out", r.line, r.reason));
    }
    if prompts.is_empty() {
        return Err(Failure::input("no line of the batch can be used; correct the lines named above"));
    }
    let rows: usize = prompts.iter().map(|p| p.ids.len() + p.max_tokens - 1).sum();
    if rows > MAX_TOKENS {
        let text = format!("prompts and completions need up to {rows} rows, one proof holds {MAX_TOKENS}");
        return Err(Failure::input(format!("{text}: shorten them, lower --max-tokens, or split the batch")));
    }
    let spinner = out.spinner("generating");
    let completions = complete(model, d, &prompts);
    spinner.finish_and_clear();
    let mut made = Generated { refused, ..Generated::default() };
    for (prompt, completion) in prompts.iter().zip(completions?) {
        made.sequences.push(Sequence { prompt: prompt.ids.len() as u32, completion: completion.len() as u32 });
        made.ids.extend(prompt.ids.iter().chain(&completion));
    }
    Ok(made)
}

/// Completions in order; prompts with one limit share the passes over the weights.
fn complete(model: &ModelFolder, d: &Decoder, prompts: &[Prompt]) -> Result<Vec<Vec<u32>>, Failure> {
    let weights = StoredModel::open(&model.path, WEIGHT_BYTES)?;
    weights.check()?;
    let eos = ends(&model.path)?;
    let mut by_limit: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (i, prompt) in prompts.iter().enumerate() {
        by_limit.entry(prompt.max_tokens).or_default().push(i);
    }
    let mut out = vec![Vec::new(); prompts.len()];
    for (limit, members) in by_limit {
        let ids: Vec<&[u32]> = members.iter().map(|&i| prompts[i].ids.as_slice()).collect();
        for (i, completion) in members.into_iter().zip(generate_batch(d, &weights as &dyn WeightSource, &ids, limit, &eos)?) {
            out[i] = completion;
        }
    }
    Ok(out)
}

/// Tokens that end a text, from `generation_config.json` beside the model; none without one.
fn ends(folder: &Path) -> Result<Vec<u32>, Failure> {
    let path = folder.join("generation_config.json");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let value: Value = serde_json::from_slice(&super::home::read_bounded(&path, MAX_CONFIG_BYTES)?)?;
    let id = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
    Ok(match value.get("eos_token_id") {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    })
}
