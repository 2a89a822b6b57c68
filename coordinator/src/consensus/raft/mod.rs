//! Several coordinators as one: raft over QUIC and a file.
//!
//! [`core`] decides and is pure; [`storage`] keeps its log; [`transport`] carries its messages; [`wire`] is the bytes of both; a thread of
//! its own (`driver.rs`) does one after the other. One member alone is a majority of one, and can be grown to three while it runs.

mod admissible;
mod changes;
pub mod core;
mod driver;
pub mod log;
mod logger;
pub mod member;
pub mod storage;
pub mod transport;
pub mod wire;

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use obelysk_node::error::TransportError;
use obelysk_node::transport::listen_peers;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::{oneshot, watch};

use super::{Consensus, Machine, Proposal, ProposeError, Role};
pub use admissible::Refusal;
use core::{Core, Halt, Pace, genesis};
use driver::{Driver, Event};
use member::{Change, ChangeError, Member, Members};
use storage::{Store, StoreError};
use transport::Links;
pub use transport::{Dialler, PeerIdentity, Questions};
use wire::FormError;

/// Events that wait for a member; beyond that, messages are dropped, and callers told that nothing is known.
const MAX_EVENTS: usize = 1024;
/// A learner that has not caught up by then is left a learner, and the order may be given again.
const CATCH_UP: Duration = Duration::from_secs(60);
/// Pause between two looks at a learner.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How a member begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begin {
    /// With a cluster of its own, of this one member, in terms above this one, unless its log says otherwise.
    First(u64),
    /// Waiting to be added by one of these, unless its log says otherwise.
    Join(Vec<Member>),
}

/// A member to be.
#[derive(Debug, Clone)]
pub struct Start {
    /// Folder of the log; it must exist, and be the process's alone.
    pub folder: PathBuf,
    /// Key and certificate.
    pub identity: Arc<PeerIdentity>,
    /// UDP address for other coordinators.
    pub listen: SocketAddr,
    /// Where other coordinators reach it, `host:port`; empty: the address bound.
    pub peer: String,
    /// Where nodes and clients reach it, `host:port`.
    pub service: String,
    /// What to do without a log.
    pub begin: Begin,
    /// Time and size.
    pub pace: Pace,
    /// Length of a tick. A leader is missed after ten to twenty.
    pub tick: Duration,
    /// Answers what the others ask beside the consensus.
    pub questions: Option<Arc<dyn Questions>>,
}

/// Who the members are, as far as this one has applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Electorate {
    /// Those of whom a majority agrees.
    pub voters: Vec<Member>,
    /// Those that catch up.
    pub learners: Vec<Member>,
}

impl Electorate {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Member> {
        self.voters.iter().chain(&self.learners)
    }
}

/// Why a member does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its log.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state in its log.
    #[error(transparent)]
    Halt(#[from] Halt),
    /// Its beginning.
    #[error("the first coordinator's log cannot be begun: {0}; correct its settings")]
    Genesis(FormError),
    /// Its socket.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The system.
    #[error("the system gives no {0}; see its limits")]
    System(&'static str),
}

/// A member as its cluster sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberView {
    /// Its id.
    pub id: u64,
    /// Key and addresses.
    pub member: Member,
    /// Whether it has a vote; else it learns.
    pub votes: bool,
    /// Whether it was heard of lately; only the leader hears of all.
    pub live: bool,
}

/// The configuration as a member knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The member asked.
    pub own: u64,
    /// The leader's id; 0 when none is known.
    pub leader: u64,
    /// All members.
    pub members: Vec<MemberView>,
    /// How many of them learn.
    pub learners: usize,
    /// Index applied.
    pub applied: u64,
}

/// A member that runs. Dropping it is as good as a crash: everything that was promised is on disk.
pub struct RaftConsensus {
    me: Member,
    events: SyncSender<Event>,
    role: watch::Receiver<Role>,
    electorate: watch::Receiver<Electorate>,
    dialler: Dialler,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl RaftConsensus {
    /// Starts a member; must be called within a tokio runtime. Reads and checks its log first.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(start: Start, machine: Box<dyn Machine>) -> Result<Arc<Self>, StartError> {
        let key = start.identity.key();
        let (store, mut log) = Store::open(&start.folder, member::id_of(&key))?;
        let endpoint = listen_peers(start.listen, &start.identity.tls())?;
        let bound = endpoint.local_addr().map_err(|e| TransportError::Setup(e.to_string()))?;
        let peer = if start.peer.is_empty() { bound.to_string() } else { start.peer };
        let me = Member { key, peer, service: start.service };
        let seeds = match &start.begin {
            Begin::Join(seeds) => seeds.iter().map(|m| (m.id(), m.clone())).collect(),
            Begin::First(after) if log.last() == 0 => {
                log = genesis(std::slice::from_ref(&me), *after, machine.as_ref()).map_err(StartError::Genesis)?;
                store.write(&log.parts())?;
                Members::new()
            }
            Begin::First(_) => Members::new(),
        };
        let mut seed = [0; 8];
        SystemRandom::new().fill(&mut seed).map_err(|_| StartError::System("random bytes"))?;
        let core = Core::new(me.id(), u64::from_le_bytes(seed), start.pace, log, machine)?;
        let (events, inbox) = sync_channel(MAX_EVENTS);
        let links = Links::new(start.identity, endpoint, events.clone(), start.questions);
        let dialler = links.dialler();
        let (electorate_sender, electorate) = watch::channel(Electorate::default());
        let (role_sender, role) = watch::channel(Role::Follower { leader: None });
        let stop = Arc::new(AtomicBool::new(false));
        let mut driver =
            Driver::new((core, store, Some(links)), role_sender, stop.clone(), start.tick, (seeds, electorate_sender));
        let run = move || {
            let reason = catch_unwind(AssertUnwindSafe(|| driver.run(&inbox)));
            let reason = reason.unwrap_or_else(|_| "it met a state that cannot be; see its log, and start it again".to_owned());
            tracing::info!(reason, "this coordinator takes part no more");
            let _ = driver.role.send(Role::Stopped { reason: reason.clone() });
            driver.fail(&reason);
        };
        let thread = std::thread::Builder::new().name("consensus".to_owned()).spawn(run);
        let thread = Mutex::new(Some(thread.map_err(|_| StartError::System("thread"))?));
        Ok(Arc::new(Self { me, events, role, electorate, dialler, stop, thread }))
    }

    /// This member.
    #[must_use]
    pub const fn me(&self) -> &Member {
        &self.me
    }

    /// Who the members are, as far as this one has applied.
    #[must_use]
    pub fn electorate(&self) -> watch::Receiver<Electorate> {
        self.electorate.clone()
    }

    /// For questions to the others.
    #[must_use]
    pub fn dialler(&self) -> Dialler {
        self.dialler.clone()
    }

    async fn order(&self, event: impl FnOnce(oneshot::Sender<Result<(), ChangeError>>) -> Event) -> Result<(), ChangeError> {
        let (reply, answer) = oneshot::channel();
        self.events.try_send(event(reply)).map_err(|_| ChangeError::Busy)?;
        answer.await.unwrap_or(Err(ChangeError::NotLeader { leader: None }))
    }

    /// Adds a member: first it learns, and when it has caught up, it votes. May be said again when it failed on the way.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn add(&self, member: Member) -> Result<(), ChangeError> {
        let (id, until) = (member.id(), Instant::now() + CATCH_UP);
        loop {
            let step = self.order(|reply| Event::Change(Change::Learn(member.clone()), reply)).await;
            let step = match step {
                Err(ChangeError::Known(known)) if known == id => {
                    self.order(|reply| Event::Change(Change::Promote(id), reply)).await
                }
                other => other,
            };
            match step {
                Err(ChangeError::Known(known)) if known == id => return Ok(()),
                Ok(()) | Err(ChangeError::Busy | ChangeError::Behind { .. }) if Instant::now() < until => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                other => return other,
            }
        }
    }

    /// Takes a member in that learns, and does not vote yet. May be said again.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn learn(&self, member: Member) -> Result<(), ChangeError> {
        let (id, until) = (member.id(), Instant::now() + CATCH_UP);
        loop {
            match self.order(|reply| Event::Change(Change::Learn(member.clone()), reply)).await {
                Err(ChangeError::Known(known)) if known == id => return Ok(()),
                Err(ChangeError::Busy) if Instant::now() < until => tokio::time::sleep(LOOK_AGAIN).await,
                other => return other,
            }
        }
    }

    /// Gives a member that has caught up its vote.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn promote(&self, id: u64) -> Result<(), ChangeError> {
        self.order(|reply| Event::Change(Change::Promote(id), reply)).await
    }

    /// Takes a member out.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn remove(&self, id: u64) -> Result<(), ChangeError> {
        self.order(|reply| Event::Change(Change::Remove(id), reply)).await
    }

    /// Begins to move leadership to another voter; shows in [`Consensus::role`] when it came to pass.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn transfer(&self, to: u64) -> Result<(), ChangeError> {
        self.order(|reply| Event::Transfer(to, reply)).await
    }

    /// The configuration as this member knows it; `None` when it has stopped.
    pub async fn view(&self) -> Option<View> {
        let (reply, answer) = oneshot::channel();
        self.events.try_send(Event::View(reply)).ok()?;
        answer.await.ok()
    }

    /// Stops and waits until the log is free for another process. Blocks for as long as the disk takes for one write.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.events.try_send(Event::Wake);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let _ = thread.map(JoinHandle::join);
    }
}

impl Consensus for RaftConsensus {
    fn propose(&self, term: u64, entries: Vec<Vec<u8>>) -> Proposal {
        let (reply, answer) = oneshot::channel();
        // The order of the calls is that of the queue.
        let sent = self.events.try_send(Event::Propose(term, entries, reply));
        Box::pin(async move {
            match sent {
                Ok(()) => answer.await.unwrap_or_else(|_| Err(ProposeError::Failed("the coordinator stopped".to_owned()))),
                Err(std::sync::mpsc::TrySendError::Full(_)) => Err(ProposeError::Unknown),
                Err(std::sync::mpsc::TrySendError::Disconnected(_)) => {
                    Err(ProposeError::Failed("the coordinator stopped".to_owned()))
                }
            }
        })
    }

    fn step_down(&self, term: u64) {
        let _ = self.events.send(Event::StepDown(term));
    }

    fn role(&self) -> watch::Receiver<Role> {
        self.role.clone()
    }
}

impl Drop for RaftConsensus {
    fn drop(&mut self) {
        self.stop();
    }
}

impl std::fmt::Debug for RaftConsensus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftConsensus").field("me", &self.me.id()).field("role", &*self.role.borrow()).finish_non_exhaustive()
    }
}
