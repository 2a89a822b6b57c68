//! Cuts at every boundary, lies at every place, offers and files.

use super::*;

fn bytes(length: u64) -> Arc<Vec<u8>> {
    Arc::new((0..length).map(|i| (i % 251) as u8).collect())
}

/// All that a sender writes from there on.
async fn sent(source: &InMemory, from: u64, outline: bool) -> Vec<u8> {
    let mut stream = Vec::new();
    send_part(&mut stream, source, from, outline).await.expect("memory");
    stream
}

/// Cut anywhere, at, before and after each boundary: what is here then is whole chunks, and with the rest it is the blob.
#[tokio::test]
async fn a_cut_transfer_goes_on_from_its_last_whole_chunk() {
    let length = 5 * CHUNK_BYTES + 77;
    let source = InMemory { blob: BlobRef::of(&bytes(length)), bytes: bytes(length) };
    let blob = source.blob;
    let parts = Arc::new(Parts::in_memory());
    let first = sent(&source, 0, true).await;
    let list = blob.outline_bytes() + 16;
    for chunk in 0..=5 {
        for around in [-9_i64, 0, 9] {
            let boundary = list + chunk * (CHUNK_BYTES + 16);
            let cut = usize::try_from(boundary.saturating_add_signed(around)).expect("short");
            let part = taken(&parts, blob).await.expect("taken");
            assert_eq!((part.have(), part.needs_outline()), (0, true), "the last life left nothing");
            let (part, outcome) = receive_part(&mut &first[..cut], part).await;
            assert!(kept(&parts, part, outcome).await.is_err(), "{cut}");

            let part = taken(&parts, blob).await.expect("taken");
            let whole = if around < 0 { chunk.saturating_sub(1) } else { chunk };
            assert_eq!(part.have(), whole * CHUNK_BYTES, "{chunk} {around}");
            let rest = sent(&source, part.have(), part.needs_outline()).await;
            assert!(whole == 0 || rest.len() as u64 == length - whole * CHUNK_BYTES + (6 - whole) * 16, "no chunk twice");
            let (part, outcome) = receive_part(&mut rest.as_slice(), part).await;
            let blob = kept(&parts, part, outcome).await.expect("whole").into_bytes().expect("memory");
            assert!(blob == **source.bytes, "{chunk} {around}");
        }
    }
}

/// A sender that lies about the list, a chunk or a length is found out at that point, and the chunks before it stay.
#[tokio::test]
async fn lies_are_found_where_they_are() {
    let length = 3 * CHUNK_BYTES + 5;
    let source = InMemory { blob: BlobRef::of(&bytes(length)), bytes: bytes(length) };
    let honest = sent(&source, 0, true).await;
    let list = source.blob.outline_bytes() as usize + 16;
    let frame = CHUNK_BYTES as usize + 16;
    let receive = async |stream: &[u8]| {
        let parts = Arc::new(Parts::in_memory());
        let part = taken(&parts, source.blob).await.expect("taken");
        let (part, outcome) = receive_part(&mut &*stream, part).await;
        (outcome, part.expect("kept").have() / CHUNK_BYTES)
    };
    for (at, chunks) in [(20, 0), (list + 16, 0), (list + frame + 500, 1), (list + 3 * frame + 17, 3)] {
        let mut lie = honest.clone();
        lie[at] ^= 1;
        let (outcome, kept) = receive(&lie).await;
        assert!(matches!(outcome, Err(TransportError::BlobDamaged)), "{at}: {outcome:?}");
        assert_eq!(kept, chunks, "{at}");
    }
    // Chunks in another order, a chunk twice, another frame.
    let swapped = [&honest[..list], &honest[list + frame..list + 2 * frame], &honest[list..]].concat();
    let twice = [&honest[..list + frame], &honest[list..]].concat();
    for (lie, chunks) in [(swapped, 0), (twice, 1)] {
        let (outcome, kept) = receive(&lie).await;
        assert!(matches!(outcome, Err(TransportError::BlobDamaged)) && kept == chunks, "{outcome:?} {kept}");
    }
    let other = Message::BlobFetch(BlobFetch { blob: source.blob, from: 0, outline: true }).encode().expect("encodes");
    let (outcome, _) = receive(&[&honest[..list + frame], &other[..]].concat()).await;
    assert!(matches!(outcome, Err(TransportError::Unexpected { got: MessageId::BlobFetch, .. })), "{outcome:?}");
}

/// The other side of an offer: what is here is said, only the rest is taken, and one that may not is refused before a byte.
#[tokio::test]
async fn an_offer_is_answered_with_what_is_here() {
    let length = 2 * CHUNK_BYTES + 1;
    let source = InMemory { blob: BlobRef::of(&bytes(length)), bytes: bytes(length) };
    let parts = Arc::new(Parts::in_memory());
    let first = sent(&source, 0, true).await;
    // In the middle of the last chunk, which is a header and one byte.
    let cut = first.len() - 10;
    let mut answer = Vec::new();
    let outcome = accept_offer((&mut answer, &mut &first[..cut]), &parts, source.blob, |from| {
        assert_eq!(from, 0);
        Ok(())
    })
    .await;
    assert!(outcome.is_err());
    let have = async |answer: &[u8]| match read_message(&mut &*answer).await {
        Ok(Some(Message::BlobHave(have))) => (have.from, have.outline),
        other => panic!("{other:?}"),
    };
    assert_eq!(have(&answer).await, (0, true));
    let no = || TransportError::Refused { reason: "no".to_owned(), retry: false };
    let refused = accept_offer((&mut Vec::new(), &mut &first[..0]), &parts, source.blob, |from| {
        assert_eq!(from, 2 * CHUNK_BYTES);
        Err(no())
    })
    .await;
    assert!(matches!(refused, Err(TransportError::Refused { .. })));
    answer.clear();
    let rest = sent(&source, 2 * CHUNK_BYTES, false).await;
    assert_eq!(rest.len(), 17);
    let whole = accept_offer((&mut answer, &mut rest.as_slice()), &parts, source.blob, |_| Ok(())).await.expect("whole");
    assert_eq!(have(&answer).await, (2 * CHUNK_BYTES, false));
    assert!(whole.into_bytes().expect("memory") == **source.bytes);
}

#[tokio::test]
async fn a_file_is_served_as_its_bytes_are() {
    let place = tempfile::tempdir().expect("folder");
    let path = place.path().join("f");
    for length in [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 9] {
        std::fs::write(&path, &**bytes(length)).expect("written");
        let file = InFile::open(path.clone()).expect("opens");
        assert_eq!(*file.outline, Outline::of(&bytes(length)));
        let mut got = Vec::new();
        for index in 0..file.blob().chunks() {
            got.extend(file.chunk(index).await.expect("there"));
        }
        assert!(got == **bytes(length));
    }
    let file = InFile::open(path.clone()).expect("opens");
    std::fs::write(&path, b"shorter").expect("written");
    assert!(matches!(file.chunk(1).await, Err(TransportError::Disk { .. })));
}
