//! A decoder in f64 as the published formulas have it, token by token: slow, plain, and reading `config.json` by itself, so
//! that it shares nothing with the executor it judges.

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

pub type Tensors = BTreeMap<String, Tensor>;

/// All tensors of a folder in f32.
pub fn tensors(folder: &Path) -> Tensors {
    let files = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let files = files.filter(|p| p.extension().is_some_and(|e| e == "safetensors"));
    files
        .flat_map(|path| candle_core::safetensors::load(path, &Device::Cpu).unwrap())
        .map(|(name, tensor)| (name, tensor.to_dtype(DType::F32).unwrap()))
        .collect()
}

pub fn config(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// Rewrites fields of `config.json`.
pub fn edit(folder: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = config(folder);
    change(&mut value);
    std::fs::write(folder.join("config.json"), value.to_string()).unwrap();
}

/// Repeats with the seed; its quality does not matter.
pub fn ids(seed: u64, vocab: usize, n: usize) -> Vec<u32> {
    let mut rng = obelysk_model::toy::Prng::new(seed);
    (0..n).map(|_| (rng.next_u64() % vocab as u64) as u32).collect()
}

/// Asserts that two tables of logits are equal to `1e-4`.
pub fn agree<T: Copy + Into<f64>>(case: &str, ours: &[f32], theirs: &[Vec<T>]) {
    let vocab = theirs[0].len();
    assert_eq!(ours.len(), theirs.len() * vocab, "{case}");
    let mut largest = 0f64;
    for (t, (ours, theirs)) in ours.chunks_exact(vocab).zip(theirs).enumerate() {
        for (v, (a, b)) in ours.iter().zip(theirs).enumerate() {
            let (a, b): (f64, f64) = (f64::from(*a), (*b).into());
            assert!((a - b).abs() < 1e-4, "{case}: token {t}, word {v}: {a} against {b}");
            largest = largest.max(b.abs());
        }
    }
    assert!(largest > 0.1, "{case}: logits of {largest} prove nothing");
}

struct Plain {
    config: Value,
    tensors: Tensors,
}

/// Logits of every token.
pub fn logits(folder: &Path, ids: &[u32]) -> Vec<Vec<f64>> {
    Plain { config: config(folder), tensors: tensors(folder) }.run(ids)
}

fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
}

impl Plain {
    fn n(&self, name: &str) -> usize {
        self.config[name].as_u64().unwrap() as usize
    }

    fn is(&self, family: &str) -> bool {
        self.config["model_type"] == family
    }

    fn matrix(&self, name: &str) -> Vec<Vec<f64>> {
        let rows: Vec<Vec<f32>> = self.tensors[name].to_vec2().unwrap();
        rows.iter().map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect()
    }

    fn vector(&self, name: &str) -> Vec<f64> {
        self.tensors[name].to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
    }

    fn run(&self, ids: &[u32]) -> Vec<Vec<f64>> {
        let embed = self.matrix("model.embed_tokens.weight");
        let scale = if self.is("gemma2") { (self.n("hidden_size") as f64).sqrt() } else { 1.0 };
        let mut x: Vec<Vec<f64>> = ids.iter().map(|&id| embed[id as usize].iter().map(|v| v * scale).collect()).collect();
        for l in 0..self.n("num_hidden_layers") {
            x = self.layer(l, x);
        }
        let tied = self.config["tie_word_embeddings"].as_bool().unwrap();
        let head = if tied { embed } else { self.matrix("lm_head.weight") };
        let cap = self.config["final_logit_softcapping"].as_f64();
        let word = |row: &Vec<f64>, x: &Vec<f64>| cap.map_or(dot(row, x), |c| c * (dot(row, x) / c).tanh());
        x.iter().map(|x| self.norm("model.norm.weight", x)).map(|x| head.iter().map(|row| word(row, &x)).collect()).collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = dot(x, x) / x.len() as f64;
        let root = (mean + self.config["rms_norm_eps"].as_f64().unwrap()).sqrt();
        let offset = if self.is("gemma2") { 1.0 } else { 0.0 };
        x.iter().zip(self.vector(name)).map(|(v, g)| v / root * (offset + g)).collect()
    }

    fn layer(&self, l: usize, x: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
        let p = format!("model.layers.{l}");
        let normed: Vec<_> = x.iter().map(|x| self.norm(&format!("{p}.input_layernorm.weight"), x)).collect();
        let mut branch = self.attention(l, &normed);
        let mut before_ffn = "post_attention_layernorm";
        if self.is("gemma2") {
            branch = branch.iter().map(|b| self.norm(&format!("{p}.post_attention_layernorm.weight"), b)).collect();
            before_ffn = "pre_feedforward_layernorm";
        }
        let (gate, up) = if self.is("phi3") {
            let mut gate = self.matrix(&format!("{p}.mlp.gate_up_proj.weight"));
            let up = gate.split_off(self.n("intermediate_size"));
            (gate, up)
        } else {
            (self.matrix(&format!("{p}.mlp.gate_proj.weight")), self.matrix(&format!("{p}.mlp.up_proj.weight")))
        };
        let down = self.matrix(&format!("{p}.mlp.down_proj.weight"));
        let act = |x: f64| if self.is("gemma2") { gelu_tanh(x) } else { x / (1.0 + (-x).exp()) };
        let rows = x.iter().zip(&branch).map(|(x, b)| {
            let mid = add(x, b);
            let h = self.norm(&format!("{p}.{before_ffn}.weight"), &mid);
            let inner: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| act(dot(g, &h)) * dot(u, &h)).collect();
            let mut out = apply(&down, &inner);
            if self.is("gemma2") {
                out = self.norm(&format!("{p}.post_feedforward_layernorm.weight"), &out);
            }
            add(&mid, &out)
        });
        rows.collect()
    }

    fn attention(&self, l: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let p = format!("model.layers.{l}.self_attn");
        let (heads, kv_heads, dim) = (self.n("num_attention_heads"), self.n("num_key_value_heads"), self.n("head_dim"));
        let parts = if self.is("phi3") {
            let mut q = self.matrix(&format!("{p}.qkv_proj.weight"));
            let mut k = q.split_off(heads * dim);
            let v = k.split_off(kv_heads * dim);
            [q, k, v]
        } else {
            ["q", "k", "v"].map(|name| self.matrix(&format!("{p}.{name}_proj.weight")))
        };
        let [q, k, v] = [0, 1, 2].map(|i| {
            let mut rows: Vec<Vec<f64>> = x.iter().map(|x| apply(&parts[i], x)).collect();
            let name = ["q", "k", "v"][i];
            if self.config["attention_bias"] == true {
                let bias = self.vector(&format!("{p}.{name}_proj.bias"));
                rows = rows.iter().map(|row| add(row, &bias)).collect();
            }
            for (t, row) in rows.iter_mut().enumerate().filter(|_| i < 2) {
                for head in row.chunks_exact_mut(dim) {
                    if self.is("qwen3") {
                        head.copy_from_slice(&self.norm(&format!("{p}.{name}_norm.weight"), head));
                    }
                    self.rotate(head, t);
                }
            }
            rows
        });
        let o = self.matrix(&format!("{p}.o_proj.weight"));
        let window = self.window(l).unwrap_or(usize::MAX);
        let scalar = self.config["query_pre_attn_scalar"].as_f64().unwrap_or(dim as f64);
        let cap = self.config["attn_logit_softcapping"].as_f64();
        let rows = (0..x.len()).map(|i| {
            let mut mix = Vec::new();
            for h in 0..heads {
                let g = h / (heads / kv_heads);
                let part = |row: &[f64], h: usize| row[h * dim..(h + 1) * dim].to_vec();
                let seen: Vec<usize> = (0..=i).filter(|j| i - j < window).collect();
                let score = |&j: &usize| {
                    let s = dot(&part(&q[i], h), &part(&k[j], g)) / scalar.sqrt();
                    cap.map_or(s, |c| c * (s / c).tanh()).exp()
                };
                let weights: Vec<f64> = seen.iter().map(score).collect();
                let total: f64 = weights.iter().sum();
                let mut head = vec![0.0; dim];
                for (w, &j) in weights.iter().zip(&seen) {
                    head = add(&head, &part(&v[j], g).iter().map(|v| v * w / total).collect::<Vec<_>>());
                }
                mix.extend(head);
            }
            apply(&o, &mix)
        });
        rows.collect()
    }

    fn window(&self, l: usize) -> Option<usize> {
        let window = self.config["sliding_window"].as_u64().map(|w| w as usize);
        if let Some(kinds) = self.config["layer_types"].as_array() {
            return window.filter(|_| kinds[l] == "sliding_attention");
        }
        match self.config["model_type"].as_str().unwrap() {
            "gemma2" => window.filter(|_| l.is_multiple_of(2)),
            "qwen3" => window.filter(|_| self.config["use_sliding_window"] == true && l >= self.n("max_window_layers")),
            _ => window,
        }
    }

    /// Rotation of one head at position `t`, channel `i` paired with `i + dim / 2`.
    fn rotate(&self, head: &mut [f64], t: usize) {
        let dim = head.len();
        let scaling = &self.config["rope_scaling"];
        let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str()).unwrap_or("default");
        let mut amplitude = 1.0;
        for i in 0..dim / 2 {
            let mut f = 1.0 / self.config["rope_theta"].as_f64().unwrap().powf(2.0 * i as f64 / dim as f64);
            match kind {
                "default" => {}
                "linear" => f /= scaling["factor"].as_f64().unwrap(),
                "llama3" => {
                    let [factor, low, high, old] =
                        ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
                            .map(|name| scaling[name].as_f64().unwrap());
                    let wave = 2.0 * std::f64::consts::PI / f;
                    if wave > old / low {
                        f /= factor;
                    } else if wave >= old / high {
                        let smooth = (old / wave - low) / (high - low);
                        f = (1.0 - smooth) * f / factor + smooth * f;
                    }
                }
                "longrope" | "su" => {
                    let old = self.n("original_max_position_embeddings") as f64;
                    let stretch = self.n("max_position_embeddings") as f64 / old;
                    amplitude = (1.0 + stretch.ln() / old.ln()).sqrt();
                    f /= scaling["short_factor"][i].as_f64().unwrap();
                }
                other => panic!("{other}"),
            }
            let (sin, cos) = (t as f64 * f).sin_cos();
            let (a, b) = (head[i], head[i + dim / 2]);
            head[i] = amplitude * (a * cos - b * sin);
            head[i + dim / 2] = amplitude * (b * cos + a * sin);
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn apply(matrix: &[Vec<f64>], x: &[f64]) -> Vec<f64> {
    matrix.iter().map(|row| dot(row, x)).collect()
}
