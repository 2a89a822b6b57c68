//! The log of a cluster that ends with its process: nothing is kept, everything is agreed at once.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use super::{Consensus, MAX_ENTRY_BYTES, Machine, Proposal, ProposeError, Role};

/// One member, no disk.
pub struct Memory {
    machine: Mutex<(u64, Box<dyn Machine>)>,
    role: watch::Sender<Role>,
}

/// Its only term.
const TERM: u64 = 1;

impl Memory {
    /// Leads at once.
    #[must_use]
    pub fn new(machine: Box<dyn Machine>) -> Self {
        Self { machine: Mutex::new((0, machine)), role: watch::Sender::new(Role::Leader { term: TERM }) }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memory")
    }
}

impl Consensus for Memory {
    fn propose(&self, term: u64, entries: Vec<Vec<u8>>) -> Proposal {
        let outcome = check(term, TERM, &entries);
        if outcome.is_ok() {
            let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
            for entry in entries {
                machine.0 += 1;
                let index = machine.0;
                machine.1.apply(index, &entry);
            }
        }
        Box::pin(std::future::ready(outcome))
    }

    fn role(&self) -> watch::Receiver<Role> {
        self.role.subscribe()
    }
}

/// What can be wrong with a proposal before anything is written.
pub(super) fn check(term: u64, own: u64, entries: &[Vec<u8>]) -> Result<(), ProposeError> {
    if term != own {
        return Err(ProposeError::NotLeader { leader: None });
    }
    match entries.iter().map(Vec::len).find(|bytes| *bytes > MAX_ENTRY_BYTES) {
        Some(bytes) => Err(ProposeError::TooLarge { bytes }),
        None => Ok(()),
    }
}
