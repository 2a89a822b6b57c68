//! Whoever joins the parts of all segments: it sums them, runs the main transcript, and checks every part against what its
//! own segment has claimed, so that a wrong one is refused by the segment's name and costs the others nothing.
//!
//! It needs no weights and no values. States are types; within a state, segments may deliver in any order.

use super::checks::{continues, value_at, weighted_symbols, weighted_values};
use super::part::RoundPart;
use crate::kernels::CommitKernels;
use crate::prover::opening::{Folds, draw_queries, fold_phase, ground_draw, open_layers};
use obelysk_protocol::field::{M31, ONE, QM31, RoundPoly, ZERO, eq_vector, inner};
use obelysk_protocol::transcript::{HashSuite, Transcript};
use obelysk_protocol::verifier::code::CodeDomain;
use obelysk_protocol::verifier::merkle::MerkleError;
use obelysk_protocol::verifier::opening::{
    CombinedProof, MAX_ORACLES, OpeningError, OpeningParams, Reduced, STEP, TreeOpening, absorb_all, label, row_vars,
};

/// Why an opening of all segments cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AggregateError {
    /// No segment, or more oracles than an opening takes.
    #[error(transparent)]
    Opening(#[from] OpeningError),
    /// Other lengths than the segment's oracles and the model's rows have.
    #[error("segment {segment}: its {step} do not have the lengths that its oracles give: the sender works for another job")]
    Lengths {
        /// Which segment.
        segment: usize,
        /// Of what.
        step: &'static str,
    },
    /// A segment has not delivered, or twice.
    #[error("segment {segment}: its {step} came {times} times: deliver exactly once")]
    Delivery {
        /// Which segment.
        segment: usize,
        /// What.
        step: &'static str,
        /// How often.
        times: u32,
    },
    /// A share of a round polynomial does not sum to the segment's claim.
    #[error("segment {segment}: its share of joint round {round} contradicts its own claim: compute it again elsewhere")]
    Round {
        /// Which segment.
        segment: usize,
        /// Of the joint sumcheck.
        round: usize,
    },
    /// A segment's values at the joint point do not close its own sumcheck.
    #[error("segment {segment}: its values at the joint point contradict its own claim: compute it again elsewhere")]
    Values {
        /// Which segment.
        segment: usize,
    },
    /// A segment's share of the combined row does not have the values sent before.
    #[error("segment {segment}: its share of the combined row contradicts its values: compute it again elsewhere")]
    Share {
        /// Which segment.
        segment: usize,
    },
    /// A tree does not open.
    #[error("segment {segment}, oracle {oracle}: {source}")]
    Answer {
        /// Which segment.
        segment: usize,
        /// Which of its oracles.
        oracle: usize,
        /// What failed.
        source: MerkleError,
    },
    /// Opened leaves do not combine to the word that was committed: some share was of other data.
    #[error("the opened leaves do not combine to the committed word at position {position}: some segment's share was wrong")]
    Word {
        /// Queried position.
        position: usize,
    },
}

/// The oracles of all segments in one line.
struct Oracles {
    segments: Vec<Vec<Reduced>>,
    /// Index of every segment's first oracle, and their number.
    starts: Vec<usize>,
}

impl Oracles {
    fn new(segments: Vec<Vec<Reduced>>) -> Self {
        let mut starts = vec![0];
        for s in &segments {
            starts.push(starts[starts.len() - 1] + s.len());
        }
        Self { segments, starts }
    }

    fn count(&self) -> usize {
        self.starts[self.segments.len()]
    }

    /// A segment's own part of one weight per oracle; nothing for a segment that does not exist.
    fn of<'a>(&self, weights: &'a [QM31], segment: usize) -> &'a [QM31] {
        let end = self.starts.get(segment + 1).copied().unwrap_or(0);
        self.starts.get(segment).and_then(|&start| weights.get(start..end)).unwrap_or(&[])
    }
}

/// Refuses lists that are not one per segment.
fn one_each(found: usize, segments: usize, step: &'static str) -> Result<(), AggregateError> {
    if found == segments { Ok(()) } else { Err(AggregateError::Lengths { segment: found.min(segments), step }) }
}

/// Step 2: the joint sumcheck.
pub struct JointRounds<S: HashSuite> {
    t: Transcript<S>,
    params: OpeningParams,
    oracles: Oracles,
    delta: Vec<QM31>,
    /// Running claim of every segment.
    claims: Vec<QM31>,
    polys: Vec<RoundPoly<2>>,
    zeta: Vec<QM31>,
}

impl<S: HashSuite> JointRounds<S> {
    /// Draws the weights of the oracles. `t` has absorbed every closing digest; `segments` are the reduced claims they bind.
    ///
    /// # Errors
    /// [`AggregateError::Opening`].
    pub fn new(mut t: Transcript<S>, params: OpeningParams, segments: Vec<Vec<Reduced>>) -> Result<Self, AggregateError> {
        params.validate()?;
        let oracles = Oracles::new(segments);
        let count = oracles.count();
        if count == 0 || count > MAX_ORACLES {
            return Err(OpeningError::Params.into());
        }
        absorb_all(&mut t, &params, count);
        let delta = eq_vector(&t.draw_many(label::DELTA, row_vars(count) as usize));
        let claim = |(l, own): (usize, &Vec<Reduced>)| {
            own.iter().zip(oracles.of(&delta, l)).fold(ZERO, |acc, (o, &d)| acc + d * o.residual.value)
        };
        let claims = oracles.segments.iter().enumerate().map(claim).collect();
        Ok(Self { t, params, oracles, delta, claims, polys: Vec::new(), zeta: Vec::new() })
    }

    /// As [`Self::new`], after the rounds of these polynomials, which left every segment with these claims: as said by
    /// [`Self::polys`] and [`Self::claims`].
    ///
    /// # Errors
    /// [`AggregateError::Opening`], [`AggregateError::Lengths`].
    pub fn resume(
        t: Transcript<S>,
        params: OpeningParams,
        segments: Vec<Vec<Reduced>>,
        (polys, claims): (&[RoundPoly<2>], Vec<QM31>),
    ) -> Result<Self, AggregateError> {
        let mut joint = Self::new(t, params, segments)?;
        one_each(claims.len(), joint.claims.len(), "claims")?;
        for poly in polys {
            joint.absorb(*poly);
        }
        joint.claims = claims;
        Ok(joint)
    }

    /// Weights of a segment's oracles.
    #[must_use]
    pub fn delta(&self, segment: usize) -> &[QM31] {
        self.oracles.of(&self.delta, segment)
    }

    /// Weights of all oracles.
    #[must_use]
    pub fn deltas(&self) -> &[QM31] {
        &self.delta
    }

    /// Running claim of every segment.
    #[must_use]
    pub fn claims(&self) -> &[QM31] {
        &self.claims
    }

    /// The polynomials so far.
    #[must_use]
    pub fn polys(&self) -> &[RoundPoly<2>] {
        &self.polys
    }

    /// The challenges so far.
    #[must_use]
    pub fn zeta(&self) -> &[QM31] {
        &self.zeta
    }

    fn absorb(&mut self, poly: RoundPoly<2>) -> QM31 {
        self.t.absorb_felts(label::JOINT_POLY, &poly.0);
        let z = self.t.draw(label::ZETA);
        self.polys.push(poly);
        self.zeta.push(z);
        z
    }

    /// Takes one round's share of every segment, in order; gives the challenge.
    ///
    /// # Errors
    /// [`AggregateError::Round`] for the first segment whose share contradicts its claim, [`AggregateError::Lengths`].
    pub fn round(&mut self, shares: &[RoundPart]) -> Result<QM31, AggregateError> {
        one_each(shares.len(), self.claims.len(), "shares of a joint round")?;
        let round = self.polys.len();
        if let Some(segment) = shares.iter().zip(&self.claims).position(|(s, claim)| !continues(s, *claim)) {
            return Err(AggregateError::Round { segment, round });
        }
        let z = self.absorb(RoundPoly(shares.iter().fold([ZERO; 2], |sum, s| [sum[0] + s[0], sum[1] + s[2]])));
        for (claim, share) in self.claims.iter_mut().zip(shares) {
            *claim = RoundPoly::<2>::from_values(share).eval(*claim, z);
        }
        Ok(z)
    }

    /// Takes the values of every segment's folded rows at the joint point, in order; grinds and draws the combination.
    ///
    /// # Errors
    /// [`AggregateError::Values`] for the first segment whose values contradict its claim, [`AggregateError::Lengths`].
    pub fn values<B: CommitKernels>(self, backend: &B, values: &[Vec<QM31>]) -> Result<JointFold<S, B>, AggregateError> {
        self.values_ground(backend, values, None)
    }

    /// As [`Self::values`], with the nonces that grinding found before ([`JointFold::theta_nonces`]).
    ///
    /// # Errors
    /// As [`Self::values`]; [`AggregateError::Opening`] for nonces that are not those.
    pub fn values_ground<B: CommitKernels>(
        mut self,
        backend: &B,
        values: &[Vec<QM31>],
        nonces: Option<&[u64]>,
    ) -> Result<JointFold<S, B>, AggregateError> {
        one_each(values.len(), self.claims.len(), "values")?;
        one_each(self.polys.len(), self.params.h as usize, "joint rounds")?;
        for (segment, (own, values)) in self.oracles.segments.iter().zip(values).enumerate() {
            if own.len() != values.len() {
                return Err(AggregateError::Lengths { segment, step: "values" });
            }
            if weighted_values(own, self.oracles.of(&self.delta, segment), &self.zeta, values) != self.claims[segment] {
                return Err(AggregateError::Values { segment });
            }
        }
        let values = values.concat();
        self.t.absorb_felts(label::VALUES, &values);
        let vars = row_vars(values.len());
        let drawn: Result<Vec<(u64, QM31)>, OpeningError> = match nonces {
            None => Ok((0..vars).map(|_| ground_draw(backend, &mut self.t, self.params.g_fold, label::THETA)).collect()),
            Some(nonces) if nonces.len() == vars as usize => nonces
                .iter()
                .map(|&nonce| {
                    let found = self.t.accept_pow(self.params.g_fold, nonce);
                    found.then(|| (nonce, self.t.draw(label::THETA))).ok_or(OpeningError::Pow { step: label::THETA })
                })
                .collect(),
            Some(_) => Err(OpeningError::Pow { step: label::THETA }),
        };
        let (theta_nonces, theta): (Vec<u64>, Vec<QM31>) = drawn?.into_iter().unzip();
        let Self { t, params, oracles, polys, zeta, .. } = self;
        let (low, high) = zeta.split_at(zeta.len() / 2);
        let (eq, seen) = (backend.outer(&eq_vector(low), &eq_vector(high)), vec![0; oracles.segments.len()]);
        Ok(JointFold { t, params, oracles, polys, zeta, values, theta_nonces, theta: eq_vector(&theta), eq, seen, sum: None })
    }
}

/// Steps 3 and 4: the combined row.
pub struct JointFold<S: HashSuite, B: CommitKernels> {
    t: Transcript<S>,
    params: OpeningParams,
    oracles: Oracles,
    polys: Vec<RoundPoly<2>>,
    zeta: Vec<QM31>,
    values: Vec<QM31>,
    theta_nonces: Vec<u64>,
    theta: Vec<QM31>,
    /// `eq(ζ, ·)`.
    eq: B::Ext,
    seen: Vec<u32>,
    sum: Option<B::Ext>,
}

impl<S: HashSuite, B: CommitKernels> JointFold<S, B> {
    /// Weights of all oracles.
    #[must_use]
    pub fn thetas(&self) -> &[QM31] {
        &self.theta
    }

    /// What grinding for them found.
    #[must_use]
    pub fn theta_nonces(&self) -> &[u64] {
        &self.theta_nonces
    }

    /// Weights of a segment's oracles.
    #[must_use]
    pub fn theta(&self, segment: usize) -> &[QM31] {
        self.oracles.of(&self.theta, segment)
    }

    /// Takes a segment's share of the combined row.
    ///
    /// # Errors
    /// [`AggregateError::Share`] if its value at the joint point is not that of the values sent before,
    /// [`AggregateError::Lengths`].
    pub fn share(&mut self, backend: &B, segment: usize, share: &B::Ext) -> Result<(), AggregateError> {
        let seen = self.seen.get_mut(segment).ok_or(AggregateError::Lengths { segment, step: "shares of the row" })?;
        if backend.ext_len(share) != 1 << self.params.h {
            return Err(AggregateError::Lengths { segment, step: "shares of the row" });
        }
        *seen += 1;
        if value_at(backend, share, &self.eq)
            != inner(self.oracles.of(&self.theta, segment), self.oracles.of(&self.values, segment))
        {
            return Err(AggregateError::Share { segment });
        }
        self.sum = Some(match self.sum.take() {
            Some(sum) => backend.weighted_sum(&[(&sum, ONE), (share, ONE)]),
            None => backend.weighted_sum(&[(share, ONE)]),
        });
        Ok(())
    }

    /// Encodes and folds the sum, then draws the positions.
    ///
    /// # Errors
    /// [`AggregateError::Delivery`] for a segment without a share, or with two.
    pub fn fold(mut self, backend: &B) -> Result<JointQueries<B>, AggregateError> {
        delivered(&self.seen, "share of the combined row")?;
        let sum = self.sum.take().ok_or(OpeningError::Params)?;
        let folds = fold_phase(backend, &mut self.t, &self.params, &self.zeta, sum);
        let (query_nonce, positions) = draw_queries(backend, &mut self.t, &self.params);
        let Self { params, oracles, polys, values, theta_nonces, theta, .. } = self;
        let segments = oracles.segments.len();
        let (trees, symbols) = (vec![Vec::new(); segments], vec![Vec::new(); segments]);
        let seen = vec![0; segments];
        let drawn = Drawn { polys, values, theta_nonces, query_nonce };
        Ok(JointQueries { params, oracles, theta, drawn, folds, positions, seen, trees, symbols })
    }
}

/// Refuses what did not come exactly once from every segment.
fn delivered(seen: &[u32], step: &'static str) -> Result<(), AggregateError> {
    match seen.iter().enumerate().find(|(_, times)| **times != 1) {
        Some((segment, &times)) => Err(AggregateError::Delivery { segment, step, times }),
        None => Ok(()),
    }
}

/// What the proof has from before the folds.
struct Drawn {
    polys: Vec<RoundPoly<2>>,
    values: Vec<QM31>,
    theta_nonces: Vec<u64>,
    query_nonce: u64,
}

/// Step 5: the queries.
pub struct JointQueries<B: CommitKernels> {
    params: OpeningParams,
    oracles: Oracles,
    theta: Vec<QM31>,
    drawn: Drawn,
    folds: Folds<B>,
    positions: Vec<usize>,
    seen: Vec<u32>,
    trees: Vec<Vec<TreeOpening<M31>>>,
    /// Every segment's weighted symbol at the positions.
    symbols: Vec<Vec<QM31>>,
}

impl<B: CommitKernels> JointQueries<B> {
    /// Number of segments.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.trees.len()
    }

    /// Queried positions, sorted and distinct: the same for every tree.
    #[must_use]
    pub fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// Takes the opened trees of a segment.
    ///
    /// # Errors
    /// [`AggregateError::Answer`] for a tree that does not open, [`AggregateError::Lengths`].
    pub fn answer<S: HashSuite>(&mut self, segment: usize, trees: Vec<TreeOpening<M31>>) -> Result<(), AggregateError> {
        let own = self.oracles.segments.get(segment).filter(|own| own.len() == trees.len());
        let own = own.ok_or(AggregateError::Lengths { segment, step: "opened trees" })?;
        let about = (own.as_slice(), self.oracles.of(&self.theta, segment));
        let symbols = weighted_symbols::<S>(&self.params, about, &self.positions, &trees)
            .map_err(|(oracle, source)| AggregateError::Answer { segment, oracle, source })?;
        self.seen[segment] += 1;
        self.trees[segment] = trees;
        self.symbols[segment] = symbols;
        Ok(())
    }

    /// The segments, in order, whose share of the combined row was of other data than their trees: `shares` gives again what a
    /// segment sent. For whoever was told of a [`AggregateError::Word`].
    pub fn liars(&self, position: usize, mut shares: impl FnMut(usize) -> Vec<QM31>) -> Vec<usize> {
        let Ok(at) = self.positions.binary_search(&position) else { return Vec::new() };
        let domain = CodeDomain::new(self.params.log_n());
        let sent = |l: usize, share: &[QM31]| self.symbols[l].get(at) == Some(&domain.encode_at(0, position, share));
        (0..self.segments()).filter(|&l| !sent(l, &shares(l))).collect()
    }

    /// The proof.
    ///
    /// # Errors
    /// [`AggregateError::Delivery`] for a segment whose trees are missing or came twice, [`AggregateError::Word`].
    pub fn finish(&mut self, backend: &B) -> Result<CombinedProof, AggregateError> {
        delivered(&self.seen, "opened trees")?;
        let layers = open_layers(backend, &self.params, &self.folds.words, &self.positions);
        let sum = |at: usize| self.symbols.iter().fold(ZERO, |acc, s| acc + s[at]);
        let word = self.word_at(&layers);
        if let Some(at) = (0..self.positions.len()).find(|&at| word.get(at) != Some(&sum(at))) {
            return Err(AggregateError::Word { position: self.positions[at] });
        }
        Ok(CombinedProof { layers, oracles: std::mem::take(&mut self.trees).into_iter().flatten().collect(), ..self.rest() })
    }

    /// All of the proof that is known without the segments' trees: for whoever takes those from elsewhere, and checks each.
    pub fn without_trees(&self, backend: &B) -> CombinedProof {
        CombinedProof { layers: open_layers(backend, &self.params, &self.folds.words, &self.positions), ..self.rest() }
    }

    fn rest(&self) -> CombinedProof {
        CombinedProof {
            joint: self.drawn.polys.clone(),
            values: self.drawn.values.clone(),
            theta_nonces: self.drawn.theta_nonces.clone(),
            roots: self.folds.roots.clone(),
            folds: self.folds.rounds.clone(),
            message: self.folds.message.clone(),
            query_nonce: self.drawn.query_nonce,
            oracles: Vec::new(),
            layers: Vec::new(),
        }
    }

    /// The committed word at the positions; of a row so short that it is sent in clear, the encoded row.
    fn word_at(&self, layers: &[TreeOpening<QM31>]) -> Vec<QM31> {
        let Some(first) = layers.first() else {
            let domain = CodeDomain::new(self.params.log_n());
            return self.positions.iter().map(|&p| domain.encode_at(0, p, &self.folds.message)).collect();
        };
        let mut blocks: Vec<usize> = self.positions.iter().map(|p| p >> STEP).collect();
        blocks.dedup();
        let symbol = |p: &usize| {
            let block = blocks.binary_search(&(p >> STEP)).ok()?;
            first.symbols.get((block << STEP) + (p & ((1 << STEP) - 1))).copied()
        };
        self.positions.iter().filter_map(symbol).collect()
    }
}
