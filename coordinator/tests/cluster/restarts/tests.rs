//! Many lives, the seeds that once failed, and faults that must be found.

use super::{Bug, Life, SIZE, is_wide, key_of};
use crate::simulator::Random;
use crate::toy::{expected_proof, joint_spec, spec};

/// Lives in a normal run: some seconds.
const LIVES: u64 = 2000;
/// Within so many lives each fault put in must show.
const FIND_WITHIN: u64 = 500;
/// Lives that ended wrongly while something had a fault.
const ONCE_FAILED: [u64; 0] = [];

/// Whether there was more than one leader, and how many second leases.
fn one_life(seed: u64, bug: Bug) -> Result<(bool, usize), String> {
    let segments = if is_wide(seed) { 8 + Random(!seed).below(6) as u32 } else { 1 + Random(!seed).below(5) as u32 };
    // Every other life has joint steps, as in mode 2.
    let spec = if seed.is_multiple_of(2) { spec(segments, seed) } else { joint_spec(segments, seed, 1 + (seed % 7) as u8) };
    let mut life = Life::new(seed, &spec, segments, bug);
    let liars: Vec<u8> = life.machines.iter().filter(|(_, m)| m.lies > 0).map(|(key, _)| *key).collect();
    let lived = life.live();
    let tail = || life.log[life.log.len().saturating_sub(300)..].join("\n");
    let told = |what: String| format!("{what}\nterm {}, liars {liars:?}\n{}", life.term, tail());
    lived.map_err(told)?;
    let wronged = life.audit.quarantined.iter().find(|key| liars.iter().all(|liar| key_of(*liar) != **key));
    if let Some(key) = wronged {
        return Err(told(format!("honest {key} quarantined")));
    }
    match &life.told {
        Some(Ok(proof)) if *proof == expected_proof(&spec, SIZE) => Ok((life.term > 1, life.audit.seconds)),
        Some(Ok(_)) => Err(told("other bytes than an undisturbed run".to_owned())),
        Some(Err(failure)) => Err(told(format!("failed although success was due: {failure}"))),
        None => Err(told("the client was never told".to_owned())),
    }
}

fn guarded(seed: u64, bug: Bug) -> Result<(bool, usize), String> {
    std::panic::catch_unwind(|| one_life(seed, bug)).unwrap_or_else(|_| Err("panicked".to_owned()))
}

fn run(seeds: std::ops::Range<u64>) {
    let (total, mut restarted, mut raced) = (seeds.end - seeds.start, 0, 0);
    for seed in seeds {
        match guarded(seed, Bug::None) {
            Ok((again, seconds)) => {
                restarted += u64::from(again);
                raced += u64::from(again && seconds > 0);
            }
            Err(what) => panic!("life {seed}: {what}\nlife {seed} failed; OBELYSK_SIM_SEED={seed} replays it"),
        }
    }
    println!("{total} lives, {restarted} with more than one leader, {raced} of those with second leases");
    assert!(total < 100 || restarted * 2 > total, "too few lives had a restart");
    assert!(total < 100 || raced * 50 > total, "too few lives had both restarts and second leases");
}

#[test]
fn lives_with_restarts_end_with_the_same_bytes() {
    match std::env::var("OBELYSK_SIM_SEED").ok().and_then(|text| text.parse::<u64>().ok()) {
        Some(seed) => run(seed..seed + 1),
        None => run(0..LIVES),
    }
}

#[test]
#[ignore = "a million lives take the better part of an hour"]
fn a_million_lives_with_restarts() {
    run(0..1_000_000);
}

#[test]
fn lives_with_restarts_that_once_failed_end_well() {
    for seed in ONCE_FAILED {
        guarded(seed, Bug::None).unwrap_or_else(|what| panic!("life {seed}: {what}"));
    }
}

#[test]
fn faults_that_are_put_in_are_found() {
    for bug in [Bug::NoFence, Bug::EarlyOutput, Bug::Forgetful, Bug::SameEpochs] {
        let found = (0..FIND_WITHIN).find_map(|seed| guarded(seed, bug).err().map(|what| (seed, what)));
        let (seed, what) = found.unwrap_or_else(|| panic!("{bug:?} was not found in {FIND_WITHIN} lives"));
        println!("{bug:?} is found in life {seed}: {}", what.lines().next().unwrap_or_default());
    }
}
