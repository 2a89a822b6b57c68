//! Three coordinators, four nodes: the leader loses power, the leader's cable is pulled, all coordinators lose power at once.

use crate::council::Council;
use crate::fleet::Fleet;
use std::time::Duration;

#[test]
fn a_leader_that_dies_or_is_cut_off_changes_no_byte() {
    let Some(mut council) = Council::start(3, 4) else { return };
    let alone = council.alone();

    let mut client = council.submit();
    council.accepted(6);
    let leader = council.leader();
    council.coordinators[leader].signal("-KILL");
    let killed_before = council.accepted_by(leader);
    Fleet::still_at_work(&mut client);
    let took = council.another_leads(leader);
    println!("another leads {:.2} s after the leader's death", took.as_secs_f64());
    assert!(council.finished(client) == alone, "leader killed: other bytes");
    let next = council.leader();
    let again: Vec<String> = council.accepted_by(next).into_iter().filter(|work| killed_before.contains(work)).collect();
    assert!(again.is_empty(), "accepted before, and proved again: {again:?}");
    council.start_again(leader);

    // Cut off, it still believes that it leads for a while; nothing that it does then counts.
    let mut client = council.submit();
    council.accepted(6);
    let leader = council.leader();
    council.cable(leader, false);
    Fleet::still_at_work(&mut client);
    council.another_leads(leader);
    assert!(council.finished(client) == alone, "leader cut off: other bytes");
    council.cable(leader, true);

    let mut client = council.submit();
    council.accepted(6);
    for coordinator in 0..3 {
        council.coordinators[coordinator].signal("-KILL");
    }
    Fleet::still_at_work(&mut client);
    std::thread::sleep(Duration::from_secs(1));
    for coordinator in 0..3 {
        council.start_again(coordinator);
    }
    assert!(council.finished(client) == alone, "all killed: other bytes");
    assert!(council.nodes.iter_mut().all(crate::fleet::Process::lives), "nodes dial again by themselves");
}
