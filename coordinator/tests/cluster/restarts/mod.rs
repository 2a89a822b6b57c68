//! Thousands of lives of a cluster whose coordinator ends at any moment and begins again from what was agreed, sometimes while the old
//! one still believes to lead; whose nodes die, stall, lie and repeat themselves; whose blobs get lost.
//!
//! Held in every life: no item is accepted twice without being taken back between; nothing is acknowledged before it is agreed; no epoch
//! is given twice; a job that was taken on ends, for its client too, with the bytes of an undisturbed run; queues stay short.
//! The same brain, output rule and facts as in the server; only log, disk, network and time are played.

mod audit;
mod judge;
mod machine;
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::simulator::Random;
use crate::toy::MODEL;
use audit::Audit;
use machine::{Machine, Said, Told};
use obelysk_coordinator::consensus::Machine as _;
use obelysk_coordinator::core::{Effect, Input, JobId, Needs, NodeId, Outbox, Policy, State};
use obelysk_coordinator::ledger::{Entry, Ledger, Roster};
use obelysk_node::identity::{Id, NodeKeyId};
use obelysk_protocol::wire::BlobRef;

const POLICY: Policy = Policy { lease_ms: 1000, away_grace_ms: 500, wait_deadline_ms: 20_000, retry_pause_ms: 100 };
const SIZE: usize = 64;
const JOB: JobId = JobId([1; 32]);
/// Virtual end of a life: far beyond what any healthy one takes.
const LIFE_MS: u64 = 300_000;
/// More never wait for agreement here.
const MAX_WAITING: usize = 256;

/// A fault put into the driver, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    /// A leader of an earlier term is still agreed with.
    NoFence,
    /// Effects do not wait for their facts.
    EarlyOutput,
    /// A restored brain has forgotten one accepted item.
    Forgetful,
    /// Every leader begins with the same epochs.
    SameEpochs,
}

/// A process that leads, or believes so.
struct Leader {
    state: State,
    outbox: Outbox,
    roster: Roster,
    since: u64,
    deposed: bool,
    /// Proposed and not agreed.
    pending: VecDeque<(u64, Vec<Entry>)>,
    last_agreed_at: u64,
    /// Leases under which results are taken.
    grants: BTreeSet<u64>,
}

#[derive(Debug, Clone)]
enum Event {
    Tick(u64),
    /// From a leader's own checker, referee or client.
    Own(u64, Input),
    Agree(u64, u64),
    Said(u64, u8, Said),
    Told(u64, u8, Told),
    Dial(u8),
    Worked(u8, u64, u64),
    Die(u8),
    Crash,
    Depose,
    /// A deposed leader ends.
    End(u64),
    Start,
}

struct Life {
    random: Random,
    bug: Bug,
    now: u64,
    sequence: u64,
    events: BTreeMap<(u64, u64), Event>,
    blobs: BTreeMap<BlobRef, Vec<u8>>,
    ledger: Ledger,
    term: u64,
    leaders: BTreeMap<u64, Leader>,
    machines: BTreeMap<u8, Machine>,
    referee: bool,
    spec: BlobRef,
    segments: u32,
    /// Machines that may still die or stall.
    troubles: u64,
    rot: bool,
    audit: Audit,
    log: Vec<String>,
    told: Option<Result<Vec<u8>, String>>,
}

impl Life {
    fn new(seed: u64, spec: &[u8], segments: u32, bug: Bug) -> Self {
        let mut random = Random(seed);
        // Every fourth cluster is large and its machines stall often, so that stragglers get second leases.
        let wide = is_wide(seed);
        let honest = if wide { 3 + random.below(3) } else { 1 + random.below(3) };
        let liars = u64::from(honest > 1 && random.percent(25));
        let machines = (1..=honest + liars).map(|n| {
            let lies = if n > honest { 30 + random.below(71) } else { 0 };
            (n as u8, Machine::new(lies))
        });
        let machines = machines.collect();
        let blob = BlobRef::of(spec);
        Self {
            bug,
            now: 0,
            sequence: 0,
            events: BTreeMap::new(),
            blobs: BTreeMap::from([(blob, spec.to_vec())]),
            ledger: Ledger::default(),
            term: 0,
            leaders: BTreeMap::new(),
            machines,
            referee: random.percent(30),
            spec: blob,
            segments,
            troubles: if wide { 2 + random.below(6) } else { random.below(3) },
            rot: random.percent(15),
            audit: Audit::default(),
            log: Vec::new(),
            told: None,
            random,
        }
    }

    fn later(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now + delay, self.sequence), event);
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if self.log.len() < 4000 {
            self.log.push(format!("{} {}", self.now, text()));
        }
    }

    /// Runs until the client knows how its job ended.
    fn live(&mut self) -> Result<(), String> {
        self.later(0, Event::Start);
        for key in self.machines.keys().copied().collect::<Vec<_>>() {
            self.later(5, Event::Dial(key));
        }
        let mut at = 0;
        for _ in 0..self.random.below(5) {
            at += 20 + self.random.below(1200);
            let event = if self.random.percent(60) { Event::Crash } else { Event::Depose };
            self.later(at, event);
        }
        while let (None, Some(((now, _), event))) = (&self.told, self.events.pop_first()) {
            if now > LIFE_MS {
                return Err("the job never ended".to_owned());
            }
            self.now = now;
            if !matches!(event, Event::Tick(_)) {
                self.note(|| format!("{event:?}"));
            }
            self.happen(event)?;
        }
        self.told.is_some().then_some(()).ok_or_else(|| "nothing more happens".to_owned())
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Tick(term) => {
                if self.leaders.contains_key(&term) {
                    self.later(50, Event::Tick(term));
                }
                self.feed(term, Input::Tick)
            }
            Event::Own(term, input) => self.feed(term, input),
            Event::Agree(term, number) => self.agree(term, number),
            Event::Said(term, key, said) => self.hear(term, key, said),
            Event::Told(term, key, told) => {
                self.tell(term, key, told);
                Ok(())
            }
            Event::Dial(key) => {
                self.dial(key);
                Ok(())
            }
            Event::Worked(key, life, epoch) => {
                self.worked(key, life, epoch);
                Ok(())
            }
            Event::Die(key) => {
                self.die(key);
                Ok(())
            }
            Event::Crash => {
                if let Some(term) = self.leading() {
                    self.survive(term)?;
                    self.end(term);
                    let away = self.random.below(600);
                    self.later(away, Event::Start);
                }
                Ok(())
            }
            Event::Depose => {
                if let Some(term) = self.leading() {
                    self.survive(term)?;
                    self.leaders.get_mut(&term).expect("leads").deposed = true;
                    let overlap = self.random.below(1500);
                    self.later(overlap, Event::End(term));
                    self.start()?;
                }
                Ok(())
            }
            Event::End(term) => {
                self.end(term);
                Ok(())
            }
            Event::Start => {
                if self.leading().is_none() {
                    self.start()
                } else {
                    Ok(())
                }
            }
        }
    }

    fn leading(&self) -> Option<u64> {
        self.leaders.iter().find(|(_, leader)| !leader.deposed).map(|(term, _)| *term)
    }

    /// Of what a leader that ends had proposed, a beginning may have been agreed without its knowing, cut anywhere.
    fn survive(&mut self, term: u64) -> Result<(), String> {
        let pending = std::mem::take(&mut self.leaders.get_mut(&term).expect("leads").pending);
        let entries: Vec<Entry> = pending.iter().flat_map(|(_, entries)| entries.clone()).collect();
        let kept = self.random.below(entries.len() as u64 + 1) as usize;
        if self.bug == Bug::NoFence {
            self.leaders.get_mut(&term).expect("leads").pending = pending;
        }
        entries.into_iter().take(kept).try_for_each(|entry| self.commit(entry))
    }

    /// A leader's process ends: connections break, what it told on the way is lost.
    fn end(&mut self, term: u64) {
        self.leaders.remove(&term);
        for key in self.machines.keys().copied().collect::<Vec<_>>() {
            self.cut(key, term);
        }
    }

    fn start(&mut self) -> Result<(), String> {
        self.term += 1;
        let term = self.term;
        if self.rot && self.random.percent(50) {
            self.lose_a_blob();
        }
        let mut facts = self.ledger.clone();
        if self.bug == Bug::Forgetful
            && let Some((job, open)) = self.ledger.open_jobs().next()
            && let Some(work) = open.accepted.keys().next_back()
        {
            facts.apply(0, &Entry::Retracted { job, work: *work }.encode());
        }
        let roster = Roster::of(&facts);
        let state = State::restore(POLICY, &facts, &roster, if self.bug == Bug::SameEpochs { 1 } else { term });
        let (since, outbox, pending, grants) = (self.now, Outbox::default(), VecDeque::new(), BTreeSet::new());
        let leader = Leader { state, outbox, roster, since, deposed: false, pending, last_agreed_at: self.now, grants };
        self.leaders.insert(term, leader);
        if self.referee {
            let (models, held) = (BTreeSet::from([MODEL]), BTreeSet::new());
            self.feed(term, Input::NodeJoined { node: NodeId::REFEREE, models, cores: 1, held })?;
        }
        let needed: Vec<BlobRef> = self.ledger.open_jobs().flat_map(|(id, _)| self.ledger.blobs_of(id)).collect();
        for blob in needed.into_iter().filter(|blob| !self.blobs.contains_key(blob)).collect::<Vec<_>>() {
            self.feed(term, Input::BlobLost { blob })?;
        }
        self.later(0, Event::Tick(term));
        // The client comes back to whoever leads.
        let delay = 2 + self.random.below(300);
        let (job, model, spec, segments) = (JOB, MODEL, self.spec, self.segments);
        self.later(delay, Event::Own(term, Input::JobSubmitted { job, model, spec, segments }));
        Ok(())
    }

    fn lose_a_blob(&mut self) {
        let needed: Vec<BlobRef> =
            self.ledger.open_jobs().flat_map(|(id, _)| self.ledger.blobs_of(id)).filter(|blob| *blob != self.spec).collect();
        if !needed.is_empty() {
            let blob = needed[self.random.below(needed.len() as u64) as usize];
            self.blobs.remove(&blob);
            self.note(|| format!("lost {blob:?}"));
        }
    }

    fn feed(&mut self, term: u64, input: Input) -> Result<(), String> {
        let Some(leader) = self.leaders.get_mut(&term) else { return Ok(()) };
        let effects = leader.state.apply(self.now - leader.since, input);
        leader.state.audit()?;
        self.audit.decided(term, &effects);
        let mut proposed = Vec::new();
        for (number, facts) in leader.outbox.take(effects) {
            let entries: Option<Vec<Entry>> = facts.iter().map(|fact| Entry::of(fact, &leader.roster, self.now)).collect();
            let entries = entries.ok_or("a fact about nobody")?;
            let at = leader.last_agreed_at.max(self.now + self.random.below(40));
            leader.last_agreed_at = at;
            leader.pending.push_back((number, entries));
            proposed.push((at - self.now, number));
            if self.bug == Bug::EarlyOutput {
                leader.outbox.agreed(number);
            }
        }
        if leader.outbox.len() > MAX_WAITING {
            return Err("more waits than ever should".to_owned());
        }
        for (delay, number) in proposed {
            self.later(delay, Event::Agree(term, number));
        }
        self.release(term)
    }

    fn agree(&mut self, term: u64, number: u64) -> Result<(), String> {
        let fenced = self.leaders.get(&term).is_none_or(|leader| leader.deposed);
        if fenced && self.bug != Bug::NoFence {
            return Ok(());
        }
        let Some(leader) = self.leaders.get_mut(&term) else { return Ok(()) };
        let Some((_, entries)) = leader.pending.pop_front() else { return Ok(()) };
        leader.outbox.agreed(number);
        entries.into_iter().try_for_each(|entry| self.commit(entry))?;
        self.release(term)
    }

    /// An entry is agreed.
    fn commit(&mut self, entry: Entry) -> Result<(), String> {
        self.note(|| format!("  = {entry:?}"));
        self.audit.agreed(&entry)?;
        self.ledger.apply(0, &entry.encode());
        Ok(())
    }

    fn release(&mut self, term: u64) -> Result<(), String> {
        while let Some(effect) = self.leaders.get_mut(&term).and_then(|leader| leader.outbox.next_effect()) {
            self.note(|| format!("  {term}< {effect:?}"));
            self.audit.released(term, &effect, &self.ledger)?;
            self.carry_out(term, effect);
        }
        Ok(())
    }

    fn carry_out(&mut self, term: u64, effect: Effect) {
        let leader = self.leaders.get_mut(&term).expect("released by it");
        let key = |node: NodeId| leader.roster.key(node).map_or(0, |key| key.0[0]);
        let told = match &effect {
            Effect::Assign { node, .. }
            | Effect::Resume { node, .. }
            | Effect::Ack { node, .. }
            | Effect::Revoke { node, .. } => key(*node),
            _ => 0,
        };
        match effect {
            Effect::Assign { node, epoch, job, work, spec, needs, .. } => {
                leader.grants.insert(epoch);
                if node == NodeId::REFEREE {
                    return self.ask_referee(term, epoch, work, &needs);
                }
                let Needs { inputs, extra, .. } = needs;
                self.say(term, told, Told::Assign(machine::Held { epoch, job, work, spec, inputs, extra }));
            }
            Effect::Resume { epoch, .. } => {
                leader.grants.insert(epoch);
                self.say(term, told, Told::Resume(epoch));
            }
            Effect::Ack { epoch, .. } => {
                leader.grants.remove(&epoch);
                self.say(term, told, Told::Ack(epoch));
            }
            Effect::Revoke { epoch, .. } => {
                leader.grants.remove(&epoch);
                self.say(term, told, Told::Cancel(epoch));
            }
            Effect::Opened { .. } | Effect::Publish { .. } | Effect::FailJob { .. } => self.tell_client(),
            judged => self.judge(term, judged),
        }
    }
}

const fn is_wide(seed: u64) -> bool {
    seed % 4 == 3
}

fn key_of(machine: u8) -> NodeKeyId {
    Id([machine; 32])
}
