//! Settings that are shipped: they parse, and presets say what the sources say.

use crate::{files, none, read};
use toml::{Table, Value};

#[test]
fn every_settings_file_parses() {
    let mut all = files("configs", ".toml");
    assert!(all.len() >= 3, "configs/ is not where it was");
    all.extend(["Cargo.toml", "deny.toml", "clippy.toml", "protocol/clippy.toml", "rust-toolchain.toml"].map(String::from));
    let wrong = all.iter().filter_map(|file| read(file).parse::<Table>().err().map(|e| format!("{file}: {e}")));
    none("TOML", &wrong.collect::<Vec<_>>());
}

#[test]
fn the_preset_of_the_demo_is_what_the_demo_does() {
    let preset: Table = read("configs/models/minilm.toml").parse().expect("parses");
    let demo = read("coordinator/src/cli/demo.rs");
    let mut broken = Vec::new();
    let sources = preset["sources"].as_array().expect("sources");
    let quoted = sources.iter().chain([&preset["name"]]).map(Value::to_string);
    broken.extend(quoted.filter(|text| !demo.contains(text.as_str())).map(|text| format!("demo.rs: {text}")));
    let list = sources.iter().map(Value::to_string).collect::<Vec<_>>().join(", ");
    if !demo.contains(&list) {
        broken.push(format!("demo.rs: the order {list}"));
    }
    let quantiser = read("shard/model/src/quantise/mod.rs");
    for (key, value) in preset["quantise"].as_table().expect("quantise") {
        if !quantiser.contains(&format!("{key}: {value},")) {
            broken.push(format!("quantise/mod.rs: {key} = {value}"));
        }
    }
    let test = read("shard/model/tests/minilm.rs");
    let number = |key: &str| preset["fidelity"][key].to_string();
    let demands = [
        format!("sentences >= {}", number("sentences")),
        format!("mean >= {}", number("mean")),
        format!("worst >= {}", number("worst")),
    ];
    broken.extend(demands.into_iter().filter(|d| !test.contains(d)).map(|d| format!("tests/minilm.rs: {d}")));
    none("configs/models/minilm.toml differs from the sources", &broken);
}

/// Settings that a manifest gives; `metrics_listen` is of an overlay that says what it waits for.
#[test]
fn settings_in_manifests_are_settings() {
    let mut broken = Vec::new();
    let all = files("deploy", ".toml");
    assert!(all.len() >= 3, "deploy/ is not where it was");
    for file in all {
        let name = file.rsplit('/').next().unwrap_or_default();
        let known: Table = read(&format!("configs/{name}")).parse().expect("parses");
        let given = read(&file).parse::<Table>().unwrap_or_else(|e| panic!("{file}: {e}"));
        let unknown = given.keys().filter(|key| !known.contains_key(*key));
        broken.extend(
            unknown.filter(|key| !(file.contains("/autoscale/") && *key == "metrics_listen")).map(|key| format!("{file}: {key}")),
        );
    }
    none("settings that do not exist", &broken);
}

#[test]
fn units_and_image_run_commands_that_exist() {
    let commands = crate::documents::commands();
    let mut found = 0;
    for file in files("deploy", "") {
        for line in read(&file).lines().filter(|l| l.starts_with("ExecStart=")) {
            let words: Vec<&str> = line.split_whitespace().skip(1).take_while(|w| !w.starts_with('-')).collect();
            assert!(commands.contains(&words.join(" ")), "{file}: {line}");
            found += 1;
        }
    }
    assert_eq!(found, 2, "a unit for the coordinator and one for the node");
}
