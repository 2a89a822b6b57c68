//! A UDP relay that can be told to swallow everything: a network that fails and comes back, without privileges.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UdpSocket;

/// Longest UDP payload.
const MAX_DATAGRAM: usize = 65_535;

/// A relay to one server; ends with the test's runtime.
pub struct Proxy {
    pub address: SocketAddr,
    hole: Arc<AtomicBool>,
}

impl Proxy {
    pub async fn start(server: SocketAddr) -> Self {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("binds"));
        let address = front.local_addr().expect("bound");
        let hole = Arc::new(AtomicBool::new(false));
        tokio::spawn(relay(front, server, hole.clone()));
        Self { address, hole }
    }

    /// Swallows everything from now on, or stops doing so.
    pub fn swallow(&self, all: bool) {
        self.hole.store(all, Ordering::SeqCst);
    }
}

async fn relay(front: Arc<UdpSocket>, server: SocketAddr, hole: Arc<AtomicBool>) {
    let mut backs: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
    let mut buffer = vec![0; MAX_DATAGRAM];
    while let Ok((length, peer)) = front.recv_from(&mut buffer).await {
        let back = match backs.get(&peer) {
            Some(back) => back.clone(),
            None => {
                let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("binds"));
                back.connect(server).await.expect("connects");
                tokio::spawn(answers(front.clone(), back.clone(), peer, hole.clone()));
                backs.insert(peer, back.clone());
                back
            }
        };
        if !hole.load(Ordering::SeqCst) {
            let _ = back.send(&buffer[..length]).await;
        }
    }
}

async fn answers(front: Arc<UdpSocket>, back: Arc<UdpSocket>, peer: SocketAddr, hole: Arc<AtomicBool>) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    while let Ok(length) = back.recv(&mut buffer).await {
        if !hole.load(Ordering::SeqCst) {
            let _ = front.send_to(&buffer[..length], peer).await;
        }
    }
}
