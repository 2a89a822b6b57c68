//! What operators see of a real cluster: status, jobs, logs, top, metrics, while it works and after a node is killed.

use crate::nodes::{node, token};
use crate::toy::{Place, has_keys};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

struct Serving {
    child: Child,
    address: String,
    metrics: String,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A coordinator with metrics on a port of its own, that gives work up soon.
fn serve(place: &Place) -> Serving {
    place.write("c.toml", b"lease_ms = 3000\naway_grace_ms = 300\nmetrics_listen = \"127.0.0.1:0\"\n");
    let args = ["coordinator", "serve", "--config", "c.toml", "--listen", "127.0.0.1:0", "--json"];
    let mut child = place.command(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    let value: Value = serde_json::from_str(&line).expect("JSON");
    let text = |key: &str| value[key].as_str().unwrap_or_else(|| panic!("{key} in {value}")).to_owned();
    Serving { child, address: text("address"), metrics: text("metrics") }
}

fn scrape(url: &str) -> String {
    let place = url.trim_start_matches("http://").trim_end_matches("/metrics");
    let mut stream = TcpStream::connect(place).expect("connects");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("writes");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("reads");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    text
}

/// The value of a series.
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)).unwrap_or_else(|| panic!("{series} is not in\n{text}"));
    line.trim().parse().expect("a number")
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn operators_see_a_job_from_submission_to_proof_and_who_was_lost() {
    let place = Place::with_toy();
    let serving = serve(&place);
    let json = |args: &[&str]| place.run(&[args, &["--json"]].concat()).expect(0).json();
    assert_eq!(json(&["status"])["nodes"]["here"], 0);
    assert!(place.run(&["job", "list"]).expect(0).stdout.contains("no jobs yet"));
    let mut first = node(&place, &token(&place), &["--name", "first"]);
    wait_until("a node is here", || json(&["status"])["nodes"]["here"] == 1);
    // Frozen, so that what it is given cannot be done before it is killed.
    first.signal("-STOP");
    let prove = ["prove", "--model", "toy", "--ids", "3,1,4", "--coordinator", &serving.address, "--out", "p.obk"];
    let mut client = place.command(&prove).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    wait_until("its work is lost", || json(&["status"])["results"]["lost"].as_u64() > Some(0));
    first.kill();
    let _second = node(&place, &token(&place), &["--name", "second"]);
    assert_eq!(client.wait().expect("ends").code(), Some(0), "proved");
    let jobs = json(&["job", "list"]);
    let (job, count) = (&jobs[0], jobs.as_array().map(Vec::len));
    has_keys(
        job,
        &["id", "model", "segments", "state", "submitted_unix_s", "percent", "accepted", "core_seconds", "left_s", "proof"],
    );
    assert_eq!((count, &job["state"], &job["percent"]), (Some(1), &"done".into(), &100.into()));
    assert_eq!(job["proof_bytes"], place.read("p.obk").len());
    let id = job["id"].as_str().expect("an id");
    let segments = job["segments"].as_u64().expect("a number") as usize;
    wait_until("the log is on disk", || place.run(&["job", "logs", &id[..8]]).expect(0).stdout.contains("  done "));
    let lines = place.run(&["job", "logs", &id[..8], "--follow", "--json"]).expect(0).stdout;
    let events: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let named = |name: &str| events.iter().filter(|e| e["event"] == name).collect::<Vec<_>>();
    assert!(named("accepted").len() >= 4 * segments && named("submitted").len() == 1, "{lines}");
    assert!(named("lost").iter().any(|e| e["node"].as_str().is_some_and(|n| n.starts_with("first"))), "{lines}");
    assert_eq!(events.last().map(|e| &e["event"]), Some(&"done".into()));
    let shown = json(&["job", "show", &id[..8]]);
    assert_eq!(shown["pieces"].as_array().map(Vec::len), Some(4 * segments));
    let text = scrape(&serving.metrics);
    let accepted = |kind: &str| value(&text, &format!("obelysk_results_total{{kind=\"{kind}\",result=\"accepted\"}}"));
    for kind in ["forward", "commit", "prove", "open"] {
        assert!(accepted(kind) >= segments as f64, "{text}");
    }
    assert_eq!(value(&text, "obelysk_jobs_ended_total{outcome=\"done\"}"), 1.0);
    assert!(value(&text, "obelysk_network_bytes_total{direction=\"sent\"}") > 0.0 && text.trim_end().ends_with("# EOF"));
    assert!(!text.contains(id) && !text.contains("\"second\""), "no ids and no names");
    let top = place.run(&["top", "--count", "2"]).expect(0).stdout;
    assert!(top.contains("second") && top.contains("proved after"), "{top}");
    let looks = place.run(&["top", "--count", "1", "--json"]).expect(0).json();
    has_keys(&looks, &["status", "nodes", "jobs", "rates"]);
    assert!(place.run(&["job", "cancel", &id[..8]]).expect(3).stderr.contains("in progress"));
}

#[test]
fn a_job_is_given_up_and_says_so() {
    let place = Place::with_toy();
    let serving = serve(&place);
    let prove = ["prove", "--model", "toy", "--ids", "1", "--coordinator", &serving.address, "--out", "p.obk"];
    let client = place.command(&prove).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("starts");
    let list = || place.run(&["job", "list", "--json"]).expect(0).json();
    wait_until("the job is there", || list().as_array().is_some_and(|jobs| jobs.len() == 1));
    // Nobody is there: the job waits, and one node is wanted for it.
    wait_until("the job waits", || list()[0]["state"] == "waiting");
    wait_until("a node is wanted", || value(&scrape(&serving.metrics), "obelysk_desired_nodes{pool=\"cpu\"}") == 1.0);
    let id = list()[0]["id"].as_str().expect("an id").to_owned();
    let done = place.run(&["job", "cancel", &id, "--json"]).expect(0).json();
    assert!(done["done"].as_str().is_some_and(|text| text.contains("cancelled")), "{done}");
    let ended = client.wait_with_output().expect("ends");
    assert!(String::from_utf8_lossy(&ended.stderr).contains("cancelled"), "{ended:?}");
    wait_until("it is over", || list()[0]["state"] == "failed");
    let shown = place.run(&["job", "show", &id]).expect(0).stdout;
    assert!(shown.contains("cancelled"), "{shown}");
}

#[test]
fn logs_for_machines_are_json() {
    let place = Place::with_toy();
    let ran = place.command(&["--log-format", "json", "node", "join"]).env("OBELYSK_LOG", "trace").output().expect("runs");
    let text = String::from_utf8_lossy(&ran.stderr).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with('{')).collect();
    assert!(lines.iter().all(|line| serde_json::from_str::<Value>(line).is_ok_and(|v| v["level"].is_string())), "{text}");
}
