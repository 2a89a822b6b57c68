//! A segment as data: columns, lookups, constraints, products and relations. Prover and verifier read the same value.
//!
//! Points. A segment's proof visits two random points: rho, where the LogUp tree, the constraints and the accumulators are
//! claimed, and kappa, where the product sumcheck ends. Every other claim is named by coordinates of these ([`Coord`]).

use super::expr::Expr;
use super::table::Table;
use std::sync::Arc;

/// A committed column of `2^log_size` field elements.
#[derive(Clone, Debug)]
pub struct Column {
    /// Name for people; unique in the segment.
    pub name: String,
    /// Number of variables.
    pub log_size: usize,
}

/// A registered per-channel parameter of one block: `2^log_size` integers over the variables above the token axis.
#[derive(Clone, Debug)]
pub struct Param {
    /// Values, one per channel of the block.
    pub values: Vec<i32>,
    /// log2 of the block's channels.
    pub log_size: usize,
}

/// A lookup: the tuple of `inputs` at every row must be a row of `table`.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// Index into [`Circuit::tables`].
    pub table: usize,
    /// One expression per table column.
    pub inputs: Vec<Expr>,
    /// Rows are `2^log_size`.
    pub log_size: usize,
    /// Whether the numerator is the attention mask instead of 1.
    pub masked: bool,
}

/// An expression that must vanish at every row.
#[derive(Clone, Debug)]
pub struct Constraint {
    /// Name for people.
    pub name: String,
    /// The expression.
    pub expr: Expr,
    /// Rows are `2^log_size`.
    pub log_size: usize,
}

/// One coordinate of a claim's point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Coord {
    /// `rho[k]`.
    Rho(usize),
    /// `kappa[k]`.
    Kappa(usize),
    /// One half: `2 f(.., 1/2, ..)` is the sum of `f` over that variable.
    Half,
    /// Coordinate `k` of the boundary point on the input side.
    BoundaryIn(usize),
    /// Coordinate `k` of the boundary point on the output side.
    BoundaryOut(usize),
}

/// The value of a logical column `sum_b eq(b, hi) block_b(lo)`. Blocks that do not exist are zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eval {
    /// Column ids; all of the same size.
    pub blocks: Vec<u32>,
    /// Point inside a block, low variable first.
    pub lo: Vec<Coord>,
    /// Point over the block index.
    pub hi: Vec<Coord>,
}

/// A value that a relation refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Claimed value of a product (an accumulator at rho).
    Accumulator(usize),
    /// Claimed value of a product's input ([`Circuit::claims`]).
    Claim(usize),
    /// The value of one limb of the boundary with the previous segment.
    BoundaryIn(usize),
    /// The value of one limb of the boundary with the next segment.
    BoundaryOut(usize),
}

/// `sum coef * Eval + constant * sum_b eq(b, hi) = sum coef * Value`.
#[derive(Clone, Debug)]
pub struct Relation {
    /// Name for people.
    pub name: String,
    /// Left side.
    pub terms: Vec<(i64, Eval)>,
    /// A constant over the existing blocks only: `(value, number of blocks, hi)`; a constant is not a constant polynomial
    /// when blocks are missing.
    pub constant: Option<(i64, usize, Vec<Coord>)>,
    /// Right side.
    pub values: Vec<(i64, Value)>,
}

/// A factor of a product, a function of the summed variables `y` (which end at kappa).
#[derive(Clone, Debug)]
pub enum Factor {
    /// A committed input, by index into [`Circuit::claims`].
    Claim(usize),
    /// Matrix `m`: rows (inputs) at `y`, outputs at `rho[n_t..]`.
    Weight(usize),
    /// `eq(y[offset..offset+len], coords)`.
    Eq {
        /// First summed variable.
        offset: usize,
        /// The other side.
        coords: Vec<Coord>,
    },
    /// Public selection of [`Circuit::selections`] at `rho[..n_t]`: entries `(t, k)` with k over the summed variables.
    OneHot(usize),
    /// Public indicator of real tokens over `y[..n_t]`.
    RealTokens,
}

/// `accumulator = sum_y prod factors(y)` over `2^vars` points.
#[derive(Clone, Debug)]
pub struct Product {
    /// Name for people.
    pub name: String,
    /// Number of summed variables.
    pub vars: usize,
    /// Factors; in every variable at most three of them vary.
    pub factors: Vec<Factor>,
}

/// Shape of a registered matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixShape {
    /// K: a multiple of the tile's k side.
    pub inputs: usize,
    /// N: a multiple of the tile's n side.
    pub outputs: usize,
}

/// One segment.
#[derive(Clone, Debug, Default)]
pub struct Circuit {
    /// Name for people.
    pub name: String,
    /// log2 of the padded token count.
    pub token_log: usize,
    /// T: real tokens.
    pub tokens: usize,
    /// Committed columns in order of creation; multiplicity columns last.
    pub columns: Vec<Column>,
    /// Registered parameters.
    pub params: Vec<Param>,
    /// Tables used by the segment.
    pub tables: Vec<Table>,
    /// Lookups.
    pub lookups: Vec<Lookup>,
    /// Constraints.
    pub constraints: Vec<Constraint>,
    /// Matrix products and other sums.
    pub products: Vec<Product>,
    /// Inputs of products, claimed where the product sumcheck ends.
    pub claims: Vec<Eval>,
    /// Linear relations.
    pub relations: Vec<Relation>,
    /// Registered matrices.
    pub matrices: Vec<MatrixShape>,
    /// log2 of a tile's k side.
    pub tile_k_log: usize,
    /// log2 of a tile's n side.
    pub tile_n_log: usize,
    /// log2 of the heads inside a block (position of the head bits in a score row).
    pub block_heads_log: usize,
    /// Public selections.
    pub selections: Vec<Selection>,
    /// Keys a query row may attend: `[first, end)` per row of the token axis, padding rows included.
    pub visible: Vec<(u32, u32)>,
    /// Public columns.
    pub public: Vec<PublicColumn>,
    /// The product whose value is the claimed output at `rho[token_log..]`.
    pub pooled: Option<usize>,
}

/// A public selection `sum eq(rho_t, t) eq(y, k)` over its entries.
#[derive(Clone, Debug)]
pub struct Selection {
    /// `(t, k)`: row of the token axis, point of the summed variables.
    pub entries: Vec<(u32, u32)>,
    /// Number of summed variables.
    pub vars: usize,
}

/// A column both sides know: read by the token bits and by channel bits above them; other bits of the row do not matter.
#[derive(Clone, Debug)]
pub enum PublicColumn {
    /// `values[t + (c << token_log)]`, where c is the `log_channels` bits that follow the token bits and `skip` more.
    Table {
        /// One value per (token, channel), token fastest.
        values: Arc<Vec<i32>>,
        /// Bits between the token's and the channel's.
        skip: usize,
        /// log2 of the channels.
        log_channels: usize,
    },
    /// `[c < threshold_t]`, where c is the `log_channels` bits that follow the token bits.
    Below {
        /// One threshold per row of the token axis.
        thresholds: Arc<Vec<u32>>,
        /// log2 of the channels.
        log_channels: usize,
    },
}

impl PublicColumn {
    /// Whether both read the same table, in memory, in the same way. Equal tables in two places count as different.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Table { values: a, skip: s, log_channels: c },
                Self::Table { values: b, skip: other_s, log_channels: other_c },
            ) => Arc::ptr_eq(a, b) && (s, c) == (other_s, other_c),
            (Self::Below { thresholds: a, log_channels: c }, Self::Below { thresholds: b, log_channels: other_c }) => {
                Arc::ptr_eq(a, b) && c == other_c
            }
            _ => false,
        }
    }

    /// Variables above the token axis up to the last that matters.
    #[must_use]
    pub fn upper_log(&self) -> usize {
        match self {
            Self::Table { skip, log_channels, .. } => skip + log_channels,
            Self::Below { log_channels, .. } => *log_channels,
        }
    }

    /// The value in row `index` of a chip.
    #[must_use]
    pub fn value(&self, index: usize, token_log: usize) -> i64 {
        let (t, upper) = (index & ((1 << token_log) - 1), index >> token_log);
        match self {
            Self::Table { values, skip, log_channels } => {
                let c = (upper >> skip) & ((1 << log_channels) - 1);
                values.get(t + (c << token_log)).map_or(0, |&v| i64::from(v))
            }
            Self::Below { thresholds, log_channels } => {
                let c = upper & ((1 << log_channels) - 1);
                i64::from(thresholds.get(t).is_some_and(|&limit| c < limit as usize))
            }
        }
    }

    /// Smallest and largest value.
    #[must_use]
    pub fn window(&self) -> (i64, i64) {
        match self {
            Self::Table { values, .. } => {
                let first = values.first().copied().unwrap_or(0);
                let (low, high) = values.iter().fold((first, first), |(low, high), &v| (low.min(v), high.max(v)));
                (i64::from(low), i64::from(high))
            }
            Self::Below { .. } => (0, 1),
        }
    }
}

impl Circuit {
    /// Largest number of variables of a column.
    #[must_use]
    pub fn max_log(&self) -> usize {
        self.columns.iter().map(|c| c.log_size).max().unwrap_or(0)
    }

    /// Leaves of the LogUp tree in order: `(is_table, index, log_size, offset)`, largest first so every block is aligned.
    #[must_use]
    pub fn leaves(&self) -> Vec<Leaf> {
        let lookups = self.lookups.iter().enumerate().map(|(i, l)| (LeafKind::Lookup(i), l.log_size));
        let tables = self.tables.iter().enumerate().map(|(i, t)| (LeafKind::Table(i), t.log_size));
        let mut all: Vec<(LeafKind, usize)> = lookups.chain(tables).collect();
        all.sort_by_key(|l| std::cmp::Reverse(l.1));
        let mut offset = 0;
        all.into_iter()
            .map(|(kind, log_size)| {
                let leaf = Leaf { kind, log_size, offset };
                offset += 1 << log_size;
                leaf
            })
            .collect()
    }

    /// Number of variables of the LogUp tree (0 when there is no lookup).
    #[must_use]
    pub fn tree_log(&self) -> usize {
        let total: usize = self.leaves().iter().map(|l| 1usize << l.log_size).sum();
        if total == 0 { 0 } else { total.next_power_of_two().trailing_zeros() as usize }
    }

    /// Placement of the columns in the value oracle: offsets by column id, and the total number of cells.
    #[must_use]
    pub fn stack(&self) -> (Vec<usize>, usize) {
        let mut order: Vec<usize> = (0..self.columns.len()).collect();
        order.sort_by(|&a, &b| self.columns[b].log_size.cmp(&self.columns[a].log_size));
        let mut offsets = vec![0; order.len()];
        let mut total = 0;
        for i in order {
            offsets[i] = total;
            total += 1 << self.columns[i].log_size;
        }
        (offsets, total)
    }

    /// Coordinates and limbs that relations name of the boundary before the segment and of the one after it.
    #[must_use]
    pub fn boundaries(&self) -> [(usize, usize); 2] {
        let mut sides = [(0, 0); 2];
        for relation in &self.relations {
            let evals = relation.terms.iter().flat_map(|(_, e)| e.lo.iter().chain(&e.hi));
            for coord in evals.chain(relation.constant.iter().flat_map(|c| &c.2)) {
                match coord {
                    Coord::BoundaryIn(k) => sides[0].0 = sides[0].0.max(k + 1),
                    Coord::BoundaryOut(k) => sides[1].0 = sides[1].0.max(k + 1),
                    _ => {}
                }
            }
            for (_, value) in &relation.values {
                match value {
                    Value::BoundaryIn(i) => sides[0].1 = sides[0].1.max(i + 1),
                    Value::BoundaryOut(i) => sides[1].1 = sides[1].1.max(i + 1),
                    _ => {}
                }
            }
        }
        sides
    }

    /// Most entries of a tuple, in tables and in lookups.
    #[must_use]
    pub fn tuple_len(&self) -> usize {
        let tables = self.tables.iter().map(|t| t.columns.len());
        tables.chain(self.lookups.iter().map(|l| l.inputs.len())).max().unwrap_or(0)
    }

    /// Rounds of the product sumcheck.
    #[must_use]
    pub fn product_vars(&self) -> usize {
        self.products.iter().map(|p| p.vars).max().unwrap_or(0)
    }

    /// Coordinates of rho that claims and weights refer to.
    #[must_use]
    pub fn rho_len(&self) -> usize {
        let evals = self.claims.iter().chain(self.relations.iter().flat_map(|r| r.terms.iter().map(|t| &t.1)));
        let mut coords: Vec<Coord> = evals.flat_map(|e| e.lo.iter().chain(&e.hi)).copied().collect();
        for r in &self.relations {
            coords.extend(r.constant.iter().flat_map(|c| c.2.iter().copied()));
        }
        for p in &self.products {
            for f in &p.factors {
                if let Factor::Eq { coords: c, .. } = f {
                    coords.extend(c);
                }
            }
        }
        let named = coords.iter().filter_map(|c| if let Coord::Rho(k) = c { Some(k + 1) } else { None }).max().unwrap_or(0);
        let weights = self.matrices.iter().map(|m| self.token_log + log2_ceil(m.outputs)).max().unwrap_or(0);
        let rows = self.constraints.iter().map(|c| c.log_size).max().unwrap_or(0);
        named.max(weights).max(self.tree_log()).max(rows)
    }
}

/// What a leaf block of the LogUp tree belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeafKind {
    /// A lookup by index.
    Lookup(usize),
    /// A table by index.
    Table(usize),
}

/// A block of leaves.
#[derive(Clone, Copy, Debug)]
pub struct Leaf {
    /// Lookup or table.
    pub kind: LeafKind,
    /// log2 of its rows.
    pub log_size: usize,
    /// First leaf.
    pub offset: usize,
}

/// Fractions of the LogUp tree under the tag of table `t`: all lookups into it and its own rows.
#[must_use]
pub fn tag_leaves(c: &Circuit, t: usize) -> u64 {
    let lookups = c.lookups.iter().filter(|l| l.table == t).map(|l| 1u64 << l.log_size).sum::<u64>();
    lookups + c.tables.get(t).map_or(0, |t| 1 << t.log_size)
}

/// log2 of the next power of two.
#[must_use]
pub fn log2_ceil(n: usize) -> usize {
    n.next_power_of_two().trailing_zeros() as usize
}
