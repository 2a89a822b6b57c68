//! `obelysk coordinator serve`.

use super::admin::admin_file;
use super::args::ServeArgs;
use super::cluster::runtime;
use super::exit::{Code, Coded as _, Failure};
use super::home::Home;
use super::output::Out;
use anyhow::anyhow;
use obelysk_coordinator::identity::FileStorage;
use obelysk_coordinator::{Admissions, Coordinator, CoordinatorConfig, Facts, Handle, ProofChecker};
use obelysk_node::engine::Engine;
use obelysk_node::identity::write_private;
use obelysk_node::{NodeBackend, NodeSuite, ProverEngine, calibration};
use std::sync::Arc;

/// Serves until SIGINT or SIGTERM.
pub fn run(out: &Out, home: &Home, args: ServeArgs) -> Result<(), Failure> {
    let mut config: CoordinatorConfig = match &args.config {
        Some(path) => settings(path)?,
        None => CoordinatorConfig::default(),
    };
    config.listen = args.listen.unwrap_or(config.listen);
    config.advertise = args.advertise.unwrap_or(config.advertise);
    let state = args.state.unwrap_or_else(|| home.root().join("coordinator"));
    match args.metrics_listen.as_deref() {
        Some("none") => config.metrics_listen.clear(),
        Some(listen) => config.metrics_listen = listen.to_owned(),
        None => {}
    }
    if config.job_logs.as_os_str().is_empty() {
        config.job_logs = state.join("jobs");
    }
    if config.blobs.is_empty() {
        let folder = state.join("models");
        let text = folder.to_str().ok_or_else(|| Failure::input(format!("{} is not text; set `blobs`", folder.display())))?;
        config.blobs = text.to_owned();
    }
    let models = home.open_all(&args.model)?;
    // Held to the end: one process per folder.
    let files = FileStorage::open(&state)?;
    let facts = Facts::open(&state)?;
    let imported = facts.storage().import(&files)?;
    // Also after a crash between the two: nothing reads them any more.
    files.set_aside()?;
    if imported {
        tracing::info!(folder = %state.display(), "authority and registry are in the ledger now; the files *.moved may be removed");
    }
    let admissions = Arc::new(Admissions::open(Arc::new(facts.storage()))?);
    let registered = models.iter().map(|m| m.registered.clone());
    let checker = ProofChecker::<NodeSuite, _>::new(NodeBackend::default(), registered);
    let checker = Arc::new(match calibration::folder(&home.calibration()) {
        Ok(folder) => checker.with_trial(folder.registered),
        Err(error) => {
            out.note(&format!("nodes are not calibrated: {error}"));
            checker
        }
    });
    // Where the weights are, this process settles disputes between nodes itself.
    let weights: Vec<_> = models.into_iter().filter(|m| m.path.join("descriptor.bin").is_file()).collect();
    let referee: Option<Arc<dyn Engine>> =
        (!weights.is_empty()).then(|| Arc::new(ProverEngine::<NodeSuite, _>::new(NodeBackend::default(), weights)) as _);
    runtime()?.block_on(async {
        let handle = Coordinator::start_with(config, admissions.clone(), checker, referee, facts).await.code(Code::Cluster)?;
        let file = admin_file(&state);
        write_private(&file, admissions.new_admin(reachable(&handle))?.to_text()?.as_bytes())?;
        let metrics = handle.serve_metrics().await.unwrap_or_else(|error| {
            // Whoever asked for this address expressly wants to know; a second coordinator on one machine still serves.
            tracing::warn!(%error, "serving without metrics");
            None
        });
        let metrics = metrics.map(|bound| format!("http://{bound}/metrics"));
        out.json(&serde_json::json!({
            "address": handle.address(), "cluster": admissions.cluster(), "admin": file, "metrics": metrics,
        }));
        out.field("address", handle.address());
        if let Some(metrics) = &metrics {
            out.field("metrics", metrics);
        }
        out.field("nodes join by", "a token: obelysk token create");
        out.field("clients prove by", format_args!("obelysk prove --coordinator {} …", handle.address()));
        let failed = tokio::select! {
            () = obelysk_node::worker::stop_signal() => None,
            reason = handle.failed() => Some(reason),
        };
        handle.shutdown().await;
        failed.map_or(Ok(()), |reason| Err(anyhow!(reason)).code(Code::Cluster))
    })
}

/// Where an administrator on this machine reaches the coordinator, and then where others do.
fn reachable(handle: &Handle) -> Vec<String> {
    let local = handle.local_address();
    let here = match (local.ip().is_unspecified(), local.is_ipv4()) {
        (false, _) => local.to_string(),
        (true, true) => format!("127.0.0.1:{}", local.port()),
        (true, false) => format!("[::1]:{}", local.port()),
    };
    let mut all = vec![here];
    all.extend(handle.addresses().iter().filter(|a| **a != local.to_string()).cloned());
    all
}

/// Reads a settings file.
pub fn settings<T: serde::de::DeserializeOwned>(path: &std::path::Path) -> Result<T, Failure> {
    let wrong = |e: &dyn std::fmt::Display| Failure::input(format!("settings file {}: {e}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong(&e))?;
    toml::from_str(&text).map_err(|e| wrong(&e))
}
