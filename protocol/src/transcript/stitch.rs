//! Stitching: one main transcript draws one seed after every root; every segment forks from the seed and is joined again
//! by its closing digest (`docs/soundness.md` §6).
//!
//! Nothing else is shared between forks: no query, grinding, lookup sum or combination.

use super::{Digest, HashSuite, Transcript, domain};

/// The seed: the main transcript's digest after all roots and the seed grinding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(pub Digest);

/// What a fork is for. The byte is part of the fork's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ForkKind {
    /// Draws the random point at which two neighbouring segments open the hidden state between them.
    Boundary = 1,
    /// Proves and opens one segment.
    Segment = 2,
}

/// A fresh transcript for `(kind, index)`, injective in all arguments.
#[must_use]
pub fn fork<S: HashSuite>(seed: &Seed, version: u32, mode: u8, kind: ForkKind, index: u32) -> Transcript<S> {
    let mut buf = Vec::with_capacity(32 + 11);
    buf.extend_from_slice(&seed.0);
    buf.extend_from_slice(&version.to_le_bytes());
    buf.push(S::ID);
    buf.push(mode);
    buf.push(kind as u8);
    buf.extend_from_slice(&index.to_le_bytes());
    Transcript::from_state(S::hash(domain::FORK, &buf))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcript::Blake2s;

    #[test]
    fn forks_differ_in_every_argument() {
        let s = Seed([7; 32]);
        let base = fork::<Blake2s>(&s, 1, 1, ForkKind::Segment, 0).digest();
        let others = [
            fork::<Blake2s>(&Seed([8; 32]), 1, 1, ForkKind::Segment, 0).digest(),
            fork::<Blake2s>(&s, 2, 1, ForkKind::Segment, 0).digest(),
            fork::<Blake2s>(&s, 1, 0, ForkKind::Segment, 0).digest(),
            fork::<Blake2s>(&s, 1, 1, ForkKind::Boundary, 0).digest(),
            fork::<Blake2s>(&s, 1, 1, ForkKind::Segment, 1).digest(),
        ];
        assert!(others.iter().all(|d| *d != base));
    }
}
