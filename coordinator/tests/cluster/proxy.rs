//! A UDP relay that can be told to swallow everything: a network that fails and comes back, without privileges.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::net::UdpSocket;

/// Longest UDP payload.
const MAX_DATAGRAM: usize = 65_535;

/// A relay to one server; ends with the test's runtime.
pub struct Proxy {
    pub address: SocketAddr,
    hole: Arc<AtomicBool>,
    /// Bytes to the server and back.
    relayed: [Arc<AtomicU64>; 2],
}

impl Proxy {
    pub async fn start(server: SocketAddr) -> Self {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("binds"));
        let address = front.local_addr().expect("bound");
        let hole = Arc::new(AtomicBool::new(false));
        let relayed: [Arc<AtomicU64>; 2] = Default::default();
        tokio::spawn(relay(front, server, (hole.clone(), relayed.clone())));
        Self { address, hole, relayed }
    }

    /// Bytes that went to the server, and came back, so far.
    pub fn relayed(&self) -> [u64; 2] {
        [0, 1].map(|way| self.relayed[way].load(Ordering::SeqCst))
    }

    /// Swallows everything from now on, or stops doing so.
    pub fn swallow(&self, all: bool) {
        self.hole.store(all, Ordering::SeqCst);
    }
}

async fn relay(front: Arc<UdpSocket>, server: SocketAddr, (hole, relayed): (Arc<AtomicBool>, [Arc<AtomicU64>; 2])) {
    let mut backs: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
    let mut buffer = vec![0; MAX_DATAGRAM];
    while let Ok((length, peer)) = front.recv_from(&mut buffer).await {
        let back = match backs.get(&peer) {
            Some(back) => back.clone(),
            None => {
                let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("binds"));
                back.connect(server).await.expect("connects");
                tokio::spawn(answers((front.clone(), back.clone()), peer, hole.clone(), relayed[1].clone()));
                backs.insert(peer, back.clone());
                back
            }
        };
        if !hole.load(Ordering::SeqCst) {
            relayed[0].fetch_add(length as u64, Ordering::SeqCst);
            let _ = back.send(&buffer[..length]).await;
        }
    }
}

async fn answers(
    (front, back): (Arc<UdpSocket>, Arc<UdpSocket>),
    peer: SocketAddr,
    hole: Arc<AtomicBool>,
    relayed: Arc<AtomicU64>,
) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    while let Ok(length) = back.recv(&mut buffer).await {
        if !hole.load(Ordering::SeqCst) {
            relayed.fetch_add(length as u64, Ordering::SeqCst);
            let _ = front.send_to(&buffer[..length], peer).await;
        }
    }
}
