//! What every store of blobs promises, whatever it lies in.

use super::*;

/// Blobs of all sizes come back whole and in pieces, here and in another process; what is not there is missing.
pub(super) async fn keeps_blobs(first: &Blobs, second: Option<&Blobs>) {
    let contents: Vec<Vec<u8>> = [0, 1, 1 << 20, (9 << 20) + 3, (40 << 20) + 1].iter().map(|n| bytes(*n, 7)).collect();
    for content in &contents {
        for _ in 0..2 {
            assert_eq!(first.put(content.clone()).await.expect("put"), BlobRef::of(content));
        }
    }
    for blobs in [Some(first), second].into_iter().flatten() {
        for content in &contents {
            let blob = BlobRef::of(content);
            assert!(blobs.has(blob).await.expect("answers") && *blobs.get(blob).await.expect("there") == *content);
            if blob.length == 0 {
                continue;
            }
            let middle = blob.length / 3..blob.length / 2;
            let piece = &content[middle.start as usize..middle.end as usize];
            assert!(blobs.get_range(blob, middle).await.expect("there") == piece);
            assert_eq!(*blobs.outline(blob).await.expect("right"), Outline::of(content));
            assert!(matches!(blobs.get_range(blob, 0..blob.length + 1).await, Err(BlobError::Missing { .. })));
            let source = blobs.source(blob).await.expect("there");
            assert!(source.chunk(0).await.expect("right") == content[..content.len().min(CHUNK_BYTES as usize)]);
        }
        let absent = BlobRef::of(b"absent");
        assert!(matches!(blobs.get(absent).await, Err(BlobError::Missing { .. })));
        assert!(matches!(blobs.get_range(absent, 0..3).await, Err(BlobError::Missing { .. })));
        assert!(matches!(blobs.outline(absent).await, Err(BlobError::Missing { .. })));
        assert!(!blobs.has(absent).await.expect("answers"));
    }
    // Many at once put the same.
    let content = bytes(100_000, 9);
    let mut putting = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (blobs, content) = (first.clone(), content.clone());
        putting.spawn(async move { blobs.put(content).await });
    }
    for put in putting.join_all().await {
        assert_eq!(put, Ok(BlobRef::of(&content)));
    }
}

/// A file becomes a blob only if it is that blob.
pub(super) async fn takes_files(blobs: &Blobs) {
    let folder = tempfile::tempdir().expect("folder");
    for length in [10, (17 << 20) + 1, 70 << 20] {
        let file = folder.path().join("file");
        let content = bytes(length, 9);
        std::fs::write(&file, &content).expect("written");
        let (blob, other) = (BlobRef::of(&content), BlobRef { digest: [1; 32], length: content.len() as u64 });
        assert!(matches!(blobs.put_file(other, &file).await, Err(BlobError::File { .. })));
        let longer = BlobRef { length: blob.length + 1, ..blob };
        assert!(matches!(blobs.put_file(longer, &file).await, Err(BlobError::File { .. })));
        assert!(!blobs.has(blob).await.expect("answers") && !blobs.has(other).await.expect("answers"));
        blobs.put_file(blob, &file).await.expect("put");
        assert!(*blobs.get(blob).await.expect("there") == content);
    }
}

/// A collection spares the live and the young, removes the rest, and only by whoever may.
pub(super) async fn collects<F: Future<Output = Result<(), BlobError>>>(blobs: &Blobs, take_away: impl Fn() -> F) {
    let all = blobs.collect(|_| true, Duration::ZERO).await.expect("collects");
    assert_eq!((all.removed, all.torn), (0, 0), "{all:?}");
    let live = blobs.put(bytes(1000, 1)).await.expect("put");
    let idle = blobs.put(bytes(1000, 2)).await.expect("put");
    let young = blobs.collect(|blob| *blob == live, Duration::from_secs(60)).await.expect("collects");
    assert_eq!((young.live, young.removed), (1, 0), "{young:?}");
    assert!(blobs.has(idle).await.expect("answers"));
    // Ages of a bucket are whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let old = blobs.collect(|blob| *blob == live, Duration::from_millis(1)).await.expect("collects");
    assert!(old.live == 1 && old.removed >= 1, "{old:?}");
    assert!(blobs.has(live).await.expect("answers") && !blobs.has(idle).await.expect("answers"));
    take_away().await.expect("another takes over");
}
