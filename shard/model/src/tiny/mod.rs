//! Tiny random checkpoints of every decoder family, in the published layout: for tests of whatever reads checkpoints.
//!
//! Deterministic in the seed. Options reach every setting the importer knows; combinations that a family does not have (biases
//! in Phi-3, say) are written as asked, for the importer to refuse. The tokenizer knows every byte, so any text can be encoded.

mod tokenizer;

use crate::toy::Prng;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

pub use tokenizer::{BOS, EOS, MIN_VOCAB};

/// The decoder families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `LlamaForCausalLM`.
    Llama,
    /// `Qwen3ForCausalLM`.
    Qwen3,
    /// `MistralForCausalLM`.
    Mistral,
    /// `Phi3ForCausalLM`.
    Phi3,
    /// `Gemma2ForCausalLM`.
    Gemma2,
}

/// All families.
pub const FAMILIES: [Family; 5] = [Family::Llama, Family::Qwen3, Family::Mistral, Family::Phi3, Family::Gemma2];

/// Number format of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// Upper half of a single.
    Bf16,
}

/// Scaling of the rotary position code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rope {
    /// None.
    Plain,
    /// Factor 2.
    Linear,
    /// Factor 8 with a ramp; the original length is a quarter of the positions.
    Llama3,
    /// Factors growing with the channel; the original length is a quarter of the positions.
    Longrope,
}

/// Shape and settings of a tiny model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// At least [`MIN_VOCAB`].
    pub vocab: usize,
    /// Hidden width.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Channels per head.
    pub head_dim: usize,
    /// Inner width.
    pub ffn: usize,
    /// `max_position_embeddings`.
    pub positions: usize,
    /// Sliding window of the layers that slide.
    pub window: Option<usize>,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// `attention_bias`: biases of q, k and v.
    pub bias: bool,
    /// Position code.
    pub rope: Rope,
    /// Number format.
    pub stored: Stored,
    /// Weight files; above one with an index.
    pub shards: usize,
}

impl Options {
    /// A small model with what is special about the family: group size, head width, window, tying.
    #[must_use]
    pub fn of(family: Family) -> Self {
        let base = Self {
            vocab: 320,
            width: 64,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            ffn: 96,
            positions: 512,
            window: None,
            tied: false,
            bias: false,
            rope: Rope::Plain,
            stored: Stored::Bf16,
            shards: 1,
        };
        match family {
            Family::Llama => Self { rope: Rope::Llama3, ..base },
            Family::Qwen3 => Self { heads: 5, kv_heads: 1, head_dim: 32, ..base },
            Family::Mistral => base,
            Family::Phi3 => Self { width: 96, heads: 4, kv_heads: 4, head_dim: 24, window: Some(64), ..base },
            Family::Gemma2 => Self { head_dim: 32, window: Some(24), tied: true, ..base },
        }
    }
}

/// Writes `config.json`, `generation_config.json`, weights and tokenizer files into `folder`, which must exist.
///
/// # Errors
/// A vocabulary below [`MIN_VOCAB`], no shards; files that cannot be written.
pub fn write(family: Family, folder: &Path, seed: u64, options: &Options) -> io::Result<()> {
    if options.vocab < MIN_VOCAB || options.shards == 0 {
        let text = format!("a tiny model needs a vocabulary of at least {MIN_VOCAB} and at least one shard");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let put = |name: &str, value: &Value| std::fs::write(folder.join(name), serde_json::to_vec_pretty(value)?);
    put("config.json", &config(family, options))?;
    put("generation_config.json", &json!({ "bos_token_id": BOS, "eos_token_id": [EOS, tokenizer::END] }))?;
    put("tokenizer.json", &tokenizer::tokenizer(family, options.vocab))?;
    put("tokenizer_config.json", &tokenizer::settings(family, options.positions))?;
    save(&tensors(family, seed, options), options, folder)
}

/// The `config.json` of a tiny model.
#[must_use]
pub fn config(family: Family, o: &Options) -> Value {
    let (architecture, model_type) = match family {
        Family::Llama => ("LlamaForCausalLM", "llama"),
        Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
        Family::Mistral => ("MistralForCausalLM", "mistral"),
        Family::Phi3 => ("Phi3ForCausalLM", "phi3"),
        Family::Gemma2 => ("Gemma2ForCausalLM", "gemma2"),
    };
    let mut out = json!({
        "architectures": [architecture],
        "model_type": model_type,
        "attention_bias": o.bias,
        "attention_dropout": 0.0,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "head_dim": o.head_dim,
        "hidden_act": "silu",
        "hidden_size": o.width,
        "initializer_range": 0.02,
        "intermediate_size": o.ffn,
        "max_position_embeddings": o.positions,
        "num_attention_heads": o.heads,
        "num_hidden_layers": o.layers,
        "num_key_value_heads": o.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "rope_scaling": scaling(o),
        "tie_word_embeddings": o.tied,
        "torch_dtype": match o.stored { Stored::F32 => "float32", Stored::F16 => "float16", Stored::Bf16 => "bfloat16" },
        "use_cache": true,
        "vocab_size": o.vocab,
    });
    let more = match family {
        Family::Llama => json!({ "mlp_bias": false, "pretraining_tp": 1 }),
        Family::Qwen3 => json!({
            "use_sliding_window": o.window.is_some(), "sliding_window": o.window, "max_window_layers": o.layers / 2
        }),
        Family::Mistral => json!({ "sliding_window": o.window }),
        Family::Phi3 => json!({
            "sliding_window": o.window, "original_max_position_embeddings": original(o), "embd_pdrop": 0.0
        }),
        Family::Gemma2 => json!({
            "sliding_window": o.window,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": o.head_dim + 8,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        }),
    };
    if let (Value::Object(out), Value::Object(more)) = (&mut out, more) {
        out.extend(more);
    }
    out
}

/// Length before the stretch of a scaled position code.
fn original(o: &Options) -> usize {
    match o.rope {
        Rope::Llama3 | Rope::Longrope => (o.positions / 4).max(2),
        _ => o.positions,
    }
}

fn scaling(o: &Options) -> Value {
    let factors = |step: f64| (0..o.head_dim / 2).map(|i| 1.0 + i as f64 * step).collect::<Vec<_>>();
    match o.rope {
        Rope::Plain => Value::Null,
        Rope::Linear => json!({ "rope_type": "linear", "factor": 2.0 }),
        Rope::Llama3 => json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": original(o),
        }),
        Rope::Longrope => json!({ "type": "longrope", "short_factor": factors(0.05), "long_factor": factors(0.5) }),
    }
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn tensors(family: Family, seed: u64, o: &Options) -> Tensors {
    let mut rng = Prng::new(seed);
    let mut out = Tensors::new();
    let gemma = family == Family::Gemma2;
    let mut add = |name: &str, shape: &[usize], centre: f32, spread: f32| {
        let n = shape.iter().product();
        let data = (0..n).map(|_| centre + spread * rng.range(-32_768, 32_767) as f32 / 32_768.0).collect();
        out.insert(name.to_owned(), (shape.to_vec(), data));
    };
    let (d, f) = (o.width, o.ffn);
    let (queries, keys) = (o.heads * o.head_dim, o.kv_heads * o.head_dim);
    // Uniform values of this spread keep the variance of what they are multiplied with.
    let even = |inputs: usize| (3.0 / inputs as f32).sqrt();
    let centre = if gemma { 0.0 } else { 1.0 };
    add("model.embed_tokens.weight", &[o.vocab, d], 0.0, if gemma { even(d) } else { 1.0 });
    add("model.norm.weight", &[d], centre, 0.25);
    if !o.tied {
        add("lm_head.weight", &[o.vocab, d], 0.0, 2.0 * even(d));
    }
    for l in 0..o.layers {
        let mut part = |name: &str, shape: &[usize], centre: f32, spread: f32| {
            add(&format!("model.layers.{l}.{name}"), shape, centre, spread);
        };
        let norms: &[&str] = match family {
            Family::Gemma2 => &["input", "post_attention", "pre_feedforward", "post_feedforward"],
            _ => &["input", "post_attention"],
        };
        for norm in norms {
            part(&format!("{norm}_layernorm.weight"), &[d], centre, 0.25);
        }
        if family == Family::Phi3 {
            part("self_attn.qkv_proj.weight", &[queries + 2 * keys, d], 0.0, even(d));
            part("mlp.gate_up_proj.weight", &[2 * f, d], 0.0, even(d));
        } else {
            for (name, n) in [("q", queries), ("k", keys), ("v", keys)] {
                part(&format!("self_attn.{name}_proj.weight"), &[n, d], 0.0, even(d));
                if o.bias {
                    part(&format!("self_attn.{name}_proj.bias"), &[n], 0.0, 0.25);
                }
            }
            part("mlp.gate_proj.weight", &[f, d], 0.0, even(d));
            part("mlp.up_proj.weight", &[f, d], 0.0, even(d));
        }
        if family == Family::Qwen3 {
            part("self_attn.q_norm.weight", &[o.head_dim], 1.0, 0.25);
            part("self_attn.k_norm.weight", &[o.head_dim], 1.0, 0.25);
        }
        if o.bias {
            part("self_attn.o_proj.bias", &[d], 0.0, 0.0);
        }
        part("self_attn.o_proj.weight", &[d, queries], 0.0, even(queries));
        part("mlp.down_proj.weight", &[d, f], 0.0, even(f));
    }
    out
}

fn save(tensors: &Tensors, o: &Options, folder: &Path) -> io::Result<()> {
    let bytes = |data: &[f32]| -> Vec<u8> {
        match o.stored {
            Stored::F32 => data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Stored::F16 => data.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            Stored::Bf16 => data.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        }
    };
    let dtype = match o.stored {
        Stored::F32 => Dtype::F32,
        Stored::F16 => Dtype::F16,
        Stored::Bf16 => Dtype::BF16,
    };
    let encoded: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors.iter().map(|(n, (s, d))| (n, s, bytes(d))).collect();
    let (mut weight_map, mut total) = (BTreeMap::new(), 0);
    for (i, part) in encoded.chunks(encoded.len().div_ceil(o.shards)).enumerate() {
        let name = match o.shards {
            1 => "model.safetensors".to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        let views = part.iter().map(|(n, s, b)| TensorView::new(dtype, s.to_vec(), b).map(|v| (n.as_str(), v)));
        let views = views.collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
        std::fs::write(folder.join(&name), safetensors::serialize(views, None).map_err(io::Error::other)?)?;
        weight_map.extend(part.iter().map(|(n, ..)| ((*n).clone(), name.clone())));
        total += part.iter().map(|(.., b)| b.len()).sum::<usize>();
    }
    if o.shards > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        std::fs::write(folder.join("model.safetensors.index.json"), serde_json::to_vec_pretty(&index)?)?;
    }
    Ok(())
}
