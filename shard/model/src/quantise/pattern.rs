//! The one shape of graph that the descriptor can express, read off by structure: embedding, norm, then post-norm layers.

use super::QuantiseError;
use crate::graph::{Activation, Graph, NodeId, Op};
use crate::import::FloatTensor;

/// Parameters of a norm node.
#[derive(Clone, Copy)]
pub(super) struct NormView<'g> {
    pub id: NodeId,
    pub gain: &'g [f32],
    pub bias: &'g [f32],
    pub eps: f64,
}

/// A linear node, with its index for calibration.
#[derive(Clone, Copy)]
pub(super) struct LinearView<'g> {
    pub id: NodeId,
    pub input: NodeId,
    pub weight: &'g FloatTensor,
    pub bias: &'g [f32],
}

/// One layer: `norm_in` is the norm that produced its input.
pub(super) struct LayerView<'g> {
    pub norm_in: NormView<'g>,
    pub q: LinearView<'g>,
    pub k: LinearView<'g>,
    pub v: LinearView<'g>,
    pub o: LinearView<'g>,
    pub norm1: NormView<'g>,
    pub up: LinearView<'g>,
    pub act: NodeId,
    pub down: LinearView<'g>,
    pub norm2: NormView<'g>,
}

/// A post-norm encoder.
pub(super) struct PostNorm<'g> {
    pub word: &'g FloatTensor,
    pub position: &'g FloatTensor,
    pub kind: &'g FloatTensor,
    pub embed_norm: NormView<'g>,
    pub layers: Vec<LayerView<'g>>,
    pub width: usize,
    pub heads: usize,
    pub ffn: usize,
}

/// Reads nodes in order, refusing the first that is not the expected one.
struct Cursor<'g> {
    graph: &'g Graph,
    next: NodeId,
}

impl<'g> Cursor<'g> {
    fn take(&mut self) -> Result<(NodeId, &'g Op), QuantiseError> {
        let node = self.graph.nodes.get(self.next).ok_or_else(|| QuantiseError::Pattern("end of graph".into()))?;
        self.next += 1;
        Ok((self.next - 1, &node.op))
    }

    fn refuse<T>(&self, id: NodeId) -> Result<T, QuantiseError> {
        Err(QuantiseError::Pattern(self.graph.nodes[id].name.clone()))
    }

    fn norm(&mut self, expected: NodeId) -> Result<(NodeId, NormView<'g>), QuantiseError> {
        match self.take()? {
            (id, Op::Norm { input, gain, bias, eps }) if *input == expected => {
                Ok((id, NormView { id, gain: &gain.data, bias: &bias.data, eps: *eps }))
            }
            (id, _) => self.refuse(id),
        }
    }

    fn linear(&mut self, expected: NodeId) -> Result<LinearView<'g>, QuantiseError> {
        match self.take()? {
            (id, Op::Linear { input, weight, bias }) if *input == expected => {
                Ok(LinearView { id, input: *input, weight, bias: &bias.data })
            }
            (id, _) => self.refuse(id),
        }
    }

    fn add(&mut self, x: NodeId, y: NodeId) -> Result<NodeId, QuantiseError> {
        match self.take()? {
            (id, Op::Add { skip, branch }) if (*skip, *branch) == (x, y) => Ok(id),
            (id, _) => self.refuse(id),
        }
    }

    /// A layer that reads the norm `norm_in` at node `x`; returns it with the node of its output and its heads.
    fn layer(&mut self, x: NodeId, norm_in: NormView<'g>) -> Result<(LayerView<'g>, NodeId, usize), QuantiseError> {
        let (q, k, v) = (self.linear(x)?, self.linear(x)?, self.linear(x)?);
        let (mix, heads) = match self.take()? {
            (id, Op::Attention { q: a, k: b, v: c, heads }) if (*a, *b, *c) == (q.id, k.id, v.id) => (id, *heads),
            (id, _) => return self.refuse(id),
        };
        let o = self.linear(mix)?;
        let sum = self.add(x, o.id)?;
        let (x, norm1) = self.norm(sum)?;
        let up = self.linear(x)?;
        let act = match self.take()? {
            (id, Op::Activation { input, kind: Activation::Gelu }) if *input == up.id => id,
            (id, _) => return self.refuse(id),
        };
        let down = self.linear(act)?;
        let sum = self.add(x, down.id)?;
        let (out, norm2) = self.norm(sum)?;
        Ok((LayerView { norm_in, q, k, v, o, norm1, up, act, down, norm2 }, out, heads))
    }
}

impl<'g> PostNorm<'g> {
    /// Matches the whole graph.
    pub fn find(graph: &'g Graph) -> Result<Self, QuantiseError> {
        let mut cursor = Cursor { graph, next: 0 };
        let (embed, word, position, kind) = match cursor.take()? {
            (id, Op::Embed { word, position, kind }) => (id, word, position, kind),
            (id, _) => return cursor.refuse(id),
        };
        let (mut x, embed_norm) = cursor.norm(embed)?;
        let mut norm = embed_norm;
        let mut layers: Vec<LayerView<'g>> = Vec::new();
        let mut heads = 1;
        while cursor.next + 1 < graph.nodes.len() {
            let (layer, out, layer_heads) = cursor.layer(x, norm)?;
            let same = layers.last().is_none_or(|l| l.up.weight.shape == layer.up.weight.shape && heads == layer_heads);
            if !same {
                return cursor.refuse(out);
            }
            (x, norm, heads) = (out, layer.norm2, layer_heads);
            layers.push(layer);
        }
        match cursor.take()? {
            (_, Op::Pool { input }) if *input == x => {}
            (id, _) => return cursor.refuse(id),
        }
        let width = word.shape[1];
        let ffn = layers.first().map_or(width, |l| l.up.weight.shape[0]);
        Ok(Self { word, position, kind, embed_norm, layers, width, heads, ffn })
    }
}
