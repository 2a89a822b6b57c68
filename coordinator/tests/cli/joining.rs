//! Tokens and members from the command line: secrets stay out of logs and process lists, orders do what they say.

use crate::nodes::token;
use crate::toy::{Place, Ran};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    #[track_caller]
    fn exit_code(&mut self) -> Option<i32> {
        until("the process ends", || self.0.try_wait().expect("waits").map(|status| status.code()))
    }

    fn arguments(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(format!("/proc/{}/cmdline", self.0.id())).expect("runs")).into_owned()
    }
}

#[track_caller]
fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(60) {
        if let Some(found) = found() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("not in time: {what}");
}

/// Starts with every log line that there is, into a file.
fn logged(place: &Place, args: &[&str], log: &str, token: Option<&str>) -> Running {
    let mut command = place.command(args);
    let file = File::create(place.path(log)).expect("log");
    command.env("OBELYSK_LOG", "trace").stderr(file).stdout(Stdio::piped());
    if let Some(token) = token {
        command.env("OBELYSK_TOKEN", token);
    }
    Running(command.spawn().expect("starts"))
}

fn coordinator(place: &Place) -> Running {
    let mut child = logged(place, &["coordinator", "serve", "--listen", "127.0.0.1:0", "--json"], "coordinator.log", None);
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    assert!(line.contains("address"), "{line}");
    child
}

/// The listed node of this name in this state.
fn listed(place: &Place, name: &str, state: &str) -> Option<String> {
    let nodes = place.run(&["node", "list", "--json"]).expect(0).json();
    let found = nodes.as_array().expect("a list").iter().find(|n| n["name"] == name && n["state"] == state);
    found.map(|n| n["id"].as_str().expect("an id").to_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The private halves on disk: where PKCS #8 of P-256 holds its 32 bytes.
fn private_keys(place: &Place) -> Vec<String> {
    let of_pkcs8 = |der: &str| der[36 * 2..68 * 2].to_owned();
    let mut keys = Vec::new();
    for file in ["home/coordinator/admin.toml", "home/nodes/file/identity.toml", "home/nodes/env/identity.toml"] {
        let text = String::from_utf8(place.read(file)).expect("text");
        let line = text.lines().find_map(|l| l.strip_prefix("key = ")).expect("a key").trim_matches('"').to_owned();
        keys.push(of_pkcs8(&line));
    }
    // The authority is a document in the log.
    let log = String::from_utf8_lossy(&place.read("home/coordinator/ledger/log")).into_owned();
    let list = log.split("\"key\":[").nth(1).and_then(|rest| rest.split(']').next()).expect("the authority's key");
    let der: Vec<u8> = list.split(',').map(|b| b.trim().parse().expect("byte")).collect();
    keys.push(of_pkcs8(&hex(&der)));
    keys
}

#[test]
fn a_whole_join_leaves_no_secret_in_logs_or_process_lists() {
    let place = Place::with_toy();
    let coordinator = coordinator(&place);
    let (by_file, by_env, by_pipe) = (token(&place), token(&place), token(&place));
    place.write("token", by_file.as_bytes());
    let path = place.path("token");
    let join = ["node", "join", "--threads", "1", "--name"];
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("set");
    let open: Ran = place.run(&[&join[..], &["file", "--token-file", "token"]].concat());
    assert!(open.expect(2).stderr.contains("chmod 600"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("set");
    let file = logged(&place, &[&join[..], &["file", "--token-file", "token"]].concat(), "file.log", None);
    let env = logged(&place, &[&join[..], &["env"]].concat(), "env.log", Some(&by_env));
    let mut piped = place.command(&[&join[..], &["pipe", "-"]].concat());
    piped.env("OBELYSK_LOG", "trace").stdin(Stdio::piped()).stdout(Stdio::null());
    let mut pipe = Running(piped.stderr(File::create(place.path("pipe.log")).expect("log")).spawn().expect("starts"));
    writeln!(pipe.0.stdin.take().expect("piped"), "{by_pipe}").expect("written");
    for name in ["file", "env", "pipe"] {
        until(name, || listed(&place, name, "here"));
    }
    let shown = [&coordinator, &file, &env, &pipe].map(Running::arguments).concat();
    // Where the seed stands in a token: bytes 65 to 97 of its base32.
    let mut secrets: Vec<String> = [by_file, by_env, by_pipe].map(|t| t[8 + 106..8 + 152].to_owned()).into();
    secrets.extend(private_keys(&place));
    let logs =
        ["coordinator.log", "file.log", "env.log", "pipe.log"].map(|log| String::from_utf8(place.read(log)).expect("text"));
    assert!(logs.iter().all(|log| log.len() > 200), "the logs are there to be searched");
    for secret in &secrets {
        let found = logs.iter().chain([&shown]).any(|text| text.to_ascii_lowercase().contains(&secret[..32]));
        assert!(!found, "a secret is in a log or a process list");
    }
    for file in ["coordinator/ledger/log", "coordinator/ledger/term", "coordinator/admin.toml", "nodes/env/identity.toml"] {
        let mode = std::fs::metadata(place.path("home").join(file)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    // The registry, in the same log, holds nothing that lets anybody in.
    let log = String::from_utf8_lossy(&place.read("home/coordinator/ledger/log")).into_owned();
    assert!(log.contains("tokens") && secrets.iter().all(|secret| !log.contains(secret.as_str())));
}

#[test]
fn orders_do_what_they_say() {
    let place = Place::with_toy();
    let _coordinator = coordinator(&place);
    let line = token(&place);
    let mut node = logged(&place, &["node", "join", "--threads", "1", "--name", "n"], "n.log", Some(&line));
    let id = until("it joins", || listed(&place, "n", "here"));
    let tokens = place.run(&["token", "list", "--json"]).expect(0).json();
    assert_eq!((&tokens[0]["state"], &tokens[0]["uses_left"]), (&"spent".into(), &0.into()));
    assert!(!tokens.to_string().contains(&line[8..40]));
    // A second process of that name finds the folder taken.
    let second = place.run(&["node", "join", "--name", "n"]).expect(2);
    assert!(second.stderr.contains("in use by another process"), "{}", second.stderr);
    let doctor = place.run(&["node", "doctor", "--name", "n", "--json"]);
    let checked = serde_json::from_str::<serde_json::Value>(&doctor.stdout).expect("JSON");
    let outcome = |name: &str| {
        let checks = checked["checks"].as_array().expect("checks");
        checks.iter().find(|c| c["name"].as_str().is_some_and(|n| n.starts_with(name))).map(|c| c["outcome"].clone())
    };
    for name in ["identity", "reach", "cluster", "clock", "release"] {
        assert_eq!(outcome(name), Some("passed".into()), "{checked}");
    }
    assert_eq!(outcome("in use"), Some("warned".into()), "the node runs: {checked}");
    assert_eq!(outcome("path"), Some("passed".into()), "{checked}");
    place.run(&["node", "drain", &id[..8]]).expect(0);
    assert_eq!(node.exit_code(), Some(0), "drained");
    // Back without a token, and then out.
    let mut back = logged(&place, &["node", "join", "--threads", "1", "--name", "n"], "back.log", None);
    assert_eq!(until("it is back", || listed(&place, "n", "here")), id);
    place.run(&["node", "evict", &id, "--reason", "sold"]).expect(0);
    assert_eq!(back.exit_code(), Some(3), "evicted");
    let again = place.run(&["node", "join", "--threads", "1", "--name", "n"]).expect(3);
    assert!(again.stderr.contains("sold"), "{}", again.stderr);
    assert!(listed(&place, "n", "evicted").is_some());
    let unknown = place.run(&["node", "evict", "ffff"]).expect(2);
    assert!(unknown.stderr.contains("obelysk node list"), "{}", unknown.stderr);
    let revoked = token(&place);
    let open = place.run(&["token", "list", "--json"]).expect(0).json();
    let open = open.as_array().expect("list").iter().find(|t| t["state"] == "open").expect("one")["id"].clone();
    place.run(&["token", "revoke", open.as_str().expect("an id")]).expect(0);
    let refused = place.run(&["node", "join", &revoked, "--threads", "1", "--name", "late"]).expect(3);
    assert!(refused.stderr.contains("was revoked"), "{}", refused.stderr);
}

#[test]
fn without_a_coordinator_orders_and_doctor_say_what_to_do() {
    let place = Place::with_toy();
    let ran = place.run(&["token", "create"]).expect(2);
    assert!(ran.stderr.contains("coordinator serve"), "{}", ran.stderr);
    let sick = place.run(&["node", "doctor", "--json"]);
    assert_eq!(sick.code, Some(1));
    assert!(sick.stdout.contains("obelysk token create"), "{}", sick.stdout);
    let nonsense = place.run(&["node", "doctor", "nonsense", "--json"]);
    assert!(nonsense.code == Some(1) && nonsense.stdout.contains("not a token"), "{}", nonsense.stdout);
}
