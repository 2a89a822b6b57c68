//! Objects as files below one folder.
//!
//! A file is written aside, synced, renamed into its place, and its folder synced: so it is visible only whole, and safe when the write
//! returns. Folders for all first bytes are made, and synced, at the start, so that no write depends on a folder that a loss of power takes.

use std::fmt::Debug;
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use obelysk_node::identity::Id;
use obelysk_protocol::wire::{BlobRef, Outline};

use super::objects::{Fault, Later, Listed, Objects, Reading};
use super::place::{BLOBS, DAMAGED, key_of};

/// Files that are being written.
const ASIDE: &str = "aside";

/// The steps of a write, apart so that tests can end a process between them.
pub(super) trait Disk: Debug + Send + Sync {
    fn write(&self, file: &mut File, bytes: &[u8]) -> std::io::Result<()> {
        file.write_all(bytes)
    }

    fn sync(&self, file: &File) -> std::io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_folder(&self, folder: &Path) -> std::io::Result<()> {
        File::open(folder)?.sync_all()
    }
}

/// The disk as it is.
#[derive(Debug)]
pub(super) struct RealDisk;

impl Disk for RealDisk {}

/// The folder.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    root: PathBuf,
    disk: Arc<dyn Disk>,
    number: Arc<AtomicU64>,
}

impl Folder {
    pub(super) fn open(root: &Path, disk: Arc<dyn Disk>) -> std::io::Result<Self> {
        for inner in ["", BLOBS, DAMAGED, ASIDE] {
            std::fs::create_dir_all(root.join(inner))?;
        }
        let root = std::fs::canonicalize(root)?;
        for first in 0..=u8::MAX {
            let fan = root.join(BLOBS).join(format!("{first:02x}"));
            match std::fs::create_dir(&fan) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        take_over(&root)?;
        // Also when they were there: the process that made them may have ended before this.
        for folder in [root.join(BLOBS), root.clone()] {
            disk.sync_folder(&folder)?;
        }
        if let Some(parent) = root.parent() {
            let _ = disk.sync_folder(parent);
        }
        Ok(Self { root, disk, number: Arc::default() })
    }

    /// Runs `fill` on a file aside, and makes that the object `key`; what fails leaves nothing.
    fn write<T>(&self, key: &str, fill: impl FnOnce(&mut File) -> Result<T, Fault>) -> Result<T, Fault> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let aside = self.root.join(ASIDE).join(format!("{}-{number}", std::process::id()));
        let target = self.root.join(key);
        let made = File::options().write(true).create(true).truncate(true).open(&aside);
        let work = made.map_err(|e| fault(&e)).and_then(|mut file| {
            let filled = fill(&mut file)?;
            let publish = || {
                self.disk.sync(&file)?;
                self.disk.rename(&aside, &target)?;
                self.disk.sync_folder(target.parent().unwrap_or(&self.root))
            };
            publish().map_err(|e| fault(&e)).map(|()| filled)
        });
        if work.is_err() {
            let _ = std::fs::remove_file(&aside);
        }
        work
    }

    fn put_now(&self, key: &str, bytes: &[u8]) -> Result<(), Fault> {
        self.write(key, |file| self.disk.write(file, bytes).map_err(|e| fault(&e)))
    }

    fn put_file_now(&self, key: &str, mut source: Reading) -> Result<Arc<Outline>, Fault> {
        self.write(key, move |file| {
            while let Some(piece) = source.next()? {
                self.disk.write(file, &piece).map_err(|e| fault(&e))?;
            }
            source.outline()
        })
    }

    fn list_now(&self, folder: &str) -> Result<Vec<Listed>, Fault> {
        let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
        while let Some(inner) = open.pop() {
            let entries = match std::fs::read_dir(self.root.join(&inner)) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(fault(&error)),
            };
            for entry in entries {
                let entry = entry.map_err(|e| fault(&e))?;
                let Ok(name) = entry.file_name().into_string() else { continue };
                let key = format!("{inner}/{name}");
                // What goes away meanwhile is not there.
                let Ok(about) = entry.metadata() else { continue };
                if about.is_dir() && inner == BLOBS {
                    open.push(key);
                } else if about.is_file() {
                    let modified = about.modified().map_err(|e| fault(&e))?;
                    found.push(Listed { key, length: about.len(), modified });
                }
            }
        }
        Ok(found)
    }

    fn sweep_now(&self, before: SystemTime) -> u64 {
        let entries = std::fs::read_dir(self.root.join(ASIDE)).into_iter().flatten().flatten();
        let old = |entry: &std::fs::DirEntry| entry.metadata().and_then(|m| m.modified()).is_ok_and(|at| at <= before);
        entries.filter(old).filter(|entry| std::fs::remove_file(entry.path()).is_ok()).count() as u64
    }

    /// On a thread that may wait for the disk.
    fn blocking<T: Send + 'static>(&self, work: impl FnOnce(Self) -> Result<T, Fault> + Send + 'static) -> Later<'_, T> {
        let own = self.clone();
        Box::pin(async move {
            let done = tokio::task::spawn_blocking(move || work(own)).await;
            done.unwrap_or_else(|e| Err(Fault::Failed(e.to_string())))
        })
    }
}

impl Objects for Folder {
    fn put(&self, key: String, bytes: Arc<Vec<u8>>) -> Later<'_, ()> {
        self.blocking(move |own| own.put_now(&key, &bytes))
    }

    fn put_file(&self, key: String, source: Reading) -> Later<'_, Arc<Outline>> {
        self.blocking(move |own| own.put_file_now(&key, source))
    }

    fn get(&self, key: String) -> Later<'_, Vec<u8>> {
        self.blocking(move |own| std::fs::read(own.root.join(key)).map_err(|e| fault(&e)))
    }

    fn get_range(&self, key: String, range: std::ops::Range<u64>) -> Later<'_, Vec<u8>> {
        self.blocking(move |own| {
            let file = File::open(own.root.join(key)).map_err(|e| fault(&e))?;
            let mut bytes = vec![0; usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0)];
            file.read_exact_at(&mut bytes, range.start).map(|()| bytes).map_err(|e| fault(&e))
        })
    }

    fn length(&self, key: String) -> Later<'_, u64> {
        self.blocking(move |own| std::fs::metadata(own.root.join(key)).map(|about| about.len()).map_err(|e| fault(&e)))
    }

    fn list(&self, folder: String) -> Later<'_, Vec<Listed>> {
        self.blocking(move |own| own.list_now(&folder))
    }

    fn delete(&self, key: String) -> Later<'_, ()> {
        self.blocking(move |own| match std::fs::remove_file(own.root.join(key)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(fault(&error)),
            _ => Ok(()),
        })
    }

    fn set_aside(&self, from: String, to: String) -> Later<'_, ()> {
        self.blocking(move |own| own.disk.rename(&own.root.join(from), &own.root.join(to)).map_err(|e| fault(&e)))
    }

    fn sweep(&self, before: SystemTime) -> Later<'_, u64> {
        self.blocking(move |own| Ok(own.sweep_now(before)))
    }

    fn folder(&self) -> Option<PathBuf> {
        Some(self.root.clone())
    }

    fn free(&self) -> Option<u64> {
        obelysk_model::fetch::space::free(&self.root).ok()
    }
}

/// Gives blobs of jobs, which builds before had named `DIGEST-LENGTH` in this folder, their place. What was half-written then goes.
fn take_over(root: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|_| entry.path().is_file()) else { continue };
        if name.starts_with(".fresh-") {
            std::fs::remove_file(entry.path())?;
        } else if let Some((digest, length)) = name.split_once('-')
            && let (Ok(digest), Ok(length)) = (digest.parse::<Id<32>>(), length.parse())
        {
            std::fs::rename(entry.path(), root.join(key_of(BlobRef { digest: digest.0, length })))?;
        }
    }
    Ok(())
}

fn fault(error: &std::io::Error) -> Fault {
    match error.kind() {
        // Shorter than it was: the range was within the blob.
        ErrorKind::NotFound | ErrorKind::UnexpectedEof => Fault::Missing,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Fault::Full,
        _ => Fault::Failed(error.to_string()),
    }
}
