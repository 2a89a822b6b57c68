//! A machine that remembers what it was given, and the board on which all machines of a cluster compare notes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use obelysk_coordinator::consensus::Machine;
use obelysk_coordinator::consensus::raft::member::Member;

/// SplitMix64: small, seeded, and the same on every machine.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn percent(&mut self, p: u64) -> bool {
        self.below(100) < p
    }
}

/// What was applied where, by anybody first; and the first contradiction.
#[derive(Debug, Default)]
pub struct Board {
    pub agreed: BTreeMap<u64, u64>,
    pub broken: Option<String>,
}

/// Applied entries, in order: (index, number).
#[derive(Debug, Default)]
pub struct Book {
    pub board: Arc<Mutex<Board>>,
    pub pages: Vec<(u64, u64)>,
    /// Entries this book has, and snapshots it was given, for those who gave it away.
    pub progress: Arc<Mutex<(usize, usize)>>,
    /// Makes snapshots large.
    pub ballast: usize,
}

impl Book {
    pub fn on(board: &Arc<Mutex<Board>>) -> Self {
        Self { board: board.clone(), ..Self::default() }
    }

    /// What `snapshot` wrote.
    pub fn read(snapshot: &[u8]) -> Vec<(u64, u64)> {
        let word = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("eight bytes"));
        let count = word(&snapshot[..8]) as usize;
        snapshot[8..8 + 16 * count].chunks(16).map(|c| (word(&c[..8]), word(&c[8..]))).collect()
    }
}

impl Machine for Book {
    fn apply(&mut self, index: u64, entry: &[u8]) {
        let Some(number) = entry.first_chunk().map(|b| u64::from_le_bytes(*b)) else { return };
        let mut board = self.board.lock().expect("no panic");
        if self.pages.last().is_some_and(|(last, _)| *last >= index) {
            board.broken = Some(format!("index {index} was applied after {:?}", self.pages.last()));
        }
        self.pages.push((index, number));
        self.progress.lock().expect("no panic").0 = self.pages.len();
        let first = *board.agreed.entry(index).or_insert(number);
        if first != number {
            board.broken = Some(format!("at index {index} one applied {first}, another {number}"));
        }
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut bytes = (self.pages.len() as u64).to_le_bytes().to_vec();
        for (index, number) in &self.pages {
            bytes.extend_from_slice(&index.to_le_bytes());
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.resize(bytes.len() + self.ballast, 7);
        bytes
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), String> {
        self.pages = Self::read(snapshot);
        let restored = self.progress.lock().expect("no panic").1 + 1;
        *self.progress.lock().expect("no panic") = (self.pages.len(), restored);
        let mut board = self.board.lock().expect("no panic");
        let foreign = self.pages.iter().find(|(index, number)| board.agreed.get(index) != Some(number)).copied();
        if let Some(page) = foreign {
            board.broken = Some(format!("a snapshot has {page:?}, which nobody applied"));
        }
        Ok(())
    }
}

/// The nth member of a test.
pub fn member(n: u64) -> Member {
    let mut key = [0xe1; 32];
    key[..8].copy_from_slice(&n.to_le_bytes());
    Member { key, peer: format!("c{n}.example:7451"), service: format!("c{n}.example:7450") }
}
