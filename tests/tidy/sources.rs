//! Heads, sizes and forbidden words of Rust sources.

use crate::{files, has_word, none, read};

/// No file may be longer.
const MOST_LINES: usize = 600;
/// Longer files are named, not refused.
const WANTED_LINES: usize = 400;

/// A source without its comments; what strings hold stays.
pub fn code(text: &str) -> String {
    // A `//` inside a string cuts that line short, which hides nothing these rules look for.
    text.lines().map(|line| line.find("//").map_or(line, |at| &line[..at])).collect::<Vec<_>>().join("\n")
}

/// The part before the unit tests.
fn shipped(text: &str) -> String {
    code(text.split("#[cfg(test)]").next().unwrap_or_default())
}

#[test]
fn files_open_with_what_they_are() {
    let bare = files("", ".rs").into_iter().filter(|file| !read(file).starts_with("//! "));
    none("files that do not open with `//!`", &bare.collect::<Vec<_>>());
}

#[test]
fn files_stay_short() {
    let lengths: Vec<(String, usize)> =
        files("", ".rs").into_iter().map(|f| (read(&f).lines().count(), f)).map(|(n, f)| (f, n)).collect();
    for (file, lines) in lengths.iter().filter(|(_, lines)| *lines > WANTED_LINES) {
        println!("{file}: {lines} lines, wanted {WANTED_LINES}");
    }
    let long = lengths.iter().filter(|(_, lines)| *lines > MOST_LINES);
    none("files above 600 lines", &long.map(|(file, lines)| format!("{file}: {lines}")).collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_open_or_silenced() {
    // Put together here, so that this file does not hold what it forbids.
    let forbidden = [concat!("to", "do!"), concat!("unimpl", "emented!"), concat!("db", "g!"), concat!("[al", "low(")];
    let notes = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let mut broken = Vec::new();
    for file in files("", ".rs") {
        let text = read(&file);
        let code = code(&text);
        broken.extend(forbidden.iter().filter(|f| code.contains(*f)).map(|f| format!("{file}: {f}")));
        broken.extend(notes.iter().filter(|n| has_word(&text, n)).map(|n| format!("{file}: {n}")));
    }
    none("open ends", &broken);
}

#[test]
fn the_protocol_names_nothing_that_differs_from_run_to_run() {
    let words = ["HashMap", "HashSet", "Instant", "SystemTime", "thread", "rayon", "rand", "unsafe", "fs", "env", "println"];
    let mut broken = Vec::new();
    for file in files("protocol/src", ".rs").into_iter().filter(|f| !f.ends_with("/tests.rs")) {
        let code = shipped(&read(&file));
        broken.extend(words.iter().filter(|w| has_word(&code, w)).map(|w| format!("{file}: {w}")));
    }
    none("no clock, order, thread, chance, file or `unsafe` in the protocol", &broken);
}

#[test]
fn the_protocol_does_not_panic_by_choice() {
    let calls = [".unwrap()", ".expect(", "panic!(", "unreachable!(", " assert!(", " assert_eq!("];
    let mut broken = Vec::new();
    for file in files("protocol/src", ".rs").into_iter().filter(|f| !f.ends_with("/tests.rs")) {
        let code = shipped(&read(&file));
        broken.extend(calls.iter().filter(|c| code.contains(*c)).map(|c| format!("{file}: {c}")));
    }
    none("errors are values", &broken);
}

#[test]
fn the_verifier_knows_no_prover() {
    let mut broken = Vec::new();
    for file in files("protocol/src/verifier", ".rs") {
        let code = shipped(&read(&file));
        broken.extend(["obelysk_shard", "obelysk_model"].iter().filter(|w| has_word(&code, w)).map(|w| format!("{file}: {w}")));
    }
    none("the verifier stands alone", &broken);
}

/// Raft's types are protobuf's, whose decoder has a known weakness; no byte of ours ever passes through it.
#[test]
fn nobody_asks_protobuf_to_read_or_write() {
    let words = [
        "merge_from",
        "merge_from_bytes",
        "parse_from_bytes",
        "parse_from_carllerche_bytes",
        "parse_from_reader",
        "write_to",
        "write_to_bytes",
        "write_to_vec",
        "write_to_writer",
        "write_length_delimited_to_bytes",
        "CodedInputStream",
        "CodedOutputStream",
        // Writes its argument with protobuf.
        "propose_conf_change",
        "protobuf",
    ];
    let mut broken = Vec::new();
    for folder in ["coordinator", "node", "protocol", "shard"] {
        for file in files(folder, ".rs") {
            let code = code(&read(&file));
            broken.extend(words.iter().filter(|w| has_word(&code, w)).map(|w| format!("{file}: {w}")));
        }
    }
    let manifests = files("", "Cargo.toml").into_iter().filter(|f| read(f).lines().any(|l| l.starts_with("protobuf")));
    broken.extend(manifests.map(|f| format!("{f}: protobuf")));
    none("protobuf's codec", &broken);
}
