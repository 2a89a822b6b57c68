//! The proof's bytes depend on the statement alone: not on nodes, threads, or a node that dies in the middle.

use crate::nodes::{coordinator, node, token};
use crate::toy::Place;
use std::time::Duration;

const IDS: &str = "2,7,1,8,2";

#[test]
fn nodes_do_not_change_the_bytes() {
    let place = Place::with_toy();
    let alone = place.prove(&["--ids", IDS], "alone.obk");
    for nodes in ["1", "3", "5"] {
        place.prove(&["--ids", IDS, "--nodes", nodes], "nodes.obk");
        assert!(place.read("nodes.obk") == alone, "{nodes} nodes");
    }
}

#[test]
fn threads_do_not_change_the_bytes() {
    let place = Place::with_toy();
    let alone = place.prove(&["--ids", IDS], "alone.obk");
    for threads in ["1", "2"] {
        let args = ["prove", "--model", "toy", "--ids", IDS, "--out", "threads.obk"];
        let status = place.command(&args).env("RAYON_NUM_THREADS", threads).output().expect("runs").status;
        assert!(status.success());
        assert!(place.read("threads.obk") == alone, "{threads} threads");
    }
}

#[test]
fn a_node_killed_in_the_middle_does_not_change_the_bytes() {
    let place = Place::with_toy();
    let alone = place.prove(&["--ids", IDS], "alone.obk");
    let (_coordinator, address) = coordinator(&place);
    let _survivor = node(&place, &token(&place), &["--name", "survivor"]);
    for delay_ms in [100, 600] {
        let mut victim = node(&place, &token(&place), &["--name", "victim"]);
        std::thread::scope(|s| {
            let job = s.spawn(|| place.prove(&["--ids", IDS, "--coordinator", &address], "killed.obk"));
            std::thread::sleep(Duration::from_millis(delay_ms));
            victim.kill();
            assert!(job.join().expect("the job ends") == alone, "killed after {delay_ms} ms");
        });
    }
}
