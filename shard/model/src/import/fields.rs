//! The fields of a `config.json` (or of an object in it), taken out one by one, so that what nobody asked for can be judged.
//!
//! A field left over is an error unless it is known not to touch the function, or says `null`, `false` or nothing at all.

use super::{ImportError, setting};
use serde_json::{Map, Value};

/// Fields that never change what a forward pass computes: names, training, storage, sampling, output format.
const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "attention_dropout",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "cache_implementation",
    "chunk_size_feed_forward",
    "cls_token_id",
    "custom_generation_config",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "embd_pdrop",
    "encoder_no_repeat_ngram_size",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "sep_token_id",
    "temperature",
    "top_k",
    "top_p",
    "torch_dtype",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
];

/// Fields not yet asked for.
pub(super) struct Fields {
    prefix: String,
    map: Map<String, Value>,
}

impl Fields {
    pub(super) fn new(map: Map<String, Value>) -> Self {
        Self { prefix: String::new(), map }
    }

    /// The value of a field; `null` counts as absent.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|v| !v.is_null())
    }

    /// Whether the field is written down, be it as `null`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// An object field, to be finished by its reader.
    pub(super) fn object(&mut self, name: &str) -> Result<Option<Self>, ImportError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self { prefix: format!("{}{name}.", self.prefix), map })),
            Some(other) => Err(self.wrong(name, &other, "an object or null")),
        }
    }

    /// A positive integer up to `limit`.
    pub(super) fn size(&mut self, name: &str, limit: usize) -> Result<Option<usize>, ImportError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=limit).contains(n)) {
            Some(n) => Ok(Some(n)),
            None => Err(self.wrong(name, &value, "a positive integer within what memory can hold")),
        }
    }

    /// A positive finite number.
    pub(super) fn positive(&mut self, name: &str) -> Result<Option<f64>, ImportError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value.as_f64().filter(|n| n.is_finite() && *n > 0.0) {
            Some(n) => Ok(Some(n)),
            None => Err(self.wrong(name, &value, "a positive number")),
        }
    }

    pub(super) fn flag(&mut self, name: &str, default: bool) -> Result<bool, ImportError> {
        match self.take(name) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(b),
            Some(other) => Err(self.wrong(name, &other, "true or false")),
        }
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, ImportError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.wrong(name, &other, "a string")),
        }
    }

    /// A list of strings.
    pub(super) fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>, ImportError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match serde_json::from_value(value.clone()) {
            Ok(list) => Ok(Some(list)),
            Err(_) => Err(self.wrong(name, &value, "a list of strings")),
        }
    }

    /// A list of positive finite numbers.
    pub(super) fn numbers(&mut self, name: &str) -> Result<Option<Vec<f64>>, ImportError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let list: Option<Vec<f64>> = serde_json::from_value(value.clone()).ok();
        match list.filter(|l| l.iter().all(|n| n.is_finite() && *n > 0.0)) {
            Some(list) => Ok(Some(list)),
            None => Err(self.wrong(name, &value, "a list of positive numbers")),
        }
    }

    /// One token id or a list of them; empty if absent.
    pub(super) fn ids(&mut self, name: &str) -> Result<Vec<u32>, ImportError> {
        let Some(value) = self.take(name) else { return Ok(Vec::new()) };
        let list = if value.is_array() { value.clone() } else { Value::Array(vec![value.clone()]) };
        serde_json::from_value(list).map_err(|_| self.wrong(name, &value, "a token id or a list of token ids"))
    }

    /// Refuses a field that is there with another value than `only`.
    pub(super) fn only(&mut self, name: &str, only: &Value, supported: &'static str) -> Result<(), ImportError> {
        match self.take(name) {
            Some(value) if value != *only && value.as_f64() != only.as_f64().or(Some(f64::NAN)) => {
                Err(self.wrong(name, &value, supported))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what is left unless it is harmless.
    pub(super) fn finish(self) -> Result<(), ImportError> {
        let idle = |v: &Value| match v {
            Value::Null | Value::Bool(false) => true,
            Value::Array(a) => a.is_empty(),
            Value::Object(o) => o.is_empty(),
            _ => false,
        };
        let top = self.prefix.is_empty();
        match self.map.iter().find(|(name, v)| !(idle(v) || top && HARMLESS.contains(&name.as_str()))) {
            Some((name, value)) => Err(self.wrong(name, value, "leaving it out, if the function does not depend on it")),
            None => Ok(()),
        }
    }

    pub(super) fn wrong(&self, name: &str, value: &Value, supported: &'static str) -> ImportError {
        setting(&format!("{}{name}", self.prefix), &value.to_string(), supported)
    }

    pub(super) fn missing(&self, name: &str, supported: &'static str) -> ImportError {
        setting(&format!("{}{name}", self.prefix), "absent", supported)
    }
}
