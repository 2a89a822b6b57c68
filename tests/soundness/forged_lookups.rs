//! Forged lookups: multiplicities, tags, roots, and what an out-of-table value would need.

use crate::harness::{Columns, Forger, Honest, Steps, honest, inside, refused, toy, verdict};
use obelysk_model::toy::encoder;
use obelysk_protocol::circuit::BuildError;
use obelysk_protocol::circuit::builder::Builder;
use obelysk_protocol::circuit::segment::{Circuit, tag_leaves};
use obelysk_protocol::field::{P, QM31, ZERO, signed};
use obelysk_protocol::transcript::{Blake2s, Transcript};
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::logup::{GkrLayer, LeafClaim};
use obelysk_shard::kernels::reference::Reference;
use obelysk_shard::prover::logup;

/// A layer.
const S: usize = 1;

fn multiplicity<'a>(f: &'a mut Forger, table: &str) -> &'a mut Vec<obelysk_protocol::field::M31> {
    f.column(S, &format!("mult.{table}"))
}

#[test]
fn forging_a_multiplicity_is_refused() {
    for (table, row) in [("r16", 5), ("exp", 1 << 16), ("r1.6", 0), ("reciprocal", 65_535)] {
        let mut f = honest().clone();
        multiplicity(&mut f, table)[row] += signed(1);
        refused(&f, &[], S, VerifyError::Lookups);
    }
}

#[test]
fn forging_multiplicity_moved_between_rows_or_tables_is_refused() {
    // The sum of all numerators stays zero in every case.
    for (from, to) in [(("r8", 3), ("r16", 3)), (("r16", 3), ("r16", 4)), (("r2", 1), ("r3", 1))] {
        let mut f = honest().clone();
        multiplicity(&mut f, from.0)[from.1] -= signed(1);
        multiplicity(&mut f, to.0)[to.1] += signed(1);
        refused(&f, &[], S, VerifyError::Lookups);
    }
}

#[test]
fn forging_by_tag_swap_is_refused() {
    // 37 is no row of r5 but one of r8: count it there. The residual is made to fit.
    let shift = encoder(&toy().model).layers[0].attn_residual.shift;
    let mut model = toy().model.clone();
    model.descriptor.encoder_mut().expect("an encoder").layers[0].attn_residual.bias[0] -= 1 << shift;
    let mut f = Forger::of(&model, &crate::harness::IDS, &crate::harness::IDS);
    let mut high = Vec::new();
    for t in 0..4 {
        f.add(S, "norm1.0.rho_w", t, 1 << shift);
        high.push(f.get(S, "norm1.0.rho_w", t) as usize);
    }
    f.recount(S);
    for v in high {
        multiplicity(&mut f, "r8")[v] += signed(1);
    }
    refused(&f, &["1 in r5"], S, VerifyError::Lookups);
}

#[test]
fn forging_by_counting_a_bad_value_at_another_row_is_refused() {
    let mut f = honest().clone();
    let r = f.get(S, "mix.0.r", 0);
    f.add(S, "mix.0.r", 0, 1 << 14);
    f.add(S, "mix.0.y", 0, -1);
    f.recount(S);
    multiplicity(&mut f, "r14")[r as usize] += signed(1);
    let forged = f.prove_with(S, &|_| &Honest);
    assert_eq!(forged.broken[0], "1 in r14");
    assert_eq!(verdict(&forged.proof), inside(S, VerifyError::Lookups));
}

/// Sends a root whose denominators are zero: 0 / 0 balances any numerators.
struct ZeroRoot;

impl Steps for ZeroRoot {
    fn logup(&self, t: &mut Transcript<Blake2s>, c: &Circuit, columns: &Columns, at: (QM31, QM31)) -> (Vec<GkrLayer>, LeafClaim) {
        let (mut layers, claim) = logup::prove(t, &Reference, c, columns, at);
        layers[0].mask = [ZERO; 4];
        (layers, claim)
    }
}

/// Scales the root's numerators, or its denominators, by zero or by two.
struct ScaledRoot(i64, i64);

impl Steps for ScaledRoot {
    fn logup(&self, t: &mut Transcript<Blake2s>, c: &Circuit, columns: &Columns, at: (QM31, QM31)) -> (Vec<GkrLayer>, LeafClaim) {
        let (mut layers, claim) = logup::prove(t, &Reference, c, columns, at);
        for (k, v) in layers[0].mask.iter_mut().enumerate() {
            *v *= obelysk_protocol::field::signed_ext(if k < 2 { self.0 } else { self.1 });
        }
        (layers, claim)
    }
}

#[test]
fn forging_the_root_is_refused() {
    let f = honest();
    let steps: [&'static dyn Steps; 4] = [&ZeroRoot, &ScaledRoot(1, 0), &ScaledRoot(0, 1), &ScaledRoot(2, 1)];
    for s in steps {
        let forged = f.prove_with(S, &|l| if l == S { s } else { &Honest });
        assert_eq!(verdict(&forged.proof), inside(S, VerifyError::Lookups));
    }
}

#[test]
fn fewer_than_p_lookups_share_a_tag() {
    // p copies of one bad value cancel in characteristic p, so this count is what the lookup argument stands on.
    for c in &honest().circuits {
        for (t, table) in c.tables.iter().enumerate() {
            assert!(tag_leaves(c, t) < u64::from(P), "{}", table.name);
        }
    }
}

#[test]
fn a_circuit_with_p_lookups_of_one_tag_is_refused() {
    let build = |log: usize| {
        let mut b = Builder::new("s", 4, 2);
        b.bound_column("x", log, (0, 255));
        b.finish().map(|_| ())
    };
    assert_eq!(build(30), Ok(()));
    assert!(matches!(build(31), Err(BuildError::Shape { .. })));
}
