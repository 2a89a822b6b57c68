//! The node's one configuration struct, read from `node.toml`; every field has a default.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use crate::device::DeviceChoice;
use crate::error::NodeError;

/// Settings of a node process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Name for people: up to 63 bytes.
    #[serde(default = "default_name")]
    pub name: String,
    /// File with a token, for the first join; empty: none. A member needs none.
    #[serde(default)]
    pub token_file: PathBuf,
    /// Folder for this node's identity, used by one process at a time; empty: `nodes/NAME` in the home folder.
    #[serde(default)]
    pub state: PathBuf,
    /// CPU threads offered; 0 means all of this machine.
    #[serde(default)]
    pub threads: u32,
    /// What to compute on: `cpu`, or `cuda:0` for the first card, with the processors for what it cannot do.
    #[serde(default = "default_device")]
    pub device: String,
    /// Whether what the card cannot do is refused instead.
    #[serde(default)]
    pub gpu_only: bool,
    /// Memory for the weights of a model, half of it for tiles; a segment that is larger is kept all the same.
    #[serde(default = "default_weight_bytes")]
    pub weight_bytes: u64,
    /// Memory for input blobs kept between work items.
    #[serde(default = "default_cache_bytes")]
    pub cache_bytes: u64,
    /// Largest blob taken from the coordinator.
    #[serde(default = "default_max_blob_bytes")]
    pub max_blob_bytes: u64,
    /// Disk that models fetched from the coordinator may take together; 0: none is fetched.
    #[serde(default = "default_fetch_models_bytes")]
    pub fetch_models_bytes: u64,
    /// Give up when the coordinator could not be reached for this long; 0 means never.
    #[serde(default)]
    pub give_up_after_s: u64,
    /// TCP address for metrics, `host:port`; empty: none.
    #[serde(default)]
    pub metrics_listen: String,
    /// Leave when there was nothing to do for this long; 0 means never.
    #[serde(default)]
    pub exit_when_idle_s: u64,
    /// Shell command that exits with 0 when this machine is about to be taken away; empty: none. Asked every five seconds.
    #[serde(default)]
    pub preempt_hook: String,
    /// Time between that notice and the end: what takes longer is given back at once.
    #[serde(default = "default_preempt_grace_s")]
    pub preempt_grace_s: u64,
}

fn default_name() -> String {
    "node".to_owned()
}

fn default_device() -> String {
    "cpu".to_owned()
}

const fn default_weight_bytes() -> u64 {
    obelysk_model::source::WEIGHT_BYTES as u64
}

/// A gigabyte holds the boundary activations of a long prompt through a model of hidden size 8192.
const fn default_cache_bytes() -> u64 {
    1 << 30
}

/// Also one gigabyte: a single blob may fill the cache and no more.
const fn default_max_blob_bytes() -> u64 {
    1 << 30
}

/// Sixty-four gibibytes: a model of three billion parameters with its encoded weights, and no disk filled by surprise.
const fn default_fetch_models_bytes() -> u64 {
    64 << 30
}

/// The shortest notice of the large clouds is 30 s, and a question takes up to 9 s to be answered.
const fn default_preempt_grace_s() -> u64 {
    20
}

impl NodeConfig {
    /// The defaults with this name.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            token_file: PathBuf::new(),
            state: PathBuf::new(),
            threads: 0,
            device: default_device(),
            gpu_only: false,
            weight_bytes: default_weight_bytes(),
            cache_bytes: default_cache_bytes(),
            max_blob_bytes: default_max_blob_bytes(),
            fetch_models_bytes: default_fetch_models_bytes(),
            give_up_after_s: 0,
            metrics_listen: String::new(),
            exit_when_idle_s: 0,
            preempt_hook: String::new(),
            preempt_grace_s: default_preempt_grace_s(),
        }
    }

    /// Threads offered, with 0 resolved to the machine's.
    #[must_use]
    pub fn cores(&self) -> u32 {
        let all = || std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
        if self.threads == 0 { all() } else { self.threads }
    }

    /// What to compute on.
    ///
    /// # Errors
    /// [`NodeError::Config`] when it is no device, or when only a card may be used and none is named.
    pub fn device(&self) -> Result<DeviceChoice, NodeError> {
        let device = self.device.parse().map_err(|cause| NodeError::Config { field: "device", cause })?;
        if self.gpu_only && device == DeviceChoice::Cpu {
            let cause = "needs a card: set device to cuda:0, or leave it out".to_owned();
            return Err(NodeError::Config { field: "gpu_only", cause });
        }
        Ok(device)
    }

    /// Where metrics are served.
    ///
    /// # Errors
    /// [`NodeError::Config`] when it is no address.
    pub fn metrics_listen(&self) -> Result<Option<SocketAddr>, NodeError> {
        let cause = || "must be an address and a port, such as 127.0.0.1:7452, or empty".to_owned();
        let parse = |text: &str| text.parse().map_err(|_| NodeError::Config { field: "metrics_listen", cause: cause() });
        (!self.metrics_listen.is_empty()).then(|| parse(&self.metrics_listen)).transpose()
    }

    /// Checks the values that a type cannot.
    ///
    /// # Errors
    /// [`NodeError::Config`] naming the field.
    pub fn validate(&self) -> Result<(), NodeError> {
        let bad = |field, cause: &str| Err(NodeError::Config { field, cause: cause.to_owned() });
        if self.name.is_empty() || self.name.len() > obelysk_protocol::wire::MAX_NAME_BYTES {
            return bad("name", "must have 1 to 63 bytes");
        }
        if self.name.chars().any(char::is_control) {
            return bad("name", "must not contain control characters");
        }
        if self.max_blob_bytes == 0 || self.cache_bytes < self.max_blob_bytes {
            return bad("cache_bytes", "must be at least max_blob_bytes, and that at least 1");
        }
        self.device()?;
        self.metrics_listen().map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_file_is_the_default() {
        let shipped: NodeConfig = toml::from_str(include_str!("../../configs/node.toml")).expect("configs/node.toml");
        assert_eq!(shipped, NodeConfig::new("node"));
        shipped.validate().expect("valid");
    }

    #[test]
    fn unknown_fields_are_refused() {
        let error = toml::from_str::<NodeConfig>("name = 'x'\nspeed = 3").expect_err("unknown field");
        assert!(error.to_string().contains("speed"), "{error}");
    }
}
