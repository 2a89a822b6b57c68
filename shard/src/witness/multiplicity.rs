//! How often each table row is looked up.

use super::WitnessError;
use crate::kernels::rows::{mask_column, param_column, public_column};
use obelysk_protocol::circuit::expr::{Expr, Source};
use obelysk_protocol::circuit::segment::{Circuit, Lookup};
use obelysk_protocol::field::{M31, P, signed};
use rayon::prelude::*;

/// The representative of a field element in `(-p/2, p/2]`.
#[must_use]
pub fn centred(v: M31) -> i64 {
    let v = i64::from(v.0);
    if v > i64::from(P) / 2 { v - i64::from(P) } else { v }
}

/// One multiplicity column per table.
///
/// # Errors
/// [`WitnessError::Lookup`] naming a tuple that is not in its table.
pub fn count(c: &Circuit, columns: &[Vec<M31>]) -> Result<Vec<Vec<M31>>, WitnessError> {
    (0..c.tables.len()).into_par_iter().map(|t| count_table(c, columns, t)).collect()
}

fn count_table(c: &Circuit, columns: &[Vec<M31>], table: usize) -> Result<Vec<M31>, WitnessError> {
    let rows = c.tables[table].materialise();
    let zero = || vec![0u32; rows.first().map_or(0, Vec::len)];
    let add = |mut a: Vec<u32>, b: Vec<u32>| {
        a.iter_mut().zip(b).for_each(|(x, y)| *x += y);
        Ok(a)
    };
    let lookups: Vec<&Lookup> = c.lookups.iter().filter(|l| l.table == table).collect();
    let counts = lookups
        .par_iter()
        .try_fold(zero, |mut counts, lookup| count_lookup(c, columns, lookup, &rows, &mut counts).map(|()| counts))
        .try_reduce(zero, add)?;
    Ok(counts.into_iter().map(|n| signed(i64::from(n))).collect())
}

fn count_lookup(
    c: &Circuit,
    columns: &[Vec<M31>],
    lookup: &Lookup,
    rows: &[Vec<M31>],
    counts: &mut [u32],
) -> Result<(), WitnessError> {
    let t = &c.tables[lookup.table];
    let inputs: Vec<Vec<M31>> = lookup.inputs.iter().map(|e| expression_rows(c, e, lookup.log_size, columns)).collect();
    let active = lookup.masked.then(|| mask_column(c));
    let mut tuple = vec![0i64; inputs.len()];
    for i in 0..1usize << lookup.log_size {
        if active.as_ref().is_some_and(|m| m[i].0 == 0) {
            continue;
        }
        for (slot, v) in tuple.iter_mut().zip(&inputs) {
            *slot = centred(v[i]);
        }
        let fits = |&r: &usize| r < counts.len() && rows.iter().zip(&inputs).all(|(col, v)| col[r] == v[i]);
        match t.index.row(&tuple).filter(fits) {
            Some(r) => counts[r] += 1,
            None => return Err(WitnessError::Lookup { table: t.name.clone(), row: i, tuple }),
        }
    }
    Ok(())
}

/// An expression at every row, in the base field.
fn expression_rows(c: &Circuit, e: &Expr, n: usize, columns: &[Vec<M31>]) -> Vec<M31> {
    let size = 1usize << n;
    let mut out = vec![signed(0); size];
    for t in e.terms() {
        let k = signed(t.coef);
        let owned: Vec<Option<Vec<M31>>> = t
            .factors
            .iter()
            .map(|s| match s {
                Source::Col(_) => None,
                Source::Param(id) => Some(param_column(c, *id, n)),
                Source::Public(id) => Some(public_column(c, *id, n)),
                Source::Mask => Some(mask_column(c)),
            })
            .collect();
        let factors: Vec<&[M31]> = t
            .factors
            .iter()
            .zip(&owned)
            .map(|(s, o)| match (s, o) {
                (Source::Col(id), _) => columns[*id as usize].as_slice(),
                (_, Some(v)) => v.as_slice(),
                (_, None) => &[],
            })
            .collect();
        for (i, o) in out.iter_mut().enumerate() {
            *o += factors.iter().fold(k, |acc, f| acc * f[i & (f.len() - 1)]);
        }
    }
    out
}
