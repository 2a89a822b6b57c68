//! Models that nodes may have: which, of which files; kept beside the blobs, and the reason why those are not collected.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use obelysk_node::models::{MAX_MANIFEST_BYTES, ModelManifest};
use obelysk_protocol::wire::{BlobRef, MAX_PAGE, ModelEntry};

use crate::blobs::{BlobError, Blobs, MODELS};

/// Models published at once: a cluster serves a few.
const MAX_PUBLISHED: usize = 256;

/// The models published.
#[derive(Debug, Default)]
pub(super) struct Published(Mutex<BTreeMap<[u8; 32], (BlobRef, ModelManifest)>>);

/// Why a model is not published.
#[derive(Debug, thiserror::Error)]
pub(super) enum PublishError {
    #[error("{0} models are published already; withdraw one")]
    TooMany(usize),
    #[error("the model's list of files is not usable: {0}; push it again with this release")]
    Manifest(String),
    #[error("{name} of the model was not put before; push the model again")]
    Missing { name: String },
    #[error(transparent)]
    Blobs(#[from] BlobError),
}

impl Published {
    /// Reads what was published before. A document that makes no sense is left out, with a word in the log.
    pub(super) async fn load(blobs: &Blobs) -> Result<Self, BlobError> {
        let mut known = BTreeMap::new();
        for (name, text) in blobs.documents(MODELS).await? {
            match ModelManifest::decode(&text) {
                Ok(manifest) => {
                    known.insert(manifest.model, (BlobRef::of(&text), manifest));
                }
                Err(cause) => tracing::error!(name, cause, "a published model cannot be read; push it again"),
            }
        }
        Ok(Self(Mutex::new(known)))
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<[u8; 32], (BlobRef, ModelManifest)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a blob is the list or a file of a published model.
    pub(super) fn holds(&self, blob: BlobRef) -> bool {
        self.known().values().any(|(list, manifest)| *list == blob || manifest.files.iter().any(|file| file.blob == blob))
    }

    /// All blobs of published models.
    pub(super) fn live(&self) -> BTreeSet<BlobRef> {
        let known = self.known();
        let files = |(list, manifest): &(BlobRef, ModelManifest)| {
            std::iter::once(*list).chain(manifest.files.iter().map(|file| file.blob)).collect::<Vec<_>>()
        };
        known.values().flat_map(files).collect()
    }

    /// The models after this id, by id.
    pub(super) fn after(&self, id: [u8; 32]) -> Vec<ModelEntry> {
        let known = self.known();
        let later = known.range((std::ops::Bound::Excluded(id), std::ops::Bound::Unbounded));
        let entry = |(model, (manifest, list)): (&[u8; 32], &(BlobRef, ModelManifest))| ModelEntry {
            model: *model,
            manifest: *manifest,
            bytes: list.bytes(),
        };
        later.take(MAX_PAGE).map(entry).collect()
    }

    /// Publishes a model whose list and files were put before. Waits for the disk.
    pub(super) async fn publish(&self, blobs: &Blobs, model: [u8; 32], list: BlobRef) -> Result<u64, PublishError> {
        if list.length > MAX_MANIFEST_BYTES {
            return Err(PublishError::Manifest(format!("it has {} bytes", list.length)));
        }
        if self.known().len() >= MAX_PUBLISHED && !self.known().contains_key(&model) {
            return Err(PublishError::TooMany(MAX_PUBLISHED));
        }
        let text = blobs.get(list).await?;
        let manifest = ModelManifest::decode(&text).map_err(PublishError::Manifest)?;
        if manifest.model != model {
            return Err(PublishError::Manifest("it is another model's".to_owned()));
        }
        // Live before they are looked at: from here on nothing collects them.
        let bytes = manifest.bytes();
        let before = self.known().insert(model, (list, manifest.clone()));
        let mut outcome = Ok(());
        for file in &manifest.files {
            match blobs.has(file.blob).await {
                Ok(true) => {}
                Ok(false) => outcome = Err(PublishError::Missing { name: file.name.clone() }),
                Err(error) => outcome = Err(error.into()),
            }
        }
        if outcome.is_ok() {
            outcome = blobs.put_document(&name(&model), text.to_vec()).await.map_err(PublishError::from);
        }
        if let Err(error) = outcome {
            let mut known = self.known();
            match before {
                Some(before) => known.insert(model, before),
                None => known.remove(&model),
            };
            return Err(error);
        }
        Ok(bytes)
    }

    /// Offers a model no more; its files go with the next collection. Whether it was offered.
    pub(super) async fn withdraw(&self, blobs: &Blobs, model: [u8; 32]) -> Result<bool, BlobError> {
        blobs.remove_document(&name(&model)).await?;
        Ok(self.known().remove(&model).is_some())
    }
}

fn name(model: &[u8; 32]) -> String {
    let hex: String = model.iter().map(|b| format!("{b:02x}")).collect();
    format!("{MODELS}/{hex}")
}
