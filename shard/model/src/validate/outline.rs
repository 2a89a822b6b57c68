//! A descriptor with the dimensions of a model and plausible parameters, made before anything is quantised. Circuits have the
//! sizes of the model's own; nothing else of it means anything, and it is never registered.

use crate::bounds;
use crate::import::{Config, DecoderConfig, EncoderConfig};
use crate::preset::Preset;
use crate::quantise::QuantiseOptions;
use crate::quantise::decoder::dimensions;
use crate::tables::{gate_table, gelu_table, gelu_tanh, score_cap_table, silu};
use obelysk_protocol::circuit::descriptor::{
    Accumulated, Branch, BranchNorm, Decoder, DecoderLayer, Descriptor, EmbedSpec, Encoder, Head, HeadNorm, LayerSpec, NormSpec,
    OutputSpec, Requant, Residual, Rotary, Rotated, ScoreCap, Stop,
};
use obelysk_protocol::circuit::rotary::reach;

/// g: score bits dropped, of which the window of queries and keys follows.
const SCORE_SHIFT: u8 = 7;
/// Positions that a preset is taken to have: more than any proof covers.
const PRESET_POSITIONS: usize = 4096;

/// The outline of a model: one layer of it, since all are of one size.
pub fn outline(config: &Config) -> Descriptor {
    match config {
        Config::Encoder(config) => Descriptor::Encoder(encoder(config)),
        Config::Decoder(config) => Descriptor::Decoder(decoder(config)),
    }
}

/// The settings of a preset that decide sizes; the others are those most published models have.
pub fn of_preset(p: &Preset) -> DecoderConfig {
    let n = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    let gemma = p.architecture.starts_with("Gemma");
    DecoderConfig {
        architecture: p.architecture.clone(),
        vocab: n(p.vocab),
        width: n(p.width),
        layers: n(p.layers),
        heads: n(p.heads),
        kv_heads: n(p.kv_heads),
        head_dim: n(p.head_dim),
        ffn: n(p.ffn),
        positions: PRESET_POSITIONS,
        norm_eps: 1e-5,
        activation: if gemma { crate::import::HiddenAct::GeluTanh } else { crate::import::HiddenAct::Silu },
        rope: vec![1.0; n(p.head_dim) / 2],
        rope_amplitude: 1.0,
        attention_scale: 1.0,
        windows: vec![None; n(p.layers)],
        score_cap: gemma.then_some(50.0),
        logit_cap: gemma.then_some(30.0),
        embed_scale: 1.0,
        qk_norm: p.architecture.starts_with("Qwen3"),
        post_norms: gemma,
        norm_offset: 0.0,
        tied: p.tied,
        qkv_bias: false,
        bos: None,
        eos: Vec::new(),
    }
}

fn norm() -> NormSpec {
    NormSpec { eps: bounds::NORM_EPS_MIN }
}

fn requant(n: usize, k: u8, lo: i32, hi: i32) -> Requant {
    Requant { e: 7, k, m: vec![128; n], b: vec![1 << (k - 1); n], lo, hi }
}

fn encoder(c: &EncoderConfig) -> Encoder {
    let options = QuantiseOptions::default();
    let head_dim = (c.width / c.heads.max(1)) as u32;
    let tile = (c.width.trailing_zeros().min(c.ffn.trailing_zeros()) as u8).min(options.row_log / 2);
    let q = bounds::score_window(head_dim, SCORE_SHIFT);
    let residual = || Residual { shift: 5, gain: vec![1; c.width], bias: vec![0; c.width], mult: vec![1; c.width], norm: norm() };
    let layer = LayerSpec {
        q: requant(c.width, 12, -q, q),
        k: requant(c.width, 12, -q, q),
        v: requant(c.width, 12, -2048, 2047),
        score_shift: SCORE_SHIFT,
        o: Stop { e: 5 },
        attn_residual: residual(),
        up: requant(c.ffn, 8, -32_768, 32_767),
        activation: gelu_table(12, 11),
        down: Stop { e: 6 },
        ffn_residual: residual(),
    };
    Encoder {
        name: "outline".into(),
        vocab: c.vocab as u32,
        positions: c.positions as u32,
        types: c.types as u32,
        width: c.width as u32,
        heads: c.heads as u32,
        head_dim,
        ffn: c.ffn as u32,
        tile_k_log: tile,
        tile_n_log: tile,
        row_log: options.row_log.max(2 * tile),
        blowup_log: options.blowup_log,
        embed: EmbedSpec { scale: vec![1; c.width], shift: 5, norm: norm() },
        layers: vec![layer],
        output: OutputSpec { gain_bits: vec![0; c.width], bias_bits: vec![0; c.width] },
    }
}

fn decoder(c: &DecoderConfig) -> Decoder {
    let mut d = dimensions(c, &QuantiseOptions::default());
    d.embed.scale = vec![1; c.width];
    d.layers = vec![decoder_layer(c)];
    d.head = Head { norm: norm(), linear: Stop { e: 7 }, mult: vec![128; c.vocab] };
    d
}

fn decoder_layer(c: &DecoderConfig) -> DecoderLayer {
    let branch = || Branch {
        norm: c.post_norms.then(|| BranchNorm { shift: 4, mult: vec![1; c.width], norm: norm() }),
        shift: 5,
        mult: vec![1; c.width],
    };
    // Two limbs: larger than one, and what rows of many weights need.
    let accumulated = Accumulated { e: 9, limbs: 2 };
    DecoderLayer {
        attn_norm: norm(),
        q: rotated(c, c.heads),
        k: rotated(c, c.kv_heads),
        v: requant(c.kv_heads * c.head_dim, 12, -2048, 2047),
        score_shift: if c.score_cap.is_some() { 0 } else { SCORE_SHIFT },
        score_cap: c.score_cap.map(|_| ScoreCap { e: 8, table: score_cap_table(5.0, 1.0 / 512.0) }),
        window: 0,
        o: accumulated,
        attn_branch: branch(),
        ffn_norm: norm(),
        gate: requant(c.ffn, 8, -32_768, 32_767),
        activation: if c.post_norms { gate_table(gelu_tanh, 12, 11) } else { gate_table(silu, 12, 11) },
        up: Stop { e: 7 },
        product: Stop { e: 11 },
        down: accumulated,
        ffn_branch: branch(),
    }
}

fn rotated(c: &DecoderConfig, heads: usize) -> Rotated {
    let outputs = heads * c.head_dim;
    let (linear, gain) = if c.qk_norm {
        (requant(outputs, 8, -32_768, 32_767), 1 << 9)
    } else {
        // A pair can turn into one channel, which is then longer by the square root of two.
        let half = bounds::score_window(c.head_dim as u32, SCORE_SHIFT) * 2 / 3;
        (requant(outputs, 12, -half, half), 1 << 14)
    };
    let rotary = Rotary { gain: vec![gain; c.head_dim], shift: 14 };
    let mut out = Rotated { linear, norm: c.qk_norm.then(|| HeadNorm { norm: norm() }), rotary, limit: 0 };
    out.limit = reach(&out).pairs.iter().copied().max().unwrap_or(0) as i32;
    out
}
