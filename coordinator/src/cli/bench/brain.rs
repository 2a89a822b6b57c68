//! `obelysk bench brain`: how long the coordinator's brain thinks about one input, with a large fleet and many items. No work is done.

use super::super::args::BrainArgs;
use super::super::exit::{Code, Failure};
use super::super::output::Out;
use obelysk_coordinator::core::{Effect, Input, JobId, NodeId, Policy, State};
use obelysk_node::engine::Verdict;
use obelysk_protocol::wire::BlobRef;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const MODEL: [u8; 32] = [1; 32];
const POLICY: Policy = Policy { lease_ms: 60_000, away_grace_ms: 20_000, wait_deadline_ms: 600_000, retry_pause_ms: 1000 };
/// Virtual time between looks at the clock, as the server's.
const TICK_MS: u64 = 50;

/// A fleet in virtual time.
struct World {
    state: State,
    now: u64,
    sequence: u64,
    events: BTreeMap<(u64, u64), Input>,
    took: Vec<Duration>,
    leases: usize,
    running: u32,
    failed: Option<String>,
}

/// Runs it and prints quantiles.
pub fn run(out: &Out, args: &BrainArgs) -> Result<(), Failure> {
    let mut world = World {
        state: State::new(POLICY),
        now: 0,
        sequence: 0,
        events: BTreeMap::new(),
        took: Vec::new(),
        leases: 0,
        running: args.jobs,
        failed: None,
    };
    for node in (1..=args.nodes).map(NodeId) {
        let slow = 1 + u64::from(node.0 % 4);
        world.later(0, Input::NodeMeasured { node, core_us: Some([50_000 * slow; 4]), memory_bytes: 0 });
        let (models, held) = (BTreeSet::from([MODEL]), BTreeSet::new());
        world.later(0, Input::NodeJoined { node, models, cores: 8, held });
    }
    for n in 0..args.jobs {
        let job = JobId(*blake3::hash(&n.to_le_bytes()).as_bytes());
        let spec = BlobRef::of(&job.0);
        world.later(1, Input::JobSubmitted { job, model: MODEL, spec, segments: args.segments });
    }
    world.later(2, Input::Tick);
    let started = Instant::now();
    world.live();
    let seconds = started.elapsed().as_secs_f64();
    if let Some(failure) = world.failed {
        return Err(Failure { code: Code::Internal, error: anyhow::anyhow!("a job failed: {failure}") });
    }
    world.took.sort_unstable();
    let at = |permille: usize| world.took[(world.took.len() - 1) * permille / 1000].as_secs_f64() * 1e3;
    let (inputs, leases) = (world.took.len(), world.leases);
    out.json(&serde_json::json!({
        "nodes": args.nodes, "jobs": args.jobs, "segments": args.segments, "inputs": inputs, "leases": leases, "seconds": seconds,
        "p50_ms": at(500), "p99_ms": at(990), "max_ms": at(1000),
    }));
    out.field("fleet", format_args!("{} nodes, {} jobs of {} segments", args.nodes, args.jobs, args.segments));
    out.field("inputs", format_args!("{inputs}, {leases} leases, {seconds:.1} s in all"));
    out.field("per input", format_args!("median {:.3} ms, p99 {:.3} ms, most {:.3} ms", at(500), at(990), at(1000)));
    Ok(())
}

impl World {
    fn later(&mut self, delay: u64, input: Input) {
        self.sequence += 1;
        self.events.insert((self.now + delay, self.sequence), input);
    }

    fn live(&mut self) {
        while self.running > 0 && self.failed.is_none() {
            let Some(((now, _), input)) = self.events.pop_first() else { return };
            self.now = now;
            if input == Input::Tick {
                self.later(TICK_MS, Input::Tick);
            }
            let started = Instant::now();
            let effects = self.state.apply(now, input);
            self.took.push(started.elapsed());
            effects.into_iter().for_each(|effect| self.effect(effect));
        }
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Assign { node, epoch, job, work, .. } => {
                self.leases += 1;
                let ms = 200 * (1 + u64::from(node.0 % 4)) + epoch * 37 % 100;
                let name = [&job.0[..], &work.segment.to_le_bytes(), &[work.kind.code()]].concat();
                self.later(ms / 2, Input::Progress { node, epoch, permille: 500 });
                let done = Input::WorkDone { node, epoch, output: BlobRef::of(&name), core_us: 8 * ms * 1000, peak_bytes: 1 };
                self.later(ms, done);
            }
            Effect::Check { job, work, epoch, .. } => {
                self.later(1, Input::CheckResult { job, work, epoch, verdict: Verdict::Accept });
            }
            Effect::DeriveChallenge { job, commits, .. } => {
                self.later(1, Input::ChallengeDerived { job, commits, result: Ok(BlobRef::of(b"challenge")) });
            }
            Effect::Finish { job, .. } => self.later(1, Input::Finished { job, result: Ok(BlobRef::of(b"proof")) }),
            Effect::Publish { .. } => self.running -= 1,
            Effect::FailJob { failure, .. } => self.failed = Some(failure.to_string()),
            _ => {}
        }
    }
}
