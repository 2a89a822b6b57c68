//! Leadership that comes and goes within one process: a log that a test switches off and on, in rising terms.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::loopback::{Faulty, Outcome, PATIENCE, admissions, config, joined};
use crate::toy::{MODEL, expected_proof, spec, toy};
use obelysk_coordinator::consensus::{Consensus, Machine as _, Proposal, ProposeError, Role};
use obelysk_coordinator::ledger::SharedLedger;
use obelysk_coordinator::{Coordinator, Facts, submit_remote};
use obelysk_node::engine::WorkRequest;
use obelysk_node::{IdentityStore, Node, NodeConfig};
use tokio::sync::watch;

/// Agrees a little later, and only in the term that leads when it does.
#[derive(Debug)]
struct Switch {
    ledger: Arc<Mutex<SharedLedger>>,
    role: watch::Sender<Role>,
}

impl Consensus for Switch {
    fn propose(&self, term: u64, entries: Vec<Vec<u8>>) -> Proposal {
        let (ledger, role) = (self.ledger.clone(), self.role.subscribe());
        let agreed = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(3)).await;
            if *role.borrow() != (Role::Leader { term }) {
                return Err(ProposeError::NotLeader { leader: None });
            }
            let mut ledger = ledger.lock().expect("whole");
            entries.iter().for_each(|entry| ledger.apply(0, entry));
            Ok(())
        });
        Box::pin(async move { agreed.await.unwrap_or(Err(ProposeError::Unknown)) })
    }

    fn role(&self) -> watch::Receiver<Role> {
        self.role.subscribe()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_when_leadership_returns_and_waits_where_it_is_gone() {
    let ledger = SharedLedger::default();
    let role = watch::Sender::new(Role::Leader { term: 1 });
    let consensus = Arc::new(Switch { ledger: Arc::new(Mutex::new(ledger.clone())), role: role.clone() });
    let facts = Facts { ledger, consensus, blobs: None, outlive: true, evidence: None, members: None };
    let handle = Coordinator::start_with(config(), admissions(), toy(), None, facts).await.expect("starts");
    let runs = Arc::new(AtomicU32::new(0));
    let counted = runs.clone();
    let slow = Arc::new(Faulty(move |_: &WorkRequest, outcome: Outcome| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(100));
        outcome
    }));
    let membership = (IdentityStore::Memory, Some(handle.invite(PATIENCE, 1).expect("made")));
    let node = tokio::spawn(Node::run_until(NodeConfig::new("n"), membership, slow, std::future::pending()));
    joined(&handle, 1).await;
    let (address, spec) = (handle.address().parse().expect("own address"), spec(3, 400));
    let switching = async {
        for term in [2, 4, 9] {
            let before = runs.load(Ordering::SeqCst);
            while runs.load(Ordering::SeqCst) < before + 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            role.send_replace(Role::Follower { leader: None });
            tokio::time::sleep(Duration::from_millis(300)).await;
            role.send_replace(Role::Leader { term });
        }
    };
    let told = Mutex::new(String::new());
    let proving = submit_remote(&address, "laptop", &spec, MODEL, |event| told.lock().expect("whole").push_str(&event.text));
    let both = async { tokio::join!(proving, switching) };
    let (result, ()) = tokio::time::timeout(PATIENCE, both).await.expect("ends");
    assert!(result.expect("proved").proof == expected_proof(&spec, 64));
    assert!(told.lock().expect("whole").contains("calling again"));
    assert_eq!(runs.load(Ordering::SeqCst), 12, "the one node kept what it had: each of the 12 items ran once");
    handle.shutdown().await;
    node.abort();
}
