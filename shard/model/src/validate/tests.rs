//! Whole and damaged folders, and estimates and circuits of what is not here.

use super::*;
use crate::fetch::{Hub, Source, fetch};
use crate::import::{EncoderConfig, HiddenAct, Pooling};
use crate::tiny::{self, FAMILIES, Options};
use crate::{preset, toy};

const QUESTION: Question = Question { tokens: 64, rate: DEFAULT_RATE };
const GIB: f64 = (1u64 << 30) as f64;

fn outcome(v: &Validation, name: &str) -> (Outcome, String) {
    let check = v.checks.iter().find(|c| c.name == name).unwrap_or_else(|| panic!("{name}: {v:?}"));
    (check.outcome, check.detail.clone())
}

/// A tiny model of each family, fetched from a folder so that digests are recorded.
fn fetched(family: tiny::Family, base: &Path) -> std::path::PathBuf {
    let (from, to) = (base.join("from"), base.join("to"));
    std::fs::create_dir(&from).unwrap();
    tiny::write(family, &from, 1, &Options::of(family)).unwrap();
    let hub = Hub::new("http://127.0.0.1:1", None, None);
    fetch(&Source::Folder(from), &to, &hub, &mut |_| ()).unwrap();
    to
}

#[test]
fn whole_models_pass() {
    for family in FAMILIES {
        let base = tempfile::tempdir().unwrap();
        let to = fetched(family, base.path());
        let v = super::folder(&to, None, QUESTION);
        assert!(v.passed(), "{family:?}: {v:?}");
        assert_eq!(outcome(&v, "checksums").0, Outcome::Passed);
        let needs = v.needs.unwrap();
        assert_eq!(needs.segments.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["embed", "layer", "head"]);
        assert_eq!(needs.segments[1].count, Options::of(family).layers as u64);
    }
}

#[test]
fn every_damage_is_named() {
    let base = tempfile::tempdir().unwrap();
    let to = fetched(tiny::Family::Llama, base.path());
    let weights = to.join("model.safetensors");
    let good = std::fs::read(&weights).unwrap();
    // One value changes: only the digests can tell.
    let mut bytes = good.clone();
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    std::fs::write(&weights, &bytes).unwrap();
    let v = super::folder(&to, None, QUESTION);
    let (sum, detail) = outcome(&v, "checksums");
    assert!(sum == Outcome::Failed && detail.contains("model.safetensors"), "{detail}");
    assert!(!v.passed() && outcome(&v, "shapes and formats").0 == Outcome::Passed);
    // The end is missing.
    std::fs::write(&weights, &good[..good.len() - 10]).unwrap();
    let v = super::folder(&to, None, QUESTION);
    let (headers, detail) = outcome(&v, "config and headers");
    assert!(headers == Outcome::Failed && detail.contains("model.safetensors"), "{detail}");
    assert!(v.needs.is_none());
    std::fs::write(&weights, &good).unwrap();
    // Another width than the weights have.
    let config = std::fs::read_to_string(to.join("config.json")).unwrap();
    let mut map: serde_json::Value = serde_json::from_str(&config).unwrap();
    map["intermediate_size"] = (map["intermediate_size"].as_u64().unwrap() * 2).into();
    std::fs::write(to.join("config.json"), map.to_string()).unwrap();
    let (shapes, detail) = outcome(&super::folder(&to, None, QUESTION), "shapes and formats");
    assert!(shapes == Outcome::Failed && detail.contains("shape"), "{detail}");
    std::fs::remove_file(&weights).unwrap();
    assert_eq!(outcome(&super::folder(&to, None, QUESTION), "files").0, Outcome::Failed);
}

#[test]
fn a_preset_is_held_to_its_promise() {
    let base = tempfile::tempdir().unwrap();
    let to = fetched(tiny::Family::Llama, base.path());
    let llama = preset::named("llama3-8b").unwrap();
    let (promise, detail) = outcome(&super::folder(&to, Some(&llama), QUESTION), "preset");
    assert!(promise == Outcome::Failed && detail.contains("llama3-8b"), "{detail}");
}

#[test]
fn integer_models_are_checked_and_estimated_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let model = toy::model(3);
    model.save(folder.path(), None).unwrap();
    let v = super::folder(folder.path(), None, Question { tokens: 4, ..QUESTION });
    assert!(v.passed(), "{v:?}");
    let needs = v.needs.unwrap();
    assert_eq!(needs.parameters, model.weights.cells() as u64);
    assert!((needs.core_seconds - needs.parameters as f64 * 4.0 / DEFAULT_RATE).abs() < 1e-12);
    std::fs::remove_file(folder.path().join("segment-0001.bin")).unwrap();
    assert_eq!(outcome(&super::folder(folder.path(), None, QUESTION), "integer model").0, Outcome::Failed);
}

fn minilm() -> EncoderConfig {
    EncoderConfig {
        architecture: "BertModel".into(),
        vocab: 30_522,
        width: 384,
        layers: 6,
        heads: 12,
        ffn: 1536,
        positions: 512,
        types: 2,
        norm_eps: 1e-12,
        activation: HiddenAct::Gelu,
        pooling: Pooling::MeanNormalised,
    }
}

#[test]
fn estimates_are_of_the_size_that_was_measured() {
    // all-MiniLM-L6-v2 at 512 tokens: 2.76 GiB at the peak, of which up to 1 GiB are values of other segments, 29 core-seconds
    // (docs/performance.md).
    let outline = outline::outline(&Config::Encoder(minilm()));
    let needs = Needs::estimate(&outline, 6, 512, DEFAULT_RATE).unwrap();
    let memory = needs.memory_bytes as f64 / GIB;
    assert!((1.0..4.0).contains(&memory), "{memory} GiB");
    assert!((10.0..60.0).contains(&needs.core_seconds), "{} core-seconds", needs.core_seconds);
    // 6 layers of 12 w^2 weights, and 30,522 + 512 + 2 rows of the embedding, padded.
    assert!((needs.parameters as f64 / (6.0 * 12.0 * 384.0 * 384.0 + 31_036.0 * 384.0) - 1.0).abs() < 0.05);
}

#[test]
fn presets_can_be_estimated_before_they_are_here() {
    for p in preset::all().unwrap() {
        let v = super::preset(&p, Question { tokens: 128, ..QUESTION });
        let needs = v.needs.unwrap_or_else(|| panic!("{}: {:?}", p.name, v.checks));
        // Two limbs hold the embedding, and a tied head is stored a second time.
        let ends = p.vocab * p.width;
        let stored = p.parameters + ends + if p.tied { ends } else { 0 };
        let ratio = needs.parameters as f64 / stored as f64;
        assert!((0.99..1.05).contains(&ratio), "{}: {ratio}", p.name);
        assert!(needs.codeword_bytes > 15 * needs.weight_bytes && needs.memory_bytes > 1 << 28, "{}", p.name);
    }
}

#[test]
fn circuits_of_every_preset_build_at_every_length() {
    // One layer, embedding and head of each; what a circuit cannot prove it refuses when it is built.
    for p in preset::all().unwrap() {
        for tokens in [1, 8, 64, 1024] {
            let v = super::preset(&p, Question { tokens, ..QUESTION });
            assert!(v.passed(), "{} at {tokens} tokens: {:?}", p.name, v.checks);
            assert_eq!(v.needs.map(|n| n.tokens), Some(tokens as u64), "{}", p.name);
        }
    }
}

#[test]
fn circuits_of_the_widest_encoder_build() {
    let width = crate::bounds::ENCODER_WIDTH_MAX as usize;
    let config = EncoderConfig { width, heads: width / 64, ffn: 4 * width, layers: 1, ..minilm() };
    for tokens in [1, 512] {
        Needs::estimate(&outline::outline(&Config::Encoder(config.clone())), 1, tokens, DEFAULT_RATE).unwrap();
    }
}
