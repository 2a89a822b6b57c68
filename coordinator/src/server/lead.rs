//! As long as this member leads there is a brain, restored from the facts; when it leads no more the brain is dropped as a whole, and
//! everything it knew beyond the facts with it. Nothing of an earlier brain reaches a later one: each has a queue of its own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use obelysk_node::engine::{Checker, Engine};
use tokio::sync::{Semaphore, mpsc, watch};

use super::brain::{Brain, Command, Ended, MAX_COMMANDS};
use super::observer::Observer;
use super::store::Store;
use super::{CoordinatorConfig, Facts};
use crate::consensus::Role;
use crate::core::{MAX_TERM, Policy};
use crate::identity::{AdmissionError, Admissions};
use crate::replica::hand_over;

/// Pause between two attempts to reach the store of blobs.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// Who cannot reach it for this long gives way to another coordinator, if there is one: longer than a server's restart of its own.
const STORE_PATIENCE: Duration = Duration::from_secs(10);

/// Whether commands are taken here, and otherwise why not.
#[derive(Debug, Clone)]
pub(super) enum Gate {
    Open(mpsc::Sender<Command>),
    Closed(String),
}

/// Everything a brain is made from.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) policy: Policy,
    pub(super) store: Store,
    pub(super) checker: Arc<dyn Checker>,
    pub(super) referee: Option<Arc<dyn Engine>>,
    pub(super) permits: Arc<Semaphore>,
    pub(super) facts: Facts,
    pub(super) admissions: Arc<Admissions>,
    pub(super) count: Arc<watch::Sender<usize>>,
    pub(super) observer: Arc<Observer>,
}

impl Parts {
    pub(super) fn new(
        config: &CoordinatorConfig,
        store: Store,
        (checker, referee): (Arc<dyn Checker>, Option<Arc<dyn Engine>>),
        (facts, admissions): (Facts, Arc<Admissions>),
        count: watch::Sender<usize>,
        observer: Arc<Observer>,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(config.check_threads()));
        Self { policy: config.policy(), store, checker, referee, permits, facts, admissions, count: Arc::new(count), observer }
    }
}

/// Leads whenever the consensus says so, until told to stop.
pub(super) async fn run(parts: Parts, gate: watch::Sender<Gate>, mut stop: watch::Receiver<bool>) {
    let mut role = parts.facts.consensus.role();
    loop {
        let now = role.borrow_and_update().clone();
        let closed = match now.clone() {
            Role::Leader { term } if term <= MAX_TERM => {
                tracing::info!(term, "leading");
                let ended = lead(&parts, term, &gate, (&mut role, &mut stop)).await;
                // What this brain's jobs needed nobody needs here from now on.
                parts.store.begin_term();
                match ended {
                    Ended::Stopped => break,
                    Ended::Lost(reason) => {
                        // Epochs of a term are given out once: whoever leads next does so in another one.
                        let consensus = parts.facts.consensus.clone();
                        let _ = tokio::task::spawn_blocking(move || consensus.step_down(term)).await;
                        reason
                    }
                }
            }
            Role::Leader { term } => format!("term {term} is beyond what leases can carry; begin a new cluster"),
            Role::Follower { leader } => {
                let place = leader.unwrap_or_else(|| "another one, not known yet".to_owned());
                format!("this coordinator does not lead; {place} does")
            }
            Role::Stopped { reason } => {
                tracing::error!(reason, "this coordinator takes no part any more");
                reason
            }
        };
        gate.send_replace(Gate::Closed(closed));
        // What changed while this led was seen there.
        if *role.borrow() != now {
            continue;
        }
        tokio::select! {
            changed = role.changed() => if changed.is_err() { break },
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    gate.send_replace(Gate::Closed("the coordinator stops".to_owned()));
}

async fn lead(
    parts: &Parts,
    term: u64,
    gate: &watch::Sender<Gate>,
    (role, stop): (&mut watch::Receiver<Role>, &mut watch::Receiver<bool>),
) -> Ended {
    if let Some(ended) = take_over(parts, term, gate, (&mut *role, &mut *stop)).await {
        return ended;
    }
    let (commands, inbox) = mpsc::channel(MAX_COMMANDS);
    let (parts, sender) = (parts.clone(), commands.clone());
    // Looks at every file of every job.
    let made = tokio::task::spawn_blocking(move || {
        // Whoever led before may have let nodes in or put them out.
        parts.admissions.reload()?;
        parts.adopt_blobs();
        Ok::<_, AdmissionError>(Brain::restore(parts, term, sender))
    });
    let brain = match made.await {
        Ok(Ok(brain)) => brain,
        Ok(Err(error)) => return Ended::Lost(error.to_string()),
        Err(_) => return Ended::Lost("the brain could not be restored; report this with the log".to_owned()),
    };
    gate.send_replace(Gate::Open(commands));
    brain.run(inbox, role, stop).await
}

/// Has no other coordinator remove blobs any more. A coordinator that is alone waits as long as the store does not answer; one of several
/// gives way to another, which may reach it.
async fn take_over(
    parts: &Parts,
    term: u64,
    gate: &watch::Sender<Gate>,
    (role, stop): (&mut watch::Receiver<Role>, &mut watch::Receiver<bool>),
) -> Option<Ended> {
    let blobs = parts.facts.blobs.as_ref()?;
    let mine = Role::Leader { term };
    let reason = Arc::new(Mutex::new("the store of blobs does not answer".to_owned()));
    let attempts = async {
        loop {
            let error = match blobs.take_over(term).await {
                Ok(()) => return true,
                Err(error) => error,
            };
            tracing::error!(%error, "this coordinator leads when its blobs can be had");
            gate.send_replace(Gate::Closed(error.to_string()));
            *reason.lock().unwrap_or_else(PoisonError::into_inner) = error.to_string();
            if error.is_setting() && parts.facts.members.is_some() {
                return false;
            }
            tokio::time::sleep(STORE_PAUSE).await;
        }
    };
    let taken = tokio::select! {
        taken = attempts => taken,
        () = tokio::time::sleep(STORE_PATIENCE), if parts.facts.members.is_some() => false,
        _ = role.wait_for(|role| *role != mine) => return Some(Ended::Lost("another coordinator leads".to_owned())),
        _ = stop.wait_for(|stop| *stop) => return Some(Ended::Stopped),
    };
    // What was written late was written for nothing.
    if *role.borrow() != mine {
        return Some(Ended::Lost("another coordinator leads".to_owned()));
    }
    if taken {
        return None;
    }
    if let Some(members) = &parts.facts.members {
        tokio::select! {
            () = hand_over(members, term) => {}
            _ = stop.wait_for(|stop| *stop) => return Some(Ended::Stopped),
        }
    }
    let reason = reason.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Some(Ended::Lost(format!("this coordinator cannot have the blobs, and another is to lead: {reason}")))
}

impl Parts {
    /// Takes over the blobs that the facts name, and forgets all leases.
    fn adopt_blobs(&self) {
        self.store.begin_term();
        let needed = self.facts.ledger.lock().blobs();
        for (job, blobs) in needed {
            let missing = blobs.into_iter().filter(|blob| !self.store.adopt(job, *blob)).count();
            if missing > 0 {
                tracing::warn!(%job, missing, "blobs of this job are gone; what can be is made again");
            }
        }
    }
}
