//! Blobs as files of a folder, named by digest: written aside, synced, renamed, folder synced. A file that does not match its name is
//! as good as none.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use obelysk_node::identity::{Id, private_folder};
use obelysk_protocol::wire::BlobRef;

use super::Backing;

/// Files being written begin with this: what a crash leaves of them is removed at the next start.
const FRESH: &str = ".fresh-";

/// A folder of blobs; one process at a time.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    count: AtomicU64,
}

impl Folder {
    /// Opens the folder, creating it if need be.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        private_folder(path).map_err(|e| io::Error::other(e.to_string()))?;
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if is_fresh(&entry.path()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { path: path.to_owned(), count: AtomicU64::new(0) })
    }

    /// Forgets all but these and what is younger than this.
    ///
    /// # Errors
    /// What the system says.
    pub fn collect_older(&self, live: &BTreeSet<BlobRef>, age: Duration) -> io::Result<()> {
        let names: BTreeSet<PathBuf> = live.iter().map(|blob| self.file(*blob)).collect();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let keep = names.contains(&path) || is_fresh(&path) || !path.is_file();
            // A clock that was set back makes a file look young; it is removed later.
            let young = || fs::metadata(&path).and_then(|f| f.modified()).is_ok_and(|at| at.elapsed().is_ok_and(|e| e < age));
            if !keep && (age.is_zero() || !young()) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn file(&self, blob: BlobRef) -> PathBuf {
        self.path.join(format!("{}-{}", Id(blob.digest), blob.length))
    }
}

fn is_fresh(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(FRESH))
}

impl Backing for Folder {
    fn put(&self, blob: BlobRef, bytes: &[u8]) -> io::Result<()> {
        let fresh = self.path.join(format!("{FRESH}{}", self.count.fetch_add(1, Ordering::Relaxed)));
        let attempt = || {
            let mut file = File::create(&fresh)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&fresh, self.file(blob))?;
            File::open(&self.path)?.sync_all()
        };
        attempt().inspect_err(|_| {
            let _ = fs::remove_file(&fresh);
        })
    }

    fn get(&self, blob: BlobRef) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.file(blob)) {
            Ok(bytes) => Ok((BlobRef::of(&bytes) == blob).then_some(bytes)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn has(&self, blob: BlobRef) -> bool {
        fs::metadata(self.file(blob)).is_ok_and(|facts| facts.is_file() && facts.len() == blob.length)
    }

    fn remove(&self, blob: BlobRef) {
        if let Err(error) = fs::remove_file(self.file(blob)) {
            tracing::debug!(%error, "a blob's file was not removed; the next start does it");
        }
    }

    fn collect(&self, live: &BTreeSet<BlobRef>) -> io::Result<()> {
        self.collect_older(live, Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_matches_its_name_and_collects_the_rest() {
        let place = tempfile::tempdir().expect("folder");
        let folder = Folder::open(&place.path().join("a/b")).expect("opens");
        let (blob, other) = (BlobRef::of(b"kept"), BlobRef::of(b"old"));
        folder.put(blob, b"kept").expect("written");
        folder.put(other, b"old").expect("written");
        fs::write(folder.path.join(format!("{FRESH}9")), b"half").expect("written");
        folder.collect(&BTreeSet::from([blob])).expect("collects");
        assert_eq!(fs::read_dir(&folder.path).expect("lists").count(), 2, "somebody may still be writing");
        folder.put(other, b"old").expect("written again");
        folder.collect_older(&BTreeSet::new(), Duration::from_secs(60)).expect("collects");
        assert!(folder.has(blob) && folder.has(other), "both are young");
        folder.remove(other);
        let again = Folder::open(&place.path().join("a/b")).expect("opens again");
        assert_eq!(fs::read_dir(&folder.path).expect("lists").count(), 1);
        assert_eq!(again.get(blob).expect("reads").as_deref(), Some(&b"kept"[..]));
        assert!(again.has(blob) && !again.has(other));
        fs::write(again.file(blob), b"kepT").expect("damaged");
        assert_eq!(again.get(blob).expect("reads"), None, "damaged is as good as none");
        again.remove(blob);
        assert!(!again.has(blob) && again.get(blob).expect("reads").is_none());
    }
}
