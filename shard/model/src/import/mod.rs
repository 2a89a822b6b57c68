//! A Hugging Face folder, read and judged: `config.json`, safetensors, `tokenizer.json`, pooling settings.
//!
//! Refuses what it does not understand by name. A setting that would change the computed function and is not supported is an
//! error, never ignored.

mod config;
mod decoder;
mod fields;
mod rope;
mod shards;
mod tensors;
mod tokenizer;

pub use config::{Config, EncoderConfig, HiddenAct, Pooling};
pub use decoder::DecoderConfig;
pub use tensors::{FloatTensor, TensorStore};
pub use tokenizer::TextTokenizer;

use std::path::{Path, PathBuf};
use thiserror::Error;

/// A model as published, in floats.
#[derive(Clone)]
pub struct Imported {
    /// Dimensions and settings.
    pub config: Config,
    /// All tensors by name, without a leading `bert.`; values are read when asked for.
    pub tensors: TensorStore,
    /// Text to token ids, special tokens included.
    pub tokenizer: TextTokenizer,
}

/// Why a folder is not a model we can read. Every variant names the file, tensor or setting.
#[derive(Debug, Error)]
pub enum ImportError {
    /// A file is absent or unreadable.
    #[error("cannot read {path}: {source}; the folder must hold config.json, tokenizer.json and *.safetensors")]
    File {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// A JSON file does not parse.
    #[error("{path} is not valid: {source}; fetch the model again")]
    Json {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: serde_json::Error,
    },
    /// A safetensors file does not parse.
    #[error("{path} is not a complete safetensors file ({reason}); fetch the model again")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// Cause.
        reason: String,
    },
    /// No weights in the folder.
    #[error("{0} holds no *.safetensors file; convert the weights to safetensors first")]
    NoWeights(PathBuf),
    /// A shard of the index is not there.
    #[error("{index} names the shard `{shard}`, which is not in the folder; fetch the model again")]
    Shard {
        /// The index.
        index: PathBuf,
        /// The shard.
        shard: String,
    },
    /// A tensor the architecture needs.
    #[error("tensor `{0}` is missing; the weights do not belong to this config.json")]
    MissingTensor(String),
    /// A tensor of another shape than the config asks for.
    #[error("tensor `{name}` has shape {found:?} where {expected:?} is needed; weights and config.json differ")]
    Shape {
        /// Tensor.
        name: String,
        /// Shape found.
        found: Vec<usize>,
        /// Shape needed.
        expected: Vec<usize>,
    },
    /// A tensor the architecture has no use for.
    #[error("tensor `{0}` has no place in this architecture; the weights do not belong to this config.json")]
    UnusedTensor(String),
    /// A weight that is not a number.
    #[error("tensor `{name}` holds {value} at index {index}; the checkpoint is damaged")]
    NotFinite {
        /// Tensor.
        name: String,
        /// Flat index.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A number format we do not read.
    #[error("tensor `{name}` is stored as {dtype}; convert it to f32, f16 or bf16")]
    Dtype {
        /// Tensor.
        name: String,
        /// Format.
        dtype: String,
    },
    /// An architecture without a builder.
    #[error(
        "architecture `{0}` is not supported here; supported: BertModel, BertForMaskedLM (encoders), LlamaForCausalLM, \
         Qwen3ForCausalLM, MistralForCausalLM, Phi3ForCausalLM, Gemma2ForCausalLM (decoders)"
    )]
    Architecture(String),
    /// A setting that changes the function.
    #[error("setting `{setting}` is `{value}`, which is not supported; supported: {supported}")]
    Setting {
        /// Key in its file.
        setting: String,
        /// Value found.
        value: String,
        /// What would do.
        supported: &'static str,
    },
    /// The tokenizer does not load or fails on a text.
    #[error("tokenizer: {0}; check tokenizer.json")]
    Tokenizer(String),
}

/// Reads a model folder.
///
/// # Errors
/// See [`ImportError`].
pub fn import(folder: &Path) -> Result<Imported, ImportError> {
    let config = Config::read(folder)?;
    let tensors = TensorStore::read(folder)?;
    let tokenizer = TextTokenizer::read(&folder.join("tokenizer.json"))?;
    Ok(Imported { config, tensors, tokenizer })
}

fn read_file(path: &Path) -> Result<Vec<u8>, ImportError> {
    std::fs::read(path).map_err(|source| ImportError::File { path: path.to_owned(), source })
}

fn setting(name: &str, value: &str, supported: &'static str) -> ImportError {
    ImportError::Setting { setting: name.into(), value: value.into(), supported }
}
