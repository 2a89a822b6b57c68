//! Canonical bytes of a descriptor: versioned, little-endian, length-prefixed; one descriptor has exactly one encoding.
//!
//! Decoding is total on any bytes: every length is bounded before it is allocated and trailing bytes are refused. It does
//! not judge the values; the checks of registration do.

use super::descriptor::{Descriptor, EmbedSpec, LayerSpec, NormSpec, OutputSpec, Requant, Residual, Stop};
use thiserror::Error;

/// First bytes of every encoded descriptor.
pub const MAGIC: [u8; 4] = *b"OBKD";
/// Version of the encoding.
pub const VERSION: u16 = 1;
/// Longest model name in bytes.
pub const MAX_NAME: usize = 256;
/// Most channels a vector may have: wide enough for any layer this version can prove.
pub const MAX_CHANNELS: usize = 1 << 17;
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
    /// Bytes after the last field.
    #[error("{0} bytes follow the descriptor: the file is damaged or forged")]
    Trailing(usize),
}

/// Canonical bytes of `d`.
#[must_use]
pub fn encode(d: &Descriptor) -> Vec<u8> {
    let mut w = Writer(Vec::new());
    w.0.extend_from_slice(&MAGIC);
    w.0.extend_from_slice(&VERSION.to_le_bytes());
    w.length(d.name.len());
    w.0.extend_from_slice(d.name.as_bytes());
    for v in [d.vocab, d.positions, d.types, d.width, d.heads, d.head_dim, d.ffn] {
        w.0.extend_from_slice(&v.to_le_bytes());
    }
    w.0.extend_from_slice(&[d.tile_k_log, d.tile_n_log, d.row_log, d.blowup_log]);
    w.signed(&d.embed.scale);
    w.0.push(d.embed.shift);
    w.norm(&d.embed.norm);
    w.length(d.layers.len());
    for layer in &d.layers {
        w.layer(layer);
    }
    w.unsigned(&d.output.gain_bits);
    w.unsigned(&d.output.bias_bits);
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
    let name_length = r.length("name", MAX_NAME)?;
    let name = String::from_utf8(r.take("name", name_length)?.to_vec()).map_err(|_| DecodeError::Name)?;
    let mut dims = [0u32; 7];
    for dim in &mut dims {
        *dim = u32::from_le_bytes(r.array("dimensions")?);
    }
    let [vocab, positions, types, width, heads, head_dim, ffn] = dims;
    let [tile_k_log, tile_n_log, row_log, blowup_log] = r.array("geometry")?;
    let embed = EmbedSpec { scale: r.signed("embed.scale")?, shift: r.byte("embed.shift")?, norm: r.norm()? };
    let count = r.length("layers", MAX_LAYERS)?;
    // Grown as layers arrive: a forged count must not allocate.
    let mut layers = Vec::new();
    for _ in 0..count {
        layers.push(r.layer()?);
    }
    let output = OutputSpec { gain_bits: r.unsigned("output.gain")?, bias_bits: r.unsigned("output.bias")? };
    if !r.0.is_empty() {
        return Err(DecodeError::Trailing(r.0.len()));
    }
    Ok(Descriptor {
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

struct Writer(Vec<u8>);

impl Writer {
    fn length(&mut self, n: usize) {
        // Lengths beyond u32 cannot occur in memory-sized models; saturating keeps the encoding total and undecodable.
        self.0.extend_from_slice(&u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes());
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
        self.length(l.activation.len());
        for v in &l.activation {
            self.0.extend_from_slice(&v.to_le_bytes());
        }
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

    fn words(&mut self, field: &'static str) -> Result<impl Iterator<Item = [u8; 4]> + use<'a>, DecodeError> {
        let n = self.length(field, MAX_CHANNELS)?;
        let bytes = self.take(field, n * 4)?;
        Ok(bytes.chunks_exact(4).filter_map(|c| c.try_into().ok()))
    }

    fn signed(&mut self, field: &'static str) -> Result<Vec<i32>, DecodeError> {
        Ok(self.words(field)?.map(i32::from_le_bytes).collect())
    }

    fn unsigned(&mut self, field: &'static str) -> Result<Vec<u32>, DecodeError> {
        Ok(self.words(field)?.map(u32::from_le_bytes).collect())
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
            activation: {
                let n = self.length("activation", ACTIVATION_ROWS)?;
                let bytes = self.take("activation", n * 2)?;
                bytes.chunks_exact(2).filter_map(|c| c.try_into().ok()).map(i16::from_le_bytes).collect()
            },
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
        Descriptor {
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
        }
    }

    #[test]
    fn round_trip() {
        assert_eq!(decode(&encode(&sample())), Ok(sample()));
    }

    #[test]
    fn every_prefix_and_any_suffix_is_refused() {
        let mut bytes = encode(&sample());
        for n in 0..bytes.len() {
            assert!(matches!(decode(&bytes[..n]), Err(DecodeError::Truncated(_))), "prefix {n}");
        }
        bytes.push(0);
        assert_eq!(decode(&bytes), Err(DecodeError::Trailing(1)));
    }

    #[test]
    fn accepted_bytes_are_canonical() {
        // Flip each byte in turn: what still decodes must encode to the same bytes.
        let bytes = encode(&sample());
        for n in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[n] ^= 0x81;
            if let Ok(d) = decode(&changed) {
                assert_eq!(encode(&d), changed, "byte {n}");
            }
        }
    }

    #[test]
    fn forged_lengths_are_bounded() {
        let mut bytes = encode(&sample());
        bytes[6..10].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(decode(&bytes), Err(DecodeError::Length { field: "name", .. })));
    }
}
