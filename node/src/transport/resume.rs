//! Transfers that go on where they stopped: from the last whole chunk, each chunk checked by its own digest when it arrives.
//!
//! Believes no peer: the list of digests must join to the blob's, a chunk must be the one that belongs there. A broken transfer leaves a
//! [`Part`], which the next one begins with.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use obelysk_protocol::wire::{
    BlobFetch, BlobHave, BlobOffer, BlobPart, BlobRef, CHUNK_BYTES, MAX_CHUNK_BYTES, Message, MessageId, Outline, OutlineBuilder,
};
use quinn::Connection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;

use super::bulk::{bounded, not_expected, send_chunks, within_limit};
use super::frames::{read_frame, read_message, write_message};
use super::lost;
use super::parts::{Part, Parts, Whole, disk};
use crate::error::TransportError;

/// How long a peer may look for a blob and make its outline: it reads all of it once, 100 GB at 200 MB/s.
const OUTLINE_PATIENCE: Duration = Duration::from_secs(600);

/// Bytes on their way.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = Result<T, TransportError>> + Send + 'a>>;

/// Where a blob's chunks come from.
pub trait BlobSource: Send + Sync {
    /// The blob.
    fn blob(&self) -> BlobRef;

    /// Its outline.
    fn outline(&self) -> Later<'_, Arc<Outline>>;

    /// Chunk `index`.
    fn chunk(&self, index: u64) -> Later<'_, Vec<u8>>;

    /// Chunk `index` where it lies in memory, so that it need not be copied; `None`: it does not.
    fn in_place(&self, _index: u64) -> Option<&[u8]> {
        None
    }
}

/// A blob in memory.
#[derive(Debug, Clone)]
pub struct InMemory {
    /// Its name.
    pub blob: BlobRef,
    /// Its bytes.
    pub bytes: Arc<Vec<u8>>,
}

/// A blob that is a file.
#[derive(Debug, Clone)]
pub struct InFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Its outline, which names it.
    pub outline: Arc<Outline>,
}

impl BlobSource for InMemory {
    fn blob(&self) -> BlobRef {
        self.blob
    }

    fn outline(&self) -> Later<'_, Arc<Outline>> {
        let bytes = self.bytes.clone();
        Box::pin(blocking(move || Ok(Arc::new(Outline::of(&bytes)))))
    }

    fn chunk(&self, index: u64) -> Later<'_, Vec<u8>> {
        let chunk = self.in_place(index).map(<[u8]>::to_vec);
        Box::pin(std::future::ready(chunk.ok_or(TransportError::BlobDamaged)))
    }

    fn in_place(&self, index: u64) -> Option<&[u8]> {
        self.bytes.chunks(MAX_CHUNK_BYTES as usize).nth(usize::try_from(index).ok()?)
    }
}

impl InFile {
    /// Reads the file once and names it by its content. Blocking.
    ///
    /// # Errors
    /// [`TransportError::Disk`].
    pub fn open(path: PathBuf) -> Result<Self, TransportError> {
        let outline = Arc::new(outline_of_file(&path)?);
        Ok(Self { path, outline })
    }
}

impl BlobSource for InFile {
    fn blob(&self) -> BlobRef {
        self.outline.blob()
    }

    fn outline(&self) -> Later<'_, Arc<Outline>> {
        Box::pin(std::future::ready(Ok(self.outline.clone())))
    }

    fn chunk(&self, index: u64) -> Later<'_, Vec<u8>> {
        let (path, length) = (self.path.clone(), self.blob().chunk_length(index));
        Box::pin(blocking(move || {
            use std::os::unix::fs::FileExt as _;
            let mut chunk = vec![0; usize::try_from(length).unwrap_or(0)];
            let read = std::fs::File::open(&path).and_then(|file| file.read_exact_at(&mut chunk, index * CHUNK_BYTES));
            read.map(|()| chunk).map_err(|e| disk(&path, &e))
        }))
    }
}

/// Digest and chunk digests of a file, reading it once. Blocking.
///
/// # Errors
/// [`TransportError::Disk`].
pub fn outline_of_file(path: &std::path::Path) -> Result<Outline, TransportError> {
    use std::io::Read as _;
    let failed = |e: &std::io::Error| disk(path, e);
    let mut file = std::fs::File::open(path).map_err(|e| failed(&e))?;
    let length = file.metadata().map_err(|e| failed(&e))?.len();
    let mut builder = OutlineBuilder::new(length);
    let mut left = length;
    let mut chunk = Vec::new();
    while left > 0 {
        chunk.clear();
        let wanted = left.min(CHUNK_BYTES);
        let got = file.by_ref().take(wanted).read_to_end(&mut chunk).map_err(|e| failed(&e))?;
        if got as u64 != wanted {
            return Err(failed(&std::io::Error::other("the file became shorter while it was read")));
        }
        builder.push(&chunk);
        left -= wanted;
    }
    Ok(builder.finish())
}

/// Gets a blob from the coordinator, going on with what `parts` has of it. When this fails, what arrived is kept there.
///
/// # Errors
/// [`TransportError`]: too large for `limit`, refused, damaged, stalled or lost, no room on disk.
pub async fn fetch_part(connection: &Connection, parts: &Arc<Parts>, blob: BlobRef, limit: u64) -> Result<Whole, TransportError> {
    within_limit(blob, limit)?;
    if blob.length == 0 {
        return if blob == BlobRef::of(&[]) { Ok(Whole::Memory(Vec::new())) } else { Err(TransportError::BlobDamaged) };
    }
    let part = taken(parts, blob).await?;
    let (mut send, mut recv) = match connection.open_bi().await {
        Ok(stream) => stream,
        Err(error) => {
            parts.park(part);
            return Err(lost(&error));
        }
    };
    let (from, outline) = (part.have(), part.needs_outline());
    let asked = async {
        write_message(&mut send, &Message::BlobFetch(BlobFetch { blob, from, outline })).await?;
        match patient(read_message(&mut recv)).await? {
            Some(Message::BlobPart(part)) if part == BlobPart { blob, from } => Ok(()),
            other => Err(not_expected("the blob asked for", other)),
        }
    };
    if let Err(error) = asked.await {
        parts.park(part);
        return Err(error);
    }
    let (part, outcome) = receive_part(&mut recv, part).await;
    kept(parts, part, outcome).await
}

/// Offers a blob to the coordinator, sends what it says it has not, and waits until it confirms having all of it.
///
/// # Errors
/// [`TransportError`]: refused, stalled or lost.
pub async fn offer(connection: &Connection, epoch: u64, source: &dyn BlobSource) -> Result<(), TransportError> {
    let blob = source.blob();
    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| lost(&e))?;
    write_message(&mut send, &Message::BlobOffer(BlobOffer { epoch, blob })).await?;
    let sent = match bounded(read_message(&mut recv)).await? {
        Some(Message::BlobHave(have)) if have.blob == blob => send_part(&mut send, source, have.from, have.outline).await,
        // All of it is there already.
        Some(Message::BlobStored(stored)) if stored.blob == blob => return Ok(()),
        other => return Err(not_expected("what is there of the blob", other)),
    };
    // A refusal stops our sending with an error; the reason is in the answer, so that is read in either case.
    match patient(read_message(&mut recv)).await {
        Ok(Some(Message::BlobStored(stored))) if stored.blob == blob => sent,
        Ok(answer) => Err(not_expected("a confirmation of the blob", answer)),
        Err(error) => Err(sent.err().unwrap_or(error)),
    }
}

/// Answers a [`BlobFetch`].
///
/// # Errors
/// [`TransportError`]: the source's, stalled or lost.
pub async fn answer_fetch<W>(stream: &mut W, source: &dyn BlobSource, fetch: &BlobFetch) -> Result<(), TransportError>
where
    W: AsyncWrite + Unpin + Send,
{
    // Looked for before the answer, so that the asker hears of a loss instead of a cut.
    let outline = if fetch.outline { Some(source.outline().await?) } else { None };
    write_message(stream, &Message::BlobPart(BlobPart { blob: fetch.blob, from: fetch.from })).await?;
    if let Some(outline) = outline {
        send_chunks(stream, outline.bytes()).await?;
    }
    send_from(stream, source, fetch.from).await
}

async fn send_part<W>(stream: &mut W, source: &dyn BlobSource, from: u64, outline: bool) -> Result<(), TransportError>
where
    W: AsyncWrite + Unpin + Send,
{
    if outline {
        send_chunks(stream, source.outline().await?.bytes()).await?;
    }
    send_from(stream, source, from).await
}

async fn send_from<W>(stream: &mut W, source: &dyn BlobSource, from: u64) -> Result<(), TransportError>
where
    W: AsyncWrite + Unpin + Send,
{
    for index in from.div_ceil(CHUNK_BYTES)..source.blob().chunks() {
        match source.in_place(index) {
            Some(chunk) => send_chunks(stream, chunk).await?,
            None => send_chunks(stream, &source.chunk(index).await?).await?,
        }
    }
    Ok(())
}

/// Answers a [`BlobOffer`] with what is here, and takes the rest.
///
/// # Errors
/// [`TransportError`]: damaged, truncated, stalled, lost, no room on disk. What arrived is kept in `parts`.
pub async fn accept_offer<W, R>(
    (send, recv): (&mut W, &mut R),
    parts: &Arc<Parts>,
    blob: BlobRef,
    may: impl FnOnce(u64) -> Result<(), TransportError>,
) -> Result<Whole, TransportError>
where
    W: AsyncWrite + Unpin,
    R: AsyncRead + Unpin,
{
    let part = taken(parts, blob).await?;
    let have = BlobHave { blob, from: part.have(), outline: part.needs_outline() };
    let begun = match may(have.from) {
        Ok(()) => write_message(send, &Message::BlobHave(have)).await,
        Err(error) => Err(error),
    };
    if let Err(error) = begun {
        parts.park(part);
        return Err(error);
    }
    let (part, outcome) = receive_part(recv, part).await;
    kept(parts, part, outcome).await
}

async fn taken(parts: &Arc<Parts>, blob: BlobRef) -> Result<Part, TransportError> {
    let parts = parts.clone();
    blocking(move || parts.take(blob)).await
}

async fn kept(parts: &Arc<Parts>, part: Option<Part>, outcome: Result<(), TransportError>) -> Result<Whole, TransportError> {
    let (parts, part) = (parts.clone(), part.ok_or_else(broken)?);
    blocking(move || match outcome {
        Ok(()) => parts.finish(part),
        Err(error) => {
            parts.park(part);
            Err(error)
        }
    })
    .await
}

/// Reads the outline if the part needs it, then chunks to the end. While one chunk is checked and written the next one arrives. The part
/// comes back in either case, unless writing it panicked.
async fn receive_part<R>(stream: &mut R, mut part: Part) -> (Option<Part>, Result<(), TransportError>)
where
    R: AsyncRead + Unpin,
{
    if part.needs_outline() {
        let wanted = part.blob().outline_bytes();
        let listed = match read_list(stream, wanted).await {
            Ok(list) => part.set_outline(&list),
            Err(error) => Err(error),
        };
        if listed.is_err() {
            return (Some(part), listed);
        }
    }
    let (blob, mut at) = (part.blob(), part.have());
    let mut writing: JoinHandle<(Part, Result<(), TransportError>)> = tokio::task::spawn_blocking(move || (part, Ok(())));
    while at < blob.length {
        let read = read_chunk(stream, blob.chunk_length(at / CHUNK_BYTES)).await;
        let (mut part, written) = match writing.await {
            Ok((part, written)) => (part, written),
            Err(_) => return (None, Err(broken())),
        };
        let chunk = match written.and(read) {
            Ok(chunk) => chunk,
            Err(error) => return (Some(part), Err(error)),
        };
        at += chunk.len() as u64;
        writing = tokio::task::spawn_blocking(move || {
            let written = part.append(&chunk);
            (part, written)
        });
    }
    match writing.await {
        Ok((part, written)) => (Some(part), written),
        Err(_) => (None, Err(broken())),
    }
}

async fn read_chunk<R: AsyncRead + Unpin>(stream: &mut R, length: u64) -> Result<Vec<u8>, TransportError> {
    let frame = bounded(read_frame(stream, u32::MAX)).await?;
    let (header, chunk) = frame.ok_or(TransportError::Truncated("before the last chunk"))?;
    if header.message != MessageId::Chunk {
        return Err(TransportError::Unexpected { expected: "a chunk", got: header.message });
    }
    if chunk.len() as u64 == length { Ok(chunk) } else { Err(TransportError::BlobDamaged) }
}

async fn read_list<R: AsyncRead + Unpin>(stream: &mut R, length: u64) -> Result<Vec<u8>, TransportError> {
    let mut list = Vec::new();
    while (list.len() as u64) < length {
        let left = (length - list.len() as u64).min(CHUNK_BYTES);
        list.extend_from_slice(&read_chunk(stream, left).await?);
    }
    Ok(list)
}

async fn patient<T>(step: impl Future<Output = Result<T, TransportError>>) -> Result<T, TransportError> {
    tokio::time::timeout(OUTLINE_PATIENCE, step).await.unwrap_or(Err(TransportError::Timeout(OUTLINE_PATIENCE.as_secs())))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TransportError> + Send + 'static,
) -> Result<T, TransportError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(broken()))
}

fn broken() -> TransportError {
    TransportError::Lost("this process failed while it handled a blob; report this with its log".to_owned())
}

#[cfg(test)]
mod tests;
