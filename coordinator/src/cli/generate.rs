//! Prompts in, completed sequences out: what `generate` prints and `prove` proves for decoders.
//!
//! Every bound is checked before any work. One bad line of a batch is reported with its number; the others go on.

use super::args::{GenerateArgs, ProveArgs};
use super::exit::Failure;
use super::home::Home;
use super::output::{Out, hex};
use obelysk_model::import::TextTokenizer;
use obelysk_model::infer::InferError;
use obelysk_model::infer::decoder::generate_batch;
use obelysk_model::source::WEIGHT_BYTES;
use obelysk_model::{IntegerModel, StoredModel, WeightSource};
use obelysk_node::ModelFolder;
use obelysk_protocol::circuit::Sequence;
use obelysk_protocol::circuit::descriptor::{Decoder, MAX_TOKENS};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Largest batch file: prompts of a full proof take a few kilobytes.
const MAX_BATCH_BYTES: u64 = 16 << 20;
/// Largest `generation_config.json`.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Most lines of a batch: each has at least one row of the token axis.
const MAX_LINES: usize = MAX_TOKENS;

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

/// A line of a batch that was left out.
#[derive(Clone, Debug, Serialize)]
pub struct Refused {
    /// Line number, from 1.
    pub line: usize,
    /// Why.
    pub reason: String,
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

/// One prompt to complete.
struct Prompt {
    ids: Vec<u32>,
    max_tokens: usize,
}

/// A line of a batch.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    prompt: Option<String>,
    ids: Option<Vec<u32>>,
    max_tokens: Option<usize>,
}

/// Where prompts come from.
pub struct Asked<'a> {
    /// A text.
    pub prompt: Option<&'a str>,
    /// Token ids.
    pub ids: Option<&'a [u32]>,
    /// A file with one JSON object per line.
    pub batch: Option<&'a Path>,
    /// Most tokens to generate per prompt.
    pub max_tokens: usize,
}

impl<'a> From<&'a ProveArgs> for Asked<'a> {
    fn from(args: &'a ProveArgs) -> Self {
        let (prompt, ids) = (args.prompt.as_deref(), args.ids.as_deref());
        Self { prompt, ids, batch: args.batch.as_deref(), max_tokens: args.max_tokens }
    }
}

/// Runs `generate`.
pub fn run(out: &Out, home: &Home, args: &GenerateArgs) -> Result<(), Failure> {
    let model = home.open(&args.model)?;
    let (prompt, ids) = (args.prompt.as_deref(), args.ids.as_deref());
    let asked = Asked { prompt, ids, batch: args.batch.as_deref(), max_tokens: args.max_tokens };
    let made = generate(out, &model, &asked)?;
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

fn prompts(model: &ModelFolder, d: &Decoder, asked: &Asked<'_>) -> Result<(Vec<Prompt>, Vec<Refused>), Failure> {
    let tokenizer = || -> Result<TextTokenizer, Failure> {
        if model.path.join("tokenizer.json").is_file() {
            return Ok(IntegerModel::load_tokenizer(&model.path)?);
        }
        Err(Failure::input(format!("{} has no tokenizer.json: give token ids with --ids", model.path.display())))
    };
    if let Some(batch) = asked.batch {
        return lines(d, &tokenizer()?, batch, asked.max_tokens);
    }
    let ids = match (asked.prompt, asked.ids) {
        (Some(text), _) => encoded(&tokenizer()?, text)?,
        (None, Some(ids)) => ids.to_vec(),
        (None, None) => return Err(Failure::input("give --prompt, --ids or --batch")),
    };
    Ok((vec![admitted(d, ids, asked.max_tokens)?], Vec::new()))
}

fn lines(d: &Decoder, tokenizer: &TextTokenizer, path: &Path, default: usize) -> Result<(Vec<Prompt>, Vec<Refused>), Failure> {
    let text = String::from_utf8(super::home::read_bounded(path, MAX_BATCH_BYTES)?)
        .map_err(|_| Failure::input(format!("{} is not UTF-8", path.display())))?;
    let (mut prompts, mut refused) = (Vec::new(), Vec::new());
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    for (at, line) in lines.take(MAX_LINES + 1) {
        match one_line(d, tokenizer, line, default) {
            Ok(prompt) => prompts.push(prompt),
            Err(failure) => refused.push(Refused { line: at + 1, reason: failure.error.to_string() }),
        }
    }
    if prompts.len() + refused.len() > MAX_LINES {
        return Err(Failure::input(format!("{} has more than {MAX_LINES} lines: split it", path.display())));
    }
    Ok((prompts, refused))
}

fn one_line(d: &Decoder, tokenizer: &TextTokenizer, line: &str, default: usize) -> Result<Prompt, Failure> {
    let line: Line = serde_json::from_str(line).map_err(|e| Failure::input(format!("not a request ({e})")))?;
    let ids = match (line.prompt, line.ids) {
        (Some(text), None) => encoded(tokenizer, &text)?,
        (None, Some(ids)) => ids,
        _ => return Err(Failure::input("give either \"prompt\" or \"ids\"")),
    };
    admitted(d, ids, line.max_tokens.unwrap_or(default))
}

fn encoded(tokenizer: &TextTokenizer, text: &str) -> Result<Vec<u32>, Failure> {
    if text.trim().is_empty() {
        return Err(Failure::input("the prompt is empty: give some text"));
    }
    Ok(tokenizer.encode(text)?)
}

/// Refuses what the model cannot complete.
fn admitted(d: &Decoder, ids: Vec<u32>, max_tokens: usize) -> Result<Prompt, Failure> {
    let positions = d.positions as usize;
    if ids.is_empty() {
        return Err(InferError::Empty.into());
    }
    if let Some((position, &id)) = ids.iter().enumerate().find(|&(_, &id)| id >= d.vocab) {
        return Err(InferError::Vocabulary { id, position, vocab: d.vocab }.into());
    }
    if max_tokens == 0 {
        return Err(Failure::input("0 tokens to generate: a proof needs at least one, raise --max-tokens"));
    }
    if ids.len() + max_tokens > positions {
        let text =
            format!("a prompt of {} tokens and up to {max_tokens} to generate; this model's context is {positions}", ids.len());
        return Err(Failure::input(format!("{text}: shorten the prompt or lower --max-tokens")));
    }
    Ok(Prompt { ids, max_tokens })
}
