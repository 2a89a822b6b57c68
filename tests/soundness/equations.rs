//! What a witness breaks, decided without the verifier: every lookup row against its table, every constraint row, every
//! relation at the random points of the proof. Also recounts multiplicities of false witnesses as well as they can be.

use obelysk_protocol::circuit::expr::{Expr, Source};
use obelysk_protocol::circuit::segment::{Circuit, Eval, Lookup, Value};
use obelysk_protocol::field::{M31, QM31, ZERO, eq_at_index, mle_eval_base, signed, signed_ext};
use obelysk_protocol::verifier::points::Points;
use obelysk_protocol::verifier::product::ProductProof;
use obelysk_protocol::verifier::segment::SegmentInput;
use obelysk_shard::witness::centred;

/// Columns of one segment.
pub type Columns = Vec<Vec<M31>>;

/// Index of a column by name.
pub fn id(c: &Circuit, name: &str) -> usize {
    c.columns.iter().position(|x| x.name == name).unwrap_or_else(|| panic!("no column {name}"))
}

/// Whether query `i` may attend key `j`; row order (query, head, key), query low.
fn visible(c: &Circuit, row: usize) -> bool {
    let (i, j) = (row & ((1 << c.token_log) - 1), row >> (c.token_log + c.block_heads_log));
    let (first, end) = c.visible[i];
    (first as usize..end as usize).contains(&j)
}

/// An expression at one row.
pub fn cell(c: &Circuit, e: &Expr, row: usize, columns: &Columns) -> M31 {
    let source = |s: &Source| match s {
        Source::Col(id) => columns[*id as usize][row % columns[*id as usize].len()],
        Source::Param(id) => {
            let values = &c.params[*id as usize].values;
            signed(i64::from(values[(row >> c.token_log) % values.len()]))
        }
        Source::Public(id) => signed(c.public[*id as usize].value(row, c.token_log)),
        Source::Mask => signed(i64::from(visible(c, row))),
    };
    e.terms().fold(signed(0), |acc, t| acc + t.factors.iter().fold(signed(t.coef), |p, s| p * source(s)))
}

/// The table row that a lookup's row hits: `None` where masked, `Some(None)` where there is none.
fn hit(c: &Circuit, l: &Lookup, row: usize, columns: &Columns) -> Option<Option<usize>> {
    if l.masked && !visible(c, row) {
        return None;
    }
    let t = &c.tables[l.table];
    let tuple: Vec<i64> = l.inputs.iter().map(|e| centred(cell(c, e, row, columns))).collect();
    let fits = |&r: &usize| {
        r < 1 << t.log_size && t.columns.iter().zip(&tuple).all(|(col, &v)| signed(col.value(r, t.log_size)) == signed(v))
    };
    Some(t.index.row(&tuple).filter(fits))
}

/// Sets every multiplicity to the number of hits; what is in no table cannot be counted.
pub fn recount(c: &Circuit, columns: &mut Columns) {
    for t in &c.tables {
        columns[t.multiplicity as usize] = vec![signed(0); 1 << t.log_size];
    }
    for l in &c.lookups {
        let m = c.tables[l.table].multiplicity as usize;
        for row in 0..1 << l.log_size {
            if let Some(Some(r)) = hit(c, l, row, columns) {
                columns[m][r] += signed(1);
            }
        }
    }
}

/// Names of all equations that do not hold, in circuit order, without repetition: lookups by their table.
pub fn broken(input: &SegmentInput<'_>, points: &Points, product: &ProductProof, columns: &Columns) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for (name, _) in failures(input, points, product, columns) {
        if !out.contains(&name) {
            out.push(name);
        }
    }
    out
}

/// Every equation that does not hold, with the first row where it does not; relations have no rows.
pub fn failures(
    input: &SegmentInput<'_>,
    points: &Points,
    product: &ProductProof,
    columns: &Columns,
) -> Vec<(String, Option<usize>)> {
    let c = input.circuit;
    let mut out = Vec::new();
    for l in &c.lookups {
        if let Some(row) = (0..1 << l.log_size).find(|&row| hit(c, l, row, columns) == Some(None)) {
            out.push((format!("in {}", c.tables[l.table].name), Some(row)));
        }
    }
    for e in &c.constraints {
        if let Some(row) = (0..1 << e.log_size).find(|&row| cell(c, &e.expr, row, columns) != signed(0)) {
            out.push((e.name.clone(), Some(row)));
        }
    }
    for r in &c.relations {
        let mut sum = r.terms.iter().fold(ZERO, |a, (k, e)| a + signed_ext(*k) * value(e, points, columns));
        if let Some((k, blocks, hi)) = &r.constant {
            let hi = points.resolve(hi).unwrap();
            sum += signed_ext(*k) * (0..*blocks).fold(ZERO, |a, b| a + eq_at_index(b, &hi));
        }
        for (k, v) in &r.values {
            let v = match v {
                Value::Accumulator(i) => product.accumulators[*i],
                Value::Claim(i) => product.claims[*i],
                Value::BoundaryIn(i) => input.boundary_in.values[*i],
                Value::BoundaryOut(i) => input.boundary_out.values[*i],
            };
            sum -= signed_ext(*k) * v;
        }
        if sum != ZERO {
            out.push((r.name.clone(), None));
        }
    }
    out
}

fn value(e: &Eval, points: &Points, columns: &Columns) -> QM31 {
    let (lo, hi) = (points.resolve(&e.lo).unwrap(), points.resolve(&e.hi).unwrap());
    let block = |(b, &id): (usize, &u32)| eq_at_index(b, &hi) * mle_eval_base(&columns[id as usize], &lo);
    e.blocks.iter().enumerate().map(block).fold(ZERO, |a, v| a + v)
}
