//! `config.json` and the settings of sentence-transformers: what the builder needs, and refusal of what it cannot honour.

use super::decoder::{DecoderConfig, Family};
use super::tensors::json;
use super::{ImportError, setting};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;

/// Dimensions and settings of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum Config {
    /// A text encoder: one vector per text.
    Encoder(EncoderConfig),
    /// A causal language model: one distribution per token.
    Decoder(DecoderConfig),
}

/// Dimensions and settings of an encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// Architecture name as published.
    pub architecture: String,
    /// Vocabulary size.
    pub vocab: usize,
    /// Hidden width.
    pub width: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Inner width of the feed-forward block.
    pub ffn: usize,
    /// Rows of the position table.
    pub positions: usize,
    /// Rows of the token-type table.
    pub types: usize,
    /// Epsilon of every norm.
    pub norm_eps: f64,
    /// Activation of the feed-forward block.
    pub activation: HiddenAct,
    /// How token vectors become one vector.
    pub pooling: Pooling,
}

/// Activations with a builder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HiddenAct {
    /// `x Phi(x)`, exact.
    Gelu,
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x Phi(x)` with Phi approximated by a hyperbolic tangent.
    GeluTanh,
}

/// Poolings with a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Mean over tokens, then division by the L2 norm.
    MeanNormalised,
}

/// The fields of `config.json` that decide the function.
#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    model_type: String,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    intermediate_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    type_vocab_size: Option<usize>,
    layer_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    #[serde(default)]
    add_cross_attention: bool,
}

#[derive(Deserialize)]
struct Module {
    r#type: String,
}

impl Config {
    /// Reads `config.json` and what belongs to it.
    pub(super) fn read(folder: &Path) -> Result<Self, ImportError> {
        let path = folder.join("config.json");
        let map: Map<String, Value> = json(&path)?;
        let text = |v: Option<&Value>| v.and_then(Value::as_str).unwrap_or_default().to_owned();
        let named = text(map.get("architectures").and_then(|a| a.get(0)));
        let Some((family, model_type)) = Family::of(&named) else {
            return EncoderConfig::read(folder).map(Self::Encoder);
        };
        match text(map.get("model_type")) {
            found if found == model_type || found.is_empty() => {}
            found => return Err(setting("model_type", &found, model_type)),
        }
        DecoderConfig::read(family, &named, map, folder).map(Self::Decoder)
    }

    /// Tokens a sequence may have.
    #[must_use]
    pub fn positions(&self) -> usize {
        match self {
            Self::Encoder(config) => config.positions,
            Self::Decoder(config) => config.positions,
        }
    }

    /// Architecture name as published.
    #[must_use]
    pub fn architecture(&self) -> &str {
        match self {
            Self::Encoder(config) => &config.architecture,
            Self::Decoder(config) => &config.architecture,
        }
    }
}

impl EncoderConfig {
    /// Reads `config.json`, `modules.json` and `1_Pooling/config.json` (the last two if present).
    fn read(folder: &Path) -> Result<Self, ImportError> {
        let raw: Raw = json(&folder.join("config.json"))?;
        let architecture = architecture(&raw)?;
        let activation = match raw.hidden_act.as_deref() {
            Some("gelu") => HiddenAct::Gelu,
            other => return Err(setting("hidden_act", other.unwrap_or("absent"), "gelu")),
        };
        if let Some(kind) = raw.position_embedding_type.as_deref().filter(|&k| k != "absolute") {
            return Err(setting("position_embedding_type", kind, "absolute"));
        }
        if raw.is_decoder || raw.add_cross_attention {
            return Err(setting("is_decoder or add_cross_attention", "true", "false"));
        }
        let size = |name: &str, v: Option<usize>| match v {
            Some(n) if (1..=1 << 27).contains(&n) => Ok(n),
            other => Err(setting(name, &format!("{other:?}"), "a positive number up to 2^27")),
        };
        let config = Self {
            architecture,
            vocab: size("vocab_size", raw.vocab_size)?,
            width: size("hidden_size", raw.hidden_size)?,
            layers: size("num_hidden_layers", raw.num_hidden_layers)?,
            heads: size("num_attention_heads", raw.num_attention_heads)?,
            ffn: size("intermediate_size", raw.intermediate_size)?,
            positions: size("max_position_embeddings", raw.max_position_embeddings)?,
            types: size("type_vocab_size", raw.type_vocab_size)?,
            norm_eps: raw.layer_norm_eps.unwrap_or(1e-12),
            activation,
            pooling: pooling(folder)?,
        };
        if !config.width.is_multiple_of(config.heads) {
            let value = format!("{} with hidden_size {}", config.heads, config.width);
            return Err(setting("num_attention_heads", &value, "a divisor of hidden_size"));
        }
        if !(config.norm_eps > 0.0 && config.norm_eps < 1.0) {
            return Err(setting("layer_norm_eps", &config.norm_eps.to_string(), "a number in (0, 1)"));
        }
        Ok(config)
    }

    /// Channels per head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.width / self.heads
    }
}

fn architecture(raw: &Raw) -> Result<String, ImportError> {
    let name = raw.architectures.first().cloned().unwrap_or_else(|| raw.model_type.clone());
    match name.as_str() {
        "BertModel" | "BertForMaskedLM" | "bert" => Ok(name),
        "" => Err(ImportError::Architecture("(none named in config.json)".into())),
        _ => Err(ImportError::Architecture(name)),
    }
}

fn pooling(folder: &Path) -> Result<Pooling, ImportError> {
    let modules = folder.join("modules.json");
    if modules.exists() {
        for module in json::<Vec<Module>>(&modules)? {
            let kind = module.r#type.rsplit('.').next().unwrap_or_default();
            if !["Transformer", "Pooling", "Normalize"].contains(&kind) {
                return Err(setting("modules.json type", &module.r#type, "Transformer, Pooling, Normalize"));
            }
        }
    }
    let path = folder.join("1_Pooling").join("config.json");
    if path.exists() {
        let fields: serde_json::Map<String, serde_json::Value> = json(&path)?;
        for (name, value) in &fields {
            let wanted = name == "pooling_mode_mean_tokens";
            if name.starts_with("pooling_mode") && value.as_bool() != Some(wanted) {
                return Err(setting(name, &value.to_string(), "pooling_mode_mean_tokens only"));
            }
        }
    }
    Ok(Pooling::MeanNormalised)
}
