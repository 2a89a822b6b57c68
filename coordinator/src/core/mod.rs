//! The brain: a pure function from state and input to effects. No clock, network, threads, randomness or hash maps.
//!
//! What it holds to: every lease has an epoch of its own; an item has at most one accepted result until that is expressly taken
//! back ([`JobEvent::Redo`]); a result counts only for the inputs it was computed from; a node is quarantined only for
//! a result that arrived whole and is wrong. Forward results are believed until a commit contradicts them.

mod advance;
mod agenda;
mod audit;
mod choose;
mod crew;
pub mod demand;
mod fact;
mod fleet;
mod hedge;
mod job;
mod joint;
mod judge;
mod leases;
mod members;
mod memory;
mod needs;
mod outbox;
mod outcome;
mod pace;
mod partition;
mod plan;
mod restore;
mod results;
mod schedule;
mod shares;
mod types;
pub mod view;

use std::collections::{BTreeMap, BTreeSet};

use obelysk_node::engine::WorkKind;

use agenda::Entry;
use crew::Seat;
pub use fact::{Fact, Learned};
use fleet::Fleet;
pub use fleet::{FAULT_WINDOW_MS, MAX_FAULTS};
use job::Job;
use leases::Leases;
use members::Members;
pub use outbox::Outbox;
pub use outcome::{JobEvent, JobFailure, Report};
pub use restore::MAX_TERM;
use shares::Shares;
pub use shares::{DEFAULT_PRIORITY, MAX_BACKLOG_S};
pub use types::{Effect, Input, JobId, Needs, NodeId, Policy, Work};

/// An item that took down this many distinct nodes fails its job: two may be coincidence, and the fleet must survive.
pub const MAX_NODE_DEATHS: usize = 3;
/// Failures of one item reported by nodes, before its job fails: every node of a small cluster gets a few tries.
pub const MAX_ATTEMPTS: usize = 12;
/// Unsettled contradictions before a job fails: each sets one node aside, more means no honest majority.
pub const MAX_TIES: u32 = 16;
/// Jobs in progress: each holds a few blobs per segment in memory.
pub const MAX_JOBS: usize = 64;

/// One input moves time on by at most a lease divided by this: what is longer is a clock that jumped, or a coordinator that stood still.
const STEPS_OF_A_LEASE: u64 = 8;
/// Nor is anything shorter a jump, however short leases are: twice the time between two looks at the clock.
const LEAST_STEP_MS: u64 = 100;

/// The whole state of the cluster.
#[derive(Debug, Clone)]
pub struct State {
    policy: Policy,
    /// Time that passed while this brain could hear what happens.
    now_ms: u64,
    /// The caller's clock when it was last read.
    clock_ms: Option<u64>,
    next_epoch: u64,
    /// Epochs below this were given by earlier leaders.
    term_epoch: u64,
    next_number: u64,
    members: Members,
    /// Members that could work now, as last looked at.
    seats: BTreeMap<NodeId, Seat>,
    leases: Leases,
    /// Results being judged, by epoch.
    checking: BTreeMap<u64, (JobId, Work)>,
    jobs: BTreeMap<JobId, Job>,
    fleet: Fleet,
    shares: Shares,
    /// Jobs by arrival: the first is served first.
    queue: Vec<JobId>,
    /// Jobs that ended and are still known: they are not opened again.
    ended: BTreeSet<JobId>,
    /// Nothing was taken yet since this brain was restored.
    unswept: bool,
    /// Room for what is being brought up to date; empty between.
    entered: Vec<(Work, Entry)>,
}

impl State {
    /// An empty cluster.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            now_ms: 0,
            clock_ms: None,
            next_epoch: 1,
            term_epoch: 0,
            next_number: 1,
            members: Members::default(),
            seats: BTreeMap::new(),
            leases: Leases::default(),
            checking: BTreeMap::new(),
            jobs: BTreeMap::new(),
            fleet: Fleet::default(),
            shares: Shares::default(),
            queue: Vec::new(),
            ended: BTreeSet::new(),
            unswept: false,
            entered: Vec::new(),
        }
    }

    /// Takes one input at a time of the caller's clock and says what is to be done, in this order. Inputs about unknown or finished
    /// things are ignored: they are late, not wrong.
    ///
    /// The clock may jump. Backwards, no time has passed. Far ahead, the caller stood still or was put to another time, and nobody could
    /// be heard meanwhile: that counts as one step, an eighth of a lease, so that nobody's lease runs out by it.
    pub fn apply(&mut self, now_ms: u64, input: Input) -> Vec<Effect> {
        self.pass_time(now_ms);
        let ticked = input == Input::Tick;
        let mut out = Vec::new();
        self.sweep(&mut out);
        self.observe(&input);
        if self.turned_away(&input, &mut out) {
            return out;
        }
        match input {
            Input::Tick => self.tick(&mut out),
            Input::NodeJoined { node, models, cores, held } => self.joined(node, models, cores, &held, &mut out),
            Input::NodeMeasured { node, core_us, memory_bytes } => self.measured(node, core_us, memory_bytes, &mut out),
            Input::NodeRestarted { node } => self.restarted(node, &mut out),
            Input::NodeAway { node } => self.away(node),
            Input::NodeDraining { node } => self.draining(node),
            Input::NodeLeft { node } => self.gone(node, None, &mut out),
            Input::Progress { node, epoch, permille } => self.progress(node, epoch, permille),
            Input::WorkDone { node, epoch, output, core_us, peak_bytes } => {
                self.work_done(node, epoch, (output, core_us, peak_bytes), &mut out);
            }
            Input::WorkFailed { node, epoch, disagrees, reason } => self.work_failed(node, epoch, disagrees, reason, &mut out),
            Input::WorkReturned { node, epoch } => self.returned(node, epoch, &mut out),
            Input::CheckResult { job, work, epoch, verdict } => self.judged(job, work, epoch, verdict, &mut out),
            Input::CheckerFailed { job, reason } => self.fail(job, JobFailure::Pieces(reason), &mut out),
            Input::ChallengeDerived { job, commits, result } => self.challenged(job, commits, result, &mut out),
            Input::Finished { job, result } => self.finished(job, result, &mut out),
            Input::Joined { job, after, step } => self.joined_up(job, after, step, &mut out),
            Input::NodeHolds { node, epoch, job, work, inputs, extra } => {
                self.held(node, epoch, (job, work, &inputs, extra), &mut out);
            }
            Input::BlobLost { blob } => self.blob_lost(blob, &mut out),
            Input::JobSubmitted { job, model, spec, segments } => self.submitted(job, model, spec, segments, &mut out),
            Input::Forget { job } => {
                if self.ended.remove(&job) {
                    out.push(Effect::Record(Fact::Forgotten { job }));
                    out.push(Effect::Forgotten { job });
                }
            }
            Input::JobSized { job, priority, peak_bytes } => {
                self.sized(job, priority, peak_bytes, &mut out);
            }
            Input::Cancel { job } => self.fail(job, JobFailure::Cancelled, &mut out),
        }
        self.advance(&mut out);
        self.schedule(ticked, &mut out);
        out
    }

    fn pass_time(&mut self, clock_ms: u64) {
        let step = clock_ms.saturating_sub(self.clock_ms.replace(clock_ms).unwrap_or(0));
        let most = (self.policy.lease_ms / STEPS_OF_A_LEASE).max(LEAST_STEP_MS);
        self.now_ms = self.now_ms.saturating_add(step.min(most));
    }

    /// Jobs in progress.
    #[must_use]
    pub fn jobs(&self) -> usize {
        self.jobs.len()
    }
}

/// Tells of an event, and records it where it changes a fact.
fn tell(job: JobId, event: JobEvent, out: &mut Vec<Effect>) {
    if let JobEvent::Redo { work, .. } = &event
        && work.kind != WorkKind::Joint
    {
        out.push(Effect::Record(Fact::Retracted { job, work: *work }));
    }
    out.push(Effect::Notify { job, event });
}
