//! A node loses power in each phase of a job.

use crate::fleet::Fleet;

#[test]
fn a_node_that_dies_in_any_phase_changes_no_byte() {
    let Some(mut fleet) = Fleet::start(5) else { return };
    let alone = fleet.alone();
    for (victim, phase) in ["forward/", "commit/", "prove/", "open/"].into_iter().enumerate() {
        let mut client = fleet.submit_and_reach(phase);
        fleet.nodes[victim].signal("-KILL");
        Fleet::still_at_work(&mut client);
        assert!(fleet.finished(client) == alone, "killed in {phase}: other bytes");
        fleet.wait_for_count(victim + 1, &["gone", "clean=false"]);
    }
    assert_eq!(fleet.count(&["\"quarantined\""]), 0, "to die is no lie:\n{}", fleet.coordinator.log());
    assert!(fleet.nodes[4].lives(), "the last one did it all");
}
