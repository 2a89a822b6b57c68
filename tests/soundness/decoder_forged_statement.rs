//! Forged statements about decoders: texts cut otherwise, other completions, headers changed after proving, inputs of the other
//! kind of model.

use crate::decoder_forger::{Case, forger, full, offered, plain, verdict};
use crate::harness::{EQUATIONS, Honest, honest_proof, inside};
use obelysk_model::infer::decoder;
use obelysk_protocol::circuit::{PublicInput, Sequence};
use obelysk_protocol::field::ONE;
use obelysk_protocol::transcript::Blake2s;
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::aggregate::verify_reduced;
use obelysk_protocol::verifier::proof::Proof;
use std::sync::OnceLock;

fn proof() -> &'static Proof {
    static PROOF: OnceLock<Proof> = OnceLock::new();
    PROOF.get_or_init(|| {
        let proof = forger(plain(), &plain().honest).prove().proof;
        assert_eq!(verdict(plain(), &proof), Ok(()));
        proof
    })
}

fn cut(cuts: &[(u32, u32)]) -> Vec<Sequence> {
    cuts.iter().map(|&(prompt, completion)| Sequence { prompt, completion }).collect()
}

/// As values and as bytes alike.
fn both(case: &Case, proof: &Proof) -> Result<(), VerifyError> {
    let direct = verdict(case, proof);
    assert_eq!(direct, verify_reduced::<Blake2s>(&case.toy.registered, &proof.write()).map(|_| ()));
    direct
}

#[test]
fn forging_where_a_text_is_cut_is_refused() {
    // The honest run of the text, offered for the same ids under other cuts. Where the rows are the same, the head says no;
    // where a sequence ends elsewhere, the embedding reads other tokens.
    let case = plain();
    let head = case.d().layers.len() + 1;
    // A longer prompt claims less of the same run: that is a true statement, and the only one of these that is.
    let weaker = PublicInput { sequences: cut(&[(4, 1), (2, 1)]), ..case.input.clone() };
    let mut t = case.honest.clone();
    let rows: Vec<u32> = weaker.checked().iter().map(|c| c.row).collect();
    t.head = decoder::head(case.d(), &case.toy.model.weights.segments[head], t.entering(head), &rows, 8).unwrap();
    assert_eq!(both(case, &offered(case, &t, &weaker).prove().proof), Ok(()));
    for (cuts, index) in
        [(&[(2, 3), (2, 1)][..], head), (&[(3, 2), (1, 2)], head), (&[(2, 2), (3, 1)], 0), (&[(2, 1), (3, 2)], 0), (&[(5, 3)], 0)]
    {
        let claimed = PublicInput { sequences: cut(cuts), ..case.input.clone() };
        let forged = offered(case, &case.honest, &claimed).prove_with(index, &|_| &Honest);
        assert!(!forged.broken.is_empty(), "{cuts:?}");
        assert!(forged.broken.iter().all(|b| b.starts_with(&index.to_string())), "{cuts:?}: {:?}", forged.broken);
        assert!(matches!(verdict(case, &forged.proof), Err(VerifyError::Segment { index: i, .. }) if i == index), "{cuts:?}");
    }
}

#[test]
fn forging_a_token_of_a_completion_is_refused() {
    let case = plain();
    let head = case.d().layers.len() + 1;
    // The first token of the first completion, which the next row reads.
    let mut claimed = case.input.clone();
    claimed.ids[3] = (claimed.ids[3] + 1) % 21;
    let forged = offered(case, &case.honest, &claimed).prove_with(0, &|_| &Honest);
    assert_eq!(forged.broken, ["0 embed.0.acc"]);
    assert_eq!(verdict(case, &forged.proof), inside(0, EQUATIONS));
    // With an honest run of the text that has it, only its own choice is wrong.
    let t = decoder::run(&case.toy.model, &claimed).unwrap();
    assert_ne!(t.head.tokens[0], claimed.ids[3]);
    for (completion, token) in [(4, t.head.tokens[1]), (7, t.head.tokens[2])] {
        claimed.ids[completion] = token;
    }
    let forged = offered(case, &t, &claimed).prove_with(head, &|_| &Honest);
    assert!(forged.broken.contains(&format!("{head} gap.own")), "{:?}", forged.broken);
    assert!(
        forged.broken.iter().all(|b| *b == format!("{head} gap.own") || *b == format!("{head} in r13")),
        "{:?}",
        forged.broken
    );
    assert!(matches!(verdict(case, &forged.proof), Err(VerifyError::Segment { index, .. }) if index == head));
    // A token of a prompt.
    let mut claimed = case.input.clone();
    claimed.ids[0] = (claimed.ids[0] + 1) % 21;
    let forged = offered(case, &case.honest, &claimed).prove_with(0, &|_| &Honest);
    assert_eq!(forged.broken, ["0 embed.0.acc"]);
    assert_eq!(verdict(case, &forged.proof), inside(0, EQUATIONS));
}

#[test]
fn forging_the_header_of_a_decoder_is_refused() {
    type Change = fn(&mut Proof);
    let changes: [(&str, Change); 14] = [
        ("a prompt longer, its completion shorter", |p| p.header.sequences[0] = Sequence { prompt: 4, completion: 1 }),
        ("a prompt shorter, its completion longer", |p| p.header.sequences[0] = Sequence { prompt: 2, completion: 3 }),
        ("a sequence longer, the next shorter", |p| p.header.sequences = cut(&[(3, 3), (1, 1)])),
        ("sequences exchanged", |p| p.header.sequences.reverse()),
        ("sequences joined", |p| p.header.sequences = cut(&[(3, 5)])),
        ("sequences of one more", |p| p.header.sequences = cut(&[(3, 2), (1, 1), (1, 1)])),
        ("a completion token", |p| p.header.ids[3] = (p.header.ids[3] + 1) % 21),
        ("the last token", |p| p.header.ids[7] = (p.header.ids[7] + 1) % 21),
        ("the last token of the first sequence", |p| p.header.ids[4] = (p.header.ids[4] + 1) % 21),
        ("a prompt token", |p| p.header.ids[0] = (p.header.ids[0] + 1) % 21),
        ("a value of the first limb", |p| p.header.boundaries[0] += ONE),
        ("a value of the last limb", |p| p.header.boundaries[8] += ONE),
        ("limbs exchanged", |p| p.header.boundaries.swap(3, 4)),
        ("boundaries exchanged", |p| p.header.boundaries.rotate_left(3)),
    ];
    for (about, change) in changes {
        let mut forged = proof().clone();
        change(&mut forged);
        assert_ne!(&forged, proof(), "{about}");
        assert!(verdict(plain(), &forged).is_err(), "{about}");
        assert!(verify_reduced::<Blake2s>(&plain().toy.registered, &forged.write()).is_err(), "{about}");
    }
}

#[test]
fn forging_sequences_that_are_none_is_refused() {
    let full_prompt = |p: &mut Proof, lengths: &[(u32, u32)]| {
        p.header.sequences = cut(lengths);
        let total = lengths.iter().map(|l| l.0 + l.1).sum();
        p.header.ids = (0..total).map(|i| i % 21).collect();
    };
    type Change<'a> = Box<dyn Fn(&mut Proof) + 'a>;
    let cuts = |cuts: &'static [(u32, u32)]| Box::new(move |p: &mut Proof| p.header.sequences = cut(cuts)) as Change<'_>;
    let changes: Vec<(&str, Change<'_>)> = vec![
        ("none", cuts(&[])),
        ("ids left over", cuts(&[(3, 2), (1, 1)])),
        ("ids missing", cuts(&[(3, 2), (2, 2)])),
        ("an empty completion", cuts(&[(3, 2), (3, 0)])),
        ("an empty prompt", cuts(&[(3, 2), (0, 3)])),
        ("an empty sequence", cuts(&[(3, 2), (2, 1), (0, 0)])),
        ("lengths that wrap to the right sum", cuts(&[(u32::MAX, 6), (2, 1)])),
        ("a length beyond every text", cuts(&[(3, u32::MAX), (u32::MAX, u32::MAX)])),
        ("no ids", Box::new(|p| (p.header.ids, p.header.sequences) = (Vec::new(), Vec::new()))),
        ("longer than the positions", Box::new(|p| full_prompt(p, &[(64, 1)]))),
        ("one of several longer than the positions", Box::new(|p| full_prompt(p, &[(3, 2), (2, 64)]))),
        ("more rows than a proof takes", Box::new(|p| full_prompt(p, &[(60, 4); 17]))),
        ("an output, which encoders have", Box::new(|p| p.header.output = vec![0; 16])),
        ("an output of one value", Box::new(|p| p.header.output.push(0))),
    ];
    for (about, change) in changes {
        let mut forged = proof().clone();
        change(&mut forged);
        assert!(matches!(verdict(plain(), &forged), Err(VerifyError::Input(_))), "{about}");
        assert!(verify_reduced::<Blake2s>(&plain().toy.registered, &forged.write()).is_err(), "{about}");
    }
    // As long as the positions is long enough, and a count of boundaries is the model's.
    let mut longest = proof().clone();
    full_prompt(&mut longest, &[(63, 1)]);
    assert!(!matches!(verdict(plain(), &longest), Err(VerifyError::Input(_)) | Ok(())));
    let mut fewer = proof().clone();
    fewer.header.boundaries.truncate(3);
    assert!(matches!(both(plain(), &fewer), Err(VerifyError::Count { step: "boundaries", .. })));
}

#[test]
fn forging_a_proof_for_another_kind_of_model_is_refused() {
    // An encoder's proof with sequences; an encoder's proof for a decoder and the reverse, however they are labelled.
    let mut encoder = honest_proof().clone();
    encoder.header.sequences = cut(&[(2, 1)]);
    let verdict_of = crate::harness::verdict(&encoder);
    assert!(matches!(verdict_of, Err(VerifyError::Input(_))), "{verdict_of:?}");
    let mut as_decoder = honest_proof().clone();
    as_decoder.header.model_id = proof().header.model_id;
    assert!(verdict(plain(), &as_decoder).is_err());
    let mut as_encoder = proof().clone();
    as_encoder.header.model_id = honest_proof().header.model_id;
    assert!(crate::harness::verdict(&as_encoder).is_err());
    let mut other = proof().clone();
    other.header.model_id = full().toy.registered.model_id::<Blake2s>();
    assert!(verdict(full(), &other).is_err());
}

#[test]
fn every_value_of_a_decoder_s_proof_is_checked() {
    // One value at a time, of the embedding, a layer and the head.
    let last = proof().segments.len() - 1;
    for s in [0, 1, last] {
        let count = proof().segments[s].claims.product.accumulators.len();
        let claims = proof().segments[s].claims.product.claims.len();
        let weights = proof().segments[s].claims.product.weights.len();
        for i in (0..count).step_by(1 + count / 12) {
            let mut forged = proof().clone();
            forged.segments[s].claims.product.accumulators[i] += ONE;
            assert!(verdict(plain(), &forged).is_err(), "accumulator {i} of {s}");
        }
        for i in (0..claims).step_by(1 + claims / 12) {
            let mut forged = proof().clone();
            forged.segments[s].claims.product.claims[i] += ONE;
            assert!(verdict(plain(), &forged).is_err(), "claim {i} of {s}");
        }
        for i in (0..weights).step_by(1 + weights / 6) {
            let mut forged = proof().clone();
            forged.segments[s].claims.product.weights[i] += ONE;
            assert!(verdict(plain(), &forged).is_err(), "weight {i} of {s}");
        }
    }
    for i in 0..proof().header.boundaries.len() {
        let mut forged = proof().clone();
        forged.header.boundaries[i] += ONE;
        assert!(both(plain(), &forged).is_err(), "boundary {i}");
    }
}
