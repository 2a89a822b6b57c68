//! Commands in one process.

use crate::toy::{Place, contents, has_keys};
use obelysk_protocol::verifier::registered::SecurityParams;

const PROVE_KEYS: [&str; 6] = ["seconds", "core_seconds", "peak_memory_bytes", "proof_bytes", "nodes", "phases"];
const VERIFY_KEYS: [&str; 6] = ["accepted", "security_bits", "seconds", "proof_bytes", "model_id", "mode"];

#[test]
fn a_proof_is_made_verified_and_inspected() {
    let place = Place::with_toy();
    let made = place.run(&["prove", "--model", "toy", "--ids", "1,2,3", "--out", "p.obk", "--json"]).expect(0).json();
    has_keys(&made, &PROVE_KEYS);
    assert_eq!(made["proof_bytes"], place.read("p.obk").len());
    assert!(made["core_seconds"].as_f64().unwrap() > 0.0 && made["peak_memory_bytes"].as_u64().unwrap() > 1 << 20);
    let seen = place.run(&["verify", "p.obk", "--model", "toy", "--json"]).expect(0).json();
    has_keys(&seen, &VERIFY_KEYS);
    assert_eq!((&seen["accepted"], &seen["mode"]), (&true.into(), &1.into()));
    assert_eq!(seen["ids"], serde_json::json!([1, 2, 3]));
    let shown = place.run(&["inspect", "p.obk", "--json"]).expect(0).json();
    assert_eq!(shown["model_id"], seen["model_id"]);
    let segments = shown["segments"].as_array().expect("the model is known");
    let parts: u64 = segments.iter().map(|s| s["claims"].as_u64().unwrap() + s["opening"].as_u64().unwrap()).sum();
    assert_eq!(parts + shown["header_bytes"].as_u64().unwrap(), shown["proof_bytes"].as_u64().unwrap());
    let text = place.run(&["verify", "p.obk", "--model", "toy"]).expect(0);
    assert!(text.stdout.starts_with("accepted"), "{}", text.stdout);
    assert!(!text.stdout.contains('\u{1b}'), "colour only on a terminal");
}

#[test]
fn verification_needs_the_registration_only() {
    let place = Place::with_toy();
    place.prove(&["--ids", "4"], "p.obk");
    std::fs::create_dir(place.path("verifier")).unwrap();
    std::fs::copy(place.path("home/models/toy/registered.obr"), place.path("verifier/registered.obr")).unwrap();
    std::fs::remove_dir_all(place.path("home")).unwrap();
    for model in ["verifier", "verifier/registered.obr"] {
        place.run(&["verify", "p.obk", "--model", model]).expect(0);
    }
    let shown = place.run(&["inspect", "p.obk", "--json"]).expect(0).json();
    assert!(shown["segments"].is_null(), "the model is not registered here");
}

#[test]
fn rejected_is_one_and_bad_files_are_two() {
    let place = Place::with_toy();
    let proof = place.prove(&["--ids", "1,2,3,4"], "p.obk");
    let mut changed = proof.clone();
    *changed.last_mut().unwrap() ^= 1;
    let longer = [&proof[..], &[0]].concat();
    let cases: [(&str, &[u8]); 5] =
        [("cut", &proof[..proof.len() - 5]), ("empty", &[]), ("head", &proof[..20]), ("changed", &changed), ("longer", &longer)];
    for (name, bytes) in cases {
        place.write(name, bytes);
        let seen = place.run(&["verify", name, "--model", "toy", "--json"]).expect(1).json();
        has_keys(&seen, &VERIFY_KEYS);
        assert_eq!(seen["accepted"], false, "{name}");
        assert!(!seen["reason"].as_str().unwrap().is_empty(), "{name}");
    }
    assert!(place.run(&["verify", "cut", "--model", "toy"]).expect(1).stdout.contains("truncated"));
    let missing = place.run(&["verify", "nowhere.obk", "--model", "toy"]).expect(2);
    assert!(missing.stderr.contains("nowhere.obk"), "{}", missing.stderr);
    let unknown = place.run(&["verify", "p.obk", "--model", "other", "--json"]).expect(2);
    assert!(unknown.stderr.contains("registered: toy"), "{}", unknown.stderr);
    assert_eq!(unknown.json()["exit_code"], 2);
    place.run(&["verify", "p.obk"]).expect(2);
    place.run(&["inspect", "cut"]).expect(2);
    let bytes = place.read("home/models/toy/registered.obr");
    place.write("home/models/toy/registered.obr", &bytes[..bytes.len() / 2]);
    let broken = place.run(&["verify", "p.obk", "--model", "toy"]).expect(2);
    assert!(broken.stderr.contains("registration file"), "{}", broken.stderr);
}

#[test]
fn a_proof_of_another_model_says_so() {
    let place = Place::with_toy();
    place.toy("second", 6);
    place.prove(&["--ids", "1,2"], "p.obk");
    let seen = place.run(&["verify", "p.obk", "--model", "second"]).expect(1);
    assert!(seen.stdout.contains("model id of the proof is"), "{}", seen.stdout);
    let shown = place.run(&["inspect", "p.obk", "--model", "second"]).expect(2);
    assert!(shown.stderr.contains("the proof is of model"), "{}", shown.stderr);
}

#[test]
fn every_mode_is_proved_in_one_process_and_mode_0_there_only() {
    let place = Place::with_toy();
    for mode in ["0", "1", "2"] {
        let out = format!("{mode}.obk");
        let args = ["prove", "--model", "toy", "--ids", "1,2,3", "--mode", mode, "--out", &out, "--json"];
        let made = place.run(&args).expect(0).json();
        assert_eq!(made["mode"].to_string(), mode);
        let checked = place.run(&["verify", &out, "--model", "toy", "--json"]).expect(0).json();
        assert_eq!((checked["accepted"].as_bool(), checked["mode"].to_string()), (Some(true), mode.to_owned()));
        let said = place.run(&["verify", &out, "--model", "toy"]).expect(0);
        assert!(said.stdout.lines().any(|l| l.starts_with("mode") && l.ends_with(mode)), "{}", said.stdout);
        let shown = place.run(&["inspect", &out, "--json"]).expect(0).json();
        assert_eq!(shown["joint_opening_bytes"].is_null(), mode != "2");
    }
    for more in [["--nodes", "1"], ["--coordinator", "localhost:1"]] {
        let args = [&["prove", "--model", "toy", "--ids", "1", "--out", "x.obk", "--mode", "0"], &more[..]].concat();
        let ran = place.run(&args).expect(2);
        assert!(ran.stderr.contains("a cluster proves in modes 1 and 2"), "{}", ran.stderr);
        assert!(!place.path("x.obk").exists());
    }
    let ran = place.run(&["demo", "--mode", "0", "--nodes", "2"]).expect(2);
    assert!(ran.stderr.contains("a cluster proves in modes 1 and 2"), "{}", ran.stderr);
    place.run(&["prove", "--model", "toy", "--ids", "1", "--mode", "3", "--out", "x.obk"]).expect(2);
}

#[test]
fn input_that_the_model_does_not_take_is_refused() {
    let place = Place::with_toy();
    let cases: [(&[&str], &str); 6] = [
        (&["--ids", "1,2,3,4,5,6,7,8,9"], "9 tokens, but at most 8"),
        (&["--ids", "1,99"], "outside the vocabulary"),
        (&["--text", "hello"], "--ids"),
        (&["--ids", "1", "--text", "hello"], "cannot be used with"),
        (&[], "required"),
        (&["--ids", "x"], "invalid value"),
    ];
    for (args, cause) in cases {
        let ran = place.run(&[&["prove", "--model", "toy", "--out", "p.obk"], args].concat()).expect(2);
        assert!(ran.stderr.contains(cause), "{args:?}: {}", ran.stderr);
        assert!(!place.path("p.obk").exists());
    }
    let ran = place.run(&["prove", "--model", "toy", "--ids", "1", "--out", "no/such/folder/p.obk"]).expect(2);
    assert!(ran.stderr.contains("cannot write"), "{}", ran.stderr);
}

#[test]
fn registration_repeats_bit_for_bit_and_replaces_only_when_told() {
    let place = Place::empty();
    place.integer("source", 3);
    let register = |extra: &[&str]| place.run(&[&["model", "register", "source", "--name", "small", "--json"], extra].concat());
    let first = register(&[]).expect(0).json();
    let before = contents(&place.path("home/models/small"));
    assert!(before.iter().any(|(name, _)| name == "registered.obr"));
    assert_eq!(register(&[]).expect(0).json(), first);
    assert!(contents(&place.path("home/models/small")) == before);
    std::fs::remove_dir_all(place.path("source")).unwrap();
    place.integer("source", 4);
    let refused = register(&[]).expect(2);
    assert!(refused.stderr.contains("--replace"), "{}", refused.stderr);
    assert!(contents(&place.path("home/models/small")) == before, "nothing is lost");
    assert_ne!(register(&["--replace"]).expect(0).json()["model_id"], first["model_id"]);
    let entries = std::fs::read_dir(place.path("home/models")).unwrap().count();
    assert_eq!(entries, 1, "no temporary folder stays");
    let shown = place.run(&["model", "show", "small", "--tokens", "4", "--json"]).expect(0).json();
    has_keys(&shown, &["model_id", "width", "layers", "roots", "security_bits", "security", "fidelity"]);
    assert!(shown["security_bits"].as_f64().unwrap() >= 100.0);
    let listed = place.run(&["model", "show", "--json"]).expect(0).json();
    assert_eq!(listed["models"][0]["name"], "small");
}

#[test]
fn sources_that_are_no_models_are_refused() {
    let place = Place::empty();
    std::fs::create_dir(place.path("empty")).unwrap();
    std::fs::create_dir(place.path("other")).unwrap();
    place.write("other/config.json", br#"{"architectures":["MambaForCausalLM"],"hidden_act":"silu"}"#);
    place.integer("damaged", 3);
    let mut bytes = place.read("damaged/segment-0001.bin");
    bytes[100] ^= 1;
    place.write("damaged/segment-0001.bin", &bytes);
    for (source, cause) in [
        ("empty", "config.json"),
        ("other", "MambaForCausalLM"),
        ("damaged", "digest"),
        ("nowhere", "not a model source"),
        ("hf:broken", "not a model source"),
    ] {
        let ran = place.run(&["model", "register", source, "--name", "x"]).expect(2);
        assert!(ran.stderr.contains(cause), "{source}: {}", ran.stderr);
        let left = std::fs::read_dir(place.path("home/models")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{source}");
    }
    place.run(&["model", "register", "damaged", "--name", "../x"]).expect(2);
}

#[test]
fn damaged_weights_are_found_before_proving() {
    let place = Place::with_toy();
    let mut bytes = place.read("home/models/toy/segment-0001.bin");
    bytes[100] ^= 1;
    place.write("home/models/toy/segment-0001.bin", &bytes);
    let ran = place.run(&["prove", "--model", "toy", "--ids", "1", "--out", "p.obk"]).expect(2);
    assert!(ran.stderr.contains("segment-0001.bin") && ran.stderr.contains("digest"), "{}", ran.stderr);
}

#[test]
fn weakly_registered_models_are_refused() {
    let place = Place::empty();
    place.toy_with("weak", 5, SecurityParams { queries: 12, g_seed: 3, g_fold: 2, g_query: 4 });
    let ran = place.run(&["prove", "--model", "weak", "--ids", "1", "--out", "p.obk"]).expect(2);
    assert!(ran.stderr.contains("bits of security only"), "{}", ran.stderr);
}

#[test]
fn help_documents_the_exit_codes() {
    let place = Place::empty();
    for command in [&["--help"][..], &["verify", "--help"], &["prove", "--help"], &["node", "join", "--help"]] {
        let ran = place.run(command).expect(0);
        assert!(ran.stdout.contains("Exit codes") && ran.stdout.contains("1 proof rejected"), "{}", ran.stdout);
    }
    place.run(&["unknown"]).expect(2);
}

/// Beside the data that it moves, a cluster says at most a megabyte for each segment of a job: counted, joining and leaving included.
#[test]
fn a_cluster_says_little_beside_its_data() {
    let place = Place::empty();
    place.layers("toy", 5, 4);
    let args = ["bench", "cluster", "--model", "toy", "--tokens", "6", "--nodes", "2", "--runs", "1", "--json"];
    let shown = place.run(&args).expect(0).json();
    let row = &shown["rows"][0];
    let number = |key: &str| row[key].as_u64().expect("a number");
    assert_eq!(number("segments"), 6, "{row}");
    assert!((1..=1_000_000).contains(&number("control_bytes_per_segment")), "{row}");
    assert!(number("bulk_bytes_per_segment") > number("control_bytes_per_segment"), "{row}");
}
