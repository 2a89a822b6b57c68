//! Forged wiring: hidden states that differ between neighbours, other tokens than stated, padding that carries mass, another
//! output, and commitments to something else than what is proved.

use crate::harness::{EQUATIONS, Forger, IDS, Toy, hidden, honest, inside, refused, toy, verdict};
use obelysk_model::infer::{self, ModelTrace};
use obelysk_model::toy::{encoder, encoder_mut};
use obelysk_protocol::field::signed;
use obelysk_protocol::verifier::VerifyError;

fn trace() -> ModelTrace {
    infer::run(&toy().model, &IDS).unwrap()
}

/// A run whose segments after `l` received something else than segment `l` sent.
fn torn(l: usize) -> Forger {
    let model = &toy().model;
    let d = encoder(model);
    let mut other = trace();
    let mut u = hidden(&other, l).to_vec();
    u[5] += 1;
    for s in l + 1..=d.layers.len() {
        other.layers[s - 1] = infer::layer(d, &d.layers[s - 1], &model.weights.segments[s], &u, 3, 4).unwrap();
        u = other.layers[s - 1].ffn.norm.u.clone();
    }
    other.pooled = infer::pool(&u, 3, 4);
    let mut f = honest().clone();
    let later = Forger::of_trace(model, &other, &IDS, &IDS);
    for s in l + 1..f.columns.len() {
        f.columns[s].clone_from(&later.columns[s]);
    }
    f.output = other.pooled;
    // What was received is kept by the trace of nobody: the sender's state with the same cell changed.
    for (b, cells) in hidden(&trace(), l).chunks(16).enumerate() {
        *f.column(l + 1, &format!("input.{b}")) = cells.iter().map(|&v| signed(v.into())).collect();
    }
    f.add(l + 1, "input.0", 5, 1);
    f
}

#[test]
fn forging_a_boundary_is_refused_on_either_side() {
    for l in 0..3 {
        let mut f = torn(l);
        // The value of the sender: the receiver cannot open it. The value of the receiver: the sender cannot.
        refused(&f, &[&format!("{} boundary_in", l + 1)], l + 1, EQUATIONS);
        f.from_receiver = true;
        refused(&f, &[&format!("{l} boundary_out")], l, EQUATIONS);
    }
}

#[test]
fn forging_the_tokens_is_refused() {
    // Honest runs of other inputs: another id, another order, one token more.
    for run in [&[1u32, 2, 4][..], &[2, 1, 3], &[1, 2, 3, 4]] {
        let f = Forger::of(&toy().model, run, &IDS);
        let forged = f.prove_with(0, &|_| &crate::harness::Honest);
        assert_eq!(forged.broken, ["0 embed.acc"], "{run:?}");
        assert_eq!(verdict(&forged.proof), inside(0, EQUATIONS));
    }
}

#[test]
fn forging_mass_in_a_padding_token_is_refused() {
    let mut model = toy().model.clone();
    encoder_mut(&mut model).vocab = 10;
    let with_mass = infer::run(&toy().model, &[1, 2, 3, 4]).unwrap();
    let mut t = trace();
    t.embed = with_mass.embed;
    let f = Forger::of_trace(&model, &t, &IDS, &IDS);
    refused(&f, &["0 embed.acc"], 0, EQUATIONS);
}

#[test]
fn forging_the_output_is_refused() {
    for change in [1i64, -1] {
        let mut f = honest().clone();
        f.output[3] += change;
        refused(&f, &[], 3, VerifyError::Output);
    }
    // The padding token's state added to the pool.
    let mut f = honest().clone();
    let t = trace();
    for (c, v) in f.output.iter_mut().enumerate() {
        *v += i64::from(hidden(&t, 2)[c * 4 + 3]);
    }
    assert_ne!(f.output, honest().output);
    refused(&f, &[], 3, VerifyError::Output);
}

#[test]
fn forging_an_output_beyond_its_bound_is_refused() {
    for v in [i64::MIN, i64::MAX, (3 << 15) + 1, -(3 << 15) - 1] {
        let mut proof = crate::harness::honest_proof().clone();
        proof.header.output[0] = v;
        assert!(matches!(verdict(&proof), Err(VerifyError::Input(_))), "{v}");
    }
}

#[test]
fn forging_what_is_committed_is_refused() {
    // Proved about an honest witness, committed to another one: of another input, or off by one cell in one column.
    let other = Forger::of(&toy().model, &[1, 2, 4], &[1, 2, 4]);
    let mut cell = honest().clone();
    cell.add(1, "up.2.g", 9, 1);
    for columns in [&other.columns[1], &cell.columns[1]] {
        let mut f = honest().clone();
        f.committed[1] = Some(columns.clone());
        let forged = f.prove_with(1, &|_| &crate::harness::Honest);
        assert_eq!(forged.broken, [""; 0]);
        let verdict = verdict(&forged.proof);
        assert!(
            matches!(&verdict, Err(VerifyError::Segment { index: 1, source }) if matches!(**source, VerifyError::Opening(_))),
            "{verdict:?}"
        );
    }
}

#[test]
fn forging_by_committing_two_columns_exchanged_is_refused() {
    // Same sizes, same cells, other places: the offsets of the stack are the circuit's, not the prover's.
    let mut f = honest().clone();
    let mut columns = f.columns[1].clone();
    let ids = ["q.0.y", "k.0.y"].map(|n| crate::equations::id(&f.circuits[1], n));
    columns.swap(ids[0], ids[1]);
    f.committed[1] = Some(columns);
    let forged = f.prove_with(1, &|_| &crate::harness::Honest);
    let verdict = verdict(&forged.proof);
    assert!(matches!(&verdict, Err(VerifyError::Segment { index: 1, .. })), "{verdict:?}");
}

#[test]
fn forging_another_model_s_run_is_refused() {
    let other = Toy::new(obelysk_model::toy::model(6));
    let f = Forger::of(&other.model, &IDS, &IDS);
    let forged = f.prove_with(0, &|_| &crate::harness::Honest);
    assert!(forged.broken.contains(&"0 embed.acc".to_owned()));
    assert!(matches!(verdict(&forged.proof), Err(VerifyError::Segment { index: 0, .. })));
    // The registered roots are in the statement: with the other model's, the same bytes are another model's proof.
    let mut mixed = toy().registered.clone();
    mixed.roots[1] = other.registered.roots[1];
    let proof = crate::harness::honest_proof();
    let verdict = obelysk_protocol::verifier::aggregate::verify::<obelysk_protocol::transcript::Blake2s>(&mixed, proof);
    assert!(matches!(verdict, Err(VerifyError::Statement { field: "model id", .. })));
}
