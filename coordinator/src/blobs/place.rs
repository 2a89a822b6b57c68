//! Where blobs lie: names of objects, and opening a folder or a bucket. Refuses other addresses, which would make a folder with an odd name.

use std::path::Path;
use std::sync::Arc;

use obelysk_protocol::wire::BlobRef;

use super::bucket::Bucket;
use super::bucket_place::{Credentials, Place};
use super::folder::{Disk, Folder, RealDisk};
use super::{BlobError, Blobs};

/// Folder of the blobs.
pub(super) const BLOBS: &str = "blobs";
/// Folder of what was found damaged.
pub(super) const DAMAGED: &str = "damaged";
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

/// Where blobs are to lie.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoreSettings {
    /// A folder, or `s3://BUCKET/PREFIX`.
    pub place: String,
    /// Of a bucket: the server, such as `https://minio.example:9000`; empty: Amazon's.
    pub endpoint: String,
    /// Of a bucket: its region; empty: us-east-1.
    pub region: String,
    /// Of a bucket: a file of mode 0600 with the key; empty: from the environment.
    pub credentials: String,
}

impl Blobs {
    /// Opens the folder or the bucket that the settings name, and sees that it can be used. Within a runtime.
    ///
    /// # Errors
    /// [`BlobError`]: no such place, or no right to it.
    pub async fn open(settings: &StoreSettings, cache_bytes: u64) -> Result<Self, BlobError> {
        if !settings.place.contains("://") {
            return Self::local(Path::new(&settings.place), cache_bytes);
        }
        let place = Place::parse(&settings.place, &settings.endpoint, &settings.region)?;
        let bucket = Bucket::new(place, &Credentials::find(&settings.credentials)?);
        let opened = match bucket {
            Ok(bucket) => bucket.check().await.map(|()| bucket),
            Err(fault) => Err(fault),
        };
        match opened {
            Ok(bucket) => Ok(Self::over(Arc::new(bucket), settings.place.clone(), cache_bytes)),
            Err(fault) => Err(fault.named(&settings.place, 0, 0)),
        }
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
        for place in ["gs://bucket/prefix", "file:///var/lib"] {
            let settings = StoreSettings { place: place.to_owned(), ..StoreSettings::default() };
            let error = Blobs::open(&settings, 0).await.expect_err("no folder");
            assert!(error.is_setting() && error.to_string().contains("`store`"), "{error}");
        }
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
