//! Documents tell the truth: commands exist, files named exist, links lead somewhere, changes are recorded.

use crate::{files, none, read, root};
use std::collections::BTreeSet;

const ARGUMENTS: &str = "coordinator/src/cli/args.rs";
const CLUSTER_ARGUMENTS: &str = "coordinator/src/cli/cluster_args.rs";
const OBSERVE_ARGUMENTS: &str = "coordinator/src/cli/observe_args.rs";
/// First parts of paths that documents name.
const FOLDERS: [&str; 9] = ["protocol", "shard", "node", "coordinator", "tests", "docs", "configs", "deploy", ".ci"];

fn documents() -> Vec<String> {
    files("", ".md")
}

/// `ModelCommand` variants as the shell sees them.
fn variants(source: &str, name: &str) -> Vec<String> {
    let body = source.split(&format!("pub enum {name} {{")).nth(1).unwrap_or_else(|| panic!("{ARGUMENTS} has no enum {name}"));
    let body = body.split("\n}").next().unwrap_or_default();
    let lines = body.lines().filter_map(|line| line.strip_prefix("    "));
    let starts = lines.filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()));
    starts.map(|line| line.chars().take_while(char::is_ascii_alphanumeric).collect::<String>().to_lowercase()).collect()
}

/// The sources that say what the command line takes.
fn arguments() -> String {
    read(ARGUMENTS) + &read(CLUSTER_ARGUMENTS) + &read(OBSERVE_ARGUMENTS)
}

/// Every command of the command line, such as `prove` or `model show`.
pub fn commands() -> BTreeSet<String> {
    let source = arguments();
    let mut out = BTreeSet::new();
    for command in variants(&source, "Command") {
        let title = command[..1].to_uppercase() + &command[1..];
        let nested = format!("{title}Command");
        let group = source.contains(&format!("pub enum {nested} {{"));
        if group {
            out.extend(variants(&source, &nested).into_iter().map(|inner| format!("{command} {inner}")));
        }
        // A command that may be followed by another is one by itself.
        if !group || source.contains(&format!("Option<{nested}>")) {
            out.insert(command);
        }
    }
    out
}

/// Texts between single backticks.
fn spans(text: &str) -> Vec<String> {
    let prose: Vec<&str> = text.split("```").step_by(2).collect();
    prose
        .iter()
        .flat_map(|part| part.split('`').skip(1).step_by(2))
        .map(|s| s.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

/// Lines of fenced blocks.
fn fenced(text: &str) -> Vec<String> {
    text.split("```").skip(1).step_by(2).flat_map(str::lines).map(str::to_owned).collect()
}

/// The arguments of an invocation of our program, if the text is one.
fn invocation(text: &str) -> Option<&str> {
    text.strip_prefix("cargo run --release -- ").or_else(|| text.strip_prefix("obelysk "))
}

#[test]
fn commands_in_documents_exist() {
    let (known, arguments) = (commands(), arguments());
    let mut broken = Vec::new();
    for file in documents() {
        let text = read(&file);
        for said in spans(&text).iter().chain(&fenced(&text)).filter_map(|s| invocation(s)) {
            let words: Vec<&str> = said.split_whitespace().collect();
            if words.is_empty() {
                continue;
            }
            let named = |n: usize| words.get(..n).is_some_and(|w| known.contains(&w.join(" ")));
            // A group such as `model` may be named alone.
            let group = words.len() == 1 && known.iter().any(|k| k.starts_with(&format!("{} ", words[0])));
            if !(named(1) || named(2) || group || words[0].starts_with('-')) {
                broken.push(format!("{file}: `{said}` is no command"));
            }
            for flag in words.iter().filter_map(|w| w.strip_prefix("--")).filter(|f| !["help", "version"].contains(f)) {
                let field = flag.split('=').next().unwrap_or_default().replace('-', "_");
                if !arguments.lines().any(|l| l.trim().trim_start_matches("pub ").starts_with(&format!("{field}: "))) {
                    broken.push(format!("{file}: `{said}` has an unknown flag --{flag}"));
                }
            }
        }
    }
    none("commands", &broken);
}

#[test]
fn the_readme_names_every_command_and_exit_code() {
    let readme = read("README.md");
    let missing = commands().into_iter().filter(|c| !readme.contains(&format!("| `obelysk {c}")));
    none("commands that README.md does not list", &missing.collect::<Vec<_>>());
    let codes = read("coordinator/src/cli/exit.rs");
    let numbers = codes.lines().filter_map(|l| l.trim().strip_suffix(',')?.split_once(" = ").map(|(_, n)| n.to_owned()));
    let missing = numbers.filter(|n| n.parse::<u8>().is_ok() && !readme.contains(&format!("| {n} |")));
    none("exit codes that README.md does not list", &missing.collect::<Vec<_>>());
}

#[test]
fn the_quickstart_has_two_commands_and_ci_runs_them() {
    let (readme, ci) = (read("README.md"), read(".ci/run"));
    let quickstart = readme.split("## Quickstart").nth(1).expect("a quickstart").split("\n## ").next().unwrap_or_default();
    let blocks = fenced(quickstart);
    let lines: Vec<&str> = blocks.iter().map(|l| l.trim()).filter(|l| l.starts_with("cargo ")).collect();
    assert_eq!(lines, ["cargo run --release -- demo", "cargo test --workspace"]);
    assert!(ci.contains("cargo run --locked --release -- demo") && ci.contains("cargo test --locked --workspace"));
}

#[test]
fn files_named_in_documents_exist() {
    let mut broken = Vec::new();
    for file in documents() {
        for span in spans(&read(&file)) {
            let path = span.trim_end_matches('/');
            let first = path.split('/').next().unwrap_or_default();
            let is_path = path.contains('/') && FOLDERS.contains(&first) && !path.contains([' ', '*', '<', '{', '(']);
            if is_path && !root().join(path).exists() {
                broken.push(format!("{file}: {path}"));
            }
        }
    }
    none("paths that lead nowhere", &broken);
}

/// Names of four underscores or more are of tests, or of metrics, which begin with the program's name: settings are shorter.
#[test]
fn tests_named_in_documents_exist() {
    let sources: Vec<String> = files("", ".rs").iter().map(|file| read(file)).collect();
    let (mut broken, mut found) = (Vec::new(), 0);
    for file in documents() {
        for span in spans(&read(&file)) {
            let plain = span.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            if plain && span.matches('_').count() >= 4 && !span.starts_with("obelysk_") {
                found += 1;
                if !sources.iter().any(|text| text.contains(&format!("fn {span}("))) {
                    broken.push(format!("{file}: {span}"));
                }
            }
        }
    }
    none("tests that are not there", &broken);
    assert!(found > 30, "the documents cite tests");
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    for file in documents() {
        let folder = root().join(&file).parent().expect("inside the root").to_owned();
        for link in read(&file).split("](").skip(1).filter_map(|rest| rest.split(')').next().map(str::to_owned)) {
            let path = link.split('#').next().unwrap_or_default();
            if !path.is_empty() && !path.contains("://") && !folder.join(path).exists() {
                broken.push(format!("{file}: {link}"));
            }
        }
    }
    none("links that lead nowhere", &broken);
}

#[test]
fn comments_cite_sections_that_exist() {
    // Put together here, so that this file cites nothing.
    let mark = concat!("`do", "cs/");
    let mut broken = Vec::new();
    for file in files("", ".rs") {
        let text = read(&file);
        for rest in text.split(mark).skip(1) {
            let Some((name, after)) = rest.split_once('`') else { continue };
            let document = format!("docs/{name}");
            // Either `, "Title"` or ` §4.1` follows.
            let title = after.strip_prefix(", \"").and_then(|s| s.split_once('"')).map(|(title, _)| title.to_owned());
            let digits = |s: &str| s.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect::<String>();
            let number = after.strip_prefix(" §").map(|s| digits(s).trim_end_matches('.').to_owned());
            let is_wanted = |heading: &str| {
                let own = digits(heading);
                title.as_ref().is_none_or(|t| t == heading) && number.as_ref().is_none_or(|n| n == own.trim_end_matches('.'))
            };
            let headings =
                |text: &str| text.lines().filter(|l| l.starts_with('#')).any(|l| is_wanted(l.trim_start_matches('#').trim()));
            if !root().join(&document).is_file() || !headings(&read(&document)) {
                broken.push(format!("{file}: {document} {title:?} {number:?}"));
            }
        }
    }
    none("citations that lead nowhere", &broken);
}

#[test]
fn changes_are_recorded() {
    let log = read("CHANGELOG.md");
    let section = log.split("## Unreleased").nth(1).expect("an Unreleased section");
    assert!(section.split("\n## ").next().is_some_and(|s| s.contains("\n- ")), "Unreleased is empty");
}

#[test]
fn the_licence_is_whole() {
    let licence = read("LICENSE");
    assert!(licence.contains("Apache License") && licence.contains("END OF TERMS AND CONDITIONS"));
    assert!(read("Cargo.toml").contains("license = \"Apache-2.0\""));
}
