//! Fleets in virtual time against the brain: machines of every speed, stalls, preemptions, races of second leases, several jobs.
//!
//! Held in every life: all jobs end with the bytes of an undisturbed run; no item has more than two live leases or is accepted twice; nobody
//! is quarantined, because nobody lies. `OBELYSK_SIM_SEED=n` replays one life.

use std::collections::{BTreeMap, BTreeSet};

use crate::toy::{MODEL, Toy, challenge, compute, expected_proof, spec};
use obelysk_coordinator::core::view::Standing;
use obelysk_coordinator::core::{Effect, Input, JobEvent, JobId, Needs, NodeId, Policy, State, Work};
use obelysk_node::engine::{Checker as _, Pieces};
use obelysk_protocol::wire::BlobRef;

const POLICY: Policy = Policy { lease_ms: 60_000, away_grace_ms: 500, wait_deadline_ms: 200_000, retry_pause_ms: 100 };
const SIZE: usize = 64;
/// Milliseconds of one item on a machine of speed 100.
const ITEM_MS: u64 = 400;
/// Virtual end of a life.
const LIFE_MS: u64 = 4_000_000;

pub fn job(n: u8) -> JobId {
    JobId([n; 32])
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Machine {
    /// In percent of the reference.
    pub speed: u64,
    pub memory: u64,
    /// Percent of its items that take thirty times as long.
    pub stalls: u64,
    /// Percent of its items after whose start it is taken away with notice, to come back later.
    pub preempted: u64,
    /// Percent of its items that fail.
    pub fails: u64,
    /// It was never calibrated: the brain takes it for the reference.
    pub unknown: bool,
    /// So many times as much progress as it makes, whatever it makes, it says until this permille, and then a little at a time for ever.
    pub dawdles: Option<u32>,
    /// Cores it says it has, if not one.
    pub claims: Option<u32>,
}

pub const fn machine(speed: u64) -> Machine {
    Machine { speed, memory: 0, stalls: 0, preempted: 0, fails: 0, unknown: false, dawdles: None, claims: None }
}

pub struct World {
    random: Random,
    state: State,
    now: u64,
    sequence: u64,
    events: BTreeMap<(u64, u64), Input>,
    blobs: BTreeMap<BlobRef, Vec<u8>>,
    pub machines: BTreeMap<NodeId, Machine>,
    specs: BTreeMap<JobId, Vec<u8>>,
    accepted: BTreeSet<(JobId, Work)>,
    leases: BTreeMap<u64, (JobId, Work, NodeId)>,
    /// Every assignment there was.
    pub assigned: Vec<(u64, JobId, Work, NodeId)>,
    pub seconds: usize,
    pub lost: Vec<String>,
    pub ends: BTreeMap<JobId, (u64, Result<Vec<u8>, String>)>,
    /// An item that takes down whoever runs it.
    pub lethal: Option<(JobId, Work)>,
    /// What the coordinator's clock is ahead, and how far it jumps now and then.
    pub ahead_ms: u64,
    pub jumps_ms: u64,
}

impl World {
    pub fn new(seed: u64, machines: &[Machine]) -> Self {
        let mut world = Self {
            random: Random(seed),
            state: State::new(POLICY),
            now: 0,
            sequence: 0,
            events: BTreeMap::new(),
            blobs: BTreeMap::new(),
            machines: BTreeMap::new(),
            specs: BTreeMap::new(),
            accepted: BTreeSet::new(),
            leases: BTreeMap::new(),
            assigned: Vec::new(),
            seconds: 0,
            lost: Vec::new(),
            ends: BTreeMap::new(),
            lethal: None,
            ahead_ms: 0,
            jumps_ms: 0,
        };
        for (i, machine) in machines.iter().enumerate() {
            let node = NodeId(i as u32 + 1);
            world.machines.insert(node, *machine);
            world.join(node, 0);
        }
        world.later(1, Input::Tick);
        world
    }

    fn later(&mut self, delay: u64, input: Input) {
        self.sequence += 1;
        self.events.insert((self.now + delay, self.sequence), input);
    }

    fn join(&mut self, node: NodeId, delay: u64) {
        let Machine { speed, memory, unknown, claims, .. } = self.machines[&node];
        let core_us = (!unknown).then_some([5_000_000 / speed; 4]);
        self.later(delay, Input::NodeMeasured { node, core_us, memory_bytes: memory });
        let models = BTreeSet::from([MODEL]);
        self.later(delay, Input::NodeJoined { node, models, cores: claims.unwrap_or(1), held: BTreeSet::new() });
    }

    pub fn submit(&mut self, job: JobId, segments: u32, priority: u8, peak_bytes: Vec<u64>) {
        let bytes = spec(segments, u64::from(job.0[0]));
        let blob = self.keep(bytes.clone());
        self.specs.insert(job, bytes);
        self.later(2, Input::JobSized { job, priority, peak_bytes });
        self.later(2, Input::JobSubmitted { job, model: MODEL, spec: blob, segments });
    }

    fn keep(&mut self, bytes: Vec<u8>) -> BlobRef {
        let blob = BlobRef::of(&bytes);
        self.blobs.insert(blob, bytes);
        blob
    }

    fn bytes(&self, blob: BlobRef) -> Vec<u8> {
        if blob.length == 0 { Vec::new() } else { self.blobs[&blob].clone() }
    }

    fn all(&self, blobs: &[BlobRef]) -> Vec<Vec<u8>> {
        blobs.iter().map(|blob| self.bytes(*blob)).collect()
    }

    /// Runs until all jobs ended.
    pub fn live(&mut self) {
        while let Some(((now, _), input)) = self.events.pop_first() {
            if self.ends.len() == self.specs.len() || now > LIFE_MS {
                break;
            }
            self.now = now;
            if input == Input::Tick {
                self.later(50, Input::Tick);
                if self.jumps_ms > 0 && self.random.below(20) == 0 {
                    self.ahead_ms = self.random.below(self.jumps_ms);
                }
            }
            let effects = self.state.apply(now + self.ahead_ms, input);
            self.state.audit().unwrap_or_else(|what| panic!("at {now}: {what}"));
            effects.into_iter().for_each(|effect| self.effect(effect));
        }
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Assign { node, epoch, job, work, spec, needs, .. } => {
                let others = self.leases.values().filter(|(j, w, _)| (*j, *w) == (job, work));
                let live = others.map(|(.., other)| assert_ne!(*other, node, "{work}: two leases on one node")).count();
                assert!(live < 2, "{work} has {live} leases and gets another");
                self.seconds += live;
                self.leases.insert(epoch, (job, work, node));
                self.assigned.push((self.now, job, work, node));
                self.run(node, epoch, work, spec, &needs);
            }
            Effect::Ack { epoch, .. } => drop(self.leases.remove(&epoch)),
            Effect::Revoke { node, epoch } => {
                self.leases.remove(&epoch);
                if self.machines[&node].claims.is_some() {
                    // Ready for the next at once.
                    self.later(1, Input::WorkFailed { node, epoch, disagrees: false, reason: "revoked".to_owned() });
                }
            }
            Effect::Check { job, work, epoch, spec, needs, output, .. } => {
                let inputs = self.all(&needs.inputs.iter().chain(&needs.against).copied().collect::<Vec<_>>());
                let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
                let [spec, extra, output] = [spec, needs.extra, output].map(|b| self.bytes(b));
                let verdict = Toy { size: SIZE }.check(&spec, work.kind, work.segment, &inputs, &extra, &output);
                self.later(1, Input::CheckResult { job, work, epoch, verdict });
            }
            Effect::DeriveChallenge { job, commits, .. } => {
                let parts = self.all(&commits);
                let extra = self.keep(challenge(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>()));
                self.later(1, Input::ChallengeDerived { job, commits, result: Ok(extra) });
            }
            Effect::Finish { job, spec, commits, challenge, proves, opens, joint: _ } => {
                let lists = [commits, proves, opens].map(|l| self.all(&l));
                let [commits, proves, opens] = lists.each_ref().map(|l| l.iter().map(Vec::as_slice).collect::<Vec<_>>());
                let challenge = self.bytes(challenge);
                let pieces = Pieces { commits: &commits, challenge: &challenge, proves: &proves, opens: &opens };
                let proof = Toy { size: SIZE }.finish(&self.bytes(spec), pieces).map_err(|e| e.to_string());
                let result = proof.map(|proof| self.keep(proof));
                self.later(1, Input::Finished { job, result });
            }
            Effect::Quarantine { node, reason } => panic!("{node} quarantined, and nobody lies: {reason}"),
            Effect::Publish { job, proof, .. } => {
                let end = (self.now, Ok(self.bytes(proof)));
                assert!(self.ends.insert(job, end).is_none(), "two ends");
            }
            Effect::FailJob { job, failure } => {
                assert!(self.ends.insert(job, (self.now, Err(failure.to_string()))).is_none(), "two ends");
            }
            Effect::Notify { job, event: JobEvent::Accepted { work, .. } } => {
                assert!(self.accepted.insert((job, work)), "{work} accepted twice");
            }
            Effect::Notify { job, event: JobEvent::Redo { work, .. } } => {
                assert!(self.accepted.remove(&(job, work)), "{work} taken back without being accepted");
            }
            Effect::Notify { job, event: JobEvent::Lost { work, node, reason } } => {
                self.leases.retain(|_, (j, w, n)| (*j, *w, *n) != (job, work, node));
                self.lost.push(reason);
            }
            _ => {}
        }
    }

    fn run(&mut self, node: NodeId, epoch: u64, work: Work, spec: BlobRef, needs: &Needs) {
        let machine = self.machines[&node];
        if self.leases.get(&epoch).is_some_and(|(job, ..)| self.lethal == Some((*job, work))) {
            return self.later(ITEM_MS / 2, Input::NodeAway { node });
        }
        if let Some(permille) = machine.dawdles {
            return self.dawdle(node, epoch, permille);
        }
        let mut took = (ITEM_MS + self.random.below(ITEM_MS / 4)) * 100 / machine.speed;
        if self.random.below(100) < machine.fails {
            let reason = "out of memory".to_owned();
            return self.later(took, Input::WorkFailed { node, epoch, disagrees: false, reason });
        }
        if self.random.below(100) < machine.preempted {
            self.later(took / 2, Input::NodeDraining { node });
            self.later(took / 2, Input::WorkReturned { node, epoch });
            self.later(took / 2 + 1, Input::NodeLeft { node });
            self.join(node, took / 2 + 5000);
            return;
        }
        if self.random.below(100) < machine.stalls {
            took *= 30;
        }
        (1..10).for_each(|i| self.later(took * i / 10, Input::Progress { node, epoch, permille: i as u32 * 80 }));
        let inputs = self.all(&needs.inputs);
        let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
        let (spec, extra) = (self.bytes(spec), self.bytes(needs.extra));
        let blob = compute(work.kind, &spec, work.segment, &inputs, &extra, SIZE).expect("inputs are right: nobody lies");
        let (output, core_us) = (self.keep(blob), took * 1000);
        self.later(took, Input::WorkDone { node, epoch, output, core_us, peak_bytes: 1 });
    }

    /// Says that it is nearly done, and then a little more just before each end of its lease.
    fn dawdle(&mut self, node: NodeId, epoch: u64, permille: u32) {
        for (i, permille) in (permille..=1000).enumerate() {
            self.later(1 + i as u64 * POLICY.lease_ms * 9 / 10, Input::Progress { node, epoch, permille });
        }
    }

    /// Nodes that are here, as the brain has it.
    pub fn here(&self) -> usize {
        self.state.view().nodes.iter().filter(|node| node.standing == Standing::Here).count()
    }

    /// When a job ended, its bytes being right.
    pub fn proved(&self, job: JobId) -> u64 {
        let (at, end) = self.ends.get(&job).expect("the job ends");
        match end {
            Ok(proof) => assert!(*proof == expected_proof(&self.specs[&job], SIZE), "other bytes than an undisturbed run"),
            Err(failure) => panic!("{job}: {failure}"),
        }
        *at
    }
}

fn one_life(seed: u64) -> usize {
    let mut shape = Random(!seed);
    let mut machines: Vec<Machine> = (0..1 + shape.below(7))
        .map(|_| Machine {
            speed: [100, 100, 60, 25, 5][shape.below(5) as usize],
            stalls: shape.below(12),
            preempted: shape.below(12),
            ..Machine::default()
        })
        .collect();
    machines.push(machine(100));
    let mut world = World::new(seed, &machines);
    let jobs = 1 + shape.below(3) as u8;
    for n in 1..=jobs {
        world.submit(job(n), 1 + shape.below(8) as u32, shape.below(10) as u8, Vec::new());
    }
    world.live();
    for n in 1..=jobs {
        world.proved(job(n));
    }
    world.seconds
}

#[test]
fn fleets_of_every_speed_end_with_the_same_bytes() {
    let replay = std::env::var("OBELYSK_SIM_SEED").ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = replay.map_or(0..400, |seed| seed..seed + 1);
    let mut seconds = 0;
    for seed in seeds.clone() {
        let life = std::panic::catch_unwind(|| one_life(seed));
        seconds += life.unwrap_or_else(|_| panic!("life {seed} (replay with OBELYSK_SIM_SEED={seed})"));
    }
    println!("{seconds} second leases");
    assert!(seeds.end - seeds.start < 100 || seconds > 20, "only {seconds} second leases: the race is not run");
}

#[test]
fn a_machine_twenty_times_as_slow_does_not_hold_a_job_up() {
    let ends = |machines: &[Machine]| {
        let mut world = World::new(3, machines);
        world.submit(job(1), 12, 5, Vec::new());
        world.live();
        (world.proved(job(1)), world)
    };
    let (fast, _) = ends(&[machine(100); 3]);
    let (mixed, world) = ends(&[machine(5), machine(100), machine(100), machine(100)]);
    println!("{fast} ms with three machines, {mixed} ms with one more that is twenty times as slow");
    assert!(mixed * 10 <= fast * 16, "{mixed} ms against {fast} ms");
    assert!(world.lost.is_empty(), "{:?}", world.lost);
}

/// One item takes thirty times as long as the others: somebody idle does it again, long before its lease would end.
#[test]
fn a_straggler_gets_a_second_lease_and_the_loser_is_no_fault() {
    let mut raced = 0;
    for seed in 0..20 {
        let sometimes = Machine { stalls: 10, ..machine(100) };
        let mut world = World::new(seed, &[machine(100), machine(100), sometimes]);
        world.submit(job(1), 10, 5, Vec::new());
        world.submit(job(2), 10, 5, Vec::new());
        world.live();
        world.proved(job(1));
        world.proved(job(2));
        assert!(world.lost.is_empty(), "life {seed}: {:?}", world.lost);
        raced += world.seconds;
    }
    assert!(raced > 0);
}

#[test]
fn priorities_are_shares_and_nobody_starves() {
    let ends = |priorities: [u8; 2]| {
        let mut world = World::new(5, &[machine(100); 4]);
        world.submit(job(1), 12, priorities[0], Vec::new());
        world.submit(job(2), 12, priorities[1], Vec::new());
        world.live();
        (world.proved(job(1)), world.proved(job(2)), world)
    };
    let (first, second, _) = ends([5, 5]);
    assert!(first.abs_diff(second) * 4 <= first.max(second), "equals end together: {first} ms, {second} ms");
    let (low, high, world) = ends([0, 9]);
    assert!(high < low, "{high} ms with priority 9, {low} ms with 0");
    let before = world.assigned.iter().filter(|(at, id, ..)| *id == job(1) && *at < high).count();
    assert!(before > 0, "the lower priority got nothing until the higher was done");
}

#[test]
fn a_segment_is_never_given_to_a_machine_without_the_memory() {
    let small = Machine { memory: 50, ..machine(100) };
    let mut world = World::new(7, &[small, small, Machine { memory: 500, ..machine(25) }]);
    world.submit(job(1), 4, 5, vec![10, 10, 200, 10]);
    world.live();
    world.proved(job(1));
    let mut large = world.assigned.iter().filter(|(.., work, _)| work.segment == 2).peekable();
    // However little was seen to be enough so far.
    assert!(large.peek().is_some() && large.all(|(.., node)| *node == NodeId(3)));
    let mut nobody = World::new(7, &[small]);
    nobody.submit(job(1), 2, 5, vec![10, 200]);
    nobody.live();
    let (_, end) = &nobody.ends[&job(1)];
    assert!(end.as_ref().is_err_and(|failure| failure.contains("no node could work")), "{end:?}");
    assert!(nobody.assigned.iter().all(|(.., work, _)| work.segment == 0));
}

#[test]
fn a_machine_that_keeps_failing_is_set_aside() {
    let broken = Machine { fails: 100, ..machine(100) };
    let mut world = World::new(9, &[broken, machine(100)]);
    for n in 1..=4 {
        world.submit(job(n), 8, 5, Vec::new());
    }
    world.live();
    for n in 1..=4 {
        world.proved(job(n));
    }
    let tries = world.assigned.iter().filter(|(.., node)| *node == NodeId(1)).count();
    let most = obelysk_coordinator::core::MAX_FAULTS + 1;
    // Set aside for 30 s, then for twice as long each time.
    assert!((most..=3 * most).contains(&tries), "{tries} tries of a machine that fails always");
}

#[test]
fn a_job_that_would_wait_for_a_day_is_refused_with_how_long() {
    let mut world = World::new(11, &[machine(100)]);
    world.submit(job(1), 2, 5, Vec::new());
    world.live();
    world.proved(job(1));
    // 400 ms an item, measured: a day is some 216,000 items.
    world.submit(job(2), 50_000, 5, Vec::new());
    let events: Vec<Input> = std::mem::take(&mut world.events).into_values().filter(|i| *i != Input::Tick).collect();
    let now = world.now + 10;
    let effects: Vec<Effect> = events.into_iter().flat_map(|input| world.state.apply(now, input)).collect();
    assert!(!effects.iter().any(|e| matches!(e, Effect::FailJob { .. })), "the first is taken");
    let large = Input::JobSubmitted { job: job(3), model: MODEL, spec: BlobRef::of(b"x"), segments: 60_000 };
    let refused = world.state.apply(now, large);
    let [Effect::FailJob { failure, .. }] = refused.as_slice() else { panic!("{refused:?}") };
    assert!(failure.to_string().contains("submit again in"), "{failure}");
}
