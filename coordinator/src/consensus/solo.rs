//! The log of one member, on its disk: what was proposed is applied, and its proposer told, only after a sync. One sync serves
//! everything that waits. Refuses a folder that another process has, and a log that is damaged anywhere but in a last write that was
//! never agreed.

mod file;

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use obelysk_node::identity::{FolderLock, IdentityError, read_private, write_private};
use tokio::sync::{oneshot, watch};

use super::memory::check;
use super::{Consensus, Machine, Proposal, ProposeError, Role};
use file::{Found, Log};

/// Proposals waiting for the disk: beyond, the proposer waits. The brain's own bound is below it.
const MAX_WAITING: usize = 4096;
/// Bytes joined into one batch, unless one proposal alone has more.
const JOINED_BYTES: usize = 4 << 20;
/// A log longer than this gives way to a snapshot: reading it at a start takes far less than a second.
const SNAPSHOT_AFTER_BYTES: u64 = 16 << 20;
/// Longest content of the file `term`.
const MAX_TERM_BYTES: u64 = 32;

/// Why a log does not serve.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SoloError {
    /// The folder is not this process's.
    #[error(transparent)]
    Folder(#[from] IdentityError),
    /// The disk failed or is full.
    #[error("{path}: {cause}; free or replace the disk, then start again")]
    Disk {
        /// Which file.
        path: String,
        /// What the system says.
        cause: String,
    },
    /// What was agreed does not read any more.
    #[error("{path} is damaged: {cause}; restore the folder from a backup, or move it away to begin with no jobs and no members")]
    Damaged {
        /// Which file.
        path: String,
        /// What does not match.
        cause: &'static str,
    },
    /// The snapshot is not of this release.
    #[error("{0}")]
    Machine(String),
}

/// One member with a log in a folder.
#[derive(Debug)]
pub struct Solo {
    term: u64,
    /// `None` only while it is dropped.
    waiting: Option<SyncSender<Waiting>>,
    role: watch::Receiver<Role>,
    writer: Option<JoinHandle<()>>,
}

impl Drop for Solo {
    /// The folder is free when this returns: for a coordinator that goes on as one of several.
    fn drop(&mut self) {
        self.waiting = None;
        let _ = self.writer.take().map(JoinHandle::join);
    }
}

struct Waiting {
    entries: Vec<Vec<u8>>,
    answer: oneshot::Sender<Result<(), ProposeError>>,
}

struct Writer {
    log: Log,
    machine: Box<dyn Machine>,
    role: watch::Sender<Role>,
    snapshot_after: u64,
    /// The folder is ours as long as this thread may write to it.
    _lock: FolderLock,
}

impl Solo {
    /// Opens the folder, creating it if need be, brings the machine to the last state agreed, and leads in a term of its own. Waits for
    /// the disk.
    ///
    /// # Errors
    /// [`SoloError`]: in use, unwritable, or damaged.
    pub fn open(folder: &Path, machine: Box<dyn Machine>) -> Result<Self, SoloError> {
        Self::open_with(folder, machine, SNAPSHOT_AFTER_BYTES)
    }

    /// As [`Solo::open`], with another length after which a snapshot is made.
    ///
    /// # Errors
    /// As [`Solo::open`].
    pub fn open_with(folder: &Path, mut machine: Box<dyn Machine>, snapshot_after: u64) -> Result<Self, SoloError> {
        let lock = FolderLock::take(folder)?;
        let term = next_term(folder)?;
        let Found { snapshot, entries, log } = Log::open(folder)?;
        if let Some((_, bytes)) = snapshot {
            machine.restore(&bytes).map_err(SoloError::Machine)?;
        }
        entries.iter().for_each(|(index, entry)| machine.apply(*index, entry));
        tracing::info!(term, entries = entries.len(), "the cluster's facts are read");
        let (waiting, inbox) = sync_channel(MAX_WAITING);
        let (role, follow) = watch::channel(Role::Leader { term });
        let writer = Writer { log, machine, role, snapshot_after, _lock: lock };
        let started = std::thread::Builder::new().name("log".to_owned()).spawn(move || writer.run(&inbox));
        let started = started.map_err(|e| SoloError::Disk { path: folder.display().to_string(), cause: e.to_string() })?;
        Ok(Self { term, waiting: Some(waiting), role: follow, writer: Some(started) })
    }
}

/// The term after the last one, on disk before anybody leads in it.
fn next_term(folder: &Path) -> Result<u64, SoloError> {
    let path = folder.join("term");
    let damaged = || SoloError::Damaged { path: path.display().to_string(), cause: "it holds no number" };
    let last = match read_private(&path, MAX_TERM_BYTES)? {
        Some(bytes) => std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok()).ok_or_else(damaged)?,
        None if folder.join("log").exists() => {
            return Err(SoloError::Damaged { path: path.display().to_string(), cause: "it is gone while the log is there" });
        }
        None => 0_u64,
    };
    let term = last.checked_add(1).filter(|term| *term <= crate::core::MAX_TERM).ok_or_else(damaged)?;
    write_private(&path, format!("{term}\n").as_bytes())?;
    Ok(term)
}

impl Consensus for Solo {
    fn propose(&self, term: u64, entries: Vec<Vec<u8>>) -> Proposal {
        if let Err(error) = check(term, self.term, &entries) {
            return Box::pin(std::future::ready(Err(error)));
        }
        let (answer, answered) = oneshot::channel();
        // Without a reader this fails, and the future says why.
        let _ = self.waiting.as_ref().map(|waiting| waiting.send(Waiting { entries, answer }));
        let role = self.role.clone();
        Box::pin(async move {
            let stopped = || match &*role.borrow() {
                Role::Stopped { reason } => reason.clone(),
                _ => "it ended".to_owned(),
            };
            answered.await.unwrap_or_else(|_| Err(ProposeError::Failed(stopped())))
        })
    }

    fn role(&self) -> watch::Receiver<Role> {
        self.role.clone()
    }
}

impl Writer {
    fn run(mut self, inbox: &Receiver<Waiting>) {
        let mut next = None;
        while let Some(first) = next.take().or_else(|| inbox.recv().ok()) {
            let (mut batch, mut answers, mut bytes) = (Vec::new(), Vec::new(), 0);
            let mut more = Some(first);
            while let Some(Waiting { entries, answer }) = more.take() {
                let size: usize = entries.iter().map(Vec::len).sum();
                if bytes > 0 && bytes + size > JOINED_BYTES {
                    next = Some(Waiting { entries, answer });
                    break;
                }
                bytes += size;
                batch.extend(entries);
                answers.push(answer);
                more = inbox.try_recv().ok();
            }
            let outcome = self.agree(&batch);
            let answer = outcome.as_ref().copied().map_err(|e| ProposeError::Failed(e.to_string()));
            if let Err(error) = &outcome {
                tracing::error!(%error, "the log failed");
                self.role.send_replace(Role::Stopped { reason: error.to_string() });
            }
            for waiting in answers {
                let _ = waiting.send(answer.clone());
            }
            if outcome.is_err() {
                return;
            }
        }
    }

    fn agree(&mut self, batch: &[Vec<u8>]) -> Result<(), SoloError> {
        let first = self.log.next_index;
        if !batch.is_empty() {
            self.log.append(batch)?;
        }
        (first..).zip(batch).for_each(|(index, entry)| self.machine.apply(index, entry));
        if self.log.bytes > self.snapshot_after {
            self.log.replace(&self.machine.snapshot())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
