//! The task that owns the [`State`]: feeds it inputs one at a time and carries out its effects when the facts they rest on are
//! agreed. It waits for nobody.

mod judge;
mod membership;
mod output;
mod picture;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use obelysk_node::engine::{Checker, Engine};
use obelysk_node::identity::{NodeKeyId, unix_now};
use obelysk_protocol::wire::{BlobRef, Goodbye, MAX_TEXT_BYTES, Message, NodeState, Refused};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::lead::Parts;
use super::observer::Observer;
use super::progress::Watcher;
use super::store::Store;
use super::{Facts, clip};
use crate::consensus::{Consensus, Role};
use crate::core::{Input, JobId, NodeId, State};
use crate::evidence::Evidence;
use crate::ledger::{Roster, SharedLedger};
use membership::Known;
use output::Output;
pub(super) use picture::{Face, Picture};

/// Commands waiting for the brain: beyond, sessions wait, which is back-pressure on their peers.
pub(super) const MAX_COMMANDS: usize = 1024;
/// How often time is looked at: well below any sensible lease.
const TICK: Duration = Duration::from_millis(50);
/// Watchers of one job: its client, and those it was before its connections broke.
const MAX_WATCHERS: usize = 16;
/// Ended jobs whose proof can still be fetched.
const KEEP_ENDED: usize = 256;
/// How long: a client that was cut off has a week.
const KEEP_ENDED_S: u64 = 7 * 86_400;
/// How often it is asked which ends are old.
const SWEEP: Duration = Duration::from_secs(10);

/// How to reach a node's session.
#[derive(Debug, Clone)]
pub(super) struct Outbox {
    pub(super) session: u64,
    pub(super) messages: mpsc::Sender<Message>,
}

/// A node's first words.
#[derive(Debug)]
pub(super) struct Join {
    pub(super) key: NodeKeyId,
    pub(super) hello: obelysk_protocol::wire::NodeHello,
    pub(super) calibration: Option<super::trial::Calibration>,
    pub(super) outbox: Outbox,
    pub(super) answer: oneshot::Sender<Result<NodeId, String>>,
}

/// What sessions, checks and handles ask of the brain.
#[derive(Debug)]
pub(super) enum Command {
    Core(Input),
    Join(Box<Join>),
    /// A session ended; `clean` after a goodbye.
    Gone {
        node: NodeId,
        session: u64,
        clean: bool,
    },
    Submit {
        job: JobId,
        model: [u8; 32],
        spec: BlobRef,
        segments: u32,
        /// Its priority, and the memory that its segments need.
        sized: (u8, Vec<u64>),
        watcher: Watcher,
        /// Told when the job is sure to be done, or was.
        opened: oneshot::Sender<()>,
    },
    /// This node shall finish and leave; the answer is whether it is connected.
    Drain {
        key: NodeKeyId,
        answer: oneshot::Sender<bool>,
    },
    /// This node is out.
    Evict {
        key: NodeKeyId,
        reason: String,
    },
    /// How all nodes stand.
    Census {
        answer: oneshot::Sender<BTreeMap<NodeKeyId, (NodeState, String)>>,
    },
    /// Everything as it stands.
    View {
        answer: oneshot::Sender<Picture>,
    },
}

/// How a brain's time ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// It was told to stop.
    Stopped,
    /// It leads no more, for this reason.
    Lost(String),
}

pub(super) struct Brain {
    state: State,
    started: Instant,
    store: Store,
    checker: Arc<dyn Checker>,
    referee: Option<Arc<dyn Engine>>,
    permits: Arc<Semaphore>,
    commands: mpsc::Sender<Command>,
    ledger: SharedLedger,
    consensus: Arc<dyn Consensus>,
    outlive: bool,
    evidence: Option<Evidence>,
    term: u64,
    roster: Roster,
    output: Output,
    nodes: BTreeMap<NodeId, Known>,
    watchers: BTreeMap<JobId, Vec<Watcher>>,
    submitting: BTreeMap<JobId, Vec<oneshot::Sender<()>>>,
    swept_at: Option<Instant>,
    count: Arc<watch::Sender<usize>>,
    observer: Arc<Observer>,
}

impl Brain {
    /// The brain of the leader of this term.
    pub(super) fn restore(parts: Parts, term: u64, commands: mpsc::Sender<Command>) -> Self {
        let Parts { policy, store, checker, referee, permits, facts, count, observer, .. } = parts;
        let Facts { ledger, consensus, outlive, evidence, .. } = facts;
        let store = store.in_this_term();
        let facts = ledger.lock();
        let roster = Roster::of(&facts);
        let state = State::restore(policy, &facts, &roster, term);
        let out = facts.quarantined().filter_map(|(key, reason)| Some((roster.number(key)?, Known::out(reason))));
        let nodes = out.collect();
        drop(facts);
        Self {
            state,
            started: Instant::now(),
            store,
            checker,
            referee,
            permits,
            commands,
            ledger,
            consensus,
            outlive,
            evidence,
            term,
            roster,
            output: Output::default(),
            nodes,
            watchers: BTreeMap::new(),
            submitting: BTreeMap::new(),
            swept_at: None,
            count,
            observer,
        }
    }

    pub(super) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Command>,
        role: &mut watch::Receiver<Role>,
        stop: &mut watch::Receiver<bool>,
    ) -> Ended {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        if let Some(referee) = self.referee.clone() {
            let models = referee.models().into_iter().collect();
            self.feed(Input::NodeJoined { node: NodeId::REFEREE, models, cores: 1, held: std::collections::BTreeSet::new() });
        }
        let mine = Role::Leader { term: self.term };
        let ended = loop {
            let room = !self.output.is_full();
            tokio::select! {
                agreed = self.output.agreed() => match agreed {
                    Ok(()) => self.release(),
                    Err(error) => break Ended::Lost(error.to_string()),
                },
                _ = role.wait_for(|role| *role != mine) => break Ended::Lost("this coordinator does not lead any more".to_owned()),
                _ = stop.wait_for(|stop| *stop) => break Ended::Stopped,
                _ = tick.tick(), if room => self.tick(),
                command = inbox.recv(), if room => match command {
                    None => break Ended::Stopped,
                    Some(command) => self.command(command),
                },
            }
        };
        self.dismiss(&ended);
        ended
    }

    /// Last words to the nodes: that it is over, or that they shall come back.
    fn dismiss(&mut self, ended: &Ended) {
        let words = match ended {
            Ended::Stopped if !self.outlive => Message::Goodbye(Goodbye { reason: "the coordinator stops".to_owned() }),
            Ended::Stopped => Message::Refused(Refused { retry: true, reason: "the coordinator is restarted".to_owned() }),
            Ended::Lost(reason) => Message::Refused(Refused { retry: true, reason: clip(reason.clone(), MAX_TEXT_BYTES) }),
        };
        for node in self.nodes.values().filter_map(|known| known.outbox.as_ref()) {
            let _ = node.messages.try_send(words.clone());
        }
        self.count.send_replace(0);
    }

    fn tick(&mut self) {
        for blob in self.store.take_lost() {
            self.feed(Input::BlobLost { blob });
        }
        self.forget_old();
        self.feed(Input::Tick);
    }

    /// Has the ends of old jobs forgotten: beyond a number, and beyond an age.
    fn forget_old(&mut self) {
        if self.swept_at.is_some_and(|at| at.elapsed() < SWEEP) {
            return;
        }
        self.swept_at = Some(Instant::now());
        let mut ended: Vec<(u64, u64, JobId)> =
            self.ledger.lock().ended_jobs().map(|(id, job)| (job.ended_unix_s, job.number, id)).collect();
        ended.sort_unstable();
        let (above, now) = (ended.len().saturating_sub(KEEP_ENDED), unix_now());
        let old = |(i, (at, _, job)): (usize, (u64, u64, JobId))| (i < above || at + KEEP_ENDED_S < now).then_some(job);
        for job in ended.into_iter().enumerate().filter_map(old).collect::<Vec<_>>() {
            self.feed(Input::Forget { job });
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Core(input) => {
                if let Input::NodeDraining { node } | Input::WorkReturned { node, .. } = &input
                    && let Some(known) = self.nodes.get_mut(node)
                {
                    known.draining = true;
                }
                self.feed(input);
            }
            Command::Drain { key, answer } => {
                let _ = answer.send(self.drain(key));
            }
            Command::Evict { key, reason } => self.evict(key, &reason),
            Command::Census { answer } => {
                let _ = answer.send(self.census());
            }
            Command::View { answer } => {
                let _ = answer.send(self.picture());
            }
            Command::Join(join) => self.join(*join),
            Command::Gone { node, session, clean } => {
                let Some(known) = self.nodes.get_mut(&node) else { return };
                // A newer session of the same node may already stand: then this end means nothing.
                if known.outbox.take_if(|outbox| outbox.session == session).is_some() {
                    self.feed(if clean { Input::NodeLeft { node } } else { Input::NodeAway { node } });
                }
            }
            Command::Submit { job, model, spec, segments, sized: (priority, peak_bytes), watcher, opened } => {
                let watchers = self.watchers.entry(job).or_default();
                watchers.retain(|watcher| !watcher.is_gone());
                if watchers.len() < MAX_WATCHERS {
                    watchers.push(watcher);
                    self.submitting.entry(job).or_default().push(opened);
                }
                self.feed(Input::JobSized { job, priority, peak_bytes });
                self.feed(Input::JobSubmitted { job, model, spec, segments });
            }
        }
        let here = self.nodes.values().filter(|known| known.outbox.is_some()).count();
        self.count.send_if_modified(|count| std::mem::replace(count, here) != here);
    }
}
