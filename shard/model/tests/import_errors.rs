//! Folders that must be refused, each by an error that names the cause. The weights are a tiny generated encoder.

use obelysk_model::calibrate::calibrate_ids;
use obelysk_model::graph::Graph;
use obelysk_model::import::{ImportError, Imported, import};
use obelysk_model::infer;
use obelysk_model::quantise::{QuantiseOptions, quantise};
use obelysk_model::toy::Prng;
use safetensors::{Dtype, tensor::TensorView};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

const CONFIG: &str = r#"{"architectures":["BertModel"],"model_type":"bert","hidden_act":"gelu","hidden_size":12,
    "intermediate_size":24,"layer_norm_eps":1e-12,"max_position_embeddings":16,"num_attention_heads":3,
    "num_hidden_layers":2,"position_embedding_type":"absolute","type_vocab_size":2,"vocab_size":10}"#;
const TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
    "pre_tokenizer":{"type":"BertPreTokenizer"},"post_processor":null,"decoder":null,"model":{"type":"WordPiece",
    "unk_token":"[UNK]","continuing_subword_prefix":"\#\#","max_input_chars_per_word":100,"vocab":{"[UNK]":0,"a":1,"b":2}}}"#;

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn tensors() -> Tensors {
    let mut rng = Prng::new(1);
    let mut out = Tensors::new();
    let mut add = |name: String, shape: &[usize], centre: f32| {
        let n = shape.iter().product();
        let data = (0..n).map(|_| centre + rng.range(-1000, 1000) as f32 / 4000.0).collect();
        out.insert(name, (shape.to_vec(), data));
    };
    for (name, rows) in [("word", 10), ("position", 16), ("token_type", 2)] {
        add(format!("embeddings.{name}_embeddings.weight"), &[rows, 12], 0.0);
    }
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for l in 0..2 {
        let p = format!("encoder.layer.{l}");
        norms.extend([format!("{p}.attention.output.LayerNorm"), format!("{p}.output.LayerNorm")]);
        for (name, n, k) in [
            ("attention.self.query", 12, 12),
            ("attention.self.key", 12, 12),
            ("attention.self.value", 12, 12),
            ("attention.output.dense", 12, 12),
            ("intermediate.dense", 24, 12),
            ("output.dense", 12, 24),
        ] {
            add(format!("{p}.{name}.weight"), &[n, k], 0.0);
            add(format!("{p}.{name}.bias"), &[n], 0.0);
        }
    }
    for norm in norms {
        add(format!("{norm}.weight"), &[12], 1.0);
        add(format!("{norm}.bias"), &[12], 0.0);
    }
    out
}

fn write(folder: &Path, config: &str, tensors: &Tensors) {
    let bytes: BTreeMap<&str, (&[usize], Vec<u8>)> = tensors
        .iter()
        .map(|(n, (s, d))| (n.as_str(), (s.as_slice(), d.iter().flat_map(|v| v.to_le_bytes()).collect())))
        .collect();
    let views = bytes.iter().map(|(n, (s, d))| (*n, TensorView::new(Dtype::F32, s.to_vec(), d).unwrap()));
    std::fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    std::fs::write(folder.join("config.json"), config).unwrap();
    std::fs::write(folder.join("tokenizer.json"), TOKENIZER.replace(r"\#", "#")).unwrap();
}

/// Imports and builds the tiny model after a change of its config and tensors.
fn outcome(config: &str, change: impl FnOnce(&mut Tensors, &TempDir)) -> Result<(Imported, Graph), ImportError> {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = tensors();
    write(folder.path(), config, &tensors);
    change(&mut tensors, &folder);
    if folder.path().join("model.safetensors").metadata().is_ok_and(|m| m.len() > 2000) {
        write(folder.path(), config, &tensors);
    }
    let imported = import(folder.path())?;
    let graph = Graph::build(&imported)?;
    Ok((imported, graph))
}

fn message(config: &str, change: impl FnOnce(&mut Tensors, &TempDir)) -> String {
    outcome(config, change).err().expect("must be refused").to_string()
}

#[test]
fn tiny_encoder_goes_all_the_way() {
    let (imported, graph) = outcome(CONFIG, |_, _| {}).unwrap();
    assert_eq!(imported.tokenizer.encode("a b c").unwrap(), [1, 2, 0]);
    let inputs: [&[u32]; 2] = [&[1, 2, 3, 4, 5, 6, 7, 8, 9, 0], &[9, 9, 1]];
    let ranges = calibrate_ids(&graph, inputs).unwrap();
    let options = QuantiseOptions { row_log: 6, ..QuantiseOptions::default() };
    let model = quantise(&graph, &ranges, &options).unwrap().model;
    assert_eq!((model.descriptor.tile_k_log(), model.descriptor.tile_n_log()), (2, 2));
    let trace = infer::run(&model, inputs[1]).unwrap();
    let ours = infer::embedding(&obelysk_model::toy::encoder(&model).output, &trace.pooled, trace.tokens);
    let float = obelysk_model::graph::evaluate(&graph, inputs[1]).unwrap();
    let cos: f32 = ours.iter().zip(float.output()).map(|(a, b)| a * b).sum();
    assert!(cos > 0.999, "{cos}");
}

#[test]
fn tensors_are_judged_by_name() {
    let text = message(CONFIG, |t, _| drop(t.remove("encoder.layer.1.output.dense.bias")));
    assert!(text.contains("encoder.layer.1.output.dense.bias") && text.contains("missing"), "{text}");
    let text = message(CONFIG, |t, _| t.get_mut("encoder.layer.0.output.dense.weight").unwrap().1[7] = f32::NAN);
    assert!(text.contains("encoder.layer.0.output.dense.weight") && text.contains("index 7"), "{text}");
    let text = message(CONFIG, |t, _| t.get_mut("embeddings.LayerNorm.bias").unwrap().1[3] = f32::INFINITY);
    assert!(text.contains("embeddings.LayerNorm.bias") && text.contains("inf"), "{text}");
    let text = message(CONFIG, |t, _| t.get_mut("encoder.layer.0.output.dense.weight").unwrap().0 = vec![24, 12]);
    assert!(text.contains("[24, 12]") && text.contains("[12, 24]"), "{text}");
}

#[test]
fn damaged_files_are_refused() {
    let cut = |n: usize| {
        move |_: &mut Tensors, f: &TempDir| {
            let path = f.path().join("model.safetensors");
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..n.min(bytes.len())]).unwrap();
        }
    };
    for n in [0, 7, 100, 1999] {
        assert!(matches!(outcome(CONFIG, cut(n)), Err(ImportError::Safetensors { .. })), "{n} bytes");
    }
    let remove = |name: &'static str| move |_: &mut Tensors, f: &TempDir| std::fs::remove_file(f.path().join(name)).unwrap();
    assert!(matches!(outcome(CONFIG, remove("model.safetensors")), Err(ImportError::NoWeights(_))));
    assert!(matches!(outcome("{", |_, _| {}), Err(ImportError::Json { .. })));
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(import(empty.path()), Err(ImportError::File { .. })));
}

#[test]
fn settings_that_change_the_function_are_refused() {
    for (from, to, name) in [
        ("BertModel", "MambaForCausalLM", "MambaForCausalLM"),
        (r#""gelu""#, r#""gelu_new""#, "hidden_act"),
        (r#""absolute""#, r#""relative_key""#, "position_embedding_type"),
        (r#""num_attention_heads":3"#, r#""num_attention_heads":5"#, "num_attention_heads"),
        (r#""hidden_size":12"#, r#""hidden_size":0"#, "hidden_size"),
        (r#""vocab_size":10"#, r#""vocab_size":10,"is_decoder":true"#, "is_decoder"),
    ] {
        let text = message(&CONFIG.replace(from, to), |_, _| {});
        assert!(text.contains(name), "{text}");
    }
    let pooling = |body: &'static str| {
        move |_: &mut Tensors, f: &TempDir| {
            std::fs::create_dir(f.path().join("1_Pooling")).unwrap();
            std::fs::write(f.path().join("1_Pooling/config.json"), body).unwrap();
        }
    };
    assert!(outcome(CONFIG, pooling(r#"{"pooling_mode_mean_tokens":true,"pooling_mode_cls_token":false}"#)).is_ok());
    let text = message(CONFIG, pooling(r#"{"pooling_mode_mean_tokens":false,"pooling_mode_cls_token":true}"#));
    assert!(text.contains("pooling_mode"), "{text}");
    let dense = r#"[{"idx":0,"name":"0","path":"","type":"sentence_transformers.models.Dense"}]"#;
    let text = message(CONFIG, |_, f| std::fs::write(f.path().join("modules.json"), dense).unwrap());
    assert!(text.contains("Dense"), "{text}");
}
