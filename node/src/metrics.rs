//! What a node tells a collector about itself: work by kind and outcome, time, bytes, connection, certificate. No names, no ids.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use obelysk_protocol::wire::WorkKind;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::engine::{EngineError, WorkOutput};
use crate::traffic::{Traffic, frames};
use crate::usage;

/// One label of few values.
type Label = [(&'static str, &'static str); 1];
/// Two of them.
type Labels = [(&'static str, &'static str); 2];
/// A count of seconds.
type Seconds = Counter<f64, AtomicU64>;

/// Buckets of work: 10 ms to about three hours, each twice the one before.
#[must_use]
pub fn work_seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.01, 2.0, 20))
}

/// Counts and states of one node process.
#[derive(Debug)]
pub struct NodeMetrics {
    registry: Registry,
    items: Family<Labels, Counter>,
    core_seconds: Family<Label, Seconds>,
    seconds: Family<Label, Histogram>,
    running: Gauge,
    connected: Gauge,
    connections: Counter,
    expires: Gauge,
    peak_memory: Gauge,
    bytes: Family<Label, Counter>,
    frames: Family<Labels, Counter>,
    cpu: Seconds,
    /// Bytes over this process's connections.
    pub traffic: Traffic,
}

impl Default for NodeMetrics {
    fn default() -> Self {
        let (items, core_seconds) = (Family::default(), Family::default());
        let seconds = Family::<Label, Histogram>::new_with_constructor(work_seconds);
        let (running, connected, connections) = (Gauge::default(), Gauge::default(), Counter::default());
        let (expires, peak_memory, bytes, cpu) = (Gauge::default(), Gauge::default(), Family::default(), Seconds::default());
        let frames = Family::default();
        let mut registry = Registry::with_prefix("obelysk_node");
        let r = &mut registry;
        r.register("items", "Work items by kind and outcome", items.clone());
        r.register_with_unit("item_core", "Processor time of finished items", Unit::Seconds, core_seconds.clone());
        r.register_with_unit("item_duration", "Time from start to end of an item", Unit::Seconds, seconds.clone());
        r.register("running", "Work items on the device", running.clone());
        r.register("connected", "1 while a coordinator serves this node", connected.clone());
        r.register("connections", "Sessions with a coordinator so far", connections.clone());
        r.register_with_unit("certificate_expiry", "End of the certificate, since 1970", Unit::Seconds, expires.clone());
        r.register_with_unit("peak_memory", "Largest resident memory so far", Unit::Bytes, peak_memory.clone());
        r.register_with_unit("network", "Bytes over the coordinator's connection", Unit::Bytes, bytes.clone());
        r.register_with_unit("frame", "Bytes of frames by class and direction", Unit::Bytes, frames.clone());
        r.register_with_unit("processor", "Processor time of this process", Unit::Seconds, cpu.clone());
        let traffic = Traffic::default();
        let metrics = Self {
            registry,
            items,
            core_seconds,
            seconds,
            running,
            connected,
            connections,
            expires,
            peak_memory,
            bytes,
            frames,
            cpu,
            traffic,
        };
        // A series that appears with its first event looks like one that never had a 0.
        for kind in WorkKind::ALL {
            let _ = metrics.items.get_or_create(&[("kind", kind.name()), ("outcome", "done")]);
            let _ = metrics.core_seconds.get_or_create(&[("kind", kind.name())]);
        }
        metrics
    }
}

impl NodeMetrics {
    /// Metrics of a node that has done nothing.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Runs an item and counts it.
    pub fn work(&self, kind: WorkKind, run: impl FnOnce() -> Result<WorkOutput, EngineError>) -> Result<WorkOutput, EngineError> {
        let started = std::time::Instant::now();
        self.running.inc();
        let outcome = run();
        self.running.dec();
        self.worked(kind, &outcome, started.elapsed());
        outcome
    }

    fn worked(&self, kind: WorkKind, outcome: &Result<WorkOutput, EngineError>, took: Duration) {
        let ended = match outcome {
            Ok(_) => "done",
            Err(EngineError::Disagrees(_)) => "disagrees",
            Err(_) => "failed",
        };
        self.items.get_or_create(&[("kind", kind.name()), ("outcome", ended)]).inc();
        self.seconds.get_or_create(&[("kind", kind.name())]).observe(took.as_secs_f64());
        if let Ok(output) = outcome {
            self.core_seconds.get_or_create(&[("kind", kind.name())]).inc_by(output.core_us as f64 / 1e6);
        }
    }

    /// A session began.
    pub fn joined(&self) {
        self.connected.set(1);
        self.connections.inc();
    }

    /// It ended.
    pub fn parted(&self) {
        self.connected.set(0);
    }

    /// The certificate that serves now ends then, in seconds since 1970.
    pub fn certified_until(&self, unix_s: u64) {
        self.expires.set(i64::try_from(unix_s).unwrap_or(i64::MAX));
    }

    /// Everything as text, in the OpenMetrics format.
    #[must_use]
    pub fn text(&self) -> String {
        let total = self.traffic.total();
        for (direction, now) in [("received", total.received), ("sent", total.sent)] {
            raise(&self.bytes.get_or_create(&[("direction", direction)]), now);
        }
        for (class, direction, now) in frames().labelled() {
            raise(&self.frames.get_or_create(&[("class", class), ("direction", direction)]), now);
        }
        self.peak_memory.set(i64::try_from(usage::peak_memory_bytes()).unwrap_or(i64::MAX));
        self.cpu.inc_by((usage::cpu_time().as_secs_f64() - self.cpu.get()).max(0.0));
        let mut text = String::new();
        // Writing to a string fails for nobody.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Brings a counter up to a sum that is kept elsewhere.
pub fn raise(counter: &Counter, now: u64) {
    counter.inc_by(now.saturating_sub(counter.get()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted_by_kind_and_outcome() {
        let metrics = NodeMetrics::new();
        let output = || WorkOutput { blob: Vec::new(), core_us: 1_500_000, peak_bytes: 0 };
        let _ = metrics.work(WorkKind::Prove, || Ok(output()));
        let _ = metrics.work(WorkKind::Prove, || Ok(output()));
        let _ = metrics.work(WorkKind::Open, || Err(EngineError::Internal("x".to_owned())));
        let _ = metrics.work(WorkKind::Open, || Err(EngineError::Disagrees("x".to_owned())));
        metrics.joined();
        metrics.certified_until(1_800_000_000);
        let text = metrics.text();
        for line in [
            "obelysk_node_items_total{kind=\"prove\",outcome=\"done\"} 2",
            "obelysk_node_items_total{kind=\"open\",outcome=\"failed\"} 1",
            "obelysk_node_items_total{kind=\"open\",outcome=\"disagrees\"} 1",
            "obelysk_node_items_total{kind=\"forward\",outcome=\"done\"} 0",
            "obelysk_node_item_core_seconds_total{kind=\"prove\"} 3.0",
            "obelysk_node_item_duration_seconds_count{kind=\"prove\"} 2",
            "obelysk_node_running 0",
            "obelysk_node_connected 1",
            "obelysk_node_certificate_expiry_seconds 1800000000",
            "obelysk_node_network_bytes_total{direction=\"received\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
