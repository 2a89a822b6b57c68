//! What the commands that show a cluster have in common: questions, and how answers are written.

use super::admin::{Desk, unexpected};
use super::exit::Failure;
use obelysk_node::WorkKind;
use obelysk_protocol::wire::{
    ItemEntry, ItemPhase, JobEntry, JobItemsGet, JobLog, JobLogAfter, JobState, JobsAfter, LogEntry, Message, NodeState, Status,
    StatusGet, WorkerEntry, WorkersAfter,
};
use serde_json::{Value, json};

impl Desk {
    /// Sums over the cluster.
    pub async fn status(&self) -> Result<Status, Failure> {
        let unix_s = obelysk_node::identity::unix_now();
        match self.order(Message::StatusGet(StatusGet { unix_s })).await? {
            Message::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }

    /// Nodes that the coordinator has met since it started.
    pub async fn workers(&self) -> Result<Vec<WorkerEntry>, Failure> {
        let mut all: Vec<WorkerEntry> = Vec::new();
        loop {
            let node = all.last().map_or(0, |w| w.node);
            match self.order(Message::WorkersAfter(WorkersAfter { node })).await? {
                Message::Workers(page) if page.workers.is_empty() => return Ok(all),
                Message::Workers(page) => all.extend(page.workers),
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// All jobs, the latest first.
    pub async fn jobs(&self) -> Result<Vec<JobEntry>, Failure> {
        let mut all: Vec<JobEntry> = Vec::new();
        loop {
            let job = all.last().map_or([0; 32], |j| j.job);
            match self.order(Message::JobsAfter(JobsAfter { job })).await? {
                Message::Jobs(page) if page.jobs.is_empty() => break,
                Message::Jobs(page) => all.extend(page.jobs),
                other => return Err(unexpected(&other)),
            }
        }
        all.sort_by_key(|j| (is_over(j), std::cmp::Reverse((j.submitted_unix_s, j.job))));
        Ok(all)
    }

    /// Every item of a job in progress; none of another.
    pub async fn items(&self, job: &JobEntry) -> Result<Vec<ItemEntry>, Failure> {
        let mut all: Vec<ItemEntry> = Vec::new();
        loop {
            let segment = all.last().map_or(0, |item| item.segment + 1);
            if is_over(job) || segment >= job.segments {
                return Ok(all);
            }
            match self.order(Message::JobItemsGet(JobItemsGet { job: job.job, segment })).await? {
                Message::JobItems(page) if page.items.is_empty() => return Ok(all),
                Message::JobItems(page) => all.extend(page.items),
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// The next events of a job.
    pub async fn log(&self, job: [u8; 32], number: u64) -> Result<JobLog, Failure> {
        match self.order(Message::JobLogAfter(JobLogAfter { job, number })).await? {
            Message::JobLog(log) => Ok(log),
            other => Err(unexpected(&other)),
        }
    }
}

/// Whether a job has ended.
pub fn is_over(job: &JobEntry) -> bool {
    matches!(JobState::from_code(job.state), Some(JobState::Done | JobState::Failed) | None)
}

/// Name of a job's state.
pub fn state_name(job: &JobEntry) -> &'static str {
    JobState::from_code(job.state).map_or("unknown", JobState::name)
}

/// Name of a node's state.
pub fn node_state(worker: &WorkerEntry) -> &'static str {
    NodeState::from_code(worker.state).map_or("unknown", NodeState::name)
}

/// What a node runs, `kind/segment`.
pub fn work(kind: u8, segment: u32) -> String {
    format!("{}/{segment}", WorkKind::from_code(kind).map_or("unknown", WorkKind::name))
}

/// The part of a job that is accepted, in percent.
pub fn percent(job: &JobEntry) -> u64 {
    let done: u64 = job.accepted.iter().map(|n| u64::from(*n)).sum();
    (100 * done).checked_div(u64::from(job.segments) * job.accepted.len() as u64).unwrap_or(0)
}

/// The beginning of an id: enough for people and as an argument.
pub fn short(id: &[u8]) -> String {
    super::output::hex(id.get(..4).unwrap_or(id))
}

/// Time in its two largest units.
pub fn span(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..10 => format!("{}.{} s", s, ms % 1000 / 100),
        10..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {:02} min", s / 3600, s / 60 % 60),
        _ => format!("{} d {:02} h", s / 86_400, s / 3600 % 24),
    }
}

/// Time left; a dash when it is not known.
pub fn left(job: &JobEntry) -> String {
    if job.left_ms == u64::MAX { "-".to_owned() } else { span(job.left_ms) }
}

/// A text of a peer without what would move a terminal's cursor.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A moment as RFC 3339, in UTC.
pub fn moment(unix_ms: u64) -> String {
    let (day, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let s = ms / 1000;
    // Days to civil date, by eras of 400 years that begin in March (Hinnant, "chrono-compatible low-level date algorithms").
    let z = day + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let (d, m) = (of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let y = 400 * era + year_of_era + u64::from(m <= 2);
    format!("{y:04}-{m:02}-{d:02}T{:02}:{:02}:{:02}.{:03}Z", s / 3600, s / 60 % 60, s % 60, ms % 1000)
}

/// Values by name.
fn named<T: Copy + Into<Value>>(names: impl IntoIterator<Item = &'static str>, values: &[T]) -> Value {
    names.into_iter().zip(values).map(|(name, value)| (name.to_owned(), (*value).into())).collect()
}

/// Core-seconds by kind.
fn core_seconds(core_us: &[u64]) -> Value {
    let seconds: Vec<f64> = core_us.iter().map(|us| *us as f64 / 1e6).collect();
    named(WorkKind::ALL.map(WorkKind::name), &seconds)
}

/// Names of [`Status::events`].
pub const RESULTS: [&str; 7] = ["accepted", "redone", "rejected", "disputed", "failed", "lost", "quarantined"];

/// Sums as JSON.
pub fn status_json(s: &Status) -> Value {
    json!({
        "cluster": super::output::hex(&s.cluster), "release": s.release, "unix_s": s.unix_s, "uptime_s": s.uptime_ms / 1000,
        "nodes": named(NodeState::ALL.map(NodeState::name), &s.nodes), "cores": s.cores,
        "jobs": named(JobState::ALL.map(JobState::name), &s.jobs),
        "items": named(ItemPhase::ALL.map(ItemPhase::name), &s.items),
        "results": named(RESULTS, &s.events), "core_seconds": core_seconds(&s.core_us),
        "queued_core_seconds": s.queued_core_us as f64 / 1e6, "desired_nodes": s.desired_nodes,
        "received_bytes": s.received_bytes, "sent_bytes": s.sent_bytes,
        "store_bytes": s.store_bytes[0], "store_limit_bytes": s.store_bytes[1],
    })
}

/// A node as JSON.
pub fn worker_json(w: &WorkerEntry) -> Value {
    let running = w.busy.then(|| {
        json!({ "job": super::output::hex(&w.job), "work": work(w.kind, w.segment), "epoch": w.epoch, "permille": w.permille })
    });
    json!({
        "node": w.node, "id": super::output::hex(&w.id), "name": w.name, "state": node_state(w), "cores": w.cores,
        "accepted": w.accepted, "core_seconds": w.core_us as f64 / 1e6, "running": running,
    })
}

/// A job as JSON.
pub fn job_json(j: &JobEntry) -> Value {
    let known = |value: u64| (value > 0).then_some(value);
    json!({
        "id": super::output::hex(&j.job), "model": super::output::hex(&j.model), "segments": j.segments, "state": state_name(j),
        "submitted_unix_s": known(j.submitted_unix_s), "ended_unix_s": known(j.ended_unix_s), "percent": percent(j),
        "accepted": named(WorkKind::ALL.map(WorkKind::name), &j.accepted), "core_seconds": core_seconds(&j.core_us),
        "left_s": (j.left_ms != u64::MAX).then_some(j.left_ms as f64 / 1e3),
        "proof": known(j.proof.length).map(|_| super::output::hex(&j.proof.digest)), "proof_bytes": known(j.proof.length),
        "reason": j.reason,
    })
}

/// An item as JSON.
pub fn item_json(item: &ItemEntry) -> Value {
    json!({
        "work": work(item.kind, item.segment), "phase": ItemPhase::from_code(item.phase).map_or("unknown", ItemPhase::name),
        "node": (item.node > 0).then_some(item.node), "permille": item.permille, "disputed": item.disputed, "tries": item.tries,
    })
}

/// An event as JSON.
pub fn event_json(e: &LogEntry) -> Value {
    let said = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    json!({
        "number": e.number, "unix_ms": e.unix_ms, "event": e.event, "work": said(&e.work), "epoch": (e.epoch > 0).then_some(e.epoch),
        "node": said(&e.node), "id": (e.id != [0; 32]).then(|| super::output::hex(&e.id)),
        "digest": (e.digest.length > 0).then(|| super::output::hex(&e.digest.digest)),
        "bytes": (e.digest.length > 0).then_some(e.digest.length), "text": e.text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_calendar() {
        // Known moments: the epoch, a leap day, the last millisecond of a century.
        assert_eq!(moment(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(moment(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(moment(1_000_000_000_123), "2001-09-09T01:46:40.123Z");
        assert_eq!(moment(4_102_444_799_999), "2099-12-31T23:59:59.999Z");
    }

    #[test]
    fn times_are_short() {
        let all = [900, 9_940, 59_999, 61_000, 3_660_000, 90_000_000].map(span);
        assert_eq!(all, ["0.9 s", "9.9 s", "59 s", "1 min 01 s", "1 h 01 min", "1 d 01 h"]);
    }

    #[test]
    fn terminals_are_not_moved() {
        assert_eq!(plain("a\u{1b}[2J\nb"), "a [2J b");
    }
}
