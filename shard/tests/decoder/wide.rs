//! Norms so wide that their sums of products are split: whole proofs, and provers who split or carry them otherwise.

use crate::equations;
use crate::forger::Forger;
use crate::place::Place;
use crate::segments::{broken, run_segments, segment_at};
use crate::toys::{CUTS, input, wide};
use obelysk_model::IntegerModel;
use obelysk_model::check::check;
use obelysk_protocol::circuit::norm::NormShape;
use obelysk_protocol::transcript::Blake2s;
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::aggregate::verify;
use obelysk_shard::kernels::simd::Simd;
use obelysk_shard::witness::centred;

/// The checked row that is attacked.
const ROW: usize = 1;
/// What the verifier says to a broken constraint or relation.
const EQUATIONS: VerifyError = VerifyError::FinalClaim("constraints, lookups and relations");

#[test]
fn a_wide_decoder_passes_the_check_and_its_segments_hold() {
    for (model, cuts) in wide().into_iter().zip([CUTS[3], CUTS[2]]) {
        let width = model.descriptor.width();
        assert!(NormShape::of(1 << 23, width as usize, 3, 1 << 14).part_bits.is_some());
        check(&model.descriptor, &model.weights).unwrap();
        run_segments(&model, &input(&model, cuts, 4), &format!("width {width}"));
    }
}

#[test]
fn a_proof_of_a_wide_decoder_verifies() {
    let k = Simd::default();
    for (model, cuts) in wide().into_iter().zip([CUTS[2], CUTS[1]]) {
        let input = input(&model, cuts, 5);
        Place::<Blake2s, _>::new(&k, model).whole(&k, &input);
    }
}

/// A registered wide decoder whose head is attacked.
fn place() -> Place<Blake2s, Simd> {
    let [model, _]: [IntegerModel; 2] = wide();
    Place::new(&Simd::default(), model)
}

/// A true witness of the place's own continuation.
fn honest(place: &Place<Blake2s, Simd>) -> Forger<'_> {
    let input = input(&place.model, CUTS[2], 6);
    Forger::new(place, &input, input.clone())
}

fn get(f: &Forger<'_>, column: &str) -> i64 {
    let c = &f.statement.circuits[f.head()];
    centred(f.columns[f.head()][equations::id(c, &format!("norm.row.{column}"))][ROW])
}

fn add(f: &mut Forger<'_>, column: &str, delta: i64) {
    let value = get(f, column) + delta;
    f.edit(&format!("norm.row.{column}"), ROW, value);
}

/// Adds to columns of the head's norm: exactly `expected` breaks, and the head is refused for `reason`. Leaves the witness true.
#[track_caller]
fn refused(f: &mut Forger<'_>, changes: &[(&str, i64)], expected: &[&str], reason: VerifyError) {
    let (s, place) = (f.head(), f.place);
    changes.iter().for_each(|&(column, delta)| add(f, column, delta));
    let seg = segment_at(&place.model, (&f.statement.circuits[s], s), (&f.statement.input, &f.trace));
    assert_eq!(broken(&place.model, &seg, &f.columns[s], s), expected, "{changes:?}");
    let verdict = verify::<Blake2s>(&place.registered, &f.prove()).map(|_| ());
    assert_eq!(verdict, Err(VerifyError::Segment { index: s, source: Box::new(reason) }), "{changes:?}");
    changes.iter().for_each(|&(column, delta)| add(f, column, -delta));
}

#[test]
fn other_parts_of_a_sum_of_products_are_refused() {
    let place = place();
    let f = &mut honest(&place);
    // A unit moved between the parts, with carries to match: every equation holds, the low part leaves its window.
    refused(f, &[("s00l", 1 << 16), ("s00h", -1), ("c0", 1)], &["in r16"], VerifyError::Lookups);
    refused(f, &[("s00l", -(1 << 16)), ("s00h", 1), ("c0", -1)], &["in r16"], VerifyError::Lookups);
    refused(f, &[("s02l", 1 << 16), ("s02h", -1), ("c1", 2)], &["in r16"], VerifyError::Lookups);
    refused(f, &[("s22l", 1 << 16), ("s22h", -1)], &["in r16"], VerifyError::Lookups);
    // The sum less p is the same sum mod p: its high part leaves the window of a square, and of a product that may be negative.
    let wrapped = ["in r13", "norm.square0", "norm.square1"];
    refused(f, &[("s00l", 1), ("s00h", -(1 << 15))], &wrapped, VerifyError::Lookups);
    let wrapped = ["in r14", "norm.square0", "norm.square1"];
    refused(f, &[("s01l", 1), ("s01h", -(1 << 15))], &wrapped, VerifyError::Lookups);
}

#[test]
fn another_sum_of_products_is_refused() {
    let place = place();
    let f = &mut honest(&place);
    // sigma is large enough that no equation but the chain reads the lowest digits.
    assert!(get(f, "sigma") > 9);
    verify::<Blake2s>(&place.registered, &f.prove()).unwrap();
    let up = if get(f, "g0") < 3 && get(f, "s00l") < 65_535 { 1 } else { -1 };
    refused(f, &[("s00l", up), ("g0", up)], &["norm.part00"], EQUATIONS);
    refused(f, &[("s00l", up)], &["norm.square0", "norm.part00"], EQUATIONS);
}

#[test]
fn a_carry_moved_between_lines_is_refused() {
    let place = place();
    let f = &mut honest(&place);
    refused(f, &[("c0", 1)], &["norm.square0", "norm.square1"], EQUATIONS);
    refused(f, &[("c1", -1)], &["norm.square1", "norm.square2"], EQUATIONS);
    // With the digits on both sides of it: the value of all digits is the same, and one of them is none.
    refused(f, &[("c0", 1), ("g7", -4), ("g8", 1)], &["in r2"], VerifyError::Lookups);
}
