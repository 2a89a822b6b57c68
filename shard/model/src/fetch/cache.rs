//! The hub's own cache, as the publisher's tools fill it: read, never written.
//!
//! `models--ORG--NAME/refs/REVISION` names a commit, `snapshots/COMMIT/FILE` links to `blobs/DIGEST`, where the digest of a
//! large file is its SHA-256.

use std::path::{Path, PathBuf};

/// A commit of a repository as it lies in the cache; not all of its files need be there.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Commit.
    pub commit: String,
    folder: PathBuf,
}

impl Snapshot {
    /// What the cache has of a commit or of a branch when it was last fetched.
    pub fn find(cache: &Path, repository: &str, revision: &str) -> Option<Self> {
        let base = cache.join(format!("models--{}", repository.replace('/', "--")));
        let commit = if is_commit(revision) {
            revision.to_owned()
        } else {
            let text = std::fs::read_to_string(base.join("refs").join(revision)).ok()?;
            Some(text.trim().to_owned()).filter(|text| is_commit(text))?
        };
        let folder = base.join("snapshots").join(&commit);
        folder.is_dir().then_some(Self { commit, folder })
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A file, if it is there.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.folder.join(name)).filter(|path| path.is_file())
    }

    /// SHA-256 that the cache states for a file.
    pub fn sha256(&self, name: &str) -> Option<String> {
        let blob = std::fs::canonicalize(self.folder.join(name)).ok()?;
        let name = blob.file_name()?.to_str()?;
        is_sha256(name).then(|| name.to_owned())
    }
}

/// A full commit id.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A SHA-256 in hexadecimal.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}
