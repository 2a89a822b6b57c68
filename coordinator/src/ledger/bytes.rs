//! Little-endian bytes in and out, every length bounded before anything is allocated. Refuses, by `None`, whatever is cut or too long.

use obelysk_protocol::wire::BlobRef;

/// Collects bytes.
#[derive(Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// A length and then the bytes.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.raw(bytes);
    }

    pub(super) fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).unwrap_or(u32::MAX));
    }

    pub(super) fn blob(&mut self, blob: BlobRef) {
        self.raw(&blob.digest);
        self.u64(blob.length);
    }

    pub(super) fn blobs(&mut self, blobs: &[BlobRef]) {
        self.count(blobs.len());
        blobs.iter().for_each(|blob| self.blob(*blob));
    }
}

/// Takes bytes from the front of what is left.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length of at most `most`, and the bytes.
    pub(super) fn bytes(&mut self, most: usize) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok().filter(|length| *length <= most)?;
        self.take(length)
    }

    pub(super) fn text(&mut self, most: usize) -> Option<String> {
        std::str::from_utf8(self.bytes(most)?).ok().map(str::to_owned)
    }

    pub(super) fn blob(&mut self) -> Option<BlobRef> {
        Some(BlobRef { digest: self.array()?, length: self.u64()? })
    }

    /// At most `most` of something that takes at least one byte each.
    pub(super) fn list<T>(&mut self, most: usize, mut one: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = usize::try_from(self.u32()?).ok().filter(|count| *count <= most && *count <= self.0.len())?;
        (0..count).map(|_| one(self)).collect()
    }

    pub(super) fn blobs(&mut self, most: usize) -> Option<Vec<BlobRef>> {
        self.list(most, Self::blob)
    }
}
