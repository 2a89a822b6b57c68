//! A repository of the hub: its list of files, its cache, and what has to come over the network.

use super::FileDigest;
use super::Progress;
use super::cache::Snapshot;
use super::download::{Wanted, download, length, settle};
use super::error::{FetchError, at};
use super::files::{INDEX, MAX_INDEX_BYTES, index_in, names_in, selection, target};
use super::hub::{Hub, Listing, Published};
use super::space;
use super::staging::Staging;
use std::collections::BTreeMap;
use std::path::Path;

/// Collects the model in `staging`; gives commit and files.
///
/// # Errors
/// See [`FetchError`]. Without network, a whole model in the hub's own cache is taken as it is.
pub fn fetch(
    hub: &Hub,
    repository: &str,
    revision: &str,
    staging: &Staging,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(String, Vec<FileDigest>), FetchError> {
    let (listing, online) = match hub.list(repository, revision) {
        Ok(listing) => (listing, true),
        Err(offline @ FetchError::Network { .. }) => (kept(hub, repository, revision).ok_or(offline)?, false),
        Err(error) => return Err(error),
    };
    let snapshot = hub.cache.as_deref().and_then(|cache| Snapshot::find(cache, repository, &listing.commit));
    staging.claim(Some(&format!("{repository}@{}", listing.commit)))?;
    let mut collection = Collection { hub, repository, listing: &listing, snapshot, online, staging, files: BTreeMap::new() };
    let index = if listing.files.contains_key(INDEX) {
        collection.small(INDEX)?;
        index_in(staging.model())?
    } else {
        None
    };
    let names: Vec<String> = listing.files.keys().cloned().collect();
    let chosen = selection(&format!("hf:{repository}"), &names, index.as_deref())?;
    collection.collect(&chosen, progress)?;
    Ok((listing.commit.clone(), collection.files.into_values().collect()))
}

/// What the cache holds of a revision, as if the hub had listed it: enough if it is a whole model.
fn kept(hub: &Hub, repository: &str, revision: &str) -> Option<Listing> {
    let snapshot = Snapshot::find(hub.cache.as_deref()?, repository, revision)?;
    let published = |name: String| {
        let size = snapshot.file(&name)?.metadata().ok()?.len();
        let sha256 = snapshot.sha256(&name);
        Some((name, Published { size: Some(size), sha256 }))
    };
    let files: BTreeMap<String, Published> = names_in(snapshot.folder()).ok()?.into_iter().filter_map(published).collect();
    let names: Vec<String> = files.keys().cloned().collect();
    selection(repository, &names, index_in(snapshot.folder()).ok()?.as_deref()).ok()?;
    Some(Listing { commit: snapshot.commit, files })
}

struct Collection<'a> {
    hub: &'a Hub,
    repository: &'a str,
    listing: &'a Listing,
    snapshot: Option<Snapshot>,
    /// Whether files that the cache lacks can be asked for.
    online: bool,
    staging: &'a Staging,
    files: BTreeMap<String, FileDigest>,
}

impl Collection<'_> {
    /// Brings all `names` into the staging folder.
    fn collect(&mut self, names: &[String], progress: &mut dyn FnMut(Progress<'_>)) -> Result<(), FetchError> {
        let size = |name: &String| self.listing.files.get(name).and_then(|p| p.size).unwrap_or(0);
        let total = names.iter().map(size).fold(0, u64::saturating_add);
        let sizes: Vec<u64> = names.iter().map(size).collect();
        let mut missing = Vec::new();
        let mut done = 0u64;
        for (name, size) in names.iter().zip(sizes) {
            progress(Progress { file: name, done, total });
            if self.files.contains_key(name) || self.present(name)? || self.cached(name)? {
                done = done.saturating_add(size);
            } else {
                missing.push(name);
            }
        }
        let mut left = 0u64;
        for name in &missing {
            let whole = self.published(name).size.unwrap_or(0);
            left = left.saturating_add(whole.saturating_sub(length(&self.staging.parts().join(name))?));
        }
        space::ensure(self.staging.root(), left)?;
        for name in missing {
            let digest =
                self.download(name, &mut |bytes| progress(Progress { file: name, done: done.saturating_add(bytes), total }))?;
            done = done.saturating_add(digest.size);
            self.files.insert(name.clone(), digest);
        }
        Ok(())
    }

    /// Brings a file that decides what else is needed.
    fn small(&mut self, name: &str) -> Result<(), FetchError> {
        if self.published(name).size.is_some_and(|size| size > MAX_INDEX_BYTES) {
            let reason = format!("{name} is larger than {MAX_INDEX_BYTES} bytes");
            return Err(FetchError::Hub { model: self.repository.to_owned(), reason });
        }
        if !(self.present(name)? || self.cached(name)?) {
            let digest = self.download(name, &mut |_| ())?;
            self.files.insert(name.to_owned(), digest);
        }
        Ok(())
    }

    fn published(&self, name: &str) -> Published {
        self.listing.files.get(name).cloned().unwrap_or_default()
    }

    fn download(&self, name: &str, seen: &mut dyn FnMut(u64)) -> Result<FileDigest, FetchError> {
        let wanted = Wanted { model: self.repository, commit: &self.listing.commit, name, published: self.published(name) };
        let (part, dest) = (target(self.staging.parts(), name)?, target(self.staging.model(), name)?);
        download(self.hub, &wanted, &part, &dest, seen)
    }

    /// Whether an earlier run finished the file; it is checked again.
    fn present(&mut self, name: &str) -> Result<bool, FetchError> {
        let path = self.staging.model().join(name);
        if path.is_file() { self.check(name, &path) } else { Ok(false) }
    }

    /// Takes the file from the hub's own cache, if it is there and right.
    fn cached(&mut self, name: &str) -> Result<bool, FetchError> {
        let Some(found) = self.snapshot.as_ref().and_then(|s| s.file(name)) else { return Ok(false) };
        let found = std::fs::canonicalize(&found).map_err(at(&found))?;
        let size = found.metadata().map_err(at(&found))?.len();
        if self.published(name).size.is_some_and(|published| published != size) {
            return Ok(false);
        }
        // Of what an interrupted run left, nothing is needed now.
        let part = target(self.staging.parts(), name)?;
        let dest = target(self.staging.model(), name)?;
        self.take(&found, &part, size)?;
        let published = self.published(name);
        match settle(name, &published, &part, &dest) {
            Ok(digest) => {
                self.files.insert(name.to_owned(), digest);
                Ok(true)
            }
            Err(FetchError::Checksum { .. }) if self.online => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A second name for weights where that is possible, since nobody edits them in place; otherwise a copy.
    fn take(&self, found: &Path, part: &Path, size: u64) -> Result<(), FetchError> {
        if part.exists() {
            std::fs::remove_file(part).map_err(at(part))?;
        }
        if part.extension().is_some_and(|e| e == "safetensors") && std::fs::hard_link(found, part).is_ok() {
            return Ok(());
        }
        space::ensure(self.staging.root(), size)?;
        std::fs::copy(found, part).map_err(at(found)).map(drop)
    }

    /// Whether the file at `path` is the published one; if not, it is removed.
    fn check(&mut self, name: &str, path: &Path) -> Result<bool, FetchError> {
        let (digest, published) = (super::digest(path, name)?, self.published(name));
        let same =
            published.size.is_none_or(|size| size == digest.size) && published.sha256.is_none_or(|sha| sha == digest.sha256);
        if same {
            self.files.insert(name.to_owned(), digest);
        } else {
            std::fs::remove_file(path).map_err(at(path))?;
        }
        Ok(same)
    }
}
