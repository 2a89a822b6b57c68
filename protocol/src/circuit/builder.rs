//! Builds a [`Circuit`] while tracking the window every column is *forced* into, and refuses what could wrap mod p
//! (`docs/soundness.md` §3, no-wraparound check).
//!
//! Windows come from lookups only. An equation over integers and its image mod p are the same statement exactly when both
//! sides stay below p in absolute value for every witness the lookups admit; that is what [`Builder::check`] computes.

use super::expr::{Expr, MAX_DEGREE, Source};
use super::segment::{
    Circuit, Column, Constraint, Coord, Eval, Factor, Lookup, MatrixShape, Param, Product, PublicColumn, Relation, Selection,
    Value, tag_leaves,
};
use super::table::{MAX_TUPLE, RowIndex, Table, TableColumn};
use super::wiring;
use crate::field::P;
use std::collections::BTreeMap;

/// An inclusive interval of integers.
pub type Window = (i64, i64);

/// A case of a table tuple: the sources that take fixed values together.
pub type Case = Vec<(Source, i64)>;

/// Why a circuit is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// An equation could hold mod p without holding over the integers.
    #[error("{segment}: `{equation}` can reach {bound} in absolute value, beyond p: lower a scale or split the value in limbs")]
    Wraps {
        /// The segment.
        segment: String,
        /// The equation.
        equation: String,
        /// The bound that was computed.
        bound: i128,
    },
    /// A column is used in an equation but no lookup binds it.
    #[error("{segment}: column `{column}` is used in `{equation}` but no lookup binds it: add a range check")]
    Unbound {
        /// The segment.
        segment: String,
        /// The column.
        column: String,
        /// The equation.
        equation: String,
    },
    /// Too many factors.
    #[error("{segment}: `{equation}` has degree {degree}, at most {MAX_DEGREE} is provable: commit an intermediate value")]
    Degree {
        /// The segment.
        segment: String,
        /// The equation.
        equation: String,
        /// The degree found.
        degree: usize,
    },
    /// A column with other variables than a prefix of the chip's.
    #[error("{segment}: column `{column}` is not a prefix of `{equation}`")]
    NotPrefix {
        /// The segment.
        segment: String,
        /// The column.
        column: String,
        /// The equation.
        equation: String,
    },
    /// Tuples of other lengths than their table's, or of more entries than the budget counts.
    #[error("{segment}: tuples of {found} entries meet table `{table}` of {columns}: these must agree, {MAX_TUPLE} at most")]
    Arity {
        /// The segment.
        segment: String,
        /// The table.
        table: String,
        /// Its entries per row.
        columns: usize,
        /// Entries of the tuple.
        found: usize,
    },
    /// Something names what the circuit does not have, or does not have in that size.
    #[error("{segment}: `{place}` refers to {what}: it would be read as something that nobody proves")]
    Dangling {
        /// The segment.
        segment: String,
        /// Relation, product or table.
        place: String,
        /// What it refers to.
        what: &'static str,
    },
    /// The descriptor's numbers do not fit together.
    #[error("{segment}: {reason}")]
    Shape {
        /// The segment.
        segment: String,
        /// What is wrong.
        reason: String,
    },
}

/// A circuit under construction. The first error is kept and returned by [`Builder::finish`].
#[derive(Debug)]
pub struct Builder {
    circuit: Circuit,
    windows: Vec<Option<Window>>,
    tags: BTreeMap<String, usize>,
    /// Windows of each table's columns, found once.
    table_windows: Vec<Vec<Window>>,
    /// Windows of parameters and of public columns, likewise.
    param_windows: Vec<Window>,
    public_windows: Vec<Window>,
    error: Option<BuildError>,
}

impl Builder {
    /// Starts a segment.
    #[must_use]
    pub fn new(name: &str, tokens: usize, token_log: usize) -> Self {
        let circuit = Circuit { name: name.to_owned(), tokens, token_log, ..Circuit::default() };
        Self {
            circuit,
            windows: Vec::new(),
            tags: BTreeMap::new(),
            table_windows: Vec::new(),
            param_windows: Vec::new(),
            public_windows: Vec::new(),
            error: None,
        }
    }

    /// The circuit so far.
    #[must_use]
    pub const fn circuit(&mut self) -> &mut Circuit {
        &mut self.circuit
    }

    /// Records an error; the first one wins.
    pub fn fail(&mut self, e: BuildError) {
        self.error.get_or_insert(e);
    }

    /// Records a shape error.
    pub fn fail_shape(&mut self, reason: impl Into<String>) {
        let segment = self.circuit.name.clone();
        self.fail(BuildError::Shape { segment, reason: reason.into() });
    }

    /// Adds multiplicity columns and returns the circuit.
    ///
    /// # Errors
    /// The first equation that failed its check; a table with p or more lookups: p copies of a bad value cancel; tuples that do
    /// not fit their tables, and references to what is not there.
    pub fn finish(mut self) -> Result<Circuit, BuildError> {
        for t in 0..self.circuit.tables.len() {
            let leaves = tag_leaves(&self.circuit, t);
            if leaves >= u64::from(P) {
                let name = self.circuit.tables[t].name.clone();
                self.fail_shape(format!(
                    "{leaves} lookups share table `{name}`, fewer than p are sound: use fewer tokens or heads"
                ));
            }
        }
        for i in 0..self.circuit.tables.len() {
            let (name, log) = (self.circuit.tables[i].name.clone(), self.circuit.tables[i].log_size);
            let id = self.column(&format!("mult.{name}"), log);
            self.circuit.tables[i].multiplicity = id;
        }
        if let Some(error) = self.error {
            return Err(error);
        }
        wiring::check(&self.circuit)?;
        Ok(self.circuit)
    }

    /// Adds a column that nothing binds yet.
    pub fn column(&mut self, name: &str, log_size: usize) -> u32 {
        self.circuit.columns.push(Column { name: name.to_owned(), log_size });
        self.windows.push(None);
        (self.circuit.columns.len() - 1) as u32
    }

    /// Declares the window of a column whose bound is a theorem proved elsewhere (the boundary's type, or a linear
    /// combination of a proven one-hot vector). The caller names the theorem at the call.
    pub fn assume_window(&mut self, col: u32, window: Window) {
        self.windows[col as usize] = Some(window);
    }

    /// Adds a registered parameter.
    pub fn param(&mut self, values: &[i32]) -> u32 {
        let log_size = values.len().trailing_zeros() as usize;
        if !values.len().is_power_of_two() {
            self.fail_shape("a parameter block must have a power-of-two length");
        }
        let (low, high) = (values.iter().min(), values.iter().max());
        self.param_windows.push((low.map_or(0, |&v| v.into()), high.map_or(0, |&v| v.into())));
        self.circuit.params.push(Param { values: values.to_vec(), log_size });
        (self.circuit.params.len() - 1) as u32
    }

    /// Adds a public column; one that reads the very same table in the same way is there only once.
    pub fn public(&mut self, column: PublicColumn) -> u32 {
        if let Some(at) = self.circuit.public.iter().position(|c| c.is(&column)) {
            return at as u32;
        }
        self.public_windows.push(column.window());
        self.circuit.public.push(column);
        (self.circuit.public.len() - 1) as u32
    }

    /// Adds a public selection.
    pub fn selection(&mut self, vars: usize, entries: Vec<(u32, u32)>) -> Factor {
        self.circuit.selections.push(Selection { entries, vars });
        Factor::OneHot(self.circuit.selections.len() - 1)
    }

    /// Adds a matrix.
    pub fn matrix(&mut self, inputs: usize, outputs: usize) -> usize {
        self.circuit.matrices.push(MatrixShape { inputs, outputs });
        self.circuit.matrices.len() - 1
    }

    /// Finds or adds a table by name; equal names must mean equal content.
    pub fn table(
        &mut self,
        name: &str,
        tag: u32,
        log_size: usize,
        index: RowIndex,
        columns: impl FnOnce() -> Vec<TableColumn>,
    ) -> usize {
        if let Some(&i) = self.tags.get(name) {
            return i;
        }
        let i = self.circuit.tables.len();
        if self.circuit.tables.iter().any(|t| t.tag == tag) {
            self.fail_shape(format!("tag {tag} is used by two tables"));
        }
        let columns = columns();
        self.table_windows.push(columns.iter().map(|c| c.window(log_size)).collect());
        self.circuit.tables.push(Table { name: name.to_owned(), tag, log_size, columns, index, multiplicity: u32::MAX });
        self.tags.insert(name.to_owned(), i);
        i
    }

    /// The range table `[0, 2^bits)`.
    pub fn range_table(&mut self, bits: usize) -> usize {
        self.table(&format!("r{bits}"), bits as u32, bits, RowIndex::First { offset: 0 }, || {
            vec![TableColumn::Identity { offset: 0 }]
        })
    }

    /// Looks a tuple up. Inputs that are single columns get the table's window.
    pub fn lookup(&mut self, table: usize, inputs: Vec<Expr>, log_size: usize, masked: bool) {
        for (k, input) in inputs.iter().enumerate() {
            self.shape_check("lookup", input, log_size);
            let terms: Vec<_> = input.terms().collect();
            if let [t] = terms.as_slice()
                && let [Source::Col(c)] = t.factors.as_slice()
                && t.coef == 1
                && let Some(&w) = self.table_windows[table].get(k)
            {
                self.narrow(*c, w);
            }
        }
        self.circuit.lookups.push(Lookup { table, inputs, log_size, masked });
    }

    fn narrow(&mut self, col: u32, (lo, hi): Window) {
        let slot = &mut self.windows[col as usize];
        *slot = Some(slot.map_or((lo, hi), |(l, h)| (l.max(lo), h.min(hi))));
    }

    /// Forces a column into `[lo, hi]` with one lookup when the width is a power of two, else with two.
    pub fn bind(&mut self, col: u32, (lo, hi): Window) {
        let n = self.circuit.columns[col as usize].log_size;
        let width = (hi - lo + 1) as u64;
        let bits = width.next_power_of_two().trailing_zeros() as usize;
        let t = self.range_table(bits);
        self.lookup(t, vec![Expr::col(col) - Expr::constant(lo)], n, false);
        if !width.is_power_of_two() {
            self.lookup(t, vec![Expr::constant(hi) - Expr::col(col)], n, false);
        }
        self.narrow(col, (lo, hi));
    }

    /// Adds a column forced into a window.
    pub fn bound_column(&mut self, name: &str, log_size: usize, window: Window) -> u32 {
        let c = self.column(name, log_size);
        self.bind(c, window);
        c
    }

    /// Looks an uncommitted expression up in `[0, 2^bits)`. The expression itself must not wrap.
    pub fn virtual_range(&mut self, name: &str, expr: Expr, bits: usize, log_size: usize, cases: &[Case]) {
        // value - row must not reach p for any row of the table.
        let slack = (1i64 << bits) - 1;
        self.check(name, &expr, slack, cases);
        let t = self.range_table(bits);
        self.lookup(t, vec![expr], log_size, false);
    }

    /// Adds a constraint `expr = 0`.
    pub fn constrain(&mut self, name: &str, expr: Expr, log_size: usize, cases: &[Case]) {
        self.shape_check(name, &expr, log_size);
        self.check(name, &expr, 0, cases);
        self.circuit.constraints.push(Constraint { name: name.to_owned(), expr, log_size });
    }

    /// Adds a constraint that is meant mod p (a selector forcing zero): `public * column = 0`.
    pub fn force_zero(&mut self, name: &str, expr: Expr, log_size: usize) {
        self.shape_check(name, &expr, log_size);
        self.circuit.constraints.push(Constraint { name: name.to_owned(), expr, log_size });
    }

    /// Adds a product and returns its accumulator's index.
    pub fn product(&mut self, name: &str, vars: usize, factors: Vec<Factor>) -> usize {
        self.circuit.products.push(Product { name: name.to_owned(), vars, factors });
        self.circuit.products.len() - 1
    }

    /// Adds an input claim and the relation that ties it to its columns.
    pub fn claim(&mut self, name: &str, eval: Eval) -> Factor {
        self.circuit.claims.push(eval.clone());
        let i = self.circuit.claims.len() - 1;
        let terms = vec![(1, eval)];
        self.circuit.relations.push(Relation {
            name: format!("claim.{name}"),
            terms,
            constant: None,
            values: vec![(1, Value::Claim(i))],
        });
        Factor::Claim(i)
    }

    /// Adds a relation. `bound` is a theorem: the largest absolute value of the right side over the integers.
    pub fn relate(&mut self, relation: Relation, bound: i64) {
        let mut expr = Expr::constant(relation.constant.as_ref().map_or(0, |c| c.0));
        let mut sums: i64 = 0;
        // Every term reads the same row of its blocks; the first block stands for all (windows of blocks are equal).
        for (coef, eval) in &relation.terms {
            let halves = |coords: &[Coord]| 1i64 << coords.iter().filter(|c| **c == Coord::Half).count();
            let (rows, total) = (halves(&eval.lo), halves(&eval.lo) * halves(&eval.hi));
            if total == 1 {
                if let Some(b) = eval.blocks.first() {
                    expr = expr + Expr::col(*b).scale(*coef);
                }
            } else {
                let Some((lo, hi)) = eval.blocks.first().and_then(|b| self.windows[*b as usize]) else {
                    self.unbound(&relation.name, eval.blocks.first().copied());
                    continue;
                };
                sums += (coef / total).abs() * lo.abs().max(hi.abs()) * rows * eval.blocks.len() as i64;
            }
        }
        self.check(&relation.name, &expr, bound + sums, &[]);
        self.circuit.relations.push(relation);
    }

    fn unbound(&mut self, equation: &str, col: Option<u32>) {
        let column = col.map_or_else(String::new, |c| self.circuit.columns[c as usize].name.clone());
        let segment = self.circuit.name.clone();
        self.fail(BuildError::Unbound { segment, column, equation: equation.to_owned() });
    }

    fn shape_check(&mut self, name: &str, expr: &Expr, log_size: usize) {
        let (segment, equation) = (self.circuit.name.clone(), name.to_owned());
        if expr.degree() > MAX_DEGREE {
            self.fail(BuildError::Degree { segment: segment.clone(), equation: equation.clone(), degree: expr.degree() });
        }
        if expr.terms().any(|t| t.is_public() && t.factors.len() > 1) {
            // The verifier evaluates public monomials by their extension; a product of two is not multilinear.
            self.fail_shape(format!("`{name}` multiplies two public sources"));
        }
        for s in expr.sources() {
            let wide = match s {
                Source::Col(c) => self.circuit.columns[c as usize].log_size > log_size,
                Source::Param(p) => self.circuit.params[p as usize].log_size + self.circuit.token_log > log_size,
                Source::Public(p) => self.circuit.public[p as usize].upper_log() + self.circuit.token_log > log_size,
                Source::Mask => 2 * self.circuit.token_log + self.circuit.block_heads_log != log_size,
            };
            if wide {
                let column = format!("{s:?}");
                self.fail(BuildError::NotPrefix { segment: segment.clone(), column, equation: equation.clone() });
            }
        }
    }

    /// Checks that `|expr| + slack < p` for every admitted witness, in every case.
    fn check(&mut self, name: &str, expr: &Expr, slack: i64, cases: &[Case]) {
        let whole = vec![Case::new()];
        for case in if cases.is_empty() { &whole } else { cases } {
            match self.bound(&expr.substitute(case)) {
                Err(col) => return self.unbound(name, Some(col)),
                Ok(b) if b + i128::from(slack) >= i128::from(P) => {
                    let segment = self.circuit.name.clone();
                    let bound = b + i128::from(slack);
                    return self.fail(BuildError::Wraps { segment, equation: name.to_owned(), bound });
                }
                Ok(_) => {}
            }
        }
    }

    /// Largest absolute value of an expression by interval arithmetic on its monomials.
    fn bound(&self, expr: &Expr) -> Result<i128, u32> {
        let (mut lo, mut hi) = (0i128, 0i128);
        for t in expr.terms() {
            let (mut l, mut h) = (1i128, 1i128);
            for f in &t.factors {
                let (a, b) = self.source_window(*f)?;
                let corners = [l * a, l * b, h * a, h * b];
                l = corners.into_iter().fold(i128::MAX, i128::min);
                h = corners.into_iter().fold(i128::MIN, i128::max);
            }
            let c = i128::from(t.coef);
            let (a, b) = if c >= 0 { (c * l, c * h) } else { (c * h, c * l) };
            lo += a;
            hi += b;
        }
        Ok(lo.abs().max(hi.abs()))
    }

    fn source_window(&self, s: Source) -> Result<(i128, i128), u32> {
        let wide = |(low, high): Window| (i128::from(low), i128::from(high));
        match s {
            Source::Col(c) => self.windows[c as usize].map(wide).ok_or(c),
            Source::Param(p) => Ok(wide(self.param_windows[p as usize])),
            Source::Public(p) => Ok(wide(self.public_windows[p as usize])),
            Source::Mask => Ok((0, 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wraparound_that_forged_outputs_is_refused() {
        // A0 = u 2^8 + r0 with u in 24 bits instead of 23: (u - 2^23, r0 + 1) solves it too mod p.
        let mut b = Builder::new("s", 4, 2);
        let u = b.bound_column("u", 4, (-(1 << 23), (1 << 23) - 1));
        let r = b.bound_column("r", 4, (0, 255));
        let a = b.bound_column("a", 4, (-(1 << 16), (1 << 16) - 1));
        let e = Expr::col(u).scale(256) + Expr::col(r) - Expr::col(a);
        b.constrain("split", e, 4, &[]);
        assert!(matches!(b.finish(), Err(BuildError::Wraps { .. })));
    }

    #[test]
    fn an_unbound_column_is_refused() {
        let mut b = Builder::new("s", 4, 2);
        let u = b.column("u", 4);
        b.constrain("zero", Expr::col(u), 4, &[]);
        assert!(matches!(b.finish(), Err(BuildError::Unbound { .. })));
    }

    #[test]
    fn a_column_wider_than_its_chip_is_refused() {
        let mut b = Builder::new("s", 4, 2);
        let u = b.bound_column("u", 5, (0, 3));
        b.constrain("zero", Expr::col(u), 4, &[]);
        assert!(matches!(b.finish(), Err(BuildError::NotPrefix { .. })));
    }
}
