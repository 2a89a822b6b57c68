//! What the brain decided, carried out in order, and nothing before the facts it rests on are agreed. Inputs go on being taken meanwhile.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::Poll;

use obelysk_node::engine::WorkKind;
use obelysk_node::identity::unix_now;
use obelysk_protocol::wire::{Cancel, Message, ResultAck, Resume};

use super::judge::Assignment;
use super::membership::name_of;
use super::{Brain, Command};
use crate::consensus::{Proposal, ProposeError};
use crate::core::{Effect, Input, JobId, NodeId, Outbox};
use crate::ledger::{End, Entry};
use crate::server::progress::{JobEnd, Watcher};
use crate::server::store::NotHad;

/// Effects and proposals waiting: with more, no commands are taken until the log has caught up.
pub(super) const MAX_WAITING: usize = 4096;

/// What waits for its turn, and the proposals waited for.
#[derive(Default)]
pub(super) struct Output {
    outbox: Outbox,
    proposals: VecDeque<(u64, Proposal)>,
}

impl Output {
    pub(super) fn is_full(&self) -> bool {
        self.outbox.len() >= MAX_WAITING
    }

    /// Completes when the first proposal waited for does; never while none is. May be dropped and called again.
    pub(super) async fn agreed(&mut self) -> Result<(), ProposeError> {
        let outcome = poll_fn(|context| match self.proposals.front_mut() {
            Some((_, proposal)) => proposal.as_mut().poll(context),
            None => Poll::Pending,
        });
        outcome.await?;
        if let Some((number, _)) = self.proposals.pop_front() {
            self.outbox.agreed(number);
        }
        Ok(())
    }
}

impl Brain {
    pub(super) fn feed(&mut self, input: Input) {
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.observer.input(&input);
        for (number, facts) in self.output.outbox.take(self.state.apply(now_ms, input)) {
            let entries = facts.iter().filter_map(|fact| {
                let entry = Entry::of(fact, &self.roster, unix_now());
                if entry.is_none() {
                    tracing::error!(?fact, "a fact about a node that nobody knows is not kept");
                }
                entry.map(|entry| entry.encode())
            });
            let proposal = self.consensus.propose(self.term, entries.collect());
            self.output.proposals.push_back((number, proposal));
        }
        self.release();
    }

    /// Carries out everything that waits for no agreement.
    pub(super) fn release(&mut self) {
        while let Some(effect) = self.output.outbox.next_effect() {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        self.observer.effect(&effect, &|node| self.who(node));
        match effect {
            Effect::Record(_) => {}
            Effect::Assign { node, epoch, job, model, work, spec, needs } => {
                self.store.lease(epoch, node, job);
                if work.kind == WorkKind::Joint {
                    self.store.lease_is_brief(epoch);
                }
                let assignment = Assignment { epoch, job, model, work, spec, needs };
                if node == NodeId::REFEREE { self.ask_referee(assignment) } else { self.send(node, assignment.message()) }
            }
            Effect::Resume { node, epoch, job } => {
                self.store.lease(epoch, node, job);
                self.send(node, Message::Resume(Resume { epoch }));
            }
            Effect::Ack { node, epoch } => {
                self.store.end_lease(epoch);
                self.send(node, Message::ResultAck(ResultAck { epoch }));
            }
            Effect::Revoke { node, epoch } => {
                self.store.end_lease(epoch);
                self.send(node, Message::Cancel(Cancel { epoch }));
            }
            Effect::Check { node, job, work, epoch, spec, needs, output } => {
                self.check((self.who(node), job, work, epoch), (spec, needs, output));
            }
            Effect::DeriveChallenge { job, spec, commits } => self.derive(job, spec, commits),
            Effect::Finish { job, spec, commits, challenge, proves, opens, joint } => {
                self.finish(job, spec, (commits, challenge, proves, opens), joint);
            }
            Effect::Quarantine { node, reason } => self.quarantine(node, &reason),
            Effect::Notify { job, event } => {
                let names = |node: NodeId| name_of(&self.nodes, node);
                self.watchers.get_mut(&job).into_iter().flatten().for_each(|watcher| watcher.notify(&event, &names));
            }
            Effect::Opened { job } => self.opened(job),
            Effect::Publish { job, .. } | Effect::FailJob { job, .. } if self.ledger.lock().ended(job).is_some() => {
                self.tell_end(job);
            }
            Effect::Publish { job, .. } => {
                self.end(job, "the log agreed to a proof and does not have it; report this with the log".to_owned());
            }
            // Never opened, so nothing was recorded.
            Effect::FailJob { job, failure } => self.end(job, failure.to_string()),
            Effect::Forgotten { job } => self.store.release(job, None),
        }
    }

    /// The job stands: whoever submitted it may know. It may have ended long ago.
    fn opened(&mut self, job: JobId) {
        for answer in self.submitting.remove(&job).unwrap_or_default() {
            let _ = answer.send(());
        }
        let ledger = self.ledger.lock();
        let (open, ended) = (ledger.open_jobs().any(|(id, _)| id == job), ledger.ended(job).is_some());
        drop(ledger);
        match (open, ended) {
            (true, _) => {}
            (false, true) => self.tell_end(job),
            (false, false) => self.end(job, "the end of this job is not kept any longer; submit again".to_owned()),
        }
    }

    /// Ends a job that came to nothing for its watchers.
    fn end(&mut self, job: JobId, reason: String) {
        self.store.release(job, None);
        self.submitting.remove(&job);
        for watcher in self.watchers.remove(&job).unwrap_or_default() {
            watcher.end(job, Err(reason.clone()));
        }
    }

    /// Tells everybody who watches how a job ended, as the ledger has it. The proof may have to be read from disk.
    fn tell_end(&mut self, job: JobId) {
        let watchers: Vec<Watcher> = self.watchers.remove(&job).unwrap_or_default();
        let end = self.ledger.lock().ended(job).map(|ended| ended.end.clone());
        let (proof, took) = match end {
            Some(End::Proved { proof, took }) => (proof, took),
            Some(End::Failed { reason }) => {
                self.store.release(job, None);
                return watchers.into_iter().for_each(|watcher| watcher.end(job, Err(reason.clone())));
            }
            None => return,
        };
        let report = took.report(&self.roster);
        let named = |key| self.roster.number(key).map_or_else(|| key.to_string(), |node| name_of(&self.nodes, node));
        let nodes: Vec<String> = took.nodes.iter().map(|key| named(*key)).collect();
        // In memory, until the release that follows.
        let here = self.store.get_held(proof);
        self.store.release(job, Some(proof));
        let store = self.store.clone();
        let tell = move || {
            let bytes = match here.map_or_else(|| store.get(proof), Ok) {
                // Whoever waits comes back, and asks whoever leads then.
                Err(NotHad::Over) => return,
                had => had.map_err(|_| "the proof was lost from the coordinator's store; submit again"),
            };
            for watcher in watchers {
                let end = bytes.clone().map(|proof| JobEnd { proof, report: report.clone(), nodes: nodes.clone() });
                watcher.end(job, end.map_err(str::to_owned));
            }
        };
        tokio::task::spawn_blocking(tell);
    }

    /// A session that does not keep up is dropped; its node comes back and resumes.
    pub(super) fn send(&mut self, node: NodeId, message: Message) {
        let Some(known) = self.nodes.get_mut(&node) else { return };
        if let Some(outbox) = &known.outbox
            && outbox.messages.try_send(message).is_err()
        {
            let session = outbox.session;
            known.outbox = None;
            tracing::warn!(%node, session, "session does not keep up; dropped");
            let commands = self.commands.clone();
            tokio::spawn(async move { commands.send(Command::Core(Input::NodeAway { node })).await });
        }
    }
}
