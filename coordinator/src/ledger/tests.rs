//! Golden bytes of every entry, hostile bytes, snapshots, and what the facts do with entries that make no sense.

use obelysk_node::engine::WorkKind;
use obelysk_node::identity::Id;
use obelysk_protocol::wire::MAX_TEXT_BYTES;

use super::*;
use crate::core::{Needs, NodeId};

const A: JobId = JobId([0xaa; 32]);
const B: JobId = JobId([0xbb; 32]);

fn blob(n: u8) -> BlobRef {
    BlobRef { digest: [n; 32], length: 0x0100 + u64::from(n) }
}

fn opened(job: JobId, number: u64) -> Entry {
    Entry::JobOpened { job, number, model: [7; 32], spec: blob(1), segments: 2, unix_s: 1_800_000_000 }
}

fn accepted(job: JobId, work: Work, node: u8) -> Entry {
    let needs = Needs { inputs: vec![blob(2), blob(3)], against: Some(blob(4)), extra: blob(5) };
    Entry::Accepted { job, work, piece: Piece { node: Id([node; 32]), needs, output: blob(6), core_us: 7, peak_bytes: 8 } }
}

/// One of each, every field with a value of its own.
fn samples() -> Vec<(&'static str, Entry)> {
    let work = Work::new(WorkKind::Prove, 1);
    let took = Took { phases: vec![(WorkKind::Forward, 9, 10)], peak_bytes: 11, nodes: vec![Id([12; 32]), Id([13; 32])] };
    let reason = || "cause; remedy".to_owned();
    let learned = Learned { costs: vec![(work, 19, 20)], quartiles: vec![(WorkKind::Open, 21)] };
    let bytes = Sealed(Zeroizing::new(b"document".to_vec()));
    vec![
        ("JobOpened", opened(A, 3)),
        ("Accepted", accepted(A, work, 0xcc)),
        ("Retracted", Entry::Retracted { job: A, work }),
        ("Challenged", Entry::Challenged { job: A, commits: vec![blob(2), blob(3)], extra: blob(5) }),
        ("Published", Entry::Published { job: A, proof: blob(14), took, unix_s: 1_800_000_001 }),
        ("Failed", Entry::Failed { job: A, reason: reason(), unix_s: 1_800_000_002 }),
        ("Quarantined", Entry::Quarantined { node: Id([0xcc; 32]), reason: reason() }),
        ("Forgotten", Entry::Forgotten { job: A }),
        ("Sized", Entry::Sized { job: A, priority: 7, peak_bytes: vec![15, 16] }),
        ("Measured", Entry::Measured { node: Id([0xdd; 32]), trial_us: 17, memory_bytes: 18 }),
        ("Learned", Entry::Learned { model: [7; 32], learned }),
        ("Document", Entry::Document { which: Document::Registry, bytes }),
    ]
}

fn golden_lines() -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    samples().iter().map(|(name, entry)| format!("{name} {}\n", hex(&entry.encode()))).collect()
}

fn ledger(entries: &[Entry]) -> Ledger {
    let mut ledger = Ledger::default();
    (1..).zip(entries).for_each(|(index, entry)| ledger.apply(index, &entry.encode()));
    ledger
}

/// A difference here makes logs on disks unreadable: it needs a new kind, and the old one read for ever.
#[test]
fn entries_have_their_golden_bytes() {
    assert_eq!(golden_lines(), include_str!("golden.hex"));
}

#[test]
#[ignore = "writes golden.hex; run it only for a deliberate addition"]
fn write_golden() {
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/ledger/golden.hex"), golden_lines()).expect("writes");
}

#[test]
fn entries_read_what_they_wrote_and_nothing_else() {
    for (name, entry) in samples() {
        let bytes = entry.encode();
        assert_eq!(Entry::decode(&bytes), Some(entry), "{name}");
        for cut in 0..bytes.len() {
            assert_eq!(Entry::decode(&bytes[..cut]), None, "{name} cut at {cut}");
        }
        assert_eq!(Entry::decode(&[&bytes[..], &[0]].concat()), None, "{name} and more");
        // Damage gives another entry or none; what it gives encodes to those very bytes.
        for at in 0..bytes.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bent = bytes.clone();
                bent[at] ^= flip;
                let read = Entry::decode(&bent);
                assert!(read.is_none_or(|read| read.encode() == bent), "{name} bent at {at}");
            }
        }
    }
}

#[test]
fn announced_lengths_allocate_nothing() {
    // A challenge, the number of its commits, and nothing behind.
    let bytes = [&[1, 4][..], &[0xaa; 32], &u32::MAX.to_le_bytes()].concat();
    assert_eq!(Entry::decode(&bytes), None);
    let long = Entry::Failed { job: A, reason: "x".repeat(MAX_TEXT_BYTES + 1), unix_s: 0 };
    assert_eq!(Entry::decode(&long.encode()), None);
}

#[test]
fn a_snapshot_is_the_state_and_depends_on_nothing_else() {
    let [first, second] = [Work::new(WorkKind::Forward, 0), Work::new(WorkKind::Commit, 1)];
    let all: Vec<Entry> =
        samples().into_iter().map(|(_, entry)| entry).filter(|e| !matches!(e, Entry::Forgotten { .. })).collect();
    let more = [opened(B, 4), accepted(B, second, 1), accepted(B, first, 2)];
    let one = ledger(&[&all[..], &more].concat());
    let other = ledger(&[&more[..1], &[more[2].clone(), more[1].clone()], &all].concat());
    assert_eq!((&one, one.snapshot()), (&other, other.snapshot()));
    assert_eq!((one.ended_jobs().count(), one.open_jobs().count(), one.quarantined().count()), (1, 1, 1));
    let mut again = ledger(&[opened(JobId([1; 32]), 1)]);
    again.restore(&one.snapshot()).expect("whole");
    assert_eq!(again, one);
    assert_eq!(again.next_number(), 5);
    for cut in 0..one.snapshot().len() {
        let mut torn = Ledger::default();
        // Between two entries a cut is another, smaller state: only the log's checksum can tell.
        if torn.restore(&one.snapshot()[..cut]).is_err() {
            assert_eq!(torn, Ledger::default());
        }
    }
}

#[test]
fn what_makes_no_sense_any_more_is_ignored() {
    let work = Work::new(WorkKind::Forward, 0);
    let base = ledger(&[opened(A, 1), accepted(A, work, 1)]);
    let ignored = [
        opened(A, 9),
        accepted(A, work, 2),
        accepted(A, Work::new(WorkKind::Forward, 2), 1),
        accepted(B, work, 1),
        Entry::Retracted { job: B, work },
        Entry::Challenged { job: A, commits: vec![blob(1)], extra: blob(2) },
        Entry::Published { job: B, proof: blob(1), took: Took::default(), unix_s: 0 },
        Entry::Forgotten { job: A },
    ];
    for entry in ignored {
        let mut next = base.clone();
        next.apply(9, &entry.encode());
        assert_eq!(next, base, "{entry:?}");
    }
    let mut next = base.clone();
    next.apply(9, b"no entry");
    assert_eq!(next, base);
    // Once taken back, another may come.
    let redone = ledger(&[opened(A, 1), accepted(A, work, 1), Entry::Retracted { job: A, work }, accepted(A, work, 2)]);
    assert_eq!(redone.open_jobs().next().expect("open").1.accepted[&work].node, Id([2; 32]));
}

#[test]
fn bounds_displace_the_oldest() {
    let id = |n: u64| JobId(*blake3::hash(&n.to_le_bytes()).as_bytes());
    let mut all = Vec::new();
    for n in 1..=MAX_ENDED as u64 + 1 {
        all.extend([opened(id(n), n), Entry::Failed { job: id(n), reason: String::new(), unix_s: n }]);
    }
    let ledger_ = ledger(&all);
    assert_eq!(ledger_.ended_jobs().count(), MAX_ENDED);
    assert!(ledger_.ended(id(1)).is_none() && ledger_.ended(id(2)).is_some());
    let open: Vec<Entry> = (1..=MAX_JOBS as u64 + 1).map(|n| opened(id(n), n)).collect();
    assert_eq!(ledger(&open).open_jobs().count(), MAX_JOBS);
    let key = |n: usize| Id(*blake3::hash(&n.to_le_bytes()).as_bytes());
    let out = |n| Entry::Quarantined { node: key(n), reason: String::new() };
    let out: Vec<Entry> = (0..=MAX_QUARANTINED).map(out).collect();
    let first = ledger(&out).quarantined().next().expect("some").0;
    assert_eq!(first, key(1));
    let speed = |n| Entry::Measured { node: key(n), trial_us: 1, memory_bytes: 2 };
    let speeds: Vec<Entry> = (0..=MAX_MACHINES).map(speed).collect();
    assert_eq!(ledger(&speeds).machines().next(), Some((key(1), 1, 2)));
    // Who is heard of again is not the oldest any more.
    let mut again: Vec<Entry> = (0..MAX_MACHINES).map(speed).collect();
    again.extend([speed(0), speed(MAX_MACHINES)]);
    assert_eq!(ledger(&again).machines().next(), Some((key(2), 1, 2)));
    let learned = |n| Entry::Learned { model: key(n).0, learned: Learned::default() };
    let models: Vec<Entry> = (0..=MAX_LEARNED).map(learned).collect();
    assert_eq!(ledger(&models).learned().next().map(|(model, _)| model), Some(key(1).0));
}

#[test]
fn a_roster_numbers_authors_and_the_quarantined() {
    let work = Work::new(WorkKind::Forward, 0);
    let facts = ledger(&[opened(A, 1), accepted(A, work, 1), Entry::Quarantined { node: Id([2; 32]), reason: String::new() }]);
    let mut roster = Roster::of(&facts);
    assert_eq!((roster.number(Id([1; 32])), roster.number(Id([2; 32]))), (Some(NodeId(1)), Some(NodeId(2))));
    assert_eq!((roster.meet(Id([3; 32])), roster.meet(Id([1; 32]))), (Some(NodeId(3)), Some(NodeId(1))));
    assert_eq!(
        (roster.key(NodeId(3)), roster.key(NodeId(4)), roster.key(NodeId::REFEREE)),
        (Some(Id([3; 32])), None, Some(Id([0; 32])))
    );
}
