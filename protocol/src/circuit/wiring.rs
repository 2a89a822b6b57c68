//! The last check of a circuit: whatever it refers to is there, in the size it is read with (`docs/soundness.md` §3, "Wiring").
//!
//! Prover and verifier read a circuit side by side. Something it names and does not have would have to be made up, and a tuple
//! longer than its table would be cut, by both alike: no proof would fail, and an equation would be about something else.

use super::builder::BuildError;
use super::expr::Source;
use super::segment::{Circuit, Coord, Eval, Factor, Product, PublicColumn, Relation, Selection, Value, log2_ceil};
use super::table::{MAX_TUPLE, Table, TableColumn};

/// What is referred to and missing.
type Missing = Result<(), &'static str>;

/// Checks every reference.
///
/// # Errors
/// [`BuildError::Arity`], [`BuildError::Dangling`] with the first that fails.
pub(super) fn check(c: &Circuit) -> Result<(), BuildError> {
    arities(c)?;
    let refuse = |place: &str| {
        let (segment, place) = (c.name.clone(), place.to_owned());
        move |what| BuildError::Dangling { segment, place, what }
    };
    for t in &c.tables {
        table(c, t).map_err(refuse(&t.name))?;
    }
    for r in &c.relations {
        relation(c, r).map_err(refuse(&r.name))?;
    }
    for p in &c.products {
        product(c, p).map_err(refuse(&p.name))?;
    }
    sizes(c).map_err(refuse("sizes"))?;
    public(c).map_err(refuse("public data"))
}

/// Every tuple has its table's length, which the budget counts.
fn arities(c: &Circuit) -> Result<(), BuildError> {
    let arity = |table: &Table, found: usize| {
        let columns = table.columns.len();
        let fits = found == columns && (1..=MAX_TUPLE).contains(&columns);
        let error = || BuildError::Arity { segment: c.name.clone(), table: table.name.clone(), columns, found };
        if fits { Ok(()) } else { Err(error()) }
    };
    for l in &c.lookups {
        let missing = || BuildError::Dangling { segment: c.name.clone(), place: "a lookup".into(), what: "a table there is not" };
        arity(c.tables.get(l.table).ok_or_else(missing)?, l.inputs.len())?;
    }
    c.tables.iter().try_for_each(|t| arity(t, t.columns.len()))
}

fn require(fits: bool, what: &'static str) -> Missing {
    if fits { Ok(()) } else { Err(what) }
}

/// `2^log`, or nothing where that is no size.
fn size(log: usize) -> Option<usize> {
    1usize.checked_shl(u32::try_from(log).ok()?)
}

fn table(c: &Circuit, t: &Table) -> Missing {
    let multiplicity = c.columns.get(t.multiplicity as usize).is_some_and(|m| m.log_size == t.log_size);
    require(multiplicity, "multiplicities of other rows than the table's")?;
    // log2 of what a column needs at least, and rows it has; entries beyond those given are zero.
    let fits = |column: &TableColumn| match column {
        TableColumn::Identity { .. } => true,
        TableColumn::R1Value { e } | TableColumn::R1Saturated { e } | TableColumn::R1Clip { e } => *e <= 14 && t.log_size == 15,
        TableColumn::LowBits | TableColumn::TopBit => t.log_size >= 1,
        TableColumn::HalfFunction(f) => t.log_size >= 1 && size(t.log_size - 1).is_some_and(|rows| f.len() <= rows),
        TableColumn::Function(f) => size(t.log_size).is_some_and(|rows| f.len() <= rows),
    };
    require(t.columns.iter().all(fits), "a column of other rows than the table's")
}

fn relation(c: &Circuit, r: &Relation) -> Missing {
    r.terms.iter().try_for_each(|(_, e)| eval(c, e))?;
    if let Some((_, blocks, hi)) = &r.constant {
        require(size(hi.len()).is_some_and(|most| *blocks <= most), "more blocks than its coordinates tell apart")?;
        coordinates(hi, c.product_vars())?;
    }
    r.values.iter().try_for_each(|(_, value)| match value {
        Value::Accumulator(i) => require(*i < c.products.len(), "an accumulator there is not"),
        Value::Claim(i) => require(*i < c.claims.len(), "an input claim there is not"),
        // Counted by `Circuit::boundaries`; the verifier compares them with those of the statement.
        Value::BoundaryIn(_) | Value::BoundaryOut(_) => Ok(()),
    })
}

fn eval(c: &Circuit, e: &Eval) -> Missing {
    let fits = |&b: &u32| c.columns.get(b as usize).is_some_and(|col| col.log_size == e.lo.len());
    require(e.blocks.iter().all(fits), "a column of other variables than its point")?;
    require(size(e.hi.len()).is_some_and(|most| e.blocks.len() <= most), "more blocks than its coordinates tell apart")?;
    coordinates(&e.lo, c.product_vars())?;
    coordinates(&e.hi, c.product_vars())
}

/// Coordinates of rho are drawn for every name, those of boundaries are compared with the statement's; kappa ends with a sum.
fn coordinates(coords: &[Coord], kappa: usize) -> Missing {
    let fits = |coord: &Coord| match coord {
        Coord::Kappa(k) => *k < kappa,
        Coord::Rho(_) | Coord::BoundaryIn(_) | Coord::BoundaryOut(_) | Coord::Half => true,
    };
    require(coords.iter().all(fits), "a coordinate that is not drawn")
}

fn product(c: &Circuit, p: &Product) -> Missing {
    p.factors.iter().try_for_each(|f| match f {
        Factor::Claim(i) => {
            let e = c.claims.get(*i).ok_or("an input claim there is not")?;
            eval(c, e)?;
            coordinates(&e.lo, p.vars)?;
            coordinates(&e.hi, p.vars)
        }
        Factor::Weight(m) => {
            let m = c.matrices.get(*m).ok_or("a matrix there is not")?;
            require(log2_ceil(m.inputs) <= p.vars, "a matrix of more inputs than are summed")
        }
        Factor::Eq { offset, coords } => {
            require(offset.saturating_add(coords.len()) <= p.vars, "variables that are not summed")?;
            coordinates(coords, 0)
        }
        Factor::OneHot(i) => selection(c, c.selections.get(*i).ok_or("a selection there is not")?, p.vars),
        Factor::RealTokens => require(c.token_log <= p.vars, "more tokens than are summed"),
    })
}

fn selection(c: &Circuit, s: &Selection, vars: usize) -> Missing {
    require(s.vars <= vars && c.token_log <= c.rho_len(), "variables that are not summed or drawn")?;
    let (rows, entries) = (size(c.token_log).unwrap_or(0), size(s.vars).unwrap_or(0));
    let fits = |&(t, k): &(u32, u32)| (t as usize) < rows && (k as usize) < entries;
    require(s.entries.iter().all(fits), "an entry outside its selection")
}

/// What must be there as a whole.
fn sizes(c: &Circuit) -> Missing {
    let widest = c.max_log();
    let rows = c.constraints.iter().map(|e| e.log_size).chain(c.lookups.iter().map(|l| l.log_size));
    require(rows.into_iter().all(|n| n <= widest), "rows that no column has")?;
    let tied = |i: usize| c.relations.iter().any(|r| r.values.iter().any(|(_, v)| *v == Value::Claim(i)));
    require((0..c.claims.len()).all(tied), "an input claim that no relation ties to columns")?;
    let whole = |n: usize, log: usize| n > 0 && size(log).is_some_and(|side| n.is_multiple_of(side));
    let tiled = c.matrices.iter().all(|m| whole(m.inputs, c.tile_k_log) && whole(m.outputs, c.tile_n_log));
    require(tiled, "a matrix of other sides than whole tiles")?;
    require(c.pooled.is_none_or(|i| i < c.products.len()), "an accumulator there is not")
}

/// Public data has one entry for everything it is read at.
fn public(c: &Circuit) -> Missing {
    let rows = size(c.token_log);
    let masked = c.lookups.iter().any(|l| l.masked) || reads_mask(c);
    if masked {
        let keys = |&(first, end): &(u32, u32)| first <= end && rows.is_some_and(|rows| end as usize <= rows);
        require(Some(c.visible.len()) == rows && c.visible.iter().all(keys), "a mask of other rows than the tokens'")?;
        let score = 2 * c.token_log + c.block_heads_log;
        require(c.lookups.iter().all(|l| !l.masked || l.log_size == score), "a mask over other rows than scores")?;
    }
    c.public.iter().try_for_each(|column| {
        let fits = match column {
            PublicColumn::Table { values, log_channels, .. } => size(c.token_log + log_channels) == Some(values.len()),
            PublicColumn::Below { thresholds, .. } => Some(thresholds.len()) == rows,
        };
        require(fits, "a column of other rows than the tokens'")
    })
}

fn reads_mask(c: &Circuit) -> bool {
    let inputs = c.lookups.iter().flat_map(|l| &l.inputs);
    inputs.chain(c.constraints.iter().map(|e| &e.expr)).any(|e| e.sources().contains(&Source::Mask))
}

#[cfg(test)]
mod tests {
    use super::super::builder::Builder;
    use super::super::expr::Expr;
    use super::super::segment::Lookup;
    use super::super::shape::{join, kappa, rho};
    use super::super::table::RowIndex;
    use super::*;
    use std::sync::Arc;

    /// Three tokens of four channels: a product with a matrix, a selection, a boundary, a mask, a public column of each kind.
    fn builder() -> Builder {
        let mut b = Builder::new("s", 3, 2);
        b.circuit().tile_k_log = 1;
        b.circuit().tile_n_log = 1;
        b.circuit().visible = vec![(0, 3), (0, 3), (0, 3), (3, 4)];
        let (x, y) = (b.bound_column("x", 4, (0, 3)), b.bound_column("y", 4, (0, 255)));
        let range = b.range_table(2);
        b.lookup(range, vec![Expr::col(x)], 4, true);
        let at = |col: u32, lo: Vec<Coord>| Eval { blocks: vec![col], lo, hi: Vec::new() };
        let claim = b.claim("x", at(x, join(&[rho(0, 2), kappa(0, 2)])));
        let m = b.matrix(4, 4);
        let acc = b.product("p", 2, vec![claim, Factor::Weight(m)]);
        let one = b.selection(2, vec![(0, 3), (1, 1), (2, 0)]);
        let eq = Factor::Eq { offset: 1, coords: rho(3, 1) };
        b.product("one", 2, vec![one, eq, Factor::RealTokens]);
        let relation =
            |name: &str, terms, values| Relation { name: name.into(), terms, constant: Some((0, 1, Vec::new())), values };
        b.relate(relation("acc", vec![(1, at(y, rho(0, 4)))], vec![(1, Value::Accumulator(acc))]), 255);
        let boundary = at(y, (0..4).map(Coord::BoundaryOut).collect());
        b.circuit().relations.push(relation("out", vec![(1, boundary)], vec![(1, Value::BoundaryOut(0))]));
        b.public(PublicColumn::Table { values: Arc::new(vec![5; 16]), skip: 0, log_channels: 2 });
        b.public(PublicColumn::Below { thresholds: Arc::new(vec![1; 4]), log_channels: 2 });
        b.circuit().pooled = Some(acc);
        b
    }

    #[test]
    fn what_refers_to_what_is_there_is_taken() {
        let c = builder().finish().expect("is whole");
        assert_eq!(c.boundaries(), [(0, 0), (4, 1)]);
    }

    #[test]
    fn what_refers_to_what_is_not_there_is_refused() {
        type Change = fn(&mut Circuit);
        let changes: [(&str, Change); 27] = [
            ("a coordinate of kappa beyond the products", |c| c.relations[0].terms[0].1.lo[3] = Coord::Kappa(2)),
            ("a coordinate of kappa beyond the claim's product", |c| {
                c.products[1].vars = 3;
                c.claims[0].lo[3] = Coord::Kappa(2);
            }),
            ("a column too short for its point", |c| c.relations[1].terms[0].1.lo.truncate(3)),
            ("a column there is not", |c| c.relations[1].terms[0].1.blocks[0] = 99),
            ("a block without a coordinate", |c| c.relations[1].terms[0].1.blocks.push(1)),
            ("a constant of more blocks", |c| c.relations[1].constant = Some((1, 2, Vec::new()))),
            ("another accumulator", |c| c.relations[1].values[0].1 = Value::Accumulator(2)),
            ("another claim", |c| c.relations[1].values[0].1 = Value::Claim(1)),
            ("a claim that nothing ties", |c| c.relations[0].values.clear()),
            ("a factor's claim", |c| c.products[0].factors[0] = Factor::Claim(1)),
            ("a factor's matrix", |c| c.products[0].factors[1] = Factor::Weight(1)),
            ("a matrix of more inputs", |c| c.matrices[0].inputs = 8),
            ("a matrix of broken tiles", |c| c.matrices[0].outputs = 3),
            ("eq beyond the sum", |c| c.products[1].factors[1] = Factor::Eq { offset: 2, coords: rho(3, 1) }),
            ("eq of summed variables", |c| c.products[1].factors[1] = Factor::Eq { offset: 1, coords: kappa(0, 1) }),
            ("another selection", |c| c.products[1].factors[0] = Factor::OneHot(1)),
            ("a selected row", |c| c.selections[0].entries[0].0 = 4),
            ("a selected entry", |c| c.selections[0].entries[0].1 = 4),
            ("tokens beyond the sum", |c| c.products[1].vars = 1),
            ("rows of the mask", |c| c.visible.truncate(3)),
            ("a visible key", |c| c.visible[0].1 = 5),
            ("heads of the mask", |c| c.block_heads_log = 1),
            ("values of a public column", |c| {
                c.public[0] = PublicColumn::Table { values: Arc::default(), skip: 0, log_channels: 2 }
            }),
            ("thresholds", |c| c.public[1] = PublicColumn::Below { thresholds: Arc::new(vec![1; 3]), log_channels: 2 }),
            ("multiplicities", |c| c.tables[0].multiplicity = 0),
            ("a function of more rows", |c| c.tables[0].columns[0] = TableColumn::Function(Arc::new(vec![0; 5]))),
            ("the pooled product", |c| c.pooled = Some(2)),
        ];
        for (name, change) in changes {
            let mut c = builder().finish().expect("is whole");
            change(&mut c);
            assert!(matches!(check(&c), Err(BuildError::Dangling { .. })), "{name}: {:?}", check(&c));
        }
    }

    #[test]
    fn the_builder_checks_what_was_put_into_its_circuit() {
        let mut b = builder();
        b.circuit().visible.pop();
        assert!(matches!(b.finish(), Err(BuildError::Dangling { what, .. }) if what.contains("mask")));
    }

    #[test]
    fn tuples_of_another_length_than_their_table_s_are_refused() {
        for n in [0, 2] {
            let mut b = builder();
            let range = b.range_table(2);
            b.lookup(range, vec![Expr::constant(0); n], 2, false);
            assert!(matches!(b.finish(), Err(BuildError::Arity { columns: 1, found, .. }) if found == n));
        }
        let mut c = builder().finish().expect("is whole");
        c.lookups.push(Lookup { table: 9, inputs: vec![Expr::constant(0)], log_size: 2, masked: false });
        assert!(matches!(check(&c), Err(BuildError::Dangling { .. })));
    }

    #[test]
    fn tuples_of_more_entries_than_the_budget_counts_are_refused() {
        let of = |n: usize| {
            let mut b = builder();
            let columns = || vec![TableColumn::Identity { offset: 0 }; n];
            let wide = b.table("wide", 1000, 2, RowIndex::First { offset: 0 }, columns);
            b.lookup(wide, vec![Expr::constant(0); n], 2, false);
            b.finish().map(|c| c.tuple_len())
        };
        assert_eq!(of(MAX_TUPLE), Ok(MAX_TUPLE));
        assert!(matches!(of(MAX_TUPLE + 1), Err(BuildError::Arity { .. })));
        assert!(matches!(of(0), Err(BuildError::Arity { .. })));
    }
}
