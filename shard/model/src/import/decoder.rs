//! `config.json` of the decoder families: every field that decides the function, or an error that names field and value.
//!
//! Defaults of absent fields are those of the published configuration classes. Fields nobody asked for are refused unless
//! they are known to be harmless.

use super::ImportError;
use super::config::HiddenAct;
use super::fields::Fields;
use super::rope;
use super::tensors::json;
use serde_json::{Map, Value, json as value};
use std::path::Path;

/// Bound of every dimension, so that products of two fit easily; the largest published vocabulary has 2^18 entries.
const MAX_SIZE: usize = 1 << 27;
/// Bound on layers: per-layer settings are kept in lists, and no published model has a twentieth of this.
const MAX_LAYERS: usize = 4096;

/// Dimensions and settings of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Architecture name as published.
    pub architecture: String,
    /// Vocabulary size.
    pub vocab: usize,
    /// Hidden width.
    pub width: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Channels per head, even.
    pub head_dim: usize,
    /// Inner width of the feed-forward block.
    pub ffn: usize,
    /// Tokens a sequence may have: `max_position_embeddings`, or with longrope the original length, up to which the short
    /// factors in `rope` hold.
    pub positions: usize,
    /// Added to the mean square in every norm.
    pub norm_eps: f64,
    /// Activation of the gate.
    pub activation: HiddenAct,
    /// `head_dim / 2` inverse frequencies, radians per position, after any scaling.
    pub rope: Vec<f64>,
    /// Factor on cosine and sine of the rotation; 1 but for longrope.
    pub rope_amplitude: f64,
    /// Factor on `q k`.
    pub attention_scale: f64,
    /// Per layer: a query sees this many keys, itself included; `None` for all before it.
    pub windows: Vec<Option<usize>>,
    /// `c` of `c tanh(x / c)` on scaled scores.
    pub score_cap: Option<f64>,
    /// `c` of `c tanh(x / c)` on logits.
    pub logit_cap: Option<f64>,
    /// Factor on rows of the embedding.
    pub embed_scale: f64,
    /// Queries and keys are normalised per head before the rotation.
    pub qk_norm: bool,
    /// Outputs of attention and feed-forward block are normalised before they join the residual stream.
    pub post_norms: bool,
    /// A stored gain `w` means `norm_offset + w`.
    pub norm_offset: f64,
    /// The head is the embedding.
    pub tied: bool,
    /// Projections of queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Token a text begins with.
    pub bos: Option<u32>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
}

/// The families with a builder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Qwen3,
    Mistral,
    Phi3,
    Gemma2,
}

impl Family {
    /// By architecture, with the `model_type` that must go with it.
    pub(super) fn of(architecture: &str) -> Option<(Self, &'static str)> {
        Some(match architecture {
            "LlamaForCausalLM" => (Self::Llama, "llama"),
            "Qwen3ForCausalLM" => (Self::Qwen3, "qwen3"),
            "MistralForCausalLM" => (Self::Mistral, "mistral"),
            "Phi3ForCausalLM" => (Self::Phi3, "phi3"),
            "Gemma2ForCausalLM" => (Self::Gemma2, "gemma2"),
            _ => return None,
        })
    }
}

impl DecoderConfig {
    /// From the fields of `config.json`, and of `generation_config.json` in `folder` if there is one.
    pub(super) fn read(family: Family, name: &str, map: Map<String, Value>, folder: &Path) -> Result<Self, ImportError> {
        let mut f = Fields::new(map);
        for handled in ["architectures", "model_type"] {
            f.take(handled);
        }
        let shape = Shape::read(family, &mut f)?;
        let positions = size(&mut f, "max_position_embeddings")?;
        let rope = rope::read(&mut f, shape.head_dim, positions)?;
        let (bos, eos) = special(&mut f, folder)?;
        let gemma = family == Family::Gemma2;
        let config = Self {
            architecture: name.to_owned(),
            vocab: size(&mut f, "vocab_size")?,
            width: shape.width,
            layers: shape.layers,
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            ffn: size(&mut f, "intermediate_size")?,
            positions: rope.positions,
            norm_eps: norm_eps(family, &mut f)?,
            activation: activation(family, &mut f)?,
            rope: rope.inverse,
            rope_amplitude: rope.amplitude,
            attention_scale: attention_scale(family, &mut f, shape.head_dim)?,
            windows: windows(family, &mut f, shape.layers)?,
            score_cap: cap(family, &mut f, "attn_logit_softcapping", 50.0)?,
            logit_cap: cap(family, &mut f, "final_logit_softcapping", 30.0)?,
            embed_scale: if gemma { (shape.width as f64).sqrt() } else { 1.0 },
            qk_norm: family == Family::Qwen3,
            post_norms: gemma,
            norm_offset: if gemma { 1.0 } else { 0.0 },
            tied: f.flag("tie_word_embeddings", gemma)?,
            qkv_bias: f.flag("attention_bias", false)?,
            bos,
            eos,
        };
        // Settings that other values of these fields would change.
        f.only("mlp_bias", &value!(false), "false")?;
        f.only("pretraining_tp", &value!(1), "1")?;
        if config.qkv_bias && matches!(family, Family::Mistral | Family::Phi3) {
            return Err(f.wrong("attention_bias", &value!(true), "false: this family has no biases"));
        }
        f.finish()?;
        Ok(config)
    }

    /// Query heads per key and value head.
    #[must_use]
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

struct Shape {
    width: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Shape {
    fn read(family: Family, f: &mut Fields) -> Result<Self, ImportError> {
        let (width, heads) = (size(f, "hidden_size")?, size(f, "num_attention_heads")?);
        let layers = f.size("num_hidden_layers", MAX_LAYERS)?;
        let layers = layers.ok_or_else(|| f.missing("num_hidden_layers", "a positive number"))?;
        let kv_heads = f.size("num_key_value_heads", MAX_SIZE)?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(f.wrong("num_key_value_heads", &value!(kv_heads), "a divisor of num_attention_heads"));
        }
        let head_dim = match (f.size("head_dim", MAX_SIZE)?, family) {
            (Some(given), _) => given,
            (None, Family::Qwen3) => 128,
            (None, Family::Gemma2) => 256,
            (None, _) if width.is_multiple_of(heads) => width / heads,
            (None, _) => return Err(f.wrong("num_attention_heads", &value!(heads), "a divisor of hidden_size")),
        };
        if head_dim.checked_mul(heads).is_none_or(|n| n > MAX_SIZE) {
            return Err(f.wrong("head_dim", &value!(head_dim), "heads of at most 2^27 channels together"));
        }
        Ok(Self { width, layers, heads, kv_heads, head_dim })
    }
}

fn size(f: &mut Fields, name: &str) -> Result<usize, ImportError> {
    f.size(name, MAX_SIZE)?.ok_or_else(|| f.missing(name, "a positive number"))
}

fn norm_eps(family: Family, f: &mut Fields) -> Result<f64, ImportError> {
    let eps = f.positive("rms_norm_eps")?.unwrap_or(if family == Family::Phi3 { 1e-5 } else { 1e-6 });
    if eps < 1.0 { Ok(eps) } else { Err(f.wrong("rms_norm_eps", &value!(eps), "a number in (0, 1)")) }
}

fn activation(family: Family, f: &mut Fields) -> Result<HiddenAct, ImportError> {
    if family != Family::Gemma2 {
        return match f.text("hidden_act")?.as_deref() {
            None | Some("silu") => Ok(HiddenAct::Silu),
            Some(other) => Err(f.wrong("hidden_act", &value!(other), "silu")),
        };
    }
    // The published class reads `hidden_activation` and ignores `hidden_act`; a checkpoint in which they differ is unclear.
    for name in ["hidden_act", "hidden_activation"] {
        f.only(name, &value!("gelu_pytorch_tanh"), "gelu_pytorch_tanh")?;
    }
    Ok(HiddenAct::GeluTanh)
}

fn attention_scale(family: Family, f: &mut Fields, head_dim: usize) -> Result<f64, ImportError> {
    if family != Family::Gemma2 {
        return Ok(1.0 / (head_dim as f64).sqrt());
    }
    Ok(1.0 / f.positive("query_pre_attn_scalar")?.unwrap_or(256.0).sqrt())
}

/// Gemma's classes cap unless the config says `null`.
fn cap(family: Family, f: &mut Fields, name: &str, default: f64) -> Result<Option<f64>, ImportError> {
    match family {
        Family::Gemma2 if !f.has(name) => Ok(Some(default)),
        Family::Gemma2 => f.positive(name),
        _ => Ok(None),
    }
}

fn windows(family: Family, f: &mut Fields, layers: usize) -> Result<Vec<Option<usize>>, ImportError> {
    let written = f.has("sliding_window");
    let mut window = match family {
        Family::Llama => None,
        _ => f.size("sliding_window", MAX_SIZE)?,
    };
    if matches!(family, Family::Mistral | Family::Qwen3 | Family::Gemma2) && !written {
        window = Some(4096);
    }
    let mut first = 0;
    if family == Family::Qwen3 {
        let on = f.flag("use_sliding_window", false)?;
        window = window.filter(|_| on);
        first = match f.take("max_window_layers") {
            None => 28,
            Some(n) => n.as_u64().ok_or_else(|| f.wrong("max_window_layers", &n, "a number of layers"))? as usize,
        };
    }
    if let Some(wide) = window.filter(|_| family == Family::Gemma2) {
        f.only("sliding_window_size", &value!(wide), "the same as sliding_window")?;
    }
    let slides = |layer: usize| match family {
        Family::Gemma2 => layer.is_multiple_of(2),
        _ => layer >= first,
    };
    let derived: Vec<Option<usize>> = (0..layers).map(|l| window.filter(|_| slides(l))).collect();
    let Some(listed) = f.texts("layer_types")? else { return Ok(derived) };
    let kinds = ["full_attention", "sliding_attention"];
    if listed.len() != layers || listed.iter().any(|kind| !kinds.contains(&kind.as_str())) {
        return Err(f.wrong("layer_types", &value!(listed), "full_attention or sliding_attention for each layer"));
    }
    let listed_windows: Vec<_> = listed.iter().map(|kind| window.filter(|_| kind == kinds[1])).collect();
    // Where the published class goes by the list, so do we; elsewhere it must say what holds anyway.
    let heeded = matches!(family, Family::Qwen3 | Family::Gemma2);
    let hollow = window.is_none() && listed.iter().any(|kind| kind == kinds[1]);
    if hollow || (!heeded && listed_windows != derived) {
        return Err(f.wrong("layer_types", &value!(listed), "a list that agrees with sliding_window"));
    }
    Ok(listed_windows)
}

/// Begin and end tokens: those of `generation_config.json` where it has them.
fn special(f: &mut Fields, folder: &Path) -> Result<(Option<u32>, Vec<u32>), ImportError> {
    let (mut bos, mut eos) = (f.ids("bos_token_id")?, f.ids("eos_token_id")?);
    let path = folder.join("generation_config.json");
    if path.exists() {
        let mut generation = Fields::new(json(&path)?);
        let (b, e) = (generation.ids("bos_token_id")?, generation.ids("eos_token_id")?);
        bos = if b.is_empty() { bos } else { b };
        eos = if e.is_empty() { eos } else { e };
    }
    Ok((bos.first().copied(), eos))
}
