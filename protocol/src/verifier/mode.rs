//! Weight-binding modes: where the claims on weights and values are opened (`docs/soundness.md` §5, §6).
//!
//! The mode is absorbed with the statement and is part of every fork's name, so a proof of one mode is none of another.

/// Mode 0: as mode 1, but the transcript of a segment starts from the closing digest of the one before.
pub const MODE_SEQUENTIAL: u8 = Mode::Sequential as u8;
/// Mode 1: every segment opens in its own fork.
pub const MODE_FORKED: u8 = Mode::Forked as u8;
/// Mode 2: every segment reduces its claims to one row per oracle; all rows are opened at once after the forks are joined.
pub const MODE_AGGREGATED: u8 = Mode::Aggregated as u8;

/// Where openings happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// [`MODE_SEQUENTIAL`].
    Sequential = 0,
    /// [`MODE_FORKED`].
    Forked = 1,
    /// [`MODE_AGGREGATED`].
    Aggregated = 2,
}

impl Mode {
    /// The mode with this number.
    #[must_use]
    pub fn of(id: u8) -> Option<Self> {
        [Self::Sequential, Self::Forked, Self::Aggregated].into_iter().find(|mode| *mode as u8 == id)
    }

    /// Whether every segment has an opening of its own; otherwise one opening of all follows the segments.
    #[must_use]
    pub fn opens_each(self) -> bool {
        self != Self::Aggregated
    }
}
