//! Models that nodes may have: which, of which files. Agreed among the coordinators like all facts; the lists and files are blobs, which are
//! kept because of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use obelysk_node::identity::Id;
use obelysk_node::models::{MAX_MANIFEST_BYTES, ModelManifest};
use obelysk_protocol::wire::{BlobRef, MAX_PAGE, ModelEntry};

use crate::blobs::{BlobError, Blobs};
use crate::identity::{Document, Storage as _, StorageError};
use crate::ledger::{LedgerStorage, SharedLedger};

/// Models published at once: a cluster serves a few.
const MAX_PUBLISHED: usize = 256;

/// Models and the blobs of their lists.
type Lists = BTreeMap<[u8; 32], BlobRef>;

/// The models published.
#[derive(Debug)]
pub(super) struct Published {
    storage: Arc<LedgerStorage>,
    ledger: SharedLedger,
    blobs: Blobs,
    /// Lists that were read; others may be read again at any time.
    read: Mutex<BTreeMap<BlobRef, Arc<ModelManifest>>>,
    /// One order at a time: each replaces the document.
    orders: tokio::sync::Mutex<()>,
}

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
    #[error(transparent)]
    Log(#[from] StorageError),
    #[error("the coordinator stops")]
    Stopped,
}

/// A line for each model: its id, digest and length of its list.
fn encode(lists: &Lists) -> Vec<u8> {
    let line = |(model, list): (&[u8; 32], &BlobRef)| format!("{} {} {}\n", Id(*model), Id(list.digest), list.length);
    lists.iter().map(line).collect::<String>().into_bytes()
}

/// What [`encode`] wrote; lines that make no sense are left out, as a later release may write others.
fn decode(bytes: &[u8]) -> Lists {
    let entry = |line: &str| {
        let mut words = line.split(' ');
        let (model, digest): (Id<32>, Id<32>) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((model.0, BlobRef { digest: digest.0, length: words.next()?.parse().ok()? }))
    };
    std::str::from_utf8(bytes).unwrap_or_default().lines().filter_map(entry).take(MAX_PUBLISHED).collect()
}

fn lists(ledger: &SharedLedger) -> Lists {
    ledger.lock().document(Document::Models).map(|bytes| decode(&bytes)).unwrap_or_default()
}

/// Blobs that the facts name.
#[derive(Debug, Default)]
pub(crate) struct Named {
    /// Those known.
    pub(crate) blobs: BTreeSet<BlobRef>,
    /// Models whose lists cannot be read here, and so which files are not known.
    pub(crate) unread: BTreeSet<[u8; 32]>,
}

/// What jobs and published models need, as far as it can be said from what lies here. Asks no other coordinator.
pub(crate) async fn named(ledger: &SharedLedger, blobs: &Blobs) -> Named {
    let mut named = Named { blobs: ledger.lock().blobs().into_values().flatten().collect(), ..Named::default() };
    for (model, list) in lists(ledger) {
        named.blobs.insert(list);
        let text = if list.length > MAX_MANIFEST_BYTES { None } else { blobs.get_here(list).await.ok() };
        match text.map(|text| ModelManifest::decode(&text)) {
            Some(Ok(manifest)) => named.blobs.extend(manifest.files.iter().map(|file| file.blob)),
            _ => drop(named.unread.insert(model)),
        }
    }
    named
}

impl Published {
    pub(super) fn new(storage: LedgerStorage, ledger: SharedLedger, blobs: Blobs) -> Self {
        Self { storage: Arc::new(storage), ledger, blobs, read: Mutex::default(), orders: tokio::sync::Mutex::default() }
    }

    fn read(&self) -> MutexGuard<'_, BTreeMap<BlobRef, Arc<ModelManifest>>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn manifest(&self, list: BlobRef) -> Result<Arc<ModelManifest>, PublishError> {
        if let Some(known) = self.read().get(&list) {
            return Ok(known.clone());
        }
        if list.length > MAX_MANIFEST_BYTES {
            return Err(PublishError::Manifest(format!("it has {} bytes", list.length)));
        }
        let text = self.blobs.get(list).await?;
        let manifest = Arc::new(ModelManifest::decode(&text).map_err(PublishError::Manifest)?);
        self.read().insert(list, manifest.clone());
        Ok(manifest)
    }

    /// The models whose lists can be read now.
    async fn known(&self) -> Vec<([u8; 32], BlobRef, Arc<ModelManifest>)> {
        let lists = lists(&self.ledger);
        self.read().retain(|list, _| lists.values().any(|known| known == list));
        let mut known = Vec::new();
        for (model, list) in lists {
            match self.manifest(list).await {
                Ok(manifest) => known.push((model, list, manifest)),
                Err(error) => tracing::warn!(model = %Id(model), %error, "a published model's list cannot be read now"),
            }
        }
        known
    }

    /// Whether a blob is the list or a file of a published model.
    pub(super) async fn holds(&self, blob: BlobRef) -> bool {
        self.known().await.iter().any(|(_, list, manifest)| *list == blob || manifest.files.iter().any(|file| file.blob == blob))
    }

    /// The models after this id, by id.
    pub(super) async fn after(&self, id: [u8; 32]) -> Vec<ModelEntry> {
        let known = self.known().await;
        let later = known.into_iter().filter(|(model, ..)| *model > id);
        later.map(|(model, manifest, list)| ModelEntry { model, manifest, bytes: list.bytes() }).take(MAX_PAGE).collect()
    }

    /// Publishes a model whose list and files were put before; returns when it is agreed.
    pub(super) async fn publish(&self, model: [u8; 32], list: BlobRef) -> Result<u64, PublishError> {
        let _alone = self.orders.lock().await;
        let mut lists = lists(&self.ledger);
        if lists.len() >= MAX_PUBLISHED && !lists.contains_key(&model) {
            return Err(PublishError::TooMany(MAX_PUBLISHED));
        }
        let manifest = self.manifest(list).await?;
        if manifest.model != model {
            return Err(PublishError::Manifest("it is another model's".to_owned()));
        }
        self.blobs.touch(list).await;
        // It may have been read long ago.
        if !self.blobs.has(list).await? {
            return Err(PublishError::Missing { name: "the list of files".to_owned() });
        }
        for file in &manifest.files {
            // Young before it is looked for: from here on nothing collects it.
            self.blobs.touch(file.blob).await;
            if !self.blobs.has(file.blob).await? {
                return Err(PublishError::Missing { name: file.name.clone() });
            }
        }
        lists.insert(model, list);
        self.write(&lists).await?;
        Ok(manifest.bytes())
    }

    /// Offers a model no more; its files go with the next collection. Whether it was offered.
    pub(super) async fn withdraw(&self, model: [u8; 32]) -> Result<bool, PublishError> {
        let _alone = self.orders.lock().await;
        let mut lists = lists(&self.ledger);
        if lists.remove(&model).is_none() {
            return Ok(false);
        }
        self.write(&lists).await.map(|()| true)
    }

    async fn write(&self, lists: &Lists) -> Result<(), PublishError> {
        let (storage, bytes) = (self.storage.clone(), encode(lists));
        let written = tokio::task::spawn_blocking(move || storage.write(Document::Models, &bytes)).await;
        Ok(written.map_err(|_| PublishError::Stopped)??)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use obelysk_node::models::ModelFile;

    use super::*;
    use crate::core::JobId;
    use crate::server::Facts;
    use crate::server::store::Store;

    #[test]
    fn lists_of_models_read_as_they_were_written() {
        let lists: Lists = (0..5_u8).map(|i| ([i; 32], BlobRef { digest: [i ^ 7; 32], length: 1 << i })).collect();
        assert_eq!(decode(&encode(&lists)), lists);
        assert_eq!(decode(b""), Lists::new());
        let odd = [&b"nonsense\n"[..], &encode(&lists), b"00 11 x\n"].concat();
        assert_eq!(decode(&odd), lists);
        let many: Lists = (0..300_u16)
            .map(|i| {
                let mut id = [0; 32];
                id[..2].copy_from_slice(&i.to_be_bytes());
                (id, BlobRef { digest: id, length: 1 })
            })
            .collect();
        assert_eq!(decode(&encode(&many)).len(), MAX_PUBLISHED);
    }

    /// A node may deliver any bytes under its lease: those of a published model outlive the job for which it did.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_model_needs_does_not_go_with_a_job_that_had_it_too() {
        let folder = tempfile::tempdir().expect("folder");
        let blobs = Blobs::local(folder.path(), 0).expect("opens");
        let facts = Facts::in_memory();
        let text = vec![5; 100];
        let file = ModelFile { name: "weights.bin".to_owned(), blob: BlobRef::of(&text) };
        let list = ModelManifest { model: [1; 32], files: vec![file] }.encode();
        let [file, list] = [text.clone(), list].map(|bytes| (BlobRef::of(&bytes), bytes));
        for (_, bytes) in [&file, &list] {
            blobs.put(bytes.clone()).await.expect("put");
        }
        let published = encode(&Lists::from([([1; 32], list.0)]));
        let storage = facts.storage();
        let write = move || storage.write(Document::Models, &published);
        tokio::task::spawn_blocking(write).await.expect("no panic").expect("written");
        // It was published long ago, by another process.
        let blobs = Blobs::local(folder.path(), 0).expect("opens");
        let store = Store::new(1 << 20, Some(blobs.clone()), facts.ledger.clone());
        let release = async |job: u8| {
            let (job, own) = (JobId([job; 32]), vec![job; 50]);
            for (blob, bytes) in [file.clone(), list.clone(), (BlobRef::of(&own), own.clone())] {
                store.keep(job, blob, bytes, None).await.expect("kept");
            }
            store.release(job, None);
            tokio::time::sleep(Duration::from_millis(500)).await;
            BlobRef::of(&own)
        };
        let own = release(7).await;
        assert_eq!((blobs.has(own).await, blobs.has(file.0).await, blobs.has(list.0).await), (Ok(false), Ok(true), Ok(true)));
        // Nobody knows what a list says that cannot be read.
        let key: String = list.0.digest.iter().map(|b| format!("{b:02x}")).collect();
        let lies = folder.path().join("blobs").join(&key[..2]).join(key);
        let before = std::fs::read(&lies).expect("there");
        let (store, blobs) = (store.clone(), blobs.clone());
        let job = JobId([8; 32]);
        store.keep(job, file.0, file.1.clone(), None).await.expect("kept");
        std::fs::write(&lies, vec![0_u8; before.len()]).expect("damaged");
        store.release(job, None);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(blobs.has(file.0).await, Ok(true));
        assert_eq!(named(&facts.ledger, &blobs).await.unread, BTreeSet::from([[1; 32]]));
    }
}
