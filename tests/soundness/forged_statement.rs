//! Forged statements: ids, versions, suites, modes, models, roots, counts and order of segments, skipped grinding.

use crate::harness::{Forger, IDS, honest, honest_proof, inside, toy, verdict};
use obelysk_model::infer;
use obelysk_model::toy::encoder_mut;
use obelysk_protocol::transcript::{Blake2s, Poseidon252};
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::aggregate::{verify, verify_reduced};
use obelysk_protocol::verifier::bytes::Reader;
use obelysk_protocol::verifier::proof::{Header, Proof};
use obelysk_protocol::verifier::registered::Registered;

/// The honest proof after a change.
fn changed(change: impl FnOnce(&mut Proof)) -> Proof {
    let mut proof = honest_proof().clone();
    change(&mut proof);
    proof
}

fn field(proof: &Proof) -> &'static str {
    match verify::<Blake2s>(&toy().registered, proof) {
        Err(VerifyError::Statement { field, .. }) => field,
        other => panic!("{other:?}"),
    }
}

#[test]
fn forging_the_version_is_refused() {
    let proof = changed(|p| p.header.version += 1);
    assert_eq!(field(&proof), "protocol version");
    assert!(matches!(verify_reduced::<Blake2s>(&toy().registered, &proof.write()), Err(VerifyError::Malformed(_))));
}

#[test]
fn forging_suite_mode_and_model_is_refused() {
    assert_eq!(field(&changed(|p| p.header.suite = 2)), "hash suite");
    for mode in [3, 4, 128, 255] {
        assert_eq!(field(&changed(|p| p.header.mode = mode)), "weight-binding mode");
    }
    assert_eq!(field(&changed(|p| p.header.model_id[0] ^= 1)), "model id");
    let other = verify::<Poseidon252>(&toy().registered, honest_proof());
    assert!(matches!(other, Err(VerifyError::Statement { field: "hash suite", .. })));
}

#[test]
fn forging_a_proof_made_in_another_mode_is_refused() {
    // All transcripts honest for a mode that does not exist, then relabelled: the fork's name contains the mode.
    for mode in [3, 77] {
        let f = Forger { mode, ..honest().clone() };
        let mut proof = f.prove().proof;
        assert_eq!(field(&proof), "weight-binding mode");
        proof.header.mode = 1;
        assert!(verdict(&proof).is_err());
    }
}

#[test]
fn forging_an_id_beyond_the_vocabulary_is_refused() {
    // id = V is a padding row of the matrix: everything about it is provable but the input check.
    let v = toy().model.descriptor.vocab();
    let mut larger = toy().model.clone();
    encoder_mut(&mut larger).vocab = v + 1;
    let ids = [1, v, 3];
    let trace = infer::run(&larger, &ids).unwrap();
    let f = Forger::of_trace(&larger, &trace, &ids, &ids);
    let forged = f.prove();
    assert_eq!(forged.broken, [""; 0]);
    assert!(matches!(verdict(&forged.proof), Err(VerifyError::Input(_))));
}

#[test]
fn forging_the_token_count_is_refused() {
    for ids in [vec![], vec![1; 9], vec![1; 513], vec![1, 2], vec![1, 2, 3, 0]] {
        assert!(verify::<Blake2s>(&toy().registered, &changed(|p| p.header.ids = ids)).is_err());
    }
    let short = changed(|p| p.header.output.truncate(11));
    assert!(matches!(verdict(&short), Err(VerifyError::Input(_))));
}

#[test]
fn forging_the_number_or_order_of_segments_is_refused() {
    let count = |p: &Proof| matches!(verify::<Blake2s>(&toy().registered, p), Err(VerifyError::Count { .. }));
    assert!(count(&changed(|p| p.segments.truncate(3))));
    assert!(count(&changed(|p| {
        p.segments.remove(1);
    })));
    assert!(count(&changed(|p| p.segments.push(p.segments[3].clone()))));
    assert!(count(&changed(|p| {
        p.header.roots.pop();
    })));
    assert!(count(&changed(|p| p.header.boundaries.push(p.header.boundaries[0]))));
    // One layer's proof twice, and the two layers exchanged.
    let twice = changed(|p| p.segments[2] = p.segments[1].clone());
    assert!(matches!(verdict(&twice), Err(VerifyError::Segment { index: 2, .. })));
    let swapped = changed(|p| p.segments.swap(1, 2));
    assert!(matches!(verdict(&swapped), Err(VerifyError::Segment { index: 1, .. })));
}

#[test]
fn forging_by_a_layer_run_twice_is_refused() {
    // Layer 0 in place of layer 1, honest otherwise: the weights registered for segment 2 are not these.
    let mut model = toy().model.clone();
    model.descriptor.encoder_mut().expect("an encoder").layers[1] =
        model.descriptor.encoder().expect("an encoder").layers[0].clone();
    model.weights.segments[2] = model.weights.segments[1].clone();
    let forged = Forger::of(&model, &IDS, &IDS).prove();
    assert!(forged.broken.contains(&"2 q.acc".to_owned()) && forged.broken.iter().all(|b| b.starts_with('2')));
    assert!(matches!(verdict(&forged.proof), Err(VerifyError::Segment { index: 2, .. })));
}

#[test]
fn forging_the_order_of_roots_is_refused() {
    let mut swapped = changed(|p| p.header.roots.swap(1, 2));
    assert_eq!(verdict(&swapped), Err(VerifyError::Grinding("the seed")));
    // With the seed ground again, the proofs belong to another seed.
    let mut verdicts = (0..).map(|n| {
        swapped.header.seed_nonce = n;
        verify::<Blake2s>(&toy().registered, &swapped)
    });
    let ground = verdicts.find(|v| *v != Err(VerifyError::Grinding("the seed")));
    assert!(matches!(ground, Some(Err(VerifyError::Segment { index: 0, .. }))));
}

#[test]
fn forging_by_skipped_grinding_is_refused() {
    let mut seed = (0..64).map(|n| changed(|p| p.header.seed_nonce = n)).map(|p| verdict(&p));
    assert!(seed.any(|v| v == Err(VerifyError::Grinding("the seed"))));
    // Before a coordinate of r that becomes a row challenge.
    let mut row = (0..64).map(|n| changed(|p| p.segments[0].claims.last.nonces[0] = n)).map(|p| verdict(&p));
    assert!(row.any(|v| v == inside(0, VerifyError::Grinding("a coordinate of r"))));
    // Before a fold challenge and before the queries.
    for step in ["opening/alpha", "opening/query"] {
        let found = (0..64).any(|n| {
            let p = changed(|p| match step {
                "opening/alpha" => p.segments[0].opening.combined.iter_mut().for_each(|c| c.folds[0].nonce = n),
                _ => p.segments[0].opening.combined.iter_mut().for_each(|c| c.query_nonce = n),
            });
            verdict(&p).is_err_and(|e| e.to_string().contains(step))
        });
        assert!(found, "{step}");
    }
}

#[test]
fn lower_security_is_another_model() {
    for lower in [
        |r: &mut Registered| r.security.queries = 1,
        |r: &mut Registered| r.security.g_seed = 0,
        |r: &mut Registered| r.security.g_fold = 0,
        |r: &mut Registered| r.security.g_query = 0,
        |r: &mut Registered| r.manifest[0] ^= 1,
        |r: &mut Registered| r.descriptor.encoder_mut().expect("an encoder").blowup_log = 1,
        |r: &mut Registered| r.descriptor.encoder_mut().expect("an encoder").layers[0].activation[7] ^= 1,
    ] {
        let mut other = toy().registered.clone();
        lower(&mut other);
        assert_ne!(other.model_id::<Blake2s>(), toy().registered.model_id::<Blake2s>());
        let verdict = verify::<Blake2s>(&other, honest_proof());
        assert!(matches!(verdict, Err(VerifyError::Statement { field: "model id", .. })));
    }
}

#[test]
fn the_digest_names_the_whole_proof() {
    // Closing digests are derived, not sent: nothing can leave one out. They decide the accepted proof's name alone.
    let registered = &toy().registered;
    let first = verify::<Blake2s>(registered, honest_proof()).unwrap();
    let second = verify::<Blake2s>(registered, &Forger::of(&toy().model, &[1, 2, 4], &[1, 2, 4]).prove().proof).unwrap();
    assert_ne!(first.digest, second.digest);
    assert_eq!((first.ids.as_slice(), &first.output), (&IDS[..], &honest().output));
}

#[test]
fn headers_with_oversize_counts_are_refused_without_allocation() {
    let bytes = honest_proof().write();
    let ids_at = 4 + 4 + 2 + 32;
    let cuts_at = ids_at + 4 + 12;
    for (at, name) in [(ids_at, "ids"), (cuts_at, "sequences"), (cuts_at + 4, "output"), (cuts_at + 8 + 96, "roots")] {
        let mut forged = bytes.clone();
        forged[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Header::read(&mut Reader::new(&forged)).is_err(), "{name}");
        assert!(matches!(verify_reduced::<Blake2s>(&toy().registered, &forged), Err(VerifyError::Malformed(_))), "{name}");
    }
}
