//! The float model as a list of operations: what every architecture builder produces and the quantiser reads.
//!
//! Nodes are in evaluation order and refer to earlier ones only. A value is a matrix of `channels x tokens`, token fastest.
//! The list assumes no architecture; the quantiser asks for the pattern it can describe and refuses others by name.

mod bert;
pub mod decoder;
pub mod decoder_float;
mod float;
mod matmul;

pub use float::{FloatError, Values, evaluate};

use crate::import::{Config, EncoderConfig, FloatTensor, ImportError, Imported, TensorStore};

/// Index of a node.
pub type NodeId = usize;

/// An operation.
#[derive(Clone, Debug)]
pub enum Op {
    /// Sum of table rows: word by id, position by index, type 0.
    Embed {
        /// `[vocab, width]`.
        word: FloatTensor,
        /// `[positions, width]`.
        position: FloatTensor,
        /// `[types, width]`.
        kind: FloatTensor,
    },
    /// LayerNorm over channels.
    Norm {
        /// Input.
        input: NodeId,
        /// Gain per channel.
        gain: FloatTensor,
        /// Bias per channel.
        bias: FloatTensor,
        /// Added to the variance.
        eps: f64,
    },
    /// `W x + b`.
    Linear {
        /// Input.
        input: NodeId,
        /// `[outputs, inputs]`.
        weight: FloatTensor,
        /// `[outputs]`.
        bias: FloatTensor,
    },
    /// `softmax(q k / sqrt(d_h)) v` per head, every token visible.
    Attention {
        /// Queries.
        q: NodeId,
        /// Keys.
        k: NodeId,
        /// Values.
        v: NodeId,
        /// Heads.
        heads: usize,
    },
    /// Pointwise function.
    Activation {
        /// Input.
        input: NodeId,
        /// Which.
        kind: Activation,
    },
    /// Residual sum.
    Add {
        /// Stream.
        skip: NodeId,
        /// Branch.
        branch: NodeId,
    },
    /// Mean over tokens, divided by its L2 norm.
    Pool {
        /// Input.
        input: NodeId,
    },
}

/// Pointwise functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x Phi(x)`, exact.
    Gelu,
}

/// A named operation.
#[derive(Clone, Debug)]
pub struct Node {
    /// Unique name, for example `layer.3.up`.
    pub name: String,
    /// What it computes.
    pub op: Op,
}

/// A float model; the last node is the output.
#[derive(Clone, Debug)]
pub struct Graph {
    /// Nodes in evaluation order.
    pub nodes: Vec<Node>,
}

impl Graph {
    /// Builds the graph of an imported model.
    ///
    /// # Errors
    /// Unknown architecture, missing or misshapen tensor.
    pub fn build(model: &Imported) -> Result<Self, ImportError> {
        match &model.config {
            Config::Encoder(config) => Self::from_parts(config, &model.tensors),
            Config::Decoder(config) => Err(ImportError::Architecture(config.architecture.clone())),
        }
    }

    /// Builds the graph from settings and tensors.
    ///
    /// # Errors
    /// Unknown architecture, missing or misshapen tensor.
    pub fn from_parts(config: &EncoderConfig, tensors: &TensorStore) -> Result<Self, ImportError> {
        match config.architecture.as_str() {
            "BertModel" | "BertForMaskedLM" | "bert" => bert::build(config, tensors),
            other => Err(ImportError::Architecture(other.to_owned())),
        }
    }

    /// Index of the node called `name`.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.nodes.iter().position(|n| n.name == name)
    }
}
