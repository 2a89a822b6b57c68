//! A cable is pulled: of one node, then of the coordinator, then of a majority of nodes.

use crate::fleet::{COORDINATOR, Fleet, machine};
use std::time::Duration;

#[test]
fn a_pulled_cable_changes_no_byte_wherever_it_was() {
    let Some(mut fleet) = Fleet::start(3) else { return };
    let alone = fleet.alone();
    // Longer than a silent connection is waited for: all are lost and come back.
    let outage = Duration::from_secs(5);
    for machines in [vec![machine(0)], vec![COORDINATOR], vec![machine(0), machine(1)]] {
        let mut client = fleet.submit_and_reach("Commit");
        machines.iter().for_each(|m| fleet.lab.cable(*m, false));
        Fleet::still_at_work(&mut client);
        std::thread::sleep(outage);
        machines.iter().for_each(|m| fleet.lab.cable(*m, true));
        assert!(fleet.finished(client) == alone, "{machines:?}: other bytes");
    }
    assert!(fleet.nodes.iter_mut().all(crate::fleet::Process::lives), "nodes dial again by themselves");
}
