//! What the coordinator tells a collector: counts, states, times. Labels are fixed words; no names, ids or addresses.

use std::sync::atomic::AtomicU64;

use obelysk_node::engine::WorkKind;
use obelysk_node::metrics::{raise, work_seconds};
use obelysk_node::traffic::{Bytes, frames};
use obelysk_node::usage;
use obelysk_protocol::wire::{ItemPhase, JobState, NodeState};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry, Unit};

/// One label of few values.
type Label = [(&'static str, &'static str); 1];
/// Two of them.
type Labels = [(&'static str, &'static str); 2];
/// A count of seconds.
type Seconds = Counter<f64, AtomicU64>;

/// Graphics cards would be another pool.
const POOL: &str = "cpu";

/// Things that are counted by kind of work, as [`Status::events`](obelysk_protocol::wire::Status) has them, quarantines aside.
pub(in crate::server) const EVENTS: [&str; 6] = ["accepted", "redone", "rejected", "disputed", "failed", "lost"];

/// Everything that is measured.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub(in crate::server) events: Family<Labels, Counter>,
    pub(in crate::server) leases: Family<Label, Counter>,
    pub(in crate::server) lease_seconds: Family<Label, Histogram>,
    pub(in crate::server) check_seconds: Family<Label, Histogram>,
    pub(in crate::server) core_seconds: Family<Label, Seconds>,
    pub(in crate::server) jobs_ended: Family<Label, Counter>,
    pub(in crate::server) quarantines: Counter,
    jobs: Family<Label, Gauge>,
    items: Family<Labels, Gauge>,
    nodes: Family<Label, Gauge>,
    cores: Gauge,
    desired: Family<Label, Gauge>,
    queued_core_seconds: Gauge<f64, AtomicU64>,
    store: Gauge,
    store_limit: Gauge,
    bytes: Family<Label, Counter>,
    frames: Family<Labels, Counter>,
    commands: Gauge,
    leader: Gauge,
    expiry: Family<Label, Gauge>,
    dropped: Counter,
    cpu: Seconds,
    peak_memory: Gauge,
}

/// What is read rather than counted, at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    pub(in crate::server) jobs: [u32; JobState::ALL.len()],
    pub(in crate::server) items: [[u32; ItemPhase::ALL.len()]; WorkKind::EVERY.len()],
    pub(in crate::server) nodes: [u32; NodeState::ALL.len()],
    pub(in crate::server) cores: u32,
    pub(in crate::server) desired: u32,
    pub(in crate::server) queued_core_us: u64,
    pub(in crate::server) store: [u64; 2],
    pub(in crate::server) commands: usize,
    pub(in crate::server) leads: bool,
    pub(in crate::server) traffic: Bytes,
    pub(in crate::server) own_expiry_unix_s: u64,
    pub(in crate::server) node_expiry_unix_s: Option<u64>,
    pub(in crate::server) dropped: u64,
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn added<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn measured<M: Metric + Clone>(registry: &mut Registry, name: &str, unit: Unit, help: &str, metric: M) -> M {
    registry.register_with_unit(name, help, unit, metric.clone());
    metric
}

/// Checks: a millisecond to about a minute.
fn check_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 17))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("obelysk");
        let r = &mut registry;
        let metrics = Self {
            events: added(r, "results", "What became of work items, by kind"),
            leases: added(r, "leases", "Leases given, by kind"),
            lease_seconds: measured(
                r,
                "lease_duration",
                Unit::Seconds,
                "Time from lease to result, by kind",
                Family::new_with_constructor(work_seconds as fn() -> Histogram),
            ),
            check_seconds: measured(
                r,
                "check_duration",
                Unit::Seconds,
                "Time the checker took, by step",
                Family::new_with_constructor(check_buckets as fn() -> Histogram),
            ),
            core_seconds: measured(r, "core", Unit::Seconds, "Processor time of accepted results, by kind", Family::default()),
            jobs_ended: added(r, "jobs_ended", "Jobs that ended, by outcome"),
            quarantines: added(r, "quarantines", "Nodes found wrong"),
            jobs: added(r, "jobs", "Jobs in progress, by state"),
            items: added(r, "items", "Work items of jobs in progress, by kind and phase"),
            nodes: added(r, "nodes", "Nodes met since the coordinator started, by state"),
            cores: added(r, "cores", "Cores of the nodes that are here"),
            desired: added(r, "desired_nodes", "Nodes that would finish what waits within the drain target"),
            queued_core_seconds: measured(r, "queued_core", Unit::Seconds, "Processor time that waits", Gauge::default()),
            store: measured(r, "blob_store", Unit::Bytes, "Blobs held", Gauge::default()),
            store_limit: measured(r, "blob_store_limit", Unit::Bytes, "Most blobs that may be held", Gauge::default()),
            bytes: measured(r, "network", Unit::Bytes, "Bytes over connections, by direction", Family::default()),
            frames: measured(r, "frame", Unit::Bytes, "Bytes of frames, by class and direction", Family::default()),
            commands: added(r, "command_queue", "Messages waiting for the brain"),
            leader: added(r, "leader", "1 while this coordinator leads, otherwise 0"),
            expiry: measured(
                r,
                "certificate_expiry",
                Unit::Seconds,
                "End of a certificate since 1970: the coordinator's, and the first to end of a connected node's",
                Family::default(),
            ),
            dropped: added(r, "log_lines_dropped", "Events of jobs that were not logged"),
            cpu: measured(r, "processor", Unit::Seconds, "Processor time of this process", Seconds::default()),
            peak_memory: measured(r, "peak_memory", Unit::Bytes, "Largest resident memory so far", Gauge::default()),
            registry: Registry::default(),
        };
        // A series that appears with its first event looks like one that never had a 0.
        for kind in WorkKind::EVERY {
            for event in EVENTS {
                let _ = metrics.event(kind, event);
            }
            let _ = (metrics.leases.get_or_create(&of(kind)), metrics.core_seconds.get_or_create(&of(kind)));
        }
        for outcome in ["done", "failed"] {
            let _ = metrics.jobs_ended.get_or_create(&[("outcome", outcome)]);
        }
        Self { registry, ..metrics }
    }
}

/// The label of a kind.
pub(in crate::server) const fn of(kind: WorkKind) -> Label {
    [("kind", kind.name())]
}

impl Metrics {
    /// The counter of what happened to items of a kind.
    pub(in crate::server) fn event(&self, kind: WorkKind, event: &'static str) -> Counter {
        self.events.get_or_create(&[("kind", kind.name()), ("result", event)]).clone()
    }

    /// What happened to items of all kinds so far.
    pub(in crate::server) fn events_total(&self, event: &'static str) -> u64 {
        WorkKind::EVERY.into_iter().map(|kind| self.event(kind, event).get()).sum()
    }

    /// Takes a moment's readings over.
    pub(in crate::server) fn set(&self, s: &Sample) {
        let in_progress = [JobState::Running, JobState::Waiting, JobState::Finishing];
        for state in in_progress {
            self.jobs.get_or_create(&[("state", state.name())]).set(s.jobs[state as usize].into());
        }
        for (kind, phases) in WorkKind::EVERY.into_iter().zip(s.items) {
            for (phase, count) in ItemPhase::ALL.into_iter().zip(phases) {
                self.items.get_or_create(&[("kind", kind.name()), ("phase", phase.name())]).set(count.into());
            }
        }
        for (state, count) in NodeState::ALL.into_iter().zip(s.nodes).filter(|(state, _)| *state != NodeState::Evicted) {
            self.nodes.get_or_create(&[("state", state.name())]).set(count.into());
        }
        self.cores.set(s.cores.into());
        self.desired.get_or_create(&[("pool", POOL)]).set(s.desired.into());
        self.queued_core_seconds.set(s.queued_core_us as f64 / 1e6);
        self.store.set(gauge(s.store[0]));
        self.store_limit.set(gauge(s.store[1]));
        self.commands.set(gauge(s.commands as u64));
        self.leader.set(s.leads.into());
        for (direction, now) in [("received", s.traffic.received), ("sent", s.traffic.sent)] {
            raise(&self.bytes.get_or_create(&[("direction", direction)]), now);
        }
        self.expiry.get_or_create(&[("holder", "coordinator")]).set(gauge(s.own_expiry_unix_s));
        match s.node_expiry_unix_s {
            Some(end) => {
                self.expiry.get_or_create(&[("holder", "node")]).set(gauge(end));
            }
            None => {
                self.expiry.remove(&[("holder", "node")]);
            }
        }
        raise(&self.dropped, s.dropped);
    }

    /// Everything as text, in the OpenMetrics format.
    pub(in crate::server) fn text(&self) -> String {
        for (class, direction, now) in frames().labelled() {
            raise(&self.frames.get_or_create(&[("class", class), ("direction", direction)]), now);
        }
        self.cpu.inc_by((usage::cpu_time().as_secs_f64() - self.cpu.get()).max(0.0));
        self.peak_memory.set(gauge(usage::peak_memory_bytes()));
        let mut text = String::new();
        // Writing to a string fails for nobody.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_and_counts_come_out_with_their_labels() {
        let metrics = Metrics::default();
        metrics.event(WorkKind::Prove, "rejected").inc();
        metrics.lease_seconds.get_or_create(&of(WorkKind::Prove)).observe(0.5);
        let mut sample =
            Sample { desired: 3, store: [5, 10], own_expiry_unix_s: 77, node_expiry_unix_s: Some(66), ..Sample::default() };
        sample.items[2][ItemPhase::Leased as usize] = 4;
        sample.jobs[JobState::Waiting as usize] = 2;
        sample.traffic.sent = 9;
        metrics.set(&sample);
        let text = metrics.text();
        for line in [
            "obelysk_results_total{kind=\"prove\",result=\"rejected\"} 1",
            "obelysk_results_total{kind=\"forward\",result=\"accepted\"} 0",
            "obelysk_items{kind=\"prove\",phase=\"leased\"} 4",
            "obelysk_jobs{state=\"waiting\"} 2",
            "obelysk_jobs_ended_total{outcome=\"done\"} 0",
            "obelysk_desired_nodes{pool=\"cpu\"} 3",
            "obelysk_blob_store_bytes 5",
            "obelysk_network_bytes_total{direction=\"sent\"} 9",
            "obelysk_certificate_expiry_seconds{holder=\"node\"} 66",
            "obelysk_lease_duration_seconds_count{kind=\"prove\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        // How many is a matter of the process, in which other tests run.
        assert!(text.contains("obelysk_frame_bytes_total{class=\"control\",direction=\"received\"} "), "{text}");
        metrics.set(&Sample { traffic: sample.traffic, ..Sample::default() });
        let text = metrics.text();
        assert!(text.contains("direction=\"sent\"} 9") && !text.contains("holder=\"node\""), "{text}");
    }
}
