//! The thread that owns a member: takes events, writes what must be on disk, and only then lets messages leave and answers go out.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use obelysk_node::transport::CLOSE_PROTOCOL;
use obelysk_node::transport::quinn::Connection;
use raft::eraftpb::{Message, MessageType};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use super::core::Core;
use super::member::{Change, ChangeError, MAX_MEMBERS, Member, Members};
use super::storage::Store;
use super::transport::Links;
use super::{Electorate, MemberView, View};
use crate::consensus::{ProposeError, Role};

/// Events taken before the disk is asked: what they propose is synced together.
const BATCH: usize = 256;
/// Ticks that a stalled process makes up for; more would be an election nobody needs.
const MAX_LATE_TICKS: u32 = 3;

/// What can happen to a member.
#[derive(Debug)]
pub(super) enum Event {
    /// From another member, by this connection.
    Message {
        from: u64,
        message: Message,
        connection: Connection,
        space: Option<OwnedSemaphorePermit>,
        handled: Option<oneshot::Sender<()>>,
    },
    /// Another member knows of these.
    Told(u64, Vec<Member>),
    /// Nothing reaches that member.
    NotSent(u64),
    /// A snapshot arrived there, or did not.
    SnapshotSent(u64, bool),
    Propose(u64, Vec<Vec<u8>>, oneshot::Sender<Result<(), ProposeError>>),
    Change(Change, oneshot::Sender<Result<(), ChangeError>>),
    /// Leads no more in this term.
    StepDown(u64),
    Transfer(u64, oneshot::Sender<Result<(), ChangeError>>),
    View(oneshot::Sender<View>),
    /// Wakes a member that shall look at its stop sign.
    Wake,
}

/// An answer due when the entry at an index is applied.
#[derive(Debug)]
enum Answer {
    Proposed(oneshot::Sender<Result<(), ProposeError>>),
    Changed(oneshot::Sender<Result<(), ChangeError>>),
}

#[derive(Debug)]
struct Waiting {
    index: u64,
    term: u64,
    answer: Answer,
}

#[derive(Debug)]
pub(super) struct Driver {
    pub core: Core,
    pub store: Store,
    pub links: Option<Links>,
    pub role: watch::Sender<Role>,
    pub stop: Arc<AtomicBool>,
    pub tick: Duration,
    /// Members to listen to before the log names any.
    pub seeds: Members,
    /// The configuration as others in this process read it.
    pub electorate: watch::Sender<Electorate>,
    told: BTreeMap<u64, Vec<Member>>,
    waiting: VecDeque<Waiting>,
}

impl Driver {
    pub(super) fn new(
        (core, store, links): (Core, Store, Option<Links>),
        role: watch::Sender<Role>,
        stop: Arc<AtomicBool>,
        tick: Duration,
        (seeds, electorate): (Members, watch::Sender<Electorate>),
    ) -> Self {
        Self { core, store, links, role, stop, tick, seeds, electorate, told: BTreeMap::new(), waiting: VecDeque::new() }
    }

    /// Runs until told to stop, or until it must. Returns why.
    pub(super) fn run(&mut self, events: &Receiver<Event>) -> String {
        self.introduce();
        let mut next = Instant::now() + self.tick;
        loop {
            match events.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(event) => {
                    self.take(event);
                    events.try_iter().take(BATCH).for_each(|event| self.take(event));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return "the coordinator stopped".to_owned(),
            }
            if self.stop.load(Ordering::Relaxed) {
                return "the coordinator stopped".to_owned();
            }
            let now = Instant::now();
            next = next.max(now.checked_sub(self.tick * MAX_LATE_TICKS).unwrap_or(now));
            while next <= now {
                self.core.tick();
                next += self.tick;
            }
            if let Err(reason) = self.settle() {
                return reason;
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Message { from, message, connection, space, handled } => {
                if let Err(refusal) = self.core.receive(from, message) {
                    tracing::warn!(from = format!("{from:016x}"), %refusal, "a coordinator's connection is closed");
                    connection.close(CLOSE_PROTOCOL, refusal.to_string().as_bytes());
                }
                drop((space, handled));
            }
            Event::Told(from, members) => {
                let fit = |m: &Member| m.check().is_ok() && m.id() != self.core.id();
                let members: Vec<Member> = members.into_iter().filter(fit).take(2 * MAX_MEMBERS).collect();
                if self.told.get(&from) != Some(&members) {
                    self.told.insert(from, members);
                    self.introduce();
                }
            }
            Event::NotSent(to) => self.core.not_sent(to),
            Event::SnapshotSent(to, arrived) => self.core.snapshot_sent(to, arrived),
            Event::Propose(term, entries, reply) => match self.core.propose(term, entries) {
                Ok(index) => self.waiting.push_back(Waiting { index, term, answer: Answer::Proposed(reply) }),
                Err(error) => drop(reply.send(Err(error))),
            },
            Event::Change(change, reply) => match self.core.change(&change) {
                Ok(index) => {
                    let term = self.core.term();
                    self.waiting.push_back(Waiting { index, term, answer: Answer::Changed(reply) });
                }
                Err(error) => drop(reply.send(Err(error))),
            },
            Event::StepDown(term) => self.core.step_down(term),
            Event::Transfer(to, reply) => drop(reply.send(self.core.transfer(to))),
            Event::View(reply) => drop(reply.send(self.view())),
            Event::Wake => {}
        }
    }

    fn view(&self) -> View {
        let (voters, learners) = self.core.configuration();
        let member = |(id, m): (&u64, &Member)| MemberView {
            id: *id,
            member: m.clone(),
            votes: voters.contains(id),
            live: self.core.is_live(*id),
        };
        let members = self.core.members().iter().map(member).collect();
        let leader = self.core.leader_id();
        View { own: self.core.id(), leader, members, learners: learners.len(), applied: self.core.applied().0 }
    }

    /// Tells the transport who may speak: the configuration, and whom its members know. Before there is one, the seeds.
    fn introduce(&mut self) {
        let configured = self.core.members();
        let voters = self.core.configuration().0;
        let (voters, learners) = configured.values().cloned().partition(|m: &Member| voters.contains(&m.id()));
        let now = Electorate { voters, learners };
        self.electorate.send_if_modified(|before| std::mem::replace(before, now.clone()) != now);
        let mut known = if configured.is_empty() { self.seeds.clone() } else { configured.clone() };
        let trusted: Vec<u64> = known.keys().copied().collect();
        for member in trusted.iter().filter_map(|id| self.told.get(id)).flatten() {
            // Whoever told of it may not have heard that it was removed.
            if !self.core.was_removed(member.id()) && known.len() < 2 * MAX_MEMBERS {
                known.entry(member.id()).or_insert_with(|| member.clone());
            }
        }
        if let Some(links) = &mut self.links {
            links.know(&known);
        }
    }

    /// Does everything that is due. An error ends this member's part.
    fn settle(&mut self) -> Result<(), String> {
        while let Some(turn) = self.core.ready().map_err(|halt| halt.to_string())? {
            self.store.write(&turn.writes).map_err(|e| e.to_string())?;
            let done = self.core.finish(turn).map_err(|halt| halt.to_string())?;
            for message in done.messages {
                let (to, kind) = (message.to, message.get_msg_type());
                if !self.links.as_ref().is_some_and(|links| links.send(message)) {
                    self.core.not_sent(to);
                    if kind == MessageType::MsgSnapshot {
                        self.core.snapshot_sent(to, false);
                    }
                }
            }
            if done.reconfigured {
                self.introduce();
            }
            self.answer();
        }
        self.answer();
        let role = self.core.role();
        self.role.send_if_modified(|before| {
            let changed = *before != role;
            before.clone_from(&role);
            changed
        });
        Ok(())
    }

    /// Entries are agreed if they are applied and this member led in their term all the while; else nobody knows yet.
    fn answer(&mut self) {
        while let Some(first) = self.waiting.front() {
            let leads = self.core.leads_in(first.term);
            if leads && self.core.applied().0 < first.index {
                return;
            }
            let leader = self.core.leader();
            match self.waiting.pop_front().map(|w| w.answer) {
                Some(Answer::Proposed(reply)) => drop(reply.send(if leads { Ok(()) } else { Err(ProposeError::Unknown) })),
                Some(Answer::Changed(reply)) => {
                    drop(reply.send(if leads { Ok(()) } else { Err(ChangeError::NotLeader { leader }) }))
                }
                None => return,
            }
        }
    }

    /// Answers whoever still waits.
    pub(super) fn fail(&mut self, reason: &str) {
        for waiting in self.waiting.drain(..) {
            match waiting.answer {
                Answer::Proposed(reply) => drop(reply.send(Err(ProposeError::Failed(reason.to_owned())))),
                Answer::Changed(reply) => drop(reply.send(Err(ChangeError::NotLeader { leader: None }))),
            }
        }
        self.links = None;
    }
}
