//! The registry against its rules, at moments chosen here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use obelysk_node::identity::Id;
use zeroize::Zeroizing;

use super::*;

const NOW: u64 = 1_800_000_000;
const LIFE: u64 = 86_400;

fn with_token(uses: u32) -> Registry {
    let mut registry = Registry::default();
    registry.add_token(NOW, Id([1; 16]), [9; 32], 3600, uses).expect("room");
    registry
}

fn admit(registry: &mut Registry, now: u64, node: u8) -> Result<(), AdmissionError> {
    registry.admit((now, now), Id([1; 16]), Id([node; 32]), "n", LIFE)
}

#[test]
fn a_token_ends_by_use_time_or_order() {
    let mut registry = with_token(2);
    for node in [1, 1, 2, 1] {
        admit(&mut registry, NOW, node).expect("let in");
    }
    assert!(matches!(admit(&mut registry, NOW, 3), Err(AdmissionError::TokenSpent(2))));
    let mut registry = with_token(2);
    admit(&mut registry, NOW + 3599, 1).expect("the last second");
    assert!(matches!(admit(&mut registry, NOW + 3600, 1), Err(AdmissionError::TokenExpired(0))));
    let mut registry = with_token(2);
    registry.revoke_token(Id([1; 16])).expect("known");
    assert!(matches!(admit(&mut registry, NOW, 1), Err(AdmissionError::TokenRevoked)));
    assert!(matches!(registry.revoke_token(Id([2; 16])), Err(AdmissionError::NoSuch(_))));
}

#[test]
fn a_clock_may_be_off_by_so_much() {
    for (theirs, fits) in
        [(NOW - MAX_SKEW_S, true), (NOW + MAX_SKEW_S, true), (NOW - MAX_SKEW_S - 1, false), (u64::MAX, false), (0, false)]
    {
        let outcome = with_token(1).admit((NOW, theirs), Id([1; 16]), Id([1; 32]), "n", LIFE);
        assert_eq!(outcome.is_ok(), fits, "{theirs}");
    }
}

#[test]
fn who_was_put_out_stays_out_as_long_as_its_certificate_could_live() {
    let mut registry = with_token(3);
    let node = Id([1; 32]);
    assert!(matches!(registry.member(node), Err(AdmissionError::NotMember(_))));
    admit(&mut registry, NOW, 1).expect("let in");
    registry.renew(NOW + 43_200, node, LIFE).expect("renewed");
    assert_eq!(registry.member(node).expect("member").expires_unix_s, NOW + 43_200 + LIFE);
    registry.evict(node, "stolen").expect("known");
    assert!(matches!(registry.renew(NOW, node, LIFE), Err(AdmissionError::Evicted { .. })));
    assert!(matches!(admit(&mut registry, NOW, 1), Err(AdmissionError::Evicted { .. })));
    // Changes much later forget it; its certificate is long dead then.
    registry.add_token(NOW + 30 * LIFE, Id([2; 16]), [9; 32], 60, 1).expect("room");
    assert!(matches!(registry.member(node), Err(AdmissionError::NotMember(_))));
    assert_eq!(registry.tokens_after(Id([0; 16])).count(), 1, "the old token is forgotten too");
}

#[test]
fn it_is_bounded_and_reads_what_it_wrote() {
    let mut registry = with_token(1);
    admit(&mut registry, NOW, 7).expect("let in");
    registry.add_admin(Id([3; 32]));
    let full = (0..).map(|n: u32| registry.add_token(NOW, Id((u128::from(n) + 2).to_be_bytes()), [0; 32], 60, 1).map(|_| ()));
    let made = full.take(5000).take_while(Result::is_ok).count();
    assert!((1000..=1024).contains(&made), "{made}");
    assert!(matches!(registry.add_token(NOW, Id([1; 16]), [0; 32], u64::MAX, 1), Err(AdmissionError::TooLong(_))));
    let bytes = registry.to_bytes().expect("writes");
    assert_eq!(Registry::from_bytes(&bytes).expect("reads"), registry);
    assert!(registry.is_admin(Id([3; 32])) && !registry.is_admin(Id([7; 32])));
    for cut in (0..bytes.len()).step_by(997) {
        assert!(Registry::from_bytes(&bytes[..cut]).is_err());
    }
}

/// One log, in terms.
#[derive(Debug, Default)]
struct Turns {
    log: MemoryStorage,
    term: AtomicU64,
}

impl Storage for Turns {
    fn read(&self, document: Document) -> Result<Option<Zeroizing<Vec<u8>>>, StorageError> {
        self.log.read(document)
    }

    fn write(&self, document: Document, bytes: &[u8]) -> Result<(), StorageError> {
        self.log.write(document, bytes)
    }

    fn term(&self) -> u64 {
        self.term.load(Ordering::Relaxed)
    }
}

/// Whoever leads decides on what those before left, not on what it knew when it started.
#[test]
fn what_another_leader_decided_is_not_written_over() {
    let log = Arc::new(Turns::default());
    let first = Admissions::open(log.clone()).expect("a new cluster");
    let second = Admissions::open(log.clone()).expect("the same");
    let order = |key| TokenOrder { public_key: [key; 32], ttl_s: 60, uses: 1 };
    for (term, leader) in [(1, &first), (2, &second), (3, &first)] {
        log.term.store(term, Ordering::Relaxed);
        leader.add_token(order(term as u8)).expect("added");
        assert_eq!(leader.tokens_after(Id([0; 16]), 9).len() as u64, term, "with those of the terms before");
    }
}
