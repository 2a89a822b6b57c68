//! The cluster as it stands, with names: what the brain shows to people and metrics.

use std::collections::BTreeMap;

use obelysk_node::identity::NodeKeyId;
use obelysk_protocol::wire::NodeState;

use super::Brain;
use super::membership::name_of;
use crate::core::NodeId;
use crate::core::view::View;
use crate::server::observer::Who;

/// A view and who its nodes are.
#[derive(Debug, Default)]
pub(in crate::server) struct Picture {
    pub(in crate::server) view: View,
    /// All machines met since the start.
    pub(in crate::server) known: BTreeMap<NodeId, Face>,
}

/// A machine.
#[derive(Debug)]
pub(in crate::server) struct Face {
    pub(in crate::server) key: NodeKeyId,
    pub(in crate::server) name: String,
    pub(in crate::server) state: NodeState,
}

impl Brain {
    pub(super) fn picture(&self) -> Picture {
        let census = self.census();
        let face = |(key, node): (NodeKeyId, NodeId)| {
            let state = census.get(&key).map_or(NodeState::Away, |(state, _)| *state);
            Some((node, Face { key, name: self.nodes.get(&node)?.name.clone(), state }))
        };
        Picture { view: self.state.view(), known: self.roster.machines().filter_map(face).collect() }
    }

    /// Name and id of a node.
    pub(super) fn who(&self, node: NodeId) -> Who {
        let id = self.roster.key(node).map(|key| key.0).unwrap_or_default();
        Who { name: name_of(&self.nodes, node), id }
    }
}
