//! Circuits of decoders: every shape builds and leaves nothing dangling; a descriptor whose equations could wrap mod p is
//! refused; no descriptor makes the builder panic.

use obelysk_model::preset;
use obelysk_model::toy::{self, DecoderToy};
use obelysk_model::validate::outline;
use obelysk_protocol::circuit::attention::ExpTables;
use obelysk_protocol::circuit::descriptor::{Decoder, DecoderLayer, Descriptor};
use obelysk_protocol::circuit::expr::{Expr, Source};
use obelysk_protocol::circuit::rotary::reach;
use obelysk_protocol::circuit::segment::{Circuit, Coord, Factor, Value, log2_ceil};
use obelysk_protocol::circuit::{self, BuildError, PublicInput, Sequence, exp_tables, segment_count};
use obelysk_protocol::verifier::aggregate::MINIMUM_SECURITY_BITS;
use obelysk_protocol::verifier::mode::Mode;
use obelysk_protocol::verifier::registered::{Registered, SecurityParams};
use obelysk_protocol::verifier::soundness;
use std::collections::BTreeSet;
use std::sync::OnceLock;

fn exp() -> &'static ExpTables {
    static TABLES: OnceLock<ExpTables> = OnceLock::new();
    TABLES.get_or_init(exp_tables)
}

pub fn input(cuts: &[(u32, u32)]) -> PublicInput {
    let sequences: Vec<Sequence> = cuts.iter().map(|&(prompt, completion)| Sequence { prompt, completion }).collect();
    let ids = (0..cuts.iter().map(|c| c.0 + c.1).sum()).map(|i| i % 20).collect();
    PublicInput { ids, sequences, output: Vec::new() }
}

pub fn build(d: &Decoder, input: &PublicInput) -> Result<Vec<Circuit>, BuildError> {
    let d = Descriptor::Decoder(d.clone());
    (0..segment_count(&d)).map(|s| circuit::build(&d, exp(), input, s)).collect()
}

pub fn descriptor(toy: &DecoderToy) -> Decoder {
    toy::decoder_of(&toy::decoder(toy)).clone()
}

/// One layer with everything on.
pub const FULL: DecoderToy = DecoderToy {
    seed: 3,
    group: 3,
    kv_heads: 2,
    head_dim: 12,
    head_norm: true,
    cap: true,
    window: 2,
    branch_norm: true,
    limbs: 2,
    accumulators: 2,
    layers: 1,
    width: 16,
    ffn: 24,
    vocab: 21,
    positions: 64,
};

pub fn plain() -> DecoderToy {
    DecoderToy { layers: 1, ..DecoderToy::default() }
}

/// Columns an expression reads.
fn columns_of(e: &Expr) -> BTreeSet<u32> {
    e.sources().into_iter().filter_map(|s| if let Source::Col(c) = s { Some(c) } else { None }).collect()
}

/// Variables of rho that a factor depends on.
fn rho_of(c: &Circuit, f: &Factor) -> BTreeSet<usize> {
    let named = |coords: &[Coord]| coords.iter().filter_map(|k| if let Coord::Rho(k) = k { Some(*k) } else { None }).collect();
    match f {
        Factor::Claim(i) => named(&[c.claims[*i].lo.clone(), c.claims[*i].hi.clone()].concat()),
        Factor::Weight(m) => (c.token_log..c.token_log + log2_ceil(c.matrices[*m].outputs)).collect(),
        Factor::Eq { coords, .. } => named(coords),
        Factor::OneHot(_) => (0..c.token_log).collect(),
        Factor::RealTokens => BTreeSet::new(),
    }
}

/// Nothing is committed, claimed or summed that nothing reads.
fn audit(c: &Circuit, about: &str) {
    let names: BTreeSet<&str> = c.columns.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names.len(), c.columns.len(), "{about}: two columns of one name");
    let mut uses = vec![0usize; c.columns.len()];
    let lookups = c.lookups.iter().map(|l| l.inputs.iter().flat_map(columns_of).collect::<BTreeSet<_>>());
    let constraints = c.constraints.iter().map(|e| columns_of(&e.expr));
    let relations = c.relations.iter().map(|r| r.terms.iter().flat_map(|t| t.1.blocks.clone()).collect());
    for set in lookups.chain(constraints).chain(relations) {
        set.into_iter().for_each(|col| uses[col as usize] += 1);
    }
    for (col, &n) in c.columns.iter().zip(&uses) {
        // A multiplicity is read by the tree alone. Anything else needs something that binds it and something it says.
        let multiplicity = col.name.starts_with("mult.");
        assert!(multiplicity || n >= 2, "{about}: column {} is in {n} equations", col.name);
    }
    for (i, p) in c.products.iter().enumerate() {
        // A product of two functions of one variable of rho would not be the extension of what it is on the cube.
        let mut seen = BTreeSet::new();
        let once = p.factors.iter().flat_map(|f| rho_of(c, f)).all(|k| seen.insert(k));
        assert!(once, "{about}: two factors of product {} depend on one variable", p.name);
        let read = c.relations.iter().any(|r| r.values.iter().any(|v| v.1 == Value::Accumulator(i)));
        assert!(read, "{about}: product {} is in no relation", p.name);
    }
    let factors: Vec<&Factor> = c.products.iter().flat_map(|p| &p.factors).collect();
    for i in 0..c.claims.len() {
        let tied = c.relations.iter().filter(|r| r.values == [(1, Value::Claim(i))] && r.terms == [(1, c.claims[i].clone())]);
        assert_eq!(tied.count(), 1, "{about}: claim {i} is not tied to its columns");
        assert!(factors.iter().any(|f| matches!(f, Factor::Claim(k) if *k == i)), "{about}: claim {i} is in no product");
    }
    for i in 0..c.matrices.len() {
        assert!(factors.iter().any(|f| matches!(f, Factor::Weight(k) if *k == i)), "{about}: matrix {i} is in no product");
    }
    for i in 0..c.selections.len() {
        assert!(factors.iter().any(|f| matches!(f, Factor::OneHot(k) if *k == i)), "{about}: selection {i} is in no product");
    }
}

#[test]
fn every_shape_builds_and_leaves_nothing_dangling() {
    let cuts: [&[(u32, u32)]; 3] = [&[(1, 1)], &[(3, 2), (1, 1)], &[(2, 1), (1, 3), (2, 2)]];
    let mut toys: Vec<DecoderToy> = Vec::new();
    for group in [1, 2, 3, 5, 7] {
        for (kv_heads, head_dim) in [(1, 2), (2, 6), (3, 8), (6, 10), (4, 12), (5, 18)] {
            toys.push(DecoderToy { group, kv_heads, head_dim, ..FULL });
            toys.push(DecoderToy { group, kv_heads, head_dim, ..plain() });
        }
    }
    for bits in 0..32u32 {
        let on = |i: u32| bits >> i & 1 == 1;
        let (limbs, accumulators) = (1 + u8::from(on(3)), 1 + u8::from(on(4)));
        toys.push(DecoderToy { head_norm: on(0), cap: on(1), branch_norm: on(2), limbs, accumulators, ..FULL });
    }
    toys.extend([1, 3, 100].map(|window| DecoderToy { window, layers: 2, ..plain() }));
    toys.extend([1, 16, 40, 300].map(|vocab| DecoderToy { vocab, ..plain() }));
    for (i, toy) in toys.iter().enumerate() {
        let mut input = input(cuts[i % cuts.len()]);
        input.ids.iter_mut().for_each(|id| *id %= toy.vocab);
        let circuits = build(&descriptor(toy), &input).unwrap_or_else(|e| panic!("{toy:?}: {e}"));
        circuits.iter().for_each(|c| audit(c, &format!("{toy:?} {}", c.name)));
    }
}

#[test]
fn circuits_of_the_size_of_every_preset_leave_nothing_dangling() {
    for p in preset::all().unwrap() {
        let d = outline(&p);
        let circuits = build(d.decoder().unwrap(), &input(&[(3, 2), (1, 1)])).unwrap_or_else(|e| panic!("{}: {e}", p.name));
        circuits.iter().for_each(|c| audit(c, &format!("{} {}", p.name, c.name)));
        // Products of a norm are split where the width asks for it, and nowhere else.
        let split = |c: &Circuit| c.columns.iter().any(|c| c.name.ends_with(".row.s00l"));
        assert_eq!(circuits.iter().map(split).collect::<Vec<_>>(), [false, p.width > 5482, p.width > 5482], "{}", p.name);
    }
}

#[test]
fn proofs_of_the_size_of_every_preset_have_the_bits_that_a_verifier_asks_for() {
    for p in preset::all().unwrap() {
        let descriptor = outline(&p);
        let circuits = build(descriptor.decoder().unwrap(), &input(&[(1, 1024)])).unwrap();
        let security = SecurityParams::standard(descriptor.blowup_log());
        let model = Registered { descriptor, roots: Vec::new(), security, manifest: [0; 32] };
        let bits = soundness::minimum(&soundness::budget(&model, Mode::Forked, &circuits));
        assert!(bits >= MINIMUM_SECURITY_BITS, "{}: {bits} bits", p.name);
    }
}

type Change = fn(&mut Decoder);

fn layer(d: &mut Decoder) -> &mut DecoderLayer {
    &mut d.layers[0]
}

/// What the builder says to a changed descriptor.
fn verdict(toy: &DecoderToy, change: Change) -> BuildError {
    let mut d = descriptor(toy);
    let input = input(&[(3, 2), (1, 1)]);
    assert!(build(&d, &input).is_ok());
    change(&mut d);
    build(&d, &input).map(|_| ()).expect_err("a circuit that must be refused")
}

#[test]
fn equations_that_could_wrap_are_refused() {
    let wraps: [(&str, Change); 6] = [
        // g t^ + v + 2^e tau reaches p: the largest gate value is a matter of e.
        ("product.0.acc", |d| {
            layer(d).activation[7] = 32_767;
            layer(d).product.e = 12;
        }),
        ("attn.x.0.sum", |d| layer(d).attn_branch.mult[3] = 60_000),
        ("attn.x.0.sum", |d| layer(d).attn_branch.shift = 7),
        ("x.0.scale", |d| d.embed.scale[1] = i32::MAX),
        ("gate.0.rem", |d| layer(d).gate.b[1] = i32::MIN),
        ("v.0.0.rem", |d| layer(d).v.m[1] = 1 << 16),
    ];
    for (equation, change) in wraps {
        let error = verdict(&plain(), change);
        assert!(matches!(&error, BuildError::Wraps { equation: found, .. } if found == equation), "{equation}: {error}");
    }
    let error = verdict(&FULL, |d| layer(d).ffn_branch.norm.as_mut().unwrap().mult[0] = 70_000);
    assert!(matches!(&error, BuildError::Wraps { equation, .. } if equation == "ffn.y.0.scale"), "{error}");
}

#[test]
fn a_rotation_that_can_exceed_its_limit_is_refused() {
    let lies: [Change; 6] = [
        |d| layer(d).q.limit = reach(&layer(d).q).pairs.iter().max().copied().unwrap_or(0) as i32 - 1,
        |d| layer(d).k.limit = reach(&layer(d).k).pairs.iter().max().copied().unwrap_or(0) as i32 - 1,
        |d| layer(d).q.limit = -1,
        |d| layer(d).k.rotary.gain[1] += 1 << 13,
        |d| layer(d).q.rotary.gain.fill(i32::MIN),
        |d| layer(d).k.rotary.shift -= 1,
    ];
    for toy in [plain(), FULL] {
        for change in lies {
            let error = verdict(&toy, change);
            assert!(matches!(&error, BuildError::Shape { reason, .. } if reason.contains("exceed its limit")), "{error}");
        }
    }
    // The exact reach is a true limit.
    let mut d = descriptor(&plain());
    let l = layer(&mut d);
    for r in [&mut l.q, &mut l.k] {
        r.limit = reach(r).pairs.iter().max().copied().unwrap_or(0) as i32;
    }
    assert!(build(&d, &input(&[(2, 1)])).is_ok());
}

#[test]
fn numbers_outside_their_ranges_are_refused() {
    let shapes: [Change; 14] = [
        |d| layer(d).o.e = 8,
        |d| layer(d).down.e = 17,
        |d| layer(d).down.limbs = 3,
        |d| layer(d).o.limbs = 0,
        |d| d.head.mult[0] = 0,
        |d| d.head.mult[20] = 256,
        |d| d.head.mult.push(1),
        |d| d.frequencies.push(1),
        |d| d.frequencies.truncate(1),
        |d| layer(d).v.hi = 2048,
        |d| layer(d).v.lo = -2049,
        |d| layer(d).score_shift = 1,
        |d| layer(d).score_cap.as_mut().unwrap().table[5] = 1 << 20,
        |d| layer(d).score_cap.as_mut().unwrap().e = 14,
    ];
    for change in shapes {
        let error = verdict(&FULL, change);
        assert!(matches!(&error, BuildError::Shape { .. }), "{error}");
    }
    let plainly: [Change; 4] =
        [|d| layer(d).score_shift = 0, |d| layer(d).score_shift = 8, |d| layer(d).up.e = 14, |d| layer(d).product.e = 0];
    for change in plainly {
        let error = verdict(&plain(), change);
        assert!(matches!(&error, BuildError::Shape { .. }), "{error}");
    }
    // What a cap's rounding represents is less than what queries and keys can reach.
    let error = verdict(&FULL, |d| {
        let l = layer(d);
        for r in [&mut l.q, &mut l.k] {
            r.rotary.gain.fill(16_600);
            (r.rotary.shift, r.limit) = (14, 32_767);
        }
    });
    assert!(matches!(&error, BuildError::Shape { reason, .. } if reason.contains("a score can reach")), "{error}");
    // Scores that wrap although every rotated value fits its own window.
    let error = verdict(&plain(), |d| {
        let l = layer(d);
        for r in [&mut l.q, &mut l.k] {
            (r.linear.lo, r.linear.hi, r.linear.k) = (-16_384, 16_383, 9);
            r.linear.b.fill(1 << 8);
            r.limit = reach(r).pairs.iter().max().copied().unwrap_or(0) as i32;
        }
    });
    assert!(matches!(&error, BuildError::Wraps { equation, .. } if equation.starts_with("score.0.acc")), "{error}");
}
