//! `obelysk coordinator evidence`: results of nodes that were not accepted, and judging one of them again.

use super::args::EvidenceArgs;
use super::exit::{Code, Coded as _, Failure};
use super::home::Home;
use super::output::Out;
use obelysk_coordinator::ProofChecker;
use obelysk_coordinator::evidence::{Case, Evidence, charge};
use obelysk_node::engine::{Checker as _, Verdict};
use obelysk_node::{NodeBackend, NodeSuite};
use obelysk_protocol::circuit::segment_count;
use std::path::Path;

/// Runs `coordinator evidence`.
pub fn run(out: &Out, home: &Home, args: &EvidenceArgs) -> Result<(), Failure> {
    match (&args.judge, &args.model) {
        (Some(case), Some(model)) => judge(out, home, case, model),
        _ => list(out, &args.state.clone().unwrap_or_else(|| home.root().join("coordinator"))),
    }
}

fn list(out: &Out, state: &Path) -> Result<(), Failure> {
    let cases = Evidence::of_coordinator(state).list().code(Code::Input)?;
    let mut shown = Vec::new();
    for folder in &cases {
        match charge(folder) {
            Ok(c) => {
                let what = if c.disputed { "does not fit what it was made from" } else { "wrong" };
                out.line(format_args!("{}", folder.display()));
                let node = c.node.get(..16).unwrap_or(&c.node);
                out.line(format_args!("    {} ({node}): {} of segment {}, {what}: {}", c.name, c.kind, c.segment, c.reason));
                shown.push(serde_json::json!({ "case": folder, "charge": c }));
            }
            Err(e) => out.note(&e.to_string()),
        }
    }
    if cases.is_empty() {
        out.note("no result of any node was refused here");
    }
    out.json(&serde_json::json!({ "cases": shown }));
    Ok(())
}

/// Anybody who has the model's registration can: nothing here trusts the coordinator that kept the case.
fn judge(out: &Out, home: &Home, folder: &Path, model: &str) -> Result<(), Failure> {
    let case = Case::read(folder).code(Code::Input)?;
    let registered = home.open(model)?.registered;
    let segments = segment_count(&registered.descriptor);
    let checker = ProofChecker::<NodeSuite, _>::new(NodeBackend::default(), [registered]);
    if checker.knows(&case.exhibits.spec).is_err() {
        return Err(Failure::input(format!("the case is not of {model}: give the model that its job was for")));
    }
    if case.charge.segment as usize >= segments {
        return Err(Failure::input(format!("{model} has {segments} segments; the case's description is not of its job")));
    }
    let verdict = case.judge(&checker).ok_or_else(|| Failure::input(format!("there is no work of kind {}", case.charge.kind)))?;
    let (holds, text) = match &verdict {
        Verdict::Reject(reason) if !case.charge.disputed => (true, format!("wrong: {reason}")),
        Verdict::Reject(reason) | Verdict::Dispute(reason) => (true, format!("does not fit what it was made from: {reason}")),
        Verdict::Accept => (false, "right: the charge does not hold".to_owned()),
    };
    out.json(&serde_json::json!({ "holds": holds, "verdict": text, "charge": case.charge }));
    out.line(format_args!("{} of segment {} by {}: {text}", case.charge.kind, case.charge.segment, case.charge.name));
    if holds { Ok(()) } else { Err(anyhow::anyhow!("the charge does not hold")).code(Code::Rejected) }
}
