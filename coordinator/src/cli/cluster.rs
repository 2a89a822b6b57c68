//! A cluster on this machine for one job: a coordinator in this process, nodes as child processes, QUIC on loopback.
//!
//! Children hold a pipe from this process as standard input and end when it closes, however this process ends.

use super::exit::{Code, Coded as _, Failure};
use super::home::Home;
use super::output::Out;
use anyhow::anyhow;
use indicatif::ProgressBar;
use obelysk_coordinator::{Admissions, Coordinator, Handle, JobResult, LocalConfig, ProofChecker, submit_remote_at};
use obelysk_node::job_bytes::JobSpec;
use obelysk_node::{CoordinatorAddress, ModelFolder, NodeBackend, NodeSuite, Token};
use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// A node that only has to start and say hello takes far less.
const JOIN_PATIENCE: Duration = Duration::from_secs(60);
/// How long nodes may take to leave after the job.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);
/// Whole segments of long texts take minutes on a small machine, and report no steps in between.
const LEASE_MS: u64 = 30 * 60 * 1000;
/// Nodes of one machine recover at once or not at all.
const RETRY_PAUSE_MS: u64 = 50;
/// Time for a closed connection to be told to the other side.
const HANG_UP: Duration = Duration::from_millis(300);
/// Kinds of work per segment.
const KINDS: usize = 4;

/// A tokio runtime for one command.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().code(Code::Internal)
}

/// Proves on `nodes` child processes.
pub fn prove(out: &Out, home: &Home, model: &ModelFolder, spec: &JobSpec, nodes: u32) -> Result<JobResult, Failure> {
    runtime()?.block_on(async {
        let mut config = LocalConfig { nodes, ..LocalConfig::default() };
        config.coordinator.lease_ms = LEASE_MS;
        config.coordinator.retry_pause_ms = RETRY_PAUSE_MS;
        let checker = ProofChecker::<NodeSuite, _>::new(NodeBackend::default(), [model.registered.clone()]);
        let handle = Coordinator::start(config.coordinator.clone(), Arc::new(Admissions::in_memory()?), Arc::new(checker), None)
            .await
            .code(Code::Cluster)?;
        let outcome = on_children(out, home, model, spec, (&handle, &config)).await;
        let (result, children) = match outcome {
            Ok((result, children)) => (Ok(result), children),
            Err(failure) => (Err(failure), Vec::new()),
        };
        handle.shutdown().await;
        for mut child in children {
            // Whoever stays longer is killed when dropped.
            let _ = tokio::time::timeout(LEAVE_PATIENCE, child.wait()).await;
        }
        result
    })
}

async fn on_children(
    out: &Out,
    home: &Home,
    model: &ModelFolder,
    spec: &JobSpec,
    (handle, config): (&Handle, &LocalConfig),
) -> Result<(JobResult, Vec<Child>), Failure> {
    let spinner = out.spinner(format!("starting {} nodes", config.nodes));
    let token = handle.invite(JOIN_PATIENCE * 2, config.nodes).code(Code::Cluster)?;
    let mut children = (1..=config.nodes).map(|i| spawn(home, model, &token, config, i)).collect::<Result<Vec<_>, _>>()?;
    let joined = wait_for(handle, &mut children).await;
    spinner.finish_and_clear();
    joined?;
    let mut job = handle.submit(spec.encode(), model.id).await?;
    let mut bar = JobBar::new(out, job.segments() as usize);
    while let Some(event) = job.next().await {
        let node = event.node.unwrap_or_default();
        bar.event(event.phase, (event.done, event.total), &format!("{node} {}", event.text), !event.text.is_empty());
    }
    bar.0.finish_and_clear();
    let result = job.result().await.code(Code::Cluster)?;
    Ok((result, children))
}

fn spawn(home: &Home, model: &ModelFolder, token: &Token, config: &LocalConfig, i: u32) -> Result<Child, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = u32::try_from(cores).unwrap_or(u32::MAX).div_ceil(config.nodes.max(1)).max(1);
    let threads = if config.threads_per_node == 0 { share } else { config.threads_per_node };
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--home").arg(home.root()).args(["node", "join", "--tied"]);
    // Not an argument: every user sees those.
    command.env(super::secret::TOKEN, token.to_line().as_str());
    command.args(["--name", &format!("local-{i}"), "--threads", &threads.to_string()]);
    command.arg("--model").arg(&model.path);
    if std::env::var_os(super::LOG).is_none() {
        command.env(super::LOG, "error");
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true);
    command.spawn().map_err(|e| anyhow!("cannot start a node process: {e}; check the process limits")).code(Code::Cluster)
}

async fn wait_for(handle: &Handle, children: &mut [Child]) -> Result<(), Failure> {
    let (started, pause) = (Instant::now(), Duration::from_millis(50));
    loop {
        if handle.wait_for_nodes(children.len(), pause).await.is_ok() {
            return Ok(());
        }
        for (i, child) in children.iter_mut().enumerate() {
            if let Some(status) = child.try_wait()? {
                return Err(anyhow!("node {} ended before it joined ({status}); its message is above", i + 1))
                    .code(Code::Cluster);
            }
        }
        if started.elapsed() > JOIN_PATIENCE {
            return handle.wait_for_nodes(children.len(), pause).await.code(Code::Cluster);
        }
    }
}

/// Submits to a coordinator elsewhere.
pub fn submit(out: &Out, address: &str, spec: &JobSpec, (segments, priority): (usize, u8)) -> Result<JobResult, Failure> {
    let address: CoordinatorAddress = address.parse()?;
    runtime()?.block_on(async {
        let mut bar = JobBar::new(out, segments);
        let on_event = |event: &obelysk_protocol::wire::Event| {
            bar.event(&event.phase, (event.done, event.total), &event.text, !event.text.is_empty());
        };
        let bytes = spec.encode();
        let result = tokio::select! {
            result = submit_remote_at(&address, "obelysk prove", &bytes, (spec.model, priority), on_event) => Some(result),
            () = obelysk_node::worker::stop_signal() => None,
        };
        bar.0.finish_and_clear();
        match result {
            Some(result) => result.code(Code::Cluster),
            None => {
                // The connection was hung up, which cancels the job; without this nobody would hear.
                tokio::time::sleep(HANG_UP).await;
                Err(anyhow!("interrupted; the coordinator gives the job up")).code(Code::Cluster)
            }
        }
    })
}

/// Progress of a job over all kinds of work.
struct JobBar(ProgressBar, BTreeMap<String, u32>);

impl JobBar {
    fn new(out: &Out, segments: usize) -> Self {
        Self(out.bar(segments * KINDS, "forward"), BTreeMap::new())
    }

    fn event(&mut self, phase: &str, (done, total): (u32, u32), text: &str, show: bool) {
        // Challenge and stitching are single steps beside the counted work.
        if total > 1 {
            self.1.insert(phase.to_owned(), done);
        }
        self.0.set_message(phase.to_owned());
        self.0.set_position(self.1.values().map(|&n| u64::from(n)).sum());
        if show {
            self.0.suspend(|| eprintln!("{}", text.trim()));
        }
    }
}
