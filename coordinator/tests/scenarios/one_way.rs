//! A line that works in one direction only, in each of the two.

use crate::fleet::{COORDINATOR, Fleet, machine};

#[test]
fn a_line_that_works_one_way_counts_as_broken() {
    let Some(mut fleet) = Fleet::start(2) else { return };
    let alone = fleet.alone();
    let node = machine(0);
    for (from, to) in [(node, COORDINATOR), (COORDINATOR, node)] {
        let mut client = fleet.submit_and_reach("Forward");
        fleet.lab.lose(from, to, true);
        Fleet::still_at_work(&mut client);
        assert!(fleet.finished(client) == alone, "{from:?} to {to:?}: other bytes");
        fleet.lab.lose(from, to, false);
    }
    assert!(fleet.nodes.iter_mut().all(crate::fleet::Process::lives), "nodes dial again by themselves");
}
