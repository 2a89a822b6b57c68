//! Single faults in virtual time, over the fleets of `simulator_fleet`: an item that takes nodes down, a machine that is slower than anybody
//! knew, one that pretends to go on, and a coordinator's clock that jumps.

use crate::simulator_fleet::{Machine, World, job, machine};
use obelysk_coordinator::core::{MAX_NODE_DEATHS, Work};
use obelysk_node::engine::WorkKind;

/// When one job of twelve segments ends on three machines of the reference's speed.
fn undisturbed_ms(seed: u64) -> u64 {
    let mut world = World::new(seed, &[machine(100); 3]);
    world.submit(job(1), 12, 5, Vec::new());
    world.live();
    world.proved(job(1))
}

#[test]
fn an_item_that_takes_nodes_down_fails_its_job_with_their_names_and_the_fleet_survives() {
    for seed in 0..20 {
        let kind = WorkKind::ALL[seed as usize % 4];
        let lethal = Work::new(kind, seed as u32 % 5);
        let mut world = World::new(seed, &[machine(100); 6]);
        world.lethal = Some((job(1), lethal));
        world.submit(job(1), 5, 5, Vec::new());
        world.submit(job(2), 5, 5, Vec::new());
        world.live();
        let (_, end) = &world.ends[&job(1)];
        let failure = end.as_ref().expect_err("nobody can do it");
        assert!(failure.contains(&format!("{lethal} took down {MAX_NODE_DEATHS} nodes")), "life {seed}: {failure}");
        let victims: Vec<_> = world.assigned.iter().filter(|(_, id, work, _)| (*id, *work) == (job(1), lethal)).collect();
        assert_eq!(victims.len(), MAX_NODE_DEATHS, "life {seed}: {victims:?}");
        assert!(victims.iter().all(|(.., node)| failure.contains(&node.to_string())), "life {seed}: {failure}");
        // What the other job lost with them is done by the rest.
        world.proved(job(2));
        assert_eq!(world.here(), 6 - MAX_NODE_DEATHS, "life {seed}");
    }
}

#[test]
fn a_machine_slower_than_anybody_knew_is_overtaken_and_never_overdue() {
    let mut overtaken = 0;
    for seed in 0..20 {
        let slow = Machine { unknown: true, ..machine(5) };
        let mut world = World::new(seed, &[slow, machine(100), machine(100), machine(100)]);
        world.submit(job(1), 12, 5, Vec::new());
        world.live();
        let (fast, mixed) = (undisturbed_ms(seed), world.proved(job(1)));
        // Alone it would take more than thirty times as long. Until a kind was seen four times, nobody knows that it is slow.
        assert!(mixed <= 6 * fast, "life {seed}: {mixed} ms against {fast} ms of three machines alone");
        // It says what it has done, so no lease of it runs out: it is slow and not dead.
        assert!(world.lost.is_empty(), "life {seed}: {:?}", world.lost);
        overtaken += world.seconds;
    }
    assert!(overtaken > 0, "nobody was overtaken");
}

#[test]
fn who_pretends_to_go_on_holds_no_item_for_ever() {
    for permille in [0, 500, 950] {
        for seed in 0..10 {
            let idler = Machine { dawdles: Some(permille), ..machine(100) };
            let mut world = World::new(seed, &[idler, machine(100), idler, machine(100)]);
            world.submit(job(1), 12, 5, Vec::new());
            world.live();
            // Before anything is known of a kind, an item has eight leases of a minute; a thousand would be sixteen hours.
            let at = world.proved(job(1));
            assert!(at < 3 * 3_600_000 / 4, "life {seed} from {permille}: {at} ms");
            assert!(world.lost.is_empty(), "life {seed}: {:?}", world.lost);
        }
    }
}

/// Home of all by what it says, and never done before another is.
#[test]
fn a_false_speed_holds_a_job_up_for_minutes_and_not_for_ever() {
    for permille in [0, 950] {
        for seed in 0..5 {
            let boaster = Machine { dawdles: Some(permille), claims: Some(u32::MAX), ..machine(6400) };
            let mut world = World::new(seed, &[boaster, machine(100), machine(100)]);
            world.submit(job(1), 12, 5, Vec::new());
            world.live();
            let at = world.proved(job(1));
            assert!(at < 3_600_000 / 2, "life {seed} from {permille}: {at} ms");
        }
    }
}

#[test]
fn a_clock_that_jumps_ends_no_lease_and_holds_nothing_up() {
    const DAY_MS: u64 = 86_400_000;
    for seed in 0..40 {
        let lives = |jumps_ms| {
            let mut world = World::new(seed, &[machine(100), machine(60), machine(100)]);
            (world.ahead_ms, world.jumps_ms) = (DAY_MS / 2, jumps_ms);
            world.submit(job(1), 8, 5, Vec::new());
            world.live();
            (world.proved(job(1)), world.lost)
        };
        let ((still, _), (jumping, lost)) = (lives(0), lives(DAY_MS));
        // About once a second, anywhere within a day, backwards as often as ahead.
        assert!(lost.is_empty(), "life {seed}: {lost:?}");
        assert!(jumping <= still * 2, "life {seed}: {jumping} ms against {still} ms");
    }
}
