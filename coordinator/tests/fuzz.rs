//! The committed seeds of the fuzz targets, real values each, go through their targets in every test run; findings stay as seeds.
//!
//! `cargo test -p obelysk --test fuzz -- --ignored` writes the seeds anew, after a format has changed.

#[path = "../../tests/fuzz/src/lib.rs"]
mod targets;

use obelysk_coordinator::Admissions;
use obelysk_coordinator::identity::TokenOrder;
use obelysk_node::engine::{Checker as _, Engine as _, Pieces, WorkKind, WorkRequest};
use obelysk_node::identity::NodeKey;
use obelysk_node::{ModelFolder, NodeBackend, NodeSuite, ProverEngine};
use obelysk_protocol::circuit::encode::encode;
use obelysk_protocol::wire::{HEADER_BYTES, MessageId};
use obelysk_shard::registration::register;
use std::path::PathBuf;
use std::time::Duration;
use targets::{DECODER, ENCODER, JOINT, Site, TARGETS};

/// Largest seed kept: a fuzzer begins faster with small ones.
const MAX_SEED_BYTES: usize = 13 << 10;

fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds").join(target)
}

/// Seeds of a target: those whose names begin with `refused` are findings, or nearly right.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder(target)).unwrap_or_else(|e| panic!("{target} has no seeds: {e}"));
    let mut seeds: Vec<(String, Vec<u8>)> = entries
        .map(|entry| entry.expect("entry"))
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).expect("reads")))
        .collect();
    seeds.sort();
    seeds
}

#[test]
fn every_target_takes_its_seeds_and_survives_their_neighbours() {
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        for (file, bytes) in seeds {
            assert!(bytes.len() <= MAX_SEED_BYTES, "{name}/{file} has {} bytes", bytes.len());
            assert_eq!(target(&bytes), !file.starts_with("refused"), "{name}/{file}; are the seeds written by this release?");
            // A few cuts and changes of each, as a fuzzer would begin; a finding is worth more than a number here.
            for at in (0..bytes.len()).step_by(1 + bytes.len() / 24) {
                target(&bytes[..at]);
                let mut changed = bytes.clone();
                changed[at] ^= 1 << (at % 8);
                target(&changed);
            }
        }
    }
}

#[test]
fn every_target_is_listed_where_it_is_built() {
    let read = |path: &str| std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz").join(path));
    let manifest = read("Cargo.toml").expect("reads");
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
        let target = read(&format!("fuzz_targets/{name}.rs")).expect("there is such a target");
        assert!(target.contains(&format!("obelysk_fuzz::{name}(data)")), "{name}");
    }
}

fn write(target: &str, name: &str, bytes: &[u8]) {
    std::fs::create_dir_all(folder(target)).expect("made");
    std::fs::write(folder(target).join(name), bytes).expect("written");
}

#[test]
#[ignore = "writes tests/fuzz/seeds"]
fn write_seeds() {
    joining();
    wire();
    proofs();
    joint();
    for (model, name, site) in [(0, "encoder", &*ENCODER), (1, "decoder", &*DECODER)] {
        one_job(model, name, site);
    }
}

fn joining() {
    let admissions = Admissions::in_memory().expect("made");
    let addresses = || vec!["c1.example:7450".to_owned(), "[::1]:7450".to_owned()];
    let token = admissions.invite(3600, 1, addresses()).expect("made");
    write("tokens", "line", token.to_line().as_bytes());
    write("tokens", "address", format!("c1.example:7450#{}", admissions.pin()).as_bytes());
    let head = [&[1_u8][..], &token.cluster.0, &admissions.pin().bytes(), &token.id.0, &[7; 32], &[0; 8]].concat();
    write("tokens", "payload", &[&head[..], b"\x01\x0f\0c1.example:7450"].concat());
    let key = NodeKey::generate().expect("random");
    let request = key.request().expect("made");
    write("certificates", "request", &request);
    let authority = admissions.authority();
    let node = authority.certify_node(&request, 1_800_000_000, Duration::from_secs(86_400)).expect("made");
    write("certificates", "node", &node);
    write("certificates", "server", &authority.certify_server(1_800_000_000).expect("made").0);
    write("certificates", "authority", authority.certificate());
    // Of a cluster that ends with this function: its key opens nothing.
    write("state", "authority", &authority.to_bytes().expect("writes"));
    write("state", "administrator", admissions.new_admin(addresses()).expect("made").to_text().expect("writes").as_bytes());
    let mut registry = obelysk_coordinator::identity::Registry::default();
    let token = registry.add_token(1_800_000_000, token.id, [9; 32], 3600, 2).expect("taken").id;
    let life = Duration::from_secs(86_400).as_secs();
    registry.admit((1_800_000_000, 1_800_000_001), token, key.id(), "rack-3", life).expect("admitted");
    registry.evict(key.id(), "sold").expect("known");
    registry.add_admin(key.id());
    write("state", "registry", &registry.to_bytes().expect("writes"));
    let order = TokenOrder { public_key: [9; 32], ttl_s: 3600, uses: 2 };
    admissions.add_token(order).expect("an order of this kind is one");
}

/// The golden frame of every message.
fn wire() {
    let golden = include_str!("../../protocol/src/wire/golden.hex");
    let mut stream = Vec::new();
    for line in golden.lines() {
        let (name, hex) = line.split_once(' ').expect("a name and a frame");
        let digits: Vec<u8> = hex.chars().map(|c| c.to_digit(16).expect("hexadecimal") as u8).collect();
        let frame: Vec<u8> = digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        stream.extend_from_slice(&frame);
        let id = MessageId::ALL.into_iter().find(|id| format!("{id:?}") == name).expect("known");
        let file = if name == "Chunk" { "refused-Chunk" } else { name };
        write("messages", file, &[&id.code().to_le_bytes()[..1], &frame[HEADER_BYTES..]].concat());
    }
    write("frames", "golden", &stream);
}

fn proofs() {
    for (k, mode) in (0u8..).zip(targets::MODES) {
        write("proof", &format!("refused-header-{mode:?}").to_lowercase(), &targets::honest_header(mode, 3));
        // Behind a header of this mode: as many zeros as the claims of a segment have bytes, and more.
        write("proof", &format!("refused-zeros-{mode:?}").to_lowercase(), &[&[8 * k + 2][..], &[0; 12 << 10]].concat());
        for (toy, name) in [(0, "encoder"), (1, "decoder")] {
            let right = [2 * k + toy, 0, 0];
            write("proof", &format!("{name}-{mode:?}").to_lowercase(), &right);
            // Far into the proof, where forks are joined.
            write("proof", &format!("refused-{name}-{mode:?}").to_lowercase(), &[&right[..1], &[0, 0x40, 1, 2, 3, 4]].concat());
        }
    }
    write("registered", "encoder", &ENCODER.registered.write());
    write("registered", "descriptor", &encode(&ENCODER.registered.descriptor));
}

fn with_lengths(blobs: [&[u8]; 4]) -> Vec<u8> {
    blobs.iter().flat_map(|blob| [&(blob.len() as u32).to_le_bytes()[..], blob].concat()).collect()
}

/// The honest course of a job in mode 2; its last answers are of a proof that is never published.
fn joint() {
    for (number, step) in JOINT.course.iter().enumerate() {
        let keep = |name: &str, head: [u8; 2], blobs: &[&[u8]]| {
            let blobs = blobs.iter().flat_map(|blob| [&(blob.len() as u32).to_le_bytes()[..], blob].concat());
            let bytes: Vec<u8> = head.into_iter().chain(blobs).collect();
            if bytes.len() <= MAX_SEED_BYTES {
                write("joint", &format!("{name}-{number}"), &bytes);
            } else {
                println!("{name}-{number} has {} bytes: left out", bytes.len());
            }
        };
        write("joint", &format!("record-{number}"), &[&[0, 0], &step.record[..]].concat());
        keep("check", [1, 1], &[&step.record, &step.before[1], &step.parts[1]]);
        let last = if number + 1 == JOINT.course.len() { "refused-join" } else { "join" };
        let parts: Vec<&[u8]> = [&step.record].into_iter().chain(&step.parts).map(Vec::as_slice).collect();
        keep(last, [2, 0], &parts);
    }
}

/// A job as nodes do it, each result with what the checker is given beside it.
fn one_job(model: u8, name: &str, site: &Site) {
    let folder = tempfile::tempdir().expect("a folder");
    site.model.save(folder.path(), None).expect("saved");
    let security = site.registered.security;
    let registered = register::<NodeSuite, _>(&NodeBackend::default(), &site.model, security, [7; 32], folder.path(), &|_| ())
        .expect("registers");
    std::fs::write(folder.path().join("registered.obr"), registered.write()).expect("written");
    let opened = ModelFolder::open::<NodeSuite>(folder.path()).expect("opens");
    let engine = ProverEngine::<NodeSuite, _>::new(NodeBackend::default(), [opened]);
    let spec = site.spec.encode();
    let run = |kind, segment: usize, inputs: &[&[u8]], extra: &[u8]| {
        let request = WorkRequest {
            job: [0; 32],
            model: site.spec.model,
            kind,
            segment: segment as u32,
            spec: spec.clone(),
            extra: extra.to_vec(),
        };
        let inputs: Vec<Vec<u8>> = inputs.iter().filter(|blob| !blob.is_empty()).map(|blob| blob.to_vec()).collect();
        engine.run(&request, &inputs, &|_| ()).expect("works").blob
    };
    let keep = |kind: u8, s: usize, blobs: [&[u8]; 4]| {
        let bytes = [&[model, kind, s as u8][..], &with_lengths(blobs)].concat();
        let what = ["forward", "commit", "prove", "open", "refused-finish"][usize::from(kind)];
        if bytes.len() <= MAX_SEED_BYTES {
            write("results", &format!("{what}-{name}-{s}"), &bytes);
        } else {
            println!("{what}-{name}-{s} has {} bytes: left out", bytes.len());
        }
    };
    let (mut hidden, mut commits) = (vec![Vec::new()], Vec::new());
    for s in 0..site.segments() {
        hidden.push(run(WorkKind::Forward, s, &[&hidden[s]], &[]));
        commits.push(run(WorkKind::Commit, s, &[&hidden[s]], &[]));
        keep(0, s, [&hidden[s], &[], &[], &hidden[s + 1]]);
        keep(1, s, [&hidden[s], &hidden[s + 1], &[], &commits[s]]);
    }
    let slices: Vec<&[u8]> = commits.iter().map(Vec::as_slice).collect();
    let challenge = site.checker.challenge(&spec, &slices).expect("drawn");
    let (mut claims, mut opens) = (Vec::new(), Vec::new());
    for s in 0..site.segments() {
        claims.push(run(WorkKind::Prove, s, &[&hidden[s]], &challenge));
        opens.push(run(WorkKind::Open, s, &[&hidden[s], &claims[s]], &challenge));
        keep(2, s, [&hidden[s], &hidden[s + 1], &challenge, &claims[s]]);
        keep(3, s, [&hidden[s], &claims[s], &challenge, &opens[s]]);
    }
    keep(4, 0, [&commits[0], &claims[0], &challenge, &opens[0]]);
    let [proves, opens] = [&claims, &opens].map(|blobs| blobs.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let pieces = Pieces { commits: &slices, challenge: &challenge, proves: &proves, opens: &opens };
    let weak = site.checker.finish(&spec, pieces).expect_err("a weak model's proof is never published").to_string();
    assert!(weak.contains("bits"), "{weak}");
    write("jobs", &format!("spec-{name}"), &[&[0], &spec[..]].concat());
    write("jobs", &format!("challenge-{name}"), &[&[1], &challenge[..]].concat());
    write("jobs", &format!("commit-{name}"), &[&[2], &commits[0][..]].concat());
    if name == "encoder" {
        write("jobs", "commit-head", &[&[3], &commits[site.segments() - 1][..]].concat());
    }
}
