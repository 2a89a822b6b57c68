//! Registered models by digest: the list of a model's files, and fetching one a node does not have.
//!
//! Believes nobody: a file must have the digest in the list, the list the digest it is asked by, and the folder the model id that was wanted;
//! its weights are then checked like those of a model registered here. A folder appears whole or not at all.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use obelysk_protocol::wire::{BlobRef, Message, ModelEntry, ModelsAfter};
use quinn::Connection;

use crate::NodeSuite;
use crate::error::TransportError;
use crate::model_folder::ModelFolder;
use crate::transport::{InFile, Parts, Whole, fetch_part, outline_of_file, read_message, write_message};

/// Largest list: a line of 150 bytes for each file of a model of two thousand segments, four times over.
pub const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// Most files of a model: two for each segment, and a dozen.
const MAX_FILES: usize = 8192;
/// Longest file name.
const MAX_FILE_NAME: usize = 128;
/// First line of a list.
const HEAD: &str = "obelysk model 1";
/// Most models looked through at a coordinator: pages of 128.
const MAX_PAGES: usize = 8;
/// How names of folders begin that are not whole yet.
const STAGING: &str = ".fetch-";

/// A file of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile {
    /// Its name in the model's folder.
    pub name: String,
    /// Its content.
    pub blob: BlobRef,
}

/// What a registered model's folder holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelManifest {
    /// Model id.
    pub model: [u8; 32],
    /// Its files, by name.
    pub files: Vec<ModelFile>,
}

impl ModelManifest {
    /// Lists the files of a registered model, reading each once. Blocking.
    ///
    /// # Errors
    /// [`TransportError::Disk`]; also for files that no model has.
    pub fn of(folder: &ModelFolder) -> Result<(Self, Vec<InFile>), TransportError> {
        let wrong = |cause: &str| TransportError::Disk { path: folder.path.clone(), cause: cause.to_owned() };
        let entries = std::fs::read_dir(&folder.path).map_err(|e| wrong(&e.to_string()))?;
        let mut names = Vec::new();
        for entry in entries.flatten().filter(|entry| entry.path().is_file()) {
            let name = entry.file_name().into_string().map_err(|_| wrong("a file name is not text"))?;
            if is_plain(&name) {
                names.push(name);
            }
        }
        names.sort();
        if names.len() > MAX_FILES {
            return Err(wrong("there are more files than a model has"));
        }
        let opened: Vec<InFile> = names.iter().map(|name| InFile::open(folder.path.join(name))).collect::<Result<_, _>>()?;
        let files = names.into_iter().zip(&opened).map(|(name, file)| ModelFile { name, blob: file.outline.blob() });
        Ok((Self { model: folder.id, files: files.collect() }, opened))
    }

    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.blob.length))
    }

    /// The list as kept and sent: equal lists, equal bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut text = format!("{HEAD}\n{}\n", hex(&self.model));
        for ModelFile { name, blob } in &self.files {
            text.push_str(&format!("{} {} {name}\n", hex(&blob.digest), blob.length));
        }
        text.into_bytes()
    }

    /// Reads a list.
    ///
    /// # Errors
    /// What is wrong with it; only what [`ModelManifest::encode`] writes is right.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(format!("it has {} bytes", bytes.len()));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not text".to_owned())?;
        let mut lines = text.lines();
        if lines.next() != Some(HEAD) {
            return Err(format!("it does not begin with `{HEAD}`"));
        }
        let model = lines.next().and_then(unhex).ok_or("it names no model")?;
        let mut files: Vec<ModelFile> = Vec::new();
        for line in lines {
            let mut fields = line.splitn(3, ' ');
            let digest = fields.next().and_then(unhex);
            let length = fields.next().and_then(|n| n.parse::<u64>().ok());
            let (Some(digest), Some(length), Some(name)) = (digest, length, fields.next()) else {
                return Err(format!("line `{line}` is no file"));
            };
            if !is_plain(name) || files.last().is_some_and(|last| last.name.as_str() >= name) {
                return Err(format!("`{name}` is no file of a model, or not in its place"));
            }
            files.push(ModelFile { name: name.to_owned(), blob: BlobRef { digest, length } });
        }
        let manifest = Self { model, files };
        // One way to write each list: a sign or a zero too much is another one.
        if manifest.files.len() > MAX_FILES || manifest.encode() != bytes {
            return Err("it is not written as lists are".to_owned());
        }
        Ok(manifest)
    }
}

/// A name that leads nowhere else on any system.
fn is_plain(name: &str) -> bool {
    let good = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
    !name.is_empty() && name.len() <= MAX_FILE_NAME && !name.starts_with('.') && name.bytes().all(good)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    data_encoding::HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

/// Where fetched models go, and who works with them.
pub trait Shelf: Send + Sync {
    /// Folder of registered models.
    fn folder(&self) -> &Path;

    /// Bytes that all models fetched may take.
    fn limit(&self) -> u64;

    /// Takes a model into use.
    fn adopt(&self, model: ModelFolder);
}

/// What the coordinator offers.
///
/// # Errors
/// [`TransportError`].
pub async fn offered(connection: &Connection) -> Result<Vec<ModelEntry>, TransportError> {
    let mut all: Vec<ModelEntry> = Vec::new();
    for _ in 0..MAX_PAGES {
        let model = all.last().map_or([0; 32], |last| last.model);
        let (mut send, mut recv) = connection.open_bi().await.map_err(|e| crate::transport::lost(&e))?;
        write_message(&mut send, &Message::ModelsAfter(ModelsAfter { model })).await?;
        match read_message(&mut recv).await? {
            Some(Message::Models(page)) if page.models.is_empty() => break,
            Some(Message::Models(page)) => all.extend(page.models),
            Some(Message::Refused(no)) => return Err(TransportError::Refused { reason: no.reason, retry: no.retry }),
            Some(other) => return Err(TransportError::Unexpected { expected: "a list of models", got: other.id() }),
            None => return Err(TransportError::Truncated("before a list of models")),
        }
    }
    Ok(all)
}

/// Fetches, one after the other, the models offered that are not `here` and fit, and takes each into use. Returns how many.
///
/// # Errors
/// [`TransportError`] of the first that failed; what was fetched until then is used, what was begun is gone on with the next time.
pub async fn fetch_missing(connection: &Connection, shelf: &dyn Shelf, here: &[[u8; 32]]) -> Result<usize, TransportError> {
    let mut taken = 0;
    for entry in offered(connection).await?.into_iter().filter(|entry| !here.contains(&entry.model)) {
        let room = shelf.limit().saturating_sub(fetched_bytes(shelf.folder()));
        if entry.bytes > room {
            let (bytes, model) = (entry.bytes, hex(&entry.model));
            tracing::warn!(model, bytes, room, "this model is not fetched: raise `fetch_models_bytes`, or copy it here");
            continue;
        }
        tracing::info!(model = hex(&entry.model), bytes = entry.bytes, "fetching a model");
        shelf.adopt(fetch_model(connection, shelf.folder(), &entry).await?);
        taken += 1;
    }
    Ok(taken)
}

/// Fetches one model into `models`, going on with what is there of it.
///
/// # Errors
/// [`TransportError`]: refused, lost, damaged, no room; [`TransportError::Model`] when the files are not that model.
pub async fn fetch_model(connection: &Connection, models: &Path, entry: &ModelEntry) -> Result<ModelFolder, TransportError> {
    let name = folder_name(&entry.model);
    let staging = models.join(format!("{STAGING}{name}"));
    // Beside the files they become: one file system.
    let parts = Arc::new(Parts::open(&staging.join("parts"), u64::MAX)?);
    let text = fetch_part(connection, &parts, entry.manifest, MAX_MANIFEST_BYTES).await?.into_bytes()?;
    let manifest = ModelManifest::decode(&text).map_err(|cause| not_it(entry, &cause))?;
    if manifest.model != entry.model || manifest.bytes() != entry.bytes {
        return Err(not_it(entry, "its list of files is another's"));
    }
    for file in &manifest.files {
        let target = staging.join(&file.name);
        let (path, blob) = (target.clone(), file.blob);
        // What an earlier attempt fetched is looked at again: this disk may have lost it since.
        let here = tokio::task::spawn_blocking(move || {
            std::fs::metadata(&path).is_ok_and(|m| m.len() == blob.length)
                && outline_of_file(&path).is_ok_and(|o| o.blob() == blob)
        });
        if !here.await.unwrap_or(false) {
            let whole = fetch_part(connection, &parts, file.blob, entry.bytes).await?;
            let kept = tokio::task::spawn_blocking(move || keep(whole, &target)).await;
            kept.unwrap_or_else(|e| Err(TransportError::Lost(e.to_string())))?;
        }
    }
    let (place, wanted) = (models.join(name), *entry);
    let installed = tokio::task::spawn_blocking(move || install(&staging, &place, &wanted, &manifest)).await;
    installed.unwrap_or_else(|e| Err(TransportError::Lost(e.to_string())))
}

fn keep(whole: Whole, target: &Path) -> Result<(), TransportError> {
    match whole {
        Whole::File(file) => file.persist(target),
        Whole::Memory(bytes) => {
            use std::io::Write as _;
            let written =
                std::fs::File::create(target).and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()));
            written.map_err(|e| disk(target, &e))
        }
    }
}

/// Makes a folder with all files the model's folder, if it is that model.
fn install(staging: &Path, place: &Path, entry: &ModelEntry, manifest: &ModelManifest) -> Result<ModelFolder, TransportError> {
    let folder = ModelFolder::open::<NodeSuite>(staging).map_err(|e| not_it(entry, &e.to_string()))?;
    if folder.id != entry.model {
        // Files with the right digests that are another model: nothing of it can be of use.
        let _ = std::fs::remove_dir_all(staging);
        return Err(not_it(entry, "its registration is another model's"));
    }
    let failed = |e: std::io::Error| disk(place, &e);
    std::fs::remove_dir_all(staging.join("parts")).map_err(failed)?;
    // What an earlier list left.
    for stray in std::fs::read_dir(staging).map_err(failed)?.flatten() {
        let named = stray.file_name().to_str().is_some_and(|name| manifest.files.iter().any(|file| file.name == name));
        if !named {
            let _ = std::fs::remove_file(stray.path());
        }
    }
    let synced = |folder: &Path| std::fs::File::open(folder).and_then(|f| f.sync_all());
    synced(staging).map_err(failed)?;
    if place.exists() {
        std::fs::remove_dir_all(place).map_err(failed)?;
    }
    std::fs::rename(staging, place).map_err(failed)?;
    synced(place.parent().unwrap_or(Path::new("."))).map_err(failed)?;
    ModelFolder::open::<NodeSuite>(place).map_err(|e| not_it(entry, &e.to_string()))
}

/// Fetched models are named by their id, so that none takes a name that somebody here chose.
fn folder_name(model: &[u8; 32]) -> String {
    format!("id-{}", hex(&model[..16]))
}

/// Bytes of models fetched before, whole or not.
fn fetched_bytes(models: &Path) -> u64 {
    let entries = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let ours = entries(models.to_owned()).filter(|entry| {
        let name = entry.file_name();
        name.to_str().is_some_and(|name| name.starts_with("id-"))
    });
    ours.flat_map(|folder| entries(folder.path())).filter_map(|file| file.metadata().ok()).map(|about| about.len()).sum()
}

fn disk(path: &Path, cause: &std::io::Error) -> TransportError {
    TransportError::Disk { path: path.to_owned(), cause: cause.to_string() }
}

fn not_it(entry: &ModelEntry, cause: &str) -> TransportError {
    TransportError::Model { model: hex(&entry.model), cause: cause.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> ModelManifest {
        let file = |name: &str, byte: u8| ModelFile { name: name.to_owned(), blob: BlobRef::of(&[byte; 9]) };
        ModelManifest { model: [0xab; 32], files: vec![file("a.bin", 1), file("b-2.obw", 2)] }
    }

    #[test]
    fn a_list_has_one_way_to_be_written() {
        let list = manifest();
        let bytes = list.encode();
        assert_eq!(ModelManifest::decode(&bytes), Ok(list.clone()));
        assert_eq!(list.bytes(), 18);
        let text = String::from_utf8(bytes.clone()).expect("text");
        let wrong = [
            text.replace(HEAD, "obelysk model 2"),
            text.replace("a.bin", "../a.bin"),
            text.replace("a.bin", "/etc/passwd"),
            text.replace("a.bin", ".hidden"),
            text.replace("a.bin", "a/b"),
            text.replace("a.bin", "c.bin"),
            text.replace("b-2.obw", "a.bin"),
            text.replace(" 9 ", " 09 "),
            text.replace(" 9 ", " +9 "),
            text.to_uppercase(),
            text.trim_end().to_owned(),
            format!("{text}\n"),
        ];
        for text in wrong {
            assert!(ModelManifest::decode(text.as_bytes()).is_err(), "{text}");
        }
        for cut in 0..bytes.len() {
            assert_ne!(ModelManifest::decode(&bytes[..cut]), Ok(list.clone()));
        }
        assert!(ModelManifest::decode(&[0xff; 10]).is_err());
    }

    /// Files of another model, each with the digest that was announced: refused by the model id, and nothing of them stays.
    #[test]
    fn a_folder_becomes_a_model_only_if_it_is_that_model() {
        use obelysk_protocol::verifier::registered::SecurityParams;
        let models = tempfile::tempdir().expect("folder");
        let staging = models.path().join(".fetch-x");
        let make = |seed: u64| {
            std::fs::create_dir_all(staging.join("parts")).expect("made");
            let model = obelysk_model::toy::model(seed);
            model.save(&staging, None).expect("saved");
            let security = SecurityParams::standard(2);
            let backend = crate::NodeBackend::default();
            let made =
                obelysk_shard::registration::register::<NodeSuite, _>(&backend, &model, security, [7; 32], &staging, &|_| ());
            std::fs::write(staging.join("registered.obr"), made.expect("registers").write()).expect("written");
            std::fs::write(staging.join("stray"), b"of an earlier list").expect("written");
            let (mut list, _) = ModelManifest::of(&ModelFolder::open::<NodeSuite>(&staging).expect("opens")).expect("listed");
            list.files.retain(|file| file.name != "stray");
            list
        };
        let place = models.path().join("id-x");
        let list = make(5);
        let entry = ModelEntry { model: list.model, manifest: BlobRef::of(&list.encode()), bytes: list.bytes() };
        let other = ModelEntry { model: [1; 32], ..entry };
        let error = install(&staging, &place, &other, &list).expect_err("another model");
        assert!(matches!(error, TransportError::Model { .. }) && !staging.exists() && !place.exists(), "{error}");
        let list = make(5);
        let folder = install(&staging, &place, &entry, &list).expect("the model");
        assert_eq!((folder.id, &folder.path), (entry.model, &place));
        let names: std::collections::BTreeSet<_> =
            std::fs::read_dir(&place).expect("there").map(|e| e.expect("entry").file_name()).collect();
        assert!(names.len() == list.files.len() && !staging.exists(), "{names:?}");
        assert_eq!(fetched_bytes(models.path()), list.bytes());
    }
}
