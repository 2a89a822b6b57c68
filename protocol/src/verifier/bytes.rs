//! A bounded cursor over proof bytes. It refuses to read past the end and to accept non-canonical field elements.
//!
//! Counts are never trusted here: whoever reads a count compares it with a bound derived from public shapes first.

use crate::field::{M31, P, QM31, QM31_BYTES, from_bytes, to_bytes};
use crate::transcript::Digest;

/// Why bytes could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BytesError {
    /// Fewer bytes left than the next item needs.
    #[error("input ends {missing} bytes too early: the proof is truncated, request it again")]
    Truncated {
        /// Bytes that were missing.
        missing: usize,
    },
    /// A coordinate `>= p`: the same element would have two encodings.
    #[error("field element at byte {at} is not canonical: the sender must reduce modulo p")]
    NonCanonical {
        /// Offset of the element.
        at: usize,
    },
    /// A count above the bound that public shapes allow.
    #[error("count {found} exceeds the bound {bound}: proof and registered shape do not belong together")]
    TooMany {
        /// The count read.
        found: usize,
        /// The largest count allowed.
        bound: usize,
    },
}

/// A cursor over bytes that somebody else made.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    #[must_use]
    pub fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0 }
    }

    /// Bytes not read yet; a caller that wants no trailing data compares this with 0.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.data.len().saturating_sub(self.at)
    }

    /// The next `n` bytes.
    ///
    /// # Errors
    /// [`BytesError::Truncated`] if fewer are left; the cursor does not move then.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], BytesError> {
        let missing = n.saturating_sub(self.remaining());
        let end = self.at.saturating_add(n);
        let out = self.data.get(self.at..end).ok_or(BytesError::Truncated { missing })?;
        self.at = end;
        Ok(out)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BytesError> {
        let mut out = [0u8; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// One byte.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn u8(&mut self) -> Result<u8, BytesError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    /// A little-endian `u32`.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn u32(&mut self) -> Result<u32, BytesError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// A little-endian `u64`.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn u64(&mut self) -> Result<u64, BytesError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A 32-byte digest.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn digest(&mut self) -> Result<Digest, BytesError> {
        self.array()
    }

    /// A `u32` count of at most `bound`.
    ///
    /// # Errors
    /// [`BytesError::TooMany`] above the bound, else as [`Self::take`].
    pub fn count(&mut self, bound: usize) -> Result<usize, BytesError> {
        let found = self.u32()? as usize;
        if found > bound { Err(BytesError::TooMany { found, bound }) } else { Ok(found) }
    }

    /// A canonical base-field element (4 bytes).
    ///
    /// # Errors
    /// [`BytesError::NonCanonical`] for a value `>= p`, else as [`Self::take`].
    pub fn base(&mut self) -> Result<M31, BytesError> {
        let at = self.at;
        let raw = self.u32()?;
        if raw >= P { Err(BytesError::NonCanonical { at }) } else { Ok(M31::from_u32_unchecked(raw)) }
    }

    /// A canonical extension element (16 bytes).
    ///
    /// # Errors
    /// [`BytesError::NonCanonical`] for a coordinate `>= p`, else as [`Self::take`].
    pub fn felt(&mut self) -> Result<QM31, BytesError> {
        let at = self.at;
        from_bytes(&self.array::<QM31_BYTES>()?).ok_or(BytesError::NonCanonical { at })
    }

    /// `n` items read by `item`. Nothing is reserved from `n`, so a large count costs no memory before data backs it.
    ///
    /// # Errors
    /// The first error of `item`.
    pub fn many<T>(&mut self, n: usize, item: impl Fn(&mut Self) -> Result<T, BytesError>) -> Result<Vec<T>, BytesError> {
        (0..n).map(|_| item(self)).collect()
    }
}

/// Appends a `u32` count.
pub fn put_count(out: &mut Vec<u8>, n: usize) {
    debug_assert!(u32::try_from(n).is_ok());
    out.extend_from_slice(&(n as u32).to_le_bytes());
}

/// Appends extension elements in canonical form.
pub fn put_felts<'a>(out: &mut Vec<u8>, values: impl IntoIterator<Item = &'a QM31>) {
    for v in values {
        out.extend_from_slice(&to_bytes(*v));
    }
}

/// Appends base-field elements in canonical form.
pub fn put_base<'a>(out: &mut Vec<u8>, values: impl IntoIterator<Item = &'a M31>) {
    for v in values {
        out.extend_from_slice(&v.0.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_reads_past_the_end() {
        let mut r = Reader::new(&[1, 2, 3]);
        assert_eq!(r.u32(), Err(BytesError::Truncated { missing: 1 }));
        assert_eq!(r.take(usize::MAX), Err(BytesError::Truncated { missing: usize::MAX - 3 }));
        assert_eq!((r.u8(), r.remaining()), (Ok(1), 2));
    }

    #[test]
    fn refuses_p_and_large_counts() {
        let bytes = P.to_le_bytes();
        assert_eq!(Reader::new(&bytes).base(), Err(BytesError::NonCanonical { at: 0 }));
        assert!(matches!(Reader::new(&bytes).count(7), Err(BytesError::TooMany { bound: 7, .. })));
    }
}
