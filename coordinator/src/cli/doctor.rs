//! `obelysk node doctor`: everything that joining needs, looked at without changing anything.

use super::args::DoctorArgs;
use super::cluster::runtime;
use super::exit::{Code, Failure};
use super::home::Home;
use super::join::state_folder;
use super::output::{Out, size};
use super::secret;
use obelysk_coordinator::identity::MAX_SKEW_S;
use obelysk_node::CoordinatorAddress;
use obelysk_node::identity::{Credential, Id, MAX_CREDENTIAL_BYTES, Token, probe, read_private, unix_now};
use serde::Serialize;
use std::path::Path;

/// Below this, weights of any model but a toy find no place.
const ROOM: u64 = 1 << 30;

#[derive(Serialize)]
struct Check {
    name: String,
    outcome: &'static str,
    detail: String,
}

fn check(name: impl Into<String>, good: bool, detail: impl std::fmt::Display) -> Check {
    Check { name: name.into(), outcome: if good { "passed" } else { "failed" }, detail: detail.to_string() }
}

/// Runs the checks; fails with the code of a rejected validation when one does.
pub fn run(out: &Out, home: &Home, args: &DoctorArgs) -> Result<(), Failure> {
    let mut checks = Vec::new();
    let token = match secret::token(args.token.as_deref(), args.token_file.as_deref()) {
        Ok(token) => token,
        Err(failure) => {
            checks.push(check("token", false, &failure.error));
            None
        }
    };
    let state = state_folder(home, args.state.as_deref().unwrap_or(Path::new("")), &args.name);
    let identity = identity(&state, &mut checks);
    if let Some(token) = &token {
        checks.push(token_check(token));
    }
    if token.is_none() && identity.is_none() && checks.is_empty() {
        let detail = format!("no token was given and {} holds no identity; run `obelysk token create`", state.display());
        checks.push(check("membership", false, detail));
    }
    let (places, cluster) = match (&identity, &token) {
        (Some(c), _) => (c.places().unwrap_or_default(), Some(c.cluster)),
        (None, Some(t)) => (t.places().unwrap_or_default(), Some(t.cluster)),
        (None, None) => (Vec::new(), None),
    };
    runtime()?.block_on(async {
        for place in &places {
            reach(place, cluster.map(|c| c.0), &mut checks).await;
        }
    });
    checks.push(disk(home.root()));
    let good = checks.iter().all(|c| c.outcome == "passed");
    out.json(&serde_json::json!({ "passed": good, "checks": checks }));
    for c in &checks {
        out.line(format_args!("{:7} {:24} {}", c.outcome, c.name, c.detail));
    }
    if good { Ok(()) } else { Err(Failure { code: Code::Rejected, error: anyhow::anyhow!("a check failed") }) }
}

fn identity(state: &Path, checks: &mut Vec<Check>) -> Option<Credential> {
    let path = state.join("identity.toml");
    let read = read_private(&path, MAX_CREDENTIAL_BYTES)
        .and_then(|bytes| bytes.map(|bytes| Credential::from_text(&String::from_utf8_lossy(&bytes))).transpose());
    match read {
        Ok(None) => None,
        Ok(Some(credential)) => {
            let left = credential.expires_unix_s.saturating_sub(unix_now());
            let detail = if left > 0 {
                format!("node {}, certificate for {left} s more", credential.id())
            } else {
                "the certificate has expired; join again with a new token".to_owned()
            };
            checks.push(check("identity", left > 0, detail));
            Some(credential)
        }
        Err(error) => {
            checks.push(check("identity", false, error));
            None
        }
    }
}

fn token_check(token: &Token) -> Check {
    let left = token.expires_unix_s.saturating_sub(unix_now());
    if left > 0 {
        check("token", true, format_args!("{}, for {left} s more by this machine's clock", token.id))
    } else {
        check(
            "token",
            false,
            "it has expired by this machine's clock; make a new one with `obelysk token create`, or set the clock",
        )
    }
}

async fn reach(place: &CoordinatorAddress, cluster: Option<[u8; 16]>, checks: &mut Vec<Check>) {
    let name = format!("{}:{}", place.host, place.port);
    let probed = match probe(place).await {
        Ok(probed) => probed,
        Err(error) => return checks.push(check(format!("reach {name}"), false, error)),
    };
    checks.push(check(format!("reach {name}"), true, "answers, under the pinned authority"));
    let same = cluster == Some(probed.cluster);
    checks.push(check(
        "cluster",
        same,
        format_args!("{}{}", Id(probed.cluster), if same { "" } else { ", not the one expected" }),
    ));
    let skew = unix_now().abs_diff(probed.unix_s);
    let detail = format!("{skew} s from the coordinator's, at most {MAX_SKEW_S} are allowed");
    checks.push(check("clock", skew <= MAX_SKEW_S, detail));
    let ours = env!("CARGO_PKG_VERSION");
    checks.push(check("release", probed.release == ours, format_args!("{ours} here, {} there", probed.release)));
}

fn disk(root: &Path) -> Check {
    // The home folder may not be there yet; where it will be is what counts.
    let there = root.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    match obelysk_model::fetch::space::free(there) {
        Ok(free) => check("disk", free >= ROOM, format_args!("{} free at {}", size(free), there.display())),
        Err(error) => check("disk", false, format_args!("free space at {} cannot be asked: {error}", there.display())),
    }
}
