//! Raft's messages, entries and states as bytes: our own archives, for network and disk alike.
//!
//! The types of the raft crate are generated for protobuf, whose decoder has a known weakness against hostile input; it is never asked to
//! read or write one byte. Everything here is converted field by field, and what does not make sense on its own is refused;
//! what does not make sense to a member in its state is refused in `admissible.rs`.

use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot};
use rkyv::rancor::Error as RkyvError;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

use super::log::metadata;
use super::member::{Change, Gone, MAX_GONE, MAX_MEMBERS, Member, Members};
use crate::consensus::MAX_ENTRY_BYTES;

/// Largest state of the machine that can be sent to a member: the documents of a cluster at their bounds take half of it.
pub const MAX_SNAPSHOT_BYTES: usize = 128 << 20;
/// Largest message: a snapshot with what surrounds it.
pub const MAX_MESSAGE_BYTES: usize = MAX_SNAPSHOT_BYTES + (64 << 10);
/// Most entries of one message; the crate fills messages to half a MiB.
pub const MAX_MESSAGE_ENTRIES: usize = 16 << 10;
/// Indices and terms beyond this are no cluster's: one a microsecond for two thousand years.
pub const MAX_COUNT: u64 = 1 << 56;
/// Largest change of the configuration in an entry.
const MAX_CHANGE_BYTES: usize = 4 << 10;
/// Alignment of the buffer an archive is checked in; the largest any field needs is 8.
const ALIGNMENT: usize = 16;
/// What the crate marks a vote with that a leader asked for; such votes are given even while that leader lives.
const TRANSFER: &[u8] = b"CampaignTransfer";

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// Not an archive of this kind.
    #[error("malformed ({0})")]
    Archive(String),
    /// An archive that says something impossible.
    #[error("impossible: {0}")]
    Meaning(&'static str),
}

fn no<T>(cause: &'static str) -> Result<T, FormError> {
    Err(FormError::Meaning(cause))
}

fn rule(holds: bool, broken: &'static str) -> Result<(), FormError> {
    if holds { Ok(()) } else { no(broken) }
}

#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
struct EntryForm {
    kind: u8,
    term: u64,
    index: u64,
    /// What was proposed.
    data: Vec<u8>,
    /// The change of the configuration, for an entry that is one.
    change: Vec<u8>,
}

#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
struct HardForm {
    term: u64,
    vote: u64,
    commit: u64,
}

#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
struct SnapshotForm {
    index: u64,
    term: u64,
    voters: Vec<u64>,
    learners: Vec<u64>,
    data: Vec<u8>,
}

#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
struct MessageForm {
    kind: u8,
    to: u64,
    from: u64,
    term: u64,
    log_term: u64,
    index: u64,
    commit: u64,
    commit_term: u64,
    reject: bool,
    reject_hint: u64,
    transfer: bool,
    entries: Vec<EntryForm>,
    snapshot: Option<SnapshotForm>,
}

#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
struct MemberForm {
    key: [u8; 32],
    peer: String,
    service: String,
}

#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
struct ChangeForm {
    kind: u8,
    id: u64,
    member: Option<MemberForm>,
}

#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
struct StateForm {
    members: Vec<MemberForm>,
    gone: Vec<u64>,
    machine: Vec<u8>,
}

macro_rules! archive {
    ($form:ty, $value:expr) => {
        rkyv::to_bytes::<RkyvError>(&$value).map(|bytes| bytes.to_vec()).map_err(|e| FormError::Archive(e.to_string()))
    };
}

macro_rules! unarchive {
    ($form:ty, $bytes:expr) => {{
        let mut aligned = AlignedVec::<ALIGNMENT>::with_capacity($bytes.len());
        aligned.extend_from_slice($bytes);
        rkyv::from_bytes::<$form, RkyvError>(&aligned).map_err(|e| FormError::Archive(e.to_string()))
    }};
}

/// The kinds of messages that travel, and their codes. All others are a member's talk with itself, or unused.
const KINDS: [(MessageType, u8); 10] = [
    (MessageType::MsgAppend, 3),
    (MessageType::MsgAppendResponse, 4),
    (MessageType::MsgRequestVote, 5),
    (MessageType::MsgRequestVoteResponse, 6),
    (MessageType::MsgSnapshot, 7),
    (MessageType::MsgHeartbeat, 8),
    (MessageType::MsgHeartbeatResponse, 9),
    (MessageType::MsgTimeoutNow, 14),
    (MessageType::MsgRequestPreVote, 17),
    (MessageType::MsgRequestPreVoteResponse, 18),
];

/// A message's bytes.
///
/// # Errors
/// [`FormError`]: a kind that does not travel.
pub fn encode_message(m: &Message) -> Result<Vec<u8>, FormError> {
    let Some((_, kind)) = KINDS.iter().find(|(kind, _)| *kind == m.get_msg_type()) else {
        return no("a kind that stays at home");
    };
    rule(m.request_snapshot == 0, "a request for a snapshot out of turn")?;
    let snapshot = m.has_snapshot().then(|| snapshot_form(m.get_snapshot()));
    let form = MessageForm {
        kind: *kind,
        to: m.to,
        from: m.from,
        term: m.term,
        log_term: m.log_term,
        index: m.index,
        commit: m.commit,
        commit_term: m.commit_term,
        reject: m.reject,
        reject_hint: m.reject_hint,
        transfer: m.context.as_ref() == TRANSFER,
        entries: m.entries.iter().map(entry_form).collect::<Result<_, _>>()?,
        snapshot,
    };
    archive!(MessageForm, form)
}

/// Reads a message. Total on any bytes.
///
/// # Errors
/// [`FormError`].
pub fn decode_message(bytes: &[u8]) -> Result<Message, FormError> {
    rule(bytes.len() <= MAX_MESSAGE_BYTES, "a message beyond every bound")?;
    let form = unarchive!(MessageForm, bytes)?;
    let Some((kind, _)) = KINDS.iter().find(|(_, code)| *code == form.kind) else { return no("an unknown kind of message") };
    rule(form.from != 0 && form.to != 0 && form.from != form.to, "sender or receiver is nobody, or both are one")?;
    rule(form.term > 0 && form.term <= MAX_COUNT, "a term of 0 or beyond every count")?;
    let counts = [form.log_term, form.index, form.commit, form.commit_term, form.reject_hint];
    rule(counts.iter().all(|c| *c <= MAX_COUNT), "an index beyond every count")?;
    rule(form.entries.is_empty() || *kind == MessageType::MsgAppend, "entries where none belong")?;
    rule(
        form.snapshot.is_some() == (*kind == MessageType::MsgSnapshot),
        "a snapshot where none belongs, or none where one does",
    )?;
    rule(!form.transfer || *kind == MessageType::MsgRequestVote, "a transfer that is no vote")?;
    rule(form.entries.len() <= MAX_MESSAGE_ENTRIES, "too many entries")?;
    let mut previous = (form.index, form.log_term);
    for entry in &form.entries {
        let follows = entry.index == previous.0 + 1 && entry.term >= previous.1 && entry.term <= form.term;
        rule(follows, "entries with gaps, falling terms, or terms to come")?;
        previous = (entry.index, entry.term);
    }
    let mut m = Message::default();
    m.set_msg_type(*kind);
    (m.to, m.from, m.term) = (form.to, form.from, form.term);
    (m.log_term, m.index, m.commit, m.commit_term) = (form.log_term, form.index, form.commit, form.commit_term);
    (m.reject, m.reject_hint) = (form.reject, form.reject_hint);
    if form.transfer {
        m.context = TRANSFER.into();
    }
    m.set_entries(form.entries.into_iter().map(entry).collect::<Result<Vec<_>, _>>()?.into());
    if let Some(form) = form.snapshot {
        rule(form.term <= m.term, "a snapshot of a term to come")?;
        m.set_snapshot(snapshot(form)?);
    }
    Ok(m)
}

fn entry_form(e: &Entry) -> Result<EntryForm, FormError> {
    let kind = match e.get_entry_type() {
        EntryType::EntryNormal => 0,
        EntryType::EntryConfChange => 1,
        EntryType::EntryConfChangeV2 => return no("a change of several members at once"),
    };
    Ok(EntryForm { kind, term: e.term, index: e.index, data: e.data.to_vec(), change: e.context.to_vec() })
}

fn entry(form: EntryForm) -> Result<Entry, FormError> {
    let kind = match form.kind {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        _ => return no("an unknown kind of entry"),
    };
    rule(form.term > 0 && form.index > 0 && form.term <= MAX_COUNT && form.index <= MAX_COUNT, "an entry beyond every count")?;
    rule(form.data.len() <= MAX_ENTRY_BYTES, "an entry larger than the log takes")?;
    // Only so the crate's decoder, which the leader runs over the data of changes, sees nothing but nothing.
    rule(kind == EntryType::EntryNormal || form.data.is_empty(), "a change with data")?;
    rule(kind == EntryType::EntryConfChange || form.change.is_empty(), "a change in an entry that is none")?;
    rule(form.change.len() <= MAX_CHANGE_BYTES, "a change larger than a member is")?;
    let mut e = Entry::default();
    e.set_entry_type(kind);
    (e.term, e.index) = (form.term, form.index);
    (e.data, e.context) = (form.data.into(), form.change.into());
    Ok(e)
}

/// An entry's bytes.
///
/// # Errors
/// [`FormError`]: a kind that is not used.
pub fn encode_entry(e: &Entry) -> Result<Vec<u8>, FormError> {
    archive!(EntryForm, entry_form(e)?)
}

/// Reads an entry. Total on any bytes.
///
/// # Errors
/// [`FormError`].
pub fn decode_entry(bytes: &[u8]) -> Result<Entry, FormError> {
    entry(unarchive!(EntryForm, bytes)?)
}

/// A hard state's bytes.
///
/// # Errors
/// [`FormError`].
pub fn encode_hard(h: &HardState) -> Result<Vec<u8>, FormError> {
    archive!(HardForm, HardForm { term: h.term, vote: h.vote, commit: h.commit })
}

/// Reads a hard state. Total on any bytes.
///
/// # Errors
/// [`FormError`].
pub fn decode_hard(bytes: &[u8]) -> Result<HardState, FormError> {
    let form = unarchive!(HardForm, bytes)?;
    rule(form.term <= MAX_COUNT && form.commit <= MAX_COUNT, "a term or index beyond every count")?;
    let mut hard = HardState::default();
    (hard.term, hard.vote, hard.commit) = (form.term, form.vote, form.commit);
    Ok(hard)
}

fn snapshot_form(s: &Snapshot) -> SnapshotForm {
    let (meta, data) = (s.get_metadata(), s.data.to_vec());
    let conf = meta.get_conf_state();
    let sorted = |ids: &[u64]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    SnapshotForm { index: meta.index, term: meta.term, voters: sorted(&conf.voters), learners: sorted(&conf.learners), data }
}

fn snapshot(form: SnapshotForm) -> Result<Snapshot, FormError> {
    rule(form.index > 0 && form.index <= MAX_COUNT, "a snapshot beyond every count, or of nothing")?;
    rule(form.term > 0 && form.term <= MAX_COUNT, "a snapshot of no term")?;
    let rising = |ids: &[u64]| !ids.contains(&0) && ids.windows(2).all(|pair| matches!(pair, [a, b] if a < b));
    rule(
        !form.voters.is_empty() && rising(&form.voters) && rising(&form.learners),
        "voters or learners that are none, or twice",
    )?;
    rule(form.voters.len() + form.learners.len() <= MAX_MEMBERS, "more members than there may be")?;
    rule(!form.learners.iter().any(|id| form.voters.contains(id)), "a member that votes and learns")?;
    let (members, ..) = decode_state(&form.data)?;
    let named = form.voters.iter().chain(&form.learners).all(|id| members.contains_key(id));
    rule(named && members.len() == form.voters.len() + form.learners.len(), "members other than those that vote or learn")?;
    let mut conf = ConfState::default();
    (conf.voters, conf.learners) = (form.voters, form.learners);
    let mut s = Snapshot::default();
    s.set_metadata(metadata(form.index, form.term, conf));
    s.data = form.data.into();
    Ok(s)
}

/// A snapshot's bytes.
///
/// # Errors
/// [`FormError`].
pub fn encode_snapshot(s: &Snapshot) -> Result<Vec<u8>, FormError> {
    archive!(SnapshotForm, snapshot_form(s))
}

/// Reads a snapshot. Total on any bytes.
///
/// # Errors
/// [`FormError`].
pub fn decode_snapshot(bytes: &[u8]) -> Result<Snapshot, FormError> {
    rule(bytes.len() <= MAX_MESSAGE_BYTES, "a snapshot beyond every bound")?;
    snapshot(unarchive!(SnapshotForm, bytes)?)
}

fn member_form(m: &Member) -> MemberForm {
    MemberForm { key: m.key, peer: m.peer.clone(), service: m.service.clone() }
}

fn member(form: MemberForm) -> Result<Member, FormError> {
    let m = Member { key: form.key, peer: form.peer, service: form.service };
    m.check().map_err(FormError::Meaning)?;
    Ok(m)
}

/// A change's bytes.
///
/// # Errors
/// [`FormError`].
pub fn encode_change(change: &Change) -> Result<Vec<u8>, FormError> {
    let form = match change {
        Change::Learn(m) => ChangeForm { kind: 0, id: m.id(), member: Some(member_form(m)) },
        Change::Promote(id) => ChangeForm { kind: 1, id: *id, member: None },
        Change::Remove(id) => ChangeForm { kind: 2, id: *id, member: None },
    };
    archive!(ChangeForm, form)
}

/// Reads a change. Total on any bytes.
///
/// # Errors
/// [`FormError`].
pub fn decode_change(bytes: &[u8]) -> Result<Change, FormError> {
    let form = unarchive!(ChangeForm, bytes)?;
    rule(form.id != 0, "a change of nobody")?;
    match (form.kind, form.member) {
        (0, Some(form)) => Ok(Change::Learn(member(form)?)),
        (1, None) => Ok(Change::Promote(form.id)),
        (2, None) => Ok(Change::Remove(form.id)),
        _ => no("an unknown change"),
    }
}

/// What a snapshot holds: members, those removed, and the machine.
///
/// # Errors
/// [`FormError`]: beyond [`MAX_SNAPSHOT_BYTES`].
pub fn encode_state(members: &Members, gone: &Gone, machine: Vec<u8>) -> Result<Vec<u8>, FormError> {
    rule(machine.len() + (32 << 10) <= MAX_SNAPSHOT_BYTES, "a state larger than a snapshot may be")?;
    let members = members.values().map(member_form).collect();
    archive!(StateForm, StateForm { members, gone: gone.iter().copied().collect(), machine })
}

/// Reads what a snapshot holds. Total on any bytes.
///
/// # Errors
/// [`FormError`].
pub fn decode_state(bytes: &[u8]) -> Result<(Members, Gone, Vec<u8>), FormError> {
    rule(bytes.len() <= MAX_SNAPSHOT_BYTES, "a state larger than a snapshot may be")?;
    let form = unarchive!(StateForm, bytes)?;
    rule(form.members.len() <= MAX_MEMBERS, "more members than there may be")?;
    let count = form.members.len();
    let members: Members =
        form.members.into_iter().map(|form| member(form).map(|m| (m.id(), m))).collect::<Result<_, FormError>>()?;
    rule(members.len() == count, "a member twice")?;
    let gone: Gone = form.gone.iter().copied().collect();
    let apart = gone.len() == form.gone.len() && !members.keys().any(|id| gone.contains(id));
    rule(apart && gone.len() <= MAX_GONE, "members removed twice, or still there, or too many")?;
    Ok((members, gone, form.machine))
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
