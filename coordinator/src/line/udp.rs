//! A UDP line to one server. Batches of packets stay batches where all have one fate, so that a fast line costs little.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use obelysk_node::transport::quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, JoinSet};

use super::Faults;
use super::lane::{Lane, Packets, Tally};

/// Most that the kernel hands over at once, and that it takes.
const MAX_BATCH_BYTES: usize = 65_535;
/// Most payload of one call to send.
const MAX_SEND_BYTES: usize = 65_000;
/// Batches per call to receive.
const BATCHES: usize = 8;
/// Peers of one line.
const MAX_PEERS: usize = 1024;
/// Asked of the kernel, which gives what it may: a burst must not be lost here.
const SOCKET_BYTES: usize = 8 << 20;

/// The line; it ends when dropped.
#[derive(Debug)]
pub struct Line {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: AbortHandle,
}

#[derive(Debug, Default)]
struct Shared {
    hole: AtomicBool,
    /// Bytes to the server and back.
    relayed: [AtomicU64; 2],
    tally: Mutex<[Tally; 2]>,
}

#[derive(Debug)]
struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
}

/// Through which socket, and where to.
type Route = (Arc<Socket>, SocketAddr);

impl Line {
    /// A line from a port of this machine's loopback to `server`. Needs a tokio runtime.
    ///
    /// # Errors
    /// No socket.
    pub fn start(server: SocketAddr, faults: Faults) -> io::Result<Self> {
        let front = Arc::new(Socket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?);
        let (address, shared) = (front.io.local_addr()?, Arc::<Shared>::default());
        let task = tokio::spawn(up(front, server, faults, shared.clone())).abort_handle();
        Ok(Self { address, shared, task })
    }

    /// Where to send instead of to the server.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Swallows everything from now on, or stops doing so.
    pub fn swallow(&self, all: bool) {
        self.shared.hole.store(all, Ordering::SeqCst);
    }

    /// Bytes that went to the server, and came back, so far.
    #[must_use]
    pub fn relayed(&self) -> [u64; 2] {
        [0, 1].map(|way| self.shared.relayed[way].load(Ordering::SeqCst))
    }

    /// What happened to packets to the server, and back.
    #[must_use]
    pub fn tally(&self) -> [Tally; 2] {
        *self.shared.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Socket {
    fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = std::net::UdpSocket::bind(address)?;
        let state = UdpSocketState::new((&socket).into())?;
        let _ = state.set_recv_buffer_size((&socket).into(), SOCKET_BYTES);
        let _ = state.set_send_buffer_size((&socket).into(), SOCKET_BYTES);
        Ok(Self { io: UdpSocket::from_std(socket)?, state })
    }

    async fn receive(&self, buffers: &mut [Vec<u8>; BATCHES], about: &mut [RecvMeta; BATCHES]) -> io::Result<usize> {
        loop {
            self.io.readable().await?;
            let mut slices = buffers.each_mut().map(|b| IoSliceMut::new(b));
            let read = || self.state.recv((&self.io).into(), &mut slices, about);
            match self.io.try_io(Interest::READABLE, read) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }

    /// Sends; what the kernel refuses is lost, as on any line.
    async fn send(&self, bytes: &[u8], stride: usize, destination: SocketAddr) {
        let stride = stride.clamp(1, MAX_SEND_BYTES);
        let at_once = stride * self.state.max_gso_segments().min(MAX_SEND_BYTES / stride).max(1);
        for contents in bytes.chunks(at_once) {
            let segment_size = (contents.len() > stride).then_some(stride);
            let transmit = Transmit { destination, ecn: None, contents, segment_size, src_ip: None };
            while self.io.writable().await.is_ok() {
                let written = self.io.try_io(Interest::WRITABLE, || self.state.try_send((&self.io).into(), &transmit));
                if !written.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock) {
                    break;
                }
            }
        }
    }
}

/// Carries to the server; each peer has a socket of its own there, over which answers come back.
async fn up(front: Arc<Socket>, server: SocketAddr, faults: Faults, shared: Arc<Shared>) {
    let (mut flows, mut answers) = (BTreeMap::<SocketAddr, Arc<Socket>>::new(), JoinSet::new());
    let any: SocketAddr = if server.ip().is_loopback() { (Ipv4Addr::LOCALHOST, 0) } else { (Ipv4Addr::UNSPECIFIED, 0) }.into();
    let (from, to) = (front.clone(), shared.clone());
    let route = move |peer: SocketAddr| -> Option<Route> {
        if let Some(back) = flows.get(&peer) {
            return Some((back.clone(), server));
        }
        let back = Arc::new(Socket::bind(any).ok().filter(|_| flows.len() < MAX_PEERS)?);
        let home = (front.clone(), peer);
        let only = move |sender: SocketAddr| (sender == server).then(|| home.clone());
        answers.spawn(carry(back.clone(), (faults, 1), shared.clone(), only));
        flows.insert(peer, back.clone());
        Some((back, server))
    };
    carry(from, (faults, 0), to, route).await;
}

async fn carry(
    input: Arc<Socket>,
    (faults, way): (Faults, usize),
    shared: Arc<Shared>,
    mut route: impl FnMut(SocketAddr) -> Option<Route>,
) {
    let mut lane: Lane<Route> = Lane::new(faults, way as u64);
    let mut buffers = [(); BATCHES].map(|()| vec![0; MAX_BATCH_BYTES]);
    let mut about = [RecvMeta::default(); BATCHES];
    let mut told = Tally::default();
    loop {
        while let Some(Packets { bytes, stride, to: (socket, to) }) = lane.due(Instant::now()) {
            if !shared.hole.load(Ordering::SeqCst) {
                shared.relayed[way].fetch_add(bytes.len() as u64, Ordering::SeqCst);
                socket.send(&bytes, stride, to).await;
            }
        }
        if told != lane.tally {
            add(&shared, way, (told, lane.tally));
            told = lane.tally;
        }
        let next = lane.next().map(tokio::time::Instant::from_std);
        tokio::select! {
            received = input.receive(&mut buffers, &mut about) => {
                // An error is one that an earlier packet caused; the socket goes on.
                let received = received.unwrap_or(0);
                let now = Instant::now();
                for (buffer, meta) in buffers.iter().zip(&about).take(received) {
                    if let (Some(bytes), Some(to)) = (buffer.get(..meta.len), route(meta.addr)) {
                        lane.take(now, Packets { bytes: bytes.to_vec(), stride: meta.stride, to });
                    }
                }
            }
            () = tokio::time::sleep_until(next.unwrap_or_else(tokio::time::Instant::now)), if next.is_some() => {}
        }
    }
}

/// Adds what one flow counted since it told last.
fn add(shared: &Shared, way: usize, (told, now): (Tally, Tally)) {
    let sum = &mut shared.tally.lock().unwrap_or_else(PoisonError::into_inner)[way];
    sum.came += now.came - told.came;
    sum.lost += now.lost - told.lost;
    sum.copied += now.copied - told.copied;
    sum.overtook += now.overtook - told.overtook;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn packets_go_there_and_back_in_time() {
        let server = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        let delay = Duration::from_millis(20);
        let line = Line::start(server.local_addr().expect("bound"), Faults::delayed(delay)).expect("starts");
        let client = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        let (started, mut buffer) = (Instant::now(), [0; 64]);
        client.send_to(b"there", line.address()).await.expect("sent");
        let (length, from) = server.recv_from(&mut buffer).await.expect("arrives");
        assert!(&buffer[..length] == b"there" && started.elapsed() >= delay);
        server.send_to(b"and back", from).await.expect("sent");
        let (length, _) = client.recv_from(&mut buffer).await.expect("arrives");
        assert!(&buffer[..length] == b"and back" && started.elapsed() >= 2 * delay);
        assert_eq!((line.relayed(), line.tally()[1].came), ([5, 8], 1));
        line.swallow(true);
        client.send_to(b"lost", line.address()).await.expect("sent");
        let nothing = tokio::time::timeout(4 * delay, server.recv_from(&mut buffer)).await;
        assert!(nothing.is_err() && line.relayed()[0] == 5);
    }
}
