//! Peers that mean harm, or are broken: refused, without a panic, and without a trace in the log.

use std::sync::Arc;
use std::time::Duration;

use crate::seat::{Cluster, PATIENCE, Seat, keep, leader};
use obelysk_coordinator::consensus::raft::Begin;
use obelysk_coordinator::consensus::raft::core::Pace;
use obelysk_coordinator::consensus::raft::member::{Member, id_of};
use obelysk_coordinator::consensus::raft::wire::encode_message;
use obelysk_node::identity::{NodeKey, unix_now};
use obelysk_node::transport::quinn::{Connection, Endpoint};
use obelysk_node::transport::{ClientIdentity, connect_peer};
use obelysk_protocol::wire::{BlobRef, FrameHeader, Message as Frame, MessageId, PeerBulk, PeerHello, PeerMessage};
use raft::eraftpb::{Entry, EntryType, Message, MessageType, Snapshot};

struct Victim {
    cluster: Cluster,
    seats: Vec<Seat>,
    /// A member by the configuration, with its key in the villain's hands.
    key: NodeKey,
}

impl Victim {
    async fn new() -> Self {
        let cluster = Cluster::new(Pace::default(), 0);
        let seats = vec![cluster.seat(Begin::First(0))];
        keep(&seats, 0..5).await;
        let key = cluster.identity().1;
        let member = Member { key: key.id().0, peer: "127.0.0.1:9".to_owned(), service: "127.0.0.1:9".to_owned() };
        let first: Arc<_> = seats[0].up().clone();
        // It never catches up, and so never votes.
        let _ = tokio::time::timeout(Duration::from_millis(300), first.add(member)).await;
        Self { cluster, seats, key }
    }

    fn villain(&self) -> u64 {
        id_of(&self.key.id().0)
    }

    fn own(&self) -> u64 {
        self.seats[0].me().id()
    }

    async fn connect(&self, identity: ClientIdentity) -> (Endpoint, Connection) {
        let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).expect("socket");
        let place = self.seats[0].place.to_string();
        let made = connect_peer(&endpoint, &place, self.cluster.authority.pin(), &identity).await.expect("connects");
        (endpoint, made)
    }

    fn as_member(&self) -> ClientIdentity {
        let request = self.key.request().expect("made");
        let certificate = self.cluster.authority.certify_coordinator(&request, unix_now()).expect("certified").to_vec();
        ClientIdentity { certificate, key: self.key.to_pkcs8() }
    }

    /// Sends bytes on a stream as a member; the reason for which the connection is closed.
    async fn refusal(&self, bytes: &[u8]) -> String {
        let (_endpoint, connection) = self.connect(self.as_member()).await;
        let mut stream = connection.open_uni().await.expect("opens");
        let _ = stream.write_all(bytes).await;
        let _ = stream.finish();
        let closed = tokio::time::timeout(PATIENCE, connection.closed()).await;
        closed.map_or_else(|_| panic!("not refused"), |reason| reason.to_string())
    }

    /// It still leads as before, and everything still works.
    async fn is_well(&self, term: u64, next: u64) {
        assert_eq!(leader(&self.seats).await, (0, term));
        keep(&self.seats, next..next + 1).await;
        assert_eq!(self.cluster.board.lock().expect("no panic").broken, None);
    }
}

fn framed(bytes: Vec<u8>) -> Vec<u8> {
    Frame::PeerMessage(PeerMessage { bytes }).encode().expect("encodes")
}

#[tokio::test(flavor = "multi_thread")]
async fn only_coordinators_of_the_configuration_come_in() {
    let victim = Victim::new().await;
    let (_, term) = leader(&victim.seats).await;
    let node = NodeKey::generate().expect("random");
    let request = node.request().expect("made");
    let life = Duration::from_secs(3600);
    let authority = &victim.cluster.authority;
    let certificates = [
        ("a node", authority.certify_node(&request, unix_now(), life)),
        ("a coordinator that nobody added", authority.certify_coordinator(&request, unix_now())),
    ];
    for (who, certificate) in certificates {
        let identity = ClientIdentity { certificate: certificate.expect("certified").to_vec(), key: node.to_pkcs8() };
        let (_endpoint, connection) = victim.connect(identity).await;
        let reason = tokio::time::timeout(PATIENCE, connection.closed()).await.expect("refused").to_string();
        assert!(reason.contains("not a coordinator of this cluster"), "{who}: {reason}");
    }
    victim.is_well(term, 100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_frames_and_impossible_messages_end_the_connection() {
    let victim = Victim::new().await;
    let (_, term) = leader(&victim.seats).await;
    let (from, to) = (victim.villain(), victim.own());
    let message = |kind, change: &dyn Fn(&mut Message)| {
        let mut m = Message::default();
        m.set_msg_type(kind);
        (m.from, m.to, m.term) = (from, to, term);
        change(&mut m);
        framed(encode_message(&m).expect("travels"))
    };
    let entry = |index, term| {
        let mut e = Entry::default();
        (e.index, e.term, e.data) = (index, term, vec![1].into());
        e
    };
    let change = |e: &mut Entry| e.set_entry_type(EntryType::EntryConfChange);
    let oversize = FrameHeader { message: MessageId::PeerMessage, length: u32::MAX }.encode();
    let hello = PeerHello { cluster: [7; 16], from, to, members: vec![] };
    let bulk = |blob| Frame::PeerBulk(PeerBulk { blob }).encode().expect("encodes");
    use MessageType::{MsgAppend, MsgAppendResponse, MsgHeartbeat, MsgHeartbeatResponse, MsgSnapshot, MsgTimeoutNow};
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("garbage", vec![0x5a; 4000]),
        ("too long a frame", oversize.to_vec()),
        ("a frame that ends early", framed(vec![1; 900])[..500].to_vec()),
        ("a message of garbage", framed(vec![0xee; 900])),
        ("another cluster's greeting", Frame::PeerHello(hello).encode().expect("encodes")),
        ("a blob beyond every bound", bulk(BlobRef { digest: [1; 32], length: 1 << 40 })),
        ("another's name", message(MsgHeartbeat, &|m| m.from = to ^ 2)),
        ("another's message", message(MsgHeartbeat, &|m| m.to = to ^ 2)),
        ("no term", message(MsgHeartbeat, &|m| m.term = 0)),
        ("a term from nowhere", message(MsgHeartbeat, &|m| m.term = term + (1 << 40))),
        ("a term beyond counting", message(MsgHeartbeat, &|m| m.term = u64::MAX)),
        ("a second leader", message(MsgHeartbeat, &|_| {})),
        ("a second leader's entries", message(MsgAppend, &|m| m.set_entries(vec![entry(1, 1)].into()))),
        ("agreed on what nobody has", message(MsgHeartbeat, &|m| (m.term, m.commit) = (term + 1, 1 << 30))),
        ("has what was never sent", message(MsgAppendResponse, &|m| m.index = 1 << 30)),
        ("has agreed on what was never sent", message(MsgHeartbeatResponse, &|m| m.commit = 1 << 30)),
        ("an index beyond counting", message(MsgAppendResponse, &|m| m.index = u64::MAX)),
        ("an order of who does not lead", message(MsgTimeoutNow, &|_| {})),
        ("entries with a gap", message(MsgAppend, &|m| m.set_entries(vec![entry(5, 1), entry(7, 1)].into()))),
        ("entries of terms to come", message(MsgAppend, &|m| m.set_entries(vec![entry(1, term + 9)].into()))),
        (
            "a change with data for a decoder",
            message(MsgAppend, &|m| {
                let mut e = entry(1, 1);
                change(&mut e);
                m.set_entries(vec![e].into());
            }),
        ),
        ("a snapshot of nothing", message(MsgSnapshot, &|m| m.set_snapshot(Snapshot::default()))),
        (
            "other entries than agreed",
            message(MsgAppend, &|m| {
                m.term = term + 1;
                m.set_entries(vec![entry(1, 1), entry(2, term + 1), entry(3, term + 1)].into());
            }),
        ),
    ];
    for (n, (what, bytes)) in cases.iter().enumerate() {
        let reason = victim.refusal(bytes).await;
        println!("{what}: {reason}");
        assert!(reason.contains("closed by peer"), "{what}: {reason}");
        victim.is_well(term, 200 + n as u64).await;
    }
}
