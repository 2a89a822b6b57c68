//! Members: who may work and who may order, renewal, eviction, drain, return after a restart, two machines with one identity.

use std::sync::Arc;
use std::time::Duration;

use obelysk_coordinator::identity::{FileStorage, Storage};
use obelysk_coordinator::{Admissions, Coordinator, CoordinatorConfig, Handle};
use obelysk_node::error::TransportError;
use obelysk_node::identity::{Credential, NodeKey, ask, enrol, renew, unix_now};
use obelysk_node::transport::quinn::{Connection, Endpoint, RecvStream, SendStream};
use obelysk_node::transport::{connect, ended, lost, read_message, write_message};
use obelysk_node::{ExitReason, IdentityStore, Node, NodeConfig};
use obelysk_protocol::wire::{
    Hello, Message, NodeDrain, NodeEvict, NodeState, NodesAfter, Refused, Renew, TokenNew, TokenRevoke,
};

use crate::joining::{joins, place, refused, token};
use crate::loopback::{PATIENCE, config, invited, joined, prove, start};
use crate::toy::{MODEL, spec, toy};

/// A machine that was let in, with nothing running on it.
async fn member(handle: &Handle) -> Credential {
    let token = handle.invite(PATIENCE, 1).expect("made");
    let key = NodeKey::generate().expect("random");
    let places = token.places().expect("addresses");
    enrol(&places[0], &token, &key, "raw").await.expect("let in")
}

/// A session as a node opens it; its streams end when it is dropped.
#[derive(Debug)]
struct Open {
    answer: Message,
    connection: Connection,
    _streams: (SendStream, RecvStream),
    _endpoint: Endpoint,
}

/// Says hello with a certificate and returns the answer, or why there was none.
async fn hello(handle: &Handle, credential: &Credential, instance: u8) -> Result<Open, TransportError> {
    greet(handle, credential, instance, vec![]).await
}

async fn greet(handle: &Handle, credential: &Credential, instance: u8, held: Vec<u64>) -> Result<Open, TransportError> {
    let (endpoint, connection) = connect(&place(handle), Some(&credential.client())).await?;
    let words = async {
        let (mut send, mut recv) = connection.open_bi().await.map_err(|e| lost(&e))?;
        let hello = Hello { name: "raw".to_owned(), identity: [instance; 32], cores: 1, models: vec![MODEL], held };
        write_message(&mut send, &Message::Hello(hello)).await?;
        let answer = read_message(&mut recv).await?.ok_or(TransportError::Truncated("before a welcome"))?;
        Ok((answer, (send, recv)))
    };
    let (answer, streams) = words.await.map_err(|e| ended(&connection, e))?;
    Ok(Open { answer, connection, _streams: streams, _endpoint: endpoint })
}

/// A node that comes back under its certificate keeps its number, and one that claims foreign leases gets nothing by it.
#[tokio::test(flavor = "multi_thread")]
async fn identity_survives_a_reconnect() {
    let handle = start(toy(), None).await;
    let mut numbers = Vec::new();
    let [first, second] = [member(&handle).await, member(&handle).await];
    for (credential, held) in [(&first, vec![]), (&second, vec![77]), (&first, vec![])] {
        match greet(&handle, credential, 1, held).await.expect("answers").answer {
            Message::Welcome(welcome) => numbers.push(welcome.node),
            other => panic!("no welcome: {other:?}"),
        }
    }
    assert_eq!(numbers, [1, 2, 1]);
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_members_work_and_only_administrators_order() {
    let (handle, other) = (start(toy(), None).await, start(toy(), None).await);
    let node = member(&handle).await;
    let Open { answer, .. } = hello(&handle, &node, 1).await.expect("answers");
    assert!(matches!(answer, Message::Welcome(_)), "{answer:?}");
    // No certificate.
    let (_endpoint, bare) = connect(&place(&handle), None).await.expect("connects");
    let greeting = Hello { name: "raw".to_owned(), identity: [1; 32], cores: 1, models: vec![MODEL], held: vec![] };
    let error = ask(&bare, &Message::Hello(greeting)).await.expect_err("nobody").to_string();
    assert!(error.contains("needs a certificate"), "{error}");
    // Of another cluster.
    let error = hello(&handle, &member(&other).await, 2).await.expect_err("foreign");
    assert!(matches!(error, TransportError::CertificateRefused(_)), "{error}");
    // Past its end.
    let key = NodeKey::generate().expect("random");
    let (past, day) = (unix_now() - 90_000, Duration::from_secs(86_400));
    let old = handle.admissions().authority().certify_node(&key.request().expect("made"), past, day).expect("issued");
    let stale = Credential { key, certificate: old.to_vec(), ..node.duplicate().expect("copied") };
    let error = hello(&handle, &stale, 3).await.expect_err("expired");
    assert!(error.to_string().contains("expired"), "{error}");
    // Issued by the authority and admitted by nobody.
    let key = NodeKey::generate().expect("random");
    let fresh = handle.admissions().authority().certify_node(&key.request().expect("made"), unix_now(), day).expect("issued");
    let stray = Credential { key, certificate: fresh.to_vec(), ..node.duplicate().expect("copied") };
    let Open { answer, .. } = hello(&handle, &stray, 4).await.expect("answers");
    assert!(
        matches!(&answer, Message::Refused(Refused { reason, retry: false }) if reason.contains("not a member")),
        "{answer:?}"
    );
    // Orders by a node.
    let order = || Message::TokenNew(TokenNew { public_key: [1; 32], ttl_s: 60, uses: 1 });
    for identity in [None, Some(node.client())] {
        let (_endpoint, connection) = connect(&place(&handle), identity.as_ref()).await.expect("connects");
        let error = ask(&connection, &order()).await.expect_err("no administrator").to_string();
        assert!(error.contains("for administrators"), "{error}");
    }
    handle.shutdown().await;
    other.shutdown().await;
}

async fn order(handle: &Handle, admin: &Credential, message: Message) -> Message {
    let (_endpoint, connection) = connect(&place(handle), Some(&admin.client())).await.expect("connects");
    ask(&connection, &message).await.expect("carried out")
}

async fn state(handle: &Handle, admin: &Credential, node: &Credential) -> NodeState {
    let Message::Nodes(page) = order(handle, admin, Message::NodesAfter(NodesAfter { node: [0; 32] })).await else { panic!() };
    let entry = page.nodes.iter().find(|n| n.node == node.id().0).expect("listed");
    NodeState::from_code(entry.state).expect("known")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_node_is_out_at_once_and_for_good() {
    let handle = start(toy(), None).await;
    let admin = handle.admissions().new_admin(handle.addresses().to_vec()).expect("made");
    let node = member(&handle).await;
    assert_eq!(state(&handle, &admin, &node).await, NodeState::Away);
    let live = hello(&handle, &node, 1).await.expect("answers");
    assert!(matches!(live.answer, Message::Welcome(_)), "{live:?}");
    assert_eq!(state(&handle, &admin, &node).await, NodeState::Here);
    order(&handle, &admin, Message::NodeEvict(NodeEvict { node: node.id().0, reason: "stolen".to_owned() })).await;
    let closed = tokio::time::timeout(Duration::from_secs(5), live.connection.closed()).await.expect("the live connection ends");
    assert!(closed.to_string().contains("stolen"), "{closed}");
    let Open { answer, .. } = hello(&handle, &node, 1).await.expect("answers");
    assert!(matches!(&answer, Message::Refused(Refused { reason, retry: false }) if reason.contains("stolen")), "{answer:?}");
    assert_eq!(state(&handle, &admin, &node).await, NodeState::Evicted);
    // Not even with a new token, as long as the key is the same.
    refused(enrol(&place(&handle), &token(&handle), &node.key, "raw").await, "evicted");
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_leaves_in_order() {
    let handle = start(toy(), None).await;
    let admin = handle.admissions().new_admin(handle.addresses().to_vec()).expect("made");
    let running = tokio::spawn(Node::run_until(NodeConfig::new("n"), invited(&handle), toy(), std::future::pending()));
    joined(&handle, 1).await;
    let Message::Nodes(page) = order(&handle, &admin, Message::NodesAfter(NodesAfter { node: [0; 32] })).await else { panic!() };
    order(&handle, &admin, Message::NodeDrain(NodeDrain { node: page.nodes[0].node })).await;
    let exit = tokio::time::timeout(PATIENCE, running).await.expect("ends").expect("no panic").expect("in good order");
    assert_eq!(exit, ExitReason::Drained);
    let gone = token(&handle);
    order(&handle, &admin, Message::TokenRevoke(TokenRevoke { token: gone.id.0 })).await;
    refused(joins(&handle, &gone).await, "revoked");
    handle.shutdown().await;
}

/// Certificates of four seconds: a node that works for ten has renewed, and one that does not renew is cut off.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_at_half_life_and_end_connections_when_they_are_not() {
    let short = Admissions::in_memory().expect("made").with_life(Duration::from_secs(4));
    let handle = Coordinator::start(config(), Arc::new(short), toy(), None).await.expect("starts");
    let node = tokio::spawn(Node::run_until(NodeConfig::new("n"), invited(&handle), toy(), std::future::pending()));
    joined(&handle, 1).await;
    let idle = member(&handle).await;
    let live = hello(&handle, &idle, 1).await.expect("answers");
    let closed = tokio::time::timeout(Duration::from_secs(10), live.connection.closed()).await.expect("cut off");
    assert!(closed.to_string().contains("not renewed"), "{closed}");
    let error = hello(&handle, &idle, 1).await.expect_err("expired");
    assert!(matches!(error, TransportError::CertificateRefused(_)), "{error}");
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!node.is_finished());
    prove(&handle, spec(2, 11)).await.0.expect("the other one still works");
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_is_for_the_same_key() {
    let handle = start(toy(), None).await;
    let node = member(&handle).await;
    let live = hello(&handle, &node, 1).await.expect("answers");
    let fresh = renew(&live.connection, &node).await.expect("renewed");
    assert!(fresh.id() == node.id() && fresh.certificate != node.certificate);
    let csr = NodeKey::generate().expect("random").request().expect("made");
    let error = ask(&live.connection, &Message::Renew(Renew { csr })).await.expect_err("another key").to_string();
    assert!(error.contains("another key"), "{error}");
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_with_one_identity_are_told() {
    let handle = start(toy(), None).await;
    let node = member(&handle).await;
    for (instance, welcome) in [(1, true), (1, true), (2, true), (1, false), (2, true)] {
        let Open { answer, .. } = hello(&handle, &node, instance).await.expect("answers");
        assert_eq!(matches!(answer, Message::Welcome(_)), welcome, "{instance}: {answer:?}");
        if let Message::Refused(no) = answer {
            assert!(no.reason.contains("same identity") && !no.retry, "{}", no.reason);
        }
    }
    handle.shutdown().await;
}

/// A coordinator on a folder and address that one before may still be letting go of.
async fn reopened(folder: &std::path::Path, listen: std::net::SocketAddr) -> Handle {
    let begun = std::time::Instant::now();
    loop {
        let attempt = async {
            let storage: Arc<dyn Storage> = Arc::new(FileStorage::open(folder).map_err(|e| e.to_string())?);
            let admissions = Arc::new(Admissions::open(storage).map_err(|e| e.to_string())?);
            let config = CoordinatorConfig { listen, ..config() };
            Coordinator::start(config, admissions, toy(), None).await.map_err(|e| e.to_string())
        };
        match attempt.await {
            Ok(handle) => return handle,
            Err(error) if begun.elapsed() > PATIENCE => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Authority, tokens, members and evictions are the same after a restart; a node comes back without a token.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_coordinator_knows_its_own() {
    let place_of = tempfile::tempdir().expect("folder");
    let folder = place_of.path().join("c");
    let first = reopened(&folder, config().listen).await;
    let (pin, listen) = (first.admissions().pin(), first.local_address());
    let store = || IdentityStore::folder(&place_of.path().join("n")).expect("free");
    let spent = first.invite(PATIENCE, 1).expect("made");
    let node = Node::run_until(NodeConfig::new("n"), (store(), Some(spent.clone())), toy(), std::future::pending());
    let node = tokio::spawn(node);
    joined(&first, 1).await;
    let out = member(&first).await;
    first.admissions().evict(out.id(), "lost").expect("known");
    let unspent = first.invite(PATIENCE, 1).expect("made");
    first.shutdown().await;
    tokio::time::timeout(PATIENCE, node).await.expect("dismissed").expect("no panic").expect("in good order");
    let again = reopened(&folder, listen).await;
    assert_eq!(again.admissions().pin(), pin);
    let node = tokio::spawn(Node::run_until(NodeConfig::new("n"), (store(), Some(spent.clone())), toy(), std::future::pending()));
    joined(&again, 1).await;
    refused(joins(&again, &spent).await, "used 1 times");
    joins(&again, &unspent).await.expect("a token outlives the process");
    let Open { answer, .. } = hello(&again, &out, 1).await.expect("answers");
    assert!(matches!(&answer, Message::Refused(no) if no.reason.contains("lost")), "{answer:?}");
    again.shutdown().await;
    let _ = node.await;
}
