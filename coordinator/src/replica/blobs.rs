//! Blobs of jobs on the disks of a majority of the coordinators, so that whoever leads next has what the log names.
//!
//! A blob is put here before any fact names it, and counts as put when a majority of voters has it; whoever lacks one that the facts
//! name asks the others for it. A blob that no fact names any more is removed by each for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use obelysk_node::error::TransportError;
use obelysk_node::transport::quinn::{Connection, RecvStream, SendStream};
use obelysk_node::transport::{answer_blob, fetch, read_message, receive_blob, store, write_message};
use obelysk_protocol::wire::{BlobRef, BlobStored, Message, Refused};
use tokio::sync::watch;

use crate::consensus::raft::member::Member;
use crate::consensus::raft::{Dialler, Electorate, Questions, RaftConsensus};
use crate::consensus::{Consensus as _, Role};
use crate::ledger::SharedLedger;
use crate::server::{Backing, Folder, UNREACHED};

/// Largest blob between coordinators: as large as a node's result may be configured to be.
const MAX_BYTES: u64 = 4 << 30;
/// How long a majority may take to have a blob.
const PATIENCE: Duration = Duration::from_secs(30);
/// One that could not be reached is not tried again so soon: what waits for it would wait for all.
const AGAIN: Duration = Duration::from_secs(3);
/// How often a coordinator that does not lead looks whether it has what the facts name.
const KEEP_UP: Duration = Duration::from_secs(5);
/// Blobs younger than this are about to be named.
const YOUNG: Duration = Duration::from_secs(900);

/// Answers other coordinators out of this one's folder.
#[derive(Debug)]
pub(super) struct Answers {
    folder: Arc<Folder>,
}

impl Answers {
    pub(super) const fn new(folder: Arc<Folder>) -> Self {
        Self { folder }
    }
}

impl Questions for Answers {
    fn answer(&self, send: SendStream, recv: RecvStream) -> Pin<Box<dyn Future<Output = Result<(), TransportError>> + Send>> {
        Box::pin(answer(self.folder.clone(), send, recv))
    }
}

async fn answer(folder: Arc<Folder>, mut send: SendStream, mut recv: RecvStream) -> Result<(), TransportError> {
    match read_message(&mut recv).await? {
        Some(Message::BlobPut(put)) => {
            let bytes = receive_blob(&mut recv, put.blob, MAX_BYTES).await?;
            let kept = blocking(move || folder.put(put.blob, &bytes)).await;
            let answer = match kept {
                Ok(()) => Message::BlobStored(BlobStored { blob: put.blob }),
                Err(error) => no(format!("this coordinator cannot keep it: {error}; free space there")),
            };
            write_message(&mut send, &answer).await?;
        }
        Some(Message::BlobGet(get)) => match blocking(move || folder.get(get.blob)).await {
            Ok(Some(bytes)) => answer_blob(&mut send, get.blob, &bytes).await?,
            Ok(None) => {
                let reason = "this coordinator does not have it".to_owned();
                write_message(&mut send, &Message::Refused(Refused { retry: false, reason })).await?;
            }
            Err(error) => write_message(&mut send, &no(format!("this coordinator cannot read it: {error}"))).await?,
        },
        Some(other) => return Err(TransportError::Unexpected { expected: "a coordinator's question", got: other.id() }),
        None => {}
    }
    let _ = send.finish();
    Ok(())
}

const fn no(reason: String) -> Message {
    Message::Refused(Refused { retry: true, reason })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(io::Error::other("the coordinator stops")))
}

/// A connection to another, or when it was not to be had.
type Line = Arc<tokio::sync::Mutex<Option<Result<Connection, Instant>>>>;

/// Connections to the others, opened when there is something to ask.
struct Links {
    dialler: Dialler,
    lines: Mutex<BTreeMap<u64, Line>>,
}

impl Links {
    async fn to(&self, member: &Member) -> Result<Connection, TransportError> {
        let line = self.lines.lock().unwrap_or_else(PoisonError::into_inner).entry(member.id()).or_default().clone();
        // One dials for all that wait: places for connections are few.
        let mut line = line.lock().await;
        match &*line {
            Some(Ok(connection)) if connection.close_reason().is_none() => return Ok(connection.clone()),
            Some(Err(at)) if at.elapsed() < AGAIN => {
                return Err(TransportError::Lost("that coordinator was not there a moment ago".to_owned()));
            }
            _ => {}
        }
        let dialled = self.dialler.dial(member).await;
        *line = Some(match &dialled {
            Ok(connection) => Ok(connection.clone()),
            Err(_) => Err(Instant::now()),
        });
        dialled
    }

    async fn put(&self, member: &Member, blob: BlobRef, bytes: &[u8]) -> Result<(), TransportError> {
        store(&self.to(member).await?, 0, blob, bytes).await
    }

    async fn get(&self, member: &Member, blob: BlobRef) -> Result<Vec<u8>, TransportError> {
        fetch(&self.to(member).await?, blob, MAX_BYTES).await
    }
}

/// A folder, and the others' folders.
pub(super) struct Replicas {
    own: u64,
    folder: Arc<Folder>,
    links: Arc<Links>,
    electorate: watch::Receiver<Electorate>,
    runtime: tokio::runtime::Handle,
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replicas").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Replicas {
    /// Must be called within a tokio runtime. Keeps up with the facts as long as the member is there.
    pub(super) fn start(folder: Arc<Folder>, raft: &Arc<RaftConsensus>, ledger: SharedLedger) -> Self {
        let links = Arc::new(Links { dialler: raft.dialler(), lines: Mutex::default() });
        let runtime = tokio::runtime::Handle::current();
        let (own, electorate) = (raft.me().id(), raft.electorate());
        runtime.spawn(keep_up((folder.clone(), links.clone()), Arc::downgrade(raft), ledger));
        Self { own, folder, links, electorate, runtime }
    }

    fn others(&self) -> Vec<(Member, bool)> {
        let electorate = self.electorate.borrow();
        let voters = electorate.voters.iter().map(|m| (m.clone(), true));
        let all = voters.chain(electorate.learners.iter().map(|m| (m.clone(), false)));
        all.filter(|(m, _)| m.id() != self.own).collect()
    }

    /// Confirmations of other voters that make a majority together with this one's disk.
    fn needed(&self) -> usize {
        let electorate = self.electorate.borrow();
        let own = electorate.voters.iter().any(|m| m.id() == self.own);
        (electorate.voters.len() / 2 + 1).saturating_sub(usize::from(own))
    }
}

impl Backing for Replicas {
    fn put(&self, blob: BlobRef, bytes: &[u8]) -> io::Result<()> {
        self.folder.put(blob, bytes)?;
        let (others, needed) = (self.others(), self.needed());
        if others.is_empty() {
            return Ok(());
        }
        let shared: Arc<Vec<u8>> = Arc::new(bytes.to_vec());
        let (sender, answers) = channel();
        for (member, votes) in others {
            let (links, bytes, sender) = (self.links.clone(), shared.clone(), sender.clone());
            self.runtime.spawn(async move {
                let put = tokio::time::timeout(PATIENCE, links.put(&member, blob, &bytes)).await;
                let put = put.unwrap_or(Err(TransportError::Timeout(PATIENCE.as_secs())));
                if let Err(error) = &put {
                    tracing::debug!(coordinator = member.service, %error, "a blob was not put; it will be asked for");
                }
                let _ = sender.send(votes && put.is_ok());
            });
        }
        drop(sender);
        let (mut have, until) = (0, Instant::now() + PATIENCE);
        while have < needed {
            match answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(kept) => have += usize::from(kept),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    let text = format!("{have} of the {needed} other coordinators needed have it; bring the others back");
                    return Err(io::Error::other(text));
                }
            }
        }
        Ok(())
    }

    fn get(&self, blob: BlobRef) -> io::Result<Option<Vec<u8>>> {
        if let Some(bytes) = self.folder.get(blob)? {
            return Ok(Some(bytes));
        }
        let others: Vec<Member> = self.others().into_iter().map(|(member, _)| member).collect();
        let patience = (PATIENCE + AGAIN) * u32::try_from(others.len() + 1).unwrap_or(u32::MAX);
        let (sender, answer) = channel();
        let links = self.links.clone();
        self.runtime.spawn(async move {
            let _ = sender.send(ask(&links, &others, blob).await);
        });
        match answer.recv_timeout(patience) {
            Ok(Asked::Here(bytes)) => {
                self.folder.put(blob, &bytes)?;
                Ok(Some(bytes))
            }
            Ok(Asked::Nowhere) => Ok(None),
            Ok(Asked::Unknown) | Err(_) => Err(io::Error::new(UNREACHED, "a coordinator that may have it is away")),
        }
    }

    fn has(&self, blob: BlobRef) -> bool {
        self.folder.has(blob)
    }

    fn find(&self, blob: BlobRef) -> io::Result<bool> {
        Ok(self.folder.has(blob) || self.get(blob)?.is_some())
    }

    fn remove(&self, blob: BlobRef) {
        self.folder.remove(blob);
    }

    fn collect(&self, live: &BTreeSet<BlobRef>) -> io::Result<()> {
        self.folder.collect_older(live, YOUNG)
    }
}

/// What the others said of a blob.
enum Asked {
    Here(Vec<u8>),
    /// Every one of them answered that it has none.
    Nowhere,
    /// Not all could be asked.
    Unknown,
}

/// Asks one after the other.
async fn ask(links: &Links, others: &[Member], blob: BlobRef) -> Asked {
    let mut all = true;
    for member in others {
        let answer = tokio::time::timeout(PATIENCE, links.get(member, blob)).await;
        match answer.unwrap_or(Err(TransportError::Timeout(PATIENCE.as_secs()))) {
            Ok(bytes) => return Asked::Here(bytes),
            Err(TransportError::Refused { retry: false, .. }) => {}
            Err(error) => {
                tracing::debug!(coordinator = member.service, %error, "a coordinator could not be asked for a blob");
                all = false;
            }
        }
    }
    if all { Asked::Nowhere } else { Asked::Unknown }
}

/// What the facts name.
fn named(ledger: &SharedLedger) -> BTreeSet<BlobRef> {
    ledger.lock().blobs().into_values().flatten().collect()
}

/// Fetches what the facts name and is not here, and removes what they do not name, while another leads.
async fn keep_up((folder, links): (Arc<Folder>, Arc<Links>), raft: Weak<RaftConsensus>, ledger: SharedLedger) {
    loop {
        tokio::time::sleep(KEEP_UP).await;
        let Some(member) = raft.upgrade() else { return };
        let (own, role, electorate) = (member.me().id(), member.role(), member.electorate());
        drop(member);
        if matches!(*role.borrow(), Role::Stopped { .. }) {
            return;
        }
        let others: Vec<Member> = electorate.borrow().all().filter(|m| m.id() != own).cloned().collect();
        let lacking: Vec<BlobRef> = named(&ledger).into_iter().filter(|blob| !folder.has(*blob)).collect();
        for blob in lacking {
            if let Asked::Here(bytes) = ask(&links, &others, blob).await {
                let folder = folder.clone();
                if let Err(error) = blocking(move || folder.put(blob, &bytes)).await {
                    tracing::warn!(%error, "a blob of a job cannot be kept; free space");
                }
            }
        }
        if matches!(*role.borrow(), Role::Follower { leader: Some(_) }) {
            let folder = folder.clone();
            // As they are now: fetching took its time.
            let needed = named(&ledger);
            if let Err(error) = blocking(move || folder.collect_older(&needed, YOUNG)).await {
                tracing::warn!(%error, "old blobs were not removed; they only take space");
            }
        }
    }
}
