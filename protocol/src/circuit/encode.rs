//! Canonical bytes of a descriptor: versioned, little-endian, length-prefixed; one descriptor has exactly one encoding.
//!
//! Decoding is total on any bytes: every length is bounded before it is allocated and trailing bytes are refused. It does
//! not judge the values; the checks of registration do.

use super::descriptor::{
    Accumulated, Branch, BranchNorm, Decoder, DecoderLayer, Descriptor, EmbedSpec, Encoder, Head, HeadNorm, LayerSpec, NormSpec,
    OutputSpec, Requant, Residual, Rotary, Rotated, ScoreCap, Stop, TokenEmbed,
};
use thiserror::Error;

/// First bytes of every encoded descriptor.
pub const MAGIC: [u8; 4] = *b"OBKD";
/// Version of the encoding.
pub const VERSION: u16 = 2;
/// Longest model name in bytes.
pub const MAX_NAME: usize = 256;
/// Most channels a vector may have: wide enough for any layer this version can prove.
pub const MAX_CHANNELS: usize = 1 << 17;
/// Longest per-token vector.
pub const MAX_VOCAB: usize = 1 << 20;
/// Most layers.
pub const MAX_LAYERS: usize = 1024;
/// Entries of an activation table.
pub const ACTIVATION_ROWS: usize = 1 << 16;

/// Why bytes are not a descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The bytes end inside a field.
    #[error("descriptor ends inside field `{0}`: the file is cut off, fetch it again")]
    Truncated(&'static str),
    /// The first bytes are something else.
    #[error("not a descriptor: the first four bytes differ; point to a descriptor file")]
    Magic,
    /// Encoded by another version.
    #[error("descriptor version {0} is not supported, this build reads version {VERSION}: quantise the model again")]
    Version(u16),
    /// A length above its bound.
    #[error("field `{field}` has length {length}, at most {max} is allowed: the file is damaged or forged")]
    Length {
        /// Field name.
        field: &'static str,
        /// Length found.
        length: usize,
        /// Bound.
        max: usize,
    },
    /// The name is not UTF-8.
    #[error("the model name is not UTF-8: the file is damaged or forged")]
    Name,
    /// A byte that selects between forms has another value.
    #[error("field `{0}` holds {1}, which selects nothing: the file is damaged or forged")]
    Flag(&'static str, u8),
    /// Bytes after the last field.
    #[error("{0} bytes follow the descriptor: the file is damaged or forged")]
    Trailing(usize),
}

/// Kind byte of an encoder.
const ENCODER: u8 = 0;
/// Kind byte of a decoder.
const DECODER: u8 = 1;

/// Canonical bytes of `d`.
#[must_use]
pub fn encode(d: &Descriptor) -> Vec<u8> {
    let mut w = Writer(Vec::new());
    w.0.extend_from_slice(&MAGIC);
    w.0.extend_from_slice(&VERSION.to_le_bytes());
    match d {
        Descriptor::Encoder(e) => {
            w.0.push(ENCODER);
            w.name(&e.name);
            w.words(&[e.vocab, e.positions, e.types, e.width, e.heads, e.head_dim, e.ffn]);
            w.0.extend_from_slice(&[e.tile_k_log, e.tile_n_log, e.row_log, e.blowup_log]);
            w.encoder(e);
        }
        Descriptor::Decoder(d) => {
            w.0.push(DECODER);
            w.name(&d.name);
            w.words(&[d.vocab, d.positions, d.width, d.heads, d.kv_heads, d.head_dim, d.ffn]);
            w.0.extend_from_slice(&[d.tile_k_log, d.tile_n_log, d.row_log, d.blowup_log]);
            w.decoder(d);
        }
    }
    w.0
}

/// Reads a descriptor from exactly `bytes`.
///
/// # Errors
/// Any deviation from the canonical form: see [`DecodeError`].
pub fn decode(bytes: &[u8]) -> Result<Descriptor, DecodeError> {
    let mut r = Reader(bytes);
    if r.array::<4>("magic")? != MAGIC {
        return Err(DecodeError::Magic);
    }
    let version = u16::from_le_bytes(r.array("version")?);
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let kind = r.byte("kind")?;
    let name_length = r.length("name", MAX_NAME)?;
    let name = String::from_utf8(r.take("name", name_length)?.to_vec()).map_err(|_| DecodeError::Name)?;
    let mut dims = [0u32; 7];
    for dim in &mut dims {
        *dim = u32::from_le_bytes(r.array("dimensions")?);
    }
    let geometry = r.array("geometry")?;
    let d = match kind {
        ENCODER => Descriptor::Encoder(r.encoder(name, dims, geometry)?),
        DECODER => Descriptor::Decoder(r.decoder(name, dims, geometry)?),
        other => return Err(DecodeError::Flag("kind", other)),
    };
    if r.0.is_empty() { Ok(d) } else { Err(DecodeError::Trailing(r.0.len())) }
}

struct Writer(Vec<u8>);

impl Writer {
    fn length(&mut self, n: usize) {
        // Lengths beyond u32 cannot occur in memory-sized models; saturating keeps the encoding total and undecodable.
        self.0.extend_from_slice(&u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes());
    }

    fn name(&mut self, name: &str) {
        self.length(name.len());
        self.0.extend_from_slice(name.as_bytes());
    }

    fn words(&mut self, values: &[u32]) {
        for v in values {
            self.0.extend_from_slice(&v.to_le_bytes());
        }
    }

    fn table(&mut self, values: &[i16]) {
        self.length(values.len());
        for v in values {
            self.0.extend_from_slice(&v.to_le_bytes());
        }
    }

    fn encoder(&mut self, e: &Encoder) {
        self.signed(&e.embed.scale);
        self.0.push(e.embed.shift);
        self.norm(&e.embed.norm);
        self.length(e.layers.len());
        for layer in &e.layers {
            self.layer(layer);
        }
        self.unsigned(&e.output.gain_bits);
        self.unsigned(&e.output.bias_bits);
    }

    fn decoder(&mut self, d: &Decoder) {
        self.0.push(d.embed.limbs);
        self.signed(&d.embed.scale);
        self.0.push(d.embed.shift);
        self.length(d.frequencies.len());
        for v in &d.frequencies {
            self.0.extend_from_slice(&v.to_le_bytes());
        }
        self.length(d.layers.len());
        for layer in &d.layers {
            self.decoder_layer(layer);
        }
        self.norm(&d.head.norm);
        self.0.push(d.head.linear.e);
        self.signed(&d.head.mult);
    }

    fn decoder_layer(&mut self, l: &DecoderLayer) {
        self.norm(&l.attn_norm);
        self.rotated(&l.q);
        self.rotated(&l.k);
        self.requant(&l.v);
        self.0.push(l.score_shift);
        self.0.push(u8::from(l.score_cap.is_some()));
        if let Some(cap) = &l.score_cap {
            self.0.push(cap.e);
            self.signed(&cap.table);
        }
        self.words(&[l.window]);
        self.0.extend_from_slice(&[l.o.e, l.o.limbs]);
        self.branch(&l.attn_branch);
        self.norm(&l.ffn_norm);
        self.requant(&l.gate);
        self.table(&l.activation);
        self.0.extend_from_slice(&[l.up.e, l.product.e, l.down.e, l.down.limbs]);
        self.branch(&l.ffn_branch);
    }

    fn rotated(&mut self, r: &Rotated) {
        self.requant(&r.linear);
        self.0.push(u8::from(r.norm.is_some()));
        if let Some(n) = &r.norm {
            self.norm(&n.norm);
        }
        self.signed(&r.rotary.gain);
        self.0.push(r.rotary.shift);
        self.0.extend_from_slice(&r.limit.to_le_bytes());
    }

    fn branch(&mut self, b: &Branch) {
        self.0.push(u8::from(b.norm.is_some()));
        if let Some(n) = &b.norm {
            self.0.push(n.shift);
            self.signed(&n.mult);
            self.norm(&n.norm);
        }
        self.0.push(b.shift);
        self.signed(&b.mult);
    }

    fn signed(&mut self, values: &[i32]) {
        self.length(values.len());
        for v in values {
            self.0.extend_from_slice(&v.to_le_bytes());
        }
    }

    fn unsigned(&mut self, values: &[u32]) {
        self.length(values.len());
        for v in values {
            self.0.extend_from_slice(&v.to_le_bytes());
        }
    }

    fn norm(&mut self, norm: &NormSpec) {
        self.0.extend_from_slice(&norm.eps.to_le_bytes());
    }

    fn requant(&mut self, q: &Requant) {
        self.0.extend_from_slice(&[q.e, q.k]);
        self.signed(&q.m);
        self.signed(&q.b);
        self.0.extend_from_slice(&q.lo.to_le_bytes());
        self.0.extend_from_slice(&q.hi.to_le_bytes());
    }

    fn residual(&mut self, r: &Residual) {
        self.0.push(r.shift);
        self.signed(&r.gain);
        self.signed(&r.bias);
        self.signed(&r.mult);
        self.norm(&r.norm);
    }

    fn layer(&mut self, l: &LayerSpec) {
        self.requant(&l.q);
        self.requant(&l.k);
        self.requant(&l.v);
        self.0.push(l.score_shift);
        self.0.push(l.o.e);
        self.residual(&l.attn_residual);
        self.requant(&l.up);
        self.table(&l.activation);
        self.0.push(l.down.e);
        self.residual(&l.ffn_residual);
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, field: &'static str, n: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(DecodeError::Truncated(field))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Truncated(field))?;
        self.0 = tail;
        Ok(*head)
    }

    fn byte(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        let [b] = self.array(field)?;
        Ok(b)
    }

    fn length(&mut self, field: &'static str, max: usize) -> Result<usize, DecodeError> {
        let length = u32::from_le_bytes(self.array(field)?) as usize;
        if length > max { Err(DecodeError::Length { field, length, max }) } else { Ok(length) }
    }

    fn words(&mut self, field: &'static str, max: usize) -> Result<impl Iterator<Item = [u8; 4]> + use<'a>, DecodeError> {
        let n = self.length(field, max)?;
        let bytes = self.take(field, n * 4)?;
        Ok(bytes.chunks_exact(4).filter_map(|c| c.try_into().ok()))
    }

    fn signed(&mut self, field: &'static str) -> Result<Vec<i32>, DecodeError> {
        self.long_signed(field, MAX_CHANNELS)
    }

    fn long_signed(&mut self, field: &'static str, max: usize) -> Result<Vec<i32>, DecodeError> {
        Ok(self.words(field, max)?.map(i32::from_le_bytes).collect())
    }

    fn unsigned(&mut self, field: &'static str) -> Result<Vec<u32>, DecodeError> {
        Ok(self.words(field, MAX_CHANNELS)?.map(u32::from_le_bytes).collect())
    }

    fn table(&mut self, field: &'static str) -> Result<Vec<i16>, DecodeError> {
        let n = self.length(field, ACTIVATION_ROWS)?;
        let bytes = self.take(field, n * 2)?;
        Ok(bytes.chunks_exact(2).filter_map(|c| c.try_into().ok()).map(i16::from_le_bytes).collect())
    }

    /// Whether an optional field follows.
    fn present(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.byte(field)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(DecodeError::Flag(field, other)),
        }
    }

    fn encoder(&mut self, name: String, dims: [u32; 7], geometry: [u8; 4]) -> Result<Encoder, DecodeError> {
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

    fn decoder(&mut self, name: String, dims: [u32; 7], geometry: [u8; 4]) -> Result<Decoder, DecodeError> {
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
    fn layers<T>(&mut self, mut one: impl FnMut(&mut Self) -> Result<T, DecodeError>) -> Result<Vec<T>, DecodeError> {
        let count = self.length("layers", MAX_LAYERS)?;
        let mut layers = Vec::new();
        for _ in 0..count {
            layers.push(one(self)?);
        }
        Ok(layers)
    }

    fn decoder_layer(&mut self) -> Result<DecoderLayer, DecodeError> {
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

    fn rotated(&mut self) -> Result<Rotated, DecodeError> {
        Ok(Rotated {
            linear: self.requant()?,
            norm: if self.present("head_norm")? { Some(HeadNorm { norm: self.norm()? }) } else { None },
            rotary: Rotary { gain: self.signed("rotary.gain")?, shift: self.byte("rotary.shift")? },
            limit: i32::from_le_bytes(self.array("rotated.limit")?),
        })
    }

    fn branch(&mut self) -> Result<Branch, DecodeError> {
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

    fn norm(&mut self) -> Result<NormSpec, DecodeError> {
        Ok(NormSpec { eps: u64::from_le_bytes(self.array("norm.eps")?) })
    }

    fn requant(&mut self) -> Result<Requant, DecodeError> {
        Ok(Requant {
            e: self.byte("requant.e")?,
            k: self.byte("requant.k")?,
            m: self.signed("requant.m")?,
            b: self.signed("requant.b")?,
            lo: i32::from_le_bytes(self.array("requant.lo")?),
            hi: i32::from_le_bytes(self.array("requant.hi")?),
        })
    }

    fn residual(&mut self) -> Result<Residual, DecodeError> {
        Ok(Residual {
            shift: self.byte("residual.shift")?,
            gain: self.signed("residual.gain")?,
            bias: self.signed("residual.bias")?,
            mult: self.signed("residual.mult")?,
            norm: self.norm()?,
        })
    }

    fn layer(&mut self) -> Result<LayerSpec, DecodeError> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
