//! What a verifier knows of a model before it sees a proof: descriptor, weight roots, security parameters; and the model id
//! that binds them (`docs/soundness.md` §2).
//!
//! Facts about weights (ranges, row bounds, zero padding) are not proved by any opening: trust in a model id is trust in
//! whoever recomputed the roots with the registration check.

use super::bytes::{BytesError, Reader};
use super::opening::OpeningParams;
use crate::PROTOCOL_VERSION;
use crate::circuit::descriptor::Descriptor;
use crate::circuit::{encode, segment_count};
use crate::transcript::{Digest, HashSuite, Transcript};

/// Security parameters of every proof of a model. They are part of the model id: nothing at run time can lower them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecurityParams {
    /// Positions drawn per opening.
    pub queries: u16,
    /// Grinding before the seed.
    pub g_seed: u8,
    /// Grinding before each row and fold challenge.
    pub g_fold: u8,
    /// Grinding before the positions.
    pub g_query: u8,
}

impl SecurityParams {
    /// Parameters for at least 100 bits at rate `2^-blowup_log` (unique decoding, no conjecture).
    #[must_use]
    pub fn standard(blowup_log: u8) -> Self {
        let queries = match blowup_log {
            1 => 195,
            2 => 120,
            _ => 98,
        };
        Self { queries, g_seed: 16, g_fold: 8, g_query: 20 }
    }
}

/// A registered model as the verifier holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Everything but the weights.
    pub descriptor: Descriptor,
    /// Root of each segment's weight oracle; `None` for segments without matrices.
    pub roots: Vec<Option<Digest>>,
    /// Security parameters.
    pub security: SecurityParams,
    /// Digest of the manifest (source files, calibration, fidelity report).
    pub manifest: Digest,
}

/// Why bytes are no registered model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegisteredError {
    /// Truncated, oversized or not canonical.
    #[error("registration file: {0}: register the model again")]
    Bytes(#[from] BytesError),
    /// The descriptor inside does not decode.
    #[error("registration file: {0}")]
    Descriptor(#[from] encode::DecodeError),
    /// Something else is wrong with it.
    #[error("registration file: {0}: register the model again")]
    Content(&'static str),
}

const MAGIC: [u8; 4] = *b"OBKR";
/// Bound on the encoded descriptor: activation tables are 128 KiB a layer.
const MAX_DESCRIPTOR: usize = 1 << 28;

impl Registered {
    /// The model id under hash suite `S`.
    #[must_use]
    pub fn model_id<S: HashSuite>(&self) -> Digest {
        Self::id_of::<S>(&self.write())
    }

    /// The model id of canonical bytes.
    pub(super) fn id_of<S: HashSuite>(registration: &[u8]) -> Digest {
        let mut t = Transcript::<S>::new("obelysk model");
        t.absorb_bytes("registration", registration);
        t.digest()
    }

    /// Opening parameters of every fork.
    #[must_use]
    pub fn opening(&self) -> OpeningParams {
        OpeningParams {
            h: u32::from(self.descriptor.row_log()),
            blowup_log: u32::from(self.descriptor.blowup_log()),
            queries: usize::from(self.security.queries),
            g_fold: u32::from(self.security.g_fold),
            g_query: u32::from(self.security.g_query),
        }
    }

    /// Canonical bytes.
    #[must_use]
    pub fn write(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
        let s = &self.security;
        out.extend_from_slice(&s.queries.to_le_bytes());
        out.extend_from_slice(&[s.g_seed, s.g_fold, s.g_query]);
        out.extend_from_slice(&self.manifest);
        let d = encode::encode(&self.descriptor);
        out.reserve_exact(4 + d.len() + self.roots.len() * (1 + size_of::<Digest>()));
        out.extend_from_slice(&(d.len() as u32).to_le_bytes());
        out.extend_from_slice(&d);
        for root in &self.roots {
            out.push(u8::from(root.is_some()));
            out.extend_from_slice(&root.unwrap_or_default());
        }
        out
    }

    /// Parses canonical bytes.
    ///
    /// # Errors
    /// [`RegisteredError`]; never panics.
    pub fn read(bytes: &[u8]) -> Result<Self, RegisteredError> {
        let mut r = Reader::new(bytes);
        if r.take(4)? != MAGIC {
            return Err(RegisteredError::Content("it does not start with the magic bytes"));
        }
        if r.u32()? != PROTOCOL_VERSION {
            return Err(RegisteredError::Content("it was written by another protocol version"));
        }
        let queries = u16::from(r.u8()?) | u16::from(r.u8()?) << 8;
        let security = SecurityParams { queries, g_seed: r.u8()?, g_fold: r.u8()?, g_query: r.u8()? };
        let manifest = r.digest()?;
        let len = r.count(MAX_DESCRIPTOR)?;
        let descriptor = encode::decode(r.take(len)?)?;
        let mut roots = Vec::new();
        for _ in 0..segment_count(&descriptor) {
            let flag = r.u8()?;
            let root = r.digest()?;
            roots.push(match flag {
                0 if root == Digest::default() => None,
                1 => Some(root),
                _ => return Err(RegisteredError::Content("a root's flag is not canonical")),
            });
        }
        if r.remaining() != 0 {
            return Err(RegisteredError::Content("bytes follow the last root"));
        }
        Ok(Self { descriptor, roots, security, manifest })
    }
}
