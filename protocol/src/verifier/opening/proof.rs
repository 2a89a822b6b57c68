//! The opening proof: explicit fields and one canonical encoding. The rows belong to one segment; what is combined after
//! them belongs to one segment or to all.
//!
//! Lengths that follow from public shapes are not written. Those that follow from the queried positions are written, bounded
//! on reading, and compared with the positions by the verifier.

use super::shape::{OpeningParams, OpeningShape, OracleShape, STEP, row_vars};
use super::{Field, OpeningError};
use crate::field::{M31, QM31, RoundPoly};
use crate::transcript::Digest;
use crate::verifier::bytes::{BytesError, Reader, put_base, put_count, put_felts};

/// One sumcheck round whose challenge is ground for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroundRound {
    /// The round polynomial.
    pub poly: RoundPoly<2>,
    /// Grinding nonce found after absorbing it.
    pub nonce: u64,
}

/// Opened leaves of one tree with their multiproof.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreeOpening<T> {
    /// Symbols of all opened leaves, leaf after leaf in position order.
    pub symbols: Vec<T>,
    /// Nodes in canonical order.
    pub nodes: Vec<Digest>,
}

/// What a segment opens in its fork.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpeningProof {
    /// Row sumcheck of every oracle; empty for Point claims and single rows.
    pub rows: Vec<Vec<GroundRound>>,
    /// All further steps, unless they follow once for all segments.
    pub combined: Option<CombinedProof>,
}

/// Everything after the rows: one point, one combined word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CombinedProof {
    /// Joint sumcheck, `h` rounds.
    pub joint: Vec<RoundPoly<2>>,
    /// `F_o(ζ)` of every oracle.
    pub values: Vec<QM31>,
    /// Nonce before each coordinate of θ.
    pub theta_nonces: Vec<u64>,
    /// Roots of the committed words.
    pub roots: Vec<Digest>,
    /// Fold rounds.
    pub folds: Vec<GroundRound>,
    /// The message left after all folds.
    pub message: Vec<QM31>,
    /// Nonce before the positions.
    pub query_nonce: u64,
    /// Every oracle at the positions.
    pub oracles: Vec<TreeOpening<M31>>,
    /// Every committed word at the blocks that contain the positions.
    pub layers: Vec<TreeOpening<QM31>>,
}

impl OpeningProof {
    /// Checks all lengths that `shape` fixes; `each` says whether the steps after the rows belong to it.
    ///
    /// # Errors
    /// [`OpeningError::ProofShape`] with the first field that does not fit.
    pub fn check_shape(&self, shape: &OpeningShape, each: bool) -> Result<(), OpeningError> {
        let rows = |(rounds, o): (&Vec<GroundRound>, &OracleShape)| rounds.len() == o.row_rounds() as usize;
        if self.rows.len() != shape.oracles.len() || !self.rows.iter().zip(&shape.oracles).all(rows) {
            return Err(OpeningError::ProofShape { field: Field::Rows });
        }
        match &self.combined {
            Some(combined) if each => combined.check_shape(&shape.params, shape.oracles.len()),
            None if !each => Ok(()),
            _ => Err(OpeningError::ProofShape { field: Field::Combined }),
        }
    }

    /// Appends the canonical encoding.
    pub fn write(&self, out: &mut Vec<u8>) {
        for round in self.rows.iter().flatten() {
            write_ground(out, round);
        }
        if let Some(combined) = &self.combined {
            combined.write(out);
        }
    }

    /// Reads what [`Self::write`] wrote for a whole opening of this shape. Data after it is left for the caller to judge.
    ///
    /// # Errors
    /// [`BytesError`]; memory use stays proportional to the bytes given.
    pub fn read(r: &mut Reader<'_>, shape: &OpeningShape) -> Result<Self, BytesError> {
        let rows = Self::read_rows(r, shape)?.rows;
        Ok(Self { rows, combined: Some(CombinedProof::read(r, &shape.params, &shape.row_counts())?) })
    }

    /// As [`Self::read`] for rows alone.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_rows(r: &mut Reader<'_>, shape: &OpeningShape) -> Result<Self, BytesError> {
        let rows = shape.oracles.iter().map(|o| r.many(o.row_rounds() as usize, read_ground)).collect::<Result<_, _>>()?;
        Ok(Self { rows, combined: None })
    }
}

impl CombinedProof {
    /// Checks all lengths that parameters and the number of oracles fix.
    ///
    /// # Errors
    /// [`OpeningError::ProofShape`] with the first field that does not fit.
    pub fn check_shape(&self, p: &OpeningParams, oracles: usize) -> Result<(), OpeningError> {
        let fits = [
            (Field::Joint, self.joint.len() == p.h as usize),
            (Field::Values, self.values.len() == oracles),
            (Field::ThetaNonces, self.theta_nonces.len() == row_vars(oracles) as usize),
            (Field::Roots, self.roots.len() == p.layers() as usize),
            (Field::Folds, self.folds.len() == p.folds() as usize),
            (Field::Message, self.message.len() == p.clear_len()),
            (Field::Oracles, self.oracles.len() == oracles),
            (Field::Layers, self.layers.len() == p.layers() as usize),
        ];
        match fits.into_iter().find(|(_, fits)| !fits) {
            Some((field, _)) => Err(OpeningError::ProofShape { field }),
            None => Ok(()),
        }
    }

    /// Appends the canonical encoding.
    pub fn write(&self, out: &mut Vec<u8>) {
        put_felts(out, self.joint.iter().flat_map(|p| &p.0));
        put_felts(out, &self.values);
        for nonce in &self.theta_nonces {
            out.extend_from_slice(&nonce.to_le_bytes());
        }
        for root in &self.roots {
            out.extend_from_slice(root);
        }
        for round in &self.folds {
            write_ground(out, round);
        }
        put_felts(out, &self.message);
        out.extend_from_slice(&self.query_nonce.to_le_bytes());
        self.oracles.iter().for_each(|o| o.write(out));
        for l in &self.layers {
            put_count(out, l.symbols.len());
            put_felts(out, &l.symbols);
            write_nodes(out, &l.nodes);
        }
    }

    /// Reads what [`Self::write`] wrote for oracles with these rows.
    ///
    /// # Errors
    /// [`BytesError`]; memory use stays proportional to the bytes given.
    pub fn read(r: &mut Reader<'_>, p: &OpeningParams, rows: &[usize]) -> Result<Self, BytesError> {
        let queries = p.queries;
        let joint = r.many(p.h as usize, read_poly)?;
        let values = r.many(rows.len(), Reader::felt)?;
        let theta_nonces = r.many(row_vars(rows.len()) as usize, Reader::u64)?;
        let roots = r.many(p.layers() as usize, Reader::digest)?;
        let folds = r.many(p.folds() as usize, read_ground)?;
        let message = r.many(p.clear_len(), Reader::felt)?;
        let query_nonce = r.u64()?;
        let mut oracles = Vec::new();
        for &rows in rows {
            oracles.push(TreeOpening::read(r, p, rows)?);
        }
        let mut layers = Vec::new();
        for layer in 0..p.layers() {
            layers.push(read_tree(r, queries << STEP, p.layer_depth(layer), queries, Reader::felt)?);
        }
        Ok(Self { joint, values, theta_nonces, roots, folds, message, query_nonce, oracles, layers })
    }
}

impl TreeOpening<M31> {
    /// Appends the canonical encoding.
    pub fn write(&self, out: &mut Vec<u8>) {
        put_count(out, self.symbols.len());
        put_base(out, &self.symbols);
        write_nodes(out, &self.nodes);
    }

    /// Reads what [`Self::write`] wrote for an oracle of so many rows.
    ///
    /// # Errors
    /// [`BytesError`]; memory use stays proportional to the bytes given.
    pub fn read(r: &mut Reader<'_>, p: &OpeningParams, rows: usize) -> Result<Self, BytesError> {
        read_tree(r, p.queries.saturating_mul(rows), p.log_n(), p.queries, Reader::base)
    }
}

fn write_ground(out: &mut Vec<u8>, round: &GroundRound) {
    put_felts(out, &round.poly.0);
    out.extend_from_slice(&round.nonce.to_le_bytes());
}

fn write_nodes(out: &mut Vec<u8>, nodes: &[Digest]) {
    put_count(out, nodes.len());
    for n in nodes {
        out.extend_from_slice(n);
    }
}

fn read_poly(r: &mut Reader<'_>) -> Result<RoundPoly<2>, BytesError> {
    Ok(RoundPoly([r.felt()?, r.felt()?]))
}

fn read_ground(r: &mut Reader<'_>) -> Result<GroundRound, BytesError> {
    Ok(GroundRound { poly: read_poly(r)?, nonce: r.u64()? })
}

fn read_tree<'a, T>(
    r: &mut Reader<'a>,
    max_symbols: usize,
    depth: u32,
    queries: usize,
    item: impl Fn(&mut Reader<'a>) -> Result<T, BytesError>,
) -> Result<TreeOpening<T>, BytesError> {
    let symbols = r.count(max_symbols)?;
    let symbols = r.many(symbols, item)?;
    let nodes = r.count(queries.saturating_mul(depth as usize))?;
    Ok(TreeOpening { symbols, nodes: r.many(nodes, Reader::digest)? })
}
