//! A coordinator on machine 1, nodes on the machines after it, and a client beside the coordinator; all of them are the real program.

use crate::lab::{Lab, Machine};
use obelysk_model::toy::{Shape, model_of};
use obelysk_node::{NodeBackend, NodeSuite};
use obelysk_protocol::verifier::registered::SecurityParams;
use obelysk_shard::registration::register;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Where the coordinator runs, and the client.
pub const COORDINATOR: Machine = Machine(1);
/// Longer than any scenario takes on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(240);
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_obelysk");
pub const IDS: &str = "3,1,4,1,5,9,2,6";
/// Short times, so that a fault is noticed within a test; a node is lost after `idle_timeout_ms` and `away_grace_ms`.
pub const SETTINGS: &str = "lease_ms = 5000\naway_grace_ms = 1500\nidle_timeout_ms = 2000\nretry_pause_ms = 50\n";
/// Enough segments for every node to have several.
const LAYERS: usize = 8;
const SHAPE: Shape =
    Shape { vocab: 10, positions: 8, heads: 3, head_dim: 4, ffn: 20, layers: LAYERS, tile_logs: (2, 2), row_log: 6 };

/// A process that ends with the scenario.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Sends a signal, for example `-KILL`.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().expect("kill runs").success());
    }

    /// Whether it still runs.
    pub fn lives(&mut self) -> bool {
        self.child.try_wait().expect("waits").is_none()
    }

    /// What it has written.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).expect("a log")).into_owned()
    }

    /// Waits until it has written all of these on one line.
    #[track_caller]
    pub fn wait_for(&mut self, words: &[&str]) {
        let started = Instant::now();
        while !self.log().lines().any(|line| words.iter().all(|word| line.contains(word))) {
            assert!(started.elapsed() < PATIENCE && self.lives(), "never wrote {words:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running cluster.
pub struct Fleet {
    // Processes end before the machines and folders they run on.
    pub nodes: Vec<Process>,
    pub coordinator: Process,
    address: String,
    pub lab: Lab,
    folder: TempDir,
}

/// The machine of a node, counted from 0.
pub const fn machine(node: usize) -> Machine {
    Machine(node as u32 + 2)
}

impl Fleet {
    /// A coordinator and nodes, all connected; `None`, said aloud, where there can be no lab.
    #[track_caller]
    pub fn start(nodes: usize) -> Option<Self> {
        let lab = Lab::open(nodes as u32 + 1)?;
        let folder = prepare(SETTINGS);
        let host = Lab::address(COORDINATOR);
        let listen = format!("{host}:7450");
        let serve = ["coordinator", "serve", "--config", "coordinator.toml", "--json", "--listen", &listen, "--advertise", &host];
        let mut coordinator = spawn_at(&lab, COORDINATOR, &folder, "coordinator", &serve, None);
        coordinator.wait_for(&["\"address\""]);
        let line = coordinator.log().lines().find(|line| line.contains("\"address\"")).expect("a line").to_owned();
        let shown: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        let address = shown["address"].as_str().expect("an address").to_owned();
        let mut fleet = Self { nodes: Vec::new(), coordinator, address, lab, folder };
        let token = fleet.token(nodes);
        for node in 0..nodes {
            let name = format!("node-{node}");
            let args = ["node", "join", "--threads", "1", "--name", &name];
            fleet.nodes.push(spawn_at(&fleet.lab, machine(node), &fleet.folder, &name, &args, Some(&token)));
            fleet.coordinator.wait_for(&["joined", &name]);
        }
        Some(fleet)
    }

    fn token(&self, uses: usize) -> String {
        let made = self.on_coordinator(&["token", "create", "--json", "--uses", &uses.to_string()]).output().expect("runs");
        let made: serde_json::Value = serde_json::from_slice(&made.stdout).expect("JSON");
        made["token"].as_str().expect("a token").to_owned()
    }

    fn on_coordinator(&self, args: &[&str]) -> Command {
        let mut command = self.lab.command(COORDINATOR, PROGRAM);
        command.current_dir(self.folder.path()).args(["--home", "home"]).args(args).stdin(Stdio::null());
        command
    }

    /// The bytes of a proof made without any cluster.
    #[track_caller]
    pub fn alone(&self) -> Vec<u8> {
        let out = self.on_coordinator(&["prove", "--model", "toy", "--ids", IDS, "--out", "alone.obk"]).output().expect("runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        std::fs::read(self.folder.path().join("alone.obk")).expect("a proof")
    }

    /// Submits the same to the cluster and goes on; the result is read by [`Fleet::finished`].
    pub fn submit(&self) -> Child {
        let args = ["prove", "--model", "toy", "--ids", IDS, "--out", "cluster.obk", "--coordinator", &self.address];
        self.on_coordinator(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts")
    }

    /// Waits for a submitted job and gives its proof.
    #[track_caller]
    pub fn finished(&self, client: Child) -> Vec<u8> {
        let Output { status, stderr, .. } = client.wait_with_output().expect("ends");
        let log = self.coordinator.log();
        assert!(status.success(), "{}\ncoordinator:\n{log}", String::from_utf8_lossy(&stderr));
        std::fs::read(self.folder.path().join("cluster.obk")).expect("a proof")
    }

    /// That the fault came while there was something to disturb.
    #[track_caller]
    pub fn still_at_work(client: &mut Child) {
        assert!(client.try_wait().expect("waits").is_none(), "the job ended before the fault: give it more segments");
    }

    /// Submits, and waits until one more result of a kind was accepted.
    #[track_caller]
    pub fn submit_and_reach(&self, kind: &str) -> Child {
        let before = self.count(&["\"accepted\"", kind]);
        let client = self.submit();
        self.wait_for_count(before + 1, &["\"accepted\"", kind]);
        client
    }

    /// Waits until the coordinator's log has so many lines with all of these words.
    #[track_caller]
    pub fn wait_for_count(&self, wanted: usize, words: &[&str]) {
        let started = Instant::now();
        while self.count(words) < wanted {
            assert!(started.elapsed() < PATIENCE, "fewer than {wanted} lines with {words:?}:\n{}", self.coordinator.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// How often the coordinator's log has a line with all of these words.
    pub fn count(&self, words: &[&str]) -> usize {
        self.coordinator.log().lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }
}

/// A folder with a registered model and settings.
pub fn prepare(settings: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().join("home/models/toy");
    let model = model_of(5, SHAPE);
    model.save(&place, None).expect("saved");
    let registered =
        register::<NodeSuite, _>(&NodeBackend::default(), &model, SecurityParams::standard(2), [7; 32], &place, &|_| ());
    std::fs::write(place.join("registered.obr"), registered.expect("registers").write()).expect("written");
    std::fs::write(folder.path().join("coordinator.toml"), settings).expect("written");
    folder
}

/// Starts the program on a machine, with its output in a log.
pub fn spawn_at(lab: &Lab, machine: Machine, folder: &TempDir, name: &str, args: &[&str], token: Option<&str>) -> Process {
    let log = folder.path().join(format!("{name}.log"));
    let file = File::create(&log).expect("a log");
    let mut command = lab.command(machine, PROGRAM);
    command.current_dir(folder.path()).args(["--home", "home"]).args(args).env("OBELYSK_LOG", "info").stdin(Stdio::null());
    if let Some(token) = token {
        command.env("OBELYSK_TOKEN", token);
    }
    let child = command.stdout(file.try_clone().expect("the same log")).stderr(file).spawn().expect("starts");
    Process { child, log }
}
