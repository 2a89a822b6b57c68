//! Bytes to fields, total on any bytes: every length is bounded before it is allocated.

use super::{ACTIVATION_ROWS, DecodeError, MAX_CHANNELS, MAX_LAYERS, MAX_VOCAB};
use crate::circuit::descriptor::{
    Accumulated, Branch, BranchNorm, Decoder, DecoderLayer, EmbedSpec, Encoder, Head, HeadNorm, LayerSpec, NormSpec, OutputSpec,
    Requant, Residual, Rotary, Rotated, ScoreCap, Stop, TokenEmbed,
};

/// Bytes still to be read.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, field: &'static str, n: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(DecodeError::Truncated(field))?;
        self.0 = tail;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Truncated(field))?;
        self.0 = tail;
        Ok(*head)
    }

    pub(super) fn byte(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        let [b] = self.array(field)?;
        Ok(b)
    }

    pub(super) fn length(&mut self, field: &'static str, max: usize) -> Result<usize, DecodeError> {
        let length = u32::from_le_bytes(self.array(field)?) as usize;
        if length > max { Err(DecodeError::Length { field, length, max }) } else { Ok(length) }
    }

    pub(super) fn words(
        &mut self,
        field: &'static str,
        max: usize,
    ) -> Result<impl Iterator<Item = [u8; 4]> + use<'a>, DecodeError> {
        let n = self.length(field, max)?;
        let bytes = self.take(field, n * 4)?;
        Ok(bytes.chunks_exact(4).filter_map(|c| c.try_into().ok()))
    }

    pub(super) fn signed(&mut self, field: &'static str) -> Result<Vec<i32>, DecodeError> {
        self.long_signed(field, MAX_CHANNELS)
    }

    pub(super) fn long_signed(&mut self, field: &'static str, max: usize) -> Result<Vec<i32>, DecodeError> {
        Ok(self.words(field, max)?.map(i32::from_le_bytes).collect())
    }

    pub(super) fn unsigned(&mut self, field: &'static str) -> Result<Vec<u32>, DecodeError> {
        Ok(self.words(field, MAX_CHANNELS)?.map(u32::from_le_bytes).collect())
    }

    pub(super) fn table(&mut self, field: &'static str) -> Result<Vec<i16>, DecodeError> {
        let n = self.length(field, ACTIVATION_ROWS)?;
        let bytes = self.take(field, n * 2)?;
        Ok(bytes.chunks_exact(2).filter_map(|c| c.try_into().ok()).map(i16::from_le_bytes).collect())
    }

    /// Whether an optional field follows.
    pub(super) fn present(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.byte(field)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(DecodeError::Flag(field, other)),
        }
    }

    pub(super) fn encoder(&mut self, name: String, dims: [u32; 7], geometry: [u8; 4]) -> Result<Encoder, DecodeError> {
        let [vocab, positions, types, width, heads, head_dim, ffn] = dims;
        let [tile_k_log, tile_n_log, row_log, blowup_log] = geometry;
        let embed = EmbedSpec { scale: self.signed("embed.scale")?, shift: self.byte("embed.shift")?, norm: self.norm()? };
        let layers = self.layers(Self::layer)?;
        let output = OutputSpec { gain_bits: self.unsigned("output.gain")?, bias_bits: self.unsigned("output.bias")? };
        Ok(Encoder {
            name,
            vocab,
            positions,
            types,
            width,
            heads,
            head_dim,
            ffn,
            tile_k_log,
            tile_n_log,
            row_log,
            blowup_log,
            embed,
            layers,
            output,
        })
    }

    pub(super) fn decoder(&mut self, name: String, dims: [u32; 7], geometry: [u8; 4]) -> Result<Decoder, DecodeError> {
        let [vocab, positions, width, heads, kv_heads, head_dim, ffn] = dims;
        let [tile_k_log, tile_n_log, row_log, blowup_log] = geometry;
        let embed =
            TokenEmbed { limbs: self.byte("embed.limbs")?, scale: self.signed("embed.scale")?, shift: self.byte("embed.shift")? };
        let count = self.length("frequencies", MAX_CHANNELS)?;
        let bytes = self.take("frequencies", count * 8)?;
        let frequencies = bytes.chunks_exact(8).filter_map(|c| c.try_into().ok()).map(u64::from_le_bytes).collect();
        let layers = self.layers(Self::decoder_layer)?;
        let head = Head {
            norm: self.norm()?,
            linear: Stop { e: self.byte("head.e")? },
            mult: self.long_signed("head.mult", MAX_VOCAB)?,
        };
        Ok(Decoder {
            name,
            vocab,
            positions,
            width,
            heads,
            kv_heads,
            head_dim,
            ffn,
            tile_k_log,
            tile_n_log,
            row_log,
            blowup_log,
            embed,
            frequencies,
            layers,
            head,
        })
    }

    /// Grown as layers arrive: a forged count must not allocate.
    pub(super) fn layers<T>(&mut self, mut one: impl FnMut(&mut Self) -> Result<T, DecodeError>) -> Result<Vec<T>, DecodeError> {
        let count = self.length("layers", MAX_LAYERS)?;
        let mut layers = Vec::new();
        for _ in 0..count {
            layers.push(one(self)?);
        }
        Ok(layers)
    }

    pub(super) fn decoder_layer(&mut self) -> Result<DecoderLayer, DecodeError> {
        Ok(DecoderLayer {
            attn_norm: self.norm()?,
            q: self.rotated()?,
            k: self.rotated()?,
            v: self.requant()?,
            score_shift: self.byte("score_shift")?,
            score_cap: if self.present("score_cap")? {
                Some(ScoreCap { e: self.byte("score_cap.e")?, table: self.signed("score_cap.table")? })
            } else {
                None
            },
            window: u32::from_le_bytes(self.array("window")?),
            o: Accumulated { e: self.byte("o.e")?, limbs: self.byte("o.limbs")? },
            attn_branch: self.branch()?,
            ffn_norm: self.norm()?,
            gate: self.requant()?,
            activation: self.table("activation")?,
            up: Stop { e: self.byte("up.e")? },
            product: Stop { e: self.byte("product.e")? },
            down: Accumulated { e: self.byte("down.e")?, limbs: self.byte("down.limbs")? },
            ffn_branch: self.branch()?,
        })
    }

    pub(super) fn rotated(&mut self) -> Result<Rotated, DecodeError> {
        Ok(Rotated {
            linear: self.requant()?,
            norm: if self.present("head_norm")? { Some(HeadNorm { norm: self.norm()? }) } else { None },
            rotary: Rotary { gain: self.signed("rotary.gain")?, shift: self.byte("rotary.shift")? },
            limit: i32::from_le_bytes(self.array("rotated.limit")?),
        })
    }

    pub(super) fn branch(&mut self) -> Result<Branch, DecodeError> {
        Ok(Branch {
            norm: if self.present("branch.norm")? {
                Some(BranchNorm {
                    shift: self.byte("branch_norm.shift")?,
                    mult: self.signed("branch_norm.mult")?,
                    norm: self.norm()?,
                })
            } else {
                None
            },
            shift: self.byte("branch.shift")?,
            mult: self.signed("branch.mult")?,
        })
    }

    pub(super) fn norm(&mut self) -> Result<NormSpec, DecodeError> {
        Ok(NormSpec { eps: u64::from_le_bytes(self.array("norm.eps")?) })
    }

    pub(super) fn requant(&mut self) -> Result<Requant, DecodeError> {
        Ok(Requant {
            e: self.byte("requant.e")?,
            k: self.byte("requant.k")?,
            m: self.signed("requant.m")?,
            b: self.signed("requant.b")?,
            lo: i32::from_le_bytes(self.array("requant.lo")?),
            hi: i32::from_le_bytes(self.array("requant.hi")?),
        })
    }

    pub(super) fn residual(&mut self) -> Result<Residual, DecodeError> {
        Ok(Residual {
            shift: self.byte("residual.shift")?,
            gain: self.signed("residual.gain")?,
            bias: self.signed("residual.bias")?,
            mult: self.signed("residual.mult")?,
            norm: self.norm()?,
        })
    }

    pub(super) fn layer(&mut self) -> Result<LayerSpec, DecodeError> {
        Ok(LayerSpec {
            q: self.requant()?,
            k: self.requant()?,
            v: self.requant()?,
            score_shift: self.byte("score_shift")?,
            o: Stop { e: self.byte("o.e")? },
            attn_residual: self.residual()?,
            up: self.requant()?,
            activation: self.table("activation")?,
            down: Stop { e: self.byte("down.e")? },
            ffn_residual: self.residual()?,
        })
    }
}
