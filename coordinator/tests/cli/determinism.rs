//! The proof's bytes depend on the statement alone: not on nodes, threads, or a node that dies in the middle.

use crate::nodes::{coordinator, node, token};
use crate::toy::Place;
use std::time::Duration;

const IDS: &str = "2,7,1,8,2";

#[test]
fn nodes_do_not_change_the_bytes() {
    let place = Place::with_toy();
    for (mode, counts) in [("1", &["1", "3", "5"][..]), ("2", &["1", "2", "3"][..])] {
        let alone = place.prove(&["--ids", IDS, "--mode", mode], "alone.obk");
        for nodes in counts {
            place.prove(&["--ids", IDS, "--mode", mode, "--nodes", nodes], "nodes.obk");
            assert!(place.read("nodes.obk") == alone, "mode {mode}, {nodes} nodes");
        }
    }
}

#[test]
fn threads_do_not_change_the_bytes() {
    let place = Place::with_toy();
    for mode in ["1", "2"] {
        let alone = place.prove(&["--ids", IDS, "--mode", mode], "alone.obk");
        for (threads, nodes) in [("1", "0"), ("2", "0"), ("1", "2"), ("2", "2")] {
            let head = ["prove", "--model", "toy", "--ids", IDS, "--out", "threads.obk"];
            let args = [&head[..], &["--mode", mode, "--nodes", nodes]].concat();
            let status = place.command(&args).env("RAYON_NUM_THREADS", threads).output().expect("runs").status;
            assert!(status.success());
            assert!(place.read("threads.obk") == alone, "mode {mode}, {threads} threads, {nodes} nodes");
        }
    }
}

#[test]
fn a_node_killed_in_the_middle_does_not_change_the_bytes() {
    let place = Place::with_toy();
    let (_coordinator, address) = coordinator(&place);
    let _survivor = node(&place, &token(&place), &["--name", "survivor"]);
    for (mode, delay_ms) in [("1", 100), ("1", 600), ("2", 300), ("2", 900)] {
        let alone = place.prove(&["--ids", IDS, "--mode", mode], "alone.obk");
        let mut victim = node(&place, &token(&place), &["--name", "victim"]);
        let args = ["--ids", IDS, "--mode", mode, "--coordinator", &address];
        std::thread::scope(|s| {
            let job = s.spawn(|| place.prove(&args, "killed.obk"));
            std::thread::sleep(Duration::from_millis(delay_ms));
            victim.kill();
            assert!(job.join().expect("the job ends") == alone, "mode {mode}, killed after {delay_ms} ms");
        });
    }
}
