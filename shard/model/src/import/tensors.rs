//! Float tensors of the safetensors files in a folder, read when asked for and converted to f32.
//!
//! Only headers are read at first, so a checkpoint may be larger than memory. Refuses truncated files, shards that the index
//! names and the folder lacks, names that two files claim, number formats that are no floats, and values that are no numbers.

use super::shards::{self, Header};
use super::{ImportError, read_file};
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Bytes converted at a time: large enough for the disk, small beside any tensor worth streaming.
const CHUNK_BYTES: usize = 1 << 20;

/// One tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatTensor {
    /// Sizes, slowest axis first.
    pub shape: Vec<usize>,
    /// Values.
    pub data: Arc<[f32]>,
}

/// Tensors by name. Cloning copies names and places, not values.
#[derive(Clone, Debug, Default)]
pub struct TensorStore(BTreeMap<String, Entry>);

#[derive(Clone, Debug)]
enum Entry {
    Memory(FloatTensor),
    Stored { file: Arc<Path>, start: u64, dtype: Dtype, shape: Vec<usize> },
}

impl TensorStore {
    pub(super) fn read(folder: &Path) -> Result<Self, ImportError> {
        let mut store = BTreeMap::new();
        for Header { file, data_start, tensors } in shards::headers(folder)? {
            for (name, info) in tensors {
                let start = data_start + info.data_offsets.0 as u64;
                let short = name.strip_prefix("bert.").unwrap_or(&name).to_owned();
                let entry = Entry::Stored { file: file.clone(), start, dtype: info.dtype, shape: info.shape };
                if store.insert(short, entry).is_some() {
                    let reason = format!("tensor `{name}` is in another file of the folder too");
                    return Err(ImportError::Safetensors { path: file.to_path_buf(), reason });
                }
            }
        }
        Ok(Self(store))
    }

    /// The tensor `name`, which must have exactly this shape.
    ///
    /// # Errors
    /// Missing tensor, other shape, no float, unreadable file, a value that is not finite.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<FloatTensor, ImportError> {
        if let Entry::Memory(tensor) = self.checked(name, shape)? {
            return Ok(tensor.clone());
        }
        let rows = shape.first().copied().unwrap_or(1);
        Ok(FloatTensor { shape: shape.to_vec(), data: self.rows(name, shape, 0..rows)?.into() })
    }

    /// Rows `rows` along the slowest axis of the tensor `name` of shape `shape`.
    ///
    /// # Errors
    /// As [`Self::get`]; also rows beyond the shape.
    pub fn rows(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Vec<f32>, ImportError> {
        let all = shape.first().copied().unwrap_or(1);
        let stride: usize = shape.iter().skip(1).product();
        if rows.start > rows.end || rows.end > all {
            let (found, expected) = (shape.to_vec(), vec![rows.end, stride]);
            return Err(ImportError::Shape { name: name.to_owned(), found, expected });
        }
        let span = rows.start * stride..rows.end * stride;
        match self.checked(name, shape)? {
            Entry::Memory(tensor) => Ok(tensor.data[span].to_vec()),
            Entry::Stored { file, start, dtype, .. } => read_span(name, file, *start, *dtype, span),
        }
    }

    /// That the tensor is there, has this shape and is stored as floats, without reading it.
    ///
    /// # Errors
    /// Missing tensor, other shape, no float.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<(), ImportError> {
        self.checked(name, shape).map(drop)
    }

    /// Whether a tensor of this name is there.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Adds or replaces a tensor.
    pub fn insert(&mut self, name: &str, tensor: FloatTensor) {
        self.0.insert(name.to_owned(), Entry::Memory(tensor));
    }

    /// Names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    fn checked(&self, name: &str, expected: &[usize]) -> Result<&Entry, ImportError> {
        let entry = self.0.get(name).ok_or_else(|| ImportError::MissingTensor(name.to_owned()))?;
        let (shape, dtype) = match entry {
            Entry::Memory(tensor) => (&tensor.shape, Dtype::F32),
            Entry::Stored { shape, dtype, .. } => (shape, *dtype),
        };
        if shape != expected {
            let (found, expected) = (shape.clone(), expected.to_vec());
            return Err(ImportError::Shape { name: name.to_owned(), found, expected });
        }
        width(name, dtype)?;
        Ok(entry)
    }
}

/// Bytes of one value.
fn width(name: &str, dtype: Dtype) -> Result<usize, ImportError> {
    match dtype {
        Dtype::F32 => Ok(4),
        Dtype::F16 | Dtype::BF16 => Ok(2),
        other => Err(ImportError::Dtype { name: name.to_owned(), dtype: format!("{other:?}") }),
    }
}

/// The values `span` of the tensor whose bytes begin at `start`.
fn read_span(name: &str, path: &Path, start: u64, dtype: Dtype, span: Range<usize>) -> Result<Vec<f32>, ImportError> {
    let failed = |source| ImportError::File { path: path.to_owned(), source };
    let size = width(name, dtype)?;
    let mut file = File::open(path).map_err(failed)?;
    file.seek(SeekFrom::Start(start + (span.start * size) as u64)).map_err(failed)?;
    let mut out = Vec::with_capacity(span.len());
    let mut buffer = vec![0u8; CHUNK_BYTES.min(span.len() * size)];
    while out.len() < span.len() {
        let bytes = ((span.len() - out.len()) * size).min(buffer.len());
        let bytes = &mut buffer[..bytes];
        file.read_exact(bytes).map_err(failed)?;
        let from = out.len();
        match dtype {
            Dtype::F16 => out.extend(bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32())),
            Dtype::BF16 => out.extend(bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32())),
            _ => out.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
        }
        if let Some(i) = out[from..].iter().position(|v: &f32| !v.is_finite()) {
            let index = span.start + from + i;
            return Err(ImportError::NotFinite { name: name.to_owned(), index, value: out[from + i] });
        }
    }
    Ok(out)
}

pub(super) fn json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ImportError> {
    serde_json::from_slice(&read_file(path)?).map_err(|source| ImportError::Json { path: path.to_owned(), source })
}
