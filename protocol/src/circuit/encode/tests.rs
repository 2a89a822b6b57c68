//! One encoding per descriptor, and nothing else decodes.

use super::*;
use crate::circuit::descriptor::{
    Accumulated, Branch, BranchNorm, Decoder, DecoderLayer, Descriptor, EmbedSpec, Encoder, Head, HeadNorm, LayerSpec, NormSpec,
    OutputSpec, Requant, Residual, Rotary, Rotated, ScoreCap, Stop, TokenEmbed,
};

fn sample() -> Descriptor {
    let norm = NormSpec { eps: 1 << 14 };
    let requant = Requant { e: 8, k: 12, m: vec![1, 255], b: vec![-5, 1 << 20], lo: -4071, hi: 4071 };
    let residual = Residual { shift: 5, gain: vec![-1, 2], bias: vec![3, -4], mult: vec![5, 6], norm: norm.clone() };
    let layer = LayerSpec {
        q: requant.clone(),
        k: requant.clone(),
        v: requant.clone(),
        score_shift: 7,
        o: Stop { e: 4 },
        attn_residual: residual.clone(),
        up: requant,
        activation: vec![-1, 0, 1],
        down: Stop { e: 9 },
        ffn_residual: residual,
    };
    Descriptor::Encoder(Encoder {
        name: "sample".into(),
        vocab: 10,
        positions: 8,
        types: 1,
        width: 2,
        heads: 1,
        head_dim: 2,
        ffn: 2,
        tile_k_log: 1,
        tile_n_log: 1,
        row_log: 6,
        blowup_log: 2,
        embed: EmbedSpec { scale: vec![7, 8], shift: 5, norm },
        layers: vec![layer.clone(), layer],
        output: OutputSpec { gain_bits: vec![1, 2], bias_bits: vec![3, 4] },
    })
}

fn decoder_sample() -> Descriptor {
    let norm = NormSpec { eps: 1 << 15 };
    let requant = Requant { e: 8, k: 12, m: vec![1, 255], b: vec![-5, 1 << 20], lo: -4071, hi: 4071 };
    let rotary = Rotary { gain: vec![1 << 14, -7], shift: 14 };
    let q = Rotated { linear: requant.clone(), norm: None, rotary, limit: 2035 };
    let k = Rotated { norm: Some(HeadNorm { norm: norm.clone() }), ..q.clone() };
    let plain = Branch { norm: None, shift: 5, mult: vec![9, 8] };
    let normed = Branch { norm: Some(BranchNorm { shift: 3, mult: vec![1, 2], norm: norm.clone() }), ..plain.clone() };
    let layer = DecoderLayer {
        attn_norm: norm.clone(),
        q,
        k,
        v: requant.clone(),
        score_shift: 7,
        score_cap: Some(ScoreCap { e: 3, table: vec![4, -4] }),
        window: 4096,
        o: Accumulated { e: 4, limbs: 1 },
        attn_branch: plain,
        ffn_norm: norm.clone(),
        gate: requant,
        activation: vec![-1, 0, 1],
        up: Stop { e: 9 },
        product: Stop { e: 10 },
        down: Accumulated { e: 11, limbs: 2 },
        ffn_branch: normed,
    };
    Descriptor::Decoder(Decoder {
        name: "decoder".into(),
        vocab: 10,
        positions: 8,
        width: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 2,
        ffn: 2,
        tile_k_log: 1,
        tile_n_log: 1,
        row_log: 6,
        blowup_log: 2,
        embed: TokenEmbed { limbs: 2, scale: vec![7, 8], shift: 5 },
        frequencies: vec![u64::MAX],
        layers: vec![layer.clone(), DecoderLayer { score_cap: None, ..layer }],
        head: Head { norm, linear: Stop { e: 7 }, mult: vec![1; 10] },
    })
}

#[test]
fn round_trip() {
    for d in [sample(), decoder_sample()] {
        assert_eq!(decode(&encode(&d)), Ok(d));
    }
}

#[test]
fn every_prefix_and_any_suffix_is_refused() {
    for d in [sample(), decoder_sample()] {
        let mut bytes = encode(&d);
        for n in 0..bytes.len() {
            assert!(matches!(decode(&bytes[..n]), Err(DecodeError::Truncated(_))), "prefix {n}");
        }
        bytes.push(0);
        assert_eq!(decode(&bytes), Err(DecodeError::Trailing(1)));
    }
}

#[test]
fn accepted_bytes_are_canonical() {
    // Flip each byte in turn: what still decodes must encode to the same bytes.
    for d in [sample(), decoder_sample()] {
        let bytes = encode(&d);
        for n in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[n] ^= 0x81;
            if let Ok(d) = decode(&changed) {
                assert_eq!(encode(&d), changed, "byte {n}");
            }
        }
    }
}

#[test]
fn forged_lengths_are_bounded() {
    let mut bytes = encode(&sample());
    bytes[7..11].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(decode(&bytes), Err(DecodeError::Length { field: "name", .. })));
}
