//! Post-norm BERT encoders: embedding and norm, then per layer attention, sum, norm, feed-forward, sum, norm.

use super::{Activation, Graph, Node, NodeId, Op};
use crate::import::{EncoderConfig, FloatTensor, HiddenAct, ImportError, Pooling, TensorStore};

struct Builder<'a> {
    config: &'a EncoderConfig,
    tensors: &'a TensorStore,
    nodes: Vec<Node>,
}

/// The graph of a BERT checkpoint; node names are `embed`, `embed.norm`, `layer.L.{q,k,v,mix,o,sum1,norm1,up,act,down,sum2,norm2}`
/// and `pool`.
pub(super) fn build(config: &EncoderConfig, tensors: &TensorStore) -> Result<Graph, ImportError> {
    let mut b = Builder { config, tensors, nodes: Vec::new() };
    let table = |name: &str, rows: usize| tensors.get(&format!("embeddings.{name}_embeddings.weight"), &[rows, config.width]);
    let embed = b.push(
        "embed",
        Op::Embed {
            word: table("word", config.vocab)?,
            position: table("position", config.positions)?,
            kind: table("token_type", config.types)?,
        },
    );
    let mut x = b.norm("embed.norm", "embeddings.LayerNorm", embed)?;
    for l in 0..config.layers {
        x = b.layer(l, x)?;
    }
    match config.pooling {
        Pooling::MeanNormalised => b.push("pool", Op::Pool { input: x }),
    };
    Ok(Graph { nodes: b.nodes })
}

impl Builder<'_> {
    fn push(&mut self, name: &str, op: Op) -> NodeId {
        self.nodes.push(Node { name: name.to_owned(), op });
        self.nodes.len() - 1
    }

    fn vector(&self, name: &str, n: usize) -> Result<FloatTensor, ImportError> {
        self.tensors.get(name, &[n])
    }

    fn norm(&mut self, name: &str, tensor: &str, input: NodeId) -> Result<NodeId, ImportError> {
        let gain = self.vector(&format!("{tensor}.weight"), self.config.width)?;
        let bias = self.vector(&format!("{tensor}.bias"), self.config.width)?;
        Ok(self.push(name, Op::Norm { input, gain, bias, eps: self.config.norm_eps }))
    }

    fn linear(&mut self, name: &str, tensor: &str, input: NodeId, shape: [usize; 2]) -> Result<NodeId, ImportError> {
        let weight = self.tensors.get(&format!("{tensor}.weight"), &shape)?;
        let bias = self.vector(&format!("{tensor}.bias"), shape[0])?;
        Ok(self.push(name, Op::Linear { input, weight, bias }))
    }

    fn layer(&mut self, l: usize, x: NodeId) -> Result<NodeId, ImportError> {
        let (w, f) = (self.config.width, self.config.ffn);
        let name = |part: &str| format!("layer.{l}.{part}");
        let tensor = |part: &str| format!("encoder.layer.{l}.{part}");
        let q = self.linear(&name("q"), &tensor("attention.self.query"), x, [w, w])?;
        let k = self.linear(&name("k"), &tensor("attention.self.key"), x, [w, w])?;
        let v = self.linear(&name("v"), &tensor("attention.self.value"), x, [w, w])?;
        let mix = self.push(&name("mix"), Op::Attention { q, k, v, heads: self.config.heads });
        let o = self.linear(&name("o"), &tensor("attention.output.dense"), mix, [w, w])?;
        let sum = self.push(&name("sum1"), Op::Add { skip: x, branch: o });
        let x = self.norm(&name("norm1"), &tensor("attention.output.LayerNorm"), sum)?;
        let up = self.linear(&name("up"), &tensor("intermediate.dense"), x, [f, w])?;
        let kind = match self.config.activation {
            HiddenAct::Gelu => Activation::Gelu,
            other => {
                let (setting, value) = ("hidden_act".to_owned(), format!("{other:?}"));
                return Err(ImportError::Setting { setting, value, supported: "gelu" });
            }
        };
        let act = self.push(&name("act"), Op::Activation { input: up, kind });
        let down = self.linear(&name("down"), &tensor("output.dense"), act, [w, f])?;
        let sum = self.push(&name("sum2"), Op::Add { skip: x, branch: down });
        self.norm(&name("norm2"), &tensor("output.LayerNorm"), sum)
    }
}
