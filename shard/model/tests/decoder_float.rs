//! Our float decoder against two others on tiny random checkpoints: candle's, by other people, where it has the option, and
//! the published formulas written down plainly, where it has not.
//!
//! What candle 0.11 has not: linear rope scaling and biases in Llama; windows in Qwen3; windows in Phi3, and there longrope
//! multiplies by the factors instead of dividing and has no amplitude; the alternation of windows in Gemma2 and its own score
//! scale. Its windows are one key wider than published, so it is given one less.

mod plain;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{gemma2, llama, mistral, phi3, qwen3};
use obelysk_model::graph::FloatError;
use obelysk_model::graph::decoder::DecoderGraph;
use obelysk_model::graph::decoder_float::{FINAL, Stage, forward, forward_from};
use obelysk_model::import::import;
use obelysk_model::tiny::{self, Family, Options, Rope, Stored};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

fn write(family: Family, seed: u64, options: Options) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    tiny::write(family, folder.path(), seed, &options).unwrap();
    folder
}

fn ours(folder: &Path, ids: &[u32]) -> Vec<f32> {
    let graph = DecoderGraph::build(&import(folder).unwrap()).unwrap();
    forward(&graph, ids, &mut |_, _, _, _| {}).unwrap()
}

fn weights(folder: &Path) -> VarBuilder<'static> {
    let tensors = plain::tensors(folder).into_iter().collect();
    VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
}

/// candle gives the last token's logits only, so it is asked for every prefix.
fn prefixes(ids: &[u32], mut last: impl FnMut(&Tensor) -> Tensor) -> Vec<Vec<f32>> {
    let input = |n: usize| Tensor::new(&ids[..n], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    (1..=ids.len()).map(|n| last(&input(n)).flatten_all().unwrap().to_vec1().unwrap()).collect()
}

fn candle_llama(folder: &Path, ids: &[u32]) -> Vec<Vec<f32>> {
    let config: llama::LlamaConfig = serde_json::from_value(plain::config(folder)).unwrap();
    let config = config.into_config(false);
    let model = llama::Llama::load(weights(folder), &config).unwrap();
    let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
    prefixes(ids, |x| model.forward(x, 0, &mut cache).unwrap())
}

fn check_plain(case: &str, folder: &Path, n: usize) {
    let ids = plain::ids(5, plain::config(folder)["vocab_size"].as_u64().unwrap() as usize, n);
    plain::agree(case, &ours(folder, &ids), &plain::logits(folder, &ids));
}

#[test]
fn llama_agrees_with_candle() {
    let base = Options::of(Family::Llama);
    for (case, options) in [
        ("llama3 scaling, untied, bf16", base),
        ("plain, tied, f16, three shards", Options { rope: Rope::Plain, tied: true, stored: Stored::F16, shards: 3, ..base }),
        ("one key per query", Options { kv_heads: 4, stored: Stored::F32, ..base }),
        ("groups of three", Options { width: 72, heads: 3, kv_heads: 1, head_dim: 24, ..base }),
        ("groups of five", Options { width: 120, heads: 5, kv_heads: 1, head_dim: 24, stored: Stored::F32, ..base }),
        ("groups of seven", Options { width: 112, heads: 7, kv_heads: 1, ffn: 67, vocab: 263, ..base }),
    ] {
        let folder = write(Family::Llama, 1, options);
        let ids = plain::ids(2, options.vocab, 40);
        plain::agree(case, &ours(folder.path(), &ids), &candle_llama(folder.path(), &ids));
    }
}

#[test]
fn llama_agrees_with_the_formulas() {
    let base = Options::of(Family::Llama);
    for (case, options) in [
        ("llama3 scaling", base),
        ("linear scaling", Options { rope: Rope::Linear, ..base }),
        ("biases", Options { bias: true, ..base }),
        ("head width apart from the hidden width", Options { head_dim: 40, ..base }),
    ] {
        check_plain(case, write(Family::Llama, 3, options).path(), 50);
    }
}

#[test]
fn qwen3_agrees_with_candle_and_the_formulas() {
    let base = Options::of(Family::Qwen3);
    for (case, options) in [
        ("groups of five, heads wider than the hidden width", base),
        ("groups of two, tied, zero output bias", Options { heads: 2, head_dim: 24, tied: true, bias: true, ..base }),
        ("groups of seven, f32, two shards", Options { heads: 7, head_dim: 12, stored: Stored::F32, shards: 2, ..base }),
    ] {
        let folder = write(Family::Qwen3, 1, options);
        let ids = plain::ids(2, options.vocab, 40);
        let config: qwen3::Config = serde_json::from_value(plain::config(folder.path())).unwrap();
        let mut model = qwen3::ModelForCausalLM::new(&config, weights(folder.path())).unwrap();
        let theirs = prefixes(&ids, |x| {
            model.clear_kv_cache();
            model.forward(x, 0).unwrap()
        });
        plain::agree(case, &ours(folder.path(), &ids), &theirs);
        check_plain(case, folder.path(), 30);
    }
    let windows = Options { window: Some(7), layers: 4, ..base };
    check_plain("windows from the third layer on", write(Family::Qwen3, 2, windows).path(), 30);
}

#[test]
fn mistral_agrees_with_candle_and_the_formulas() {
    let base = Options::of(Family::Mistral);
    for (case, options) in [
        ("no window", base),
        ("a window shorter than the text", Options { window: Some(9), stored: Stored::F16, ..base }),
        ("a window of one key", Options { window: Some(1), heads: 3, kv_heads: 1, shards: 4, ..base }),
    ] {
        let folder = write(Family::Mistral, 1, options);
        let ids = plain::ids(2, options.vocab, 40);
        let mut config: mistral::Config = serde_json::from_value(plain::config(folder.path())).unwrap();
        config.sliding_window = config.sliding_window.map(|w| w - 1);
        let mut model = mistral::Model::new(&config, weights(folder.path())).unwrap();
        let theirs = prefixes(&ids, |x| {
            model.clear_kv_cache();
            model.forward(x, 0).unwrap()
        });
        plain::agree(case, &ours(folder.path(), &ids), &theirs);
        check_plain(case, folder.path(), 30);
    }
}

#[test]
fn phi3_agrees_with_candle_and_the_formulas() {
    let base = Options::of(Family::Phi3);
    let wide = Options { width: 192, heads: 2, kv_heads: 1, head_dim: 96, ..base };
    for (case, options) in [("groups of one", base), ("heads of 96", Options { stored: Stored::F32, shards: 2, ..wide })] {
        let folder = write(Family::Phi3, 1, options);
        let ids = plain::ids(2, options.vocab, 40);
        let config: phi3::Config = serde_json::from_value(plain::config(folder.path())).unwrap();
        let mut model = phi3::Model::new(&config, weights(folder.path())).unwrap();
        let theirs = prefixes(&ids, |x| {
            model.clear_kv_cache();
            model.forward(x, 0).unwrap()
        });
        plain::agree(case, &ours(folder.path(), &ids), &theirs);
    }
    check_plain("longrope", write(Family::Phi3, 3, Options { rope: Rope::Longrope, ..wide }).path(), 60);
    check_plain("a window", write(Family::Phi3, 4, Options { window: Some(6), tied: true, ..base }).path(), 30);
}

#[test]
fn gemma2_agrees_with_candle_and_the_formulas() {
    let base = Options::of(Family::Gemma2);
    let sliding = |o: Options| vec!["sliding_attention"; o.layers];
    for (case, options) in [
        ("no window", Options { window: None, ..base }),
        ("a window on all layers", Options { window: Some(5), layers: 3, heads: 6, stored: Stored::F32, ..base }),
    ] {
        let folder = write(Family::Gemma2, 1, options);
        plain::edit(folder.path(), |c| {
            c["query_pre_attn_scalar"] = json!(options.head_dim);
            c["layer_types"] = if options.window.is_some() { json!(sliding(options)) } else { Value::Null };
        });
        let ids = plain::ids(2, options.vocab, 40);
        let mut config: gemma2::Config = serde_json::from_value(plain::config(folder.path())).unwrap();
        config.sliding_window = config.sliding_window.map(|w| w - 1);
        let mut model = gemma2::Model::new(false, &config, weights(folder.path())).unwrap();
        let theirs = prefixes(&ids, |x| {
            model.clear_kv_cache();
            model.forward(x, 0).unwrap()
        });
        plain::agree(case, &ours(folder.path(), &ids), &theirs);
    }
    for (case, options) in [
        ("windows on every other layer", Options { window: Some(6), layers: 3, shards: 3, ..base }),
        ("an untied head, biases", Options { tied: false, bias: true, ..base }),
    ] {
        check_plain(case, write(Family::Gemma2, 3, options).path(), 30);
    }
}

#[test]
fn observers_see_every_stage_in_the_stated_shape() {
    for family in tiny::FAMILIES {
        let options = Options::of(family);
        let folder = write(family, 1, options);
        let graph = DecoderGraph::build(&import(folder.path()).unwrap()).unwrap();
        let ids = plain::ids(2, options.vocab, 11);
        let mut seen = Vec::new();
        let logits = forward(&graph, &ids, &mut |l, stage, values, tokens| {
            assert_eq!(tokens, 11);
            let channels = match stage {
                Stage::QPre | Stage::Q | Stage::Mix => options.heads * options.head_dim,
                Stage::KPre | Stage::K | Stage::V => options.kv_heads * options.head_dim,
                Stage::GatePre | Stage::Gate | Stage::Up | Stage::Product => options.ffn,
                Stage::Logits => options.vocab,
                _ => options.width,
            };
            assert_eq!(values.len(), channels * tokens, "{stage:?}");
            seen.push((l, stage, values.to_vec()));
        })
        .unwrap();
        let norms = if family == Family::Gemma2 { 2 } else { 0 };
        assert_eq!(seen.len(), 1 + options.layers * (16 + norms) + 2, "{family:?}");
        // The last stage is the result, turned; any layer's input leads to the same result.
        let (l, stage, values) = seen.last().unwrap();
        assert_eq!((*l, *stage), (FINAL, Stage::Logits));
        assert!((0..options.vocab).all(|v| values[v * 11 + 4] == logits[4 * options.vocab + v]));
        let (_, _, out) = seen.iter().find(|s| (s.0, s.1) == (0, Stage::Out)).unwrap();
        assert_eq!(forward_from(&graph, 1, out.clone(), 11, &mut |_, _, _, _| {}).unwrap(), logits);
    }
}

#[test]
fn inputs_out_of_range_are_refused() {
    let options = Options { positions: 64, rope: Rope::Longrope, ..Options::of(Family::Phi3) };
    let folder = write(Family::Phi3, 1, options);
    let graph = DecoderGraph::build(&import(folder.path()).unwrap()).unwrap();
    let run = |ids: &[u32]| forward(&graph, ids, &mut |_, _, _, _| {});
    assert!(matches!(run(&[]), Err(FloatError::Empty)));
    assert!(matches!(run(&[1, 320]), Err(FloatError::Vocabulary { id: 320, vocab: 320 })));
    // The short factors of longrope hold for the original length, a quarter of the stretched one.
    assert!(run(&[1; 16]).is_ok());
    assert!(matches!(run(&[1; 17]), Err(FloatError::TooLong { tokens: 17, positions: 16 })));
}
