//! `obelysk coordinator serve`.

use super::args::ServeArgs;
use super::cluster::runtime;
use super::exit::{Code, Coded as _, Failure};
use super::home::Home;
use super::output::Out;
use obelysk_coordinator::{Coordinator, CoordinatorConfig, ProofChecker};
use obelysk_node::engine::Engine;
use obelysk_node::{NodeBackend, NodeSuite, ProverEngine};
use std::sync::Arc;

/// Serves until SIGINT or SIGTERM.
pub fn run(out: &Out, home: &Home, args: ServeArgs) -> Result<(), Failure> {
    let mut config: CoordinatorConfig = match &args.config {
        Some(path) => settings(path)?,
        None => CoordinatorConfig::default(),
    };
    config.listen = args.listen.unwrap_or(config.listen);
    config.advertise = args.advertise.unwrap_or(config.advertise);
    let models = home.open_all(&args.model)?;
    let registered = models.iter().map(|m| m.registered.clone());
    let checker = Arc::new(ProofChecker::<NodeSuite, _>::new(NodeBackend::default(), registered));
    // Where the weights are, this process settles disputes between nodes itself.
    let weights: Vec<_> = models.into_iter().filter(|m| m.path.join("descriptor.bin").is_file()).collect();
    let referee: Option<Arc<dyn Engine>> =
        (!weights.is_empty()).then(|| Arc::new(ProverEngine::<NodeSuite, _>::new(NodeBackend::default(), weights)) as _);
    runtime()?.block_on(async {
        let handle = Coordinator::start(config, checker, referee).await.code(Code::Cluster)?;
        out.json(&serde_json::json!({ "address": handle.address() }));
        out.field("address", handle.address());
        out.field("nodes join by", format_args!("obelysk node join {}", handle.address()));
        out.field("clients prove by", format_args!("obelysk prove --coordinator {} …", handle.address()));
        obelysk_node::worker::stop_signal().await;
        handle.shutdown().await;
        Ok(())
    })
}

/// Reads a settings file.
pub fn settings<T: serde::de::DeserializeOwned>(path: &std::path::Path) -> Result<T, Failure> {
    let wrong = |e: &dyn std::fmt::Display| Failure::input(format!("settings file {}: {e}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong(&e))?;
    toml::from_str(&text).map_err(|e| wrong(&e))
}
