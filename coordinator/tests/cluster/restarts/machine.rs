//! Nodes of these lives: they keep what was not acknowledged, name what they hold when they come back, and repeat themselves.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Event, Life, SIZE, key_of};
use crate::toy::{MODEL, compute};
use obelysk_coordinator::core::{Input, JobId, Needs, NodeId, Work};
use obelysk_node::engine::EngineError;
use obelysk_protocol::wire::BlobRef;

/// An assignment as a node has it.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) epoch: u64,
    pub(super) job: JobId,
    pub(super) work: Work,
    pub(super) spec: BlobRef,
    pub(super) inputs: Vec<BlobRef>,
    pub(super) extra: BlobRef,
}

#[derive(Debug, Clone)]
pub(super) enum Said {
    Hello(BTreeSet<u64>),
    Holding(Held),
    Done(u64, Vec<u8>),
    Failed(u64, bool, String),
}

#[derive(Debug, Clone)]
pub(super) enum Told {
    Assign(Held),
    Resume(u64),
    Ack(u64),
    Cancel(u64),
}

/// Bytes, or whether it blames its inputs, and why.
type Outcome = Result<Vec<u8>, (bool, String)>;

#[derive(Debug)]
pub(super) struct Machine {
    /// In percent of its results.
    pub(super) lies: u64,
    /// Counts its deaths.
    life: u64,
    session: Option<u64>,
    device: VecDeque<Held>,
    unacked: BTreeMap<u64, (Held, Outcome)>,
    asked: BTreeSet<u64>,
}

impl Machine {
    pub(super) fn new(lies: u64) -> Self {
        let (device, unacked, asked) = (VecDeque::new(), BTreeMap::new(), BTreeSet::new());
        Self { lies, life: 0, session: None, device, unacked, asked }
    }
}

impl Life {
    fn machine(&mut self, key: u8) -> &mut Machine {
        self.machines.get_mut(&key).expect("one of ours")
    }

    /// A leader tells a machine something, if it is still connected when it arrives.
    pub(super) fn say(&mut self, term: u64, key: u8, told: Told) {
        if key != 0 {
            self.later(3, Event::Told(term, key, told));
        }
    }

    pub(super) fn tell(&mut self, term: u64, key: u8, told: Told) {
        if self.machine(key).session != Some(term) {
            return;
        }
        match told {
            Told::Assign(held) => {
                self.machine(key).device.push_back(held);
                if self.machine(key).device.len() == 1 {
                    self.work(key);
                }
            }
            Told::Resume(epoch) => {
                self.machine(key).asked.remove(&epoch);
                self.deliver(key, epoch);
            }
            Told::Ack(epoch) => {
                self.machine(key).unacked.remove(&epoch);
            }
            Told::Cancel(epoch) => {
                self.machine(key).asked.remove(&epoch);
                if let Some((_, result)) = self.machine(key).unacked.get_mut(&epoch) {
                    *result = Err((false, "no longer wanted".to_owned()));
                    self.deliver(key, epoch);
                }
            }
        }
    }

    fn work(&mut self, key: u8) {
        let (life, lies) = (self.machine(key).life, self.machine(key).lies);
        let Some(epoch) = self.machine(key).device.front().map(|held| held.epoch) else { return };
        let mut took = 10 + self.random.below(200);
        if lies == 0 && self.troubles > 0 && self.random.percent(6) {
            self.troubles -= 1;
            if self.random.percent(50) {
                self.later(took, Event::Die(key));
            } else {
                took += 1500 + self.random.below(3000);
            }
        }
        self.later(took, Event::Worked(key, life, epoch));
    }

    pub(super) fn worked(&mut self, key: u8, life: u64, epoch: u64) {
        if self.machine(key).life != life {
            return;
        }
        let Some(held) = self.machine(key).device.pop_front() else { return };
        let result = self.run(key, &held);
        self.machine(key).unacked.insert(epoch, (held, result));
        if !self.machine(key).asked.contains(&epoch) {
            self.deliver(key, epoch);
        }
        self.work(key);
    }

    fn run(&mut self, key: u8, held: &Held) -> Outcome {
        let wanted: Vec<BlobRef> = held.inputs.iter().chain([&held.extra, &held.spec]).copied().collect();
        if wanted.iter().any(|blob| blob.length > 0 && !self.blobs.contains_key(blob)) {
            return Err((false, "no such blob".to_owned()));
        }
        let bytes: Vec<Vec<u8>> = wanted.iter().map(|blob| self.blobs.get(blob).cloned().unwrap_or_default()).collect();
        let inputs: Vec<&[u8]> = bytes[..held.inputs.len()].iter().map(Vec::as_slice).collect();
        let (extra, spec) = (&bytes[held.inputs.len()], &bytes[held.inputs.len() + 1]);
        let truth = compute(held.work.kind, spec, held.work.segment, &inputs, extra, SIZE);
        let lies = self.machine(key).lies;
        if self.random.percent(lies) {
            let mut lie = truth.unwrap_or_else(|_| vec![0; 64]);
            let at = self.random.below(lie.len() as u64) as usize;
            lie[at] ^= 1;
            return Ok(lie);
        }
        truth.map_err(|e| (matches!(e, EngineError::Disagrees(_)), e.to_string()))
    }

    /// Sends a result; sometimes twice, the second time late.
    fn deliver(&mut self, key: u8, epoch: u64) {
        let Some(term) = self.machine(key).session else { return };
        let Some((_, result)) = self.machine(key).unacked.get(&epoch) else { return };
        let said = match result.clone() {
            Ok(bytes) => Said::Done(epoch, bytes),
            Err((disagrees, reason)) => Said::Failed(epoch, disagrees, reason),
        };
        let delay = 1 + self.random.below(30);
        if self.random.percent(10) {
            let late = delay + self.random.below(2000);
            self.later(late, Event::Said(term, key, said.clone()));
        }
        self.later(delay, Event::Said(term, key, said));
    }

    /// What a leader hears, if it still lives.
    pub(super) fn hear(&mut self, term: u64, key: u8, said: Said) -> Result<(), String> {
        let Some(leader) = self.leaders.get_mut(&term) else { return Ok(()) };
        let node = leader.roster.meet(key_of(key)).ok_or("too many machines")?;
        if let Said::Hello(held) = &said {
            self.audit.greeted(term, node, held);
        }
        let input = match said {
            Said::Hello(held) => Input::NodeJoined { node, models: BTreeSet::from([MODEL]), cores: 1 + u32::from(key), held },
            Said::Holding(Held { epoch, job, work, inputs, extra, .. }) => {
                Input::NodeHolds { node, epoch, job, work, inputs, extra }
            }
            // Bytes are taken under a lease alone, and are on disk before the brain hears of them.
            Said::Done(epoch, bytes) if leader.grants.contains(&epoch) => {
                Input::WorkDone { node, epoch, output: self.keep(bytes), core_us: 1, peak_bytes: 1 }
            }
            Said::Done(epoch, _) => Input::WorkFailed { node, epoch, disagrees: false, reason: "result not taken".to_owned() },
            Said::Failed(epoch, disagrees, reason) => Input::WorkFailed { node, epoch, disagrees, reason },
        };
        self.feed(term, input)
    }

    pub(super) fn dial(&mut self, key: u8) {
        if self.machine(key).session.is_some() {
            return;
        }
        let Some(term) = self.leading() else {
            let pause = 50 + self.random.below(300);
            return self.later(pause, Event::Dial(key));
        };
        let machine = self.machine(key);
        machine.session = Some(term);
        let all: Vec<Held> = machine.device.iter().chain(machine.unacked.values().map(|(held, _)| held)).cloned().collect();
        machine.asked = all.iter().map(|held| held.epoch).collect();
        let hello = Said::Hello(machine.asked.clone());
        self.later(2, Event::Said(term, key, hello));
        for held in all {
            self.later(2, Event::Said(term, key, Said::Holding(held)));
        }
    }

    /// A connection breaks; the machine comes back with what it has.
    pub(super) fn cut(&mut self, key: u8, term: u64) {
        if self.machine(key).session == Some(term) {
            self.machine(key).session = None;
            let pause = 20 + self.random.below(1500);
            self.later(pause, Event::Dial(key));
        }
    }

    /// A machine loses everything; its leader sees it go and come again.
    pub(super) fn die(&mut self, key: u8) {
        let term = self.machine(key).session;
        let lies = self.machine(key).lies;
        let life = self.machine(key).life + 1;
        *self.machine(key) = Machine { life, ..Machine::new(lies) };
        self.later(300, Event::Dial(key));
        let node = term.and_then(|term| self.leaders.get(&term)?.roster.number(key_of(key)));
        if let (Some(term), Some(node)) = (term, node) {
            self.later(100, Event::Own(term, Input::NodeAway { node }));
        }
    }

    pub(super) fn ask_referee(&mut self, term: u64, epoch: u64, work: Work, needs: &Needs) {
        let (inputs, extra) = (needs.inputs.clone(), needs.extra);
        let held = Held { epoch, job: super::JOB, work, spec: self.spec, inputs, extra };
        self.machines.entry(0).or_insert(Machine::new(0));
        let result = self.run(0, &held);
        self.machines.remove(&0);
        let node = NodeId::REFEREE;
        let input = match result {
            Ok(bytes) => Input::WorkDone { node, epoch, output: self.keep(bytes), core_us: 1, peak_bytes: 1 },
            Err((disagrees, reason)) => Input::WorkFailed { node, epoch, disagrees, reason },
        };
        self.later(30, Event::Own(term, input));
    }
}
