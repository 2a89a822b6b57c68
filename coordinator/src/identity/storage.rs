//! Where the authority's state outlives the process: two documents, replaced whole.
//!
//! Deliberately this narrow: a replicated log takes the place of the files, and it can offer no more than "this is the state now, and it
//! is safe". Nothing above may rely on files.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use obelysk_node::identity::{FolderLock, IdentityError, read_private, write_private};
use zeroize::Zeroizing;

use crate::consensus::ProposeError;

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Document {
    /// Key and certificate of the authority: secret.
    Authority,
    /// Tokens and members: no secrets, but nobody else's to write.
    Registry,
    /// Published models and the digests of their lists of files.
    Models,
}

/// Why state cannot be kept or read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// A file.
    #[error(transparent)]
    File(#[from] IdentityError),
    /// The log.
    #[error(transparent)]
    Log(#[from] ProposeError),
}

/// Keeps documents. A write that returned is safe from a loss of power, and is all there or not at all.
///
/// With the replicated log behind it, a write returns when a majority has it.
pub trait Storage: Debug + Send + Sync {
    /// The document as last written.
    ///
    /// # Errors
    /// [`StorageError`]: it is there and cannot be read.
    fn read(&self, document: Document) -> Result<Option<Zeroizing<Vec<u8>>>, StorageError>;

    /// Replaces the document.
    ///
    /// # Errors
    /// [`StorageError`]: the old one still holds.
    fn write(&self, document: Document, bytes: &[u8]) -> Result<(), StorageError>;

    /// Names the time for which what is read here may be decided upon; another writer may have written in every other. 0: there is none.
    fn term(&self) -> u64 {
        0
    }

    /// As [`Storage::write`], if it is still that time.
    ///
    /// # Errors
    /// As [`Storage::write`].
    fn write_in(&self, _term: u64, document: Document, bytes: &[u8]) -> Result<(), StorageError> {
        self.write(document, bytes)
    }
}

/// Files of mode 0600 in a folder of this process alone.
#[derive(Debug)]
pub struct FileStorage(FolderLock);

/// Largest document: the registry at its bounds takes a tenth of it.
const MAX_DOCUMENT_BYTES: u64 = 64 << 20;

impl FileStorage {
    /// Takes the folder, creating it if need be.
    ///
    /// # Errors
    /// [`StorageError`]: another process has it, or it cannot be made.
    pub fn open(folder: &Path) -> Result<Self, StorageError> {
        Ok(Self(FolderLock::take(folder)?))
    }

    /// Puts both files aside, under names that nothing reads: what they hold is kept elsewhere now.
    ///
    /// # Errors
    /// [`StorageError`]: they are still there.
    pub fn set_aside(&self) -> Result<(), StorageError> {
        for path in [Document::Registry, Document::Authority].map(|document| self.path(document)) {
            let aside = path.with_extension("json.moved");
            match std::fs::rename(&path, &aside) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    let (path, cause) = (path.display().to_string(), format!("cannot be renamed: {e}; check the folder's owner"));
                    return Err(IdentityError::File { path, cause }.into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn path(&self, document: Document) -> std::path::PathBuf {
        self.0.folder().join(match document {
            Document::Authority => "authority.json",
            Document::Registry => "registry.json",
            Document::Models => "models.txt",
        })
    }
}

impl Storage for FileStorage {
    fn read(&self, document: Document) -> Result<Option<Zeroizing<Vec<u8>>>, StorageError> {
        Ok(read_private(&self.path(document), MAX_DOCUMENT_BYTES)?)
    }

    fn write(&self, document: Document, bytes: &[u8]) -> Result<(), StorageError> {
        Ok(write_private(&self.path(document), bytes)?)
    }
}

/// Gone with the process: for clusters of one command on one machine.
#[derive(Default)]
pub struct MemoryStorage(Mutex<BTreeMap<Document, Zeroizing<Vec<u8>>>>);

impl Debug for MemoryStorage {
    /// Never prints what it holds.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemoryStorage")
    }
}

impl Storage for MemoryStorage {
    fn read(&self, document: Document) -> Result<Option<Zeroizing<Vec<u8>>>, StorageError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&document).cloned())
    }

    fn write(&self, document: Document, bytes: &[u8]) -> Result<(), StorageError> {
        let bytes = Zeroizing::new(bytes.to_vec());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(document, bytes);
        Ok(())
    }
}
