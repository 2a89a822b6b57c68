//! Blobs of jobs on the disks of a majority of the coordinators, so that whoever leads next has what the log names.
//!
//! A blob is put here before any fact names it, and counts as put when a majority of voters has it; whoever lacks one that the facts
//! name, or that a published model needs, asks the others for it. Where all coordinators share a bucket there is nothing of this to do.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use obelysk_node::error::TransportError;
use obelysk_node::transport::quinn::{Connection, RecvStream, SendStream};
use obelysk_node::transport::{
    CLOSE_DONE, Parts, answer_blob, answer_fetch, fetch_part, read_message, receive_blob, store, write_message,
};
use obelysk_protocol::wire::{BlobRef, BlobStored, Kept, KeptGet, Message, Refused};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::blobs::{Asked, BlobError, Blobs, Others, OthersLater};
use crate::consensus::raft::member::{MAX_MEMBERS, Member};
use crate::consensus::raft::{Dialler, Electorate, Questions, RaftConsensus};
use crate::consensus::{Consensus as _, Role};
use crate::ledger::SharedLedger;
use crate::server::named;

/// Largest result between coordinators: as large as a node's may be configured to be.
const MAX_BYTES: u64 = 4 << 30;
/// Largest file of a published model: more than any tensor file has.
const MAX_FILE_BYTES: u64 = 1 << 40;
/// How long a majority may take to have a blob, ...
const PATIENCE: Duration = Duration::from_secs(30);
/// ... and how much longer for so many bytes: a line slower than this is none.
const SLOWEST_BYTES_PER_S: u64 = 1 << 20;
/// One that could not be reached is not tried again so soon: what waits for it would wait for all.
const AGAIN: Duration = Duration::from_secs(3);
/// How often a coordinator looks whether it has what the facts name.
const KEEP_UP: Duration = Duration::from_secs(5);
/// Blobs on their way to one coordinator after a majority had them, in units of 1 KiB: what a slow one cannot take in time it asks for
/// later, instead of filling this one's memory.
const IN_FLIGHT_UNITS: u32 = 256 << 10;
const UNIT_BYTES: u64 = 1 << 10;

/// Answers other coordinators out of this one's store.
#[derive(Debug)]
pub(super) struct Answers {
    blobs: Blobs,
    ledger: SharedLedger,
}

impl Answers {
    pub(super) const fn new(blobs: Blobs, ledger: SharedLedger) -> Self {
        Self { blobs, ledger }
    }
}

impl Questions for Answers {
    fn answer(&self, send: SendStream, recv: RecvStream) -> Pin<Box<dyn Future<Output = Result<(), TransportError>> + Send>> {
        Box::pin(answer((self.blobs.clone(), self.ledger.clone()), send, recv))
    }
}

async fn answer(
    (blobs, ledger): (Blobs, SharedLedger),
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), TransportError> {
    match read_message(&mut recv).await? {
        Some(Message::BlobPut(put)) => {
            let bytes = receive_blob(&mut recv, put.blob, MAX_BYTES).await?;
            let answer = match blobs.put_here(put.blob, Arc::new(bytes)).await {
                Ok(()) => Message::BlobStored(BlobStored { blob: put.blob }),
                Err(error) => refused(true, format!("this coordinator cannot keep it: {error}")),
            };
            write_message(&mut send, &answer).await?;
        }
        Some(Message::BlobGet(get)) => match blobs.get_here(get.blob).await {
            Ok(bytes) => answer_blob(&mut send, get.blob, &bytes).await?,
            Err(error) => write_message(&mut send, &cannot_give(&error)).await?,
        },
        Some(Message::BlobFetch(part)) => match blobs.source_here(part.blob).await {
            Ok(source) => answer_fetch(&mut send, &*source, &part).await?,
            Err(error) => write_message(&mut send, &cannot_give(&error)).await?,
        },
        Some(Message::KeptGet(_)) => {
            let kept = lacking(&ledger, &blobs).await.0;
            write_message(&mut send, &Message::Kept(kept)).await?;
        }
        Some(other) => return Err(TransportError::Unexpected { expected: "a coordinator's question", got: other.id() }),
        None => {}
    }
    let _ = send.finish();
    Ok(())
}

fn cannot_give(error: &BlobError) -> Message {
    match error {
        BlobError::Missing { .. } | BlobError::Damaged { .. } => refused(false, "this coordinator does not have it".to_owned()),
        error => refused(true, format!("this coordinator cannot read it: {error}")),
    }
}

const fn refused(retry: bool, reason: String) -> Message {
    Message::Refused(Refused { retry, reason })
}

/// Of the blobs that the facts name, how many are not here, and which. Where all share a store it is never looked.
pub(crate) async fn lacking(ledger: &SharedLedger, blobs: &Blobs) -> (Kept, Vec<BlobRef>) {
    let named = named(ledger, blobs).await;
    let mut lacking = Vec::new();
    for blob in &named.blobs {
        if !blobs.is_shared() && !blobs.has(*blob).await.unwrap_or(false) {
            lacking.push(*blob);
        }
    }
    let sum = |all: &mut dyn Iterator<Item = &BlobRef>| all.fold(0_u64, |sum, blob| sum.saturating_add(blob.length));
    let kept = Kept {
        blobs: named.blobs.len() as u64,
        bytes: sum(&mut named.blobs.iter()),
        lacking: lacking.len() as u64,
        lacking_bytes: sum(&mut lacking.iter()),
    };
    (kept, lacking)
}

/// Asks a coordinator how much it has of what the facts name.
///
/// # Errors
/// [`TransportError`]: it cannot be reached, or answers something else.
pub(crate) async fn kept_by(raft: &RaftConsensus, member: &Member) -> Result<Kept, TransportError> {
    let ask = async {
        let connection = raft.dialler().dial(member).await?;
        let (mut send, mut recv) = connection.open_bi().await.map_err(|e| TransportError::Lost(e.to_string()))?;
        write_message(&mut send, &Message::KeptGet(KeptGet { id: member.id() })).await?;
        let _ = send.finish();
        let answer = read_message(&mut recv).await?;
        connection.close(CLOSE_DONE, b"asked");
        match answer {
            Some(Message::Kept(kept)) => Ok(kept),
            Some(other) => Err(TransportError::Unexpected { expected: "how much it has", got: other.id() }),
            None => Err(TransportError::Truncated("before an answer")),
        }
    };
    tokio::time::timeout(PATIENCE, ask).await.unwrap_or(Err(TransportError::Timeout(PATIENCE.as_secs())))
}

/// A connection to another, or when it was not to be had.
type Line = Arc<tokio::sync::Mutex<Option<Result<Connection, Instant>>>>;

/// What may be under way to each of the others.
#[derive(Default)]
struct Room(Mutex<BTreeMap<u64, Arc<Semaphore>>>);

impl Room {
    /// Room for a blob among those under way to a member, when there is some.
    async fn take(&self, member: u64, blob: BlobRef) -> Option<OwnedSemaphorePermit> {
        let all = || Arc::new(Semaphore::new(IN_FLIGHT_UNITS as usize));
        let room = self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(member).or_insert_with(all).clone();
        room.acquire_many_owned(units(blob)).await.ok()
    }
}

/// Connections to the others, opened when there is something to ask.
struct Links {
    dialler: Dialler,
    lines: Mutex<BTreeMap<u64, Line>>,
    room: Room,
    /// Where what is asked for arrives.
    parts: Arc<Parts>,
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
        let put = async { store(&self.to(member).await?, 0, blob, bytes).await };
        within(blob, put).await
    }

    /// Asks one after the other.
    async fn ask(&self, others: &[Member], blob: BlobRef) -> Asked {
        let mut all = true;
        for member in others {
            let get = async { fetch_part(&self.to(member).await?, &self.parts, blob, MAX_FILE_BYTES).await };
            match within(blob, get).await {
                Ok(whole) => return Asked::Here(whole),
                Err(TransportError::Refused { retry: false, .. }) => {}
                Err(error) => {
                    tracing::debug!(coordinator = member.service, %error, "a coordinator could not be asked for a blob");
                    all = false;
                }
            }
        }
        if all { Asked::Nowhere } else { Asked::Unknown }
    }
}

/// What a blob takes of the room; one larger than all of it takes all.
fn units(blob: BlobRef) -> u32 {
    u32::try_from(blob.length.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).clamp(1, IN_FLIGHT_UNITS)
}

async fn within<T>(blob: BlobRef, work: impl Future<Output = Result<T, TransportError>>) -> Result<T, TransportError> {
    let patience = PATIENCE + Duration::from_secs(blob.length / SLOWEST_BYTES_PER_S);
    tokio::time::timeout(patience, work).await.unwrap_or(Err(TransportError::Timeout(patience.as_secs())))
}

/// The others' stores.
pub(super) struct Replicas {
    own: u64,
    links: Arc<Links>,
    electorate: watch::Receiver<Electorate>,
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replicas").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Replicas {
    /// Must be called within a tokio runtime. Keeps up with the facts as long as the member is there.
    pub(super) fn start(blobs: &Blobs, parts: Parts, raft: &Arc<RaftConsensus>, ledger: SharedLedger) {
        let (lines, room) = (Mutex::default(), Room::default());
        let links = Arc::new(Links { dialler: raft.dialler(), lines, room, parts: Arc::new(parts) });
        let others = Self { own: raft.me().id(), links, electorate: raft.electorate() };
        blobs.among(Arc::new(others));
        tokio::spawn(keep_up(blobs.clone(), Arc::downgrade(raft), ledger));
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

    async fn spread(&self, blob: BlobRef, bytes: Arc<Vec<u8>>) -> Result<(), String> {
        let (others, needed) = (self.others(), self.needed());
        let (sender, mut answers) = mpsc::channel(2 * MAX_MEMBERS);
        // Whoever still waits for room when this ends is left to ask for the blob.
        let (enough, _) = watch::channel(());
        for (member, votes) in others {
            let (links, bytes, sender, mut enough) = (self.links.clone(), bytes.clone(), sender.clone(), enough.subscribe());
            tokio::spawn(async move {
                let _room = tokio::select! {
                    room = links.room.take(member.id(), blob) => room,
                    _ = enough.changed() => return,
                };
                let put = links.put(&member, blob, &bytes).await;
                if let Err(error) = &put {
                    tracing::debug!(coordinator = member.service, %error, "a blob was not put; it will be asked for");
                }
                let _ = sender.try_send(votes && put.is_ok());
            });
        }
        drop((sender, bytes));
        let mut have = 0;
        while have < needed {
            match answers.recv().await {
                Some(kept) => have += usize::from(kept),
                None => return Err(format!("{have} of the {needed} other coordinators needed have it; bring the others back")),
            }
        }
        Ok(())
    }
}

impl Others for Replicas {
    fn spread(&self, blob: BlobRef, bytes: Arc<Vec<u8>>) -> OthersLater<'_, Result<(), String>> {
        Box::pin(Self::spread(self, blob, bytes))
    }

    fn ask(&self, blob: BlobRef) -> OthersLater<'_, Asked> {
        Box::pin(async move {
            let others: Vec<Member> = self.others().into_iter().map(|(member, _)| member).collect();
            self.links.ask(&others, blob).await
        })
    }
}

/// Fetches what the facts name and is not here.
async fn keep_up(blobs: Blobs, raft: Weak<RaftConsensus>, ledger: SharedLedger) {
    loop {
        tokio::time::sleep(KEEP_UP).await;
        let Some(member) = raft.upgrade() else { return };
        let role = member.role();
        drop(member);
        if matches!(*role.borrow(), Role::Stopped { .. }) {
            return;
        }
        for blob in lacking(&ledger, &blobs).await.1 {
            if let Err(error) = blobs.find(blob).await {
                tracing::debug!(%error, "a blob that the facts name is not here yet");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_larger_than_all_the_room_takes_all_of_it() {
        let blob = |length| BlobRef { digest: [0; 32], length };
        assert_eq!((units(blob(0)), units(blob(1025)), units(blob(u64::MAX))), (1, 2, IN_FLIGHT_UNITS));
    }

    #[tokio::test]
    async fn a_slow_member_holds_so_many_bytes_and_holds_up_nobody_else() {
        let (room, quarter) = (Room::default(), BlobRef { digest: [0; 32], length: 64 << 20 });
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(room.take(1, quarter).await.expect("room"));
        }
        let soon = Duration::from_millis(50);
        assert!(tokio::time::timeout(soon, room.take(1, quarter)).await.is_err(), "more than may be under way");
        assert!(tokio::time::timeout(soon, room.take(2, quarter)).await.is_ok(), "another member");
        held.pop();
        assert!(tokio::time::timeout(soon, room.take(1, quarter)).await.is_ok());
    }
}
