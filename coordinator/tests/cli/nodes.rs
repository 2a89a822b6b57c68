//! Commands that start processes: nodes of one proof, a coordinator with nodes, nodes that cannot work.

use crate::toy::{Place, Ran, contents};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A child that is killed when the test ends, however it ends.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    pub const fn new(child: Child) -> Self {
        Self(child)
    }

    /// Whether it still runs.
    pub fn lives(&mut self) -> bool {
        self.0.try_wait().expect("waits").is_none()
    }

    /// SIGKILL, now.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
    }

    /// Sends a signal, as `kill` names it.
    pub fn signal(&self, signal: &str) {
        let id = self.0.id().to_string();
        assert!(std::process::Command::new("kill").args([signal, &id]).status().expect("kill runs").success());
    }

    #[track_caller]
    pub fn exit_code(&mut self) -> Option<i32> {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(60) {
            if let Some(status) = self.0.try_wait().expect("waits") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the process does not end");
    }
}

/// A coordinator and the address it printed.
pub fn coordinator(place: &Place) -> (Running, String) {
    let mut child = place
        .command(&["coordinator", "serve", "--listen", "127.0.0.1:0", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    (Running(child), value["address"].as_str().expect("an address").to_owned())
}

/// A token from the coordinator that runs in `at`.
pub fn token(at: &Place) -> String {
    let made = at.run(&["token", "create", "--json"]).expect(0).json();
    made["token"].as_str().expect("a token").to_owned()
}

/// A node that takes its token from the environment.
pub fn node(place: &Place, token: &str, extra: &[&str]) -> Running {
    let args = [&["node", "join", "--threads", "1"], extra].concat();
    Running(place.command(&args).env("OBELYSK_TOKEN", token).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts"))
}

fn terminate(child: &Running) {
    child.signal("-TERM");
}

#[test]
fn two_node_processes_give_the_bytes_of_one_process() {
    let place = Place::with_toy();
    let alone = place.prove(&["--ids", "3,1,4,1,5"], "alone.obk");
    let args = ["prove", "--model", "toy", "--ids", "3,1,4,1,5", "--nodes", "2", "--out", "two.obk", "--json"];
    let made = place.run(&args).expect(0).json();
    assert!(place.read("two.obk") == alone, "same bytes");
    assert!(made["nodes"].as_u64().unwrap() >= 1 && made["core_seconds"].as_f64().unwrap() > 0.0, "{made}");
    let names: Vec<&str> = made["phases"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["forward", "commit", "prove", "open", "finish"]);
}

#[test]
fn a_coordinator_serves_nodes_and_clients_until_told_to_stop() {
    let place = Place::with_toy();
    let alone = place.prove(&["--ids", "1,2,3"], "alone.obk");
    let (mut coordinator, address) = coordinator(&place);
    let (mut first, second) = (node(&place, &token(&place), &[]), node(&place, &token(&place), &["--name", "second"]));
    place.prove(&["--ids", "1,2,3", "--coordinator", &address], "remote.obk");
    assert!(place.read("remote.obk") == alone, "same bytes");
    let refused: Ran = place.run(&["prove", "--model", "toy", "--ids", "1", "--coordinator", "nonsense", "--out", "x"]);
    assert!(refused.expect(2).stderr.contains("fingerprint"));
    terminate(&first);
    assert_eq!(first.exit_code(), Some(0), "drained");
    terminate(&coordinator);
    assert_eq!(coordinator.exit_code(), Some(0));
    // A coordinator that stops will be back: its nodes stay, until they are told otherwise themselves.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let mut second = second;
    terminate(&second);
    assert_eq!(second.exit_code(), Some(0), "drained");
}

#[test]
fn a_job_for_a_model_that_the_coordinator_does_not_know_is_refused() {
    let place = Place::with_toy();
    let (_coordinator, address) = coordinator(&place);
    let elsewhere = Place::empty();
    elsewhere.toy("toy", 6);
    let ran = elsewhere.run(&["prove", "--model", "toy", "--ids", "1", "--coordinator", &address, "--out", "p.obk"]).expect(3);
    assert!(ran.stderr.contains("not registered at this coordinator"), "{}", ran.stderr);
}

#[test]
fn a_node_with_damaged_weights_costs_no_proof() {
    let place = Place::with_toy();
    let alone = place.prove(&["--ids", "2,7"], "alone.obk");
    let damaged = Place::with_toy();
    let mut bytes = damaged.read("home/models/toy/segment-0002.bin");
    bytes[90] ^= 4;
    damaged.write("home/models/toy/segment-0002.bin", &bytes);
    let (_coordinator, address) = coordinator(&place);
    let _bad = node(&damaged, &token(&place), &["--name", "bad"]);
    let _good = node(&place, &token(&place), &["--name", "good"]);
    place.prove(&["--ids", "2,7", "--coordinator", &address], "remote.obk");
    assert!(place.read("remote.obk") == alone, "same bytes");
    // Alone, the damaged copy gives a clear error.
    let ran = damaged.run(&["prove", "--model", "toy", "--ids", "1", "--nodes", "1", "--out", "p.obk"]).expect(3);
    assert!(ran.stderr.contains("segment-0002.bin"), "{}", ran.stderr);
}

/// The whole way of a model: pushed, fetched by a node that has none, proved with, pushed again, withdrawn.
#[test]
fn a_node_without_the_model_fetches_it_and_works() {
    let place = Place::with_toy();
    let alone = place.prove(&["--ids", "3,1,4"], "alone.obk");
    let (mut coordinator, address) = coordinator(&place);
    let pushed = place.run(&["model", "push", "toy", "--json"]).expect(0).json();
    let id = pushed["done"].as_str().unwrap().split(' ').nth(4).unwrap().to_owned();
    let bare = Place::empty();
    let small = Place::empty();
    let _small = node(&small, &token(&place), &["--name", "small", "--fetch-models", "1000"]);
    let _bare = node(&bare, &token(&place), &["--name", "bare"]);
    place.prove(&["--ids", "3,1,4", "--coordinator", &address], "remote.obk");
    assert!(place.read("remote.obk") == alone, "same bytes");
    let fetched = bare.path(&format!("home/models/id-{}", &id[..32]));
    assert!(contents(&fetched) == contents(&place.path("home/models/toy")), "the same files");
    assert_eq!(std::fs::read_dir(small.path("home/models")).unwrap().count(), 0, "no room for it there");
    assert_eq!(std::fs::read_dir(bare.path("home/models")).unwrap().count(), 1, "nothing is left of the fetching");

    place.run(&["model", "push", "toy"]).expect(0);
    // What was published is so after a restart.
    terminate(&coordinator);
    assert_eq!(coordinator.exit_code(), Some(0));
    let (_again, _) = self::coordinator(&place);
    place.run(&["model", "withdraw", &id[..8]]).expect(0);
    let gone = place.run(&["model", "withdraw", &id[..8]]).expect(2);
    assert!(gone.stderr.contains("no published model"), "{}", gone.stderr);
    let unknown = place.run(&["model", "push", "nothing"]).expect(2);
    assert!(unknown.stderr.contains("no model `nothing`"), "{}", unknown.stderr);
}

#[test]
fn a_node_says_why_it_cannot_join() {
    let place = Place::with_toy();
    let bad = place.run(&["node", "join", "nonsense"]).expect(2);
    assert!(bad.stderr.contains("obelysk token create"), "{}", bad.stderr);
    let bare = place.run(&["node", "join"]).expect(2);
    assert!(bare.stderr.contains("belongs to no cluster"), "{}", bare.stderr);
    let (mut coordinator, _) = coordinator(&place);
    let line = token(&place);
    let cut = place.run(&["node", "join", &line[..line.len() - 3]]).expect(2);
    assert!(cut.stderr.contains("cut off or mistyped"), "{}", cut.stderr);
    coordinator.kill();
    let ran = place.run(&["node", "join", &line, "--name", "late", "--give-up-after", "1"]).expect(3);
    assert!(ran.stderr.contains("no coordinator for"), "{}", ran.stderr);
}
