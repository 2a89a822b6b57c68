//! One node behind a line hundreds of times slower than the others'.

use crate::fleet::{Fleet, machine};

#[test]
fn a_slow_line_is_no_fault() {
    let Some(fleet) = Fleet::start(3) else { return };
    let alone = fleet.alone();
    fleet.lab.slow_down(machine(1), "1mbit");
    let client = fleet.submit();
    assert!(fleet.finished(client) == alone, "other bytes");
    assert_eq!(fleet.count(&["Quarantined"]), 0, "{}", fleet.coordinator.log());
}
