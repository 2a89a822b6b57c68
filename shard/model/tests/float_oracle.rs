//! Our float executor against candle's BERT on the real weights: two implementations by different people.

mod real;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use obelysk_model::graph::{Graph, evaluate};
use obelysk_model::import::import;

/// Mean over tokens, divided by the L2 norm.
fn pooled(hidden: &[Vec<f32>]) -> Vec<f64> {
    let width = hidden[0].len();
    let mean: Vec<f64> =
        (0..width).map(|c| hidden.iter().map(|row| f64::from(row[c])).sum::<f64>() / hidden.len() as f64).collect();
    let length = mean.iter().map(|v| v * v).sum::<f64>().sqrt();
    mean.iter().map(|v| v / length).collect()
}

#[test]
fn float_executor_agrees_with_candle() {
    let Some(folder) = real::minilm() else { return };
    let imported = import(&folder).unwrap();
    let graph = Graph::build(&imported).unwrap();
    let config: Config = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let weights = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu).unwrap();
    let candle = BertModel::load(weights, &config).unwrap();
    for text in [
        "Hi",
        "A distributed prover for neural-network inference.",
        "¿Dónde está la biblioteca? 北京 is the capital of China!",
        "def f(x): return x**2 + 3*x - 1",
        "Whether it rains tomorrow or not, the ferry leaves at seven, and whoever is late will have to swim or wait a week.",
    ] {
        let ids = imported.tokenizer.encode(text).unwrap();
        let input = Tensor::new(ids.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let hidden = candle.forward(&input, &input.zeros_like().unwrap(), None).unwrap();
        let hidden: Vec<Vec<f32>> = hidden.squeeze(0).unwrap().to_vec2().unwrap();
        let values = evaluate(&graph, &ids).unwrap();
        let last = &values.nodes[graph.find("layer.5.norm2").unwrap()];
        for (t, row) in hidden.iter().enumerate() {
            for (c, theirs) in row.iter().enumerate() {
                let ours = last[c * values.tokens + t];
                assert!((ours - theirs).abs() < 1e-4, "{text:?}: token {t}, channel {c}: {ours} against {theirs}");
            }
        }
        for (ours, theirs) in values.output().iter().zip(pooled(&hidden)) {
            assert!((f64::from(*ours) - theirs).abs() < 1e-5);
        }
    }
}
