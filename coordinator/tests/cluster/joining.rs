//! Joining under attack: tokens used twice, expired, revoked, of another cluster; signatures replayed and requests swapped; certificates
//! foreign, expired and revoked; garbage, floods and clocks that are off. And what must work: renewal, return, eviction, drain.

use std::sync::Arc;
use std::time::Duration;

use obelysk_coordinator::identity::{Authority, FileStorage, Storage};
use obelysk_coordinator::{Admissions, Coordinator, CoordinatorConfig, Handle};
use obelysk_node::error::{NodeError, TransportError};
use obelysk_node::identity::{Credential, JoinStatement, NodeKey, Token, ask, enrol, probe, renew, unix_now};
use obelysk_node::transport::quinn::{Connection, Endpoint};
use obelysk_node::transport::{connect, connect_alpn, connect_from, ended, read_message, write_message};
use obelysk_node::{CoordinatorAddress, ExitReason, IdentityStore, Node, NodeConfig};
use obelysk_protocol::wire::{
    ALPN_JOIN, Enrol, Enrolled, Hello, MAX_ENROL_BYTES, Message, NodeDrain, NodeEvict, NodeState, NodesAfter, Probe, Refused,
    Renew, TokenNew, TokenRevoke,
};

use crate::loopback::{PATIENCE, config, invited, joined, member, prove, start};
use crate::toy::{MODEL, spec, toy};

fn token(handle: &Handle) -> Token {
    handle.invite(PATIENCE, 1).expect("made")
}

fn place(handle: &Handle) -> CoordinatorAddress {
    handle.address().parse().expect("own address")
}

async fn door(handle: &Handle) -> (Endpoint, Connection) {
    connect_alpn(&place(handle), None, &[ALPN_JOIN]).await.expect("connects")
}

/// A whole request to join by this token on this connection.
fn request(connection: &Connection, token: &Token, key: &NodeKey, unix_s: u64) -> Enrol {
    let csr = key.request().expect("made");
    let statement = JoinStatement::new(connection, &csr, (token.cluster, token.id), unix_s, "raw").expect("keys");
    let signature = statement.sign(token).expect("signs");
    Enrol { cluster: token.cluster.0, token: token.id.0, unix_s, name: "raw".to_owned(), csr, signature }
}

/// What the door says to a request.
async fn said(connection: &Connection, request: Enrol) -> Result<Enrolled, String> {
    match ask(connection, &Message::Enrol(request)).await {
        Ok(Message::Enrolled(enrolled)) => Ok(enrolled),
        Ok(other) => Err(format!("{other:?}")),
        Err(error) => Err(error.to_string()),
    }
}

async fn joins(handle: &Handle, token: &Token) -> Result<Credential, NodeError> {
    enrol(&place(handle), token, &NodeKey::generate().expect("random"), "raw").await
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, NodeError>, hint: &str) {
    match outcome {
        Err(NodeError::Transport(TransportError::Refused { reason, retry: false })) => assert!(reason.contains(hint), "{reason}"),
        other => panic!("{hint}: {other:?}"),
    }
}

/// Says hello with a certificate and returns the answer, or why there was none.
async fn hello(
    handle: &Handle,
    credential: &Credential,
    instance: u8,
) -> Result<(Endpoint, Connection, Message), TransportError> {
    let (endpoint, connection) = connect(&place(handle), Some(&credential.client())).await?;
    let greet = async {
        let (mut send, mut recv) = connection.open_bi().await.map_err(|e| obelysk_node::transport::lost(&e))?;
        let hello = Hello { name: "raw".to_owned(), identity: [instance; 32], cores: 1, models: vec![MODEL], held: vec![] };
        write_message(&mut send, &Message::Hello(hello)).await?;
        read_message(&mut recv).await?.ok_or(TransportError::Truncated("before a welcome"))
    };
    let answer = greet.await.map_err(|e| ended(&connection, e))?;
    Ok((endpoint, connection, answer))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_serves_as_often_as_it_was_made_for() {
    let handle = start(toy(), None).await;
    let once = token(&handle);
    let key = NodeKey::generate().expect("random");
    let first = enrol(&place(&handle), &once, &key, "raw").await.expect("let in");
    assert_eq!(first.id(), key.id());
    // The same machine again, as after a lost answer, costs nothing; another one is one too many.
    let again = enrol(&place(&handle), &once, &key, "raw").await.expect("answered again");
    assert_eq!(again.id(), first.id());
    refused(joins(&handle, &once).await, "used 1 times");
    // Many at once get no more than there is.
    let four = handle.invite(PATIENCE, 4).expect("made");
    let mut crowd = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let (four, place) = (four.clone(), place(&handle));
        crowd.spawn(async move { enrol(&place, &four, &NodeKey::generate().expect("random"), "raw").await });
    }
    let let_in = crowd.join_all().await.into_iter().filter(Result::is_ok).count();
    assert_eq!(let_in, 4);
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_revoked_unknown_and_foreign_tokens_are_refused_by_name() {
    let (handle, other) = (start(toy(), None).await, start(toy(), None).await);
    let short = handle.invite(Duration::from_secs(1), 1).expect("made");
    let taken_back = token(&handle);
    handle.admissions().revoke_token(taken_back.id).expect("known");
    refused(joins(&handle, &taken_back).await, "revoked");
    // Pinned to this cluster, and yet made elsewhere.
    let mut forged = token(&other);
    forged.pin = handle.admissions().pin();
    refused(joins(&handle, &forged).await, "for cluster");
    forged.cluster = handle.admissions().cluster();
    refused(joins(&handle, &forged).await, "not known here");
    forged.id = token(&handle).id;
    refused(joins(&handle, &forged).await, "does not fit this connection");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    refused(joins(&handle, &short).await, "expired");
    handle.shutdown().await;
    other.shutdown().await;
}

/// Somebody in between with an authority of their own learns nothing that lets them in.
#[tokio::test(flavor = "multi_thread")]
async fn a_man_in_the_middle_is_noticed_before_anything_is_said() {
    let (handle, middle) = (start(toy(), None).await, start(toy(), None).await);
    let mut lured = token(&handle);
    lured.addresses = middle.addresses().to_vec();
    let places = lured.places().expect("addresses");
    let error = enrol(&places[0], &lured, &NodeKey::generate().expect("random"), "raw").await.expect_err("another authority");
    assert!(matches!(error, NodeError::Transport(TransportError::WrongKey { .. })), "{error}");
    joins(&handle, &token(&handle)).await.expect("the real one");
    handle.shutdown().await;
    middle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_is_good_for_its_own_connection_and_request() {
    let handle = start(toy(), None).await;
    let token = token(&handle);
    let (key, thief) = (NodeKey::generate().expect("random"), NodeKey::generate().expect("random"));
    let ((_a, first), (_b, second)) = (door(&handle).await, door(&handle).await);
    let replayed = request(&first, &token, &key, unix_now());
    let hint = "does not fit this connection";
    assert!(said(&second, replayed.clone()).await.expect_err("replayed").contains(hint));
    let changes: [&dyn Fn(&mut Enrol); 4] =
        [&|r| r.csr = thief.request().expect("made"), &|r| r.name = "other".to_owned(), &|r| r.unix_s += 1, &|r| {
            r.signature[7] ^= 1
        }];
    for change in changes {
        let (_endpoint, connection) = door(&handle).await;
        let mut swapped = request(&connection, &token, &key, unix_now());
        change(&mut swapped);
        assert!(said(&connection, swapped).await.expect_err("swapped").contains(hint));
    }
    // A request that its own key did not sign, rightly signed by the token.
    let (_endpoint, connection) = door(&handle).await;
    let mut csr = key.request().expect("made");
    let last = csr.len() - 1;
    csr[last] ^= 1;
    let statement = JoinStatement::new(&connection, &csr, (token.cluster, token.id), unix_now(), "raw").expect("keys");
    let signature = statement.sign(&token).expect("signs");
    let broken = Enrol { csr, signature, ..request(&connection, &token, &key, unix_now()) };
    assert!(said(&connection, broken).await.is_err());
    assert_eq!(said(&first, replayed).await.expect("where it was made").node, key.id().0, "none of it cost a use");
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_an_hour_off_is_named() {
    let handle = start(toy(), None).await;
    let (token, key) = (token(&handle), NodeKey::generate().expect("random"));
    for (unix_s, hint) in [(unix_now() - 3600, "behind the coordinator's"), (unix_now() + 3600, "ahead of the coordinator's")] {
        let (_endpoint, connection) = door(&handle).await;
        let error = said(&connection, request(&connection, &token, &key, unix_s)).await.expect_err("off");
        assert!(error.contains(hint) && error.contains("NTP"), "{error}");
    }
    let (_endpoint, connection) = door(&handle).await;
    said(&connection, request(&connection, &token, &key, unix_now() - 60)).await.expect("a minute is nothing");
    let probed = probe(&place(&handle)).await.expect("answers");
    assert!(probed.unix_s.abs_diff(unix_now()) < 30 && probed.cluster == handle.admissions().cluster().0);
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_members_work_and_only_administrators_order() {
    let (handle, other) = (start(toy(), None).await, start(toy(), None).await);
    let node = member(&handle).await;
    let (_a, _b, answer) = hello(&handle, &node, 1).await.expect("answers");
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
    let (_a, _b, answer) = hello(&handle, &stray, 4).await.expect("answers");
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
    let (_endpoint, live, answer) = hello(&handle, &node, 1).await.expect("answers");
    assert!(matches!(answer, Message::Welcome(_)), "{answer:?}");
    assert_eq!(state(&handle, &admin, &node).await, NodeState::Here);
    order(&handle, &admin, Message::NodeEvict(NodeEvict { node: node.id().0, reason: "stolen".to_owned() })).await;
    let closed = tokio::time::timeout(Duration::from_secs(5), live.closed()).await.expect("the live connection ends");
    assert!(closed.to_string().contains("stolen"), "{closed}");
    let (_a, _b, answer) = hello(&handle, &node, 1).await.expect("answers");
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
    let (_endpoint, live, _) = hello(&handle, &idle, 1).await.expect("answers");
    let closed = tokio::time::timeout(Duration::from_secs(10), live.closed()).await.expect("cut off");
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
    let (_endpoint, live, _) = hello(&handle, &node, 1).await.expect("answers");
    let fresh = renew(&live, &node).await.expect("renewed");
    assert!(fresh.id() == node.id() && fresh.certificate != node.certificate);
    let csr = NodeKey::generate().expect("random").request().expect("made");
    let error = ask(&live, &Message::Renew(Renew { csr })).await.expect_err("another key").to_string();
    assert!(error.contains("another key"), "{error}");
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_with_one_identity_are_told() {
    let handle = start(toy(), None).await;
    let node = member(&handle).await;
    for (instance, welcome) in [(1, true), (1, true), (2, true), (1, false), (2, true)] {
        let (_a, _b, answer) = hello(&handle, &node, instance).await.expect("answers");
        assert_eq!(matches!(answer, Message::Welcome(_)), welcome, "{instance}: {answer:?}");
        if let Message::Refused(no) = answer {
            assert!(no.reason.contains("same identity") && !no.retry, "{}", no.reason);
        }
    }
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_at_the_door_ends_its_connection_and_nothing_else() {
    let handle = start(toy(), None).await;
    let mut oversize = Message::Probe(Probe { unix_s: 1 }).encode().expect("encodes");
    oversize[8..12].copy_from_slice(&(MAX_ENROL_BYTES + 1).to_le_bytes());
    let stranger = Message::NodesAfter(NodesAfter { node: [0; 32] }).encode().expect("encodes");
    let mut cases = vec![b"GET / HTTP/1.1\r\n\r\n".to_vec(), oversize, stranger, Vec::new(), vec![0; 16]];
    let mut state = 0x1234_5678_9abc_def0_u64;
    for length in 0..24 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        cases.push(state.to_le_bytes().repeat(length));
    }
    for bytes in cases {
        let (_endpoint, connection) = door(&handle).await;
        let (mut send, _recv) = connection.open_bi().await.expect("opens");
        let _ = send.write_all(&bytes).await;
        let _ = send.finish();
        tokio::time::timeout(PATIENCE, connection.closed()).await.expect("closed by the coordinator");
    }
    joins(&handle, &token(&handle)).await.expect("still lets in");
    handle.shutdown().await;
}

/// A thousand peers that connect and say nothing, from several addresses, while an honest machine joins.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_half_open_joins_block_nobody() {
    let handle = start(toy(), None).await;
    let token = token(&handle);
    let mut held = tokio::task::JoinSet::new();
    for n in 0..1000_u32 {
        let place = place(&handle);
        held.spawn(async move {
            // In waves, as a flood comes.
            tokio::time::sleep(Duration::from_millis(u64::from(n))).await;
            let source = ([127, 0, 0, 2 + (n % 10) as u8], 0).into();
            let silent = connect_from(source, &place, &[ALPN_JOIN]).await;
            tokio::time::sleep(Duration::from_secs(8)).await;
            silent.is_ok()
        });
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let honest = tokio::time::timeout(Duration::from_secs(5), joins(&handle, &token)).await.expect("in time");
    honest.expect("let in");
    held.shutdown().await;
    handle.shutdown().await;
}

/// Authority, tokens, members and evictions are the same after a restart; a node comes back without a token.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_coordinator_knows_its_own() {
    let place_of = tempfile::tempdir().expect("folder");
    let open = || {
        let storage: Arc<dyn Storage> = Arc::new(FileStorage::open(&place_of.path().join("c")).expect("opens"));
        Arc::new(Admissions::open(storage).expect("opens"))
    };
    let first = Coordinator::start(config(), open(), toy(), None).await.expect("starts");
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
    let config = CoordinatorConfig { listen, ..config() };
    let again = Coordinator::start(config, open(), toy(), None).await.expect("starts again");
    assert_eq!(again.admissions().pin(), pin);
    let node = tokio::spawn(Node::run_until(NodeConfig::new("n"), (store(), Some(spent.clone())), toy(), std::future::pending()));
    joined(&again, 1).await;
    refused(joins(&again, &spent).await, "used 1 times");
    joins(&again, &unspent).await.expect("a token outlives the process");
    let (_a, _b, answer) = hello(&again, &out, 1).await.expect("answers");
    assert!(matches!(&answer, Message::Refused(no) if no.reason.contains("lost")), "{answer:?}");
    again.shutdown().await;
    let _ = node.await;
}

#[test]
fn a_damaged_or_foreign_authority_is_refused() {
    let made = Authority::generate().expect("random");
    let bytes = made.to_bytes().expect("writes");
    assert_eq!(Authority::from_bytes(&bytes).expect("reads").pin(), made.pin());
    let mut refused = 0;
    for at in (0..bytes.len()).step_by(11) {
        let mut damaged = bytes.to_vec();
        damaged[at] ^= 4;
        if let Err(error) = Authority::from_bytes(&damaged) {
            let text = error.to_string();
            assert!(text.contains("backup") || text.contains("release"), "{text}");
            refused += 1;
        }
        assert!(Authority::from_bytes(&bytes[..at]).is_err());
    }
    assert!(refused > 10);
}
