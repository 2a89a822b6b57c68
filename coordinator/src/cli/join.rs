//! `obelysk node join`.

use super::args::JoinArgs;
use super::cluster::runtime;
use super::device;
use super::exit::{Code, Coded as _, Failure};
use super::home::Home;
use super::output::{Out, hex};
use super::secret;
use super::serve::settings;
use obelysk_node::error::NodeError;
use obelysk_node::models::Shelf;
use obelysk_node::worker::told;
use obelysk_node::{DeviceEngine, ExitReason, IdentityStore, ModelFolder, Node, NodeConfig, NodeSuite, calibration};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Serves until the coordinator stops or a signal asks to; work in progress is finished and delivered first.
pub fn run(out: &Out, home: &Home, args: JoinArgs) -> Result<(), Failure> {
    let mut config: NodeConfig = match &args.config {
        Some(path) => settings(path)?,
        None => NodeConfig::new("node"),
    };
    config.name = args.name.unwrap_or(config.name);
    config.threads = args.threads.unwrap_or(config.threads);
    config.state = args.state.unwrap_or(config.state);
    config.token_file = args.token_file.unwrap_or(config.token_file);
    config.fetch_models_bytes = args.fetch_models.unwrap_or(config.fetch_models_bytes);
    config.give_up_after_s = args.give_up_after.unwrap_or(config.give_up_after_s);
    config.metrics_listen = args.metrics_listen.unwrap_or(config.metrics_listen);
    config.exit_when_idle_s = args.exit_when_idle.unwrap_or(config.exit_when_idle_s);
    config.preempt_hook = args.preempt_hook.unwrap_or(config.preempt_hook);
    config.preempt_grace_s = args.preempt_grace.unwrap_or(config.preempt_grace_s);
    config.device = args.device.device.unwrap_or(config.device);
    config.gpu_only |= args.device.gpu_only;
    config.validate()?;
    let file = (!config.token_file.as_os_str().is_empty()).then_some(config.token_file.as_path());
    // A member's file may be gone: it was for the first time only.
    let file = file.filter(|path| args.config.is_none() || path.exists());
    let token = secret::token(args.token.as_deref(), file)?;
    let store =
        if args.tied { IdentityStore::Memory } else { IdentityStore::folder(&state_folder(home, &config.state, &config.name))? };
    // A node that may fetch can begin with nothing.
    let models = if config.fetch_models_bytes > 0 && args.model.is_empty() && home.names().is_empty() && !args.tied {
        std::fs::create_dir_all(home.models())?;
        Vec::new()
    } else {
        home.open_all(&args.model)?
    };
    rayon::ThreadPoolBuilder::new().num_threads(config.cores() as usize).build_global().code(Code::Internal)?;
    if args.tied {
        end_with_parent();
    }
    let card = device::open(home, config.device()?)?;
    out.field("node", &config.name);
    device::tell(out, card.as_ref());
    models.iter().for_each(|m| out.field("offers", format_args!("{} {}", m.registered.descriptor.name(), hex(&m.id))));
    // Nodes of one command work with what is here, and are gone after it: they are not calibrated.
    let calibration = if args.tied { None } else { trial_model(out, home) };
    let weight_bytes = usize::try_from(config.weight_bytes).unwrap_or(usize::MAX);
    let models = models.into_iter().chain(calibration).collect();
    let engine = Arc::new(DeviceEngine::<NodeSuite>::new(card, config.gpu_only, models, weight_bytes));
    // Who names the models to offer wants no others.
    let fetches = config.fetch_models_bytes > 0 && args.model.is_empty() && !args.tied;
    let shelf = HomeShelf { folder: home.models(), limit: config.fetch_models_bytes, engine: engine.clone() };
    let shelf = fetches.then(|| Arc::new(shelf) as Arc<dyn Shelf>);
    let stop = told(&config);
    let serve = Node::serve(config, (store, token), (engine, shelf), stop);
    let exit = runtime()?.block_on(serve).map_err(|error| {
        let code = if matches!(error, NodeError::Address { .. } | NodeError::Config { .. } | NodeError::Identity(_)) {
            Code::Input
        } else {
            Code::Cluster
        };
        Failure { code, error: error.into() }
    })?;
    let reason = match exit {
        ExitReason::Drained => "asked to stop".to_owned(),
        ExitReason::Preempted => "the machine is about to be taken away".to_owned(),
        ExitReason::Idle => "there was nothing to do".to_owned(),
        ExitReason::Dismissed(reason) => reason,
        ExitReason::Lost(reason) => return Err(Failure { code: Code::Cluster, error: anyhow::anyhow!(reason) }),
    };
    out.json(&serde_json::json!({ "ended": reason }));
    out.field("ended", reason);
    Ok(())
}

/// The model of calibration; without it this node works all the same, and its speed is found out by and by.
fn trial_model(out: &Out, home: &Home) -> Option<ModelFolder> {
    match calibration::folder(&home.calibration()) {
        Ok(folder) => Some(folder),
        Err(error) => {
            out.note(&format!("this node is not calibrated: {error}"));
            None
        }
    }
}

/// Models fetched lie beside those registered here.
struct HomeShelf {
    folder: PathBuf,
    limit: u64,
    engine: Arc<DeviceEngine<NodeSuite>>,
}

impl Shelf for HomeShelf {
    fn folder(&self) -> &Path {
        &self.folder
    }

    fn limit(&self) -> u64 {
        self.limit
    }

    fn adopt(&self, model: ModelFolder) {
        tracing::info!(model = hex(&model.id), "a fetched model is offered now");
        self.engine.adopt(model);
    }
}

/// Where the identity of a node lies: as configured, else by its name below the home folder.
pub fn state_folder(home: &Home, configured: &Path, name: &str) -> PathBuf {
    if !configured.as_os_str().is_empty() {
        return configured.to_owned();
    }
    // A name is any text; a folder's name is not.
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' };
    home.root().join("nodes").join(name.chars().map(plain).collect::<String>())
}

/// A parent that was killed closes the pipe like one that is done.
fn end_with_parent() {
    std::thread::spawn(|| {
        let mut sink = [0u8; 64];
        while std::io::stdin().read(&mut sink).is_ok_and(|n| n > 0) {}
        std::process::exit(0);
    });
}
