//! `obelysk node join`.

use super::args::JoinArgs;
use super::cluster::runtime;
use super::exit::{Code, Coded as _, Failure};
use super::home::Home;
use super::output::{Out, hex};
use super::serve::settings;
use obelysk_node::error::NodeError;
use obelysk_node::{ExitReason, Node, NodeBackend, NodeConfig, NodeSuite, ProverEngine};
use std::io::Read as _;
use std::sync::Arc;

/// Serves until the coordinator stops or a signal asks to; work in progress is finished and delivered first.
pub fn run(out: &Out, home: &Home, args: JoinArgs) -> Result<(), Failure> {
    let mut config: NodeConfig = match &args.config {
        Some(path) => settings(path)?,
        None => NodeConfig::new("", "node"),
    };
    config.coordinator = args.address.unwrap_or(config.coordinator);
    config.name = args.name.unwrap_or(config.name);
    config.threads = args.threads.unwrap_or(config.threads);
    config.give_up_after_s = args.give_up_after.unwrap_or(config.give_up_after_s);
    let models = home.open_all(&args.model)?;
    rayon::ThreadPoolBuilder::new().num_threads(config.cores() as usize).build_global().code(Code::Internal)?;
    if args.tied {
        end_with_parent();
    }
    out.field("node", &config.name);
    models.iter().for_each(|m| out.field("offers", format_args!("{} {}", m.registered.descriptor.name(), hex(&m.id))));
    let weight_bytes = usize::try_from(config.weight_bytes).unwrap_or(usize::MAX);
    let engine = ProverEngine::<NodeSuite, _>::new(NodeBackend::default(), models).with_weight_bytes(weight_bytes);
    let engine = Arc::new(engine);
    let exit = runtime()?.block_on(Node::run(config, engine)).map_err(|error| {
        let code =
            if matches!(error, NodeError::Address { .. } | NodeError::Config { .. }) { Code::Input } else { Code::Cluster };
        Failure { code, error: error.into() }
    })?;
    let reason = match exit {
        ExitReason::Drained => "asked to stop".to_owned(),
        ExitReason::Dismissed(reason) => reason,
    };
    out.json(&serde_json::json!({ "ended": reason }));
    out.field("ended", reason);
    Ok(())
}

/// A parent that was killed closes the pipe like one that is done.
fn end_with_parent() {
    std::thread::spawn(|| {
        let mut sink = [0u8; 64];
        while std::io::stdin().read(&mut sink).is_ok_and(|n| n > 0) {}
        std::process::exit(0);
    });
}
