//! Whether a model's folder is whole and can be proved, and what proving it takes, before hours are spent on it.
//!
//! Reads everything and changes nothing. Every check is reported, not only the first that fails; what cannot be judged (no
//! digests recorded, no chat template) is said to be so and is no failure.

mod needs;
mod outline;

pub use needs::{DEFAULT_RATE, Needs, SegmentNeeds};

use crate::IntegerModel;
use crate::chat::{ChatTemplate, Message};
use crate::fetch::{self, Record};
use crate::graph::Graph;
use crate::graph::decoder::DecoderGraph;
use crate::import::{Config, Imported, import};
use crate::preset::Preset;
use obelysk_protocol::circuit::BuildError;
use obelysk_protocol::circuit::descriptor::Descriptor;
use serde::Serialize;
use std::path::Path;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it must be.
    Passed,
    /// Not as it must be; the detail says why and what to do.
    Failed,
    /// There was nothing to check.
    Skipped,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found.
    pub detail: String,
}

/// All checks of a model, and what it needs if its dimensions are known.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Validation {
    /// Checks in order.
    pub checks: Vec<Check>,
    /// Estimates.
    pub needs: Option<Needs>,
}

/// What estimates are asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Question {
    /// Tokens proved together.
    pub tokens: usize,
    /// Weights times tokens per second and core.
    pub rate: f64,
}

impl Validation {
    /// Whether nothing failed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|c| c.outcome != Outcome::Failed)
    }

    /// Adds a check of the caller's.
    pub fn add<E: std::fmt::Display>(&mut self, name: &'static str, result: Result<String, E>) {
        self.checks.push(match result {
            Ok(detail) => Check { name, outcome: Outcome::Passed, detail },
            Err(error) => Check { name, outcome: Outcome::Failed, detail: error.to_string() },
        });
    }

    /// Says that something could not be checked.
    pub fn skip(&mut self, name: &'static str, detail: &str) {
        self.checks.push(Check { name, outcome: Outcome::Skipped, detail: detail.to_owned() });
    }

    fn estimate(&mut self, needs: Result<Needs, BuildError>) {
        match needs {
            Ok(needs) => {
                let longest = needs.segments.iter().map(|s| s.memory_bytes).max().unwrap_or(0);
                self.add("circuits", Ok::<_, BuildError>(format!("build; the largest segment takes about {longest} bytes")));
                self.needs = Some(needs);
            }
            Err(error) => self.add("circuits", Err(error)),
        }
    }
}

/// Checks a folder with a float or an integer model, which must be `preset` if one is given.
#[must_use]
pub fn folder(folder: &Path, preset: Option<&Preset>, question: Question) -> Validation {
    let mut v = Validation { checks: Vec::new(), needs: None };
    if folder.join("descriptor.bin").is_file() {
        integer(&mut v, folder, question);
        return v;
    }
    v.add("files", files(folder));
    match import(folder) {
        Err(error) => v.add("config and headers", Err(error)),
        Ok(imported) => {
            let config = &imported.config;
            v.add("config and headers", Ok::<_, fetch::FetchError>(described(config)));
            if let Some(preset) = preset {
                v.add("preset", promised(preset, config));
            }
            v.add("shapes and formats", shapes(&imported));
            let layers = match config {
                Config::Encoder(c) => c.layers,
                Config::Decoder(c) => c.layers,
            };
            let outline = outline::outline(config);
            v.estimate(Needs::estimate(&outline, layers as u64, question.tokens, question.rate));
        }
    }
    match ChatTemplate::read(folder) {
        Ok(None) => v.skip("chat template", "the tokenizer has none: prompts are used as they are"),
        Ok(Some(chat)) => {
            let rendered = chat.render(&[Message::new("user", "Hello")]);
            v.add("chat template", rendered.map(|text| format!("renders a message as {text:?}")));
        }
        Err(error) => v.add("chat template", Err(error)),
    }
    checksums(&mut v, folder);
    v
}

/// Whether a preset can be proved and what it needs, by its dimensions alone; nothing of it has to be here.
#[must_use]
pub fn preset(preset: &Preset, question: Question) -> Validation {
    let mut v = Validation { checks: Vec::new(), needs: None };
    v.estimate(Needs::estimate(&outline(preset), preset.layers, question.tokens, question.rate));
    v
}

/// A descriptor with a preset's dimensions, one layer and plausible parameters: its circuits have the sizes of the model's.
#[must_use]
pub fn outline(preset: &Preset) -> Descriptor {
    outline::outline(&Config::Decoder(outline::of_preset(preset)))
}

fn integer(v: &mut Validation, folder: &Path, question: Question) {
    match IntegerModel::load(folder) {
        Err(error) => v.add("integer model", Err(error)),
        Ok(model) => {
            let d = &model.descriptor;
            let found = format!("{} layers, {} weights; digests and bounds hold", d.layer_count(), model.weights.cells());
            v.add("integer model", Ok::<_, fetch::FetchError>(found));
            v.estimate(Needs::estimate(d, d.layer_count() as u64, question.tokens, question.rate));
        }
    }
}

fn files(folder: &Path) -> Result<String, fetch::FetchError> {
    let files = fetch::kept_files(folder)?;
    let bytes: u64 = files.iter().filter_map(|name| folder.join(name).metadata().ok()).map(|m| m.len()).sum();
    let weights = files.iter().filter(|name| name.ends_with(".safetensors")).count();
    Ok(format!("{} files, {weights} of them weights, {bytes} bytes", files.len()))
}

fn described(config: &Config) -> String {
    let architecture = config.architecture();
    match config {
        Config::Encoder(c) => {
            format!("{architecture}: {} layers, width {}, {} heads, inner width {}", c.layers, c.width, c.heads, c.ffn)
        }
        Config::Decoder(c) => format!(
            "{architecture}: {} layers, width {}, {} heads of {} ({} key heads), inner width {}, vocabulary {}",
            c.layers, c.width, c.heads, c.head_dim, c.kv_heads, c.ffn, c.vocab
        ),
    }
}

fn promised(preset: &Preset, config: &Config) -> Result<String, String> {
    match config {
        Config::Decoder(config) => {
            preset.check(config).map(|()| format!("as `{}` promises", preset.name)).map_err(|e| e.to_string())
        }
        Config::Encoder(_) => Err(format!("`{}` is a decoder, but the folder holds an encoder", preset.name)),
    }
}

fn shapes(imported: &Imported) -> Result<String, crate::import::ImportError> {
    match &imported.config {
        Config::Encoder(_) => Graph::build(imported).map(drop)?,
        Config::Decoder(_) => DecoderGraph::build(imported).map(drop)?,
    }
    Ok(format!("{} tensors, all with the shapes of the config and in a float format", imported.tensors.names().count()))
}

/// Holds the files against the digests that were recorded when they were fetched.
fn checksums(v: &mut Validation, folder: &Path) {
    let record = match Record::read(folder) {
        Ok(Some(record)) => record,
        Ok(None) => return v.skip("checksums", "no digests were recorded: the files were not fetched by this program"),
        Err(error) => return v.add("checksums", Err(error)),
    };
    let wrong: Vec<String> = record
        .files
        .iter()
        .filter_map(|file| match fetch::digest(&folder.join(&file.name), &file.name) {
            Ok(found) if found == *file => None,
            Ok(_) => Some(format!("{} has other bytes than were fetched", file.name)),
            Err(error) => Some(error.to_string()),
        })
        .collect();
    let from = record.revision.map(|r| format!(" at {r}")).unwrap_or_default();
    v.add(
        "checksums",
        if wrong.is_empty() {
            Ok(format!("{} files are as fetched from {}{from}", record.files.len(), record.source))
        } else {
            Err(format!("{}; fetch the model again", wrong.join(", ")))
        },
    );
}

#[cfg(test)]
mod tests;
