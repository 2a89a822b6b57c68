//! A backend and an oracle that compute honestly except for one chosen cheat, so that every forging prover is otherwise
//! consistent with what it pretends.

use crate::kernels::reference::{BaseWords, Reference};
use crate::kernels::{CodeShape, CommitKernels, HostTree};
use crate::prover::commitment::Oracle;
use obelysk_protocol::field::{FieldExpOps, M31, ONE, QM31, signed_ext};
use obelysk_protocol::transcript::{Digest, HashSuite, pow_ok};
use std::sync::Mutex;

/// Where the backend cheats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cheat {
    /// Folds the word, not the message, with another challenge in this round.
    FoldWord(u32),
    /// Folds word and message with another challenge in the third round.
    FoldBoth,
    /// Sends a nonce without the zero bits wherever this many are asked for.
    NoGrinding(u32),
    /// Leaves the last oracle out of the combined word.
    LeaveOut,
    /// The claimed value is too large by one; nothing else is adapted.
    WrongValue,
    /// As above, and `F(ζ)` is chosen so that the joint sumcheck closes.
    WrongValueAndEvaluation,
    /// As above, and the clear message is chosen so that the fold sumcheck closes too.
    WrongValueEvaluationAndMessage,
    /// One entry of the clear message is changed.
    Message,
    /// The clear message is changed without changing its inner product with the kernel.
    MessageSameValue,
}

#[derive(Default)]
struct Seen {
    /// Last challenge that was bound.
    last: Option<QM31>,
    /// Result of the last binding: the kernel's, since it is bound after the data.
    kernel: Vec<QM31>,
    /// `eq(ζ, 0)`: the kernel's first entry if the message is sent without any fold.
    corner: QM31,
    /// Whether the joint sumcheck is over.
    joint_over: bool,
    /// How far the running sumcheck claim is from the truth.
    error: QM31,
}

pub(super) struct Crooked {
    cheat: Cheat,
    seen: Mutex<Seen>,
}

impl Crooked {
    pub(super) fn new(cheat: Cheat) -> Self {
        Self { cheat, seen: Mutex::new(Seen { error: ONE, corner: ONE, ..Seen::default() }) }
    }

    fn chases_value(&self) -> bool {
        matches!(self.cheat, Cheat::WrongValueAndEvaluation | Cheat::WrongValueEvaluationAndMessage)
    }
}

impl CommitKernels for Crooked {
    type Base = Vec<M31>;
    type Int8 = Vec<i8>;
    type Words = BaseWords;
    type Ext = Vec<QM31>;
    type ExtWord = Vec<QM31>;
    type Tree = HostTree;

    fn base(&self, values: Vec<M31>) -> Vec<M31> {
        values
    }
    fn int8(&self, values: Vec<i8>) -> Vec<i8> {
        values
    }
    fn ext(&self, values: Vec<QM31>) -> Vec<QM31> {
        values
    }
    fn ext_len(&self, values: &Vec<QM31>) -> usize {
        values.len()
    }
    fn to_host(&self, values: &Vec<QM31>) -> Vec<QM31> {
        let mut out = values.clone();
        let mut seen = self.seen.lock().unwrap();
        let is_message = out.len() > 1;
        seen.joint_over = true;
        if !is_message && self.chases_value() {
            // F K is off by `error`, so F has to be off by error / K; that is the error of the next sumcheck's claim.
            let k_inv = seen.kernel[0].inverse();
            seen.error *= k_inv;
            out[0] += seen.error;
        }
        if is_message {
            let kernel = &seen.kernel;
            let first = if kernel.len() == 1 { seen.corner } else { kernel[0] };
            match self.cheat {
                Cheat::WrongValueEvaluationAndMessage => out[0] += seen.error * first.inverse(),
                Cheat::Message => out[1] += ONE,
                Cheat::MessageSameValue => {
                    out[0] += kernel[1];
                    out[1] -= kernel[0];
                }
                _ => {}
            }
        }
        out
    }
    fn encode_base(&self, rows: &Vec<M31>, code: CodeShape) -> BaseWords {
        Reference.encode_base(rows, code)
    }
    fn words_tree<S: HashSuite>(&self, words: &BaseWords, code: CodeShape) -> HostTree {
        Reference.words_tree::<S>(words, code)
    }
    fn words_at(&self, words: &BaseWords, code: CodeShape, positions: &[usize]) -> Vec<M31> {
        Reference.words_at(words, code, positions)
    }
    fn encode_int8<S: HashSuite>(&self, rows: &Vec<i8>, code: CodeShape, leaves: Option<&mut [u8]>) -> HostTree {
        Reference.encode_int8::<S>(rows, code, leaves)
    }
    fn symbols_int8(&self, rows: &Vec<i8>, code: CodeShape, positions: &[usize]) -> Vec<M31> {
        Reference.symbols_int8(rows, code, positions)
    }
    fn nodes(&self, tree: &HostTree, wanted: &[(u32, usize)]) -> Vec<Digest> {
        Reference.nodes(tree, wanted)
    }
    fn all_nodes(&self, tree: &HostTree) -> Vec<Digest> {
        Reference.all_nodes(tree)
    }
    fn root(&self, tree: &HostTree) -> Digest {
        Reference.root(tree)
    }
    fn combine_base(&self, rows: &Vec<M31>, h: u32, coefficients: &[QM31]) -> Vec<QM31> {
        Reference.combine_base(rows, h, coefficients)
    }
    fn combine_int8(&self, rows: &Vec<i8>, h: u32, coefficients: &[QM31]) -> Vec<QM31> {
        Reference.combine_int8(rows, h, coefficients)
    }
    fn partials_base(&self, rows: &Vec<M31>, point: &[QM31]) -> Vec<QM31> {
        Reference.partials_base(rows, point)
    }
    fn partials_int8(&self, rows: &Vec<i8>, point: &[QM31]) -> Vec<QM31> {
        Reference.partials_int8(rows, point)
    }
    fn outer(&self, low: &[QM31], high: &[QM31]) -> Vec<QM31> {
        Reference.outer(low, high)
    }
    fn weighted_sum(&self, terms: &[(&Vec<QM31>, QM31)]) -> Vec<QM31> {
        let kept = if self.cheat == Cheat::LeaveOut { &terms[..terms.len() - 1] } else { terms };
        Reference.weighted_sum(kept)
    }
    fn product_round(&self, f: &Vec<QM31>, k: &Vec<QM31>) -> [QM31; 2] {
        Reference.product_round(f, k)
    }
    fn product_round_full(&self, f: &Vec<QM31>, k: &Vec<QM31>) -> [QM31; 3] {
        Reference.product_round_full(f, k)
    }
    fn bind(&self, v: &Vec<QM31>, r: QM31) -> Vec<QM31> {
        let mut seen = self.seen.lock().unwrap();
        let is_data = seen.last != Some(r);
        if is_data {
            // The value at 1 is implied by the claim, so an error there is carried on with weight r (2 - r).
            seen.error *= r * (signed_ext(2) - r);
            seen.corner *= ONE - r;
            seen.last = Some(r);
        }
        // With h = 6 the third fold binds a message of 16.
        let crooked = self.cheat == Cheat::FoldBoth && is_data && seen.joint_over && v.len() == 16;
        let out = Reference.bind(v, if crooked { r + ONE } else { r });
        seen.kernel.clone_from(&out);
        out
    }
    fn encode_ext(&self, message: &Vec<QM31>, code: CodeShape) -> Vec<QM31> {
        Reference.encode_ext(message, code)
    }
    fn fold_word(&self, word: &Vec<QM31>, code: CodeShape, round: u32, alpha: QM31) -> Vec<QM31> {
        let other = self.cheat == Cheat::FoldWord(round) || self.cheat == Cheat::FoldBoth && round == 2;
        Reference.fold_word(word, code, round, if other { alpha + ONE } else { alpha })
    }
    fn blocks_tree<S: HashSuite>(&self, word: &Vec<QM31>, step: u32) -> HostTree {
        Reference.blocks_tree::<S>(word, step)
    }
    fn blocks_at(&self, word: &Vec<QM31>, step: u32, blocks: &[usize]) -> Vec<QM31> {
        Reference.blocks_at(word, step, blocks)
    }
    fn grind<S: HashSuite>(&self, prefix: &Digest, bits: u32) -> u64 {
        if self.cheat == Cheat::NoGrinding(bits) {
            return (0..).find(|&n| !pow_ok::<S>(prefix, bits, n)).unwrap();
        }
        Reference.grind::<S>(prefix, bits)
    }
}

/// How an oracle combines its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Combination {
    /// As asked.
    Honest,
    /// Powers of the second coefficient.
    Powers,
    /// Nothing: the oracle is ignored everywhere.
    Zero,
}

/// An oracle that commits to `words` but proves about `values`.
pub(super) struct CrookedOracle {
    pub code: CodeShape,
    pub values: Vec<M31>,
    pub words: BaseWords,
    pub tree: HostTree,
    pub combination: Combination,
}

impl CrookedOracle {
    pub(super) fn new<S: HashSuite>(code: CodeShape, values: Vec<M31>, words: BaseWords, combination: Combination) -> Self {
        let tree = Reference.words_tree::<S>(&words, code);
        Self { code, values, words, tree, combination }
    }

    pub(super) fn powers(n: usize, x: QM31) -> Vec<QM31> {
        std::iter::successors(Some(ONE), |&p| Some(p * x)).take(n).collect()
    }
}

impl<B: CommitKernels<Base = Vec<M31>>> Oracle<B> for CrookedOracle {
    fn rows(&self) -> usize {
        self.values.len() >> self.code.h
    }
    fn root(&self) -> Digest {
        Reference.root(&self.tree)
    }
    fn partials(&self, backend: &B, point: &[QM31]) -> Vec<QM31> {
        backend.partials_base(&self.values, point)
    }
    fn combine(&self, backend: &B, coefficients: &[QM31]) -> B::Ext {
        let c = match self.combination {
            Combination::Honest => coefficients.to_vec(),
            Combination::Powers => Self::powers(coefficients.len(), coefficients[1]),
            Combination::Zero => vec![QM31::default(); coefficients.len()],
        };
        backend.combine_base(&self.values, self.code.h, &c)
    }
    fn leaves(&self, _: &B, positions: &[usize]) -> Vec<M31> {
        Reference.words_at(&self.words, self.code, positions)
    }
    fn nodes(&self, _: &B, wanted: &[(u32, usize)]) -> Vec<Digest> {
        Reference.nodes(&self.tree, wanted)
    }
}
