//! An integer model as a folder: `descriptor.bin`, one `segment-NNNN.bin` per segment, `tokenizer.json`.
//!
//! Loading trusts nothing: digests, every length, and the whole registration check. A segment file is
//! `magic, version, matrix count, (name, K, N, int8 data)*, BLAKE3 of all before`, little-endian.

use crate::check::{CheckError, check};
use crate::import::{ImportError, TextTokenizer};
use crate::source::WeightSource;
use crate::weights::{IntegerModel, Matrix, SegmentWeights, Weights};
use obelysk_protocol::circuit::descriptor::Descriptor;
use obelysk_protocol::circuit::encode::{DecodeError, decode, encode};
use std::path::{Path, PathBuf};
use thiserror::Error;

const MAGIC: [u8; 4] = *b"OBKS";
const VERSION: u16 = 1;
pub(crate) const DIGEST: usize = 32;
/// Longest matrix name.
const MAX_NAME: usize = 64;
/// Most matrices of a segment.
const MAX_MATRICES: u16 = 64;

/// Why a folder is not an integer model.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file cannot be read or written.
    #[error("cannot access {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// `descriptor.bin` does not decode.
    #[error("descriptor: {0}")]
    Descriptor(#[from] DecodeError),
    /// A segment file is damaged.
    #[error("{path}: {reason}; copy the model again")]
    Segment {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// A segment that the model does not have.
    #[error("the model has {segments} segments, {index} was asked for: this belongs to another model")]
    Index {
        /// Asked for.
        index: usize,
        /// Segments of the model.
        segments: usize,
    },
    /// The tokenizer does not load.
    #[error(transparent)]
    Tokenizer(#[from] ImportError),
    /// The model may not be registered.
    #[error(transparent)]
    Check(#[from] CheckError),
}

impl IntegerModel {
    /// Writes the model, and the tokenizer if given, into `folder` (created if absent).
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn save(&self, folder: &Path, tokenizer: Option<&TextTokenizer>) -> Result<(), StoreError> {
        save(self, folder)?;
        tokenizer.map_or(Ok(()), |t| write(&folder.join("tokenizer.json"), t.bytes()))
    }

    /// Reads and checks a model.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn load(folder: &Path) -> Result<Self, StoreError> {
        let descriptor = read_descriptor(folder)?;
        let segments = (0..descriptor.layer_count() + 2).map(|i| Ok(read_segment(folder, i)?.0));
        let weights = Weights { segments: segments.collect::<Result<_, StoreError>>()? };
        check(&descriptor, &weights)?;
        Ok(Self { descriptor, weights })
    }

    /// Reads the tokenizer stored beside a model.
    ///
    /// # Errors
    /// Missing or broken `tokenizer.json`.
    pub fn load_tokenizer(folder: &Path) -> Result<TextTokenizer, StoreError> {
        Ok(TextTokenizer::read(&folder.join("tokenizer.json"))?)
    }
}

/// Writes a model's descriptor and segments into `folder` (created if absent), one segment in memory at a time.
///
/// # Errors
/// Segments that cannot be had, files that cannot be written.
pub fn save(model: &dyn WeightSource, folder: &Path) -> Result<(), StoreError> {
    std::fs::create_dir_all(folder).map_err(|source| StoreError::File { path: folder.into(), source })?;
    write(&descriptor_path(folder), &encode(model.descriptor()))?;
    (0..model.segments()).try_for_each(|i| write(&segment_path(folder, i), &encode_segment(&*model.segment(i)?)))
}

/// Copies a stored model's descriptor and segments as they are; whoever opens the copy checks it.
///
/// # Errors
/// A descriptor that does not decode, files that cannot be read or written.
pub fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    let segments = read_descriptor(from)?.layer_count() + 2;
    for path in std::iter::once(descriptor_path(from)).chain((0..segments).map(|i| segment_path(from, i))) {
        let name = path.file_name().unwrap_or_default();
        std::fs::copy(&path, to.join(name)).map_err(|source| StoreError::File { path, source })?;
    }
    Ok(())
}

fn descriptor_path(folder: &Path) -> PathBuf {
    folder.join("descriptor.bin")
}

pub(crate) fn read_descriptor(folder: &Path) -> Result<Descriptor, StoreError> {
    Ok(decode(&read(&descriptor_path(folder))?)?)
}

/// A segment and the digest its file ends with, which was found to be right.
pub(crate) fn read_segment(folder: &Path, i: usize) -> Result<(SegmentWeights, [u8; DIGEST]), StoreError> {
    let path = segment_path(folder, i);
    let bytes = read(&path)?;
    match decode_segment(&bytes) {
        Ok(segment) => Ok((segment, *bytes.last_chunk().unwrap_or(&[0; DIGEST]))),
        Err(reason) => Err(StoreError::Segment { path, reason }),
    }
}

pub(crate) fn segment_path(folder: &Path, i: usize) -> PathBuf {
    folder.join(format!("segment-{i:04}.bin"))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    std::fs::write(path, bytes).map_err(|source| StoreError::File { path: path.into(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    std::fs::read(path).map_err(|source| StoreError::File { path: path.into(), source })
}

/// Canonical bytes of a segment's weights, digest included.
#[must_use]
pub fn encode_segment(segment: &SegmentWeights) -> Vec<u8> {
    let mut out = Vec::with_capacity(segment.matrices.iter().map(|m| m.data.len() + 64).sum::<usize>() + 64);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(segment.matrices.len() as u16).to_le_bytes());
    for m in &segment.matrices {
        out.push(m.name.len() as u8);
        out.extend_from_slice(m.name.as_bytes());
        out.extend_from_slice(&(m.inputs as u32).to_le_bytes());
        out.extend_from_slice(&(m.outputs as u32).to_le_bytes());
        out.extend(m.data.iter().map(|q| q.cast_unsigned()));
    }
    let digest = blake3::hash(&out);
    out.extend_from_slice(digest.as_bytes());
    out
}

/// Reads exactly one segment; total on any bytes.
///
/// # Errors
/// What is wrong with the bytes.
pub fn decode_segment(bytes: &[u8]) -> Result<SegmentWeights, &'static str> {
    const SHORT: &str = "the file is cut off";
    let split = bytes.len().checked_sub(DIGEST).ok_or(SHORT)?;
    let (body, digest) = bytes.split_at(split);
    let mut rest = body;
    let mut take = |n: usize| -> Result<&[u8], &'static str> {
        let (head, tail) = rest.split_at_checked(n).ok_or(SHORT)?;
        rest = tail;
        Ok(head)
    };
    if take(4)? != MAGIC {
        return Err("the file is not a weight segment");
    }
    if take(2)? != VERSION.to_le_bytes() {
        return Err("the file has another version");
    }
    if blake3::hash(body).as_bytes() != digest {
        return Err("the BLAKE3 digest does not match");
    }
    let count = take(2)?;
    let count = u16::from_le_bytes([count[0], count[1]]);
    if count > MAX_MATRICES {
        return Err("too many matrices");
    }
    let mut matrices = Vec::new();
    for _ in 0..count {
        let length = usize::from(take(1)?[0]);
        if length > MAX_NAME {
            return Err("a matrix name is too long");
        }
        let name = String::from_utf8(take(length)?.to_vec()).map_err(|_| "a matrix name is not UTF-8")?;
        let mut size = || take(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize);
        let (inputs, outputs) = (size()?, size()?);
        let data = take(inputs.checked_mul(outputs).ok_or(SHORT)?)?.iter().map(|b| b.cast_signed()).collect();
        matrices.push(Matrix { name, inputs, outputs, data });
    }
    if rest.is_empty() { Ok(SegmentWeights { matrices }) } else { Err("bytes follow the last matrix") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toy;

    #[test]
    fn round_trip_through_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let model = toy::model(11);
        model.save(folder.path(), None).unwrap();
        assert_eq!(IntegerModel::load(folder.path()).unwrap(), model);
    }

    #[test]
    fn damage_is_refused() {
        let bytes = encode_segment(&toy::model(11).weights.segments[1]);
        assert!(decode_segment(&bytes).is_ok());
        for n in (0..bytes.len()).step_by(7) {
            assert!(decode_segment(&bytes[..n]).is_err());
            let mut changed = bytes.clone();
            changed[n] ^= 1;
            assert!(decode_segment(&changed).is_err(), "byte {n}");
        }
    }

    #[test]
    fn unregistrable_models_do_not_load() {
        let folder = tempfile::tempdir().unwrap();
        let mut model = toy::model(11);
        model.weights.segments[1].matrices[0].data[0] = -128;
        model.save(folder.path(), None).unwrap();
        assert!(matches!(IntegerModel::load(folder.path()), Err(StoreError::Check(CheckError::Weight { .. }))));
    }
}
