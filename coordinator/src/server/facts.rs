//! What a coordinator keeps when its process ends, and where.

use std::path::Path;
use std::sync::Arc;

use super::CoordinatorError;
use crate::blobs::Blobs;
use crate::consensus::raft::RaftConsensus;
use crate::consensus::{Consensus, Memory, Solo, SoloError};
use crate::evidence::Evidence;
use crate::ledger::{LedgerStorage, SharedLedger};

/// Memory for blobs at hand where no settings say how much.
const CACHE_BYTES: u64 = 1 << 30;

/// Facts, the log that agrees on them, and the blobs that they name.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Jobs, results, ends, documents: as far as they are agreed.
    pub ledger: SharedLedger,
    /// Agrees on what comes next.
    pub consensus: Arc<dyn Consensus>,
    /// Keeps blobs; without it they end with the process.
    pub blobs: Option<Blobs>,
    /// Whether another process goes on after this one. Then nodes are not dismissed when this one stops: they come back.
    pub outlive: bool,
    /// Where results that are not accepted are kept with all they were judged by.
    pub evidence: Option<Evidence>,
    /// This coordinator among several; `None`: it is alone.
    pub members: Option<Arc<RaftConsensus>>,
}

impl Facts {
    /// Ends with the process.
    #[must_use]
    pub fn in_memory() -> Self {
        let ledger = SharedLedger::default();
        let consensus = Arc::new(Memory::new(Box::new(ledger.clone())));
        Self { ledger, consensus, blobs: None, outlive: false, evidence: None, members: None }
    }

    /// In a folder of this process alone, created if need be: the log in `ledger`, blobs in `blobs`. Waits for the disk.
    ///
    /// # Errors
    /// [`CoordinatorError::Log`]: another process has the folder, it cannot be written, or the log is damaged.
    pub fn open(folder: &Path) -> Result<Self, CoordinatorError> {
        let facts = Self::alone(folder)?;
        let blobs = Blobs::local(&folder.join("blobs"), CACHE_BYTES)?;
        Ok(Self { blobs: Some(blobs), ..facts })
    }

    /// As [`Facts::open`], with blobs in this store.
    ///
    /// # Errors
    /// As [`Facts::open`].
    pub fn open_with(folder: &Path, blobs: Blobs) -> Result<Self, CoordinatorError> {
        Ok(Self { blobs: Some(blobs), ..Self::alone(folder)? })
    }

    /// As [`Facts::open`], for a coordinator that is to be one of several.
    pub(crate) fn alone(folder: &Path) -> Result<Self, SoloError> {
        let ledger = SharedLedger::default();
        let consensus = Arc::new(Solo::open(&folder.join("ledger"), Box::new(ledger.clone()))?);
        Ok(Self {
            ledger,
            consensus,
            blobs: None,
            outlive: true,
            evidence: Some(Evidence::of_coordinator(folder)),
            members: None,
        })
    }

    /// The authority's documents among these facts.
    #[must_use]
    pub fn storage(&self) -> LedgerStorage {
        LedgerStorage::new(self.ledger.clone(), self.consensus.clone())
    }
}
