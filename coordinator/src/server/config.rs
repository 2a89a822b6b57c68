//! The coordinator's one configuration struct, that of a cluster on one machine, and what can go wrong at start.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use obelysk_node::error::TransportError;
use obelysk_node::identity::private_folder;
use obelysk_node::transport::Parts;
use serde::Deserialize;

use super::store::StoreError;
use crate::blobs::{BlobError, Blobs, StoreSettings};
use crate::consensus::SoloError;
use crate::core::Policy;
use crate::core::demand::ScalePolicy;
use crate::identity::AdmissionError;
use crate::replica::Place;

/// Settings of a coordinator process; every field has a default.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CoordinatorConfig {
    /// UDP address to listen on.
    pub listen: SocketAddr,
    /// Host name or address to print for nodes; empty means the listening address.
    pub advertise: String,
    /// UDP address for other coordinators, `host:port`; empty: this one is alone.
    pub peer_listen: String,
    /// A lease without progress ends after this.
    pub lease_ms: u64,
    /// A disconnected node may come back within this.
    pub away_grace_ms: u64,
    /// A silent connection counts as broken after this.
    pub idle_timeout_ms: u32,
    /// A job that no node can work on fails after this.
    pub wait_deadline_ms: u64,
    /// Pause before a failed work item is tried again, times its failures.
    pub retry_pause_ms: u64,
    /// Largest blob taken from a node or client.
    pub max_blob_bytes: u64,
    /// Memory for the blobs of all jobs.
    pub max_store_bytes: u64,
    /// Where blobs lie: a folder, or `s3://BUCKET/PREFIX`; empty: memory.
    pub store: String,
    /// Of a bucket: the server, `https://host:port`; empty: Amazon's.
    pub store_endpoint: String,
    /// Of a bucket: its region; empty: us-east-1.
    pub store_region: String,
    /// Of a bucket: a file of mode 0600 with the key; empty: from the environment.
    pub store_credentials: String,
    /// Results checked at the same time; 0 means one per core.
    pub check_threads: usize,
    /// Private folder for what arrives in pieces for a bucket; empty: memory, and then no blob is larger than `max_blob_bytes`. `coordinator
    /// serve` has it in its own folder; no setting.
    #[serde(skip)]
    pub arriving: PathBuf,
    /// TCP address for metrics, `host:port`; empty: none.
    pub metrics_listen: String,
    /// Folder for the event logs of jobs; empty: none. `coordinator serve` sets `jobs` in its folder.
    pub job_logs: PathBuf,
    /// What waits should be done within this by the number of nodes that the metrics ask for.
    pub scale_target_s: u64,
    /// That number is never below this.
    pub scale_min: u32,
    /// Nor above this.
    pub scale_max: u32,
    /// It falls only when less was wanted for this long.
    pub scale_settle_s: u64,
}

impl Default for CoordinatorConfig {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 7450).into(),
            advertise: String::new(),
            peer_listen: String::new(),
            lease_ms: 60_000,
            away_grace_ms: 20_000,
            idle_timeout_ms: obelysk_node::transport::IDLE_TIMEOUT_MS,
            wait_deadline_ms: 600_000,
            retry_pause_ms: 1_000,
            max_blob_bytes: 1 << 30,
            max_store_bytes: 8 << 30,
            store: String::new(),
            store_endpoint: String::new(),
            store_region: String::new(),
            store_credentials: String::new(),
            check_threads: 0,
            arriving: PathBuf::new(),
            metrics_listen: "127.0.0.1:7451".to_owned(),
            job_logs: PathBuf::new(),
            scale_target_s: 600,
            scale_min: 0,
            scale_max: 64,
            scale_settle_s: 300,
        }
    }
}

impl CoordinatorConfig {
    /// Checks the values that a type cannot.
    ///
    /// # Errors
    /// [`CoordinatorError::Config`] naming the field.
    pub fn validate(&self) -> Result<(), CoordinatorError> {
        let bad = |field, cause| Err(CoordinatorError::Config { field, cause });
        if self.lease_ms == 0 {
            return bad("lease_ms", "must not be 0");
        }
        // Below this the keep-alive, a third of it, would flood the link.
        if self.idle_timeout_ms < 300 {
            return bad("idle_timeout_ms", "must be at least 300");
        }
        if self.max_blob_bytes == 0 || self.max_store_bytes < self.max_blob_bytes {
            return bad("max_store_bytes", "must be at least max_blob_bytes, and that at least 1");
        }
        if self.scale_target_s == 0 {
            return bad("scale_target_s", "must not be 0");
        }
        if self.scale_min > self.scale_max {
            return bad("scale_min", "must be at most scale_max");
        }
        self.place()?;
        self.metrics_listen().map(|_| ())
    }

    /// Where metrics are served.
    ///
    /// # Errors
    /// [`CoordinatorError::Config`] when it is no address.
    pub fn metrics_listen(&self) -> Result<Option<SocketAddr>, CoordinatorError> {
        let cause = "must be an address and a port, such as 127.0.0.1:7451, or empty";
        let wrong = |_| CoordinatorError::Config { field: "metrics_listen", cause };
        (!self.metrics_listen.is_empty()).then(|| self.metrics_listen.parse().map_err(wrong)).transpose()
    }

    /// Where this coordinator is for nodes, clients and other coordinators; `None` when it is to be alone.
    ///
    /// # Errors
    /// [`CoordinatorError::Config`]: an address that no other machine could have.
    pub fn place(&self) -> Result<Option<Place>, CoordinatorError> {
        if self.peer_listen.is_empty() {
            return Ok(None);
        }
        let bad = |field, cause| CoordinatorError::Config { field, cause };
        let cause = "must be an address and a port, such as 0.0.0.0:7452, or empty";
        let listen: SocketAddr = self.peer_listen.parse().map_err(|_| bad("peer_listen", cause))?;
        let fixed = "must have a fixed port: the others keep it";
        let named = |field, at: SocketAddr| match (at.port(), at.ip().is_unspecified(), self.advertise.is_empty()) {
            (0, _, _) => Err(bad(field, fixed)),
            (_, true, true) => {
                Err(bad("advertise", "must name this machine where several coordinators listen on all its addresses"))
            }
            (_, false, true) => Ok(at.to_string()),
            (port, _, false) => Ok(format!("{}:{port}", self.advertise)),
        };
        Ok(Some(Place { listen, peer: named("peer_listen", listen)?, service: named("listen", self.listen)? }))
    }

    pub(super) const fn scale(&self) -> ScalePolicy {
        ScalePolicy {
            drain_target_ms: self.scale_target_s.saturating_mul(1000),
            min: self.scale_min,
            max: self.scale_max,
            settle_ms: self.scale_settle_s.saturating_mul(1000),
        }
    }

    /// Where blobs are to lie, as the settings say it.
    #[must_use]
    pub fn store(&self) -> StoreSettings {
        StoreSettings {
            place: self.store.clone(),
            endpoint: self.store_endpoint.clone(),
            region: self.store_region.clone(),
            credentials: self.store_credentials.clone(),
        }
    }

    /// Opens the blobs that the settings name.
    ///
    /// # Errors
    /// [`BlobError`]: no such place, no right to it, or it does not answer.
    pub async fn open_store(&self) -> Result<Blobs, BlobError> {
        if self.store.is_empty() {
            return Ok(Blobs::in_memory(self.max_store_bytes));
        }
        Blobs::open(&self.store(), self.max_store_bytes).await
    }

    /// Opens the place where blobs arrive: beside them in a folder, of a bucket in a private folder of this process, else in memory. What an
    /// earlier process left is gone on with; what is older than a day, or torn, goes.
    pub(super) fn open_parts(&self, blobs: &Blobs) -> Result<Arc<Parts>, CoordinatorError> {
        let folder = match blobs.folder() {
            _ if !blobs.is_durable() => None,
            Some(folder) => Some(folder.join("parts")),
            None => Some(self.arriving.clone()).filter(|folder| !folder.as_os_str().is_empty()),
        };
        let Some(folder) = folder else { return Ok(Arc::new(Parts::in_memory())) };
        let disk = |e: std::io::Error| TransportError::Disk { path: folder.clone(), cause: e.to_string() };
        private_folder(&folder).map_err(|e| TransportError::Disk { path: folder.clone(), cause: e.to_string() })?;
        // Also one that was there.
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).map_err(disk)?;
        Ok(Arc::new(Parts::open(&folder, super::MAX_PARTS_BYTES)?))
    }

    pub(super) const fn policy(&self) -> Policy {
        Policy {
            lease_ms: self.lease_ms,
            away_grace_ms: self.away_grace_ms,
            wait_deadline_ms: self.wait_deadline_ms,
            retry_pause_ms: self.retry_pause_ms,
        }
    }

    pub(super) fn check_threads(&self) -> usize {
        let all = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if self.check_threads == 0 { all() } else { self.check_threads }
    }
}

/// A whole cluster on one machine, for one command.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LocalConfig {
    /// Node processes to start.
    pub nodes: u32,
    /// Threads of each node; 0 shares the machine's out equally.
    pub threads_per_node: u32,
    /// The coordinator.
    pub coordinator: CoordinatorConfig,
}

impl Default for LocalConfig {
    fn default() -> Self {
        let listen = ([127, 0, 0, 1], 0).into();
        Self { nodes: 1, threads_per_node: 0, coordinator: CoordinatorConfig { listen, ..CoordinatorConfig::default() } }
    }
}

/// Why a coordinator does not start or does not answer.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// A setting is out of range.
    #[error("setting `{field}` {cause}; correct the coordinator's configuration")]
    Config {
        /// Name of the setting.
        field: &'static str,
        /// What is wrong with it.
        cause: &'static str,
    },
    /// The cluster's authority or its state cannot be used.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// The endpoint cannot be opened.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Too few nodes came.
    #[error("{joined} of {wanted} nodes joined within {seconds} s; check that they run and have this coordinator's address")]
    TooFewNodes {
        /// Nodes here.
        joined: usize,
        /// Nodes waited for.
        wanted: usize,
        /// How long.
        seconds: u64,
    },
    /// The address for metrics cannot be bound.
    #[error("{0}")]
    Metrics(String),
    /// The specification is not a job.
    #[error(transparent)]
    Spec(#[from] obelysk_node::engine::CheckError),
    /// The blobs of running jobs fill the memory set aside for them, or cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log of the cluster's facts does not serve.
    #[error(transparent)]
    Log(#[from] SoloError),
    /// Another coordinator leads, or none.
    #[error("{0}")]
    NotLeading(String),
    /// Blobs cannot be kept.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// The coordinator has stopped.
    #[error("coordinator has stopped; start it again: what was submitted goes on")]
    Stopped,
    /// The job failed.
    #[error("job failed: {0}")]
    Job(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_files_are_the_defaults() {
        let coordinator: CoordinatorConfig =
            toml::from_str(include_str!("../../../configs/coordinator.toml")).expect("configs/coordinator.toml");
        assert_eq!(coordinator, CoordinatorConfig::default());
        coordinator.validate().expect("valid");
        let local: LocalConfig = toml::from_str(include_str!("../../../configs/local.toml")).expect("configs/local.toml");
        assert_eq!(local, LocalConfig::default());
        local.coordinator.validate().expect("valid");
    }

    #[test]
    fn several_coordinators_need_addresses_that_others_can_dial() {
        let place = |listen: &str, peer: &str, advertise: &str| {
            let listen = listen.parse().expect("an address");
            let (peer_listen, advertise) = (peer.to_owned(), advertise.to_owned());
            CoordinatorConfig { listen, peer_listen, advertise, ..CoordinatorConfig::default() }.place()
        };
        assert!(place("0.0.0.0:0", "", "").expect("alone").is_none());
        let own = place("10.0.0.1:7450", "10.0.0.1:7452", "").expect("reachable").expect("several");
        assert_eq!((own.peer.as_str(), own.service.as_str()), ("10.0.0.1:7452", "10.0.0.1:7450"));
        let named = place("0.0.0.0:7450", "0.0.0.0:7452", "c1.example").expect("named").expect("several");
        assert_eq!((named.peer.as_str(), named.service.as_str()), ("c1.example:7452", "c1.example:7450"));
        for (listen, peer, advertise, field) in [
            ("0.0.0.0:7450", "0.0.0.0:7452", "", "advertise"),
            ("10.0.0.1:0", "10.0.0.1:7452", "", "listen"),
            ("10.0.0.1:7450", "10.0.0.1:0", "", "peer_listen"),
            ("10.0.0.1:7450", "somewhere", "c1.example", "peer_listen"),
        ] {
            let error = place(listen, peer, advertise).expect_err("unusable").to_string();
            assert!(error.contains(&format!("`{field}`")), "{error}");
        }
    }

    #[test]
    fn what_arrives_lies_where_nobody_else_looks() {
        let place = tempfile::tempdir().expect("folder");
        let blobs = Blobs::local(&place.path().join("blobs"), 0).expect("opens");
        let folder = place.path().join("blobs").join("parts");
        std::fs::create_dir_all(&folder).expect("made");
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).expect("set");
        assert!(!CoordinatorConfig::default().open_parts(&blobs).expect("opens").is_in_memory());
        assert_eq!(std::fs::metadata(&folder).expect("there").permissions().mode() & 0o777, 0o700);
        assert!(CoordinatorConfig::default().open_parts(&Blobs::in_memory(1)).expect("opens").is_in_memory());
    }

    #[test]
    fn unknown_fields_are_refused() {
        assert!(toml::from_str::<CoordinatorConfig>("leese_ms = 1").is_err());
        assert!(toml::from_str::<LocalConfig>("coordinator = { speed = 1 }").is_err());
    }
}
