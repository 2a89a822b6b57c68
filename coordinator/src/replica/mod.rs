//! A coordinator among several: its key and certificate, its member of the replicated log, its blobs on the disks of a majority.
//!
//! A folder begins alone or joins; once it is one of several it stays so. What a folder holds decides how it goes on: `peer.toml` is the
//! key (a lost one is another member), `raft` the log, `ledger` the log of a coordinator that was alone and is taken over.

mod blobs;
mod files;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use obelysk_node::error::TransportError;
use obelysk_node::identity::{Credential, Id, IdentityError, NodeKey, unix_now};
use obelysk_node::transport::Parts;
use obelysk_node::transport::rustls::pki_types::CertificateDer;
use obelysk_protocol::wire::PeerAdded;

use crate::blobs::{BlobError, Blobs};
use crate::consensus::raft::core::Pace;
use crate::consensus::raft::member::Member;
use crate::consensus::raft::{Begin, PeerIdentity, RaftConsensus, Start, StartError};
use crate::consensus::{Consensus as _, Role, SoloError};
use crate::evidence::Evidence;
use crate::identity::{AdmissionError, Admissions, Document, SERVER_LIFE_S};
use crate::ledger::SharedLedger;
use crate::server::Facts;
use blobs::{Answers, Replicas};
pub(crate) use blobs::{kept_by, lacking};
pub use files::is_one;

/// Bytes of blobs that began to arrive from others and wait for the rest: several of the largest files of models.
const MAX_PARTS_BYTES: u64 = 1 << 40;
/// Length of a tick: a leader that is gone is missed after one to two seconds.
const TICK: Duration = Duration::from_millis(100);
/// How often it is looked whether the certificate is to be renewed.
const LOOK_AT_CERTIFICATE: Duration = Duration::from_secs(3600);
/// How often a coordinator that waits for the others says so.
const SAY_AGAIN: Duration = Duration::from_secs(10);
/// How long a leader that stops waits for another to take over.
const HAND_OVER: Duration = Duration::from_secs(3);

/// Why a coordinator does not take part.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// Its log.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The log it had when it was alone.
    #[error(transparent)]
    Solo(#[from] SoloError),
    /// Its key and certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The authority.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// Its certificate does not fit its key.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Its blobs.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// A file of its folder.
    #[error("{path}: {cause}; free or replace the disk, then start again")]
    Disk {
        /// Which.
        path: String,
        /// What the system says.
        cause: String,
    },
    /// It never finished joining.
    #[error("{0} holds a coordinator's key and no log: joining was not finished; run `obelysk coordinator join` again")]
    NotJoined(String),
    /// Nobody knows it any more.
    #[error(
        "{0} holds a coordinator's log and no key (`peer.toml`): restore it, or remove this coordinator (`obelysk coordinator remove` at \
         another one) and this folder, then join anew"
    )]
    KeyLost(String),
    /// What it promised the others is forgotten.
    #[error(
        "{0} holds a coordinator's key, and its log is lost: with another one it would break what it promised; remove this coordinator \
         (`obelysk coordinator remove` at another one) and this folder, then join anew"
    )]
    LogLost(String),
    /// It takes part no more.
    #[error("{0}")]
    Stopped(String),
}

/// Where a coordinator is.
#[derive(Debug, Clone)]
pub struct Place {
    /// UDP address for other coordinators.
    pub listen: SocketAddr,
    /// Where they reach it, `host:port`; empty: the address bound.
    pub peer: String,
    /// Where nodes and clients reach it, `host:port`.
    pub service: String,
}

/// One of several coordinators.
#[derive(Debug)]
pub struct Replica {
    raft: Arc<RaftConsensus>,
    identity: Arc<PeerIdentity>,
    facts: Facts,
    credential: Credential,
}

impl Replica {
    /// Takes part by what the folder holds: begins a cluster, goes on as the member it is, or takes over what a coordinator that was
    /// alone left. The folder is the process's alone. Must be called within a tokio runtime; waits for the disk.
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub fn open(state: &Path, place: &Place, blobs: &Blobs) -> Result<Self, ReplicaError> {
        let (alone, key) = (files::alone(state), files::load(state)?);
        match (key, alone) {
            // Its log says who the others are.
            (Some(credential), false) if files::has_log(state) => {
                Self::start((state, blobs), place, credential, (Begin::Join(files::seeds(state)), SharedLedger::default()))
            }
            (None, false) if files::had_log(state) => Err(ReplicaError::KeyLost(state.display().to_string())),
            (None, false) => Err(ReplicaError::NotJoined(state.display().to_string())),
            (Some(_), false) if files::had_log(state) => Err(ReplicaError::LogLost(state.display().to_string())),
            (Some(_), false) => Err(ReplicaError::NotJoined(state.display().to_string())),
            (known, _) => Self::found((state, blobs), place, known),
        }
    }

    /// Waits to be added by those who answered the [`request`].
    ///
    /// # Errors
    /// [`ReplicaError`].
    pub fn join(
        (state, blobs): (&Path, &Blobs),
        place: &Place,
        cluster: &Credential,
        added: PeerAdded,
    ) -> Result<Self, ReplicaError> {
        let key = files::key(state)?;
        let members = added.members.iter();
        let seeds: Vec<Member> =
            members.map(|e| Member { key: e.key, peer: e.peer.clone(), service: e.service.clone() }).collect();
        let now = unix_now();
        let credential = Credential {
            cluster: cluster.cluster,
            pin: cluster.pin,
            addresses: seeds.iter().map(|m| m.service.clone()).collect(),
            key,
            certificate: added.certificate,
            authority: added.authority,
            issued_unix_s: now,
            expires_unix_s: now + SERVER_LIFE_S,
        };
        files::save_seeds(state, &seeds)?;
        files::save(state, &credential)?;
        Self::start((state, blobs), place, credential, (Begin::Join(seeds), SharedLedger::default()))
    }

    /// A cluster of one member, with everything that the coordinator knew when it was alone.
    fn found((state, blobs): (&Path, &Blobs), place: &Place, known: Option<Credential>) -> Result<Self, ReplicaError> {
        let facts = Facts::alone(state)?;
        let term = match *facts.consensus.role().borrow() {
            Role::Leader { term } => term,
            _ => 0,
        };
        let admissions = Admissions::open(Arc::new(facts.storage()))?;
        let credential = match known {
            Some(credential) => credential,
            None => {
                let key = NodeKey::generate()?;
                let credential = certified(&admissions, key, vec![place.service.clone()])?;
                files::save(state, &credential)?;
                credential
            }
        };
        let ledger = facts.ledger.clone();
        drop((admissions, facts));
        let replica = Self::start((state, blobs), place, credential, (Begin::First(term), ledger))?;
        files::set_alone_aside(state)?;
        Ok(replica)
    }

    fn start(
        (state, blobs): (&Path, &Blobs),
        place: &Place,
        credential: Credential,
        (begin, ledger): (Begin, SharedLedger),
    ) -> Result<Self, ReplicaError> {
        let log = files::log_folder(state)?;
        let authority = CertificateDer::from(credential.authority.clone());
        let certificate = CertificateDer::from(credential.certificate.clone());
        let key = NodeKey::from_pkcs8(&credential.key.to_pkcs8())?;
        let identity = PeerIdentity::new(credential.cluster, authority, key, certificate)?;
        let start = Start {
            folder: log,
            identity: identity.clone(),
            listen: place.listen,
            peer: place.peer.clone(),
            service: place.service.clone(),
            begin,
            pace: Pace::default(),
            tick: TICK,
            questions: Some(Arc::new(Answers::new(blobs.clone(), ledger.clone()))),
        };
        let raft = RaftConsensus::start(start, Box::new(ledger.clone()))?;
        if !blobs.is_shared() {
            let folder = state.join("arriving");
            Replicas::start(blobs, Parts::open(&folder, MAX_PARTS_BYTES)?, &raft, ledger.clone());
        }
        let (consensus, members) = (raft.clone(), Some(raft.clone()));
        let evidence = Some(Evidence::of_coordinator(state));
        let facts = Facts { ledger, consensus, blobs: Some(blobs.clone()), outlive: true, evidence, members };
        Ok(Self { raft, identity, facts, credential })
    }

    /// For [`Coordinator::start_with`](crate::Coordinator::start_with).
    #[must_use]
    pub fn facts(&self) -> Facts {
        self.facts.clone()
    }

    /// The member of the log.
    #[must_use]
    pub const fn raft(&self) -> &Arc<RaftConsensus> {
        &self.raft
    }

    /// Waits until the cluster's authority is known here: at once where a log is, and when the others have added it where none is.
    ///
    /// # Errors
    /// [`ReplicaError::Stopped`]: this member takes no part any more.
    pub async fn authority_known(&self) -> Result<(), ReplicaError> {
        let mut role = self.raft.role();
        let mut said = Instant::now();
        loop {
            // The log is read before it is said who is in it.
            let introduced = self.raft.electorate().borrow().all().next().is_some();
            if introduced && self.facts.ledger.lock().document(Document::Authority).is_some() {
                return self.is_where_it_is_known();
            }
            if said.elapsed() > SAY_AGAIN {
                said = Instant::now();
                tracing::warn!(
                    id = format!("{:016x}", self.raft.me().id()),
                    "still waiting for the cluster's log: a majority of the coordinators must be up, know this one (`obelysk coordinator \
                     members`) and reach it"
                );
            }
            if let Role::Stopped { reason } = &*role.borrow_and_update() {
                return Err(ReplicaError::Stopped(reason.clone()));
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// The others keep the addresses that it joined with.
    fn is_where_it_is_known(&self) -> Result<(), ReplicaError> {
        let electorate = self.raft.electorate();
        let electorate = electorate.borrow();
        let me = self.raft.me();
        match electorate.all().find(|m| m.key == me.key).filter(|known| *known != me) {
            None => Ok(()),
            Some(known) => Err(ReplicaError::Stopped(format!(
                "the coordinators know this one at {} (among them {}), not at {} ({}): start it there, or remove it and join anew",
                known.service, known.peer, me.service, me.peer
            ))),
        }
    }

    /// Renews the certificate among coordinators now and whenever half of its life is over, by the authority that every member has.
    ///
    /// # Errors
    /// [`ReplicaError`], of the first time; later ones are logged, and tried again.
    pub fn keep_certified(&self, state: &Path, admissions: Arc<Admissions>) -> Result<(), ReplicaError> {
        let (identity, state, held) = (self.identity.clone(), state.to_owned(), self.credential.duplicate()?);
        let renew = move |at: &mut u64| -> Result<(), ReplicaError> {
            let key = NodeKey::from_pkcs8(&held.key.to_pkcs8())?;
            let fresh = certified(&admissions, key, held.addresses.clone())?;
            identity.renew(CertificateDer::from(fresh.certificate.clone()))?;
            files::save(&state, &fresh)?;
            *at = fresh.issued_unix_s;
            Ok(())
        };
        let mut at = 0;
        renew(&mut at)?;
        let raft = Arc::downgrade(&self.raft);
        tokio::spawn(async move {
            while raft.strong_count() > 0 {
                tokio::time::sleep(LOOK_AT_CERTIFICATE).await;
                if unix_now().abs_diff(at) > SERVER_LIFE_S / 2
                    && let Err(error) = renew(&mut at)
                {
                    tracing::error!(%error, "this coordinator's certificate was not renewed");
                }
            }
        });
        Ok(())
    }

    /// Before a stop in good order: another live voter leads from now on, if there is one.
    pub async fn hand_over(&self) {
        if let Role::Leader { term } = *self.raft.role().borrow() {
            hand_over(&self.raft, term).await;
        }
    }
}

/// Has another live voter lead, if there is one: in each term another, so that all have their turn when none of them can.
pub(crate) async fn hand_over(raft: &RaftConsensus, term: u64) {
    let Some(view) = raft.view().await else { return };
    let others: Vec<_> = view.members.iter().filter(|m| m.votes && m.live && m.id != view.own).collect();
    let turn = term.checked_rem(others.len() as u64).and_then(|turn| usize::try_from(turn).ok());
    let Some(next) = turn.and_then(|turn| others.get(turn)) else { return };
    if raft.transfer(next.id).await.is_ok() {
        let mut role = raft.role();
        let moved = role.wait_for(|role| !matches!(role, Role::Leader { .. }));
        let moved = matches!(tokio::time::timeout(HAND_OVER, moved).await, Ok(Ok(_)));
        tracing::info!(to = next.member.service, moved, "another coordinator leads");
    }
}

fn certified(admissions: &Admissions, key: NodeKey, addresses: Vec<String>) -> Result<Credential, ReplicaError> {
    let now = unix_now();
    let authority = admissions.authority();
    let certificate = authority.certify_coordinator(&key.request()?, now)?;
    Ok(Credential {
        cluster: Id(authority.cluster().0),
        pin: authority.pin(),
        addresses,
        key,
        certificate: certificate.to_vec(),
        authority: authority.certificate().to_vec(),
        issued_unix_s: now,
        expires_unix_s: now + SERVER_LIFE_S,
    })
}

/// A certificate request for this folder's key, which is made if need be: the same at every attempt.
///
/// # Errors
/// [`ReplicaError::Identity`].
pub fn request(state: &Path) -> Result<Vec<u8>, ReplicaError> {
    Ok(files::key(state)?.request()?)
}
