//! From what the brain decided to what the log keeps: numbers of nodes become keys, and the proposer's clock is added.

use obelysk_node::engine::WorkKind;
use obelysk_protocol::wire::MAX_TEXT_BYTES;

use super::{Entry, MAX_TOOK_NODES, Piece, Roster, Took};
use crate::core::{Fact, Report};

impl Entry {
    /// The entry of a fact; `None` for one about a node that is not in the roster, which no brain over that roster decides.
    #[must_use]
    pub fn of(fact: &Fact, roster: &Roster, unix_s: u64) -> Option<Self> {
        Some(match fact.clone() {
            Fact::JobOpened { job, number, model, spec, segments } => {
                Self::JobOpened { job, number, model, spec, segments, unix_s }
            }
            Fact::Accepted { job, work, node, needs, output, core_us, peak_bytes } => {
                let piece = Piece { node: roster.key(node)?, needs, output, core_us, peak_bytes };
                Self::Accepted { job, work, piece }
            }
            Fact::Retracted { job, work } => Self::Retracted { job, work },
            Fact::Challenged { job, commits, extra } => Self::Challenged { job, commits, extra },
            Fact::Published { job, proof, report } => Self::Published { job, proof, took: Took::of(&report, roster), unix_s },
            Fact::Failed { job, reason } => Self::Failed { job, reason: clip(reason), unix_s },
            Fact::Quarantined { node, reason } => Self::Quarantined { node: roster.key(node)?, reason: clip(reason) },
            Fact::Forgotten { job } => Self::Forgotten { job },
            Fact::Sized { job, priority, peak_bytes } => Self::Sized { job, priority, peak_bytes },
            Fact::Measured { node, trial_us, memory_bytes } => Self::Measured { node: roster.key(node)?, trial_us, memory_bytes },
            Fact::Learned { model, learned } => Self::Learned { model, learned },
        })
    }
}

impl Took {
    fn of(report: &Report, roster: &Roster) -> Self {
        let kind = |name: &str| WorkKind::EVERY.into_iter().find(|kind| kind.name() == name);
        let phases = report.phases.iter().filter_map(|(name, wall, core)| Some((kind(name)?, *wall, *core))).collect();
        let nodes = report.nodes.iter().filter_map(|node| roster.key(*node)).take(MAX_TOOK_NODES).collect();
        Self { phases, peak_bytes: report.peak_bytes, nodes }
    }

    /// As the brain reports it; nodes that this roster does not know are left out.
    #[must_use]
    pub fn report(&self, roster: &Roster) -> Report {
        Report {
            phases: self.phases.iter().map(|(kind, wall_ms, core_us)| (kind.name(), *wall_ms, *core_us)).collect(),
            peak_bytes: self.peak_bytes,
            nodes: self.nodes.iter().filter_map(|key| roster.number(*key)).collect(),
        }
    }
}

/// Cuts a text at a character boundary to what an entry takes.
fn clip(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    text
}
