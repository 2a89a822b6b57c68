//! Fiat–Shamir transcript: labelled, length-prefixed absorbs, domain-separated draws, grinding.
//!
//! It refuses nothing and knows no protocol; the order of calls *is* the protocol and is written once, in the verifier.

mod stitch;
mod suite;

pub use stitch::{ForkKind, Seed, fork};
pub use suite::{Blake2s, Digest, HashSuite, Poseidon252};

use crate::field::{M31, P, QM31, to_bytes};
use std::marker::PhantomData;

/// Hash domains. One byte each, never reused for another purpose.
pub(crate) mod domain {
    pub const ABSORB: u8 = 1;
    pub const DRAW: u8 = 2;
    pub const STREAM: u8 = 3;
    pub const POW_PREFIX: u8 = 4;
    pub const POW: u8 = 5;
    pub const FORK: u8 = 6;
    pub const DIGEST: u8 = 7;
}

/// A running transcript over hash suite `S`.
#[derive(Clone, Debug)]
pub struct Transcript<S: HashSuite> {
    state: Digest,
    suite: PhantomData<S>,
}

impl<S: HashSuite> Transcript<S> {
    /// Starts a transcript whose first absorbed datum is `label`.
    #[must_use]
    pub fn new(label: &str) -> Self {
        let mut t = Self { state: [0; 32], suite: PhantomData };
        t.absorb_bytes("init", label.as_bytes());
        t
    }

    pub(crate) fn from_state(state: Digest) -> Self {
        Self { state, suite: PhantomData }
    }

    /// The current state: commits to everything absorbed and drawn so far.
    #[must_use]
    pub fn digest(&self) -> Digest {
        S::hash(domain::DIGEST, &self.state)
    }

    /// Absorbs bytes under a label; both are length-prefixed, so no two sequences of calls collide.
    pub fn absorb_bytes(&mut self, label: &str, data: &[u8]) {
        let mut buf = Vec::with_capacity(32 + 16 + label.len());
        buf.extend_from_slice(&self.state);
        buf.extend_from_slice(&(label.len() as u64).to_le_bytes());
        buf.extend_from_slice(label.as_bytes());
        buf.extend_from_slice(&(data.len() as u64).to_le_bytes());
        self.state = S::hash_joined(domain::ABSORB, &buf, data);
    }

    /// Absorbs a Merkle root or another digest.
    pub fn absorb_digest(&mut self, label: &str, d: &Digest) {
        self.absorb_bytes(label, d);
    }

    /// Absorbs field elements in canonical form.
    pub fn absorb_felts(&mut self, label: &str, values: &[QM31]) {
        let bytes: Vec<u8> = values.iter().flat_map(|v| to_bytes(*v)).collect();
        self.absorb_bytes(label, &bytes);
    }

    /// Absorbs an unsigned integer.
    pub fn absorb_u64(&mut self, label: &str, v: u64) {
        self.absorb_bytes(label, &v.to_le_bytes());
    }

    fn advance(&mut self, label: &str) -> WordStream<S> {
        let mut buf = Vec::with_capacity(40 + label.len());
        buf.extend_from_slice(&self.state);
        buf.extend_from_slice(&(label.len() as u64).to_le_bytes());
        buf.extend_from_slice(label.as_bytes());
        self.state = S::hash(domain::DRAW, &buf);
        WordStream { seed: self.state, counter: 0, words: [0; 8], used: S::UNIFORM_BYTES / 4, suite: PhantomData }
    }

    /// Draws one challenge, uniform in QM31 (words equal to p are rejected, so there is no bias).
    pub fn draw(&mut self, label: &str) -> QM31 {
        self.advance(label).felt()
    }

    /// Draws `n` challenges at once.
    pub fn draw_many(&mut self, label: &str, n: usize) -> Vec<QM31> {
        let mut s = self.advance(label);
        (0..n).map(|_| s.felt()).collect()
    }

    /// Draws `count` positions in `[0, 2^log_size)`, independent and uniform, repetitions kept.
    pub fn draw_positions(&mut self, label: &str, log_size: u32, count: usize) -> Vec<usize> {
        let mut s = self.advance(label);
        let mask = (1u64 << log_size) - 1;
        (0..count).map(|_| (u64::from(s.word()) & mask) as usize).collect()
    }

    /// The prefix a grinding search starts from: bound to the state and to the number of bits.
    #[must_use]
    pub fn pow_prefix(&self, bits: u32) -> Digest {
        let mut buf = [0u8; 36];
        buf[..32].copy_from_slice(&self.state);
        buf[32..].copy_from_slice(&bits.to_le_bytes());
        S::hash(domain::POW_PREFIX, &buf)
    }

    /// Checks and absorbs a grinding nonce. `bits = 0` still absorbs, so the format does not depend on parameters.
    pub fn accept_pow(&mut self, bits: u32, nonce: u64) -> bool {
        let ok = pow_ok::<S>(&self.pow_prefix(bits), bits, nonce);
        self.absorb_u64("pow", nonce);
        ok
    }
}

/// Whether `nonce` gives `bits` trailing zero bits under `prefix`.
#[must_use]
pub fn pow_ok<S: HashSuite>(prefix: &Digest, bits: u32, nonce: u64) -> bool {
    let mut buf = [0u8; 40];
    buf[..32].copy_from_slice(prefix);
    buf[32..].copy_from_slice(&nonce.to_le_bytes());
    let h = S::uniform(&S::hash(domain::POW, &buf));
    let low = u64::from_le_bytes([h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]]);
    low.trailing_zeros() >= bits
}

struct WordStream<S: HashSuite> {
    seed: Digest,
    counter: u64,
    words: [u32; 8],
    used: usize,
    suite: PhantomData<S>,
}

impl<S: HashSuite> WordStream<S> {
    fn word(&mut self) -> u32 {
        if self.used == S::UNIFORM_BYTES / 4 {
            let mut buf = [0u8; 40];
            buf[..32].copy_from_slice(&self.seed);
            buf[32..].copy_from_slice(&self.counter.to_le_bytes());
            let h = S::uniform(&S::hash(domain::STREAM, &buf));
            for (w, b) in self.words.iter_mut().zip(h.chunks_exact(4)) {
                *w = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
            self.counter += 1;
            self.used = 0;
        }
        let w = self.words[self.used];
        self.used += 1;
        w
    }

    fn base(&mut self) -> M31 {
        loop {
            let w = self.word() & P;
            if w != P {
                return M31::from_u32_unchecked(w);
            }
        }
    }

    fn felt(&mut self) -> QM31 {
        QM31::from_m31_array([self.base(), self.base(), self.base(), self.base()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every bit of every word is a fair coin, for every suite; 4,000 tosses stray by 6 standard deviations once in a billion.
    fn words_are_uniform<S: HashSuite>() {
        const TOSSES: usize = 4_000;
        let mut transcript = Transcript::<S>::new("uniform");
        let mut ones = [[0usize; 32]; 8];
        for i in 0..TOSSES {
            let mut stream = transcript.advance(&format!("{i}"));
            for ones in &mut ones[..S::UNIFORM_BYTES / 4] {
                let word = stream.word();
                ones.iter_mut().enumerate().for_each(|(bit, ones)| *ones += (word >> bit & 1) as usize);
            }
        }
        let fair = |ones: &usize| ones.abs_diff(TOSSES / 2) < 6 * 32;
        assert!(ones[..S::UNIFORM_BYTES / 4].as_flattened().iter().all(fair), "{}: {ones:?}", S::NAME);
    }

    /// Grinding of g bits takes 2^g tries: below, it is worth less than the budget says.
    fn grinding_costs_what_it_says<S: HashSuite>() {
        let prefixes = 0..64u64;
        let tries = |i: u64| {
            let prefix = S::hash(domain::POW_PREFIX, &i.to_le_bytes());
            (0..).find(|&nonce| pow_ok::<S>(&prefix, 8, nonce)).map_or(0, |nonce: u64| nonce + 1)
        };
        // The mean of 64 such waits is 256, with a standard deviation of 32.
        let mean = prefixes.map(tries).sum::<u64>() / 64;
        assert!((128..512).contains(&mean), "{}: {mean} tries for 8 bits", S::NAME);
    }

    #[test]
    fn challenges_positions_and_grinding_rest_on_uniform_words() {
        words_are_uniform::<Blake2s>();
        words_are_uniform::<Poseidon252>();
        grinding_costs_what_it_says::<Blake2s>();
        grinding_costs_what_it_says::<Poseidon252>();
    }

    #[test]
    fn label_and_data_boundaries_matter() {
        let mut a = Transcript::<Blake2s>::new("t");
        let mut b = Transcript::<Blake2s>::new("t");
        a.absorb_bytes("ab", b"c");
        b.absorb_bytes("a", b"bc");
        assert_ne!(a.digest(), b.digest());
    }

    #[test]
    fn a_nonce_is_bound_to_its_bits() {
        let t = Transcript::<Blake2s>::new("t");
        let nonce = (0..).find(|&n| pow_ok::<Blake2s>(&t.pow_prefix(6), 6, n)).unwrap();
        assert!(t.clone().accept_pow(6, nonce));
        assert_ne!(t.pow_prefix(6), t.pow_prefix(7));
    }

    #[test]
    fn both_suites_give_different_transcripts() {
        let a = Transcript::<Blake2s>::new("t").draw("x");
        let b = Transcript::<Poseidon252>::new("t").draw("x");
        assert_ne!(a, b);
    }
}
