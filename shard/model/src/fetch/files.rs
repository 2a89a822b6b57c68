//! Which files of a published model are kept, and their digests.

use super::error::{FetchError, at};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Names the shards of weights that are published in several files.
pub const INDEX: &str = "model.safetensors.index.json";
/// Largest index read: those of the largest models have 2,000 lines.
pub const MAX_INDEX_BYTES: u64 = 64 << 20;
/// What was fetched, written into the folder.
pub const DIGESTS_FILE: &str = "obelysk-digests.json";
/// Largest record read: a line per file.
const MAX_RECORD_BYTES: u64 = 16 << 20;
/// Weights in one file.
const WHOLE: &str = "model.safetensors";
/// Files kept besides weights.
const SMALL: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "vocab.txt",
    "modules.json",
    "1_Pooling/config.json",
    INDEX,
];

/// Size and digests of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// Path inside the folder.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
    /// BLAKE3, hexadecimal.
    pub blake3: String,
}

/// What was fetched, from where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The source as it is given to `fetch`, without the path of a folder.
    pub source: String,
    /// Commit on the hub.
    pub revision: Option<String>,
    /// Files, by name.
    pub files: Vec<FileDigest>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Record {
    /// The record in a folder, if it was fetched.
    ///
    /// # Errors
    /// A record that cannot be read.
    pub fn read(folder: &Path) -> Result<Option<Self>, FetchError> {
        let path = folder.join(DIGESTS_FILE);
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(at(&path)(e)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_RECORD_BYTES).read_to_end(&mut bytes).map_err(at(&path))?;
        serde_json::from_slice(&bytes).map(Some).map_err(|e| at(&path)(e.into()))
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), FetchError> {
        let path = folder.join(DIGESTS_FILE);
        let text = serde_json::to_vec_pretty(self).map_err(|e| at(&path)(e.into()))?;
        std::fs::write(&path, text).map_err(at(&path))
    }
}

/// Files to keep of those that `model` has, sorted: what describes it, and the weights that its index names, or
/// `model.safetensors`, or all others. Many repositories hold their weights twice; only one copy is kept.
///
/// # Errors
/// Missing shards, no weights, no config.
pub fn selection(model: &str, names: &[String], index: Option<&[u8]>) -> Result<Vec<String>, FetchError> {
    let has = |name: &str| names.iter().any(|n| n == name);
    let mut kept: BTreeSet<String> = SMALL.iter().filter(|name| has(name)).map(|&name| name.to_owned()).collect();
    let weights: BTreeSet<String> = match index {
        Some(bytes) => shards(model, bytes)?,
        None if has(WHOLE) => BTreeSet::from([WHOLE.to_owned()]),
        // `consolidated.*` are the same weights in their authors' own layout.
        None => {
            names.iter().filter(|n| plain(n) && n.ends_with(".safetensors") && !n.starts_with("consolidated")).cloned().collect()
        }
    };
    if let Some(shard) = weights.iter().find(|shard| !has(shard)) {
        return Err(FetchError::MissingShard { model: model.to_owned(), shard: shard.clone() });
    }
    if weights.is_empty() || !has("config.json") {
        return Err(FetchError::NoModel(model.to_owned()));
    }
    kept.extend(weights);
    Ok(kept.into_iter().collect())
}

fn shards(model: &str, bytes: &[u8]) -> Result<BTreeSet<String>, FetchError> {
    let wrong = |reason: String| FetchError::Index { model: model.to_owned(), reason };
    let index: Index = serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    match shards.iter().find(|shard| !plain(shard) || !shard.ends_with(".safetensors")) {
        Some(shard) => Err(wrong(format!("`{shard}` is not the name of a safetensors file"))),
        None => Ok(shards),
    }
}

/// A file name and nothing more, safe in a path and in an address.
fn plain(name: &str) -> bool {
    !name.starts_with('.') && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// Files of a folder that can be part of a model.
pub fn names_in(folder: &Path) -> Result<Vec<String>, FetchError> {
    let mut names: Vec<String> = SMALL.iter().filter(|n| folder.join(n).is_file()).map(|&n| n.to_owned()).collect();
    let entries = std::fs::read_dir(folder).map_err(at(folder))?;
    let files = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
    names.extend(files.filter(|n| n.ends_with(".safetensors")));
    names.sort();
    Ok(names)
}

/// The index of a folder, if it has one.
pub fn index_in(folder: &Path) -> Result<Option<Vec<u8>>, FetchError> {
    let path = folder.join(INDEX);
    if !path.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(&path).map_err(at(&path))?;
    file.take(MAX_INDEX_BYTES).read_to_end(&mut bytes).map_err(at(&path))?;
    Ok(Some(bytes))
}

/// `name` inside `folder`, whose folders exist afterwards.
pub fn target(folder: &Path, name: &str) -> Result<PathBuf, FetchError> {
    let path = folder.join(name);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(at(folder))?;
    }
    Ok(path)
}

/// Size and digests of the file at `path`.
///
/// # Errors
/// An unreadable file.
pub fn digest(path: &Path, name: &str) -> Result<FileDigest, FetchError> {
    let mut file = std::fs::File::open(path).map_err(at(path))?;
    let (mut sha, mut blake, mut size) = (Sha256::new(), blake3::Hasher::new(), 0u64);
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(at(path))?;
        if n == 0 {
            break;
        }
        sha.update(&buffer[..n]);
        blake.update(&buffer[..n]);
        size += n as u64;
    }
    let sha256 = sha.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok(FileDigest { name: name.to_owned(), size, sha256, blake3: blake.finalize().to_hex().to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|&n| n.to_owned()).collect()
    }

    #[test]
    fn weights_are_kept_once() {
        let twice = names(&["README.md", "config.json", "consolidated.safetensors", "model.safetensors", "x/y.safetensors"]);
        assert_eq!(selection("m", &twice, None).unwrap(), ["config.json", "model.safetensors"]);
        let index = br#"{"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
        let sharded = names(&["config.json", "consolidated.safetensors", "model-1.safetensors", "model-2.safetensors", INDEX]);
        let kept = selection("m", &sharded, Some(index)).unwrap();
        assert_eq!(kept, ["config.json", "model-1.safetensors", "model-2.safetensors", INDEX]);
        let other = names(&["config.json", "consolidated.00.safetensors", "weights.safetensors", "more.safetensors"]);
        assert_eq!(selection("m", &other, None).unwrap(), ["config.json", "more.safetensors", "weights.safetensors"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
        let lacking = selection("org/m", &names(&["config.json", "model-1.safetensors", INDEX]), Some(index)).unwrap_err();
        assert!(lacking.to_string().contains("`model-2.safetensors`") && lacking.to_string().contains("org/m"), "{lacking}");
        for index in
            [&br#"{"weight_map": {"a": "../model-1.safetensors"}}"#[..], br#"{"weight_map": {"a": "x.bin"}}"#, b"{}", b""]
        {
            assert!(matches!(selection("m", &names(&["config.json", INDEX]), Some(index)), Err(FetchError::Index { .. })));
        }
        for lacking in [&["config.json", "pytorch_model.bin"][..], &["model.safetensors"], &["config.json", "..safetensors"]] {
            assert!(matches!(selection("m", &names(lacking), None), Err(FetchError::NoModel(_))));
        }
    }
}
