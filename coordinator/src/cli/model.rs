//! `obelysk model fetch | validate | quantise | register | show`.

use super::args::{ModelCommand, SourceArgs};
use super::exit::Failure;
use super::home::Home;
use super::manifest::FIDELITY_FILE;
use super::output::{Out, hex, size};
use super::{admin, register, validate};
use obelysk_node::{ModelFolder, NodeSuite};
use obelysk_protocol::circuit::segment_count;
use obelysk_protocol::verifier::aggregate::Statement;
use obelysk_protocol::verifier::mode::{MODE_FORKED, Mode};
use obelysk_protocol::verifier::soundness;
use obelysk_shard::registration::blank_input;
use serde_json::{Value, json};
use std::path::Path;

/// Runs a model command.
pub fn run(out: &Out, home: &Home, command: ModelCommand) -> Result<(), Failure> {
    match command {
        ModelCommand::Fetch { from, out: dest } => fetch(out, home, &from, dest.as_deref()),
        ModelCommand::Validate { from, tokens, rate } => validate::run(out, home, &from, tokens, rate),
        ModelCommand::Quantise { source, out: dest, name } => quantise(out, home, (&source, &name), &dest),
        ModelCommand::Push { model, admin } => admin::push(out, home, &home.open(&model)?, &admin),
        ModelCommand::Withdraw { id, admin } => admin::withdraw(out, home, &id, &admin),
        ModelCommand::Register { source, name, replace, codewords } => {
            let folder = register::local_folder(out, home, &source)?;
            let model = register::register_with(out, home, &folder, (&name, replace), codewords.into())?;
            registered(out, &name, &model);
            Ok(())
        }
        ModelCommand::Show { model: Some(model), tokens } => show(out, &home.open(&model)?, tokens),
        ModelCommand::Show { model: None, .. } => list(out, home),
    }
}

fn fetch(out: &Out, home: &Home, from: &SourceArgs, dest: Option<&Path>) -> Result<(), Failure> {
    let (source, preset) = register::source(from)?;
    if let Some(preset) = preset.as_ref().filter(|p| p.gated) {
        out.note(&format!("{} is gated: its licence ({}) must be accepted on its page", preset.repository, preset.licence));
    }
    let dest = dest.map_or_else(|| register::cached(home, &source), Path::to_owned);
    let record = register::fetch_into(out, &source, &dest)?;
    out.json(&json!({
        "source": record.source, "revision": record.revision, "folder": dest, "files": record.files,
        "preset": preset.map(|p| p.name),
    }));
    out.field("folder", dest.display());
    if let Some(revision) = &record.revision {
        out.field("revision", revision);
    }
    for file in &record.files {
        out.line(format_args!("  {} {:>12}  {}", file.sha256, size(file.size), file.name));
    }
    Ok(())
}

fn quantise(out: &Out, home: &Home, (text, name): (&str, &str), dest: &Path) -> Result<(), Failure> {
    if dest.exists() {
        return Err(Failure::input(format!("{} exists already; remove it or choose another folder", dest.display())));
    }
    let source = register::local_folder(out, home, text)?;
    let parent = dest.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent)?;
    let staging = tempfile::Builder::new().prefix(".quantise-").tempdir_in(parent)?;
    let fresh = staging.path().join("model");
    let report = register::quantise_into(out, &source, name, &fresh)?;
    std::fs::rename(&fresh, dest)?;
    out.json(&json!({ "folder": dest, "fidelity": report }));
    out.field("folder", dest.display());
    fidelity_lines(out, &serde_json::to_value(&report)?);
    Ok(())
}

/// Says that a model is registered.
pub fn registered(out: &Out, name: &str, model: &ModelFolder) {
    out.json(&json!({ "name": name, "model_id": hex(&model.id), "folder": model.path }));
    out.field("registered", name);
    out.field("model id", hex(&model.id));
    out.field("folder", model.path.display());
}

fn list(out: &Out, home: &Home) -> Result<(), Failure> {
    let models = home.names().into_iter().map(|name| Ok((home.open(&name)?, name))).collect::<Result<Vec<_>, Failure>>()?;
    let entry = |(model, name): &(ModelFolder, String)| json!({ "name": name, "model_id": hex(&model.id), "folder": model.path });
    out.json(&json!({ "home": home.root(), "models": models.iter().map(entry).collect::<Vec<Value>>() }));
    if models.is_empty() {
        out.line(format_args!("no model is registered in {}; try `obelysk demo`", home.root().display()));
    }
    for (model, name) in &models {
        out.line(format_args!("{name:<24} {}", hex(&model.id)));
    }
    Ok(())
}

fn show(out: &Out, model: &ModelFolder, tokens: usize) -> Result<(), Failure> {
    let (r, d) = (&model.registered, &model.registered.descriptor);
    let statement = Statement::new::<NodeSuite>(r, blank_input(d, tokens), MODE_FORKED)?;
    let budget = soundness::budget(r, Mode::Forked, &statement.circuits);
    let bits = soundness::minimum(&budget);
    let joint = soundness::joint_budget(r);
    let forks = soundness::budget(r, Mode::Aggregated, &statement.circuits);
    let joint_bits = soundness::minimum(&joint).min(soundness::minimum(&forks));
    let report = std::fs::read(model.path.join(FIDELITY_FILE)).ok();
    let fidelity: Option<Value> = report.map(|bytes| serde_json::from_slice(&bytes)).transpose()?;
    let roots: Vec<Option<String>> = r.roots.iter().map(|root| root.as_ref().map(|r| hex(r))).collect();
    let table = |budget: &[soundness::Entry]| -> Vec<Value> {
        let row = |e: &soundness::Entry| json!({ "segment": e.segment, "challenge": e.challenge, "bits": e.bits, "grinding": e.grinding });
        budget.iter().map(row).collect()
    };
    out.json(&json!({
        "model_id": hex(&model.id), "name": d.name(), "folder": model.path, "manifest": hex(&r.manifest),
        "vocab": d.vocab(), "positions": d.positions(), "width": d.width(), "heads": d.heads(), "head_dim": d.head_dim(),
        "ffn": d.ffn(), "layers": d.layer_count(), "segments": segment_count(d),
        "row_log": d.row_log(), "blowup_log": d.blowup_log(), "tile_logs": [d.tile_k_log(), d.tile_n_log()],
        "queries": r.security.queries, "grinding": { "seed": r.security.g_seed, "fold": r.security.g_fold, "query": r.security.g_query },
        "roots": roots, "tokens": tokens, "security_bits": bits, "security": table(&budget),
        "joint_security_bits": joint_bits, "joint_security": table(&joint), "fidelity": fidelity,
    }));
    out.heading(&format!("{} ({})", d.name(), model.path.display()));
    out.field("model id", hex(&model.id));
    out.field("manifest", hex(&r.manifest));
    out.field(
        "dimensions",
        format_args!(
            "width {}, {} heads of {}, inner width {}, {} layers",
            d.width(),
            d.heads(),
            d.head_dim(),
            d.ffn(),
            d.layer_count()
        ),
    );
    out.field("input", format_args!("vocabulary {}, positions {}", d.vocab(), d.positions()));
    out.field(
        "code",
        format_args!("rows of 2^{}, rate 1/{}, {} queries", d.row_log(), 1u32 << d.blowup_log(), r.security.queries),
    );
    out.heading("Weight roots");
    for (c, root) in statement.circuits.iter().zip(&roots) {
        out.field(&c.name, root.as_deref().unwrap_or("no weights"));
    }
    out.heading(&format!("Security at {tokens} tokens: {bits:.1} bits"));
    security_lines(out, &budget);
    out.heading(&format!("In mode 2, one opening of all segments: {joint_bits:.1} bits"));
    security_lines(out, &joint);
    match &fidelity {
        Some(report) => fidelity_lines(out, report),
        None => out.line("No fidelity report: the model was registered from integer weights."),
    }
    Ok(())
}

/// The weakest challenge of each kind: segments differ little.
fn security_lines(out: &Out, budget: &[soundness::Entry]) {
    let mut kinds: Vec<&soundness::Entry> = Vec::new();
    for entry in budget {
        let total = |e: &soundness::Entry| e.bits + f64::from(e.grinding);
        match kinds.iter_mut().find(|k| k.challenge == entry.challenge) {
            Some(kind) if total(entry) < total(kind) => *kind = entry,
            Some(_) => {}
            None => kinds.push(entry),
        }
    }
    for e in kinds {
        out.line(format_args!("  {:>6.1} + {:>2} bits  {} ({})", e.bits, e.grinding, e.challenge, e.segment));
    }
}

/// Prints a report; it may have been written by another release, so nothing about its shape is assumed.
pub fn fidelity_lines(out: &Out, report: &Value) {
    let number = |path: &str| report.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);
    out.heading("Fidelity to the float model");
    let decoder = report.get("top1_agreement").is_some();
    if decoder {
        generation_lines(out, &number);
    }
    let (mean, worst) = (number("/embedding/mean"), number("/embedding/worst"));
    if !decoder {
        out.field("embedding", format_args!("cosine {mean:.6} mean, {worst:.6} worst of {} sentences", number("/sentences")));
    }
    let layers = report.get("layers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for (l, layer) in layers.iter().enumerate() {
        let value = |name: &str| layer.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN);
        // An encoder's list begins with the embedding's norm.
        let name = match l.checked_sub(usize::from(!decoder)) {
            Some(l) => format!("layer{l}"),
            None => "embed".to_owned(),
        };
        out.field(&name, format_args!("cosine {:.6} mean, {:.6} worst", value("mean"), value("worst")));
    }
}

/// What a decoder's report says about the next token.
fn generation_lines(out: &Out, number: &dyn Fn(&str) -> f64) {
    let tokens = number("/tokens");
    out.field(
        "next token",
        format_args!("the float model's at {:.2} % of {tokens} positions", 100.0 * number("/top1_agreement")),
    );
    let (float, integer) = (number("/float_perplexity"), number("/integer_perplexity"));
    let change = 100.0 * (integer / float - 1.0);
    out.field("perplexity", format_args!("{integer:.3}, the float model's {float:.3} ({change:+.2} %)"));
    out.field("divergence", format_args!("{:.6} nats", number("/divergence")));
    out.field("logits", format_args!("cosine {:.6} mean, {:.6} worst", number("/logits/mean"), number("/logits/worst")));
}
