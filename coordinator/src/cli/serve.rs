//! `obelysk coordinator serve`.

use super::admin::{Desk, admin_file, read_admin, unexpected};
use super::args::{AdminArgs, CoordinatorJoinArgs, ServeArgs};
use super::cluster::runtime;
use super::exit::{Code, Coded as _, Failure};
use super::home::Home;
use super::output::Out;
use anyhow::anyhow;
use obelysk_coordinator::consensus::{Consensus as _, Role};
use obelysk_coordinator::identity::FileStorage;
use obelysk_coordinator::replica::{self, Place};
use obelysk_coordinator::{
    Admissions, BlobError, Blobs, Coordinator, CoordinatorConfig, Facts, Handle, ProofChecker, Replica, ReplicaError,
};
use obelysk_node::engine::Engine;
use obelysk_node::identity::{unix_now, write_private};
use obelysk_node::{NodeBackend, NodeSuite, ProverEngine, calibration};
use obelysk_protocol::wire::{Message, PeerAdd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// An administrator's file that ends within this is made anew.
const ADMIN_ENDS_S: u64 = 30 * 86_400;
/// How long a new coordinator waits to know who leads before it says that it has no administrator's file.
const DECIDED: Duration = Duration::from_secs(10);

/// Serves until SIGINT or SIGTERM.
pub fn run(out: &Out, home: &Home, args: ServeArgs) -> Result<(), Failure> {
    let (config, state) = configured(home, &args)?;
    // Held to the end: one process per folder.
    let files = FileStorage::open(&state)?;
    runtime()?.block_on(async {
        let part = match config.place()? {
            None if replica::is_one(&state) => return Err(needs_peer_listen(&state)),
            None => {
                let part = Part::alone(&files, &state, opened(&config).await?)?;
                part.claim().await?;
                part
            }
            Some(place) => {
                let blobs = opened(&config).await?;
                if !replica::is_one(&state) {
                    // What older releases left is taken over first; and the place is the cluster's before it is one of several, who only
                    // go on where it is.
                    Part::alone(&files, &state, blobs.clone())?.claim().await?;
                }
                Part::among_others(Replica::open(&state, &place, &blobs)?)
            }
        };
        serve(out, home, (config, state, args.model), part).await
    })
}

/// Becomes one of several coordinators, and serves until SIGINT or SIGTERM.
pub fn join(out: &Out, home: &Home, args: CoordinatorJoinArgs) -> Result<(), Failure> {
    let CoordinatorJoinArgs { admin, serve: args } = args;
    let (config, state) = configured(home, &args)?;
    // Before anybody waits for this coordinator.
    drop(home.open_all(&args.model)?);
    let _files = FileStorage::open(&state)?;
    let place = config.place()?.ok_or_else(|| needs_peer_listen(&state))?;
    runtime()?.block_on(async {
        let blobs = opened(&config).await?;
        let member = replica::is_one(&state).then(|| Replica::open(&state, &place, &blobs));
        let replica = match member {
            Some(Ok(replica)) => {
                out.note("this folder is a coordinator's already; it goes on");
                replica
            }
            Some(Err(error)) if !matches!(error, ReplicaError::NotJoined(_)) => return Err(error.into()),
            _ => added(out, home, (&admin, &state, &blobs), &place).await?,
        };
        self::serve(out, home, (config, state, args.model), Part::among_others(replica)).await
    })
}

/// Asks the leader to take this machine in.
async fn added(
    out: &Out,
    home: &Home,
    (admin, state, blobs): (&AdminArgs, &Path, &Blobs),
    place: &Place,
) -> Result<Replica, Failure> {
    if state.join("ledger").exists() {
        let text =
            "holds a coordinator that is alone, with a cluster of its own; choose another folder with --state, or remove it";
        return Err(Failure::input(format!("{} {text}", state.display())));
    }
    let desk = Desk::open(home, admin).await?;
    // Before anybody counts on this one: with another store it would lead with nothing.
    blobs.claim(&desk.credential().cluster.to_string(), false).await.map_err(unusable)?;
    let (csr, peer, service) = (replica::request(state)?, place.peer.clone(), place.service.clone());
    let answer = desk.order(Message::PeerAdd(PeerAdd { csr, peer, service })).await?;
    let Message::PeerAdded(added) = answer else { return Err(unexpected(&answer)) };
    let mut own = desk.credential().duplicate()?;
    let replica = Replica::join((state, blobs), place, &own, added)?;
    // Orders can be given from this machine too, and still when the one that was asked is gone.
    own.addresses.insert(0, place.service.clone());
    write_private(&admin_file(state), own.to_text()?.as_bytes())?;
    desk.close();
    out.note("asked to join; waiting for the cluster's log");
    Ok(replica)
}

/// How this coordinator keeps its facts.
struct Part {
    facts: Facts,
    replica: Option<Replica>,
}

impl Part {
    fn alone(files: &FileStorage, state: &Path, blobs: Blobs) -> Result<Self, Failure> {
        let facts = Facts::open_with(state, blobs)?;
        let imported = facts.storage().import(files)?;
        // Also after a crash between the two: nothing reads them any more.
        files.set_aside()?;
        if imported {
            let text = "authority and registry are in the ledger now; the files *.moved may be removed";
            tracing::info!(folder = %state.display(), text);
        }
        Ok(Self { facts, replica: None })
    }

    /// Has the store of blobs be this cluster's, which begins here.
    async fn claim(&self) -> Result<(), Failure> {
        let admissions = Admissions::open(Arc::new(self.facts.storage()))?;
        match &self.facts.blobs {
            Some(blobs) => blobs.claim(&admissions.cluster().to_string(), true).await.map_err(unusable),
            None => Ok(()),
        }
    }

    fn among_others(replica: Replica) -> Self {
        Self { facts: replica.facts(), replica: Some(replica) }
    }
}

fn needs_peer_listen(state: &Path) -> Failure {
    let text = "is, or is to be, that of one of several coordinators: pass --peer-listen ADDRESS, or set `peer_listen`";
    Failure::input(format!("the folder {} {text}", state.display()))
}

/// The store of blobs that the settings name. Who has to correct them hears so by the exit code.
async fn opened(config: &CoordinatorConfig) -> Result<Blobs, Failure> {
    config.open_store().await.map_err(unusable)
}

fn unusable(error: BlobError) -> Failure {
    let code = if error.is_setting() { Code::Input } else { Code::Cluster };
    Failure { code, error: error.into() }
}

/// Settings from file and arguments, and the folder.
fn configured(home: &Home, args: &ServeArgs) -> Result<(CoordinatorConfig, PathBuf), Failure> {
    let mut config: CoordinatorConfig = match &args.config {
        Some(path) => settings(path)?,
        None => CoordinatorConfig::default(),
    };
    config.listen = args.listen.unwrap_or(config.listen);
    config.advertise = args.advertise.clone().unwrap_or(config.advertise);
    config.peer_listen = args.peer_listen.map_or(config.peer_listen, |listen| listen.to_string());
    let state = args.state.clone().unwrap_or_else(|| home.root().join("coordinator"));
    match args.metrics_listen.as_deref() {
        Some("none") => config.metrics_listen.clear(),
        Some(listen) => listen.clone_into(&mut config.metrics_listen),
        None => {}
    }
    if config.job_logs.as_os_str().is_empty() {
        config.job_logs = state.join("jobs");
    }
    config.arriving = state.join("parts");
    config.store = args.store.clone().unwrap_or(config.store);
    if config.store.is_empty() {
        let folder = state.join("blobs");
        let text = folder.to_str().ok_or_else(|| Failure::input(format!("{} is not text; set `store`", folder.display())))?;
        config.store = text.to_owned();
    }
    Ok((config, state))
}

async fn serve(
    out: &Out,
    home: &Home,
    (config, state, names): (CoordinatorConfig, PathBuf, Vec<String>),
    Part { facts, replica }: Part,
) -> Result<(), Failure> {
    let models = home.open_all(&names)?;
    if let Some(replica) = &replica {
        let known = replica.authority_known();
        tokio::select! {
            known = known => known.code(Code::Cluster)?,
            () = obelysk_node::worker::stop_signal() => return Ok(()),
        }
    }
    let admissions = Arc::new(Admissions::open(Arc::new(facts.storage()))?);
    if let Some(blobs) = &facts.blobs {
        blobs.claim(&admissions.cluster().to_string(), replica.is_none()).await.map_err(unusable)?;
    }
    if let Some(replica) = &replica {
        replica.keep_certified(&state, admissions.clone())?;
    }
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
    let handle = Coordinator::start_with(config, admissions.clone(), checker, referee, facts).await.code(Code::Cluster)?;
    let file = admin_file(&state);
    match &replica {
        None => write_private(&file, admissions.new_admin(reachable(&handle))?.to_text()?.as_bytes())?,
        Some(replica) => administrator(out, replica, &handle, file.clone()).await?,
    }
    let metrics = handle.serve_metrics().await.unwrap_or_else(|error| {
        // Whoever asked for this address expressly wants to know; a second coordinator on one machine still serves.
        tracing::warn!(%error, "serving without metrics");
        None
    });
    let metrics = metrics.map(|bound| format!("http://{bound}/metrics"));
    let id = replica.as_ref().map(|replica| format!("{:016x}", replica.raft().me().id()));
    out.json(&serde_json::json!({
        "address": handle.address(), "cluster": admissions.cluster(), "admin": file, "metrics": metrics, "coordinator": id,
    }));
    out.field("address", handle.address());
    if let Some(id) = &id {
        out.field("coordinator", format_args!("{id}, one of several: obelysk coordinator members"));
    }
    if let Some(metrics) = &metrics {
        out.field("metrics", metrics);
    }
    out.field("nodes join by", "a token: obelysk token create");
    out.field("clients prove by", format_args!("obelysk prove --coordinator {} …", handle.address()));
    let failed = tokio::select! {
        () = obelysk_node::worker::stop_signal() => None,
        reason = handle.failed() => Some(reason),
    };
    if let Some(replica) = replica.as_ref().filter(|_| failed.is_none()) {
        replica.hand_over().await;
    }
    handle.shutdown().await;
    failed.map_or(Ok(()), |reason| Err(anyhow!(reason)).code(Code::Cluster))
}

/// Keeps the administrator's file in this folder, with where all coordinators are; makes one where this coordinator leads and has none.
async fn administrator(out: &Out, replica: &Replica, handle: &Handle, file: PathBuf) -> Result<(), Failure> {
    let (mut role, admissions, here) = (replica.raft().role(), handle.admissions().clone(), reachable(handle));
    let decided = |role: &Role| !matches!(role, Role::Follower { leader: None });
    let _ = tokio::time::timeout(DECIDED, role.wait_for(decided)).await;
    if !renewed(&role, &admissions, &here, &file).await? {
        out.note("this folder has no administrator's file; copy another coordinator's to give orders from here");
    }
    let mut members = replica.raft().electorate();
    members.mark_changed();
    tokio::spawn(async move {
        loop {
            let going_on = tokio::select! {
                changed = members.changed() => changed,
                changed = role.changed() => changed,
            };
            if going_on.is_err() {
                return;
            }
            let all: Vec<String> = members.borrow().all().map(|m| m.service.clone()).collect();
            let kept = renewed(&role, &admissions, &here, &file).await.and_then(|_| readdress(&file, &here, all));
            if let Err(failure) = kept {
                tracing::warn!(error = %failure.error, "the administrator's file is not as it should be");
            }
        }
    });
    Ok(())
}

/// Makes an administrator's file where there is none, or one about to end, if this coordinator leads; says whether there is one.
async fn renewed(
    role: &tokio::sync::watch::Receiver<Role>,
    admissions: &Arc<Admissions>,
    here: &[String],
    file: &Path,
) -> Result<bool, Failure> {
    let known = read_admin(file)?;
    let fresh = known.as_ref().is_some_and(|admin| admin.expires_unix_s > unix_now() + ADMIN_ENDS_S);
    if fresh || !matches!(*role.borrow(), Role::Leader { .. }) {
        return Ok(known.is_some());
    }
    let (admissions, here) = (admissions.clone(), here.to_vec());
    let made = tokio::task::spawn_blocking(move || admissions.new_admin(here)).await.code(Code::Internal)?;
    match made {
        Ok(made) => write_private(file, made.to_text()?.as_bytes()).map(|()| true).map_err(Failure::from),
        Err(error) => {
            // Leadership may have been lost on the way: then it is made the next time.
            tracing::warn!(%error, "no administrator's file was made");
            Ok(known.is_some())
        }
    }
}

fn readdress(file: &Path, here: &[String], all: Vec<String>) -> Result<(), Failure> {
    let Some(mut credential) = read_admin(file)? else { return Ok(()) };
    let mut places = here.to_vec();
    places.extend(all.into_iter().filter(|place| !here.contains(place)));
    places.truncate(obelysk_protocol::wire::MAX_ADDRESSES);
    if places != credential.addresses {
        credential.addresses = places;
        write_private(file, credential.to_text()?.as_bytes())?;
    }
    Ok(())
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
