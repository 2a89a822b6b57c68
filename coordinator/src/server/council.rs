//! What this coordinator says of the others: who leads, where all are, and orders about them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use obelysk_node::CoordinatorAddress;
use obelysk_node::identity::unix_now;
use obelysk_protocol::wire::{
    AdminDone, Coordinators, MAX_ADDRESSES, MAX_TEXT_BYTES, Message, PeerAdd, PeerAdded, PeerEntry, PeerState, Peers, Refused,
};
use tokio::sync::watch;

use super::{LEAD_PATIENCE, Shared, clip, named};
use crate::blobs::Blobs;
use crate::consensus::Role;
use crate::consensus::raft::member::{ChangeError, Member};
use crate::consensus::raft::{Electorate, RaftConsensus};
use crate::identity::{AdmissionError, Authority};
use crate::ledger::SharedLedger;
use crate::replica::{kept_by, lacking};

/// How often it is looked for newcomers that have caught up.
const PROMOTE_EVERY: Duration = Duration::from_secs(5);

/// How long, and how often, a newcomer is looked at right after it was let in.
const SOON: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Whether a message is an order or question about coordinators.
pub(super) const fn is_about(message: &Message) -> bool {
    let asked = matches!(message, Message::PeersGet(_) | Message::KeptGet(_));
    asked || matches!(message, Message::PeerAdd(_) | Message::PeerRemove(_) | Message::PeerLead(_))
}

/// Whether every coordinator answers it, whoever leads.
pub(super) const fn is_for_all(message: &Message) -> bool {
    matches!(message, Message::PeersGet(_) | Message::KeptGet(_))
}

impl Shared {
    /// Where nodes and clients reach the coordinators.
    pub(super) fn places(&self) -> Vec<String> {
        let all = self.members.as_ref().map(|raft| services(&raft.electorate().borrow())).unwrap_or_default();
        if all.is_empty() { self.addresses.clone() } else { all }
    }

    /// Who leads, as far as is known here.
    pub(super) fn coordinators(&self) -> Coordinators {
        let all = self.places();
        let (leads, leader) = match &*self.role.borrow() {
            Role::Leader { .. } => (true, self.own_place()),
            Role::Follower { leader } => (false, leader.clone().unwrap_or_default()),
            Role::Stopped { .. } => (false, String::new()),
        };
        // A leader may have been removed a moment ago.
        let leader = if all.contains(&leader) { leader } else { String::new() };
        Coordinators { leads, leader, all }
    }

    fn own_place(&self) -> String {
        let alone = || self.addresses.first().cloned().unwrap_or_default();
        self.members.as_ref().map_or_else(alone, |raft| raft.me().service.clone())
    }

    /// Where to go instead, if another leads, or nobody does yet. An election that is under way is waited for.
    pub(super) async fn elsewhere(&self) -> Option<Coordinators> {
        self.members.as_ref()?;
        let mut role = self.role.clone();
        let decided = |role: &Role| !matches!(role, Role::Follower { leader: None });
        let _ = tokio::time::timeout(LEAD_PATIENCE, role.wait_for(decided)).await;
        let known = self.coordinators();
        // Before its brain is there, a leader knows neither members nor jobs as they are now.
        if known.leads && self.lead().await.is_err() {
            return Some(Coordinators { leads: false, leader: String::new(), ..known });
        }
        (!known.leads).then_some(known)
    }

    /// Changes of the coordinators, for whoever stays connected.
    pub(super) fn changes(&self) -> Option<watch::Receiver<Electorate>> {
        let mut changes = self.members.as_ref()?.electorate();
        changes.mark_changed();
        Some(changes)
    }
}

/// Completes at the next change; never where a coordinator is alone, or stops.
pub(super) async fn changed(changes: &mut Option<watch::Receiver<Electorate>>) {
    let Some(changes) = changes else { return std::future::pending().await };
    if changes.changed().await.is_err() {
        std::future::pending().await
    }
}

fn services(electorate: &Electorate) -> Vec<String> {
    electorate.all().map(|member| member.service.clone()).take(MAX_ADDRESSES).collect()
}

/// Carries out an order about coordinators, or answers a question about them.
pub(super) async fn answer(shared: &Arc<Shared>, order: Message) -> Result<Message, AdmissionError> {
    let raft = shared.members.clone().ok_or_else(|| {
        let text = "coordinator beside this one, which runs alone: start it with --peer-listen to have several";
        AdmissionError::NoSuch(text.to_owned())
    })?;
    match order {
        Message::PeersGet(_) => peers(&raft).await,
        Message::KeptGet(which) => kept(shared, &raft, which.id).await,
        Message::PeerAdd(order) => add(shared, raft, order),
        Message::PeerRemove(which) => Ok(told(raft.remove(which.id).await, || {
            tracing::warn!(id = format!("{:016x}", which.id), "a coordinator is removed");
            format!("coordinator {:016x} is out; its folder can be deleted", which.id)
        })),
        Message::PeerLead(which) => Ok(told(raft.transfer(which.id).await, || {
            format!("coordinator {:016x} is to lead; `obelysk coordinator members` shows whether it does", which.id)
        })),
        _ => Err(AdmissionError::NoSuch("order of this kind".to_owned())),
    }
}

/// As long as there is a coordinator: while it leads, it has newcomers that have caught up vote, whoever was asked to let them in.
pub(super) async fn promote(shared: std::sync::Weak<Shared>) {
    loop {
        tokio::time::sleep(PROMOTE_EVERY).await;
        let Some((shared, raft)) = shared.upgrade().and_then(|s| Some((s.clone(), s.members.clone()?))) else { return };
        let leads = matches!(*shared.role.borrow(), Role::Leader { .. });
        let known = (shared.ledger.clone(), shared.blobs.clone());
        drop(shared);
        let learners = if leads { raft.electorate().borrow().learners.clone() } else { Vec::new() };
        for learner in learners {
            vote(&raft, &known, &learner).await;
        }
    }
}

/// Lets a newcomer vote that has the log and all that it names: whoever votes may have to lead.
async fn vote(raft: &RaftConsensus, (ledger, blobs): &(SharedLedger, Blobs), learner: &Member) -> bool {
    let id = format!("{:016x}", learner.id());
    // Known here before it is asked: one that has not heard of them lacks them too.
    let known = if blobs.is_shared() { 0 } else { named(ledger, blobs).await.blobs.len() as u64 };
    match kept_by(raft, learner).await {
        Ok(kept) if kept.lacking > 0 => {
            let (of, mib) = (kept.blobs, kept.lacking_bytes >> 20);
            tracing::info!(id, lacking = kept.lacking, of, mib, "a coordinator fetches what it lacks before it votes");
            return false;
        }
        Ok(kept) if kept.blobs < known => {
            tracing::debug!(id, knows = kept.blobs, known, "a coordinator does not know all blobs yet");
            return false;
        }
        Ok(_) => {}
        Err(error) => {
            tracing::debug!(id, %error, "a coordinator cannot be asked what it has yet");
            return false;
        }
    }
    match raft.promote(learner.id()).await {
        Ok(()) => {
            tracing::info!(id, "a coordinator has joined, and votes");
            true
        }
        // Somebody else let it.
        Err(ChangeError::Known(_)) => true,
        Err(error) => {
            tracing::debug!(id, %error, "a coordinator does not vote yet");
            false
        }
    }
}

/// How much one of them has of what the facts name.
async fn kept(shared: &Shared, raft: &RaftConsensus, id: u64) -> Result<Message, AdmissionError> {
    let member = raft.electorate().borrow().all().find(|member| member.id() == id).cloned();
    let member = member.ok_or_else(|| AdmissionError::NoSuch(format!("coordinator {id:016x}")))?;
    if id == raft.me().id() {
        return Ok(Message::Kept(lacking(&shared.ledger, &shared.blobs).await.0));
    }
    Ok(match kept_by(raft, &member).await {
        Ok(kept) => Message::Kept(kept),
        Err(error) => Message::Refused(Refused { retry: true, reason: clip(error.to_string(), MAX_TEXT_BYTES) }),
    })
}

fn told(outcome: Result<(), ChangeError>, done: impl FnOnce() -> String) -> Message {
    match outcome {
        Ok(()) => Message::AdminDone(AdminDone { text: done() }),
        Err(error) => {
            let retry = matches!(error, ChangeError::Busy | ChangeError::NotLeader { .. } | ChangeError::Behind { .. });
            Message::Refused(Refused { retry, reason: clip(error.to_string(), MAX_TEXT_BYTES) })
        }
    }
}

async fn peers(raft: &RaftConsensus) -> Result<Message, AdmissionError> {
    let stopped = || AdmissionError::Authority("this coordinator takes part no more; see its log".to_owned());
    let view = raft.view().await.ok_or_else(stopped)?;
    let members = view.members.iter().map(|m| PeerState { id: m.id, entry: entry(&m.member), votes: m.votes, live: m.live });
    Ok(Message::Peers(Peers { own: view.own, leader: view.leader, applied: view.applied, members: members.collect() }))
}

fn entry(member: &Member) -> PeerEntry {
    PeerEntry { key: member.key, peer: member.peer.clone(), service: member.service.clone() }
}

/// Certifies the key and takes it in beside the answer: it catches up only when it has the answer.
fn add(shared: &Shared, raft: Arc<RaftConsensus>, order: PeerAdd) -> Result<Message, AdmissionError> {
    let (key, _) = Authority::read_request(&order.csr)?;
    let member = Member { key: key.0, peer: order.peer, service: order.service };
    member.check().map_err(|rule| AdmissionError::Request(rule.to_owned()))?;
    for place in [&member.peer, &member.service] {
        CoordinatorAddress::at(place, shared.admissions.pin()).map_err(|e| AdmissionError::Request(e.to_string()))?;
    }
    if raft.electorate().borrow().voters.iter().any(|voter| voter.key == member.key) {
        // It has a log, or had one: without it, it must not come back.
        let known = ChangeError::Known(member.id());
        return Ok(told(Err(known), String::new));
    }
    let authority = shared.admissions.authority();
    let certificate = authority.certify_coordinator(&order.csr, unix_now())?;
    let members = raft.electorate().borrow().all().filter(|m| m.key != member.key).map(entry).collect();
    tracing::info!(
        id = format!("{:016x}", member.id()),
        peer = member.peer,
        service = member.service,
        "a coordinator is to join"
    );
    let known = (shared.ledger.clone(), shared.blobs.clone());
    tokio::spawn(async move {
        let id = format!("{:016x}", member.id());
        if let Err(error) = raft.learn(member.clone()).await {
            return tracing::warn!(id, %error, "a coordinator has not joined");
        }
        // Soon, if it has little to fetch; otherwise whenever it has.
        let until = Instant::now() + SOON;
        while !vote(&raft, &known, &member).await && Instant::now() < until {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    });
    let authority = authority.certificate().to_vec();
    Ok(Message::PeerAdded(PeerAdded { certificate: certificate.to_vec(), authority, members }))
}
