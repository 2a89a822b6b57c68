//! `obelysk status`: a cluster in a dozen lines.

use super::admin::Desk;
use super::cluster::runtime;
use super::exit::Failure;
use super::home::Home;
use super::observe::{RESULTS, span, status_json};
use super::observe_args::StatusArgs;
use super::output::{Out, hex, size};
use obelysk_node::WorkKind;
use obelysk_protocol::wire::{ItemPhase, JobState, NodeState, Status};

/// Runs `status`.
pub fn run(out: &Out, home: &Home, args: &StatusArgs) -> Result<(), Failure> {
    let status = runtime()?.block_on(async {
        let desk = Desk::open(home, &args.admin).await?;
        let status = desk.status().await?;
        desk.close();
        Ok::<_, Failure>(status)
    })?;
    out.json(&status_json(&status));
    for (name, text) in lines(&status) {
        out.field(name, text);
    }
    Ok(())
}

/// Counts that are not zero, with their names.
pub fn counts<T: Copy + Into<u64>>(names: impl IntoIterator<Item = &'static str>, values: &[T]) -> String {
    let some = names.into_iter().zip(values).map(|(name, value)| (name, (*value).into())).filter(|(_, n)| *n > 0);
    let text = some.map(|(name, n)| format!("{n} {name}")).collect::<Vec<_>>().join(", ");
    if text.is_empty() { "none".to_owned() } else { text }
}

fn lines(s: &Status) -> Vec<(&'static str, String)> {
    let core = |us: u64| format!("{:.1}", us as f64 / 1e6);
    let by_kind = WorkKind::ALL.into_iter().zip(s.core_us).map(|(kind, us)| format!("{} {}", kind.name(), core(us)));
    vec![
        ("cluster", hex(&s.cluster)),
        ("coordinator", format!("release {}, up {}", s.release, span(s.uptime_ms))),
        ("nodes", counts(NodeState::ALL.map(NodeState::name), &s.nodes)),
        ("cores", s.cores.to_string()),
        ("jobs", counts(JobState::ALL.map(JobState::name), &s.jobs)),
        ("work items", counts(ItemPhase::ALL.map(ItemPhase::name), &s.items)),
        ("results", counts(RESULTS, &s.events)),
        ("core-seconds", by_kind.collect::<Vec<_>>().join(", ")),
        ("waiting", format!("{} core-seconds; {} nodes wanted", core(s.queued_core_us), s.desired_nodes)),
        ("network", format!("{} received, {} sent", size(s.received_bytes), size(s.sent_bytes))),
        ("blobs", format!("{} of {}", size(s.store_bytes[0]), size(s.store_bytes[1]))),
    ]
}
