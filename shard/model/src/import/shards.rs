//! Which safetensors files a folder's weights are in, and their headers.
//!
//! With `model.safetensors.index.json` exactly the shards it names, each of which must exist and hold what the index says;
//! else `model.safetensors`; else every `*.safetensors`. Headers are bounded and must account for every byte of the file.

use super::ImportError;
use super::tensors::json;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the list of shards.
const INDEX: &str = "model.safetensors.index.json";
/// Largest header read, as in the format's own implementation: a checkpoint of 10^5 tensors needs a tenth of it.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Header of one file.
pub(super) struct Header {
    /// The file.
    pub file: Arc<Path>,
    /// Offset of the first tensor byte.
    pub data_start: u64,
    /// Tensors by name, offsets relative to `data_start`.
    pub tensors: BTreeMap<String, TensorInfo>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Headers of all files that hold the weights.
pub(super) fn headers(folder: &Path) -> Result<Vec<Header>, ImportError> {
    let index = folder.join(INDEX);
    if !index.exists() {
        return files(folder)?.iter().map(|path| header(path)).collect();
    }
    let map = json::<Index>(&index)?.weight_map;
    let shards: BTreeSet<&String> = map.values().collect();
    let mut out = Vec::with_capacity(shards.len());
    for shard in shards {
        let lost = || ImportError::Shard { index: index.clone(), shard: shard.clone() };
        let plain = Path::new(shard).file_name().is_some_and(|name| name == shard.as_str());
        let path = folder.join(shard);
        if !plain || !path.is_file() {
            return Err(lost());
        }
        let header = header(&path)?;
        let absent = map.iter().find(|(name, file)| *file == shard && !header.tensors.contains_key(*name));
        if let Some((name, _)) = absent {
            let reason = format!("{INDEX} says it holds tensor `{name}`, which it does not");
            return Err(ImportError::Safetensors { path, reason });
        }
        out.push(header);
    }
    if out.is_empty() { Err(ImportError::NoWeights(folder.into())) } else { Ok(out) }
}

/// Files of a folder without an index.
fn files(folder: &Path) -> Result<Vec<PathBuf>, ImportError> {
    let whole = folder.join("model.safetensors");
    if whole.is_file() {
        return Ok(vec![whole]);
    }
    let list = std::fs::read_dir(folder).map_err(|source| ImportError::File { path: folder.into(), source })?;
    let mut files: Vec<PathBuf> =
        list.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    if files.is_empty() { Err(ImportError::NoWeights(folder.into())) } else { Ok(files) }
}

fn header(path: &Path) -> Result<Header, ImportError> {
    let failed = |source| ImportError::File { path: path.to_owned(), source };
    let broken = |reason: String| ImportError::Safetensors { path: path.to_owned(), reason };
    let mut file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let mut length = [0u8; 8];
    if size < 8 {
        return Err(broken(format!("{size} bytes are no header")));
    }
    file.read_exact(&mut length).map_err(failed)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES || length > size - 8 {
        return Err(broken(format!("a header of {length} bytes in a file of {size}")));
    }
    let mut text = vec![0u8; length as usize];
    file.read_exact(&mut text).map_err(failed)?;
    // Deserialising checks that the tensors lie end to end and have the bytes their shapes need.
    let metadata: Metadata = serde_json::from_slice(&text).map_err(|e| broken(e.to_string()))?;
    let data_start = 8 + length;
    if data_start.checked_add(metadata.data_len() as u64) != Some(size) {
        return Err(broken(format!("{} bytes of tensors in a file of {size}", metadata.data_len())));
    }
    let tensors = metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
    Ok(Header { file: path.into(), data_start, tensors })
}
