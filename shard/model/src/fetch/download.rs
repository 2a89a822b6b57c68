//! One file from the hub, byte for byte, however often the connection breaks.
//!
//! Bytes go to a part file, which the next attempt or the next run continues. A part becomes a file only when its length
//! and, where the hub states one, its SHA-256 are right.

use super::error::{FetchError, at};
use super::files::{FileDigest, digest};
use super::hub::{Hub, Published, Refusal};
use super::space;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use ureq::http::header;

/// Attempts in a row that bring no byte; with pauses of 1, 2, 4 and 8 s between them.
const MAX_ATTEMPTS: u32 = 5;

/// A file to fetch.
pub struct Wanted<'a> {
    /// Repository.
    pub model: &'a str,
    /// Commit.
    pub commit: &'a str,
    /// File.
    pub name: &'a str,
    /// What the hub says of it.
    pub published: Published,
}

/// Fetches what `part` lacks, checks it and moves it to `dest`. `seen` gets the bytes of the part after each step.
///
/// # Errors
/// [`FetchError::Interrupted`] leaves the part for the next run; a part that is wrong is removed.
pub fn download(
    hub: &Hub,
    wanted: &Wanted<'_>,
    part: &Path,
    dest: &Path,
    seen: &mut dyn FnMut(u64),
) -> Result<FileDigest, FetchError> {
    let mut published = wanted.published.clone();
    let mut failures = 0;
    while !complete(part, published.size)? {
        let before = length(part)?;
        let reason = match attempt(hub, wanted, &mut published, part, seen) {
            Ok(()) => break,
            Err(Refusal::Final(error)) => return Err(error),
            Err(Refusal::Passing(reason)) => reason,
        };
        failures = if length(part)? > before { 0 } else { failures + 1 };
        if failures >= MAX_ATTEMPTS {
            let (file, done) = (wanted.name.to_owned(), length(part)?);
            return Err(FetchError::Interrupted { file, done, total: published.size, reason });
        }
        if failures > 0 {
            std::thread::sleep(hub.pause * (1 << (failures - 1)));
        }
    }
    settle(wanted.name, &published, part, dest)
}

/// Checks a part that has its length and moves it to `dest`.
///
/// # Errors
/// [`FetchError::Checksum`], after which the part is gone.
pub fn settle(name: &str, published: &Published, part: &Path, dest: &Path) -> Result<FileDigest, FetchError> {
    let digest = digest(part, name)?;
    if let Some(expected) = published.sha256.as_ref().filter(|expected| **expected != digest.sha256) {
        std::fs::remove_file(part).map_err(at(part))?;
        return Err(FetchError::Checksum { file: name.to_owned(), expected: expected.clone(), found: digest.sha256 });
    }
    // A name that survives a power failure must not outlive its bytes.
    File::open(part).and_then(|file| file.sync_all()).map_err(at(part))?;
    std::fs::rename(part, dest).map_err(at(dest))?;
    Ok(digest)
}

/// Bytes of a part so far.
pub fn length(part: &Path) -> Result<u64, FetchError> {
    match std::fs::metadata(part) {
        Ok(meta) => Ok(meta.len()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(at(part)(e)),
    }
}

fn complete(part: &Path, size: Option<u64>) -> Result<bool, FetchError> {
    Ok(part.is_file() && size == Some(length(part)?))
}

fn attempt(
    hub: &Hub,
    wanted: &Wanted<'_>,
    published: &mut Published,
    part: &Path,
    seen: &mut dyn FnMut(u64),
) -> Result<(), Refusal> {
    let here = length(part).map_err(Refusal::Final)?;
    let mut start = if published.size.is_some_and(|size| here > size) { 0 } else { here };
    let (response, sha256) = hub.open(wanted.model, wanted.commit, wanted.name, start)?;
    published.sha256 = published.sha256.take().or(sha256);
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|v| v.to_str().ok()).and_then(range);
    let total = match (response.status().as_u16(), range) {
        (206, Some((first, total))) if first == start => total,
        // The server knows no ranges: everything comes again.
        (200, _) => {
            start = 0;
            response.body().content_length()
        }
        (status, _) => {
            cut(part, 0)?;
            return Err(Refusal::Passing(format!("HTTP {status} to a request from byte {start} on")));
        }
    };
    if let Some((said, listed)) = total.zip(published.size).filter(|(said, listed)| said != listed) {
        let reason = format!("{} has {said} bytes where its list of files says {listed}", wanted.name);
        return Err(Refusal::Final(FetchError::Hub { model: wanted.model.to_owned(), reason }));
    }
    published.size = published.size.or(total);
    append(response.into_body().into_reader(), cut(part, start)?, part, (start, published.size), seen)
}

/// The part with its first `bytes` bytes only, to be appended to.
fn cut(part: &Path, bytes: u64) -> Result<File, Refusal> {
    let file = OpenOptions::new().create(true).append(true).open(part);
    file.and_then(|file| file.set_len(bytes).map(|()| file)).map_err(|e| Refusal::Final(at(part)(e)))
}

/// First byte and, where it is said, length of the whole in `bytes FIRST-LAST/LENGTH`.
fn range(text: &str) -> Option<(u64, Option<u64>)> {
    let (bytes, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let first = bytes.split_once('-')?.0.parse().ok()?;
    Some((first, total.parse().ok()))
}

fn append(
    mut from: impl Read,
    mut file: File,
    part: &Path,
    (start, size): (u64, Option<u64>),
    seen: &mut dyn FnMut(u64),
) -> Result<(), Refusal> {
    let mut done = start;
    let mut buffer = vec![0u8; 1 << 18];
    loop {
        seen(done);
        let n = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) => return Err(Refusal::Passing(e.to_string())),
        };
        done += n as u64;
        if size.is_some_and(|size| done > size) {
            cut(part, 0)?;
            return Err(Refusal::Passing("more bytes than announced".into()));
        }
        file.write_all(&buffer[..n]).map_err(|e| Refusal::Final(full(part, size.unwrap_or(done) - start, e)))?;
    }
    match size {
        Some(size) if done < size => Err(Refusal::Passing("the connection was closed".into())),
        _ => Ok(()),
    }
}

/// A write that failed: on a full disk, how much is missing.
fn full(part: &Path, left: u64, error: std::io::Error) -> FetchError {
    let folder = part.parent().unwrap_or(part);
    match space::free(folder) {
        Ok(free) if error.kind() == std::io::ErrorKind::StorageFull => {
            FetchError::DiskFull { path: folder.to_owned(), needed: left.saturating_add(space::RESERVE_BYTES), free }
        }
        _ => at(part)(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(range("bytes 5-9/*"), Some((5, None)));
        for bad in ["bytes */10", "5-9/10", "bytes 5/10", ""] {
            assert_eq!(range(bad), None, "{bad}");
        }
    }
}
