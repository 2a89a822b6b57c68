//! The order of transcripts in every mode: provers of protocols in which something is drawn too early or bound to nothing,
//! honest in all else; modes that stand for each other; and no byte of a proof of mode 2 may change.

use crate::aggregated_forger::{Cheat, Nowhere, attempt, bare, honest, joint_error, prove, verdict};
use crate::harness::{Forger, toy};
use obelysk_model::toy::Prng;
use obelysk_protocol::field::{ONE, QM31};
use obelysk_protocol::transcript::{Blake2s, Digest, Transcript};
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::aggregate::{absorb_closing, verify, verify_reduced};
use obelysk_protocol::verifier::opening::{OpeningError, OpeningParams, absorb_all, label, row_vars};
use obelysk_protocol::verifier::proof::Proof;
use std::sync::OnceLock;

fn delta(t: &mut Transcript<Blake2s>, oracles: usize) -> Vec<QM31> {
    t.draw_many(label::DELTA, row_vars(oracles) as usize)
}

/// Ways to join forks that leave something free.
#[derive(Debug)]
enum Order {
    /// A fork's digest is taken before the rows are combined.
    BeforeRows,
    /// Weights are drawn before the last fork is absorbed.
    DeltaEarly,
    /// Forks are not absorbed.
    NoClosings,
    /// One fork is not absorbed.
    OneMissing(usize),
    /// Forks are absorbed in another order.
    Swapped,
    /// Nothing says that an opening of all segments starts.
    NoStatement,
    /// The number of oracles is another.
    OtherCount,
}

impl Cheat for Order {
    fn closing(&self, _: usize, before_rows: Digest, after: Digest) -> Digest {
        if matches!(self, Self::BeforeRows) { before_rows } else { after }
    }

    fn join(&self, t: &mut Transcript<Blake2s>, closings: &[Digest], p: &OpeningParams, oracles: usize) -> Vec<QM31> {
        let mut closings = closings.to_vec();
        match self {
            Self::BeforeRows | Self::NoStatement | Self::OtherCount => {}
            Self::DeltaEarly => {
                let last = closings.split_off(closings.len() - 1);
                closings.iter().for_each(|d| absorb_closing(t, d));
                absorb_all(t, p, oracles);
                let drawn = delta(t, oracles);
                last.iter().for_each(|d| absorb_closing(t, d));
                return drawn;
            }
            Self::NoClosings => closings.clear(),
            Self::OneMissing(l) => drop(closings.remove(*l)),
            Self::Swapped => closings.swap(1, 2),
        }
        closings.iter().for_each(|d| absorb_closing(t, d));
        match self {
            Self::NoStatement => {}
            Self::OtherCount => absorb_all(t, p, oracles + 1),
            _ => absorb_all(t, p, oracles),
        }
        delta(t, oracles)
    }
}

#[test]
fn forging_the_order_in_which_forks_are_joined_is_refused() {
    let orders = [
        Order::BeforeRows,
        Order::DeltaEarly,
        Order::NoClosings,
        Order::OneMissing(0),
        Order::OneMissing(3),
        Order::Swapped,
        Order::NoStatement,
        Order::OtherCount,
    ];
    for order in &orders {
        assert_eq!(attempt(order), joint_error(OpeningError::Joint), "{order:?}");
    }
}

/// Values at ζ that are sent and bound by nothing.
struct ValuesUnbound;

impl Cheat for ValuesUnbound {
    fn absorb_values(&self, _: &mut Transcript<Blake2s>, _: &[QM31]) {}
}

#[test]
fn forging_by_values_that_no_transcript_holds_is_refused() {
    assert_eq!(attempt(&ValuesUnbound), joint_error(OpeningError::Fold));
}

#[test]
fn a_proof_of_one_mode_is_none_of_another() {
    let toy = bare();
    let proofs = [0, 1].map(|mode| Forger { toy, mode, ..crate::harness::honest().clone() }.prove().proof);
    let proofs = [proofs[0].clone(), proofs[1].clone(), prove(&honest(toy), &Nowhere)];
    for (mode, proof) in proofs.iter().enumerate() {
        assert_eq!(verdict(toy, proof), Ok(()), "mode {mode}");
        for other in (0..=2).filter(|other| *other != mode) {
            let mut relabelled = proof.clone();
            relabelled.header.mode = other as u8;
            let direct = verify::<Blake2s>(&toy.registered, &relabelled);
            assert!(matches!(direct, Err(VerifyError::Segment { index: 0, .. })), "{mode} as {other}: {direct:?}");
            assert!(verify_reduced::<Blake2s>(&toy.registered, &relabelled.write()).is_err(), "{mode} as {other}");
        }
    }
}

#[test]
fn forging_a_chain_of_forks_is_refused() {
    // Mode 0 with forks that all start from the seed, and one whose second fork ends otherwise than the third assumes.
    let toy = bare();
    let f = Forger { toy, mode: 0, ..crate::harness::honest().clone() };
    let unchained = Forger { unchained: true, ..f.clone() }.prove().proof;
    assert!(matches!(verdict(toy, &unchained), Err(VerifyError::Segment { index: 1, .. })));
    let mut proof = f.prove().proof;
    let combined = proof.segments[1].opening.combined.as_mut().unwrap();
    combined.query_nonce += 1;
    assert!(matches!(verdict(toy, &proof), Err(VerifyError::Segment { index: 1, .. })));
}

/// An honest proof of mode 2, with grinding.
fn own() -> &'static (Proof, Vec<u8>) {
    static OWN: OnceLock<(Proof, Vec<u8>)> = OnceLock::new();
    OWN.get_or_init(|| {
        let proof = prove(&honest(toy()), &Nowhere);
        let bytes = proof.write();
        (proof, bytes)
    })
}

fn accepts(bytes: &[u8]) -> bool {
    verify_reduced::<Blake2s>(&toy().registered, bytes).is_ok()
}

#[test]
fn no_changed_byte_prefix_or_extension_of_mode_2_is_accepted() {
    let (proof, bytes) = own();
    assert!(accepts(bytes));
    let mut rng = Prng::new(31);
    let (n, mut tail) = (bytes.len(), Vec::new());
    proof.opening.as_ref().unwrap().write(&mut tail);
    // The opening of all segments ends the proof: every field of it has bytes among these.
    let fixed = (n - tail.len()..n - tail.len() + 700).step_by(7);
    let sampled: Vec<usize> = (0..120).map(|_| rng.range(0, n as i32 - 1) as usize).collect();
    for at in fixed.chain(sampled) {
        let mut forged = bytes.clone();
        forged[at] ^= 1 << (at % 8);
        assert!(!accepts(&forged), "byte {at}");
    }
    for cut in (0..200).chain((200..n).step_by(n / 50)).chain(n - 40..n) {
        let verdict = verify_reduced::<Blake2s>(&toy().registered, &bytes[..cut]);
        assert!(verdict.is_err(), "cut at {cut}");
    }
    for more in [&[0u8][..], &tail, bytes] {
        assert!(matches!(verify_reduced::<Blake2s>(&toy().registered, &[bytes, more].concat()), Err(VerifyError::Malformed(_))));
    }
}

#[test]
fn noise_after_any_true_beginning_of_mode_2_is_refused() {
    let (_, bytes) = own();
    let mut rng = Prng::new(37);
    for _ in 0..120 {
        let keep = rng.range(4, bytes.len() as i32 - 1) as usize;
        let noise: Vec<u8> = (0..rng.range(0, 400)).map(|_| rng.next_u64() as u8).collect();
        assert!(!accepts(&[&bytes[..keep], &noise].concat()));
        // As long as the true one, so that counts are reached.
        let filled: Vec<u8> = bytes[..keep].iter().copied().chain((keep..bytes.len()).map(|_| rng.next_u64() as u8)).collect();
        assert!(!accepts(&filled));
    }
}

#[test]
fn every_value_of_the_joint_opening_is_checked() {
    let toy = bare();
    let own = prove(&honest(toy), &Nowhere);
    type List = fn(&mut Proof) -> Vec<&mut QM31>;
    let lists: [(&str, List, OpeningError); 3] = [
        (
            "joint",
            |p| p.opening.iter_mut().flat_map(|o| o.joint.iter_mut().flat_map(|r| &mut r.0)).collect(),
            OpeningError::Joint,
        ),
        ("values", |p| p.opening.iter_mut().flat_map(|o| &mut o.values).collect(), OpeningError::Joint),
        ("message", |p| p.opening.iter_mut().flat_map(|o| &mut o.message).collect(), OpeningError::Fold),
    ];
    for (name, list, step) in lists {
        for i in 0..list(&mut own.clone()).len() {
            let mut proof = own.clone();
            *list(&mut proof)[i] += ONE;
            assert_eq!(verdict(toy, &proof), joint_error(step), "{name} {i}");
        }
    }
    // Row polynomials of the forks are held by nothing there, and by everything after the join.
    for l in 0..3 {
        for k in 0..own.segments[l].opening.rows[0].len() {
            let mut proof = own.clone();
            proof.segments[l].opening.rows[0][k].poly.0[1] += ONE;
            assert_eq!(verdict(toy, &proof), joint_error(OpeningError::Joint), "segment {l}, row round {k}");
        }
    }
}
