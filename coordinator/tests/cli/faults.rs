//! Faults of network, disk and power with real processes and real proofs: the bytes are those of an undisturbed run.

use crate::nodes::{Running, node};
use crate::toy::{Place, contents};
use obelysk_coordinator::line::{Faults, Line};
use std::fs::File;
use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Nothing here takes this long, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const IDS: &str = "3,1,4,1,5,9,2,6";
/// Silence is noticed sooner than by default.
const SETTINGS: &[u8] = b"idle_timeout_ms = 2000\naway_grace_ms = 5000\nretry_pause_ms = 50\n";

/// A coordinator whose port stays when its process goes.
struct Site {
    listen: SocketAddr,
    starts: usize,
}

impl Site {
    fn new(place: &Place) -> Self {
        place.write("fast.toml", SETTINGS);
        let listen = UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).expect("a free port");
        Self { listen, starts: 0 }
    }

    /// Starts it; the address that it prints.
    #[track_caller]
    fn start(&mut self, place: &Place) -> (Running, String) {
        self.starts += 1;
        let listen = self.listen.to_string();
        let args = ["coordinator", "serve", "--config", "fast.toml", "--listen", &listen, "--metrics-listen", "none", "--json"];
        let (out, log) = (format!("out.{}", self.starts), self.log());
        let mut command = place.command(&args);
        command.env("OBELYSK_LOG", "info");
        command.stdout(File::create(place.path(&out)).expect("a file")).stderr(File::create(place.path(&log)).expect("a file"));
        let mut child = Running::new(command.spawn().expect("starts"));
        until("it serves", || {
            assert!(child.lives(), "{}", text(place, &log));
            text(place, &out).contains("\"address\"")
        });
        let shown: serde_json::Value = serde_json::from_slice(&place.read(&out)).expect("JSON");
        (child, shown["address"].as_str().expect("an address").to_owned())
    }

    fn log(&self) -> String {
        format!("log.{}", self.starts)
    }

    /// How many results this process has accepted.
    fn accepted(&self, place: &Place) -> usize {
        text(place, &self.log()).lines().filter(|line| line.contains("event=\"accepted\"")).count()
    }
}

fn text(place: &Place, name: &str) -> String {
    String::from_utf8_lossy(&place.read(name)).into_owned()
}

#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A token for so many machines that dial there.
fn token(place: &Place, uses: &str, address: &str) -> String {
    let made = place.run(&["token", "create", "--json", "--uses", uses, "--address", address]).expect(0).json();
    made["token"].as_str().expect("a token").to_owned()
}

fn submit(place: &Place, address: &str) -> Running {
    let mut client = place.command(&["prove", "--model", "toy", "--ids", IDS, "--out", "cluster.obk", "--coordinator", address]);
    Running::new(client.stdout(Stdio::null()).spawn().expect("starts"))
}

/// Nodes and client are behind a line on which every fault that packets can have happens to many of them.
#[test]
fn packets_lost_copied_late_and_out_of_order_change_no_byte() {
    let place = Place::empty();
    place.layers("toy", 5, 4);
    let alone = place.prove(&["--ids", IDS], "alone.obk");
    let mut site = Site::new(&place);
    let (_coordinator, address) = site.start(&place);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    let (delay, jitter) = (Duration::from_millis(5), Duration::from_millis(8));
    let faults = Faults { seed: 6, delay, jitter, lost: 300, copied: 300, rate: 0 };
    let line = runtime.block_on(async { Line::start(site.listen, faults).expect("starts") });
    let behind = line.address().to_string();
    let token = token(&place, "2", &behind);
    let mut nodes = [node(&place, &token, &["--name", "a"]), node(&place, &token, &["--name", "b"])];
    let pin = address.split_once('#').expect("a pin").1;
    let mut client = submit(&place, &format!("{behind}#{pin}"));
    assert_eq!(client.exit_code(), Some(0));
    assert!(place.read("cluster.obk") == alone, "same bytes");
    for way in line.tally() {
        assert!(way.came > 100 && way.lost > 0 && way.copied > 0 && way.overtook > 10, "{way:?}");
    }
    assert!(nodes.iter_mut().all(Running::lives));
    assert!(!text(&place, &site.log()).contains("event=\"quarantined\""), "a bad line is no lie");
}

/// Coordinator and nodes end at once without warning, in the middle of a job, and are started again; the client has waited.
#[test]
fn power_lost_everywhere_changes_no_byte() {
    let place = Place::empty();
    place.layers("toy", 5, 8);
    let alone = place.prove(&["--ids", IDS], "alone.obk");
    let mut site = Site::new(&place);
    let (mut coordinator, address) = site.start(&place);
    let token = token(&place, "2", &site.listen.to_string());
    let start = || ["a", "b"].map(|name| node(&place, &token, &["--name", name]));
    let mut nodes = start();
    let mut client = submit(&place, &address);
    until("some results are accepted", || site.accepted(&place) >= 10);
    nodes.iter_mut().for_each(Running::kill);
    coordinator.kill();
    drop((coordinator, nodes));
    assert!(client.lives(), "there is something left to do");
    let before = site.accepted(&place);
    let (_coordinator, again) = site.start(&place);
    assert_eq!(again, address, "the same cluster");
    let mut nodes = start();
    assert_eq!(client.exit_code(), Some(0));
    assert!(place.read("cluster.obk") == alone, "same bytes");
    // Ten segments, four kinds of work. A few results may have been agreed and not told.
    let all = before + site.accepted(&place);
    assert!((36..=40).contains(&all), "{all} accepted, {before} of them before: something was done twice");
    assert!(nodes.iter_mut().all(Running::lives), "members need no new token");
}

/// Whether mounts of one's own can be made here.
fn can_mount() -> bool {
    let tried = Command::new("unshare").args(["-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).stderr(Stdio::null()).status();
    let can = tried.is_ok_and(|status| status.success());
    if !can {
        eprintln!("SKIPPED: a disk of its own needs root and util-linux, and one of them is missing here");
    }
    can
}

/// A node fetches a model to a disk that is too small: it says so, stays, leaves nothing half there; others work. With room it fetches it.
#[test]
fn a_node_whose_disk_is_full_while_it_fetches_says_so_and_stays() {
    if !can_mount() {
        return;
    }
    let place = Place::with_toy();
    let alone = place.prove(&["--ids", "3,1,4"], "alone.obk");
    let mut site = Site::new(&place);
    let (_coordinator, address) = site.start(&place);
    place.run(&["model", "push", "toy"]).expect(0);
    let token = token(&place, "2", &site.listen.to_string());
    let small = Place::empty();
    let models = small.path("home/models");
    std::fs::create_dir_all(&models).expect("a folder");
    let script = "mount -t tmpfs -o size=16k tmpfs \"$0\" && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", script])
        .arg(&models)
        .arg(env!("CARGO_BIN_EXE_obelysk"))
        .arg("--home")
        .arg(small.path("home"));
    command.args(["node", "join", "--name", "small", "--threads", "1"]).env("OBELYSK_TOKEN", &token).env("OBELYSK_LOG", "info");
    let log = File::create(small.path("log")).expect("a file");
    let mut full = Running::new(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("starts"));
    until("it says why", || text(&small, "log").contains("No space left"));
    let _other = node(&place, &token, &["--name", "other"]);
    place.prove(&["--ids", "3,1,4", "--coordinator", &address], "cluster.obk");
    assert!(place.read("cluster.obk") == alone, "same bytes");
    assert!(full.lives(), "{}", text(&small, "log"));
    full.signal("-TERM");
    assert_eq!(full.exit_code(), Some(0), "drained");
    // The small disk is gone with it; the folder beneath has room.
    let _roomy = node(&small, &token, &["--name", "small"]);
    let fetched =
        || std::fs::read_dir(&models).expect("there").flatten().find(|e| e.file_name().to_string_lossy().starts_with("id-"));
    until("it is fetched", || fetched().is_some());
    assert!(contents(&fetched().expect("there").path()) == contents(&place.path("home/models/toy")), "the same files");
}
