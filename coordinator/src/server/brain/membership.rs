//! Machines as the brain knows them: who speaks for which, who is here, who is out.

use std::collections::{BTreeMap, VecDeque};

use obelysk_node::identity::NodeKeyId;
use obelysk_protocol::wire::{Drain, MAX_TEXT_BYTES, Message, NodeState, Refused};

use super::{Brain, Join, Outbox};
use crate::core::{Input, NodeId};
use crate::ledger::MAX_KNOWN;
use crate::server::clip;

/// A machine that ever joined.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) name: String,
    pub(super) outbox: Option<Outbox>,
    pub(super) banned: Option<String>,
    pub(super) draining: bool,
    /// The process that speaks for it, and those that did before.
    pub(super) instance: [u8; 32],
    pub(super) superseded: VecDeque<[u8; 32]>,
}

/// Processes of one node remembered: enough to tell two that take turns.
const MAX_SUPERSEDED: usize = 16;

impl Known {
    fn new(instance: [u8; 32]) -> Self {
        let (name, superseded) = (String::new(), VecDeque::new());
        Self { name, outbox: None, banned: None, draining: false, instance, superseded }
    }

    /// One that was put out before this brain was.
    pub(super) fn out(reason: &str) -> Self {
        Self { banned: Some(quarantine_text(reason)), ..Self::new([0; 32]) }
    }
}

fn quarantine_text(reason: &str) -> String {
    let text = format!("quarantined: {reason}; examine this machine's memory and software before it joins again");
    clip(text, MAX_TEXT_BYTES)
}

impl Brain {
    pub(super) fn join(&mut self, join: Join) {
        let Join { key, hello, calibration, outbox, answer } = join;
        let Some(node) = self.roster.meet(key) else {
            let _ = answer.send(Err(format!("this coordinator has met {MAX_KNOWN} machines; restart it")));
            return;
        };
        let known = self.nodes.entry(node).or_insert_with(|| Known::new(hello.identity));
        if let Some(reason) = &known.banned {
            let _ = answer.send(Err(reason.clone()));
            return;
        }
        if known.superseded.contains(&hello.identity) {
            let text = "another process has taken this node's place with the same identity; remove the identity here and join again with \
                        a token, and copy no identity to a second machine";
            let _ = answer.send(Err(text.to_owned()));
            return;
        }
        let anew = known.instance != hello.identity;
        if anew {
            known.superseded.push_back(std::mem::replace(&mut known.instance, hello.identity));
            if known.superseded.len() > MAX_SUPERSEDED {
                known.superseded.pop_front();
            }
        }
        known.draining = false;
        known.name.clone_from(&hello.name);
        known.outbox = Some(outbox);
        // The welcome must be the session's first message, before any assignment that `feed` sends.
        let _ = answer.send(Ok(node));
        if anew {
            self.feed(Input::NodeRestarted { node });
        }
        let core_us = calibration.map(|c| c.core_us);
        tracing::info!(%node, name = hello.name, release = hello.release, memory_bytes = hello.memory_bytes, ?calibration, "measured");
        self.feed(Input::NodeMeasured { node, core_us, memory_bytes: hello.memory_bytes });
        let (models, held) = (hello.models.into_iter().collect(), hello.held.into_iter().collect());
        self.feed(Input::NodeJoined { node, models, cores: hello.cores, held });
    }

    pub(super) fn drain(&mut self, key: NodeKeyId) -> bool {
        let Some(node) = self.roster.number(key) else { return false };
        let here = self.nodes.get(&node).is_some_and(|known| known.outbox.is_some());
        if here {
            self.send(node, Message::Drain(Drain { reason: "an administrator asks".to_owned() }));
        }
        here
    }

    pub(super) fn evict(&mut self, key: NodeKeyId, reason: &str) {
        let Some(node) = self.roster.number(key) else { return };
        let reason = clip(format!("evicted: {reason}; remove this machine's identity before it joins again"), MAX_TEXT_BYTES);
        self.send(node, Message::Refused(Refused { retry: false, reason }));
        if let Some(known) = self.nodes.get_mut(&node)
            && known.outbox.take().is_some()
        {
            self.feed(Input::NodeLeft { node });
        }
    }

    pub(super) fn census(&self) -> BTreeMap<NodeKeyId, (NodeState, String)> {
        let state = |known: &Known| match (&known.banned, &known.outbox) {
            (Some(reason), _) => (NodeState::Quarantined, reason.clone()),
            (None, None) => (NodeState::Away, String::new()),
            (None, Some(_)) => (if known.draining { NodeState::Draining } else { NodeState::Here }, String::new()),
        };
        self.roster.machines().filter_map(|(key, node)| Some((key, state(self.nodes.get(&node)?)))).collect()
    }

    pub(super) fn quarantine(&mut self, node: NodeId, reason: &str) {
        let text = quarantine_text(reason);
        tracing::error!(%node, name = name_of(&self.nodes, node), reason, "quarantined");
        self.send(node, Message::Refused(Refused { retry: false, reason: text.clone() }));
        if let Some(known) = self.nodes.get_mut(&node) {
            known.outbox = None;
            known.banned = Some(text);
        }
    }
}

pub(super) fn name_of(nodes: &BTreeMap<NodeId, Known>, node: NodeId) -> String {
    let named = nodes.get(&node).filter(|known| !known.name.is_empty());
    named.map_or_else(|| node.to_string(), |known| format!("{} ({node})", known.name))
}
