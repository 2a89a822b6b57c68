//! Order of durability, damage, collection and its races, full disks: against a real folder, with a disk that dies at any step.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

mod bucket;
mod conformance;

use super::folder::{Disk, RealDisk};
use super::place::DAMAGED;
use super::*;

const CACHE: u64 = 64 << 20;

fn bytes(length: usize, salt: u8) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8 ^ salt).collect()
}

fn file_of(folder: &Path, blob: BlobRef) -> PathBuf {
    folder.join(key_of(blob))
}

/// A disk of a process that dies at its `dies_at`th step, in the middle of it when it is a write; it records what it did.
#[derive(Debug, Default)]
struct Dying {
    dies_at: usize,
    steps: Mutex<Vec<&'static str>>,
}

impl Dying {
    fn step(&self, name: &'static str) -> std::io::Result<()> {
        let mut steps = locked(&self.steps);
        steps.push(name);
        if steps.len() == self.dies_at { Err(std::io::Error::other("the process died")) } else { Ok(()) }
    }
}

impl Disk for Dying {
    fn write(&self, file: &mut File, bytes: &[u8]) -> std::io::Result<()> {
        let outcome = self.step("write");
        RealDisk.write(file, if outcome.is_ok() { bytes } else { &bytes[..bytes.len() / 2] })?;
        outcome
    }

    fn sync(&self, file: &File) -> std::io::Result<()> {
        self.step("sync")?;
        RealDisk.sync(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.step("rename")?;
        RealDisk.rename(from, to)
    }

    fn sync_folder(&self, folder: &Path) -> std::io::Result<()> {
        self.step("sync folder")?;
        RealDisk.sync_folder(folder)
    }
}

/// Steps before the first write: those of opening.
const OPENING: [&str; 3] = ["sync folder"; 3];

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_is_given_after_the_disk_has_it() {
    let folder = tempfile::tempdir().expect("folder");
    let disk = Arc::new(Dying::default());
    let blobs = Blobs::on_disk(folder.path(), disk.clone(), CACHE).expect("opens");
    blobs.put(bytes(100, 1)).await.expect("put");
    let file = folder.path().join("file");
    std::fs::write(&file, bytes(200, 2)).expect("written");
    blobs.put_file(BlobRef::of(&bytes(200, 2)), &file).await.expect("put");
    let one = ["write", "sync", "rename", "sync folder"];
    assert_eq!(*locked(&disk.steps), [&OPENING[..], &one, &one].concat());
}

/// Wherever the process dies, afterwards the blob is whole or not there, and a receipt means that it is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_death_anywhere_in_a_write_leaves_the_blob_whole_or_absent() {
    let content = bytes(300_000, 1);
    let blob = BlobRef::of(&content);
    for (step, visible) in [("write", false), ("sync", false), ("rename", false), ("sync folder", true), ("none", true)] {
        for from_file in [false, true] {
            let folder = tempfile::tempdir().expect("folder");
            let at = ["write", "sync", "rename", "sync folder", "none"].iter().position(|s| *s == step).expect("named");
            let disk = Dying { dies_at: OPENING.len() + 1 + at, ..Dying::default() };
            let blobs = Blobs::on_disk(&folder.path().join("b"), Arc::new(disk), CACHE).expect("opens");
            let file = folder.path().join("file");
            std::fs::write(&file, &content).expect("written");
            let outcome =
                if from_file { blobs.put_file(blob, &file).await } else { blobs.put(content.clone()).await.map(|_| ()) };
            assert_eq!(outcome.is_ok(), step == "none", "{step}");
            drop(blobs);
            let again = Blobs::local(&folder.path().join("b"), CACHE).expect("opens");
            assert_eq!(again.has(blob).await, Ok(visible), "{step}");
            assert_eq!(again.get(blob).await.is_ok(), visible, "{step}");
            assert_eq!(again.put(content.clone()).await, Ok(blob));
            assert!(*again.get(blob).await.expect("there") == content);
        }
    }
}

/// A process that was killed cannot tidy up: its half-written files are no blobs, and go in time.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_process_left_is_never_seen_and_goes() {
    let folder = tempfile::tempdir().expect("folder");
    let blobs = Blobs::local(folder.path(), CACHE).expect("opens");
    let content = bytes(1000, 1);
    std::fs::write(folder.path().join("aside").join("77-0"), &content[..500]).expect("written");
    let young = blobs.collect(|_| true, Duration::from_secs(60)).await.expect("collects");
    assert_eq!((young.torn, blobs.has(BlobRef::of(&content[..500])).await), (0, Ok(false)));
    assert_eq!(blobs.collect(|_| true, Duration::ZERO).await.expect("collects").torn, 1);
}

/// Each kind of damage is named, lies aside as evidence, leaves the blob missing, and is mended by another put.
#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_kept_as_evidence_and_mended() {
    let content = bytes((70 << 20) + 5, 3);
    let blob = BlobRef::of(&content);
    let flip = |file: &Path| {
        let file = std::fs::OpenOptions::new().write(true).open(file).expect("there");
        file.write_all_at(&[content[66 << 20] ^ 1], 66 << 20).expect("written");
    };
    let cut = |file: &Path| {
        std::fs::OpenOptions::new().write(true).open(file).expect("there").set_len(100).expect("cut");
    };
    let kinds: [&dyn Fn(&Path); 2] = [&flip, &cut];
    for (kind, harm) in kinds.iter().enumerate() {
        for way in ["get", "outline", "source", "chunk"] {
            let folder = tempfile::tempdir().expect("folder");
            let blobs = Blobs::local(folder.path(), 0).expect("opens");
            blobs.put(content.clone()).await.expect("put");
            let file = file_of(folder.path(), blob);
            // Damage after the source was opened is found when its chunk is read.
            let source = if way == "chunk" { Some(blobs.source(blob).await.expect("sound")) } else { None };
            harm(&file);
            let error = match (way, source) {
                ("get", _) => blobs.get(blob).await.expect_err("damaged").to_string(),
                ("outline", _) => blobs.outline(blob).await.expect_err("damaged").to_string(),
                ("source", _) => blobs.source(blob).await.err().expect("damaged").to_string(),
                (_, source) => source.expect("opened").chunk(66).await.expect_err("damaged").to_string(),
            };
            assert!(error.contains("was damaged since"), "{kind}, {way}: {error}");
            assert!(!file.exists() && !blobs.has(blob).await.expect("answers"), "{way}");
            assert_eq!(std::fs::read_dir(folder.path().join(DAMAGED)).expect("aside").count(), 1, "{way}");
            blobs.put(content.clone()).await.expect("put");
            assert!(*blobs.get(blob).await.expect("mended") == content, "{way}");
        }
    }
}

/// What is put anew while damage is being looked at is not moved away, and what is longer than the blob is not the blob.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_mended_meanwhile_stays_in_its_place() {
    let folder = tempfile::tempdir().expect("folder");
    let blobs = Blobs::local(folder.path(), 0).expect("opens");
    let blob = blobs.put(bytes(1000, 1)).await.expect("put");
    let file = file_of(folder.path(), blob);
    let Inner::Objects(kept) = &*blobs.0 else { panic!("a folder") };
    // Somebody read damage, and it is mended now.
    assert!(matches!(kept.set_aside(blob).await, BlobError::Unreached { .. }) && file.exists());
    std::fs::write(&file, bytes(1000, 2)).expect("written");
    let putting = kept.begin_put(blob).await;
    assert!(matches!(blobs.get(blob).await, Err(BlobError::Unreached { .. })) && file.exists());
    drop(putting);
    assert!(matches!(blobs.get(blob).await, Err(BlobError::Damaged { .. })) && !file.exists());
    std::fs::write(&file, [bytes(1000, 1), vec![7]].concat()).expect("written");
    assert!(matches!(blobs.outline(blob).await, Err(BlobError::Damaged { .. })) && !file.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn collection_spares_the_live_and_the_young() {
    let folder = tempfile::tempdir().expect("folder");
    let blobs = Blobs::local(folder.path(), CACHE).expect("opens");
    let live = blobs.put(bytes(1000, 1)).await.expect("put");
    let idle = blobs.put(bytes(1000, 2)).await.expect("put");
    std::fs::write(folder.path().join("blobs").join("a stranger"), b"not ours").expect("written");
    let young = blobs.collect(|blob| *blob == live, Duration::from_secs(60)).await.expect("collects");
    assert_eq!(young, Collected { live: 1, young: 1, ..Collected::default() });
    let again = Blobs::local(folder.path(), CACHE).expect("opens");
    let old = again.collect(|blob| *blob == live, Duration::ZERO).await.expect("collects");
    assert_eq!(old, Collected { live: 1, removed: 1, bytes: 1000, ..Collected::default() });
    assert!(again.has(live).await.expect("answers") && !again.has(idle).await.expect("answers"));
    assert!(again.get(idle).await.is_err() && folder.path().join("blobs").join("a stranger").exists());
}

/// Old garbage that is put again while a collection runs, and referred to afterwards, stays: many lives of that race.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_put_again_during_a_collection_stays() {
    let folder = tempfile::tempdir().expect("folder");
    let grace = Duration::from_millis(300);
    let contents: Vec<Vec<u8>> = (0..60).map(|i| bytes(2000, i)).collect();
    let before = Blobs::local(folder.path(), 0).expect("opens");
    for content in &contents {
        before.put(content.clone()).await.expect("put");
    }
    drop(before);
    tokio::time::sleep(grace * 2).await;
    let blobs = Blobs::local(folder.path(), 0).expect("opens");
    let putting = async {
        let mut put = Vec::new();
        for content in contents.iter().step_by(2) {
            put.push(blobs.put(content.clone()).await.expect("put"));
            tokio::task::yield_now().await;
        }
        put
    };
    let (put, done) = tokio::join!(putting, blobs.collect(|_| false, grace));
    let done = done.expect("collects");
    for blob in &put {
        assert!(blobs.get(*blob).await.is_ok(), "put {} ms ago and collected", grace.as_millis());
    }
    assert!(done.removed >= 30 - 1, "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_cache_is_written_once_and_missed_when_lost() {
    let folder = tempfile::tempdir().expect("folder");
    let disk = Arc::new(Dying::default());
    let blobs = Blobs::on_disk(folder.path(), disk.clone(), CACHE).expect("opens");
    let writes = || locked(&disk.steps).iter().filter(|step| **step == "write").count();
    for _ in 0..3 {
        blobs.put(bytes(10, 1)).await.expect("put");
    }
    assert_eq!(writes(), 1);
    // Lost behind the cache's back: the next put notices.
    let file = file_of(folder.path(), BlobRef::of(&bytes(10, 1)));
    std::fs::remove_file(&file).expect("there");
    blobs.put(bytes(10, 1)).await.expect("put");
    assert!(writes() == 2 && file.exists());
}

/// Folders of builds before: blobs of jobs lay in the folder itself.
#[tokio::test(flavor = "multi_thread")]
async fn blobs_of_an_earlier_layout_are_taken_over() {
    let folder = tempfile::tempdir().expect("folder");
    let blob = BlobRef::of(&bytes(500, 4));
    let hex: String = blob.digest.iter().map(|b| format!("{b:02x}")).collect();
    std::fs::write(folder.path().join(format!("{hex}-500")), bytes(500, 4)).expect("written");
    std::fs::write(folder.path().join(".fresh-3"), b"half").expect("written");
    std::fs::write(folder.path().join("a-stranger"), b"not ours").expect("written");
    let blobs = Blobs::local(folder.path(), 0).expect("opens");
    assert!(*blobs.get(blob).await.expect("has its place") == bytes(500, 4));
    assert!(folder.path().join("a-stranger").exists() && !folder.path().join(".fresh-3").exists());
}

/// What a job had is gone at once when it ends, unless it is needed by then, or somebody else put it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_is_discarded_unless_it_is_wanted_again() {
    let folder = tempfile::tempdir().expect("folder");
    let blobs = Blobs::local(folder.path(), CACHE).expect("opens");
    let [over, needed, pushed] = [1, 2, 3].map(|salt| bytes(100, salt));
    let mut all = Vec::new();
    for content in [over, needed, pushed] {
        all.push(blobs.put(content).await.expect("put"));
    }
    blobs.touch(all[2]).await;
    blobs.discard(&all, |blob| *blob == all[1]).await.expect("discards");
    let mut there = Vec::new();
    for blob in &all {
        there.push(blobs.has(*blob).await.expect("answers"));
    }
    assert_eq!((there, blobs.cached(all[0])), (vec![false, true, true], None));
}

/// Others who keep a blob as long as a coordinator does that hears of nothing that needs it.
#[derive(Debug, Default)]
struct Forgetful {
    spread: Mutex<Vec<BlobRef>>,
    there: Mutex<Option<Vec<u8>>>,
    away: std::sync::atomic::AtomicBool,
}

impl Others for Forgetful {
    fn spread(&self, blob: BlobRef, _: Arc<Vec<u8>>) -> OthersLater<'_, Result<(), String>> {
        locked(&self.spread).push(blob);
        let away = self.away.load(std::sync::atomic::Ordering::Relaxed);
        Box::pin(std::future::ready(if away { Err("no majority".to_owned()) } else { Ok(()) }))
    }

    fn ask(&self, _: BlobRef) -> OthersLater<'_, Asked> {
        let away = self.away.load(std::sync::atomic::Ordering::Relaxed);
        let asked = match locked(&self.there).clone() {
            _ if away => Asked::Unknown,
            Some(bytes) => Asked::Here(obelysk_node::transport::Whole::Memory(bytes)),
            None => Asked::Nowhere,
        };
        Box::pin(std::future::ready(asked))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_counts_as_kept_by_the_others_only_if_they_were_asked_lately() {
    let folder = tempfile::tempdir().expect("folder");
    let (blobs, others) = (Blobs::local(folder.path(), CACHE).expect("opens"), Arc::new(Forgetful::default()));
    blobs.among(others.clone());
    let asked = || locked(&others.spread).len();
    let blob = blobs.put(bytes(10, 1)).await.expect("put");
    blobs.put(bytes(10, 1)).await.expect("put");
    assert_eq!(asked(), 1, "a moment ago");
    // Time passes.
    let Inner::Objects(kept) = &*blobs.0 else { panic!("a folder") };
    let long_ago = Instant::now().checked_sub(PUT_AGAIN).expect("this machine runs for longer");
    locked(&kept.fresh).get_mut(&blob).expect("put").done = Some(long_ago);
    blobs.put(bytes(10, 1)).await.expect("put");
    assert_eq!(asked(), 2, "they may have removed it since");
    // A put that failed is none.
    others.away.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(matches!(blobs.put(bytes(10, 2)).await, Err(BlobError::Unreached { .. })));
    others.away.store(false, std::sync::atomic::Ordering::Relaxed);
    blobs.put(bytes(10, 2)).await.expect("put");
    assert_eq!(asked(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_here_is_asked_for_and_missing_only_if_nobody_has_it() {
    let folder = tempfile::tempdir().expect("folder");
    let (blobs, others) = (Blobs::local(folder.path(), 0).expect("opens"), Arc::new(Forgetful::default()));
    blobs.among(others.clone());
    let (content, blob) = (bytes(1000, 1), BlobRef::of(&bytes(1000, 1)));
    assert!(matches!(blobs.get(blob).await, Err(BlobError::Missing { .. })));
    assert_eq!(blobs.find(blob).await, Ok(false));
    others.away.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(matches!(blobs.get(blob).await, Err(BlobError::Unreached { .. })), "somebody may have it");
    others.away.store(false, std::sync::atomic::Ordering::Relaxed);
    *locked(&others.there) = Some(content.clone());
    assert!(matches!(blobs.get_here(blob).await, Err(BlobError::Missing { .. })));
    assert!(blobs.source(blob).await.is_ok() && *blobs.get_here(blob).await.expect("kept") == content);
    assert_eq!(locked(&others.spread).len(), 0, "what came from them they have");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_read_is_an_error_that_names_it_and_costs_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let blobs = Blobs::local(folder.path(), 0).expect("opens");
    let blob = blobs.put(bytes(10, 1)).await.expect("put");
    let file = file_of(folder.path(), blob);
    std::fs::remove_file(&file).expect("there");
    // A folder in its place can be no file, whoever reads.
    std::fs::create_dir(&file).expect("made");
    let error = blobs.get(blob).await.expect_err("fails").to_string();
    assert!(error.contains(&folder.path().display().to_string()), "{error}");
    std::fs::remove_dir(&file).expect("empty");
    blobs.put(bytes(10, 1)).await.expect("put");
    assert!(blobs.get(blob).await.is_ok());
    let nowhere = StoreSettings { place: "/proc/none".to_owned(), ..StoreSettings::default() };
    let error = Blobs::open(&nowhere, 0).await.expect_err("no folder can be there").to_string();
    assert!(error.contains("/proc/none"), "{error}");
}

#[tokio::test]
async fn memory_keeps_its_bound() {
    let blobs = Blobs::in_memory(8);
    let blob = blobs.put(vec![7; 8]).await.expect("fits");
    blobs.put(vec![7; 8]).await.expect("is there");
    assert_eq!(blobs.put(vec![1]).await, Err(BlobError::Full { limit: 8 }));
    assert_eq!(blobs.get_range(blob, 2..4).await, Ok(vec![7, 7]));
}

/// A disk of 8 MiB, of which the tests need root to make one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().expect("folder");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=8m", "none"])
            .arg(folder.path())
            .stderr(std::process::Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("SKIPPED: this user may not mount a small disk, so a full one was not tried");
        return;
    };
    let folder = disk.0.path().join("store");
    let blobs = Blobs::local(&folder, CACHE).expect("opens");
    let kept = blobs.put(bytes(3 << 20, 1)).await.expect("fits");
    let outside = tempfile::tempdir().expect("folder");
    let file = outside.path().join("big");
    let big = bytes(9 << 20, 2);
    std::fs::write(&file, &big).expect("written");
    for _ in 0..2 {
        let errors = [blobs.put(big.clone()).await.map(|_| ()), blobs.put_file(BlobRef::of(&big), &file).await];
        for error in errors.map(|outcome| outcome.expect_err("does not fit")) {
            assert!(matches!(error, BlobError::NoRoom { free, .. } if (1 << 20..8 << 20).contains(&free)), "{error}");
            assert!(error.to_string().contains(&folder.display().to_string()), "{error}");
        }
    }
    assert!(!blobs.has(BlobRef::of(&big)).await.expect("answers"));
    // Room again, as nothing of the failed writes stays.
    let after = Blobs::local(&folder, 0).expect("opens");
    assert!(*after.get(kept).await.expect("nothing is lost") == bytes(3 << 20, 1));
    after.put(bytes(4 << 20, 3)).await.expect("fits");
}
