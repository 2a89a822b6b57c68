//! A bucket of a real S3 server: what it promises like any other store, and what only a bucket can have go wrong.

use super::*;
use crate::blobs::tests::conformance;

#[path = "../../../tests/support/bucket_server.rs"]
mod bucket_server;
use bucket_server::{BUCKET, BucketServer, KEY_ID, SECRET, key_file};

struct Bucket {
    folder: tempfile::TempDir,
    server: Option<BucketServer>,
}

impl Bucket {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let server = Some(BucketServer::start(&folder.path().join("s3"), None).await);
        Self { folder, server }
    }

    fn settings(&self) -> StoreSettings {
        StoreSettings {
            place: format!("s3://{BUCKET}/of/tests"),
            endpoint: self.server.as_ref().expect("runs").endpoint(),
            region: String::new(),
            credentials: key_file(self.folder.path(), KEY_ID, SECRET),
        }
    }

    async fn open(&self) -> Blobs {
        Blobs::open(&self.settings(), 0).await.expect("opens")
    }

    async fn open_cached(&self) -> Blobs {
        Blobs::open(&self.settings(), CACHE).await.expect("opens")
    }

    fn objects(&self) -> PathBuf {
        self.folder.path().join("s3").join(BUCKET).join("of/tests")
    }

    fn blobs(&self) -> usize {
        let folders = std::fs::read_dir(self.objects().join("blobs")).expect("lists").flatten();
        folders.map(|folder| std::fs::read_dir(folder.path()).map_or(0, Iterator::count)).sum()
    }

    fn objects_in(&self, folder: &str) -> usize {
        std::fs::read_dir(self.objects().join(folder)).map_or(0, Iterator::count)
    }

    /// Parts of uploads, wherever the server keeps them.
    fn parts(&self) -> usize {
        let folder = self.folder.path().join("s3");
        let all = [folder.clone(), folder.join(BUCKET)].into_iter().flat_map(|f| std::fs::read_dir(f).expect("lists"));
        all.flatten().filter(|entry| entry.file_name().to_string_lossy().contains(".part-")).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_bucket_keeps_what_every_store_promises() {
    let bucket = Bucket::start().await;
    conformance::keeps_blobs(&bucket.open_cached().await, Some(&bucket.open().await)).await;
    conformance::takes_files(&bucket.open().await).await;
    let (one, another) = (bucket.open().await, bucket.open().await);
    one.take_over(1).await.expect("takes over");
    conformance::collects(&one, || another.take_over(2)).await;
    assert_eq!((bucket.objects_in("uploads"), bucket.parts()), (0, 0), "nothing of an upload is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_keeps_what_every_store_promises() {
    let folder = tempfile::tempdir().expect("folder");
    let open = |cache| Blobs::local(folder.path(), cache).expect("opens");
    conformance::keeps_blobs(&open(CACHE), Some(&open(0))).await;
    conformance::takes_files(&open(0)).await;
    conformance::collects(&open(0), || async { Ok(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_keeps_what_every_store_promises() {
    conformance::keeps_blobs(&Blobs::in_memory(1 << 30), None).await;
    conformance::takes_files(&Blobs::in_memory(1 << 30)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_settings_is_said_with_its_remedy_and_without_the_key() {
    let bucket = Bucket::start().await;
    let right = bucket.settings();
    let wrong_key = key_file(bucket.folder.path(), "nobody", SECRET);
    let wrong_secret = key_file(bucket.folder.path(), KEY_ID, "a-wrong-secret");
    let cases = [
        (StoreSettings { credentials: wrong_key, ..right.clone() }, "AWS_ACCESS_KEY_ID"),
        (StoreSettings { credentials: wrong_secret, ..right.clone() }, "SignatureDoesNotMatch"),
        (StoreSettings { place: "s3://no-such-bucket/x".to_owned(), ..right.clone() }, "no bucket `no-such-bucket`; create it"),
    ];
    for (settings, word) in cases {
        let error = Blobs::open(&settings, 0).await.expect_err("refused");
        assert!(error.is_setting() && error.to_string().contains(word), "{error}");
        assert!(!error.to_string().contains("secret-that") && !format!("{error:?}").contains("a-wrong"), "{error:?}");
    }
    let blobs = bucket.open().await;
    assert!(!format!("{blobs:?}").contains(SECRET));
    // Who joins finds the place of those it joins.
    let error = blobs.claim("cluster a", false).await.expect_err("is nobody's");
    assert!(error.is_setting() && error.to_string().contains("correct `store`"), "{error}");
    blobs.claim("cluster a", true).await.expect("is free");
    for founds in [true, false] {
        blobs.claim("cluster a", founds).await.expect("is its own");
        let error = blobs.claim("cluster b", founds).await.expect_err("is another's");
        assert!(error.is_setting() && error.to_string().contains("cluster a"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_not_a_blob_that_is_missing() {
    let mut bucket = Bucket::start().await;
    let (blobs, settings) = (bucket.open().await, bucket.settings());
    let blob = blobs.put(bytes(1000, 1)).await.expect("put");
    let address = bucket.server.take().expect("runs").address();
    let error = blobs.get(blob).await.expect_err("away");
    assert!(matches!(&error, BlobError::Unreached { .. }) && error.to_string().contains(&address.to_string()), "{error}");
    assert!(matches!(Blobs::open(&settings, 0).await, Err(BlobError::Unreached { .. })));
    // Back again while somebody waits.
    let waiting = tokio::spawn(async move { blobs.get(blob).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    bucket.server = Some(BucketServer::start(&bucket.folder.path().join("s3"), Some(address)).await);
    assert!(*waiting.await.expect("no panic").expect("back") == bytes(1000, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_upload_that_dies_leaves_no_blob_and_its_parts_go() {
    let mut bucket = Bucket::start().await;
    let content = bytes(200 << 20, 5);
    let (blob, file) = (BlobRef::of(&content), bucket.folder.path().join("file"));
    std::fs::write(&file, &content).expect("written");
    let blobs = bucket.open().await;
    blobs.take_over(1).await.expect("takes over");
    let putting = tokio::spawn({
        let (blobs, file) = (blobs.clone(), file.clone());
        async move { blobs.put_file(blob, &file).await }
    });
    while bucket.parts() < 2 {
        assert!(!putting.is_finished(), "the upload was over before it could be cut off");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let address = bucket.server.take().expect("runs").address();
    let error = putting.await.expect("no panic").expect_err("the server is gone");
    assert!(matches!(error, BlobError::Unreached { .. }), "{error}");
    bucket.server = Some(BucketServer::start(&bucket.folder.path().join("s3"), Some(address)).await);
    assert_eq!(blobs.has(blob).await, Ok(false));
    assert!(bucket.parts() >= 2 && bucket.objects_in("uploads") == 1);
    // A young one may be going on.
    assert_eq!(blobs.collect(|_| true, Duration::from_secs(600)).await.expect("collects").torn, 0);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(blobs.collect(|_| true, Duration::ZERO).await.expect("collects").torn, 1);
    assert_eq!((bucket.parts(), bucket.objects_in("uploads")), (0, 0));
    blobs.put_file(blob, &file).await.expect("the server is back");
    assert!(*blobs.get(blob).await.expect("there") == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_a_bucket_is_found_kept_as_evidence_and_mended() {
    let bucket = Bucket::start().await;
    let blobs = bucket.open().await;
    let content = bytes((20 << 20) + 5, 3);
    let blob = blobs.put(content.clone()).await.expect("put");
    let file = bucket.objects().join(key_of(blob));
    let flipped = std::fs::OpenOptions::new().write(true).open(&file).expect("there");
    flipped.write_all_at(&[content[19 << 20] ^ 1], 19 << 20).expect("written");
    for way in ["get", "outline"] {
        let error = if way == "get" { blobs.get(blob).await.map(|_| ()) } else { blobs.outline(blob).await.map(|_| ()) };
        let error = error.expect_err("damaged");
        assert!(matches!(error, BlobError::Damaged { .. }), "{way}: {error}");
        assert_eq!((blobs.has(blob).await, bucket.objects_in(DAMAGED)), (Ok(false), 1), "{way}");
        assert!(file.exists(), "another coordinator may have written there since");
        std::fs::remove_dir_all(bucket.objects().join(DAMAGED)).expect("evidence");
        blobs.put(content.clone()).await.expect("mends");
        assert!(*blobs.get(blob).await.expect("mended") == content);
        let cut = std::fs::OpenOptions::new().write(true).open(&file).expect("there");
        cut.set_len(100).expect("cut");
    }
}

/// Two coordinators, one bucket: whatever one has just put the other does not remove, young or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_another_coordinator_just_put_is_never_collected() {
    let bucket = Bucket::start().await;
    let (first, second) = (bucket.open().await, bucket.open().await);
    first.take_over(1).await.expect("takes over");
    let contents: Vec<Vec<u8>> = (0..200).map(|i| bytes(2000, i)).collect();
    for content in &contents {
        first.put(content.clone()).await.expect("put");
    }
    // Only the age of what another put protects it from the holder.
    let other = second.put(bytes(3000, 7)).await.expect("put");
    let done = first.collect(|_| false, Duration::from_secs(3600)).await.expect("collects");
    assert_eq!((done.removed, done.young), (0, 201), "all are young: {done:?}");
    assert!(second.has(other).await.expect("answers"));
    // Old garbage. The second leads now, puts half of it again, and refers to it, while the first does not know yet that it leads no more.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let grace = Duration::from_secs(1);
    let first_again = Blobs::open(&bucket.settings(), 0).await.expect("opens");
    first_again.take_over(2).await.expect("takes over");
    let collecting = tokio::spawn(async move { first_again.collect(|_| false, grace).await });
    while bucket.blobs() == 201 {
        assert!(!collecting.is_finished(), "nothing was old");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    second.take_over(3).await.expect("takes over");
    let mut putting = tokio::task::JoinSet::new();
    for content in contents.into_iter().step_by(2) {
        let second = second.clone();
        putting.spawn(async move { (second.put(content.clone()).await.expect("put"), content) });
    }
    let put = putting.join_all().await;
    let done = collecting.await.expect("no panic").expect("collects");
    assert!(done.removed > 0, "{done:?}");
    for (blob, content) in &put {
        assert!(*second.get(*blob).await.expect("put and collected") == *content, "{done:?}");
    }
    // Who holds nothing removes nothing.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(first.collect(|_| false, Duration::ZERO).await.expect("is told"), Collected::default());
    let rest = second.collect(|blob| put.iter().any(|(b, _)| b == blob), Duration::ZERO).await.expect("collects");
    assert_eq!(rest.live, 100, "{rest:?}");
    for (blob, _) in &put {
        assert!(second.get(*blob).await.is_ok());
    }
}

/// A leader that is none any more learns of it late: what it says then changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_led_before_does_not_become_the_holder_again() {
    let bucket = Bucket::start().await;
    let (earlier, later) = (bucket.open().await, bucket.open().await);
    earlier.take_over(4).await.expect("is free");
    earlier.take_over(4).await.expect("is its own");
    later.take_over(6).await.expect("leads");
    for term in [4, 5, 6] {
        let error = earlier.take_over(term).await.expect_err("leads no more");
        assert!(error.is_setting() && error.to_string().contains("term 6"), "{error}");
    }
    let garbage = later.put(bytes(1000, 1)).await.expect("put");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(earlier.collect(|_| false, Duration::ZERO).await, Ok(Collected::default()));
    assert_eq!(later.has(garbage).await, Ok(true));
    assert_eq!(later.collect(|_| false, Duration::ZERO).await.expect("collects").removed, 1);
    earlier.take_over(7).await.expect("leads again");
    assert_eq!((earlier.taken_in(), later.collect(|_| false, Duration::ZERO).await.map(|done| done.removed)), (Some(7), Ok(0)));
}
