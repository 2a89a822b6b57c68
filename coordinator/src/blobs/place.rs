//! Where blobs lie: names of objects, and opening a folder. Refuses addresses, which would make a folder with an odd name.

use std::path::Path;
use std::sync::Arc;

use obelysk_protocol::wire::BlobRef;

use super::folder::{Disk, Folder, RealDisk};
use super::{BlobError, Blobs};

/// Folder of the blobs.
pub(super) const BLOBS: &str = "blobs";
/// Folder of what was found damaged.
pub(super) const DAMAGED: &str = "damaged";
/// Folder of documents about published models.
pub(crate) const MODELS: &str = "models";
/// `blobs/ab/abcd…`: 256 folders, so that none has more entries than file systems like.
pub(super) fn key_of(blob: BlobRef) -> String {
    let hex: String = blob.digest.iter().map(|b| format!("{b:02x}")).collect();
    format!("{BLOBS}/{}/{hex}", hex.get(..2).unwrap_or_default())
}

/// The blob of a name and a size; `None` for anything that is not ours.
pub(super) fn parse_key(key: &str, length: u64) -> Option<BlobRef> {
    let (pairs, []) = key.rsplit('/').next()?.as_bytes().as_chunks::<2>() else { return None };
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let digest: Vec<u8> = pairs.iter().map(byte).collect::<Option<_>>()?;
    let blob = BlobRef { digest: digest.try_into().ok()?, length };
    (key_of(blob) == key).then_some(blob)
}

impl Blobs {
    /// Opens the folder that the setting `blobs` names. Within a runtime.
    ///
    /// # Errors
    /// [`BlobError`]: no folder, or no right to it.
    pub fn open(place: &str, cache_bytes: u64) -> Result<Self, BlobError> {
        if place.contains("://") {
            return Err(BlobError::Place(place.to_owned()));
        }
        Self::local(Path::new(place), cache_bytes)
    }

    /// Blobs in a folder, created if absent: written aside, synced, renamed, the folder synced. Within a runtime.
    ///
    /// # Errors
    /// [`BlobError`]: it cannot be made or written.
    pub fn local(folder: &Path, cache_bytes: u64) -> Result<Self, BlobError> {
        Self::on_disk(folder, Arc::new(RealDisk), cache_bytes)
    }

    pub(super) fn on_disk(folder: &Path, disk: Arc<dyn Disk>, cache_bytes: u64) -> Result<Self, BlobError> {
        let place = folder.display().to_string();
        match Folder::open(folder, disk) {
            Ok(objects) => Ok(Self::over(Arc::new(objects), place, cache_bytes)),
            Err(error) => Err(BlobError::Store { place, cause: error.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_is_no_folder() {
        assert_eq!(Blobs::open("s3://bucket/prefix", 0).err(), Some(BlobError::Place("s3://bucket/prefix".to_owned())));
    }

    #[test]
    fn names_are_of_blobs_or_of_nobody() {
        let blob = BlobRef::of(b"abc");
        assert_eq!(parse_key(&key_of(blob), 3), Some(blob));
        for odd in [
            "",
            "blobs",
            "blobs/ab/x",
            "blobs/ab/é",
            &key_of(blob).to_uppercase(),
            &key_of(blob)[1..],
            &format!("{}0", key_of(blob)),
        ] {
            assert_eq!(parse_key(odd, 3), None, "{odd}");
        }
    }
}
