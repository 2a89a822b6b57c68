//! A cluster on this machine: a coordinator in this process, nodes as child processes, QUIC on loopback.
//!
//! Children hold a pipe from this process as standard input and end when it closes, however this process ends.

use super::exit::{Code, Coded as _, Failure};
use super::home::Home;
use super::output::Out;
use anyhow::anyhow;
use indicatif::ProgressBar;
use obelysk_coordinator::{Admissions, Coordinator, Handle, JobResult, LocalConfig, ProofChecker, submit_remote_at};
use obelysk_node::job_bytes::JobSpec;
use obelysk_node::{CoordinatorAddress, ModelFolder, NodeBackend, NodeSuite, Token, usage};
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
    let cluster = LocalCluster::start(out, home, model, nodes)?;
    let result = cluster.prove(out, spec);
    cluster.stop();
    result
}

/// A coordinator here and its nodes, which have joined.
pub struct LocalCluster {
    runtime: tokio::runtime::Runtime,
    handle: Handle,
    children: Vec<Child>,
}

impl LocalCluster {
    /// Starts `nodes` child processes that serve one model, and waits for them.
    pub fn start(out: &Out, home: &Home, model: &ModelFolder, nodes: u32) -> Result<Self, Failure> {
        let mut config = LocalConfig { nodes, ..LocalConfig::default() };
        config.coordinator.lease_ms = LEASE_MS;
        config.coordinator.retry_pause_ms = RETRY_PAUSE_MS;
        let runtime = runtime()?;
        let checker = ProofChecker::<NodeSuite, _>::new(NodeBackend::default(), [model.registered.clone()]);
        let admissions = Arc::new(Admissions::in_memory()?);
        let handle = runtime.block_on(Coordinator::start(config.coordinator.clone(), admissions, Arc::new(checker), None));
        let mut cluster = Self { runtime, handle: handle.code(Code::Cluster)?, children: Vec::new() };
        let spinner = out.spinner(format!("starting {nodes} nodes"));
        let joined = cluster.invite(home, model, &config);
        spinner.finish_and_clear();
        match joined {
            Ok(()) => Ok(cluster),
            Err(failure) => {
                cluster.stop();
                Err(failure)
            }
        }
    }

    fn invite(&mut self, home: &Home, model: &ModelFolder, config: &LocalConfig) -> Result<(), Failure> {
        // A child belongs to the runtime it was started in.
        let _inside = self.runtime.enter();
        let token = self.handle.invite(JOIN_PATIENCE * 2, config.nodes).code(Code::Cluster)?;
        for i in 1..=config.nodes {
            self.children.push(spawn(home, model, &token, config, i)?);
        }
        self.runtime.block_on(wait_for(&self.handle, &mut self.children))
    }

    /// Proves one input.
    pub fn prove(&self, out: &Out, spec: &JobSpec) -> Result<JobResult, Failure> {
        self.runtime.block_on(async {
            let mut job = self.handle.submit(spec.encode(), spec.model).await?;
            let mut bar = JobBar::new(out, job.segments() as usize);
            while let Some(event) = job.next().await {
                let node = event.node.unwrap_or_default();
                bar.event(event.phase, (event.done, event.total), &format!("{node} {}", event.text), !event.text.is_empty());
            }
            bar.0.finish_and_clear();
            job.result().await.code(Code::Cluster)
        })
    }

    /// Processor time of the nodes so far; of those that have ended, nothing.
    pub fn nodes_cpu_time(&self) -> Duration {
        self.children.iter().filter_map(Child::id).map(usage::cpu_time_of).sum()
    }

    /// Dismisses the nodes and waits for them.
    pub fn stop(mut self) {
        self.runtime.block_on(async {
            self.handle.shutdown().await;
            for child in &mut self.children {
                // Whoever stays longer is killed when dropped.
                let _ = tokio::time::timeout(LEAVE_PATIENCE, child.wait()).await;
            }
        });
    }
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
