//! A node is alive to the network and dead to the world: its process stands still, then goes on.

use crate::fleet::Fleet;

#[test]
fn a_node_that_stands_still_holds_nothing_up_and_may_come_back() {
    let Some(mut fleet) = Fleet::start(2) else { return };
    let alone = fleet.alone();
    let mut client = fleet.submit_and_reach("forward/");
    fleet.nodes[0].signal("-STOP");
    Fleet::still_at_work(&mut client);
    assert!(fleet.finished(client) == alone, "other bytes");
    fleet.nodes[0].signal("-CONT");
    // Nobody else is left for the next job.
    fleet.nodes[1].signal("-KILL");
    let client = fleet.submit();
    assert!(fleet.finished(client) == alone, "other bytes after it came back");
    assert!(fleet.nodes[0].lives() && fleet.count(&["\"quarantined\""]) == 0, "{}", fleet.coordinator.log());
}
