//! The batch of the final sumcheck: what each claim of a segment contributes, derived from the circuit alone.
//!
//! Items get powers of one challenge: the tree's numerator and denominator, then constraints, then relations. Both sides
//! call [`plan`]; the prover sums what it describes and the verifier evaluates it at the end point.

use super::error::VerifyError;
use super::logup::LeafClaim;
use super::points::{Points, coordinates, mask_eval, public_eval};
use super::product::powers;
use crate::circuit::expr::{Expr, Source, Term};
use crate::circuit::segment::{Circuit, LeafKind, Value};
use crate::field::{ONE, QM31, ZERO, eq_at_index, eq_vector, mle_eval_ints, signed_ext};
use std::collections::BTreeMap;

/// `sum_x eq(point, x) sum_i coef_i column_i(x)`.
#[derive(Clone, Debug)]
pub struct LinearGroup {
    /// As long as every column of the group has variables.
    pub point: Vec<QM31>,
    /// Coefficient per column id, in id order.
    pub terms: Vec<(u32, QM31)>,
}

/// `sum_x eq(rho[..log_size], x) sum_i coef_i prod sources_i(x)`, monomials of degree at least two.
#[derive(Clone, Debug)]
pub struct ChipGroup {
    /// Rows are `2^log_size`.
    pub log_size: usize,
    /// `rho[..log_size]`.
    pub point: Vec<QM31>,
    /// Monomials in canonical order.
    pub terms: Vec<(QM31, Vec<Source>)>,
}

/// The final sumcheck of a segment.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The sum that must be proved.
    pub claim: QM31,
    /// Linear parts, by point.
    pub linear: Vec<LinearGroup>,
    /// Non-linear parts, by size.
    pub chips: Vec<ChipGroup>,
}

/// Values a plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct PlanInput<'a> {
    /// Tuple combination challenge.
    pub alpha: QM31,
    /// Fingerprint offset.
    pub beta: QM31,
    /// Batching challenge.
    pub lambda: QM31,
    /// Leaf claim of the LogUp tree.
    pub leaf: &'a LeafClaim,
    /// Accumulators' values.
    pub accumulators: &'a [QM31],
    /// Values of product inputs.
    pub claims: &'a [QM31],
    /// Values of the boundary with the previous segment, one per limb.
    pub boundary_in: &'a [QM31],
    /// Values of the boundary with the next segment, one per limb.
    pub boundary_out: &'a [QM31],
}

struct Collector<'a> {
    c: &'a Circuit,
    points: &'a Points,
    claim: QM31,
    linear: BTreeMap<(usize, usize), BTreeMap<u32, QM31>>,
    groups: Vec<Vec<QM31>>,
    chips: BTreeMap<(usize, Vec<Source>), QM31>,
}

/// Number of batched items: powers of lambda, hence the step's soundness error over q.
#[must_use]
pub fn item_count(c: &Circuit) -> usize {
    2 + c.constraints.len() + c.relations.len()
}

/// Derives the batch.
///
/// # Errors
/// A value or a coordinate that the circuit names and that is missing (the caller checked counts, so this is a defect of the
/// circuit), and a tuple that is not one of its table.
pub fn plan(c: &Circuit, points: &Points, input: &PlanInput<'_>) -> Result<Plan, VerifyError> {
    let mut k = Collector { c, points, claim: ZERO, linear: BTreeMap::new(), groups: Vec::new(), chips: BTreeMap::new() };
    let lambda = powers(input.lambda, item_count(c));
    k.lookups(input, lambda[0], lambda[1])?;
    for (constraint, &l) in c.constraints.iter().zip(&lambda[2..]) {
        k.expr(&constraint.expr, constraint.log_size, l)?;
    }
    for (relation, &l) in c.relations.iter().zip(&lambda[2 + c.constraints.len()..]) {
        for (coef, eval) in &relation.terms {
            let lo = points.resolve(&eval.lo)?;
            for (b, &col) in eval.blocks.iter().enumerate() {
                k.linear(&lo, col, l * signed_ext(*coef) * points.block_weight(eval, b)?);
            }
        }
        if let Some((value, blocks, hi)) = &relation.constant {
            let weights = eq_vector(&points.resolve(hi)?);
            let existing = weights.get(..*blocks).ok_or(VerifyError::Dangling { what: "a block", index: *blocks })?;
            let existing = existing.iter().fold(ZERO, |a, &w| a + w);
            k.claim -= l * signed_ext(*value) * existing;
        }
        for (coef, value) in &relation.values {
            let v = match value {
                Value::Accumulator(i) => input.accumulators.get(*i).copied(),
                Value::Claim(i) => input.claims.get(*i).copied(),
                Value::BoundaryIn(i) => input.boundary_in.get(*i).copied(),
                Value::BoundaryOut(i) => input.boundary_out.get(*i).copied(),
            };
            k.claim += l * signed_ext(*coef) * v.ok_or(VerifyError::FinalClaim("relations"))?;
        }
    }
    k.finish()
}

impl Collector<'_> {
    /// Numerators and denominators of all leaves.
    fn lookups(&mut self, input: &PlanInput<'_>, num: QM31, den: QM31) -> Result<(), VerifyError> {
        self.claim += num * input.leaf.numerator + den * input.leaf.denominator;
        let rho = self.points.rho_range(0, self.c.tree_log())?.to_vec();
        // Masked lookups are all of score rows: one size, one value.
        let mut masks = BTreeMap::new();
        let alphas = powers(input.alpha, 1 + self.c.tuple_len());
        let mut covered = ZERO;
        for leaf in self.c.leaves() {
            let n = leaf.log_size;
            let (lo, hi) = rho.split_at(n);
            let select = eq_at_index(leaf.offset >> n, hi);
            covered += select;
            match leaf.kind {
                LeafKind::Lookup(i) => {
                    let lookup = &self.c.lookups[i];
                    let table = &self.c.tables[lookup.table];
                    let (found, expected) = (lookup.inputs.len(), table.columns.len());
                    if found != expected {
                        return Err(VerifyError::Count { step: "entries of a tuple", found, expected });
                    }
                    let numerator = match (lookup.masked, masks.get(&n)) {
                        (false, _) => ONE,
                        (true, Some(&mask)) => mask,
                        (true, None) => *masks.entry(n).or_insert(mask_eval(self.c, lo)?),
                    };
                    self.claim -= num * select * numerator;
                    self.claim -= den * select * (input.beta - signed_ext(i64::from(table.tag)));
                    for (e, &a) in lookup.inputs.iter().zip(&alphas[1..]) {
                        self.expr(e, n, -(den * select * a))?;
                    }
                }
                LeafKind::Table(i) => {
                    let table = &self.c.tables[i];
                    let mut fingerprint = input.beta - signed_ext(i64::from(table.tag));
                    for (col, &a) in table.columns.iter().zip(&alphas[1..]) {
                        fingerprint -= a * col.evaluate(lo);
                    }
                    self.claim -= den * select * fingerprint;
                    self.linear(lo, table.multiplicity, -(num * select));
                }
            }
        }
        // Leaves beyond the last block are 0 / 1.
        self.claim -= den * (ONE - covered);
        Ok(())
    }

    /// Adds `coef * expr` at rho, rows `2^n`; public monomials move to the claim.
    fn expr(&mut self, e: &Expr, n: usize, coef: QM31) -> Result<(), VerifyError> {
        for Term { coef: k, factors } in e.terms() {
            let w = coef * signed_ext(k);
            match factors.as_slice() {
                [] => self.claim -= w,
                [Source::Col(c)] => {
                    let log = self.c.columns[*c as usize].log_size;
                    let point = self.points.rho_range(0, log)?.to_vec();
                    self.linear(&point, *c, w);
                }
                [public] if public.is_public() => self.claim -= w * source_eval(self.c, &self.points.rho, *public, &[])?,
                _ => *self.chips.entry((n, factors)).or_insert(ZERO) += w,
            }
        }
        Ok(())
    }

    fn linear(&mut self, point: &[QM31], col: u32, coef: QM31) {
        let found = self.groups.iter().position(|g| g == point);
        let id = found.unwrap_or_else(|| {
            self.groups.push(point.to_vec());
            self.groups.len() - 1
        });
        *self.linear.entry((point.len(), id)).or_default().entry(col).or_insert(ZERO) += coef;
    }

    fn finish(self) -> Result<Plan, VerifyError> {
        let linear = self
            .linear
            .into_iter()
            .map(|((_, id), terms)| LinearGroup { point: self.groups[id].clone(), terms: terms.into_iter().collect() })
            .collect();
        let mut chips: Vec<ChipGroup> = Vec::new();
        for ((log_size, factors), coef) in self.chips {
            match chips.last_mut() {
                Some(g) if g.log_size == log_size => g.terms.push((coef, factors)),
                _ => {
                    let point = self.points.rho_range(0, log_size)?.to_vec();
                    chips.push(ChipGroup { log_size, point, terms: vec![(coef, factors)] });
                }
            }
        }
        Ok(Plan { claim: self.claim, linear, chips })
    }
}

/// A source at a point: columns by their claimed values, parameters and the mask by the verifier itself.
///
/// # Errors
/// [`VerifyError::Dangling`] for a source that circuit or values do not have, [`VerifyError::Point`], [`VerifyError::Count`].
pub fn source_eval(c: &Circuit, z: &[QM31], s: Source, columns: &[QM31]) -> Result<QM31, VerifyError> {
    let missing = |what, index: u32| VerifyError::Dangling { what, index: index as usize };
    match s {
        Source::Col(i) => columns.get(i as usize).copied().ok_or_else(|| missing("a column", i)),
        Source::Param(i) => {
            let p = c.params.get(i as usize).ok_or_else(|| missing("a parameter", i))?;
            Ok(mle_eval_ints(&p.values, coordinates("a row's point", z, c.token_log, p.log_size)?))
        }
        Source::Public(i) => public_eval(c, c.public.get(i as usize).ok_or_else(|| missing("a public column", i))?, z),
        Source::Mask => mask_eval(c, z),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circuit::segment::{Column, Lookup};
    use crate::circuit::table::{RowIndex, Table, TableColumn};

    /// One lookup of `n` entries, `last` the last of them, in a table of as many columns.
    fn looked_up(n: usize, last: i64, columns: usize) -> Result<QM31, VerifyError> {
        let mut inputs = vec![Expr::constant(1); n];
        inputs[n - 1] = Expr::constant(last);
        let table = Table {
            name: "t".into(),
            tag: 1,
            log_size: 1,
            columns: vec![TableColumn::Identity { offset: 0 }; columns],
            index: RowIndex::First { offset: 0 },
            multiplicity: 0,
        };
        let c = Circuit {
            columns: vec![Column { name: "m".into(), log_size: 1 }],
            tables: vec![table],
            lookups: vec![Lookup { table: 0, inputs, log_size: 1, masked: false }],
            ..Circuit::default()
        };
        let x = |k: u32| QM31::from_u32_unchecked(k, k + 1, 7, 11);
        let points = Points { rho: vec![x(3), x(9)], ..Points::default() };
        let leaf = LeafClaim { point: points.rho.clone(), numerator: ZERO, denominator: ZERO };
        let none: &[QM31] = &[];
        let input = PlanInput {
            alpha: x(20),
            beta: x(30),
            lambda: x(40),
            leaf: &leaf,
            accumulators: none,
            claims: none,
            boundary_in: none,
            boundary_out: none,
        };
        plan(&c, &points, &input).map(|p| p.claim)
    }

    #[test]
    fn every_entry_of_a_tuple_counts() {
        for n in [1, 5, 7, 8, 12] {
            assert!(looked_up(n, 2, n).is_ok());
            assert_ne!(looked_up(n, 2, n), looked_up(n, 3, n), "entry {n}");
        }
    }

    #[test]
    fn a_tuple_that_is_longer_or_shorter_than_its_table_is_refused() {
        for (n, columns) in [(1, 2), (2, 1)] {
            let refused = VerifyError::Count { step: "entries of a tuple", found: n, expected: columns };
            assert_eq!(looked_up(n, 2, columns), Err(refused));
        }
    }
}
