//! Which number of this brain stands for which machine. Numbers are short and for people; facts name keys.

use std::collections::BTreeMap;

use obelysk_node::identity::{Id, NodeKeyId};

use super::Ledger;
use crate::core::NodeId;

/// Machines numbered: more than any cluster has; beyond, new ones are refused.
pub const MAX_KNOWN: usize = 10_000;
/// Stands for the coordinator's own referee: no key hashes to it.
const REFEREE: NodeKeyId = Id([0; 32]);

/// Numbers and keys, both ways. The referee is 0.
#[derive(Debug, Clone)]
pub struct Roster {
    numbers: BTreeMap<NodeKeyId, NodeId>,
    keys: Vec<NodeKeyId>,
}

impl Roster {
    /// Numbers every machine that the ledger names.
    #[must_use]
    pub fn of(ledger: &Ledger) -> Self {
        let mut roster = Self { numbers: BTreeMap::from([(REFEREE, NodeId::REFEREE)]), keys: vec![REFEREE] };
        let authors = ledger.open_jobs().flat_map(|(_, job)| job.accepted.values().map(|piece| piece.node));
        let measured = ledger.machines().map(|(node, ..)| node);
        for key in authors.chain(ledger.quarantined().map(|(node, _)| node)).chain(measured) {
            roster.meet(key);
        }
        roster
    }

    /// The number of a machine, a new one if it has none; `None` when there are [`MAX_KNOWN`].
    pub fn meet(&mut self, key: NodeKeyId) -> Option<NodeId> {
        if let Some(node) = self.numbers.get(&key) {
            return Some(*node);
        }
        let node = NodeId(u32::try_from(self.keys.len()).ok().filter(|n| *n as usize <= MAX_KNOWN)?);
        self.numbers.insert(key, node);
        self.keys.push(key);
        Some(node)
    }

    /// The number of a machine met before.
    #[must_use]
    pub fn number(&self, key: NodeKeyId) -> Option<NodeId> {
        self.numbers.get(&key).copied()
    }

    /// The machine of a number.
    #[must_use]
    pub fn key(&self, node: NodeId) -> Option<NodeKeyId> {
        self.keys.get(node.0 as usize).copied()
    }

    /// Every machine but the referee, by key.
    pub fn machines(&self) -> impl Iterator<Item = (NodeKeyId, NodeId)> {
        self.numbers.iter().filter(|(_, node)| **node != NodeId::REFEREE).map(|(key, node)| (*key, *node))
    }
}
