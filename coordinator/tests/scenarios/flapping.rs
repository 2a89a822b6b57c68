//! A connection that comes and goes, faster than it is given up.

use crate::fleet::{Fleet, machine};
use std::time::Duration;

#[test]
fn a_flapping_line_delays_and_changes_nothing() {
    let Some(fleet) = Fleet::start(2) else { return };
    let alone = fleet.alone();
    let mut client = fleet.submit();
    Fleet::still_at_work(&mut client);
    while client.try_wait().expect("waits").is_none() {
        for plugged in [false, true] {
            fleet.lab.cable(machine(0), plugged);
            std::thread::sleep(Duration::from_millis(150));
        }
    }
    assert!(fleet.finished(client) == alone, "other bytes");
    assert_eq!(fleet.count(&["\"quarantined\""]), 0, "{}", fleet.coordinator.log());
}
