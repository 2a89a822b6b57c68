//! What can go wrong with blobs.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use obelysk_protocol::wire::BlobRef;

use super::objects::Fault;

/// Why a blob is not kept or not given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// Memory set aside for blobs is used up.
    #[error("blob store is full ({limit} bytes); raise `max_store_bytes`, or wait until another job is done")]
    Full {
        /// Its size.
        limit: u64,
    },
    /// The disk is full. What was kept before is kept.
    #[error("no room for {bytes} bytes in {place}, where {free} bytes are free; free some, then the work is tried again")]
    NoRoom {
        /// Bytes wanted.
        bytes: u64,
        /// Folder or bucket.
        place: String,
        /// Bytes free.
        free: u64,
    },
    /// No such blob.
    #[error("blob {digest} is not in {place}; it is computed or fetched again, or submit the job again")]
    Missing {
        /// Its digest.
        digest: String,
        /// Folder or bucket.
        place: String,
    },
    /// The bytes are not those that were put.
    #[error("{key} in {place} was damaged since it was written, and {aside}; check that disk: the work is done again")]
    Damaged {
        /// Its name there.
        key: String,
        /// Folder or bucket.
        place: String,
        /// What became of it.
        aside: String,
    },
    /// The store fails.
    #[error("blob store {place}: {cause}; check that it can be reached and written by this user")]
    Store {
        /// Folder or bucket.
        place: String,
        /// What it said.
        cause: String,
    },
    /// A file to be put.
    #[error("cannot put {} into the blob store: {cause}; fetch or make it again", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// The store does not answer now: nothing is known to be missing.
    #[error("blob store {place}: {cause}; it is tried again")]
    Unreached {
        /// Bucket.
        place: String,
        /// What happened.
        cause: String,
    },
    /// The store cannot be used as it is set up.
    #[error("blob store {place}: {cause}")]
    Refused {
        /// Bucket.
        place: String,
        /// What is wrong, and what to do.
        cause: String,
    },
    /// A setting cannot be used.
    #[error("setting `{setting}` {cause}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// What is wrong with it, and what it should be.
        cause: String,
    },
}

impl BlobError {
    /// Whether somebody has to change a setting, or what lies behind it, before it can work.
    #[must_use]
    pub const fn is_setting(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Setting { .. })
    }

    pub(super) fn missing(blob: BlobRef, place: &str) -> Self {
        let digest = blob.digest.iter().map(|b| format!("{b:02x}")).collect();
        Self::Missing { digest, place: place.to_owned() }
    }

    pub(super) fn file(path: &Path, cause: &dyn Display) -> Self {
        Self::File { path: path.to_owned(), cause: cause.to_string() }
    }
}

impl Fault {
    /// As an error of that place; bytes wanted and free matter where it is full.
    pub(super) fn named(self, place: &str, bytes: u64, free: u64) -> BlobError {
        let place = place.to_owned();
        match self {
            Self::Full => BlobError::NoRoom { bytes, place, free },
            Self::Missing => BlobError::Store { place, cause: "an object went away".to_owned() },
            Self::Unreached(cause) => BlobError::Unreached { place, cause },
            Self::Refused(cause) => BlobError::Refused { place, cause },
            Self::Source(cause) | Self::Failed(cause) => BlobError::Store { place, cause },
        }
    }
}
