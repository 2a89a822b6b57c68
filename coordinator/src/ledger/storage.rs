//! The authority's documents in the log: a write returns when it is agreed. Refuses to write where this member does not lead.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use zeroize::Zeroizing;

use super::{Entry, Sealed, SharedLedger};
use crate::consensus::{Consensus, ProposeError, Role};
use crate::identity::{Document, Storage, StorageError};

/// [`Storage`] over the ledger.
#[derive(Debug)]
pub struct LedgerStorage {
    ledger: SharedLedger,
    consensus: Arc<dyn Consensus>,
}

impl LedgerStorage {
    /// Reads from the ledger, writes by the consensus that feeds it.
    #[must_use]
    pub fn new(ledger: SharedLedger, consensus: Arc<dyn Consensus>) -> Self {
        Self { ledger, consensus }
    }

    /// Takes over what another storage holds, as far as nothing is here yet; says whether there was anything.
    ///
    /// # Errors
    /// [`StorageError`]: the old cannot be read or the new not be written.
    pub fn import(&self, old: &dyn Storage) -> Result<bool, StorageError> {
        let mut any = false;
        // The registry first: an authority without its registry would begin with nobody admitted and nobody evicted.
        for which in [Document::Registry, Document::Authority] {
            if self.read(which)?.is_none()
                && let Some(bytes) = old.read(which)?
            {
                self.write(which, &bytes)?;
                any = true;
            }
        }
        Ok(any)
    }
}

impl Storage for LedgerStorage {
    fn read(&self, document: Document) -> Result<Option<Zeroizing<Vec<u8>>>, StorageError> {
        Ok(self.ledger.lock().document(document))
    }

    fn write(&self, document: Document, bytes: &[u8]) -> Result<(), StorageError> {
        match self.consensus.role().borrow().clone() {
            Role::Leader { term } => self.write_in(term, document, bytes),
            Role::Follower { leader } => Err(ProposeError::NotLeader { leader }.into()),
            Role::Stopped { reason } => Err(ProposeError::Failed(reason).into()),
        }
    }

    fn term(&self) -> u64 {
        match *self.consensus.role().borrow() {
            Role::Leader { term } => term,
            _ => 0,
        }
    }

    fn write_in(&self, term: u64, document: Document, bytes: &[u8]) -> Result<(), StorageError> {
        let entry = Entry::Document { which: document, bytes: Sealed(Zeroizing::new(bytes.to_vec())) };
        Ok(wait(self.consensus.propose(term, vec![entry.encode()]))?)
    }
}

/// Runs a future on this thread, which sleeps meanwhile: storage is used from threads that may.
fn wait<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(outcome) => return outcome,
            Poll::Pending => std::thread::park(),
        }
    }
}
