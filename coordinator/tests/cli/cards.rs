//! Cards, asked for where there are none: said at once, before any work.

use crate::toy::Place;
use obelysk_cuda::card::probe;

/// A number that no card has.
const NONE: &str = "cuda:4095";

#[test]
fn a_device_that_cannot_be_used_is_refused_before_any_work() {
    let place = Place::with_toy();
    let mut cases: Vec<(Vec<&str>, &str)> = vec![
        (vec!["--device", "gpu"], "is no device"),
        (vec!["--gpu-only"], "--device"),
        (vec!["--device", "cpu", "--gpu-only"], "needs a card"),
        (vec!["--device", "cuda:0", "--nodes", "2"], "in this process"),
        (vec!["--device", NONE], "--device"),
    ];
    let report = probe::report();
    if report.driver.is_err() {
        cases.push((vec!["--device", "cuda:0"], "NVIDIA driver"));
    }
    for (args, cause) in cases {
        let ran =
            place.run(&[&["prove", "--model", "toy", "--ids", "1,2", "--out", "p.obk"], args.as_slice()].concat()).expect(2);
        let cause = if args.contains(&NONE) && report.driver.is_ok() { "there is no device" } else { cause };
        assert!(ran.stderr.contains(cause), "{args:?}: {}", ran.stderr);
        assert!(!place.path("p.obk").exists());
    }
    place.run(&["node", "join", "--device", NONE]).expect(2);
    place.run(&["prove", "--model", "toy", "--ids", "1,2", "--device", "cpu", "--out", "p.obk"]).expect(0);
}

#[test]
fn the_doctor_looks_at_driver_and_cards_and_fails_only_what_was_asked_for() {
    let place = Place::with_toy();
    let checks = |args: &[&str]| {
        let ran = place.run(&[&["node", "doctor", "--json"], args].concat());
        ran.json()["checks"].as_array().expect("a list").clone()
    };
    let failed = |checks: &[serde_json::Value]| checks.iter().filter(|c| c["outcome"] == "failed").count();
    let (any, asked) = (checks(&[]), checks(&["--device", NONE]));
    assert!(any.iter().chain(&asked).filter(|c| c["name"] == "driver").count() == 2, "{any:?}");
    assert!(failed(&asked) > failed(&any), "{asked:?}");
    place.run(&["node", "doctor", "--device", "card"]).expect(2);
}
