//! Thousands of cluster lives against the pure brain: kills, stalls, lies, failures, duplicates, late results, in virtual time.
//!
//! Held in every life: the job ends; it ends with the bytes of an undisturbed run or with a clear error; no item is accepted
//! twice without being taken back between; honest nodes are not quarantined; and where disturbances are few enough that the
//! brain promises success, it succeeds. `OBELYSK_SIM_SEED=n` replays one life, `OBELYSK_SIM_LIVES=n` sets their number.

use std::collections::{BTreeMap, BTreeSet};

use crate::toy::{MODEL, Toy, compute, expected_proof, joined, joint_spec, shameless, spec};
use obelysk_coordinator::core::{Effect, Input, JobEvent, JobId, Needs, NodeId, Policy, State, Work};
use obelysk_node::engine::{Checker, EngineError, WorkKind};
use obelysk_protocol::wire::BlobRef;

const POLICY: Policy = Policy { lease_ms: 1000, away_grace_ms: 500, wait_deadline_ms: 20_000, retry_pause_ms: 100 };
const SIZE: usize = 64;
const JOB: JobId = JobId([1; 32]);
/// Virtual end of a life: far beyond what any healthy one takes.
const LIFE_MS: u64 = 600_000;

/// SplitMix64: small, seeded, and the same on every machine.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn percent(&mut self, p: u64) -> bool {
        self.below(100) < p
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Machine {
    up: bool,
    /// In percent of its results.
    lies: u64,
    immortal: bool,
}

struct Life {
    random: Random,
    state: State,
    now: u64,
    sequence: u64,
    events: BTreeMap<(u64, u64), Input>,
    blobs: BTreeMap<BlobRef, Vec<u8>>,
    machines: BTreeMap<NodeId, Machine>,
    accepted: BTreeSet<Work>,
    quarantined: BTreeSet<NodeId>,
    disturbances: u64,
    /// The joint step at hand, and the one in which who does segment 0 dies.
    step: Option<u32>,
    deadly: Option<u32>,
    log: Vec<String>,
    end: Option<Result<Vec<u8>, String>>,
    /// What the brain keeps up to date and does not.
    wrong: Option<String>,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let mut machines = BTreeMap::new();
        let nodes = 1 + random.below(5);
        let liars = random.below(nodes);
        for n in 0..nodes {
            let lies = if n != 0 && n <= liars { 10 + random.below(91) } else { 0 };
            machines.insert(NodeId(n as u32 + 1), Machine { up: true, lies, immortal: n == 0 });
        }
        if random.percent(50) {
            machines.insert(NodeId::REFEREE, Machine { up: true, lies: 0, immortal: true });
        }
        let disturbances = if random.percent(30) { 0 } else { random.below(10) };
        Self {
            random,
            state: State::new(POLICY),
            now: 0,
            sequence: 0,
            events: BTreeMap::new(),
            blobs: BTreeMap::new(),
            machines,
            accepted: BTreeSet::new(),
            quarantined: BTreeSet::new(),
            disturbances,
            step: None,
            deadly: None,
            log: Vec::new(),
            end: None,
            wrong: None,
        }
    }

    fn later(&mut self, delay: u64, input: Input) {
        self.sequence += 1;
        self.events.insert((self.now + delay, self.sequence), input);
    }

    fn keep(&mut self, bytes: Vec<u8>) -> BlobRef {
        let blob = BlobRef::of(&bytes);
        self.blobs.insert(blob, bytes);
        blob
    }

    fn bytes(&self, blob: BlobRef) -> Vec<u8> {
        if blob.length == 0 { Vec::new() } else { self.blobs[&blob].clone() }
    }

    fn join(&mut self, node: NodeId) {
        let models = BTreeSet::from([MODEL]);
        self.later(1, Input::NodeJoined { node, models, cores: 1 + node.0 % 3, held: BTreeSet::new() });
    }

    /// Runs to the end of the job.
    fn live(&mut self, spec: &[u8], segments: u32) {
        for node in self.machines.keys().copied().collect::<Vec<_>>() {
            self.join(node);
        }
        let spec = self.keep(spec.to_vec());
        self.later(2, Input::JobSubmitted { job: JOB, model: MODEL, spec, segments });
        self.later(0, Input::Tick);
        while let (None, Some(((now, _), input))) = (&self.end, self.events.pop_first()) {
            self.now = now;
            if input == Input::Tick {
                if now < LIFE_MS {
                    self.later(50, Input::Tick);
                }
            } else {
                self.log.push(format!("{now} > {input:?}"));
            }
            // What a dead machine sent before it died still arrives; what it sends after does not exist.
            let effects = self.state.apply(now, input);
            if let Err(what) = self.state.audit() {
                return self.wrong = Some(what);
            }
            for effect in effects {
                self.log.push(format!("{now}   < {effect:?}"));
                self.effect(effect);
            }
        }
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Assign { node, epoch, work, spec, needs, .. } => self.run(node, epoch, work, spec, needs),
            Effect::Check { job, work, epoch, spec, needs, output, .. } => {
                let inputs: Vec<Vec<u8>> = needs.inputs.iter().chain(&needs.against).map(|b| self.bytes(*b)).collect();
                let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
                let [spec, extra, output] = [spec, needs.extra, output].map(|b| self.bytes(b));
                let verdict = Toy { size: SIZE }.check(&spec, work.kind, work.segment, &inputs, &extra, &output);
                let delay = self.random.below(20);
                self.later(delay, Input::CheckResult { job, work, epoch, verdict });
            }
            Effect::DeriveChallenge { job, commits, .. } => {
                let parts: Vec<Vec<u8>> = commits.iter().map(|b| self.bytes(*b)).collect();
                let extra = self.keep(crate::toy::challenge(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>()));
                self.later(5, Input::ChallengeDerived { job, commits, result: Ok(extra) });
            }
            Effect::Finish { job, spec, commits, challenge, proves, opens, joint } => {
                let all = |list: Vec<BlobRef>| list.iter().map(|b| self.bytes(*b)).collect::<Vec<_>>();
                let joint = joint.map(|(step, parts)| (step, self.bytes(step), all(parts)));
                let (lists, challenge, spec) = ([commits, proves, opens].map(all), self.bytes(challenge), self.bytes(spec));
                let input = joined(job, &spec, (lists, &challenge), joint, |bytes| self.keep(bytes));
                self.later(5, input);
            }
            Effect::Notify { event: JobEvent::Joining { number }, .. } => {
                self.accepted.retain(|work| work.kind != WorkKind::Joint);
                self.step = Some(number);
            }
            Effect::Quarantine { node, .. } => {
                self.quarantined.insert(node);
            }
            Effect::Publish { proof, .. } => {
                assert!(self.end.is_none(), "two ends");
                self.end = Some(Ok(self.bytes(proof)));
            }
            Effect::FailJob { failure, .. } => {
                assert!(self.end.is_none(), "two ends");
                self.end = Some(Err(failure.to_string()));
            }
            Effect::Notify { event: JobEvent::Accepted { work, .. }, .. } => {
                assert!(self.accepted.insert(work), "{work} accepted twice");
            }
            Effect::Notify { event: JobEvent::Redo { work, .. }, .. } => {
                assert!(self.accepted.remove(&work), "{work} taken back without being accepted");
            }
            Effect::Record(_) | Effect::Opened { .. } | Effect::Resume { .. } | Effect::Forgotten { .. } => {}
            Effect::Notify { .. } | Effect::Ack { .. } | Effect::Revoke { .. } => {}
        }
    }

    /// What a machine makes of an assignment: mostly the truth, sometimes a lie, sometimes trouble.
    fn run(&mut self, node: NodeId, epoch: u64, work: Work, spec: BlobRef, needs: Needs) {
        let machine = self.machines[&node];
        if !machine.up {
            return;
        }
        let took = 10 + self.random.below(200);
        let joint = Work::new(WorkKind::Joint, 0) == work;
        if joint && node.0 > 1 && self.deadly.is_some() && self.step == self.deadly {
            self.deadly = None;
            return self.die(node, took);
        }
        if !machine.immortal && self.disturbances > 0 && self.random.percent(15) {
            self.disturbances -= 1;
            match self.random.below(5) {
                0 => return self.die(node, took),
                1 => {
                    // Stuck for a while, then late.
                    let late = POLICY.lease_ms + self.random.below(5000);
                    return self.answer(node, epoch, work, spec, &needs, late);
                }
                2 => {
                    let reason = "out of memory".to_owned();
                    return self.later(took, Input::WorkFailed { node, epoch, disagrees: false, reason });
                }
                3 => self.answer(node, epoch, work, spec, &needs, took + 30),
                _ => {
                    // Fell off the network and came back holding its work.
                    self.later(took / 2, Input::NodeAway { node });
                    let (models, held) = (BTreeSet::from([MODEL]), BTreeSet::from([epoch]));
                    self.later(took, Input::NodeJoined { node, models, cores: 1, held });
                }
            }
        }
        self.later(took / 2, Input::Progress { node, epoch, permille: 500 });
        self.answer(node, epoch, work, spec, &needs, took);
    }

    fn die(&mut self, node: NodeId, delay: u64) {
        self.later(delay, Input::NodeAway { node });
        if self.random.percent(50) {
            self.later(
                delay + 2000,
                Input::NodeJoined { node, models: BTreeSet::from([MODEL]), cores: 1, held: BTreeSet::new() },
            );
        } else if let Some(machine) = self.machines.get_mut(&node) {
            machine.up = false;
        }
    }

    fn answer(&mut self, node: NodeId, epoch: u64, work: Work, spec: BlobRef, needs: &Needs, delay: u64) {
        let inputs: Vec<Vec<u8>> = needs.inputs.iter().map(|b| self.bytes(*b)).collect();
        let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
        let (spec, extra) = (self.bytes(spec), self.bytes(needs.extra));
        let truth = compute(work.kind, &spec, work.segment, &inputs, &extra, SIZE);
        let lie = self.random.percent(self.machines[&node].lies);
        let result = if lie { self.lie(work, truth, &inputs, &extra) } else { truth };
        let input = match result {
            Ok(blob) => Input::WorkDone { node, epoch, output: self.keep(blob), core_us: 1, peak_bytes: 1 },
            Err(e) => {
                let disagrees = matches!(e, EngineError::Disagrees(_));
                Input::WorkFailed { node, epoch, disagrees, reason: e.to_string() }
            }
        };
        self.later(delay, input);
    }

    fn lie(
        &mut self,
        work: Work,
        truth: Result<Vec<u8>, EngineError>,
        inputs: &[&[u8]],
        extra: &[u8],
    ) -> Result<Vec<u8>, EngineError> {
        let unseen =
            shameless(work.kind, work.segment, inputs, extra).filter(|lie| truth.as_ref().is_ok_and(|t| t.len() == lie.len()));
        let mut blob =
            truth.or_else(|_| shameless(work.kind, work.segment, inputs, extra).ok_or(())).unwrap_or_else(|()| vec![0; 64]);
        if let Some(lie) = unseen.filter(|_| self.random.percent(50)) {
            return Ok(lie);
        }
        match (work.kind, self.random.below(4)) {
            // A root that is wrong while the boundary it reports is right: only the proof shows it.
            (WorkKind::Commit, 0) => blob[0] ^= 1,
            (WorkKind::Commit, 1) => {
                let after = inputs.last().map_or(&[][..], |b| b);
                blob.truncate(32);
                blob.extend_from_slice(&BlobRef::of(after).digest);
            }
            (_, 2) => return Err(EngineError::Disagrees("because".to_owned())),
            (_, 3) => {
                blob.pop();
            }
            _ => {
                let at = self.random.below(blob.len() as u64) as usize;
                blob[at] ^= 1 << self.random.below(8);
            }
        }
        Ok(blob)
    }
}

/// A life of a job with so many joint steps.
fn one_life(seed: u64, steps: u8) -> Result<(bool, bool), String> {
    let mut shape = Random(!seed);
    let segments = 1 + shape.below(6) as u32;
    let spec = if steps == 0 { spec(segments, seed) } else { joint_spec(segments, seed, steps) };
    let mut life = Life::new(seed);
    let (calm, start) = (life.disturbances == 0, life.machines.clone());
    life.live(&spec, segments);
    let refereed = start.contains_key(&NodeId::REFEREE);
    let liars = start.values().filter(|m| m.lies > 0).count();
    let honest = start.iter().filter(|(node, m)| **node != NodeId::REFEREE && m.lies == 0).count();
    let tail = || life.log[life.log.len().saturating_sub(400)..].join("\n");
    let told = |what: String| format!("{what}\n{start:?}\n{}", tail());
    if let Some(wrong) = &life.wrong {
        return Err(told(wrong.clone()));
    }
    // Two liars can outvote one honest node where nobody referees; the proof is safe then, the honest node's name is not.
    if refereed || liars <= 1 {
        let wronged: Vec<_> = life.quarantined.iter().filter(|node| start[node].lies == 0).collect();
        if !wronged.is_empty() {
            return Err(told(format!("honest {wronged:?} quarantined")));
        }
    }
    // An honest node that never dies and nothing but lies: success is promised with a referee, or with an honest majority.
    let promised = calm && (refereed || liars == 0 || (liars == 1 && honest >= 1));
    match &life.end {
        None => Err(told("the job never ended".to_owned())),
        Some(Ok(proof)) if *proof == expected_proof(&spec, SIZE) => Ok((true, promised)),
        Some(Ok(_)) => Err(told("other bytes than an undisturbed run".to_owned())),
        Some(Err(failure)) if promised => Err(told(format!("failed although success was due: {failure}"))),
        Some(Err(_)) => Ok((false, promised)),
    }
}

/// Lives that ended wrongly while the brain had a fault: a doubt outlived its inputs (36), a challenge was drawn from stale commits
/// (2956), three false complaints ended a job that another node could do (3208), a late result counted as second opinion (50621).
const ONCE_FAILED: [u64; 4] = [36, 2956, 3208, 50_621];

#[test]
fn lives_that_once_failed_end_well() {
    for seed in ONCE_FAILED {
        if let Err(what) = one_life(seed, 0) {
            panic!("life {seed}: {what}");
        }
    }
}

#[test]
fn many_lives_end_with_the_same_bytes_or_a_clear_error() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("OBELYSK_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("OBELYSK_SIM_LIVES").unwrap_or(3000),
    };
    // Every life once without joint steps, as in mode 1, and once with some.
    let total = 2 * (seeds.end - seeds.start);
    let (mut proved, mut promised) = (0, 0);
    for (seed, steps) in seeds.flat_map(|seed| [(seed, 0), (seed, 1 + (seed % 5) as u8)]) {
        let outcome = std::panic::catch_unwind(|| one_life(seed, steps)).unwrap_or_else(|_| Err("panicked".to_owned()));
        match outcome {
            Ok((success, due)) => {
                proved += u64::from(success);
                promised += u64::from(due);
            }
            Err(what) => panic!("life {seed} with {steps} joint steps (replay with OBELYSK_SIM_SEED={seed}): {what}"),
        }
    }
    println!("{proved} of {total} lives proved, {promised} were promised to");
    assert!(total < 100 || proved * 10 >= total * 8, "only {proved} of {total} lives ended with a proof");
}

#[test]
fn a_node_lost_in_any_joint_step_costs_neither_the_job_nor_its_bytes() {
    const STEPS: u8 = 8;
    let mut died = 0;
    for (seed, step) in (0..40_u64).flat_map(|seed| (0..u32::from(STEPS)).map(move |step| (seed, step))) {
        let (segments, spec) = (1 + (seed % 5) as u32, joint_spec(1 + (seed % 5) as u32, seed, STEPS));
        let mut life = Life::new(seed);
        life.disturbances = 0;
        life.machines = (1..=3).map(|n| (NodeId(n), Machine { up: true, lies: 0, immortal: false })).collect();
        life.deadly = Some(step);
        life.live(&spec, segments);
        died += u32::from(life.deadly.is_none());
        let tail = || life.log[life.log.len().saturating_sub(200)..].join("\n");
        assert_eq!(life.end, Some(Ok(expected_proof(&spec, SIZE))), "life {seed}, step {step}\n{}", tail());
        let forwards = life.log.iter().filter(|line| line.contains("Redo")).count();
        assert_eq!(forwards, 0, "nothing was done again but the step: life {seed}, step {step}\n{}", tail());
    }
    assert!(died > 100, "only {died} lives lost a node");
}
