//! What the brain keeps up to date, computed anew and compared. Decides nothing; for tests, which call it after every input.

use std::collections::BTreeMap;

use obelysk_node::engine::WorkKind;

use super::State;
use super::choose::Choice;
use super::job::Job;
use super::schedule::entry;
use super::types::{JobId, Work};

impl State {
    /// Whether everything that is kept up to date is what it would be if it were computed now, and nothing that could be done was left
    /// undone. Costs as much as all items by all nodes.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn audit(&self) -> Result<(), String> {
        self.leases.audit()?;
        self.members.audit()?;
        self.audit_crews()?;
        for (id, job) in &self.jobs {
            self.audit_job(*id, job).map_err(|what| format!("job {id}: {what}"))?;
        }
        let candidates = |(id, job): (&JobId, &Job)| {
            let checking = |(work, item): (&Work, &super::job::Item)| Some((item.checking.as_ref()?.epoch, (*id, *work)));
            job.items.iter().filter_map(checking).collect::<Vec<_>>()
        };
        let checking: BTreeMap<u64, (JobId, Work)> = self.jobs.iter().flat_map(candidates).collect();
        if checking == self.checking { Ok(()) } else { Err("results at the checker are not found by epoch".to_owned()) }
    }

    fn audit_job(&self, id: JobId, job: &Job) -> Result<(), String> {
        for kind in WorkKind::EVERY {
            let accepted = (0..job.segments).filter(|l| job.accepted(kind, *l).is_some()).count();
            if accepted != job.count(kind) as usize {
                return Err(format!("{accepted} results of {} counted as {}", kind.name(), job.count(kind)));
            }
        }
        let drawn = job.challenge().filter(|challenge| job.settled_commits().as_ref() == Some(&challenge.commits));
        if drawn.map(|challenge| challenge.extra) != job.current_challenge() {
            return Err("the challenge is not that of the commits".to_owned());
        }
        if job.is_stale() {
            return Err("something accepted was computed from other inputs".to_owned());
        }
        let since = |epoch: u64| Some(self.leases.get(epoch)?.since_ms);
        let mut right = BTreeMap::new();
        for work in job.items.keys() {
            if job.needs(*work).is_some() != job.has_needs(*work) {
                return Err(format!("{work} has needs, or has none, against what is there"));
            }
            let room = |home| self.fleet.has_room(id, job.model, *work, home);
            right.extend(entry(job, *work, self.now_ms, &room, &since).map(|entry| (*work, entry)));
        }
        job.agenda.audit(&right)?;
        let undone = job.agenda.ready().find(|work| matches!(self.choose(id, *work), Choice::Node(_)));
        undone.map_or(Ok(()), |work| Err(format!("{work} waits for {:?}, who is idle", self.choose(id, work))))
    }
}
