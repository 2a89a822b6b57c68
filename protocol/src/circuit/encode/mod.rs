//! Canonical bytes of a descriptor: versioned, little-endian, length-prefixed; one descriptor has exactly one encoding.
//!
//! Decoding is total on any bytes: every length is bounded before it is allocated and trailing bytes are refused. It does
//! not judge the values; the checks of registration do.

mod reader;
#[cfg(test)]
mod tests;
mod writer;

use super::descriptor::Descriptor;
use reader::Reader;
use thiserror::Error;
use writer::Writer;

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
