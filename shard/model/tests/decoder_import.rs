//! Decoder folders that must be refused, each by an error that names file, tensor or field; and layouts that must be read.

use obelysk_model::graph::decoder::DecoderGraph;
use obelysk_model::import::{Config, DecoderConfig, HiddenAct, ImportError, Imported, import};
use obelysk_model::tiny::{self, FAMILIES, Family, Options, Rope, Stored};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

fn write(family: Family, options: Options) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    tiny::write(family, folder.path(), 1, &options).unwrap();
    folder
}

fn edit(folder: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(folder.join(file)).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(folder.join(file), value.to_string()).unwrap();
}

/// Replaces the tensors of a one-file checkpoint.
fn retensor(folder: &Path, change: impl Fn(&str, Dtype, Vec<usize>, Vec<u8>) -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)>) {
    let path = folder.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let old = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let new: Vec<_> = old.iter().flat_map(|(n, v)| change(n, v.dtype(), v.shape().to_vec(), v.data().to_vec())).collect();
    let views = new.iter().map(|(n, d, s, b)| (n.as_str(), TensorView::new(*d, s.clone(), b).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn build(folder: &Path) -> Result<(Imported, DecoderGraph), ImportError> {
    let imported = import(folder)?;
    let graph = DecoderGraph::build(&imported)?;
    Ok((imported, graph))
}

fn config(folder: &Path) -> DecoderConfig {
    match build(folder).unwrap().0.config {
        Config::Decoder(config) => config,
        Config::Encoder(_) => panic!("a decoder was read as an encoder"),
    }
}

/// The error after `change` of `config.json`.
fn refusal(family: Family, change: impl FnOnce(&mut Value)) -> String {
    let folder = write(family, Options::of(family));
    edit(folder.path(), "config.json", change);
    build(folder.path()).err().expect("must be refused").to_string()
}

#[test]
fn settings_that_change_the_function_are_refused_with_their_value() {
    use Family::{Gemma2, Llama, Mistral, Phi3, Qwen3};
    let yarn = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128 });
    let dynamic = json!({ "type": "dynamic", "factor": 2.0 });
    let half = json!({ "rope_type": "llama3", "factor": 8.0 });
    let extra = json!({ "rope_type": "linear", "factor": 2.0, "mscale": 0.5 });
    let short = json!({ "type": "longrope", "short_factor": [1.0], "long_factor": [1.0] });
    let types = json!(["sliding_attention", "full_attention"]);
    for (family, field, value, words) in [
        (Llama, "rope_scaling", yarn, "rope_scaling.rope_type yarn"),
        (Qwen3, "rope_scaling", dynamic, "rope_scaling.rope_type dynamic"),
        (Llama, "rope_scaling", half, "rope_scaling.low_freq_factor absent"),
        (Mistral, "rope_scaling", extra, "rope_scaling.mscale 0.5"),
        (Phi3, "rope_scaling", short, "rope_scaling.short_factor"),
        (Llama, "rope_parameters", json!({ "rope_type": "default" }), "rope_parameters"),
        (Phi3, "partial_rotary_factor", json!(0.75), "partial_rotary_factor 0.75"),
        (Llama, "hidden_act", json!("gelu"), "hidden_act gelu"),
        (Gemma2, "hidden_activation", json!("gelu"), "hidden_activation gelu"),
        (Llama, "mlp_bias", json!(true), "mlp_bias true"),
        (Llama, "pretraining_tp", json!(2), "pretraining_tp 2"),
        (Mistral, "attention_bias", json!(true), "attention_bias true"),
        (Qwen3, "num_experts", json!(8), "num_experts 8"),
        (Llama, "logits_scaling", json!(8.0), "logits_scaling 8"),
        (Llama, "quantization_config", json!({ "quant_method": "gptq" }), "quantization_config gptq"),
        (Llama, "sliding_window", json!(64), "sliding_window 64"),
        (Mistral, "layer_types", types.clone(), "layer_types"),
        (Qwen3, "layer_types", types, "layer_types"),
        (Gemma2, "layer_types", json!(["chunked_attention", "full_attention"]), "layer_types chunked_attention"),
        (Gemma2, "sliding_window_size", json!(12), "sliding_window_size 12"),
        (Llama, "attn_logit_softcapping", json!(50.0), "attn_logit_softcapping 50"),
        (Llama, "is_encoder_decoder", json!(true), "is_encoder_decoder true"),
        (Llama, "a_field_of_tomorrow", json!("on"), "a_field_of_tomorrow on"),
        (Llama, "model_type", json!("mistral"), "model_type mistral llama"),
        (Llama, "architectures", json!(["MixtralForCausalLM"]), "MixtralForCausalLM"),
        (Llama, "num_key_value_heads", json!(3), "num_key_value_heads 3"),
        (Llama, "head_dim", json!(15), "head_dim 15"),
        (Llama, "hidden_size", json!(1e30), "hidden_size 1e+30"),
        (Llama, "num_hidden_layers", json!(1_000_000), "num_hidden_layers 1000000"),
        (Llama, "rms_norm_eps", json!(-1.0), "rms_norm_eps -1"),
        (Llama, "vocab_size", Value::Null, "vocab_size absent"),
    ] {
        let text = refusal(family, |c| c[field] = value);
        for word in words.split(' ') {
            assert!(text.contains(word), "{family:?} {field}: {text}");
        }
    }
}

#[test]
fn settings_that_change_nothing_are_read_over() {
    for family in FAMILIES {
        let folder = write(family, Options::of(family));
        let before = config(folder.path());
        edit(folder.path(), "config.json", |c| {
            c["transformers_version"] = json!("4.57.1");
            c["quantization_config"] = Value::Null;
            c["use_bidirectional_attention"] = json!(false);
            c["pruned_heads"] = json!({});
            c["attention_dropout"] = json!(0.1);
        });
        assert_eq!(config(folder.path()), before, "{family:?}");
    }
}

#[test]
fn configs_that_lie_about_shapes_are_found_out() {
    for family in FAMILIES {
        for field in ["vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "head_dim", "num_hidden_layers"] {
            for factor in [2, 3] {
                let text = refusal(family, |c| c[field] = json!(c[field].as_u64().unwrap() * factor));
                assert!(text.contains('`') && text.contains("config.json"), "{family:?} {field}: {text}");
            }
        }
        let text = refusal(family, |c| c["num_hidden_layers"] = json!(1));
        assert!(text.contains("model.layers.1.") && text.contains("no place"), "{family:?}: {text}");
    }
    let text = refusal(Family::Llama, |c| c["intermediate_size"] = json!(95));
    assert!(text.contains("model.layers.0.mlp.gate_proj.weight") && text.contains("[96, 64]"), "{text}");
    assert!(text.contains("[95, 64]"), "{text}");
    let text = refusal(Family::Phi3, |c| c["intermediate_size"] = json!(95));
    assert!(text.contains("gate_up_proj") && text.contains("[192, 96]") && text.contains("[190, 96]"), "{text}");
    let text = refusal(Family::Llama, |c| c["tie_word_embeddings"] = json!("yes"));
    assert!(text.contains("tie_word_embeddings"), "{text}");
}

#[test]
fn shards_are_held_to_their_index() {
    let folder = || write(Family::Llama, Options { shards: 3, ..Options::of(Family::Llama) });
    let second = "model-00002-of-00003.safetensors";
    let index = "model.safetensors.index.json";
    let whole = folder();
    assert!(build(whole.path()).is_ok());
    // A file beside the shards is none of ours.
    std::fs::write(whole.path().join("consolidated.safetensors"), "not read").unwrap();
    assert!(build(whole.path()).is_ok());

    let f = folder();
    std::fs::remove_file(f.path().join(second)).unwrap();
    let text = build(f.path()).err().unwrap().to_string();
    assert!(text.contains(second) && text.contains(index), "{text}");

    let f = folder();
    edit(f.path(), index, |i| i["weight_map"]["lm_head.weight"] = json!("../elsewhere.safetensors"));
    assert!(matches!(build(f.path()), Err(ImportError::Shard { .. })));

    let f = folder();
    edit(f.path(), index, |i| i["weight_map"]["model.norm.weight"] = json!("model-00001-of-00003.safetensors"));
    let text = build(f.path()).err().unwrap().to_string();
    assert!(text.contains("model-00001-of-00003") && text.contains("model.norm.weight"), "{text}");

    // Without an index the shards are read as they are; a tensor in two of them is ambiguous.
    let f = folder();
    std::fs::remove_file(f.path().join(index)).unwrap();
    assert!(build(f.path()).is_ok());
    std::fs::copy(f.path().join(second), f.path().join("again.safetensors")).unwrap();
    let text = build(f.path()).err().unwrap().to_string();
    assert!(text.contains("another file"), "{text}");
}

#[test]
fn values_are_read_only_when_asked_for() {
    let folder = write(Family::Llama, Options { stored: Stored::F32, ..Options::of(Family::Llama) });
    retensor(folder.path(), |name, dtype, shape, mut data| {
        if name == "model.layers.1.mlp.up_proj.weight" {
            data[4 * 70..4 * 71].copy_from_slice(&f32::NAN.to_le_bytes());
        }
        vec![(name.to_owned(), dtype, shape, data)]
    });
    let (_, graph) = build(folder.path()).unwrap();
    assert!(graph.layer(0).is_ok());
    let text = graph.layer(1).err().unwrap().to_string();
    assert!(text.contains("model.layers.1.mlp.up_proj.weight") && text.contains("index 70"), "{text}");
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert!(matches!(graph.layer(0), Err(ImportError::File { .. })));
}

#[test]
fn every_number_format_gives_the_same_values_up_to_its_precision() {
    let read = |stored: Stored| {
        let folder = write(Family::Qwen3, Options { stored, ..Options::of(Family::Qwen3) });
        let (_, graph) = build(folder.path()).unwrap();
        (graph.layer(1).unwrap(), graph.embedding().unwrap(), graph.head_rows(3..5).unwrap())
    };
    let (exact, embedding, head) = read(Stored::F32);
    assert_eq!((embedding.len(), head.len()), (320 * 64, 2 * 64));
    for (stored, bound) in [(Stored::F16, 1e-3), (Stored::Bf16, 8e-3)] {
        let (layer, ..) = read(stored);
        let close =
            |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= bound * b.abs().max(0.1));
        assert!(close(&layer.q, &exact.q) && close(&layer.down, &exact.down) && layer.q != exact.q, "{stored:?}");
    }
}

#[test]
fn tensors_without_a_place_are_refused() {
    let with = |name: &'static str, dtype: Dtype| {
        let folder = write(Family::Llama, Options::of(Family::Llama));
        retensor(folder.path(), |n, d, s, b| {
            let mut all = vec![(n.to_owned(), d, s, b)];
            if n == "model.norm.weight" {
                all.push((name.to_owned(), dtype, vec![4], vec![0; if dtype == Dtype::F32 { 16 } else { 4 }]));
            }
            all
        });
        build(folder.path()).err().map(|e| e.to_string())
    };
    assert_eq!(with("model.layers.0.self_attn.rotary_emb.inv_freq", Dtype::F32), None);
    for name in ["model.layers.0.self_attn.q_proj.bias", "model.layers.0.mlp.up_proj.weight_scale", "vision.weight"] {
        let text = with(name, Dtype::F32).unwrap();
        assert!(text.contains(name) && text.contains("no place"), "{text}");
    }
    // Quantised weights under the usual name.
    let folder = write(Family::Llama, Options::of(Family::Llama));
    retensor(folder.path(), |n, d, s, b| {
        let int8 = n == "model.layers.0.mlp.down_proj.weight";
        vec![if int8 { (n.to_owned(), Dtype::I8, s, b[..b.len() / 2].to_vec()) } else { (n.to_owned(), d, s, b) }]
    });
    let text = build(folder.path()).err().unwrap().to_string();
    assert!(text.contains("model.layers.0.mlp.down_proj.weight") && text.contains("I8"), "{text}");
}

#[test]
fn output_biases_must_be_zero() {
    let folder = write(Family::Llama, Options { bias: true, stored: Stored::F32, ..Options::of(Family::Llama) });
    assert!(build(folder.path()).unwrap().1.layer(0).unwrap().q_bias.is_some());
    retensor(folder.path(), |name, dtype, shape, mut data| {
        if name == "model.layers.1.self_attn.o_proj.bias" {
            data[8..12].copy_from_slice(&0.5f32.to_le_bytes());
        }
        vec![(name.to_owned(), dtype, shape, data)]
    });
    let text = build(folder.path()).err().unwrap().to_string();
    assert!(text.contains("attention_bias") && text.contains("model.layers.1.self_attn.o_proj.bias"), "{text}");
}

#[test]
fn damaged_headers_are_refused() {
    let broken = |change: &dyn Fn(&mut Vec<u8>)| {
        let folder = write(Family::Llama, Options::of(Family::Llama));
        let path = folder.path().join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        matches!(build(folder.path()), Err(ImportError::Safetensors { .. }))
    };
    assert!(broken(&|b| b.truncate(b.len() - 1)));
    assert!(broken(&|b| b.push(0)));
    assert!(broken(&|b| b[..8].copy_from_slice(&u64::MAX.to_le_bytes())));
    assert!(broken(&|b| b[..8].copy_from_slice(&3u64.to_le_bytes())));
    assert!(broken(&|b| b[9] = 0xff));
    assert!(broken(&|b| b.truncate(5)));
}

#[test]
fn special_tokens_come_from_the_generation_config() {
    let folder = write(Family::Llama, Options::of(Family::Llama));
    assert_eq!((config(folder.path()).bos, config(folder.path()).eos), (Some(0), vec![1, 5]));
    edit(folder.path(), "generation_config.json", |c| *c = json!({ "temperature": 0.6 }));
    assert_eq!((config(folder.path()).bos, config(folder.path()).eos), (Some(0), vec![1]));
    std::fs::remove_file(folder.path().join("generation_config.json")).unwrap();
    edit(folder.path(), "config.json", |c| c["eos_token_id"] = json!([3, 4]));
    assert_eq!(config(folder.path()).eos, [3, 4]);
}

#[test]
fn both_layouts_of_the_position_code_mean_the_same() {
    for rope in [Rope::Plain, Rope::Linear, Rope::Llama3] {
        let folder = write(Family::Llama, Options { rope, ..Options::of(Family::Llama) });
        let before = config(folder.path());
        edit(folder.path(), "config.json", |c| {
            let mut scaling = c["rope_scaling"].take();
            if scaling.is_null() {
                scaling = json!({ "rope_type": "default" });
            }
            scaling["rope_theta"] = c["rope_theta"].take();
            c["rope_parameters"] = scaling;
        });
        assert_eq!(config(folder.path()), before, "{rope:?}");
    }
}

#[test]
fn published_configs_are_understood() {
    // Fields of google/gemma-2-9b-it and of microsoft/Phi-3-mini-128k-instruct, without their tensors.
    let read = |family: Family, value: Value| {
        let folder = write(family, Options::of(family));
        std::fs::write(folder.path().join("config.json"), value.to_string()).unwrap();
        match import(folder.path()).unwrap().config {
            Config::Decoder(config) => config,
            Config::Encoder(_) => panic!("a decoder was read as an encoder"),
        }
    };
    let gemma = read(
        Family::Gemma2,
        json!({
            "architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
            "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
            "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 3584, "initializer_range": 0.02,
            "intermediate_size": 14336, "max_position_embeddings": 8192, "model_type": "gemma2",
            "num_attention_heads": 16, "num_hidden_layers": 42, "num_key_value_heads": 8, "pad_token_id": 0,
            "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096,
            "sliding_window_size": 4096, "torch_dtype": "bfloat16", "transformers_version": "4.42.0.dev0",
            "use_cache": true, "vocab_size": 256_000
        }),
    );
    assert!(gemma.tied && gemma.post_norms && gemma.activation == HiddenAct::GeluTanh);
    assert_eq!((gemma.windows[0], gemma.windows[1], gemma.score_cap), (Some(4096), None, Some(50.0)));
    assert_eq!((gemma.attention_scale, gemma.norm_offset), (1.0 / 16.0, 1.0));
    let phi = read(
        Family::Phi3,
        json!({
            "_name_or_path": "Phi-3-mini-128k-instruct", "architectures": ["Phi3ForCausalLM"], "attention_bias": false,
            "attention_dropout": 0.0, "auto_map": { "AutoConfig": "configuration_phi3.Phi3Config" }, "bos_token_id": 1,
            "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072,
            "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131_072,
            "model_type": "phi3", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
            "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-5,
            "rope_scaling": { "long_factor": vec![2.0; 48], "short_factor": vec![1.25; 48], "type": "longrope" },
            "rope_theta": 10000.0, "sliding_window": 262_144, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
            "transformers_version": "4.40.2", "use_cache": true, "vocab_size": 32064
        }),
    );
    assert_eq!((phi.head_dim, phi.positions, phi.rope.len(), phi.rope[0]), (96, 4096, 48, 0.8));
    assert!((phi.rope_amplitude - (1.0 + 32f64.ln() / 4096f64.ln()).sqrt()).abs() < 1e-12);
}

#[test]
fn tiny_tokenizers_know_every_byte_and_fill_the_vocabulary() {
    for family in FAMILIES {
        let folder = write(family, Options { vocab: 262 + 30, ..Options::of(family) });
        let tokenizer = import(folder.path()).unwrap().tokenizer;
        let begins = matches!(family, Family::Llama | Family::Mistral | Family::Gemma2);
        let ids = tokenizer.encode("ab Zoë\n<|end|>").unwrap();
        assert_eq!(ids[0] == tiny::BOS, begins, "{family:?}");
        assert_eq!(ids.last(), Some(&5));
        // "ab" is the second merge; all else is bytes.
        assert!(ids.contains(&263) && ids.len() == usize::from(begins) + 8, "{family:?}: {ids:?}");
        let raw: Value = serde_json::from_slice(&std::fs::read(folder.path().join("tokenizer.json")).unwrap()).unwrap();
        assert_eq!(raw["model"]["vocab"].as_object().unwrap().len(), 292);
        let settings = std::fs::read_to_string(folder.path().join("tokenizer_config.json")).unwrap();
        assert!(settings.contains("chat_template"));
    }
}
