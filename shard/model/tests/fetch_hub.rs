//! Fetching from a hub that works, breaks off, lies and refuses. Nothing here leaves this machine.

mod hub;

use hub::{COMMIT, Server, sha256};
use obelysk_model::fetch::{FetchError, Hub, Progress, Record, Source, fetch};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const INDEX: &str = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;

/// Bytes in which a shifted or repeated piece shows.
fn weights(seed: u8, size: usize) -> Vec<u8> {
    (0..size).map(|i| (i * i / 251) as u8 ^ seed).collect()
}

fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("README.md", b"not kept".to_vec()),
        ("config.json", b"{}".to_vec()),
        ("consolidated.safetensors", weights(9, 10)),
        ("model-1.safetensors", weights(1, 300_000)),
        ("model-2.safetensors", weights(2, 200_000)),
        ("model.safetensors.index.json", INDEX.into()),
        ("tokenizer.json", b"{\"t\": 1}".to_vec()),
    ]
}

struct Place {
    folder: TempDir,
    server: Server,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), server: Server::start(&files()) }
    }

    fn dest(&self) -> PathBuf {
        self.folder.path().join("models/m")
    }

    fn hub(&self) -> Hub {
        Hub::new(&self.server.endpoint(), None, None).with_pause(Duration::ZERO)
    }

    fn fetch(&self, hub: &Hub) -> Result<Record, FetchError> {
        fetch(&Source::parse("hf:org/m").unwrap(), &self.dest(), hub, &mut |_| ())
    }

    /// Names below the folder of the destination.
    fn left(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dest().parent().unwrap()).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok()).collect()
    }

    #[track_caller]
    fn whole(&self, record: &Record) {
        let kept =
            ["config.json", "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json", "tokenizer.json"];
        assert_eq!(record.files.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), kept);
        for (name, bytes) in files().iter().filter(|(name, _)| kept.contains(name)) {
            assert!(std::fs::read(self.dest().join(name)).unwrap() == *bytes, "{name}");
            let said = record.files.iter().find(|f| f.name == *name).unwrap();
            assert_eq!((said.size, &said.sha256), (bytes.len() as u64, &sha256(bytes)));
        }
        assert_eq!(std::fs::read_dir(self.dest()).unwrap().count(), kept.len() + 1);
        assert_eq!((record.source.as_str(), record.revision.as_deref()), ("hf:org/m", Some(COMMIT)));
        assert_eq!(Record::read(&self.dest()).unwrap().as_ref(), Some(record));
        assert_eq!(self.left(), ["m"], "nothing stays beside the destination");
    }
}

#[test]
fn a_repository_is_fetched_whole() {
    let place = Place::new();
    let mut steps = Vec::new();
    let fetch = |source: &str, report: &mut dyn FnMut(Progress<'_>)| {
        fetch(&Source::parse(source).unwrap(), &place.dest(), &place.hub(), report)
    };
    place.whole(&fetch("hf:org/m", &mut |p| steps.push((p.done, p.total))).unwrap());
    let total = 2 + 500_000 + INDEX.len() as u64 + 8;
    assert_eq!(steps.last(), Some(&(total, total)));
    assert!(steps.is_sorted() && steps.iter().all(|s| s.1 == total), "{steps:?}");
    assert!(matches!(place.fetch(&place.hub()), Err(FetchError::Exists(_))));
    std::fs::remove_dir_all(place.dest()).unwrap();
    place.server.set(|b| b.seen.clear());
    let record = fetch("hf:org/m@v1", &mut |_| ()).unwrap();
    assert_eq!((record.source.as_str(), record.revision.as_deref()), ("hf:org/m@v1", Some(COMMIT)));
    let seen = place.server.behaviour.lock().unwrap().seen.clone();
    assert!(seen[0].0.starts_with("/api/models/org/m/revision/v1?"), "{}", seen[0].0);
    assert!(seen[1..].iter().all(|(path, ..)| path.starts_with(&format!("/org/m/resolve/{COMMIT}/"))), "{seen:?}");
}

#[test]
fn a_cut_connection_is_taken_up_where_it_broke() {
    let place = Place::new();
    place.server.set(|b| b.cut = Some(120_000));
    let record = place.fetch(&place.hub()).unwrap();
    place.whole(&record);
    let ranges: Vec<_> =
        place.server.requests().into_iter().filter(|(name, _)| name == "model-1.safetensors").map(|r| r.1).collect();
    assert_eq!(ranges, [None, Some("bytes=120000-".into()), Some("bytes=240000-".into())]);
}

#[test]
fn the_next_run_goes_on() {
    let place = Place::new();
    // The first answer breaks off, and then nothing comes any more.
    place.server.set(|b| b.cut = Some(0));
    let error = place.fetch(&place.hub()).unwrap_err();
    assert!(matches!(error, FetchError::Interrupted { done: 0, .. }), "{error}");
    place.server.set(|b| b.cut = None);
    place.server.set(|b| b.refuse = Some(("model-2", 503, "")));
    let error = place.fetch(&place.hub()).unwrap_err();
    assert!(matches!(&error, FetchError::Interrupted { file, done: 0, .. } if file == "model-2.safetensors"), "{error}");
    assert!(!place.dest().exists() && place.left() == [".fetch-m"]);
    let part = place.folder.path().join("models/.fetch-m/parts/model-2.safetensors");
    std::fs::write(&part, &weights(2, 200_000)[..50_000]).unwrap();
    place.server.requests();
    place.server.set(|b| b.refuse = None);
    let record = place.fetch(&place.hub()).unwrap();
    place.whole(&record);
    let asked = [("model-2.safetensors".to_owned(), Some("bytes=50000-".to_owned())), ("tokenizer.json".to_owned(), None)];
    assert_eq!(place.server.requests(), asked, "what was whole is not asked for again");
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let place = Place::new();
    place.server.set(|b| (b.cut, b.no_ranges) = (Some(120_000), true));
    let error = place.fetch(&place.hub()).unwrap_err();
    assert!(matches!(error, FetchError::Interrupted { .. }), "{error}");
    place.server.set(|b| b.cut = None);
    place.whole(&place.fetch(&place.hub()).unwrap());
}

#[test]
fn other_bytes_than_published_are_refused() {
    let place = Place::new();
    let other = "ab".repeat(32);
    place.server.set(|b| drop(b.stated.insert("model-2.safetensors".into(), other.clone())));
    let error = place.fetch(&place.hub()).unwrap_err();
    let FetchError::Checksum { file, expected, found } = &error else { panic!("{error}") };
    assert_eq!((file.as_str(), expected, found), ("model-2.safetensors", &other, &sha256(&weights(2, 200_000))));
    assert!(!place.dest().exists());
    // A part that somebody else wrote into is thrown away, too, and the next run succeeds.
    place.server.set(|b| b.stated.clear());
    let part = place.folder.path().join("models/.fetch-m/parts/model-2.safetensors");
    assert!(!part.exists());
    std::fs::write(&part, vec![0; 100]).unwrap();
    assert!(matches!(place.fetch(&place.hub()), Err(FetchError::Checksum { .. })));
    place.whole(&place.fetch(&place.hub()).unwrap());
}

#[test]
fn gated_models_say_what_to_do() {
    let place = Place::new();
    place.server.set(|b| b.refuse = Some(("/resolve/", 401, "GatedRepo")));
    let text = place.fetch(&place.hub()).unwrap_err().to_string();
    let page = format!("{}/org/m", place.server.endpoint());
    for part in ["org/m", "401", page.as_str(), "licence", "HF_TOKEN", "no access token is set"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(place.left().is_empty(), "{:?}", place.left());
    place.server.set(|b| b.refuse = Some(("/resolve/", 403, "GatedRepo")));
    let hub = Hub::new(&place.server.endpoint(), Some("hf_secret".into()), None).with_pause(Duration::ZERO);
    let error = place.fetch(&hub).unwrap_err();
    assert!(error.to_string().contains("has no access"), "{error}");
    assert!(!format!("{error} {error:?} {hub:?}").contains("hf_secret"));
    let seen = place.server.behaviour.lock().unwrap().seen.clone();
    assert_eq!(seen.last().unwrap().2.as_deref(), Some("Bearer hf_secret"));
    for (status, code) in [(401, "RepoNotFound"), (404, "RepoNotFound")] {
        place.server.set(|b| b.refuse = Some(("/api/", status, code)));
        assert!(matches!(place.fetch(&place.hub()), Err(FetchError::Unknown { .. })));
    }
}

#[test]
fn missing_shards_and_other_weights_are_named() {
    let place = Place::new();
    place.server.set(|b| drop(b.files.remove("model-2.safetensors")));
    let error = place.fetch(&place.hub()).unwrap_err();
    assert!(matches!(&error, FetchError::MissingShard { shard, .. } if shard == "model-2.safetensors"), "{error}");
    assert_eq!(place.server.requests().len(), 1, "only the index was asked for");
    place.server.set(|b| b.files.retain(|name, _| !name.contains("safetensors")));
    assert!(matches!(place.fetch(&place.hub()), Err(FetchError::NoModel(_))));
}

#[test]
fn what_does_not_fit_is_not_begun() {
    let place = Place::new();
    place.server.set(|b| _ = b.sizes.insert("model-2.safetensors".into(), 1 << 60));
    let error = place.fetch(&place.hub()).unwrap_err();
    assert!(matches!(&error, FetchError::DiskFull { needed, free, .. } if *needed > 1 << 60 && *free < 1 << 60), "{error}");
    assert!(error.to_string().contains("run this again"), "{error}");
    assert_eq!(place.server.requests().len(), 1, "only the index was asked for");
    // A size that is a lie shows, too.
    place.server.set(|b| _ = b.sizes.insert("model-2.safetensors".into(), 200_001));
    let error = place.fetch(&place.hub()).unwrap_err();
    assert!(matches!(&error, FetchError::Hub { .. }) && error.to_string().contains("200000 bytes"), "{error}");
}

#[test]
fn the_token_stays_with_the_hub() {
    let (place, storage) = (Place::new(), Server::start(&files()));
    place.server.set(|b| b.storage = Some(storage.address));
    // The digest comes with the redirect when the list has none.
    let hub = Hub::new(&place.server.endpoint(), Some("hf_secret".into()), None).with_pause(Duration::ZERO);
    place.whole(&place.fetch(&hub).unwrap());
    let all = |server: &Server, bearer: Option<&str>| {
        let seen = server.behaviour.lock().unwrap().seen.clone();
        !seen.is_empty() && seen.iter().all(|(_, _, token)| token.as_deref() == bearer)
    };
    assert!(all(&place.server, Some("Bearer hf_secret")) && all(&storage, None));
}

/// The cache as the publisher's tools write it.
fn cache(base: &Path, names: &[&str]) -> PathBuf {
    let repository = base.join("hub/models--org--m");
    let (blobs, snapshot) = (repository.join("blobs"), repository.join("snapshots").join(COMMIT));
    for folder in [&blobs, &snapshot, &repository.join("refs")] {
        std::fs::create_dir_all(folder).unwrap();
    }
    std::fs::write(repository.join("refs/main"), COMMIT).unwrap();
    for (name, bytes) in files().iter().filter(|(name, _)| names.contains(name)) {
        let digest = sha256(bytes);
        let blob = if name.ends_with(".safetensors") { digest } else { digest[..40].to_owned() };
        std::fs::write(blobs.join(&blob), bytes).unwrap();
        std::os::unix::fs::symlink(Path::new("../../blobs").join(&blob), snapshot.join(name)).unwrap();
    }
    base.join("hub")
}

#[test]
fn the_hubs_own_cache_is_used() {
    let place = Place::new();
    let cache = cache(place.folder.path(), &["config.json", "model-1.safetensors", "model-2.safetensors"]);
    let hub = Hub::new(&place.server.endpoint(), None, Some(cache.clone())).with_pause(Duration::ZERO);
    // One of the files is damaged: it comes from the hub.
    let blob = cache.join("models--org--m/blobs").join(sha256(&weights(2, 200_000)));
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[7] ^= 1;
    std::fs::write(&blob, &bytes).unwrap();
    place.whole(&place.fetch(&hub).unwrap());
    let asked: Vec<_> = place.server.requests().into_iter().map(|(name, _)| name).collect();
    assert_eq!(asked, ["model.safetensors.index.json", "model-2.safetensors", "tokenizer.json"]);
    assert!(std::fs::read(&blob).unwrap() == bytes, "the cache is not written");
}

#[test]
fn without_network_a_whole_cache_is_enough() {
    let place = Place::new();
    let names: Vec<&str> = files().iter().map(|f| f.0).collect();
    let cache = cache(place.folder.path(), &names);
    let hub = Hub::new("http://127.0.0.1:1", None, Some(cache.clone())).with_pause(Duration::ZERO);
    place.whole(&place.fetch(&hub).unwrap());
    std::fs::remove_dir_all(place.dest()).unwrap();
    // A damaged blob is no model, nor is a cache that lacks a shard.
    let blob = cache.join("models--org--m/blobs").join(sha256(&weights(2, 200_000)));
    std::fs::write(&blob, weights(3, 200_000)).unwrap();
    assert!(matches!(place.fetch(&hub), Err(FetchError::Checksum { .. })));
    std::fs::remove_file(&blob).unwrap();
    let error = place.fetch(&hub).unwrap_err();
    assert!(matches!(&error, FetchError::Network { .. }) && error.to_string().contains("127.0.0.1:1"), "{error}");
}

#[test]
fn one_process_fetches_at_a_time() {
    let place = Place::new();
    let staging = place.folder.path().join("models/.fetch-m");
    std::fs::create_dir_all(&staging).unwrap();
    let lock = std::fs::File::create(staging.join("lock")).unwrap();
    lock.lock().unwrap();
    assert!(matches!(place.fetch(&place.hub()), Err(FetchError::Busy(_))));
    drop(lock);
    place.whole(&place.fetch(&place.hub()).unwrap());
}
