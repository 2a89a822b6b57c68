//! Large objects of a bucket, in parts: they appear when the last part is there and the whole was found right.
//!
//! An upload is marked by a small object before its first part is sent, because a server keeps, and charges for, parts of uploads that
//! never end, and shows them in no list of objects. What a process that died left is ended by its mark.

use std::sync::Arc;
use std::time::{Duration, Instant};

use obelysk_protocol::wire::Outline;
use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path as Key;
use object_store::{MultipartId, PutPayload};
use tokio::task::JoinSet;

use super::bucket::Bucket;
use super::objects::{Fault, Reading};

/// Folder of marks.
pub(super) const UPLOADS: &str = "uploads";
/// Objects up to this size are put at once: a part has to have 5 MiB, and is worth its request from here on.
pub(super) const WHOLE_BYTES: u64 = 16 << 20;
/// Size of a part, if the object is not too large for it: a few seconds on a slow line.
const PART_BYTES: u64 = 16 << 20;
/// Parts of an upload; servers take 10,000.
const MAX_PARTS: u64 = 9_000;
/// Parts on their way at once: enough that the answer time does not count, little memory.
const PARTS_AT_ONCE: usize = 4;
/// A mark is made young again this often, so that an upload that goes on is never taken for one that was left.
const MARK_AGAIN: Duration = Duration::from_secs(300);
/// Longest mark: a key and the server's name for the upload.
const MAX_MARK_BYTES: usize = 8192;

/// What is uploaded, front to end.
#[derive(Debug)]
pub(super) enum Source {
    Memory { bytes: Arc<Vec<u8>>, at: usize },
    File(Reading),
}

impl Source {
    pub(super) const fn memory(bytes: Arc<Vec<u8>>) -> Self {
        Self::Memory { bytes, at: 0 }
    }

    /// The next part, or `None` at the end. Blocking.
    fn next(&mut self, size: usize) -> Result<Option<Vec<u8>>, Fault> {
        let mut part = Vec::new();
        match self {
            Self::Memory { bytes, at } => {
                let end = at.saturating_add(size).min(bytes.len());
                part.extend_from_slice(&bytes[*at..end]);
                *at = end;
            }
            // Sizes of parts are multiples of those of the pieces read.
            Self::File(reading) => {
                while part.len() < size
                    && let Some(piece) = reading.next()?
                {
                    part.extend_from_slice(&piece);
                }
            }
        }
        Ok((!part.is_empty()).then_some(part))
    }

    /// All that is left, which is little, and the outline of the file.
    pub(super) async fn all(mut self) -> Result<(Vec<u8>, Arc<Outline>), Fault> {
        let read = move || {
            let bytes = self.next(usize::MAX)?.unwrap_or_default();
            Ok((bytes, self.outline()?))
        };
        blocking(read).await?
    }

    /// Of a file: the outline of what was read, if that was the blob announced.
    pub(super) fn outline(self) -> Result<Arc<Outline>, Fault> {
        match self {
            Self::File(reading) => reading.outline(),
            Self::Memory { bytes, .. } => Ok(Arc::new(Outline::of(&bytes))),
        }
    }

    /// Whether all of it was what it should be, as far as it is known.
    const fn is_file(&self) -> bool {
        matches!(self, Self::File(_))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fault> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Fault::Failed(e.to_string()))
}

/// Parts of an object of so many bytes: whole pieces of those that files are read in.
fn part_bytes(length: u64) -> u64 {
    length.div_ceil(MAX_PARTS).next_multiple_of(PART_BYTES).max(PART_BYTES)
}

/// What came of an upload: the outline, where there is one to be had without reading again.
#[derive(Debug)]
pub(super) struct Uploaded(Option<Arc<Outline>>);

impl Uploaded {
    /// The outline of a file that was uploaded.
    pub(super) fn outline(self) -> Result<Arc<Outline>, Fault> {
        self.0.ok_or_else(|| Fault::Failed("it was no file".to_owned()))
    }
}

impl Bucket {
    /// Uploads in parts; what fails leaves nothing, and what is cut off leaves a mark.
    pub(super) async fn upload(&self, key: &str, source: Source, length: u64) -> Result<Uploaded, Fault> {
        let path = self.key(key)?;
        let id = self.store.create_multipart(&path).await.map_err(|e| self.fault(&e))?;
        let mark = format!("{UPLOADS}/{}", blake3::hash(id.as_bytes()).to_hex());
        let outcome = self.send_all((&path, &id), (key, &mark), source, length).await;
        if outcome.is_err() {
            let _ = self.store.abort_multipart(&path, &id).await;
        }
        let _ = self.delete_mark(&mark).await;
        outcome
    }

    async fn send_all(
        &self,
        (path, id): (&Key, &MultipartId),
        (key, mark): (&str, &str),
        mut source: Source,
        length: u64,
    ) -> Result<Uploaded, Fault> {
        let text = format!("{key}\n{id}");
        self.put_whole(mark, text.clone().into_bytes()).await?;
        let size = usize::try_from(part_bytes(length)).map_err(|e| Fault::Failed(e.to_string()))?;
        let (mut marked, mut sent, mut running, mut parts) = (Instant::now(), 0, JoinSet::new(), Vec::new());
        loop {
            let (back, part) = blocking(move || {
                let part = source.next(size);
                (source, part)
            })
            .await?;
            source = back;
            let part = part?;
            while running.len() >= PARTS_AT_ONCE || (part.is_none() && !running.is_empty()) {
                let Some(done) = running.join_next().await else { break };
                parts.push(self.arrived(done)?);
            }
            let Some(part) = part else { break };
            if marked.elapsed() > MARK_AGAIN {
                self.put_whole(mark, text.clone().into_bytes()).await?;
                marked = Instant::now();
            }
            let (store, path, id, number) = (self.store.clone(), path.clone(), id.clone(), sent);
            running.spawn(async move { (number, store.put_part(&path, &id, number, PutPayload::from(part)).await) });
            sent += 1;
        }
        let outline = if source.is_file() { Some(blocking(move || source.outline()).await??) } else { None };
        parts.sort_unstable_by_key(|(number, _): &(usize, PartId)| *number);
        let parts = parts.into_iter().map(|(_, part)| part).collect();
        self.store.complete_multipart(path, id, parts).await.map_err(|e| self.fault(&e))?;
        Ok(Uploaded(outline))
    }

    fn arrived(
        &self,
        done: Result<(usize, object_store::Result<PartId>), tokio::task::JoinError>,
    ) -> Result<(usize, PartId), Fault> {
        let (number, part) = done.map_err(|e| Fault::Failed(e.to_string()))?;
        match part.map_err(|e| self.fault(&e)) {
            Ok(part) => Ok((number, part)),
            Err(Fault::Missing) => Err(Fault::Failed("the upload was ended by somebody else; it is tried again".to_owned())),
            Err(fault) => Err(fault),
        }
    }

    async fn delete_mark(&self, mark: &str) -> Result<(), Fault> {
        use super::objects::Objects as _;
        self.delete(mark.to_owned()).await
    }

    /// Ends the upload that a mark speaks of, if it still is one.
    pub(super) async fn end_upload(&self, mark: &str) -> Result<(), Fault> {
        use super::objects::Objects as _;
        let text = match self.get(mark.to_owned()).await {
            Err(Fault::Missing) => return Ok(()),
            text => text?,
        };
        let text = String::from_utf8(text).unwrap_or_default();
        if let Some((key, id)) = text.split_once('\n').filter(|_| text.len() <= MAX_MARK_BYTES) {
            match self.store.abort_multipart(&self.key(key)?, &id.to_owned()).await.map_err(|e| self.fault(&e)) {
                Ok(()) | Err(Fault::Missing) => {}
                Err(fault) => return Err(fault),
            }
        }
        self.delete_mark(mark).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_few_enough_and_of_whole_pieces() {
        for length in [1, PART_BYTES, 9_000 * PART_BYTES, 9_000 * PART_BYTES + 1, 1 << 42] {
            let part = part_bytes(length);
            assert!(part.is_multiple_of(PART_BYTES) && length.div_ceil(part) <= MAX_PARTS, "{length}: {part}");
        }
    }
}
