//! `obelysk node doctor`: everything that joining needs, looked at without changing anything. Each finding says what to do.

mod card;
mod machine;
mod membership;
mod path;

use super::args::DoctorArgs;
use super::cluster::runtime;
use super::exit::{Code, Failure};
use super::home::Home;
use super::join::state_folder;
use super::output::Out;
use super::secret;
use obelysk_cuda::card::probe;
use obelysk_node::DeviceChoice;
use serde::Serialize;
use std::path::Path;

/// How a check ended. A warning does not keep a node from joining.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Passed,
    Warned,
    Failed,
}

impl Outcome {
    const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Warned => "warned",
            Self::Failed => "failed",
        }
    }
}

/// One finding.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    outcome: Outcome,
    detail: String,
    /// What to do; `None` when nothing is.
    remedy: Option<String>,
}

impl Check {
    fn passed(name: impl Into<String>, detail: impl std::fmt::Display) -> Self {
        Self { name: name.into(), outcome: Outcome::Passed, detail: detail.to_string(), remedy: None }
    }

    fn warned(name: impl Into<String>, detail: impl std::fmt::Display, remedy: impl Into<String>) -> Self {
        Self { name: name.into(), outcome: Outcome::Warned, detail: detail.to_string(), remedy: Some(remedy.into()) }
    }

    fn failed(name: impl Into<String>, detail: impl std::fmt::Display, remedy: impl Into<String>) -> Self {
        Self { name: name.into(), outcome: Outcome::Failed, detail: detail.to_string(), remedy: Some(remedy.into()) }
    }
}

/// Runs the checks; fails with the code of a rejected validation when one does.
pub fn run(out: &Out, home: &Home, args: &DoctorArgs) -> Result<(), Failure> {
    let device: DeviceChoice = args.device.as_deref().map_or(Ok(DeviceChoice::Cpu), str::parse).map_err(Failure::input)?;
    let mut checks = Vec::new();
    let token = match secret::token(args.token.as_deref(), args.token_file.as_deref()) {
        Ok(token) => token,
        Err(failure) => {
            checks.push(Check::failed("token", &failure.error, "give the whole line that `obelysk token create` printed"));
            None
        }
    };
    let state = state_folder(home, args.state.as_deref().unwrap_or(Path::new("")), &args.name);
    let identity = membership::identity(&state, &mut checks);
    checks.extend(token.as_ref().map(membership::token));
    if let Some(credential) = &identity {
        checks.extend(membership::pins(credential, token.as_ref()));
        checks.extend(membership::copies(home.root(), &state, credential.id()));
    }
    checks.extend(membership::in_use(&state));
    if token.is_none() && identity.is_none() && checks.iter().all(|c| c.outcome == Outcome::Passed) {
        let detail = format!("no token was given and {} holds no identity", state.display());
        checks.push(Check::failed(
            "membership",
            detail,
            "run `obelysk token create` where the coordinator is, and pass its line",
        ));
    }
    let (places, cluster) = match (&identity, &token) {
        (Some(c), _) => (c.places().unwrap_or_default(), Some(c.cluster)),
        (None, Some(t)) => (t.places().unwrap_or_default(), Some(t.cluster)),
        (None, None) => (Vec::new(), None),
    };
    checks.extend(runtime()?.block_on(path::all(&places, cluster)));
    checks.push(machine::space(home.root()));
    checks.push(machine::writable(&state));
    checks.extend(machine::memory(home, &args.model));
    checks.extend(card::all(device, &probe::report()));
    let good = checks.iter().all(|c| c.outcome != Outcome::Failed);
    out.json(&serde_json::json!({ "passed": good, "checks": checks }));
    for c in &checks {
        out.line(format_args!("{:7} {:24} {}", c.outcome.name(), c.name, c.detail));
        if let Some(remedy) = &c.remedy {
            out.line(format_args!("{:32} -> {remedy}", ""));
        }
    }
    if good { Ok(()) } else { Err(Failure { code: Code::Rejected, error: anyhow::anyhow!("a check failed") }) }
}
