//! What must hold, told independently of the brain: from the agreed log, and from what leaders were seen to do.

use std::collections::{BTreeMap, BTreeSet};

use obelysk_coordinator::core::{Effect, Fact, JobEvent, JobId, NodeId, Work};
use obelysk_coordinator::ledger::{Entry, Ledger};
use obelysk_node::identity::NodeKeyId;
use obelysk_protocol::wire::BlobRef;

#[derive(Debug, Default)]
pub(super) struct Audit {
    /// Items that stand.
    standing: BTreeSet<(JobId, Work)>,
    /// Every result ever agreed.
    agreed: BTreeSet<(Work, BlobRef)>,
    opened: BTreeSet<JobId>,
    ended: BTreeSet<JobId>,
    pub(super) quarantined: BTreeSet<NodeKeyId>,
    /// By term and epoch: the accepted result that its acknowledgement stands for.
    owed: BTreeMap<(u64, u64), (Work, BlobRef)>,
    given: BTreeMap<u64, (u64, NodeId, Work)>,
    /// Leases in force, by term, as far as others have seen it.
    live: BTreeSet<(u64, Work, u64, NodeId)>,
    /// Leases of items that had one.
    pub(super) seconds: usize,
}

impl Audit {
    /// A leader decided this: an acknowledgement after an acceptance says that the result is safe.
    pub(super) fn decided(&mut self, term: u64, effects: &[Effect]) {
        let mut last = None;
        for effect in effects {
            match effect {
                Effect::Record(Fact::Accepted { work, node, output, .. }) => last = Some((*node, *work, *output)),
                Effect::Ack { node, epoch } => {
                    if let Some((_, work, output)) = last.filter(|(author, ..)| author == node) {
                        self.owed.insert((term, *epoch), (work, output));
                    }
                }
                _ => {}
            }
        }
    }

    /// The log has a new entry.
    pub(super) fn agreed(&mut self, entry: &Entry) -> Result<(), String> {
        let lives = |job: &JobId, audit: &Self| audit.opened.contains(job) && !audit.ended.contains(job);
        match entry {
            Entry::JobOpened { job, .. } if !self.opened.insert(*job) => Err("a job was opened twice".to_owned()),
            Entry::Accepted { job, work, piece } => {
                if !lives(job, self) {
                    return Err(format!("{work} accepted for a job that is not open"));
                }
                self.agreed.insert((*work, piece.output));
                if self.standing.insert((*job, *work)) { Ok(()) } else { Err(format!("{work} accepted twice")) }
            }
            Entry::Retracted { job, work } if !self.standing.remove(&(*job, *work)) => {
                Err(format!("{work} taken back without standing"))
            }
            Entry::Published { job, .. } | Entry::Failed { job, .. } => {
                if !lives(job, self) {
                    return Err("a job that is not open ended".to_owned());
                }
                self.ended.insert(*job);
                Ok(())
            }
            Entry::Quarantined { node, .. } => {
                self.quarantined.insert(*node);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A node said hello and which leases it has: of others it knows nothing any more.
    pub(super) fn greeted(&mut self, term: u64, node: NodeId, held: &BTreeSet<u64>) {
        self.live.retain(|(t, _, epoch, n)| (*t, *n) != (term, node) || held.contains(epoch));
    }

    /// A leader lets others see this.
    pub(super) fn released(&mut self, term: u64, effect: &Effect, ledger: &Ledger) -> Result<(), String> {
        if let Effect::Ack { epoch, .. } = effect {
            self.live.retain(|(.., other, _)| other != epoch);
        }
        let known = |job: &JobId| ledger.ended(*job).is_some() || ledger.open_jobs().any(|(id, _)| id == *job);
        match effect {
            Effect::Assign { node, epoch, work, .. } => {
                let holder = (term, *node, *work);
                let now = self.live.iter().filter(|(t, w, ..)| (*t, *w) == (term, *work)).count();
                if now > 1 {
                    return Err(format!("{work} has {now} leases and gets another"));
                }
                self.seconds += now;
                self.live.insert((term, *work, *epoch, *node));
                match self.given.insert(*epoch, holder) {
                    Some(other) => Err(format!("epoch {epoch} given twice: {other:?}, {holder:?}")),
                    None => Ok(()),
                }
            }
            Effect::Revoke { epoch, .. } => {
                self.live.retain(|(.., other, _)| other != epoch);
                Ok(())
            }
            Effect::Notify { event: JobEvent::Lost { work, node, .. }, .. } => {
                self.live.retain(|(t, w, _, n)| (*t, *w, *n) != (term, *work, *node));
                Ok(())
            }
            Effect::Ack { epoch, .. } => match self.owed.get(&(term, *epoch)) {
                Some(result) if !self.agreed.contains(result) => Err(format!("{} acknowledged before it was agreed", result.0)),
                _ => Ok(()),
            },
            Effect::Opened { job } if !known(job) => Err("a job was confirmed before it was agreed".to_owned()),
            Effect::Publish { job, .. } if ledger.ended(*job).is_none() => Err("published before it was agreed".to_owned()),
            _ => Ok(()),
        }
    }
}
