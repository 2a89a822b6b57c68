//! Answers to administrators who ask how things stand. Reads; the one order is to give a job up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use obelysk_node::engine::WorkKind;
use obelysk_node::identity::{NodeKeyId, unix_now};
use obelysk_protocol::wire::{
    AdminDone, BlobRef, ItemEntry, ItemPhase, JobEntry, JobItems, JobLog, JobState, Jobs, LogEntry, MAX_PAGE, MAX_TEXT_BYTES,
    Message, NodeState, Status, WorkerEntry, Workers,
};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::brain::{Command, Face, Picture};
use super::observer::{Entry, Remembered, Sample};
use super::{Shared, clip};
use crate::consensus::Role;
use crate::core::view::{ItemState, ItemView, JobView, Standing};
use crate::core::{Input, JobId, NodeId};
use crate::identity::AdmissionError;
use crate::ledger::{End, EndedJob};

/// How often metrics are refreshed and the wanted number of nodes is looked at.
const SAMPLE: Duration = Duration::from_secs(1);
/// What a job is told to be that was in progress when the coordinator ended.
const INTERRUPTED: &str = "the coordinator stopped before the job ended; submit it again";

/// Whether a message is a question of this kind.
pub(super) const fn is_question(message: &Message) -> bool {
    matches!(
        message,
        Message::StatusGet(_)
            | Message::WorkersAfter(_)
            | Message::JobsAfter(_)
            | Message::JobItemsGet(_)
            | Message::JobCancel(_)
            | Message::JobLogAfter(_)
    )
}

/// Answers a question.
pub(super) async fn answer(shared: &Arc<Shared>, question: Message) -> Result<Message, AdmissionError> {
    let picture = picture(shared).await?;
    match question {
        Message::StatusGet(_) => Ok(Message::Status(status(shared, &picture))),
        Message::WorkersAfter(after) => {
            let known = picture.known.range(NodeId(after.node.saturating_add(1))..);
            let workers = known.take(MAX_PAGE).map(|(node, face)| worker(shared, &picture, *node, face)).collect();
            Ok(Message::Workers(Workers { workers }))
        }
        Message::JobsAfter(after) => {
            let all = all_jobs(shared, &picture);
            let jobs = all.into_iter().filter(|(job, _)| job.0 > after.job).take(MAX_PAGE).map(|(_, entry)| entry).collect();
            Ok(Message::Jobs(Jobs { jobs }))
        }
        Message::JobItemsGet(get) => {
            let job = picture.view.jobs.iter().find(|j| j.job.0 == get.job);
            Ok(Message::JobItems(JobItems { items: job.map(|job| items(job, get.segment)).unwrap_or_default() }))
        }
        Message::JobCancel(which) => {
            let job = JobId(which.job);
            if !picture.view.jobs.iter().any(|j| j.job == job) {
                return Err(AdmissionError::NoSuch(format!("job {job} in progress")));
            }
            tracing::warn!(%job, "cancelled by an administrator");
            shared.command(Command::Core(Input::Cancel { job })).await.map_err(|()| stopped())?;
            Ok(Message::AdminDone(AdminDone { text: format!("job {job} is cancelled") }))
        }
        Message::JobLogAfter(after) => log(shared, &picture, JobId(after.job), after.number).await,
        _ => Err(AdmissionError::NoSuch("question of this kind".to_owned())),
    }
}

async fn picture(shared: &Shared) -> Result<Picture, AdmissionError> {
    let (answer, seen) = oneshot::channel();
    shared.command(Command::View { answer }).await.map_err(|()| stopped())?;
    seen.await.map_err(|_| stopped())
}

fn stopped() -> AdmissionError {
    AdmissionError::Authority("the coordinator stops; start it again".to_owned())
}

/// Refreshes metrics until the brain is gone. `own_expiry` is the end of the coordinator's certificate.
pub(super) fn sample(shared: &Arc<Shared>, own_expiry: impl Fn() -> u64 + Send + 'static) -> AbortHandle {
    let shared = Arc::downgrade(shared);
    let task = async move {
        let mut tick = tokio::time::interval(SAMPLE);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let Some(shared) = shared.upgrade() else { return };
            let Ok(picture) = picture(&shared).await else {
                // Nor of when it did: whoever adds up over all coordinators would count twice.
                if !leads(&shared) {
                    let (own_expiry_unix_s, traffic) = (own_expiry(), shared.observer.traffic.total());
                    shared.observer.metrics.set(&Sample { own_expiry_unix_s, traffic, ..Sample::default() });
                }
                continue;
            };
            shared.observer.look(&picture.view, &shared.config.scale());
            shared.observer.metrics.set(&take(&shared, &picture, own_expiry()));
        }
    };
    tokio::spawn(task).abort_handle()
}

fn leads(shared: &Shared) -> bool {
    matches!(*shared.role.borrow(), Role::Leader { .. })
}

fn take(shared: &Shared, picture: &Picture, own_expiry_unix_s: u64) -> Sample {
    let (desired, queued_core_us) = shared.observer.desired();
    let mut sample = Sample {
        cores: cores(picture),
        desired,
        queued_core_us,
        store: [shared.store.held(), shared.config.max_store_bytes],
        commands: shared.waiting_commands(),
        traffic: shared.observer.traffic.total(),
        own_expiry_unix_s,
        leads: leads(shared),
        dropped: shared.observer.journal().dropped(),
        ..Sample::default()
    };
    for job in &picture.view.jobs {
        sample.jobs[state_of(job) as usize] += 1;
        for item in &job.items {
            sample.items[usize::from(item.work.kind.code())][phase(item).0 as usize] += 1;
        }
    }
    for face in picture.known.values() {
        sample.nodes[face.state as usize] += 1;
    }
    let connected = picture.known.values().filter(|face| matches!(face.state, NodeState::Here | NodeState::Draining));
    let ends = connected.filter_map(|face| shared.admissions.member(face.key).ok()).map(|member| member.expires_unix_s);
    sample.node_expiry_unix_s = ends.min();
    sample
}

fn cores(picture: &Picture) -> u32 {
    let here = picture.view.nodes.iter().filter(|n| n.standing == Standing::Here && n.node != NodeId::REFEREE);
    here.fold(0, |sum, node| sum.saturating_add(node.cores))
}

fn status(shared: &Shared, picture: &Picture) -> Status {
    let observer = &shared.observer;
    let mut nodes = [0; NodeState::ALL.len()];
    let faces: BTreeMap<NodeKeyId, NodeState> = picture.known.values().map(|face| (face.key, face.state)).collect();
    // All members, not only those met since the start.
    let mut last = obelysk_node::identity::Id([0; 32]);
    loop {
        let page = shared.admissions.members_after(last, MAX_PAGE);
        let Some(end) = page.last() else { break };
        last = end.id;
        for member in &page {
            let met = faces.get(&member.id).copied().unwrap_or(NodeState::Away);
            nodes[if member.evicted.is_some() { NodeState::Evicted } else { met } as usize] += 1;
        }
    }
    let mut jobs = [0; JobState::ALL.len()];
    let mut core_us = [0_u64; WorkKind::ALL.len()];
    for (_, entry) in all_jobs(shared, picture) {
        jobs[usize::from(entry.state)] += 1;
    }
    for (sum, kind) in core_us.iter_mut().zip(WorkKind::ALL) {
        *sum = (observer.metrics.core_seconds.get_or_create(&[("kind", kind.name())]).get() * 1e6) as u64;
    }
    let mut items = [0; ItemPhase::ALL.len()];
    picture.view.jobs.iter().flat_map(|job| &job.items).for_each(|item| items[phase(item).0 as usize] += 1);
    let [accepted, redone, rejected, disputed, failed, lost] =
        super::observer::EVENTS.map(|event| observer.metrics.events_total(event));
    let (desired_nodes, queued_core_us) = observer.desired();
    let traffic = observer.traffic.total();
    Status {
        cluster: shared.admissions.cluster().0,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        unix_s: unix_now(),
        uptime_ms: u64::try_from(observer.uptime().as_millis()).unwrap_or(u64::MAX),
        nodes,
        cores: cores(picture),
        jobs,
        items,
        events: [accepted, redone, rejected, disputed, failed, lost, observer.metrics.quarantines.get()],
        core_us,
        queued_core_us,
        desired_nodes,
        received_bytes: traffic.received,
        sent_bytes: traffic.sent,
        store_bytes: [shared.store.held(), shared.config.max_store_bytes],
    }
}

fn worker(shared: &Shared, picture: &Picture, node: NodeId, face: &Face) -> WorkerEntry {
    let seen = picture.view.nodes.iter().find(|n| n.node == node);
    let running = seen.and_then(|n| n.running);
    let tally = shared.observer.tally(node);
    WorkerEntry {
        node: node.0,
        id: face.key.0,
        name: face.name.clone(),
        state: face.state as u8,
        cores: seen.map_or(0, |n| n.cores),
        accepted: tally.accepted,
        core_us: tally.core_us,
        busy: running.is_some(),
        epoch: running.map_or(0, |r| r.epoch),
        job: running.map_or([0; 32], |r| r.job.0),
        kind: running.map_or(0, |r| r.work.kind.code()),
        segment: running.map_or(0, |r| r.work.segment),
        permille: running.map_or(0, |r| r.permille),
    }
}

/// Jobs in progress and remembered, by id.
fn all_jobs(shared: &Shared, picture: &Picture) -> BTreeMap<JobId, JobEntry> {
    let remembered = shared.observer.jobs();
    let nodes = picture.view.nodes.iter().filter(|n| n.standing == Standing::Here && n.node != NodeId::REFEREE).count();
    let mut all: BTreeMap<JobId, JobEntry> =
        remembered.iter().filter(|(_, r)| r.facts.segments > 0).map(|(job, r)| (*job, past(*job, r))).collect();
    // What others led to its end is known from the facts alone.
    for (id, ended) in shared.ledger.lock().ended_jobs() {
        if remembered.get(&id).is_none_or(|r| r.ended.is_none()) {
            all.insert(id, settled(id, ended));
        }
    }
    for job in &picture.view.jobs {
        let left = shared.observer.time_left_ms(job, nodes);
        let entry = JobEntry {
            job: job.job.0,
            model: job.model,
            segments: job.segments,
            state: state_of(job) as u8,
            submitted_unix_s: remembered.get(&job.job).map_or(0, |r| r.facts.submitted_unix_s),
            ended_unix_s: 0,
            accepted: WorkKind::ALL.map(|kind| job.accepted(kind)),
            core_us: job.core_us,
            left_ms: left.unwrap_or(u64::MAX),
            proof: BlobRef::of(&[]),
            reason: String::new(),
        };
        all.insert(job.job, entry);
    }
    all
}

/// A job that ended, as the log has it.
fn settled(job: JobId, ended: &EndedJob) -> JobEntry {
    let (state, proof, reason, all) = match &ended.end {
        End::Proved { proof, .. } => (JobState::Done, *proof, String::new(), ended.segments),
        End::Failed { reason } => (JobState::Failed, BlobRef::of(&[]), clip(reason.clone(), MAX_TEXT_BYTES), 0),
    };
    JobEntry {
        job: job.0,
        model: ended.model,
        segments: ended.segments,
        state: state as u8,
        submitted_unix_s: ended.opened_unix_s,
        ended_unix_s: ended.ended_unix_s,
        accepted: [all; 4],
        core_us: [0; 4],
        left_ms: 0,
        proof,
        reason,
    }
}

/// A job that is not in progress.
fn past(job: JobId, remembered: &Remembered) -> JobEntry {
    let facts = remembered.facts;
    let (ended_unix_s, done) = remembered.ended.unwrap_or((0, false));
    let reason = if remembered.ended.is_none() { INTERRUPTED.to_owned() } else { remembered.reason.clone() };
    JobEntry {
        job: job.0,
        model: facts.model.0,
        segments: facts.segments,
        state: if done { JobState::Done } else { JobState::Failed } as u8,
        submitted_unix_s: facts.submitted_unix_s,
        ended_unix_s,
        accepted: facts.accepted.map(|done| done.min(facts.segments)),
        core_us: facts.core_us,
        left_ms: 0,
        proof: remembered.proof.unwrap_or(BlobRef::of(&[])),
        reason,
    }
}

const fn state_of(job: &JobView) -> JobState {
    match job {
        JobView { finishing: true, .. } => JobState::Finishing,
        JobView { waiting_since_ms: Some(_), .. } => JobState::Waiting,
        _ => JobState::Running,
    }
}

const fn phase(item: &ItemView) -> (ItemPhase, NodeId, u32) {
    match item.state {
        ItemState::Blocked => (ItemPhase::Blocked, NodeId::REFEREE, 0),
        ItemState::Ready => (ItemPhase::Ready, NodeId::REFEREE, 0),
        ItemState::Leased { node, permille } => (ItemPhase::Leased, node, permille),
        ItemState::Checking { node } => (ItemPhase::Checking, node, 0),
        ItemState::Accepted { node } => (ItemPhase::Accepted, node, 0),
    }
}

/// All kinds of one page of segments.
fn items(job: &JobView, from: u32) -> Vec<ItemEntry> {
    let page = from..from.saturating_add(MAX_PAGE as u32);
    let mut chosen: Vec<&ItemView> = job.items.iter().filter(|item| page.contains(&item.work.segment)).collect();
    chosen.sort_by_key(|item| (item.work.segment, item.work.kind));
    let entry = |item: &ItemView| {
        let (phase, node, permille) = phase(item);
        let (kind, segment) = (item.work.kind.code(), item.work.segment);
        let (disputed, tries) = (item.disputed, item.tries);
        ItemEntry { kind, segment, phase: phase as u8, node: node.0, permille, disputed, tries }
    };
    chosen.into_iter().map(entry).collect()
}

async fn log(shared: &Arc<Shared>, picture: &Picture, job: JobId, after: u64) -> Result<Message, AdmissionError> {
    let running = picture.view.jobs.iter().any(|j| j.job == job);
    let reader = shared.observer.journal().clone();
    let read = tokio::task::spawn_blocking(move || reader.read(job, after, MAX_PAGE));
    let none = || AdmissionError::NoSuch(format!("log of job {job} at this coordinator"));
    let read = match read.await.map_err(|_| stopped())? {
        Some(read) => read,
        // The first line may still be on its way to the disk.
        None if running => Vec::new(),
        None => return Err(none()),
    };
    let ended = !running && read.len() < MAX_PAGE;
    let mut last = after;
    // A file that somebody edited must not make a message that nobody takes.
    let rising = read.iter().filter(|entry| {
        let newer = entry.number > last;
        last = last.max(entry.number);
        newer
    });
    Ok(Message::JobLog(JobLog { events: rising.map(log_entry).collect(), ended }))
}

fn log_entry(entry: &Entry) -> LogEntry {
    LogEntry {
        number: entry.number,
        unix_ms: entry.unix_ms,
        event: entry.event.clone(),
        work: entry.work.clone(),
        epoch: entry.epoch,
        node: entry.node.clone(),
        id: entry.node_id(),
        digest: entry.result(),
        text: entry.text.clone(),
    }
}
