//! Honest openings of all shapes verify, their bytes are canonical, and prover and verifier end in the same transcript.

use super::{Case, Kind, params};
use crate::kernels::reference::Reference;
use crate::prover::opening::prove;
use obelysk_protocol::transcript::{Blake2s, HashSuite, Poseidon252, Transcript};
use obelysk_protocol::verifier::bytes::Reader;
use obelysk_protocol::verifier::opening::{OpeningParams, OpeningProof, OpeningShape, verify};

fn round_trip<S: HashSuite>(params: OpeningParams, spec: &[(usize, Kind)]) {
    let case = Case::new::<S>(&Reference, 7, params, spec);
    let mut prover = Transcript::<S>::new("test");
    let proof = prove(&Reference, &mut prover, &params, &case.inputs()).unwrap();
    let mut bytes = Vec::new();
    proof.write(&mut bytes);
    let shape = OpeningShape::of(&params, &case.statement()).unwrap();
    let mut reader = Reader::new(&bytes);
    let parsed = OpeningProof::read(&mut reader, &shape).unwrap();
    assert_eq!((&parsed, reader.remaining()), (&proof, 0));
    let mut verifier = Transcript::<S>::new("test");
    assert_eq!(verify(&mut verifier, &params, &case.statement(), &parsed), Ok(()), "{params:?} {spec:?}");
    assert_eq!(prover.digest(), verifier.digest());
}

#[test]
fn every_shape_opens() {
    for h in [2, 3, 4, 6, 9] {
        for rows in [1, 2, 3, 5, 8] {
            round_trip::<Blake2s>(params(h, 1 + rows as u32 % 3), &[(rows, Kind::Point)]);
            for s in 0..=2 {
                round_trip::<Blake2s>(params(h, 2), &[(rows, Kind::Tiles(s))]);
            }
        }
        round_trip::<Blake2s>(params(h, 1), &[(3, Kind::Tiles(1)), (5, Kind::Point)]);
        round_trip::<Blake2s>(params(h, 2), &[(5, Kind::Point), (8, Kind::Tiles(2)), (1, Kind::Tiles(0))]);
    }
}

#[test]
fn poseidon_opens_through_the_same_code() {
    let tiny = OpeningParams { h: 5, blowup_log: 1, queries: 4, g_fold: 1, g_query: 1 };
    round_trip::<Poseidon252>(tiny, &[(2, Kind::Point), (3, Kind::Tiles(1))]);
}
