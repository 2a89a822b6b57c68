//! Rules a well-formed message must also keep: bounded texts and lists, known codes, no duplicates. Run on both sides.

use super::{
    Assign, BlobRef, CHUNK_BYTES, Coordinators, Enrol, Enrolled, Hello, Holding, ItemEntry, ItemPhase, JobEntry, JobLog,
    JobState, KeptGet, LogEntry, MAX_ADDRESS_BYTES, MAX_ADDRESSES, MAX_CERTIFICATE_BYTES, MAX_CHUNKS, MAX_CORES, MAX_HELD_EPOCHS,
    MAX_INPUTS, MAX_ITEMS, MAX_MODELS, MAX_NAME_BYTES, MAX_PAGE, MAX_PEERS, MAX_PHASES, MAX_PRIORITY, MAX_RELEASE_BYTES,
    MAX_TEXT_BYTES, Message, NodeEntry, NodeHello, NodeState, PERMILLE, PeerEntry, PeerHello, PeerLead, PeerRemove,
    SIGNATURE_BYTES, Trial, WireError, WorkKind, WorkerEntry,
};

type Rule = Result<(), &'static str>;

impl Message {
    /// Checks every rule about the meaning of this message.
    ///
    /// # Errors
    /// [`WireError::Meaning`] naming the first rule broken.
    pub fn validate(&self) -> Result<(), WireError> {
        let outcome = match self {
            Self::Hello(m) => hello(m),
            Self::Welcome(m) => rule(m.lease_ms > 0, "a lease of no time"),
            Self::Refused(m) => text(&m.reason),
            Self::Assign(m) => assign(m),
            Self::Progress(m) => rule(m.permille <= PERMILLE, "progress above 1000 permille"),
            Self::Failed(m) => text(&m.reason),
            Self::Drain(m) => text(&m.reason),
            Self::Goodbye(m) => text(&m.reason),
            Self::Holding(m) => holding(m),
            Self::ClientHello(m) => name(&m.name),
            Self::JobAccepted(m) => rule(m.segments > 0, "a job without segments"),
            Self::Event(m) => {
                text(&m.phase).and(text(&m.text)).and(rule(m.done <= m.total, "more work items done than there are"))
            }
            Self::JobDone(m) => rule(m.phases.len() <= MAX_PHASES, "too many phases")
                .and_then(|()| m.phases.iter().try_for_each(|phase| text(&phase.name))),
            Self::JobFailed(m) => text(&m.reason),
            Self::Enrol(m) => enrol(m),
            Self::Enrolled(m) => enrolled(m),
            Self::Renew(m) => der(&m.csr),
            Self::Probed(m) => name(&m.release),
            Self::TokenNew(m) => rule(m.uses > 0, "a token without uses").and(rule(m.ttl_s > 0, "a token of no time")),
            Self::TokenMade(m) => addresses(&m.addresses),
            Self::Tokens(m) => rule(m.tokens.len() <= MAX_PAGE, "too many tokens on a page")
                .and_then(|()| m.tokens.iter().try_for_each(|t| rule(t.uses_left <= t.uses, "more uses left than there were"))),
            Self::Nodes(m) => {
                rule(m.nodes.len() <= MAX_PAGE, "too many nodes on a page").and_then(|()| m.nodes.iter().try_for_each(node_entry))
            }
            Self::NodeEvict(m) => text(&m.reason),
            Self::AdminDone(m) => text(&m.text),
            Self::NodeHello(m) => node_hello(m),
            Self::Trial(m) => trial(m),
            Self::TrialFailed(m) => text(&m.reason),
            Self::GiveBack(m) => text(&m.reason),
            Self::SubmitOnce(m) => rule(m.priority <= MAX_PRIORITY, "a priority above 9"),
            Self::BlobFetch(m) => in_chunks(m.blob, m.from),
            Self::BlobPart(m) => in_chunks(m.blob, m.from),
            Self::BlobHave(m) => in_chunks(m.blob, m.from),
            Self::Models(m) => rule(m.models.len() <= MAX_PAGE, "too many models on a page"),
            Self::BlobOffer(_) | Self::ModelPublish(_) | Self::ModelWithdraw(_) | Self::ModelsAfter(_) => Ok(()),
            Self::Status(m) => name(&m.release),
            Self::Workers(m) => rule(m.workers.len() <= MAX_PAGE, "too many nodes on a page")
                .and_then(|()| m.workers.iter().try_for_each(worker_entry)),
            Self::Jobs(m) => {
                rule(m.jobs.len() <= MAX_PAGE, "too many jobs on a page").and_then(|()| m.jobs.iter().try_for_each(job_entry))
            }
            Self::JobItems(m) => {
                rule(m.items.len() <= MAX_ITEMS, "too many items").and_then(|()| m.items.iter().try_for_each(item_entry))
            }
            Self::JobLog(m) => job_log(m),
            Self::PeerHello(m) => peer_hello(m),
            Self::PeerMessage(m) => rule(!m.bytes.is_empty(), "a message of nothing"),
            Self::PeerBulk(m) => rule(m.blob.length > 0, "a message of nothing"),
            Self::Coordinators(m) => coordinators(m),
            Self::Peers(m) => rule(m.members.len() <= MAX_PEERS, "too many coordinators")
                .and_then(|()| m.members.iter().try_for_each(|member| places(&member.entry))),
            Self::PeerAdd(m) => der(&m.csr).and(addresses(&[m.peer.clone(), m.service.clone()])),
            Self::PeerAdded(m) => der(&m.certificate)
                .and(der(&m.authority))
                .and(rule(m.members.len() <= MAX_PEERS, "too many coordinators"))
                .and_then(|()| m.members.iter().try_for_each(places)),
            Self::PeerRemove(PeerRemove { id }) | Self::PeerLead(PeerLead { id }) | Self::KeptGet(KeptGet { id }) => {
                rule(*id != 0, "a coordinator without an id")
            }
            Self::Kept(m) => rule(m.lacking <= m.blobs && m.lacking_bytes <= m.bytes, "more is lacking than there is"),
            Self::Done(_)
            | Self::ResultAck(_)
            | Self::Cancel(_)
            | Self::BlobGet(_)
            | Self::BlobPut(_)
            | Self::BlobSent(_)
            | Self::BlobStored(_)
            | Self::Resume(_)
            | Self::Submit(_)
            | Self::Probe(_)
            | Self::TokensAfter(_)
            | Self::TokenRevoke(_)
            | Self::NodesAfter(_)
            | Self::NodeDrain(_)
            | Self::TrialDone(_)
            | Self::StatusGet(_)
            | Self::WorkersAfter(_)
            | Self::JobsAfter(_)
            | Self::JobItemsGet(_)
            | Self::JobCancel(_)
            | Self::JobLogAfter(_)
            | Self::CoordinatorsGet(_)
            | Self::PeersGet(_) => Ok(()),
        };
        outcome.map_err(|cause| WireError::Meaning { message: self.id(), cause })
    }
}

const fn rule(holds: bool, broken: &'static str) -> Rule {
    if holds { Ok(()) } else { Err(broken) }
}

/// Transfers go on at the end of a chunk, or are over.
fn in_chunks(blob: BlobRef, from: u64) -> Rule {
    rule(blob.chunks() <= MAX_CHUNKS, "a blob of more than 4 TiB")?;
    rule(
        from == blob.length || (from < blob.length && from.is_multiple_of(CHUNK_BYTES)),
        "a place inside a chunk or after the end",
    )
}

fn text(value: &str) -> Rule {
    rule(value.len() <= MAX_TEXT_BYTES, "a text longer than 4096 bytes")
}

/// Names reach terminals and logs: no control characters.
fn name(value: &str) -> Rule {
    rule(!value.is_empty() && value.len() <= MAX_NAME_BYTES, "a name of no or more than 63 bytes")
        .and(rule(!value.chars().any(char::is_control), "a control character in a name"))
}

fn strictly_rising<T: Ord>(values: &[T]) -> bool {
    values.windows(2).all(|pair| matches!(pair, [a, b] if a < b))
}

fn hello(m: &Hello) -> Rule {
    name(&m.name)?;
    rule(m.cores > 0 && m.cores <= MAX_CORES, "a node without cores, or with more than 4096")?;
    rule(m.models.len() <= MAX_MODELS, "too many models")?;
    rule(strictly_rising(&m.models), "models not sorted or repeated")?;
    rule(m.held.len() <= MAX_HELD_EPOCHS, "too many held assignments")?;
    rule(strictly_rising(&m.held), "held assignments not sorted or repeated")
}

fn node_hello(m: &NodeHello) -> Rule {
    name(&m.name)?;
    rule(m.cores > 0 && m.cores <= MAX_CORES, "a node without cores, or with more than 4096")?;
    rule(m.free_bytes <= m.memory_bytes, "more free memory than there is")?;
    let plain = !m.release.is_empty() && m.release.len() <= MAX_RELEASE_BYTES && m.release.bytes().all(|b| b.is_ascii_graphic());
    rule(plain, "a release that is none")?;
    rule(m.models.len() <= MAX_MODELS, "too many models")?;
    rule(strictly_rising(&m.models), "models not sorted or repeated")?;
    rule(m.held.len() <= MAX_HELD_EPOCHS, "too many held assignments")?;
    rule(strictly_rising(&m.held), "held assignments not sorted or repeated")
}

fn trial(m: &Trial) -> Rule {
    rule(WorkKind::from_code(m.kind).is_some(), "an unknown kind of work")?;
    rule(m.inputs.len() <= MAX_INPUTS, "too many inputs")
}

fn assign(m: &Assign) -> Rule {
    rule(WorkKind::from_code(m.kind).is_some(), "an unknown kind of work")?;
    rule(m.epoch > 0, "epoch 0, which no lease has")?;
    rule(m.inputs.len() <= MAX_INPUTS, "too many inputs")
}

fn holding(m: &Holding) -> Rule {
    rule(WorkKind::from_code(m.kind).is_some(), "an unknown kind of work")?;
    rule(m.epoch > 0, "epoch 0, which no lease has")?;
    rule(m.inputs.len() <= MAX_INPUTS, "too many inputs")
}

fn der(bytes: &[u8]) -> Rule {
    rule(!bytes.is_empty() && bytes.len() <= MAX_CERTIFICATE_BYTES, "a certificate or request of no or more than 3072 bytes")
}

/// Addresses reach terminals and logs, as names do.
fn addresses(list: &[String]) -> Rule {
    rule(list.len() <= MAX_ADDRESSES, "too many addresses")?;
    list.iter().try_for_each(|a| {
        let plain = !a.is_empty() && a.len() <= MAX_ADDRESS_BYTES && a.bytes().all(|b| b.is_ascii_graphic());
        rule(plain, "an address that is none")
    })
}

fn enrol(m: &Enrol) -> Rule {
    name(&m.name)?;
    der(&m.csr)?;
    rule(m.signature.len() == SIGNATURE_BYTES, "a signature of another length than 64 bytes")
}

fn enrolled(m: &Enrolled) -> Rule {
    der(&m.certificate)?;
    der(&m.authority)?;
    addresses(&m.addresses)?;
    rule(m.life_s > 0, "a certificate of no time")
}

fn node_entry(m: &NodeEntry) -> Rule {
    name(&m.name)?;
    text(&m.reason)?;
    rule(NodeState::from_code(m.state).is_some(), "an unknown state of a node")
}

fn worker_entry(m: &WorkerEntry) -> Rule {
    name(&m.name)?;
    rule(m.node > 0, "a node without a number")?;
    rule(NodeState::from_code(m.state).is_some(), "an unknown state of a node")?;
    rule(WorkKind::from_code(m.kind).is_some(), "an unknown kind of work")?;
    rule(m.permille <= PERMILLE, "progress above 1000 permille")
}

fn job_entry(m: &JobEntry) -> Rule {
    text(&m.reason)?;
    rule(JobState::from_code(m.state).is_some(), "an unknown state of a job")?;
    rule(m.segments > 0, "a job without segments")?;
    rule(m.accepted.iter().all(|done| *done <= m.segments), "more work items done than there are")
}

fn item_entry(m: &ItemEntry) -> Rule {
    rule(WorkKind::from_code(m.kind).is_some(), "an unknown kind of work")?;
    rule(ItemPhase::from_code(m.phase).is_some(), "an unknown state of an item")?;
    rule(m.permille <= PERMILLE, "progress above 1000 permille")
}

fn job_log(m: &JobLog) -> Rule {
    rule(m.events.len() <= MAX_PAGE, "too many events")?;
    rule(m.events.windows(2).all(|pair| matches!(pair, [a, b] if a.number < b.number)), "events out of order")?;
    m.events.iter().try_for_each(log_entry)
}

/// Everything but the text is a word or two and reaches terminals as it is.
fn log_entry(m: &LogEntry) -> Rule {
    name(&m.event)?;
    text(&m.text)?;
    rule(m.number > 0, "an event without a number")?;
    let plain = |t: &str| t.len() <= 2 * MAX_NAME_BYTES && !t.chars().any(char::is_control);
    rule(plain(&m.work) && plain(&m.node), "a name of more than 126 bytes, or with a control character")
}

fn peer_hello(m: &PeerHello) -> Rule {
    rule(m.from != 0 && m.to != 0 && m.from != m.to, "a greeting from nobody, to nobody, or to oneself")?;
    rule(m.members.len() <= MAX_PEERS, "too many coordinators")?;
    m.members.iter().try_for_each(places)
}

fn places(entry: &PeerEntry) -> Rule {
    addresses(&[entry.peer.clone(), entry.service.clone()])
}

fn coordinators(m: &Coordinators) -> Rule {
    addresses(&m.all)?;
    rule(m.leader.is_empty() || m.all.contains(&m.leader), "a leader that is none of the coordinators")
}
