//! Joining under attack: tokens used twice, expired, revoked, of another cluster; signatures replayed and requests swapped; a man in the
//! middle, clocks that are off, garbage and floods.

use std::time::Duration;

use obelysk_coordinator::Handle;
use obelysk_coordinator::identity::Authority;
use obelysk_node::CoordinatorAddress;
use obelysk_node::error::{NodeError, TransportError};
use obelysk_node::identity::{Credential, JoinStatement, NodeKey, Token, ask, enrol, probe, unix_now};
use obelysk_node::transport::quinn::{Connection, Endpoint};
use obelysk_node::transport::{connect_alpn, connect_over};
use obelysk_protocol::wire::{ALPN_JOIN, Enrol, Enrolled, MAX_ENROL_BYTES, Message, NodesAfter, Probe};

use crate::loopback::{PATIENCE, start};
use crate::toy::toy;

pub fn token(handle: &Handle) -> Token {
    handle.invite(PATIENCE, 1).expect("made")
}

pub fn place(handle: &Handle) -> CoordinatorAddress {
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

pub async fn joins(handle: &Handle, token: &Token) -> Result<Credential, NodeError> {
    enrol(&place(handle), token, &NodeKey::generate().expect("random"), "raw").await
}

#[track_caller]
pub fn refused<T: std::fmt::Debug>(outcome: Result<T, NodeError>, hint: &str) {
    match outcome {
        Err(NodeError::Transport(TransportError::Refused { reason, retry: false })) => assert!(reason.contains(hint), "{reason}"),
        other => panic!("{hint}: {other:?}"),
    }
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
    for source in 2..12_u8 {
        let endpoint = Endpoint::client(([127, 0, 0, source], 0).into()).expect("binds");
        for n in 0..100_u64 {
            let (endpoint, place) = (endpoint.clone(), place(&handle));
            held.spawn(async move {
                // In waves, as a flood comes.
                tokio::time::sleep(Duration::from_millis(10 * n)).await;
                let silent = connect_over(&endpoint, &place, &[ALPN_JOIN]).await;
                tokio::time::sleep(Duration::from_secs(8)).await;
                silent.is_ok()
            });
        }
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let honest = tokio::time::timeout(Duration::from_secs(5), joins(&handle, &token)).await.expect("in time");
    honest.expect("let in");
    held.shutdown().await;
    handle.shutdown().await;
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
