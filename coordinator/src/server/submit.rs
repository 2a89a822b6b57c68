//! Submitting a job to a coordinator elsewhere. A job is submitted under a key of the client's, so that a lost connection or a coordinator
//! that starts again costs nothing: the client comes back and finds its job.

use std::time::{Duration, Instant};

use obelysk_node::CoordinatorAddress;
use obelysk_node::error::TransportError;
use obelysk_node::identity::coordinators;
use obelysk_node::transport::{CLOSE_DONE, connect, fetch, lost, read_message, store, write_message};
use obelysk_protocol::wire::{
    BlobRef, ClientHello, Event, Goodbye, MAX_ADDRESSES, MAX_NAME_BYTES, Message, PhaseTime, SubmitOnce,
};

use super::progress::{JobResult, Phase};
use super::{CoordinatorError, fresh_key};
use crate::core::DEFAULT_PRIORITY;

/// How long a coordinator that took the job may be away: a restart takes seconds, a new machine minutes.
const PATIENCE: Duration = Duration::from_secs(600);
/// Coordinators that one call may be sent on to before it pauses.
const MAX_HOPS: u32 = 3;
/// First pause before calling again.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
/// Longest pause.
const PAUSE_MOST: Duration = Duration::from_secs(5);

/// One job, however many connections it takes.
struct Job<'a> {
    /// Coordinators of this cluster, the one that leads, as far as is known, first.
    places: Vec<CoordinatorAddress>,
    name: String,
    spec: &'a [u8],
    model: [u8; 32],
    priority: u8,
    key: [u8; 16],
    /// Whether the last attempt found a coordinator that has it.
    taken: bool,
}

/// Submits a job to a coordinator elsewhere and waits for its proof. `on_event` gets every progress message, and is told when the
/// coordinator is lost and called again: at most ten minutes long, and only once it had taken the job.
///
/// # Errors
/// [`CoordinatorError::Transport`] when the coordinator cannot be reached or refuses, [`CoordinatorError::Job`] when the job fails.
pub async fn submit_remote(
    address: &CoordinatorAddress,
    name: &str,
    spec: &[u8],
    model: [u8; 32],
    on_event: impl FnMut(&Event),
) -> Result<JobResult, CoordinatorError> {
    submit_remote_at(address, name, spec, (model, DEFAULT_PRIORITY), on_event).await
}

/// As [`submit_remote`], with a priority from 0 to 9: the coordinator serves 9 most. It is said again on every connection, so it holds
/// after a coordinator's restart too.
///
/// # Errors
/// As [`submit_remote`].
pub async fn submit_remote_at(
    address: &CoordinatorAddress,
    name: &str,
    spec: &[u8],
    (model, priority): ([u8; 32], u8),
    mut on_event: impl FnMut(&Event),
) -> Result<JobResult, CoordinatorError> {
    let name = name.chars().filter(|c| !c.is_control()).take(MAX_NAME_BYTES / 4).collect();
    let mut job = Job { places: vec![address.clone()], name, spec, model, priority, key: fresh_key()?, taken: false };
    let (mut pause, mut since, mut hops) = (PAUSE_FIRST, None, 0);
    loop {
        let error = match job.attempt(&mut on_event).await {
            Err(CoordinatorError::Transport(error)) if !error.is_permanent() => error,
            outcome => return outcome,
        };
        if let TransportError::Elsewhere { leader, all } = &error {
            job.learn(all);
            // They are there, and about to agree on who leads; whom they name may be gone.
            since = since.or_else(|| Some(Instant::now()));
            if job.follow(leader) && hops < MAX_HOPS {
                hops += 1;
                continue;
            }
        }
        hops = 0;
        if std::mem::take(&mut job.taken) {
            (pause, since) = (PAUSE_FIRST, Some(Instant::now()));
        }
        // Whoever answers next: the one that was tried may be gone for good.
        job.places.rotate_left(1);
        if since.is_none_or(|at| at.elapsed() > PATIENCE) {
            return Err(error.into());
        }
        let text = format!("no coordinator for a moment ({error}); what was submitted is kept, calling again");
        let (phase, done, total, node) = ("away".to_owned(), 0, 0, 0);
        on_event(&Event { job: [0; 32], phase, done, total, node, text });
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MOST);
    }
}

impl Job<'_> {
    fn at(&self, place: &str) -> Option<CoordinatorAddress> {
        CoordinatorAddress::at(place, self.places.first()?.fingerprint).ok()
    }

    /// Takes over where the coordinators are. One that is alone is where it was found, whatever it calls itself.
    fn learn(&mut self, all: &[String]) {
        if all.len() < 2 {
            return;
        }
        for place in all.iter().filter_map(|place| self.at(place)).collect::<Vec<_>>() {
            if !self.places.contains(&place) && self.places.len() < 2 * MAX_ADDRESSES {
                self.places.push(place);
            }
        }
    }

    /// Goes to the leader next; `false` when it is not known.
    fn follow(&mut self, leader: &str) -> bool {
        let leader = self.at(leader).and_then(|leader| self.places.iter().position(|place| *place == leader));
        if let Some(leader) = leader {
            self.places.swap(0, leader);
        }
        leader.is_some()
    }

    async fn attempt(&mut self, on_event: &mut impl FnMut(&Event)) -> Result<JobResult, CoordinatorError> {
        let place = self.places.first().cloned().ok_or(CoordinatorError::Stopped)?;
        // Held to the end: the endpoint drives the connection.
        let (endpoint, connection) = connect(&place, None).await?;
        let known = coordinators(&connection).await?;
        if !known.leads {
            return Err(TransportError::Elsewhere { leader: known.leader, all: known.all }.into());
        }
        self.learn(&known.all);
        let (mut send, mut recv) = connection.open_bi().await.map_err(|e| lost(&e))?;
        write_message(&mut send, &Message::ClientHello(ClientHello { name: self.name.clone() })).await?;
        let blob = BlobRef::of(self.spec);
        store(&connection, 0, blob, self.spec).await?;
        let submit = SubmitOnce { key: self.key, spec: blob, model: self.model, priority: self.priority };
        write_message(&mut send, &Message::SubmitOnce(submit)).await?;
        let done = loop {
            match read_message(&mut recv).await? {
                Some(Message::JobAccepted(_)) => self.taken = true,
                Some(Message::Event(event)) => on_event(&event),
                Some(Message::Coordinators(known)) => {
                    self.learn(&known.all);
                }
                Some(Message::JobDone(done)) => break done,
                Some(Message::JobFailed(failed)) => return Err(CoordinatorError::Job(failed.reason)),
                Some(Message::Refused(no)) => {
                    return Err(TransportError::Refused { reason: no.reason, retry: no.retry }.into());
                }
                Some(other) => return Err(TransportError::Unexpected { expected: "job news", got: other.id() }.into()),
                None => return Err(TransportError::Truncated("before the job ended").into()),
            }
        };
        let proof = fetch(&connection, done.proof, u64::MAX).await?;
        write_message(&mut send, &Message::Goodbye(Goodbye { reason: "thank you".to_owned() })).await?;
        let _ = send.finish();
        connection.close(CLOSE_DONE, b"done");
        endpoint.wait_idle().await;
        let phase = |p: PhaseTime| Phase { name: p.name, wall_s: p.wall_us as f64 / 1e6, core_s: p.core_us as f64 / 1e6 };
        Ok(JobResult {
            job: done.job,
            proof,
            phases: done.phases.into_iter().map(phase).collect(),
            peak_memory_bytes: done.peak_bytes,
            nodes: (0..done.nodes).map(|_| String::new()).collect(),
        })
    }
}
