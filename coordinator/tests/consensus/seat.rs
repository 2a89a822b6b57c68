//! Members over loopback with real files: a seat outlives the member that sits in it, as a folder outlives a process.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::board::{Board, Book};
use obelysk_coordinator::consensus::raft::core::Pace;
use obelysk_coordinator::consensus::raft::member::Member;
use obelysk_coordinator::consensus::raft::{Begin, PeerIdentity, RaftConsensus, Start};
use obelysk_coordinator::consensus::{Consensus, ProposeError, Role};
use obelysk_coordinator::identity::Authority;
use obelysk_node::identity::{NodeKey, unix_now};
use tempfile::TempDir;

/// Nothing on loopback takes this long.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Times 20 ms that a killed member's socket may take to close.
const CLOSING_TRIES: u32 = 100;

/// A cluster's authority and what all its machines applied.
#[derive(Debug)]
pub struct Cluster {
    pub authority: Authority,
    pub board: Arc<Mutex<Board>>,
    pub pace: Pace,
    pub ballast: usize,
}

impl Cluster {
    pub fn new(pace: Pace, ballast: usize) -> Self {
        Self { authority: Authority::generate().expect("random"), board: Arc::default(), pace, ballast }
    }

    /// An identity of a coordinator that may or may not be a member.
    pub fn identity(&self) -> (Arc<PeerIdentity>, NodeKey) {
        let key = NodeKey::generate().expect("random");
        let request = key.request().expect("made");
        let certificate = self.authority.certify_coordinator(&request, unix_now()).expect("certified");
        let copy = NodeKey::from_pkcs8(&key.to_pkcs8()).expect("copied");
        let authority = self.authority.certificate().clone();
        (PeerIdentity::new(self.authority.cluster(), authority, key, certificate).expect("made"), copy)
    }

    pub fn seat(&self, begin: Begin) -> Seat {
        let identity = self.identity().0;
        let place = std::net::UdpSocket::bind(("127.0.0.1", 0)).and_then(|s| s.local_addr()).expect("a free port");
        let folder = tempfile::tempdir().expect("folder");
        let mut seat = Seat { folder, identity, place, begin, member: None, progress: Arc::default() };
        seat.sit(self);
        seat
    }
}

#[derive(Debug)]
pub struct Seat {
    pub folder: TempDir,
    pub identity: Arc<PeerIdentity>,
    pub place: SocketAddr,
    pub begin: Begin,
    pub member: Option<Arc<RaftConsensus>>,
    pub progress: Arc<Mutex<(usize, usize)>>,
}

impl Seat {
    /// Starts, or starts again.
    pub fn sit(&mut self, cluster: &Cluster) {
        *self.progress.lock().expect("no panic") = (0, 0);
        let start = Start {
            folder: self.folder.path().to_owned(),
            identity: self.identity.clone(),
            listen: self.place,
            peer: String::new(),
            service: self.place.to_string(),
            begin: self.begin.clone(),
            pace: cluster.pace,
            tick: Duration::from_millis(100),
            questions: None,
        };
        let (board, progress) = (cluster.board.clone(), self.progress.clone());
        let book =
            || Box::new(Book { board: board.clone(), progress: progress.clone(), ballast: cluster.ballast, ..Book::default() });
        // The socket of a member that was killed is closed by the endpoint's own task, a moment later.
        let mut started = RaftConsensus::start(start.clone(), book());
        for _ in 0..CLOSING_TRIES {
            if started.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
            started = RaftConsensus::start(start.clone(), book());
        }
        self.member = Some(started.expect("starts"));
    }

    /// As a crash: nothing is said to anybody.
    pub fn kill(&mut self) {
        self.member = None;
    }

    pub fn me(&self) -> Member {
        self.up().me().clone()
    }

    pub fn up(&self) -> &Arc<RaftConsensus> {
        self.member.as_ref().expect("it sits")
    }

    pub fn leads(&self) -> Option<u64> {
        match *self.member.as_ref()?.role().borrow() {
            Role::Leader { term } => Some(term),
            _ => None,
        }
    }

    pub fn pages(&self) -> usize {
        self.progress.lock().expect("no panic").0
    }

    pub fn restored(&self) -> usize {
        self.progress.lock().expect("no panic").1
    }
}

/// Waits until it holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what} did not come to pass");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    begun.elapsed()
}

/// Waits for a leader among these; its place and term.
pub async fn leader(seats: &[Seat]) -> (usize, u64) {
    let found = || seats.iter().enumerate().find_map(|(n, seat)| Some((n, seat.leads()?)));
    until("a leader", || found().is_some()).await;
    found().expect("just now")
}

/// Proposes these numbers at whoever leads, until each is known to be kept.
pub async fn keep(seats: &[Seat], numbers: std::ops::Range<u64>) {
    let begun = Instant::now();
    let mut left: Vec<u64> = numbers.collect();
    while !left.is_empty() {
        assert!(begun.elapsed() < PATIENCE, "{} numbers were not kept", left.len());
        let (n, term) = leader(seats).await;
        let entries = left.iter().map(|n| n.to_le_bytes().to_vec()).collect();
        match seats[n].up().propose(term, entries).await {
            Ok(()) => left.clear(),
            Err(ProposeError::NotLeader { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(other) => panic!("{other}"),
        }
    }
}
