//! `model fetch` and `model validate`.

use crate::toy::{Place, Ran, has_keys};
use obelysk_model::tiny::{self, Family, Options};
use std::path::Path;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub that does not answer, and the cache of its own tools.
fn offline(place: &Place, args: &[&str]) -> Ran {
    let mut command = place.command(args);
    command.env("HF_ENDPOINT", "http://127.0.0.1:1").env("HF_HUB_CACHE", place.path("hub")).env_remove("HF_TOKEN");
    command.output().expect("runs").into()
}

fn write_tiny(folder: &Path) {
    std::fs::create_dir_all(folder).expect("folder");
    tiny::write(Family::Qwen3, folder, 1, &Options::of(Family::Qwen3)).expect("written");
}

#[test]
fn a_fetched_model_is_validated() {
    let place = Place::empty();
    let cached = place.path("hub/models--org--m");
    write_tiny(&cached.join("snapshots").join(COMMIT));
    std::fs::create_dir_all(cached.join("refs")).unwrap();
    std::fs::write(cached.join("refs/main"), COMMIT).unwrap();
    let early = offline(&place, &["model", "validate", "hf:org/m"]).expect(2);
    assert!(early.stderr.contains("obelysk model fetch hf:org/m"), "{}", early.stderr);
    let made = offline(&place, &["model", "fetch", "hf:org/m", "--json"]).expect(0).json();
    has_keys(&made, &["source", "revision", "folder", "files", "preset"]);
    assert_eq!(made["revision"], COMMIT);
    let seen = offline(&place, &["model", "validate", "hf:org/m", "--tokens", "16", "--json"]).expect(0).json();
    has_keys(&seen, &["source", "folder", "passed", "checks", "estimates"]);
    assert_eq!(seen["passed"], true, "{seen}");
    has_keys(&seen["estimates"], &["memory_bytes", "weight_bytes", "codeword_bytes", "core_seconds", "rate", "segments"]);
    assert_eq!(seen["estimates"]["tokens"], 16);
    // A byte changes: the digests of the fetch tell.
    let weights = Path::new(made["folder"].as_str().unwrap()).join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let seen = offline(&place, &["model", "validate", "hf:org/m", "--json"]).expect(1).json();
    assert_eq!(seen["passed"], false);
    let text = offline(&place, &["model", "validate", "hf:org/m"]).expect(1).stdout;
    assert!(text.contains("does not pass") && text.contains("other bytes than were fetched"), "{text}");
}

#[test]
fn presets_are_known_by_name() {
    let place = Place::empty();
    let gone = offline(&place, &["model", "fetch", "--preset", "llama3-8b"]).expect(3);
    for part in ["licence", "cannot reach http://127.0.0.1:1"] {
        assert!(gone.stderr.contains(part), "{part}: {}", gone.stderr);
    }
    let unknown = offline(&place, &["model", "fetch", "--preset", "llama9"]).expect(2);
    assert!(unknown.stderr.contains("llama3-8b"), "{}", unknown.stderr);
    offline(&place, &["model", "fetch"]).expect(2);
    offline(&place, &["model", "fetch", ".", "--preset", "llama3-8b"]).expect(2);
    let seen = offline(&place, &["model", "validate", "--preset", "phi3-mini", "--tokens", "8", "--json"]);
    // Whether registered weights fit depends on this machine's disk; everything else does not.
    let seen = seen.json();
    let failed = |check: &serde_json::Value| check["outcome"] == "failed" && check["name"] != "free disk";
    assert!(!seen["checks"].as_array().unwrap().iter().any(failed), "{seen}");
    assert!(seen["estimates"]["parameters"].as_u64().unwrap() > 3_500_000_000);
}
