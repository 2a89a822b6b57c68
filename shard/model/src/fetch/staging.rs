//! The folder beside a destination in which a model is collected, `.fetch-NAME`.
//!
//! One process at a time works in it. It goes when the model is whole, or when a failure leaves nothing worth continuing.

use super::error::{FetchError, at};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// Says what the parts belong to.
const ORIGIN: &str = "origin";

/// A locked staging folder.
pub struct Staging {
    root: PathBuf,
    model: PathBuf,
    parts: PathBuf,
    _lock: File,
}

impl Staging {
    /// The staging folder of a destination; parts of an earlier run are still in it.
    pub fn open(dest: &Path) -> Result<Self, FetchError> {
        let parent = dest.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = dest.file_name().ok_or_else(|| FetchError::Exists(dest.to_owned()))?;
        // Beside the destination: a rename is atomic only within one file system.
        let root = parent.join(format!(".fetch-{}", name.to_string_lossy()));
        std::fs::create_dir_all(&root).map_err(at(&root))?;
        let lock = root.join("lock");
        let file = File::create(&lock).map_err(at(&lock))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(FetchError::Busy(dest.to_owned())),
            Err(TryLockError::Error(e)) => return Err(at(&lock)(e)),
        }
        // Whoever held the lock may just have finished.
        if dest.exists() {
            return Err(FetchError::Exists(dest.to_owned()));
        }
        let staging = Self { model: root.join("model"), parts: root.join("parts"), root, _lock: file };
        staging.make()?;
        Ok(staging)
    }

    /// Where everything is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whole files.
    pub fn model(&self) -> &Path {
        &self.model
    }

    /// Files that are arriving.
    pub fn parts(&self) -> &Path {
        &self.parts
    }

    /// Keeps what is there if it is of `origin`, otherwise begins anew; without an origin nothing is ever kept.
    pub fn claim(&self, origin: Option<&str>) -> Result<(), FetchError> {
        let path = self.root.join(ORIGIN);
        let found = std::fs::read_to_string(&path).ok();
        if found.is_some() && found.as_deref() == origin {
            return Ok(());
        }
        for folder in [&self.model, &self.parts] {
            std::fs::remove_dir_all(folder).map_err(at(folder))?;
        }
        self.make()?;
        match origin {
            Some(origin) => std::fs::write(&path, origin).map_err(at(&path)),
            None if found.is_some() => std::fs::remove_file(&path).map_err(at(&path)),
            None => Ok(()),
        }
    }

    /// Moves the model to its place; the rest goes.
    pub fn finish(self, dest: &Path) -> Result<(), FetchError> {
        std::fs::rename(&self.model, dest).map_err(at(dest))?;
        drop(std::fs::remove_file(self.root.join(ORIGIN)));
        Ok(())
    }

    fn make(&self) -> Result<(), FetchError> {
        for folder in [&self.model, &self.parts] {
            std::fs::create_dir_all(folder).map_err(at(folder))?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let holds = |folder: &Path| std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
        let resumable = self.root.join(ORIGIN).is_file() && (holds(&self.model) || holds(&self.parts));
        if !resumable {
            // A leftover costs disk and nothing else; the next run of the same fetch takes it over.
            drop(std::fs::remove_dir_all(&self.root));
        }
    }
}
