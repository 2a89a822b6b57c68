//! The float model of a decoder: which stored tensor is which part, and layers read when asked for.
//!
//! Every family is given in one canonical form: separate q, k, v, gate and up, gains with their offset added. Building checks
//! every tensor's name, shape and number format, and refuses tensors that have no place; values are read layer by layer, so
//! memory holds one layer, not the model. Refuses biases behind the output projection unless they are zero.

use crate::import::{Config, DecoderConfig, ImportError, Imported, TensorStore};
use std::collections::BTreeSet;
use std::ops::Range;

/// Rows `rows` of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorRef {
    /// Name in the checkpoint.
    pub name: String,
    /// Whole shape in the checkpoint.
    pub shape: Vec<usize>,
    /// The part meant, along the slowest axis.
    pub rows: Range<usize>,
}

/// Where the parts of a layer are stored; shapes as in [`DecoderLayer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecoderLayerTensors {
    /// Before attention.
    pub attn_norm: TensorRef,
    /// Queries.
    pub q: TensorRef,
    /// Keys.
    pub k: TensorRef,
    /// Values.
    pub v: TensorRef,
    /// Output of attention.
    pub o: TensorRef,
    /// If the family has it.
    pub q_bias: Option<TensorRef>,
    /// If the family has it.
    pub k_bias: Option<TensorRef>,
    /// If the family has it.
    pub v_bias: Option<TensorRef>,
    /// If the family has it.
    pub q_norm: Option<TensorRef>,
    /// If the family has it.
    pub k_norm: Option<TensorRef>,
    /// If the family has it.
    pub post_attn_norm: Option<TensorRef>,
    /// Before the feed-forward block.
    pub ffn_norm: TensorRef,
    /// Gate.
    pub gate: TensorRef,
    /// Up.
    pub up: TensorRef,
    /// Down.
    pub down: TensorRef,
    /// If the family has it.
    pub post_ffn_norm: Option<TensorRef>,
}

/// The weights of one layer, row-major. `d` is the width; gains include the offset of the family.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderLayer {
    /// Gain of the norm before attention, `[d]`.
    pub attn_norm: Vec<f32>,
    /// `[heads * head_dim, d]`.
    pub q: Vec<f32>,
    /// `[kv_heads * head_dim, d]`.
    pub k: Vec<f32>,
    /// `[kv_heads * head_dim, d]`.
    pub v: Vec<f32>,
    /// `[d, heads * head_dim]`.
    pub o: Vec<f32>,
    /// `[heads * head_dim]`.
    pub q_bias: Option<Vec<f32>>,
    /// `[kv_heads * head_dim]`.
    pub k_bias: Option<Vec<f32>>,
    /// `[kv_heads * head_dim]`.
    pub v_bias: Option<Vec<f32>>,
    /// Gain of the norm of each query head, `[head_dim]`.
    pub q_norm: Option<Vec<f32>>,
    /// Gain of the norm of each key head, `[head_dim]`.
    pub k_norm: Option<Vec<f32>>,
    /// Gain of the norm behind the output projection, `[d]`.
    pub post_attn_norm: Option<Vec<f32>>,
    /// Gain of the norm before the feed-forward block, `[d]`.
    pub ffn_norm: Vec<f32>,
    /// `[ffn, d]`.
    pub gate: Vec<f32>,
    /// `[ffn, d]`.
    pub up: Vec<f32>,
    /// `[d, ffn]`.
    pub down: Vec<f32>,
    /// Gain of the norm behind the feed-forward block, `[d]`.
    pub post_ffn_norm: Option<Vec<f32>>,
}

/// A decoder: settings, and where its weights are.
#[derive(Clone, Debug)]
pub struct DecoderGraph {
    /// Dimensions and settings.
    pub config: DecoderConfig,
    /// `[vocab, d]`.
    pub embed: TensorRef,
    /// Layers in order.
    pub layers: Vec<DecoderLayerTensors>,
    /// Gain of the last norm, `[d]`.
    pub norm: TensorRef,
    /// `[vocab, d]`; the embedding where tied.
    pub head: TensorRef,
    tensors: TensorStore,
}

impl DecoderGraph {
    /// Finds and checks every tensor of an imported decoder.
    ///
    /// # Errors
    /// An encoder; a missing or misshapen tensor, or one without a place; a bias behind the output projection.
    pub fn build(model: &Imported) -> Result<Self, ImportError> {
        match &model.config {
            Config::Decoder(config) => Self::from_parts(config, &model.tensors),
            Config::Encoder(config) => Err(ImportError::Architecture(config.architecture.clone())),
        }
    }

    /// The same from settings and tensors.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn from_parts(config: &DecoderConfig, tensors: &TensorStore) -> Result<Self, ImportError> {
        let (vocab, d) = (config.vocab, config.width);
        let embed = whole("model.embed_tokens.weight", &[vocab, d]);
        let head = if config.tied { embed.clone() } else { whole("lm_head.weight", &[vocab, d]) };
        let norm = whole("model.norm.weight", &[d]);
        let layers: Vec<_> = (0..config.layers).map(|l| layer_tensors(config, l)).collect();
        let graph = Self { config: config.clone(), embed, layers, norm, head, tensors: tensors.clone() };
        graph.check()?;
        Ok(graph)
    }

    /// Reads the weights of layer `i`, `i` below the number of layers.
    ///
    /// # Errors
    /// Unreadable file, a value that is not finite.
    pub fn layer(&self, i: usize) -> Result<DecoderLayer, ImportError> {
        let t = &self.layers[i];
        let read = |r: &TensorRef| self.tensors.rows(&r.name, &r.shape, r.rows.clone());
        let maybe = |r: &Option<TensorRef>| r.as_ref().map(read).transpose();
        let gains = |r: &Option<TensorRef>| r.as_ref().map(|r| self.gain(r)).transpose();
        Ok(DecoderLayer {
            attn_norm: self.gain(&t.attn_norm)?,
            q: read(&t.q)?,
            k: read(&t.k)?,
            v: read(&t.v)?,
            o: read(&t.o)?,
            q_bias: maybe(&t.q_bias)?,
            k_bias: maybe(&t.k_bias)?,
            v_bias: maybe(&t.v_bias)?,
            q_norm: gains(&t.q_norm)?,
            k_norm: gains(&t.k_norm)?,
            post_attn_norm: gains(&t.post_attn_norm)?,
            ffn_norm: self.gain(&t.ffn_norm)?,
            gate: read(&t.gate)?,
            up: read(&t.up)?,
            down: read(&t.down)?,
            post_ffn_norm: gains(&t.post_ffn_norm)?,
        })
    }

    /// The whole embedding, `[vocab, d]`, without [`DecoderConfig::embed_scale`].
    ///
    /// # Errors
    /// As [`Self::layer`].
    pub fn embedding(&self) -> Result<Vec<f32>, ImportError> {
        self.embedding_rows(0..self.config.vocab)
    }

    /// Some rows of the embedding.
    ///
    /// # Errors
    /// As [`Self::layer`]; rows beyond the vocabulary.
    pub fn embedding_rows(&self, rows: Range<usize>) -> Result<Vec<f32>, ImportError> {
        self.tensors.rows(&self.embed.name, &self.embed.shape, rows)
    }

    /// The whole head, `[vocab, d]`.
    ///
    /// # Errors
    /// As [`Self::layer`].
    pub fn head(&self) -> Result<Vec<f32>, ImportError> {
        self.head_rows(0..self.config.vocab)
    }

    /// Some rows of the head.
    ///
    /// # Errors
    /// As [`Self::layer`]; rows beyond the vocabulary.
    pub fn head_rows(&self, rows: Range<usize>) -> Result<Vec<f32>, ImportError> {
        self.tensors.rows(&self.head.name, &self.head.shape, rows)
    }

    /// Gain of the last norm, `[d]`, offset included.
    ///
    /// # Errors
    /// As [`Self::layer`].
    pub fn final_norm(&self) -> Result<Vec<f32>, ImportError> {
        self.gain(&self.norm)
    }

    fn gain(&self, r: &TensorRef) -> Result<Vec<f32>, ImportError> {
        let mut gain = self.tensors.rows(&r.name, &r.shape, r.rows.clone())?;
        // Adding in f64 and rounding once is what f32 addition does too.
        gain.iter_mut().for_each(|w| *w += self.config.norm_offset as f32);
        Ok(gain)
    }

    fn check(&self) -> Result<(), ImportError> {
        let ends = [&self.embed, &self.norm, &self.head];
        let mut used = BTreeSet::new();
        for part in ends.into_iter().chain(self.layers.iter().flat_map(DecoderLayerTensors::all)) {
            self.tensors.check(&part.name, &part.shape)?;
            used.insert(part.name.as_str());
        }
        for name in self.tensors.names().filter(|name| !used.contains(name)) {
            // Frequencies that old exporters stored follow from the config, and a tied head is a copy.
            let derived = name.ends_with("rotary_emb.inv_freq") || (self.config.tied && name == "lm_head.weight");
            if !derived && !self.zero_output_bias(name)? {
                return Err(ImportError::UnusedTensor(name.to_owned()));
            }
        }
        Ok(())
    }

    /// The published classes give the output projection a bias with the others; only a zero one can be left out.
    fn zero_output_bias(&self, name: &str) -> Result<bool, ImportError> {
        if !self.config.qkv_bias || !(0..self.config.layers).any(|l| name == part_name(l, "self_attn.o_proj.bias")) {
            return Ok(false);
        }
        let bias = self.tensors.get(name, &[self.config.width])?;
        if bias.data.iter().all(|&b| b == 0.0) {
            return Ok(true);
        }
        let (setting, value) = ("attention_bias".to_owned(), format!("true with values other than zero in {name}"));
        Err(ImportError::Setting { setting, value, supported: "biases of q_proj, k_proj and v_proj" })
    }
}

impl DecoderLayerTensors {
    fn all(&self) -> impl Iterator<Item = &TensorRef> {
        let always = [&self.attn_norm, &self.q, &self.k, &self.v, &self.o, &self.ffn_norm, &self.gate, &self.up, &self.down];
        let biases = [&self.q_bias, &self.k_bias, &self.v_bias];
        let norms = [&self.q_norm, &self.k_norm, &self.post_attn_norm, &self.post_ffn_norm];
        always.into_iter().chain(biases.into_iter().chain(norms).flatten())
    }
}

fn part_name(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.{part}")
}

fn whole(name: &str, shape: &[usize]) -> TensorRef {
    TensorRef { name: name.to_owned(), shape: shape.to_vec(), rows: 0..shape[0] }
}

fn layer_tensors(c: &DecoderConfig, l: usize) -> DecoderLayerTensors {
    let (d, f) = (c.width, c.ffn);
    let (queries, keys) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let part = |name: &str, shape: &[usize]| whole(&part_name(l, name), shape);
    // Fused matrices hold their parts one below the other.
    let fused = c.architecture == "Phi3ForCausalLM";
    let matrix = |name: &str, stack: &str, outputs: usize, above: usize, all: usize| {
        if !fused {
            return part(&format!("{name}.weight"), &[outputs, d]);
        }
        TensorRef { rows: above..above + outputs, ..part(&format!("{stack}.weight"), &[all, d]) }
    };
    let attention = |name: &str, n: usize, above: usize| matrix(name, "self_attn.qkv_proj", n, above, queries + 2 * keys);
    let bias = |name: &str, n: usize| c.qkv_bias.then(|| part(&format!("self_attn.{name}_proj.bias"), &[n]));
    let head_norm = |name: &str| c.qk_norm.then(|| part(&format!("self_attn.{name}_norm.weight"), &[c.head_dim]));
    let norm = |name: &str| part(&format!("{name}_layernorm.weight"), &[d]);
    // With four norms, `post_attention` is behind attention; with two it is the one before the feed-forward block.
    let ffn_norm = if c.post_norms { "pre_feedforward" } else { "post_attention" };
    DecoderLayerTensors {
        attn_norm: norm("input"),
        q: attention("self_attn.q_proj", queries, 0),
        k: attention("self_attn.k_proj", keys, queries),
        v: attention("self_attn.v_proj", keys, queries + keys),
        o: part("self_attn.o_proj.weight", &[d, queries]),
        q_bias: bias("q", queries),
        k_bias: bias("k", keys),
        v_bias: bias("v", keys),
        q_norm: head_norm("q"),
        k_norm: head_norm("k"),
        post_attn_norm: c.post_norms.then(|| norm("post_attention")),
        ffn_norm: norm(ffn_norm),
        gate: matrix("mlp.gate_proj", "mlp.gate_up_proj", f, 0, 2 * f),
        up: matrix("mlp.up_proj", "mlp.gate_up_proj", f, f, 2 * f),
        down: part("mlp.down_proj.weight", &[d, f]),
        post_ffn_norm: c.post_norms.then(|| norm("post_feedforward")),
    }
}
