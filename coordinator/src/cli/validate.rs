//! `obelysk model validate`: is a model whole, can it be proved, and what does that take. Nothing is written.

use super::args::SourceArgs;
use super::exit::{Code, Failure};
use super::home::Home;
use super::output::{Out, size};
use super::register;
use obelysk_model::fetch::{Source, space};
use obelysk_model::preset::Preset;
use obelysk_model::validate::{self, DEFAULT_RATE, Needs, Outcome, Question, Validation};
use serde_json::json;
use std::path::Path;

/// Bytes per parameter of the published float models.
const FLOAT_BYTES: u64 = 2;

/// Checks a source; a failed check is a rejection.
pub fn run(out: &Out, home: &Home, from: &SourceArgs, tokens: usize, rate: Option<f64>) -> Result<(), Failure> {
    let (source, preset) = register::source(from)?;
    let question = Question { tokens, rate: rate.map_or(DEFAULT_RATE, |millions| millions * 1e6) };
    let folder = match &source {
        Source::Folder(folder) => folder.clone(),
        _ => register::cached(home, &source),
    };
    let mut v = match (&preset, folder.is_dir()) {
        (preset, true) => {
            let spinner = out.spinner(format!("reading {}", folder.display()));
            let v = validate::folder(&folder, preset.as_ref(), question);
            spinner.finish_and_clear();
            v
        }
        (Some(preset), false) => by_shape(preset, question),
        (None, false) => {
            let text = format!("{} is not here yet; run `obelysk model fetch {}` first", source.label(), source.label());
            return Err(Failure::input(text));
        }
    };
    if let Some(needs) = v.needs.clone() {
        v.add("free disk", disk(home, &needs));
    }
    print(out, &source, &folder, &v);
    if v.passed() {
        return Ok(());
    }
    let error = anyhow::anyhow!("{} does not pass", source.label());
    Err(Failure { code: Code::Rejected, error })
}

/// What can be said of a preset that is not here.
fn by_shape(preset: &Preset, question: Question) -> Validation {
    let mut v = validate::preset(preset, question);
    let download = size(preset.parameters.saturating_mul(FLOAT_BYTES));
    let gated = if preset.gated { ", with an access token in HF_TOKEN," } else { "" };
    let name = &preset.name;
    v.skip("files", &format!("not here yet: `obelysk model fetch --preset {name}`{gated} downloads about {download}"));
    v
}

/// Whether registered weights fit below the home folder.
fn disk(home: &Home, needs: &Needs) -> Result<String, String> {
    let place = home.root().ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/"));
    let free = space::free(place).map_err(|e| format!("cannot ask {} for its free space: {e}", place.display()))?;
    let needed = needs.weight_bytes.saturating_add(needs.codeword_bytes).saturating_add(space::RESERVE_BYTES);
    let found = format!("{} free at {}, about {} needed to register", size(free), place.display(), size(needed));
    if needed <= free { Ok(found) } else { Err(format!("{found}; free some, or pass --home on another disk")) }
}

fn print(out: &Out, source: &Source, folder: &Path, v: &Validation) {
    out.json(&json!({
        "source": source.label(), "folder": folder, "passed": v.passed(), "checks": v.checks, "estimates": v.needs,
    }));
    out.heading(&format!("{}: {}", source.label(), if v.passed() { "passes" } else { "does not pass" }));
    for check in &v.checks {
        let mark = match check.outcome {
            Outcome::Passed => console::style("passed ").green(),
            Outcome::Failed => console::style("FAILED ").red().bold(),
            Outcome::Skipped => console::style("skipped").dim(),
        };
        out.line(format_args!("  {mark}  {:<20} {}", check.name, check.detail));
    }
    if let Some(needs) = &v.needs {
        estimates(out, needs);
    }
}

fn estimates(out: &Out, n: &Needs) {
    out.heading(&format!("Estimated, not measured, for {} tokens", n.tokens));
    out.field("weights", format_args!("{:.1} M int8", n.parameters as f64 / 1e6));
    out.field("memory per node", format_args!("{} for the largest segment", size(n.memory_bytes)));
    out.field("disk", format_args!("{} int8 weights, {} encoded weights", size(n.weight_bytes), size(n.codeword_bytes)));
    let rate = format!("{:.0} M weights x tokens per second and core", n.rate / 1e6);
    out.field("time", format_args!("{:.0} core-seconds, at {rate} (--rate takes what `bench` measures)", n.core_seconds));
    for s in &n.segments {
        let text = format!(
            "{:>3} x {:>11} memory, {:>11} weights, {:>11} encoded, 2^{} leaves",
            s.count,
            size(s.memory_bytes),
            size(s.weight_bytes),
            size(s.codeword_bytes),
            s.leaves.trailing_zeros()
        );
        out.field(&s.name, text);
    }
}
