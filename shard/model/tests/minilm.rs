//! The whole path on the real weights: import, calibrate, quantise, infer, fidelity, storage.

mod real;

use obelysk_model::calibrate::{self, calibrate};
use obelysk_model::graph::Graph;
use obelysk_model::import::{Imported, import};
use obelysk_model::infer::{self, padded_length, reference};
use obelysk_model::quantise::{QuantiseOptions, Quantised, quantise};
use obelysk_model::{IntegerModel, fidelity};

fn quantised(imported: &Imported, graph: &Graph) -> Quantised {
    let sentences = calibrate::builtin_sentences();
    let ranges = calibrate(graph, &imported.tokenizer, imported.config.positions(), sentences).unwrap();
    quantise(graph, &ranges, &QuantiseOptions { name: "minilm".into(), ..QuantiseOptions::default() }).unwrap()
}

#[test]
fn minilm_reaches_the_required_fidelity() {
    let Some(folder) = real::minilm() else { return };
    let imported = import(&folder).unwrap();
    let graph = Graph::build(&imported).unwrap();
    let model = quantised(&imported, &graph).model;
    let d = model.descriptor.encoder().expect("an encoder");
    assert_eq!((d.tile_k_log, d.tile_n_log, d.row_log), (7, 7, 16));
    assert_eq!(model.weights.segments[0].matrices[0].inputs, 30_592 + 512 + 128);

    let report = fidelity::measure(&graph, &imported.tokenizer, &model, fidelity::builtin_sentences()).unwrap();
    println!("{}", serde_json::to_string_pretty(&report).unwrap());
    assert!(report.sentences >= 200);
    assert!(report.embedding.mean >= 0.999 && report.embedding.worst >= 0.995, "{:?}", report.embedding);
    assert!(report.saturation.values().all(|&share| share < 1e-3));

    // The defining executor on real weights, layer by layer.
    let ids = imported.tokenizer.encode("Defined slowly, computed fast.").unwrap();
    let (fast, t_pad) = (infer::run(&model, &ids).unwrap(), padded_length(ids.len()));
    let segments = &model.weights.segments;
    assert_eq!(reference::embed(d, &segments[0], &ids, t_pad).unwrap(), fast.embed);
    let mut u = &fast.embed.norm.u;
    for (l, spec) in d.layers.iter().enumerate() {
        let slow = reference::layer(d, spec, &segments[l + 1], u, ids.len(), t_pad).unwrap();
        assert!(slow == fast.layers[l], "layer {l}");
        u = &fast.layers[l].ffn.norm.u;
    }

    let stored = tempfile::tempdir().unwrap();
    model.save(stored.path(), Some(&imported.tokenizer)).unwrap();
    assert!(IntegerModel::load(stored.path()).unwrap() == model);
    let tokenizer = IntegerModel::load_tokenizer(stored.path()).unwrap();
    assert_eq!(tokenizer.encode("Defined slowly, computed fast.").unwrap(), ids);
}

#[test]
fn calibration_and_test_sentences_are_disjoint() {
    let test: std::collections::BTreeSet<&str> = fidelity::builtin_sentences().collect();
    assert!(test.len() >= 200);
    assert!(calibrate::builtin_sentences().all(|s| !test.contains(s)));
}

#[test]
fn texts_span_one_to_256_tokens_without_truncation() {
    let Some(folder) = real::minilm() else { return };
    let tokenizer = import(&folder).unwrap().tokenizer;
    let lengths: Vec<usize> = fidelity::builtin_sentences().map(|s| tokenizer.encode(s).unwrap().len()).collect();
    let (shortest, longest) = (lengths.iter().min().unwrap(), lengths.iter().max().unwrap());
    // Two special tokens surround every text; the published file would have cut at 128.
    assert!(*shortest == 3 && (150..=258).contains(longest), "{shortest} to {longest}");
}
