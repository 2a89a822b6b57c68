//! Several coordinators on machines of their own, nodes on the machines after them, and the client beside the last node.

use crate::fleet::{PATIENCE, Process, SETTINGS, prepare, spawn_at};
use crate::lab::{Lab, Machine};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A running cluster.
pub struct Council {
    // Processes end before the machines and folders they run on.
    pub nodes: Vec<Process>,
    pub coordinators: Vec<Process>,
    starts: usize,
    client: Machine,
    /// Pieces accepted by anybody when the last job was submitted.
    before: usize,
    pub lab: Lab,
    folder: TempDir,
}

const fn place(coordinator: usize) -> Machine {
    Machine(coordinator as u32 + 1)
}

fn service(coordinator: usize) -> String {
    format!("{}:7450", Lab::address(place(coordinator)))
}

impl Council {
    /// All of them, connected; `None`, said aloud, where there can be no lab.
    #[track_caller]
    pub fn start(coordinators: usize, nodes: usize) -> Option<Self> {
        let machines = (coordinators + nodes) as u32;
        let lab = Lab::open(machines)?;
        let folder = prepare(SETTINGS);
        let (nothing, client) = (Vec::new(), Machine(machines));
        let mut council = Self { nodes: nothing, coordinators: Vec::new(), starts: 0, client, before: 0, lab, folder };
        for coordinator in 0..coordinators {
            let admin = ["--admin", "c0/admin.toml"];
            let (how, more): (_, &[&str]) = if coordinator == 0 { ("serve", &[]) } else { ("join", &admin) };
            let process = council.serve(coordinator, how, more);
            council.coordinators.push(process);
        }
        council.until("all vote", |council| {
            council.members().iter().filter(|m| m["votes"] == true && m["live"] == true).count() == coordinators
        });
        let token = council.ask(&["token", "create", "--uses", &nodes.to_string()]);
        let token = token["token"].as_str().expect("a token").to_owned();
        for node in 0..nodes {
            let name = format!("node-{node}");
            let args = ["node", "join", "--threads", "1", "--name", &name];
            let machine = Machine((coordinators + node) as u32 + 1);
            let mut process = spawn_at(&council.lab, machine, &council.folder, &name, &args, Some(&token));
            process.wait_for(&["joined"]);
            council.nodes.push(process);
        }
        Some(council)
    }

    fn serve(&mut self, coordinator: usize, how: &str, more: &[&str]) -> Process {
        self.starts += 1;
        let (host, state) = (Lab::address(place(coordinator)), format!("c{coordinator}"));
        let (listen, peers) = (service(coordinator), format!("{host}:7452"));
        let name = format!("{state}.{}", self.starts);
        let common = ["--config", "coordinator.toml", "--json", "--state", &state, "--listen", &listen, "--peer-listen", &peers];
        let args = [&["coordinator", how], &common[..], more].concat();
        let mut process = spawn_at(&self.lab, place(coordinator), &self.folder, &name, &args, None);
        process.wait_for(&["\"address\""]);
        process
    }

    /// After it lost power.
    pub fn start_again(&mut self, coordinator: usize) {
        self.coordinators[coordinator] = self.serve(coordinator, "serve", &[]);
    }

    pub fn cable(&self, coordinator: usize, plugged: bool) {
        self.lab.cable(place(coordinator), plugged);
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.lab.command(self.client, crate::fleet::PROGRAM);
        command.current_dir(self.folder.path()).args(["--home", "home"]).args(args).stdin(Stdio::null());
        command
    }

    fn ask(&self, args: &[&str]) -> serde_json::Value {
        // Every coordinator's file names all of them.
        let admin = ["--admin", "c1/admin.toml", "--json"];
        let admin = if self.coordinators.len() > 1 { admin } else { ["--admin", "c0/admin.toml", "--json"] };
        let out = self.command(&[args, &admin].concat()).output().expect("runs");
        serde_json::from_slice(&out.stdout).unwrap_or_default()
    }

    fn members(&self) -> Vec<serde_json::Value> {
        self.ask(&["coordinator", "members"])["members"].as_array().cloned().unwrap_or_default()
    }

    #[track_caller]
    fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !holds(self) {
            let logs: String = self.coordinators.iter().map(Process::log).collect();
            assert!(started.elapsed() < PATIENCE, "never: {what}\n{logs}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn leads(&self) -> Option<usize> {
        let members = self.members();
        let leader = members.iter().find(|m| m["leads"] == true)?["service"].as_str()?;
        (0..self.coordinators.len()).find(|c| service(*c) == leader)
    }

    /// Which one leads.
    #[track_caller]
    pub fn leader(&self) -> usize {
        self.until("somebody leads", |council| council.leads().is_some());
        self.leads().expect("a moment ago")
    }

    /// Waits until one of the others leads; how long that took, by its own log, which takes no dialling.
    #[track_caller]
    pub fn another_leads(&self, former: usize) -> Duration {
        let terms = |c: usize| self.coordinators[c].log().matches("leading term=").count();
        let before: Vec<usize> = (0..self.coordinators.len()).map(terms).collect();
        let started = Instant::now();
        let risen = |(c, before): (usize, &usize)| c != former && terms(c) > *before;
        self.until("another leads", |council| {
            before.iter().enumerate().any(risen) || council.leads().is_some_and(|c| c != former)
        });
        started.elapsed()
    }

    /// The bytes of a proof made without any cluster.
    #[track_caller]
    pub fn alone(&self) -> Vec<u8> {
        let out =
            self.command(&["prove", "--model", "toy", "--ids", crate::fleet::IDS, "--out", "alone.obk"]).output().expect("runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        std::fs::read(self.folder.path().join("alone.obk")).expect("a proof")
    }

    /// Submits the same at the first coordinator's address, whoever leads.
    pub fn submit(&mut self) -> Child {
        self.before = self.all_accepted();
        let log = self.coordinators.iter().find_map(|c| c.log().lines().find(|l| l.contains("\"address\"")).map(str::to_owned));
        let shown: serde_json::Value = serde_json::from_str(&log.expect("a line")).expect("JSON");
        let address = shown["address"].as_str().expect("an address").to_owned();
        let args = ["prove", "--model", "toy", "--ids", crate::fleet::IDS, "--out", "several.obk", "--coordinator", &address];
        self.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts")
    }

    /// Waits for a submitted job and gives its proof.
    #[track_caller]
    pub fn finished(&self, client: Child) -> Vec<u8> {
        let Output { status, stderr, .. } = client.wait_with_output().expect("ends");
        let logs: String = self.coordinators.iter().map(Process::log).collect();
        assert!(status.success(), "{}\ncoordinators:\n{logs}", String::from_utf8_lossy(&stderr));
        std::fs::read(self.folder.path().join("several.obk")).expect("a proof")
    }

    /// Job and item of everything whose acceptance this process has told.
    pub fn accepted_by(&self, coordinator: usize) -> Vec<String> {
        let field =
            |line: &str, name: &str| line.split(name).nth(1).and_then(|rest| rest.split([' ', ':']).next().map(str::to_owned));
        let log = self.coordinators[coordinator].log();
        let told = log.lines().filter(|line| line.contains("event=\"accepted\""));
        told.filter_map(|line| Some(format!("{} {}", field(line, " job=")?, field(line, " work=")?))).collect()
    }

    fn all_accepted(&self) -> usize {
        (0..self.coordinators.len()).map(|c| self.accepted_by(c).len()).sum()
    }

    /// Waits until so many results of the last job are accepted.
    #[track_caller]
    pub fn accepted(&self, wanted: usize) {
        self.until("results are accepted", |council| council.all_accepted() >= council.before + wanted);
    }
}
