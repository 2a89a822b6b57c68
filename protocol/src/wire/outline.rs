//! The chunks of a blob, each checkable by itself: BLAKE3 is a tree, and a chunk of [`MAX_CHUNK_BYTES`] is one of its subtrees.
//!
//! An outline is the list of those subtrees' chaining values. Joined, they give the blob's digest; so the list needs no signature,
//! and a chunk that arrives is known to be right before the next one does. Refuses a list that does not join to the digest.

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};

use super::{BlobRef, MAX_CHUNK_BYTES};

/// Bytes of a chunk: all but the last have exactly so many.
pub const CHUNK_BYTES: u64 = MAX_CHUNK_BYTES as u64;
/// Bytes of an outline per chunk.
pub const CHUNK_DIGEST_BYTES: usize = 32;
/// Most chunks of a blob: 4 TiB, more than a segment of any model; the outline then has 128 MiB.
pub const MAX_CHUNKS: u64 = 1 << 22;

/// The digests of a blob's chunks, known to belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    blob: BlobRef,
    /// Empty for a blob of one chunk or none, whose digest is the blob's own.
    chunks: Vec<ChainingValue>,
}

/// An outline is not one of this blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the list of chunk digests does not belong to the blob; it is asked for again, check the network if this repeats")]
pub struct NotItsOutline;

impl BlobRef {
    /// Chunks the blob travels in.
    #[must_use]
    pub const fn chunks(&self) -> u64 {
        self.length.div_ceil(CHUNK_BYTES)
    }

    /// Length of chunk `index` in bytes; 0 beyond the end.
    #[must_use]
    pub fn chunk_length(&self, index: u64) -> u64 {
        self.length.saturating_sub(index.saturating_mul(CHUNK_BYTES)).min(CHUNK_BYTES)
    }

    /// Bytes of the blob's outline as sent; none for a single chunk.
    #[must_use]
    pub const fn outline_bytes(&self) -> u64 {
        if self.length > CHUNK_BYTES { self.chunks() * CHUNK_DIGEST_BYTES as u64 } else { 0 }
    }
}

impl Outline {
    /// The outline of bytes that are all here.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut builder = OutlineBuilder::new(bytes.len() as u64);
        bytes.chunks(MAX_CHUNK_BYTES as usize).for_each(|chunk| builder.push(chunk));
        builder.finish()
    }

    /// Reads what [`Outline::bytes`] wrote.
    ///
    /// # Errors
    /// [`NotItsOutline`]: another length, or digests that do not join to the blob's.
    pub fn read(blob: BlobRef, bytes: &[u8]) -> Result<Self, NotItsOutline> {
        if bytes.len() as u64 != blob.outline_bytes() || blob.chunks() > MAX_CHUNKS {
            return Err(NotItsOutline);
        }
        let (chunks, _) = bytes.as_chunks::<CHUNK_DIGEST_BYTES>();
        match joined(chunks) {
            Some(digest) if digest != blob.digest => Err(NotItsOutline),
            _ => Ok(Self { blob, chunks: chunks.to_vec() }),
        }
    }

    /// The list as sent and kept.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.chunks.as_flattened()
    }

    /// The blob.
    #[must_use]
    pub const fn blob(&self) -> BlobRef {
        self.blob
    }

    /// Whether these are the bytes of chunk `index`.
    #[must_use]
    pub fn holds(&self, index: u64, chunk: &[u8]) -> bool {
        if chunk.len() as u64 != self.blob.chunk_length(index) || chunk.is_empty() {
            return false;
        }
        let listed = usize::try_from(index).ok().and_then(|at| self.chunks.get(at));
        match listed {
            Some(digest) => *digest == subtree(index, chunk),
            None => index == 0 && self.chunks.is_empty() && self.blob.digest == *blake3::hash(chunk).as_bytes(),
        }
    }
}

/// Makes an outline, and with it the digest, from chunks as they come.
#[derive(Debug)]
pub struct OutlineBuilder {
    length: u64,
    chunks: Vec<ChainingValue>,
    only: Option<[u8; 32]>,
}

impl OutlineBuilder {
    /// For a blob of `length` bytes.
    #[must_use]
    pub const fn new(length: u64) -> Self {
        Self { length, chunks: Vec::new(), only: None }
    }

    /// Takes the next chunk, of [`CHUNK_BYTES`] unless it is the last. What is longer is not looked at beyond that.
    pub fn push(&mut self, chunk: &[u8]) {
        let chunk = chunk.get(..MAX_CHUNK_BYTES as usize).unwrap_or(chunk);
        if self.length <= CHUNK_BYTES {
            self.only = Some(*blake3::hash(chunk).as_bytes());
        } else if !chunk.is_empty() {
            self.chunks.push(subtree(self.chunks.len() as u64, chunk));
        }
    }

    /// The outline; its blob has the length announced and the digest of what came.
    #[must_use]
    pub fn finish(self) -> Outline {
        let digest = joined(&self.chunks).or(self.only).unwrap_or_else(|| *blake3::hash(&[]).as_bytes());
        Outline { blob: BlobRef { digest, length: self.length }, chunks: self.chunks }
    }
}

fn subtree(index: u64, chunk: &[u8]) -> ChainingValue {
    Hasher::new().set_input_offset(index * CHUNK_BYTES).update(chunk).finalize_non_root()
}

/// The root over two or more subtrees.
fn joined(chunks: &[ChainingValue]) -> Option<[u8; 32]> {
    let (left, right) = halves(chunks)?;
    Some(*merge_subtrees_root(&inner(left)?, &inner(right)?, Mode::Hash).as_bytes())
}

fn inner(chunks: &[ChainingValue]) -> Option<ChainingValue> {
    match halves(chunks) {
        None => chunks.first().copied(),
        Some((left, right)) => Some(merge_subtrees_non_root(&inner(left)?, &inner(right)?, Mode::Hash)),
    }
}

/// The left half is the largest power of two below the number, as in BLAKE3 §2.1; so the depth is a logarithm.
fn halves(chunks: &[ChainingValue]) -> Option<(&[ChainingValue], &[ChainingValue])> {
    if chunks.len() < 2 {
        return None;
    }
    chunks.split_at_checked(chunks.len().div_ceil(2).next_power_of_two())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i * 31 % 251) as u8).collect()
    }

    /// The digest is that of the whole, computed without the tree.
    #[test]
    fn chunk_digests_join_to_the_blobs() {
        let chunk = CHUNK_BYTES as usize;
        for length in [0, 1, chunk - 1, chunk, chunk + 1, 2 * chunk, 3 * chunk - 5, 5 * chunk, 7 * chunk + 1024, 8 * chunk] {
            let bytes = bytes(length);
            let outline = Outline::of(&bytes);
            assert_eq!(outline.blob(), BlobRef::of(&bytes), "{length}");
            assert_eq!(outline.bytes().len() as u64, outline.blob().outline_bytes());
            assert_eq!(Outline::read(outline.blob(), outline.bytes()), Ok(outline.clone()));
            for (i, chunk) in bytes.chunks(chunk).enumerate() {
                assert!(outline.holds(i as u64, chunk), "{length}: {i}");
                assert!(!outline.holds(i as u64 + 1, chunk) && !outline.holds(i as u64, &chunk[1..]));
                let mut damaged = chunk.to_vec();
                damaged[chunk.len() / 2] ^= 1;
                assert!(!outline.holds(i as u64, &damaged), "{length}: {i}");
            }
        }
    }

    #[test]
    fn a_list_of_another_blob_is_refused() {
        let outline = Outline::of(&bytes(3 * CHUNK_BYTES as usize));
        let mut list = outline.bytes().to_vec();
        assert_eq!(Outline::read(outline.blob(), &list[1..]), Err(NotItsOutline));
        assert_eq!(Outline::read(outline.blob(), &[]), Err(NotItsOutline));
        list[40] ^= 1;
        assert_eq!(Outline::read(outline.blob(), &list), Err(NotItsOutline));
        let huge = BlobRef { digest: [0; 32], length: u64::MAX };
        assert_eq!(Outline::read(huge, &list), Err(NotItsOutline));
        let short = BlobRef { digest: [0; 32], length: 10 };
        assert!(!Outline::read(short, &[]).expect("no list").holds(0, &bytes(10)));
    }
}
