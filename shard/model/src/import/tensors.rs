//! Float tensors of all safetensors files in a folder, converted to f32 and searched for values that are no numbers.

use super::{ImportError, read_file};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatTensor {
    /// Sizes, slowest axis first.
    pub shape: Vec<usize>,
    /// Values.
    pub data: Arc<[f32]>,
}

/// Tensors by name.
#[derive(Clone, Debug, Default)]
pub struct TensorStore(BTreeMap<String, FloatTensor>);

impl TensorStore {
    pub(super) fn read(folder: &Path) -> Result<Self, ImportError> {
        let list = std::fs::read_dir(folder).map_err(|source| ImportError::File { path: folder.into(), source })?;
        let mut files: Vec<PathBuf> =
            list.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
        files.sort();
        if files.is_empty() {
            return Err(ImportError::NoWeights(folder.into()));
        }
        let mut store = Self::default();
        for path in files {
            let bytes = read_file(&path)?;
            let broken = |reason: String| ImportError::Safetensors { path: path.clone(), reason };
            let parsed = SafeTensors::deserialize(&bytes).map_err(|e| broken(e.to_string()))?;
            for (name, view) in parsed.iter() {
                if let Some(tensor) = float(name, &view)? {
                    let short = name.strip_prefix("bert.").unwrap_or(name);
                    store.0.insert(short.to_owned(), tensor);
                }
            }
        }
        Ok(store)
    }

    /// The tensor `name`, which must have exactly this shape.
    ///
    /// # Errors
    /// Missing tensor, other shape.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<&FloatTensor, ImportError> {
        let tensor = self.0.get(name).ok_or_else(|| ImportError::MissingTensor(name.to_owned()))?;
        if tensor.shape == shape {
            Ok(tensor)
        } else {
            let (found, expected) = (tensor.shape.clone(), shape.to_vec());
            Err(ImportError::Shape { name: name.to_owned(), found, expected })
        }
    }

    /// Adds or replaces a tensor.
    pub fn insert(&mut self, name: &str, tensor: FloatTensor) {
        self.0.insert(name.to_owned(), tensor);
    }

    /// Names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// The tensor in f32, or nothing for integer buffers such as position ids.
fn float(name: &str, view: &TensorView<'_>) -> Result<Option<FloatTensor>, ImportError> {
    let bytes = view.data();
    let data: Vec<f32> = match view.dtype() {
        Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::BF16 => bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::I64 | Dtype::I32 | Dtype::U8 | Dtype::BOOL => return Ok(None),
        other => return Err(ImportError::Dtype { name: name.to_owned(), dtype: format!("{other:?}") }),
    };
    match data.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(ImportError::NotFinite { name: name.to_owned(), index, value: data[index] }),
        None => Ok(Some(FloatTensor { shape: view.shape().to_vec(), data: data.into() })),
    }
}
