//! Rules of this repository that no compiler holds: layering, file heads and sizes, what the verifier may not name, settings
//! that parse, documents that tell the truth. Reads files and `cargo metadata`; builds nothing.

mod documents;
mod layering;
mod settings;
mod sources;

use std::path::{Path, PathBuf};

/// Folders that hold no text of ours.
const SKIPPED: [&str; 4] = ["target", ".git", "corpus", "artifacts"];

/// The repository's root.
fn root() -> PathBuf {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    Path::new(&here).parent().expect("the tests crate lies in the root").to_owned()
}

/// A file's text.
fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Files below `folder` with this ending, relative to the root, in order.
fn files(folder: &str, ending: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())).flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            // A link could lead out of the repository, or in circles.
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && !SKIPPED.contains(&name.as_ref()) {
                folders.push(path);
            } else if kind.is_file() && name.ends_with(ending) {
                let inside = path.strip_prefix(root()).expect("below the root");
                found.push(inside.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

/// Fails with everything that was found, not only the first.
fn none(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// Whether `word` stands in `text` as a word of its own.
fn has_word(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(part) && !after.is_some_and(part)
    })
}
