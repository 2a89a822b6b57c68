//! The soundness budget: for every challenge its round-by-round error in the unique-decoding regime, without conjecture,
//! plus the grinding directly before it (`docs/soundness.md` §8). The proof's security is the minimum.

use super::aggregate::MINIMUM_SECURITY_BITS;
use super::mode::Mode;
use super::opening::{combined_bits, opening_bits, row_bits};
use super::plan::item_count;
use super::proof::opening_shape;
use super::registered::Registered;
use crate::circuit::segment::Circuit;
use crate::circuit::table::MAX_TUPLE;
use crate::field::P;

/// One challenge (or one kind of challenge) of one segment, or of all.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Segment name.
    pub segment: String,
    /// Challenge and its error.
    pub challenge: String,
    /// -log2 of its error.
    pub bits: f64,
    /// Grinding directly before it.
    pub grinding: u32,
}

/// What the entries of [`joint_budget`] are of.
pub const JOINT: &str = "all segments";

/// Every challenge in the forks of a proof over these circuits; mode 2 has those of [`joint_budget`] besides.
#[must_use]
pub fn budget(model: &Registered, mode: Mode, circuits: &[Circuit]) -> Vec<Entry> {
    let security = &model.security;
    // A chained fork starts anew with every query nonce of the fork before, if that is cheaper than another seed.
    let g_start = match mode {
        Mode::Sequential => security.g_seed.min(security.g_query),
        Mode::Forked | Mode::Aggregated => security.g_seed,
    };
    let q = 4.0 * f64::from(P).log2();
    let mut out = Vec::new();
    for c in circuits {
        let mut add = |challenge: String, bits: f64, grinding: u32| {
            out.push(Entry { segment: c.name.clone(), challenge, bits, grinding });
        };
        let leaves = (1u64 << c.tree_log()) as f64;
        if c.tree_log() > 0 {
            // alpha and beta follow the seed with nothing in between but boundary values, so its grinding protects them.
            add("alpha, beta: (tuple + 1) leaves / q".into(), q - (leaves * (MAX_TUPLE + 1) as f64).log2(), u32::from(g_start));
            add("logup layer merge and mu: 2/q".into(), q - 1.0, 0);
            add("logup round: 4/q".into(), q - 2.0, 0);
        }
        add("rho as zerocheck and accumulator point: variables/q".into(), q - (c.rho_len().max(1) as f64).log2(), 0);
        let boundary = c.boundaries().map(|(vars, _)| vars).into_iter().max().unwrap_or(0);
        add("boundary point: variables/q".into(), q - (boundary.max(1) as f64).log2(), u32::from(security.g_seed));
        add("product lambda: products/q".into(), q - (c.products.len().max(1) as f64).log2(), 0);
        add("product round: 3/q".into(), q - 3f64.log2(), 0);
        add("final lambda: items/q".into(), q - (item_count(c) as f64).log2(), 0);
        add("final round: 4/q".into(), q - 2.0, 0);
        add("gamma: log2(matrices)/q".into(), q - (c.matrices.len().max(2) as f64).log2().log2(), 0);
        let shape = opening_shape(c, &model.opening());
        for (name, bits, grinding) in if mode.opens_each() { opening_bits(&shape) } else { row_bits(&shape) } {
            add(name, bits, grinding);
        }
    }
    out
}

/// Every challenge of the opening that mode 2 makes of all oracles after the forks are joined.
#[must_use]
pub fn joint_budget(model: &Registered) -> Vec<Entry> {
    let oracles = model.roots.len() + model.roots.iter().flatten().count();
    let entry = |(challenge, bits, grinding)| Entry { segment: JOINT.to_owned(), challenge, bits, grinding };
    combined_bits(&model.opening(), oracles).into_iter().map(entry).collect()
}

/// The minimum over all challenges of error bits plus grinding. NaN if one of them is, or if there are none: nothing is promised.
#[must_use]
pub fn minimum(entries: &[Entry]) -> f64 {
    entries.iter().map(|e| e.bits + f64::from(e.grinding)).reduce(weaker).unwrap_or(f64::NAN)
}

/// The smaller of two numbers of bits; NaN, which [`f64::min`] would drop, if one of them is.
#[must_use]
pub fn weaker(a: f64, b: f64) -> f64 {
    if a.is_nan() || a <= b { a } else { b }
}

/// Whether a proof of this many bits may be accepted. NaN is not enough.
#[must_use]
pub fn enough(bits: f64) -> bool {
    bits >= MINIMUM_SECURITY_BITS
}

/// `-log2` of the sum of all errors, grinding included.
#[must_use]
pub fn total(entries: &[Entry]) -> f64 {
    -entries.iter().map(|e| (-(e.bits + f64::from(e.grinding))).exp2()).sum::<f64>().log2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_that_are_no_number_promise_nothing() {
        let entry = |bits| Entry { segment: String::new(), challenge: String::new(), bits, grinding: 8 };
        assert!(enough(minimum(&[entry(100.0), entry(88.0)])));
        assert!(!enough(minimum(&[entry(100.0), entry(87.9)])));
        for entries in [[100.0, f64::NAN], [f64::NAN, 100.0]].map(|bits| bits.map(entry)) {
            assert!(!enough(minimum(&entries)) && minimum(&entries).is_nan());
        }
        assert!(!enough(minimum(&[])));
        assert!(!enough(weaker(f64::NAN, 120.0)) && !enough(weaker(120.0, f64::NAN)) && enough(weaker(120.0, 97.0)));
    }
}
