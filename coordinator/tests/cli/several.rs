//! Several coordinators as one, from the command line: they are formed, lose their leader in the middle of a proof, get it back, and let one
//! go; whoever is asked points to who leads.

use crate::nodes::{Running, node};
use crate::toy::Place;
use std::collections::BTreeSet;
use std::fs::File;
use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};

/// Nothing here takes this long, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const IDS: &str = "3,1,4,1,5,9,2,6";

/// One coordinator's place: its folder and ports stay when its process goes.
struct Site {
    state: String,
    listen: String,
    peers: String,
    starts: usize,
}

impl Site {
    fn new(name: &str) -> Self {
        let free = || UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).expect("a free port").to_string();
        Self { state: name.to_owned(), listen: free(), peers: free(), starts: 0 }
    }

    fn admin(&self) -> String {
        format!("{}/admin.toml", self.state)
    }

    /// Starts it, and waits until it says that it serves.
    #[track_caller]
    fn start(&mut self, place: &Place, how: &[&str]) -> Running {
        self.starts += 1;
        let (out, log) = (self.file("out"), self.file("log"));
        // Silence is noticed sooner than by default.
        place.write("fast.toml", b"idle_timeout_ms = 2000\naway_grace_ms = 5000\n");
        let where_to = ["--state", &self.state, "--listen", &self.listen, "--peer-listen", &self.peers];
        let args = [&["coordinator"], how, &where_to, &["--config", "fast.toml", "--metrics-listen", "none", "--json"]].concat();
        let mut command = place.command(&args);
        command.env("OBELYSK_LOG", "info");
        command.stdout(File::create(place.path(&out)).expect("a file")).stderr(File::create(place.path(&log)).expect("a file"));
        let mut child = Running::new(command.spawn().expect("starts"));
        let shown = || String::from_utf8(place.read(&out)).expect("text");
        until("it serves", || {
            assert!(child.lives(), "{}", String::from_utf8_lossy(&place.read(&log)));
            shown().contains("\"address\"").then_some(())
        });
        child
    }

    fn file(&self, kind: &str) -> String {
        format!("{}.{}.{kind}", self.state, self.starts)
    }

    fn log(&self, place: &Place) -> String {
        String::from_utf8_lossy(&place.read(&self.file("log"))).into_owned()
    }

    /// As clients name it.
    fn address(&self, place: &Place) -> String {
        let shown: serde_json::Value = serde_json::from_slice(&place.read(&self.file("out"))).expect("JSON");
        shown["address"].as_str().expect("an address").to_owned()
    }

    fn id(&self, place: &Place) -> String {
        let shown: serde_json::Value = serde_json::from_slice(&place.read(&self.file("out"))).expect("JSON");
        shown["coordinator"].as_str().expect("an id").to_owned()
    }

    /// Work items whose acceptance this process has told.
    fn accepted(&self, place: &Place) -> Vec<String> {
        let log = self.log(place);
        let lines = log.lines().filter(|line| line.contains("event=\"accepted\""));
        lines.filter_map(|line| Some(line.split("work=").nth(1)?.split_whitespace().next()?.to_owned())).collect()
    }
}

#[track_caller]
fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if let Some(found) = found() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("not in time: {what}");
}

/// Members as one coordinator knows them: where each is, whether it leads, votes, lives.
fn members(place: &Place, admin: &str) -> Vec<(String, bool, bool, bool)> {
    let ran = place.run(&["coordinator", "members", "--json", "--admin", admin]);
    if ran.code != Some(0) {
        return Vec::new();
    }
    let shown = ran.json();
    let flag = |m: &serde_json::Value, key: &str| m[key].as_bool().expect("a flag");
    let of = |m: &serde_json::Value| {
        (m["service"].as_str().expect("a place").to_owned(), flag(m, "leads"), flag(m, "votes"), flag(m, "live"))
    };
    shown["members"].as_array().expect("a list").iter().map(of).collect()
}

/// Waits until so many vote, live, and one of them leads; where that one is.
#[track_caller]
fn formed(place: &Place, admin: &str, voters: usize) -> String {
    until("the coordinators are one", || {
        let members = members(place, admin);
        let whole = members.len() == voters && members.iter().all(|(_, _, votes, live)| *votes && *live);
        members.into_iter().find(|(_, leads, ..)| *leads && whole).map(|(service, ..)| service)
    })
}

/// Digests of the blobs in a coordinator's folder.
fn blobs(place: &Place, state: &str) -> BTreeSet<String> {
    let list = |path: &Path| std::fs::read_dir(path).expect("a folder").map(|entry| entry.expect("entry").path());
    let files = list(&place.path(&format!("{state}/blobs/blobs"))).flat_map(|folder| list(&folder).collect::<Vec<_>>());
    files.map(|file| file.file_name().expect("a name").to_string_lossy().into_owned()).collect()
}

#[test]
fn three_coordinators_lose_their_leader_in_a_proof_and_change_no_byte() {
    let place = Place::empty();
    place.layers("toy", 5, 8);
    let alone = place.prove(&["--ids", IDS], "alone.obk");
    let mut sites = [Site::new("c0"), Site::new("c1"), Site::new("c2")];
    let mut running: Vec<Running> = vec![sites[0].start(&place, &["serve"])];
    let token = |place: &Place, admin: &str| {
        let made = place.run(&["token", "create", "--json", "--uses", "2", "--admin", admin]).expect(0).json();
        made["token"].as_str().expect("a token").to_owned()
    };
    // Nodes from when it was alone learn of the others that come.
    let token = token(&place, &sites[0].admin());
    let _nodes = [node(&place, &token, &["--name", "a"]), node(&place, &token, &["--name", "b"])];
    // What was published before they came they have when they vote.
    place.run(&["model", "push", "toy", "--admin", &sites[0].admin()]).expect(0);
    let published = blobs(&place, "c0");
    assert!(published.len() > 3, "{published:?}");
    for site in &mut sites[1..] {
        running.push(site.start(&place, &["join", "--admin", "c0/admin.toml"]));
    }
    assert_eq!(formed(&place, &sites[1].admin(), 3), sites[0].listen, "the first still leads");
    for site in ["c1", "c2"] {
        assert!(blobs(&place, site).is_superset(&published), "{site} votes, and lacks what may be asked of it when it leads");
    }

    let address = sites[0].address(&place);
    let mut client = place.command(&["prove", "--model", "toy", "--ids", IDS, "--out", "several.obk", "--coordinator", &address]);
    let mut client = Running::new(client.spawn().expect("starts"));
    until("pieces are accepted", || (sites[0].accepted(&place).len() > 12).then_some(()));
    running[0].signal("-KILL");
    let died = Instant::now();
    let accepted = sites[0].accepted(&place);
    assert!(client.lives(), "there is something left to do");
    let leader = until("another leads", || {
        members(&place, &sites[1].admin()).into_iter().find(|(at, leads, ..)| *leads && *at != sites[0].listen)
    });
    println!("another leads {:.1} s after the kill, as a command sees it", died.elapsed().as_secs_f64());
    assert_eq!(client.exit_code(), Some(0));
    assert!(place.read("several.obk") == alone, "same bytes");
    let next = sites.iter().find(|site| site.listen == leader.0).expect("one of them");
    let again: Vec<String> = next.accepted(&place).into_iter().filter(|work| accepted.contains(work)).collect();
    assert!(again.is_empty(), "accepted before, and proved again: {again:?}");
    assert!(!next.accepted(&place).is_empty() && next.accepted(&place).len() + accepted.len() <= 4 * 10 + 8, "and the rest once");

    // It comes back, and whoever asks it is told who leads.
    running[0] = sites[0].start(&place, &["serve"]);
    let leads = formed(&place, &sites[0].admin(), 3);
    assert_eq!(leads, leader.0);
    place.prove(&["--ids", IDS, "--coordinator", &address], "told.obk");
    assert!(place.read("told.obk") == alone, "same bytes");
    let wanted = sites[0].id(&place);
    place.run(&["coordinator", "transfer", &wanted[..8], "--admin", &sites[1].admin()]).expect(0);
    until("it leads again", || (formed(&place, &sites[2].admin(), 3) == sites[0].listen).then_some(()));

    // One is taken out, and says so.
    let gone = sites[2].id(&place);
    place.run(&["coordinator", "remove", &gone, "--admin", &sites[0].admin()]).expect(0);
    assert_eq!(formed(&place, &sites[0].admin(), 2), sites[0].listen);
    running[1].signal("-TERM");
    assert_eq!(running[1].exit_code(), Some(0), "told to stop");
    let list = place.run(&["coordinator", "members", "--admin", &sites[0].admin()]).expect(0);
    assert!(list.stdout.lines().count() == 2, "{}", list.stdout);
}

#[test]
fn folders_of_one_kind_are_not_taken_for_the_other() {
    let place = Place::with_toy();
    let mut site = Site::new("one");
    let mut first = site.start(&place, &["serve"]);
    let solo = place.run(&["coordinator", "serve", "--state", "one", "--listen", "127.0.0.1:0"]).expect(2);
    assert!(solo.stderr.contains("in use") || solo.stderr.contains("another process"), "{}", solo.stderr);
    first.signal("-TERM");
    assert_eq!(first.exit_code(), Some(0));
    let solo = place.run(&["coordinator", "serve", "--state", "one", "--listen", "127.0.0.1:0"]).expect(2);
    assert!(solo.stderr.contains("--peer-listen"), "{}", solo.stderr);
    let mut first = site.start(&place, &["serve"]);
    // Another key for the same place would be another member.
    let (state, free) = ("two", UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).expect("free").to_string());
    let alone = ["coordinator", "join", "--state", state, "--admin", "one/admin.toml", "--listen", &free];
    let refused = place.run(&alone).expect(2);
    assert!(refused.stderr.contains("--peer-listen"), "{}", refused.stderr);
    let wrong = ["coordinator", "join", "--state", state, "--admin", "none.toml", "--listen", &free, "--peer-listen", &free];
    assert!(place.run(&wrong).expect(2).stderr.contains("no administrator's file"));
    first.signal("-TERM");
    assert_eq!(first.exit_code(), Some(0));
    // It asked to join, and never heard the answer: it must not begin a cluster of its own.
    std::fs::create_dir_all(place.path("three")).expect("made");
    place.write("three/peer.key", b"a key");
    let unfinished = place.run(&["coordinator", "serve", "--state", "three", "--listen", &free, "--peer-listen", &free]);
    assert!(unfinished.expect(2).stderr.contains("joining was not finished"));
    // Nor a coordinator whose addresses are others now: nobody would find it.
    let moved = place.run(&["coordinator", "serve", "--state", "one", "--listen", &free, "--peer-listen", &site.peers]);
    assert!(moved.expect(3).stderr.contains(&site.listen));
    // Its log is lost: it must not begin a second cluster under the same key.
    std::fs::remove_dir_all(place.path("one/raft")).expect("removed");
    let lost = place.run(&["coordinator", "serve", "--state", "one", "--listen", &site.listen, "--peer-listen", &site.peers]);
    assert!(lost.expect(2).stderr.contains("log is lost"));
    let join = ["coordinator", "join", "--state", "one", "--admin", "one/admin.toml", "--listen", &site.listen];
    let again = place.run(&[&join[..], &["--peer-listen", &site.peers]].concat());
    assert!(again.expect(2).stderr.contains("log is lost"), "nor come back with a log that forgot what it voted");
}
