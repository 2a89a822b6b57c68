//! A crate depends only on those to its left: protocol, model, shard, cuda, node, coordinator, tests.

use crate::{files, has_word, none, read, root};
use serde_json::Value;
use std::process::Command;

/// Our crates, lowest first.
const ORDER: [&str; 7] =
    ["obelysk-protocol", "obelysk-model", "obelysk-shard", "obelysk-cuda", "obelysk-node", "obelysk", "obelysk-tests"];
/// All that the protocol may be built from.
const PROTOCOL_NEEDS: [&str; 6] = ["blake2s_simd", "blake3", "rkyv", "stwo", "starknet-types-core", "thiserror"];
/// Crates through which I/O would come into the provers.
const NETWORK: [&str; 3] = ["tokio", "quinn", "rustls"];

fn packages() -> Vec<Value> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let args = ["metadata", "--no-deps", "--offline", "--format-version", "1"];
    let output = Command::new(cargo).args(args).current_dir(root()).output().expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    metadata["packages"].as_array().expect("packages").clone()
}

fn name(value: &Value) -> &str {
    value["name"].as_str().unwrap_or_default()
}

fn rank(name: &str) -> Option<usize> {
    ORDER.iter().position(|known| *known == name)
}

/// Dependencies of a package, those of its tests included only if asked for.
fn needs(package: &Value, with_tests: bool) -> Vec<String> {
    let all = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().filter(|d| with_tests || d["kind"].as_str() != Some("dev")).map(|d| name(d).to_owned()).collect()
}

#[test]
fn crates_depend_only_on_those_below() {
    let mut broken = Vec::new();
    for package in packages() {
        let Some(own) = rank(name(&package)) else {
            broken.push(format!("{} has no place in the order", name(&package)));
            continue;
        };
        let above = needs(&package, true).into_iter().filter(|d| rank(d).is_some_and(|other| other >= own));
        broken.extend(above.map(|d| format!("{} depends on {d}", name(&package))));
    }
    none("protocol < model < shard < cuda < node < coordinator < tests", &broken);
}

#[test]
fn protocol_needs_little_and_provers_no_network() {
    let mut broken = Vec::new();
    for package in packages() {
        let own = name(&package);
        for need in needs(&package, false) {
            let foreign = match own {
                "obelysk-protocol" => !PROTOCOL_NEEDS.contains(&need.as_str()),
                "obelysk-model" | "obelysk-shard" | "obelysk-cuda" => NETWORK.contains(&need.as_str()),
                _ => false,
            };
            if foreign {
                broken.push(format!("{own} depends on {need}"));
            }
        }
    }
    none("dependencies outside the list", &broken);
}

#[test]
fn the_brain_knows_no_clock_and_no_network() {
    let words = ["tokio", "quinn", "Instant", "SystemTime", "async", "HashMap", "HashSet", "rayon"];
    let mut broken = Vec::new();
    for file in ["coordinator/src/core", "coordinator/src/ledger"].into_iter().flat_map(|folder| files(folder, ".rs")) {
        let code = crate::sources::code(&read(&file));
        broken.extend(words.iter().filter(|w| has_word(&code, w)).map(|w| format!("{file}: {w}")));
    }
    none("coordinator/src/core and coordinator/src/ledger are pure functions", &broken);
}
