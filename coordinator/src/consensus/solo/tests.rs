//! Restarts, torn and damaged files, snapshots, terms, two processes, a full disk.

use std::path::Path;
use std::sync::{Arc, Mutex};

use super::*;

/// Remembers every entry.
#[derive(Debug, Clone, Default)]
struct List(Arc<Mutex<Vec<Vec<u8>>>>);

impl Machine for List {
    fn apply(&mut self, _index: u64, entry: &[u8]) {
        self.0.lock().expect("whole").push(entry.to_vec());
    }

    fn snapshot(&self) -> Vec<u8> {
        self.0.lock().expect("whole").iter().flat_map(|e| [&[e.len() as u8][..], e].concat()).collect()
    }

    fn restore(&mut self, mut snapshot: &[u8]) -> Result<(), String> {
        let mut all = Vec::new();
        while let Some((length, rest)) = snapshot.split_first() {
            let (entry, rest) = rest.split_at_checked(usize::from(*length)).ok_or("cut")?;
            all.push(entry.to_vec());
            snapshot = rest;
        }
        *self.0.lock().expect("whole") = all;
        Ok(())
    }
}

fn open(folder: &Path, snapshot_after: u64) -> Result<(Solo, List), SoloError> {
    let list = List::default();
    Ok((Solo::open_with(folder, Box::new(list.clone()), snapshot_after)?, list))
}

/// Opens again after the last holder's thread has let go.
fn reopen(folder: &Path, snapshot_after: u64) -> Result<(Solo, List), SoloError> {
    for _ in 0..500 {
        match open(folder, snapshot_after) {
            Err(SoloError::Folder(IdentityError::InUse { .. })) => std::thread::sleep(std::time::Duration::from_millis(10)),
            outcome => return outcome,
        }
    }
    panic!("never let go");
}

fn propose(solo: &Solo, entries: &[&[u8]]) -> Result<(), ProposeError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    runtime.block_on(solo.propose(solo.term, entries.iter().map(|e| e.to_vec()).collect()))
}

fn content(list: &List) -> Vec<Vec<u8>> {
    list.0.lock().expect("whole").clone()
}

#[test]
fn what_was_agreed_is_there_after_a_restart_in_a_higher_term() {
    let place = tempfile::tempdir().expect("folder");
    let mut all: Vec<Vec<u8>> = Vec::new();
    for round in 1..=6_u8 {
        // Small enough that some rounds make snapshots.
        let (solo, list) = reopen(place.path(), 300).expect("opens");
        assert_eq!(content(&list), all, "round {round}");
        assert_eq!(*solo.role().borrow(), Role::Leader { term: u64::from(round) });
        for n in 0..3 {
            propose(&solo, &[&[round, n], b""]).expect("agreed");
            all.extend([vec![round, n], vec![]]);
            assert_eq!(content(&list), all);
        }
        assert!(matches!(open(place.path(), 300), Err(SoloError::Folder(IdentityError::InUse { .. }))));
    }
    assert!(place.path().join("snapshot").is_file());
}

#[test]
fn foreign_terms_and_large_entries_are_refused_and_nothing_is_written() {
    let place = tempfile::tempdir().expect("folder");
    let (solo, list) = open(place.path(), 1 << 20).expect("opens");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    let refused = runtime.block_on(solo.propose(2, vec![vec![1]]));
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: None }));
    let bytes = crate::consensus::MAX_ENTRY_BYTES + 1;
    assert_eq!(runtime.block_on(solo.propose(1, vec![vec![0; bytes]])), Err(ProposeError::TooLarge { bytes }));
    assert!(content(&list).is_empty());
}

/// Every cut of the last batch loses that batch alone; every cut before it is damage.
#[test]
fn a_torn_end_is_cut_off_and_a_damaged_middle_refused() {
    let place = tempfile::tempdir().expect("folder");
    let mut sizes = Vec::new();
    let log = place.path().join("log");
    {
        let (solo, _) = open(place.path(), 1 << 20).expect("opens");
        for entry in [&b"first"[..], b"second", b"third"] {
            propose(&solo, &[entry]).expect("agreed");
            sizes.push(std::fs::metadata(&log).expect("there").len() as usize);
        }
    }
    let whole = std::fs::read(&log).expect("read");
    let at = |bytes: &[u8]| {
        drop(reopen(place.path(), 1 << 20));
        std::fs::write(&log, bytes).expect("written");
        reopen(place.path(), 1 << 20)
    };
    for cut in sizes[1]..whole.len() {
        let (_, list) = at(&whole[..cut]).expect("opens");
        assert_eq!(content(&list), [b"first".to_vec(), b"second".to_vec()], "{cut}");
        assert_eq!(std::fs::metadata(&log).expect("there").len() as usize, sizes[1], "{cut}");
    }
    let bent = |place: usize| {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x40;
        bytes
    };
    for place in sizes[1]..whole.len() {
        let (_, list) = at(&bent(place)).expect("opens");
        assert_eq!(content(&list).len(), 2, "{place}");
    }
    for place in 0..sizes[1] {
        let error = at(&bent(place)).expect_err("damaged").to_string();
        assert!(error.contains("restore the folder from a backup"), "{place}: {error}");
        assert_eq!(std::fs::metadata(&log).expect("there").len() as usize, whole.len(), "nothing was cut off");
        std::fs::write(&log, &whole).expect("written");
    }
}

#[test]
fn a_missing_snapshot_or_term_is_damage() {
    let place = tempfile::tempdir().expect("folder");
    {
        let (solo, _) = open(place.path(), 100).expect("opens");
        (0..5).for_each(|n| propose(&solo, &[&[n; 40]]).expect("agreed"));
    }
    let (snapshot, term) = (place.path().join("snapshot"), place.path().join("term"));
    for gone in [&term, &snapshot] {
        let aside = place.path().join("aside");
        drop(reopen(place.path(), 100).expect("opens"));
        std::fs::rename(gone, &aside).expect("moved");
        let error = reopen(place.path(), 100).expect_err("damaged");
        assert!(matches!(error, SoloError::Damaged { .. }), "{error}");
        std::fs::rename(&aside, gone).expect("back");
    }
    let mut bytes = std::fs::read(&snapshot).expect("read");
    *bytes.last_mut().expect("bytes") ^= 1;
    std::fs::write(&snapshot, bytes).expect("written");
    assert!(matches!(reopen(place.path(), 100), Err(SoloError::Damaged { .. })));
}

/// Between the snapshot's rename and the new log, both are there and overlap.
#[test]
fn a_crash_between_snapshot_and_new_log_repeats_nothing() {
    let place = tempfile::tempdir().expect("folder");
    let log = place.path().join("log");
    let (solo, _) = open(place.path(), 250).expect("opens");
    let mut old = Vec::new();
    while !place.path().join("snapshot").exists() {
        old = std::fs::read(&log).expect("read");
        propose(&solo, &[b"entry"]).expect("agreed");
    }
    drop(solo);
    let (solo, list) = reopen(place.path(), 1 << 20).expect("opens");
    let all = content(&list);
    drop(solo);
    drop(reopen(place.path(), 1 << 20).expect("opens"));
    // The old log lacks the last entry, which the snapshot has: it ends before the snapshot does, which no crash makes.
    let fresh = std::fs::read(&log).expect("read");
    std::fs::write(&log, &old).expect("written");
    assert!(matches!(reopen(place.path(), 1 << 20), Err(SoloError::Damaged { .. })));
    std::fs::write(&log, &fresh).expect("written");
    assert_eq!(content(&reopen(place.path(), 1 << 20).expect("opens").1), all);
}

/// The device that is always full takes the place of the log.
#[test]
fn a_full_disk_stops_the_member_with_a_reason() {
    let place = tempfile::tempdir().expect("folder");
    drop(open(place.path(), 1 << 20).expect("opens"));
    let (log, list) = (place.path().join("log"), List::default());
    let lock = loop {
        match FolderLock::take(place.path()) {
            Ok(lock) => break lock,
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    };
    let mut found = Log::open(place.path()).expect("reads").log;
    found.redirect(std::fs::OpenOptions::new().write(true).open("/dev/full").expect("there"));
    let (waiting, inbox) = sync_channel(4);
    let (role, follow) = watch::channel(Role::Leader { term: 1 });
    let writer = Writer { log: found, machine: Box::new(list.clone()), role, snapshot_after: 1 << 20, _lock: lock };
    let thread = std::thread::spawn(move || writer.run(&inbox));
    let solo = Solo { term: 1, waiting: Some(waiting), role: follow, writer: None };
    let failed = propose(&solo, &[b"x"]).expect_err("full").to_string();
    assert!(failed.contains("free or replace the disk"), "{failed}");
    thread.join().expect("ends");
    assert!(matches!(&*solo.role().borrow(), Role::Stopped { reason } if reason.contains("No space left")));
    assert!(propose(&solo, &[b"y"]).expect_err("stopped").to_string().contains("No space left"));
    assert!(content(&list).is_empty(), "nothing was applied");
    assert!(std::fs::read(&log).expect("read").len() < 100);
}
