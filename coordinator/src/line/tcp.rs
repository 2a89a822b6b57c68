//! The same for TCP, as far as a relay of streams can: everything arrives, later, and no faster than the rate. What a plain copy over such a
//! line gives is what a transfer over [`Line`](super::Line) is held against.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::Faults;
use super::lane::{MAX_HELD_BYTES, MAX_QUEUE};

/// Read at once.
const PIECE: usize = 256 << 10;

/// The line; it ends when dropped.
#[derive(Debug)]
pub struct TcpLine {
    address: SocketAddr,
    task: AbortHandle,
}

impl TcpLine {
    /// A line from a port of this machine's loopback to `server`. Needs a tokio runtime.
    ///
    /// # Errors
    /// No socket.
    pub async fn start(server: SocketAddr, faults: Faults) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        Ok(Self { address, task: tokio::spawn(accept(listener, server, faults)).abort_handle() })
    }

    /// Where to connect instead of to the server.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for TcpLine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, faults: Faults) {
    let mut ways = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        let Ok(far) = TcpStream::connect(server).await else { continue };
        let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
        for (read, write) in [(near_read, far_write), (far_read, near_write)] {
            let (held, waiting) = mpsc::channel(MAX_HELD_BYTES / PIECE);
            ways.spawn(take(read, held, faults));
            ways.spawn(give(write, waiting));
        }
    }
}

async fn take(mut read: OwnedReadHalf, held: mpsc::Sender<(Instant, Vec<u8>)>, faults: Faults) {
    let (mut buffer, mut free) = (vec![0; PIECE], Instant::now());
    while let Ok(length @ 1..) = read.read(&mut buffer).await {
        let now = Instant::now();
        let mut leaves = now;
        if faults.rate > 0 {
            leaves = free.max(now) + Duration::from_secs_f64(length as f64 / faults.rate as f64);
            free = leaves;
        }
        let bytes = buffer.get(..length).unwrap_or_default().to_vec();
        if held.send((leaves + faults.delay, bytes)).await.is_err() {
            return;
        }
        // A stream loses nothing: who sends has to wait.
        tokio::time::sleep_until(leaves.checked_sub(MAX_QUEUE).unwrap_or(leaves)).await;
    }
}

async fn give(mut write: OwnedWriteHalf, mut waiting: mpsc::Receiver<(Instant, Vec<u8>)>) {
    while let Some((due, bytes)) = waiting.recv().await {
        tokio::time::sleep_until(due).await;
        if write.write_all(&bytes).await.is_err() {
            return;
        }
    }
    let _ = write.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_arrives_whole_late_and_at_the_rate() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let delay = Duration::from_millis(30);
        let faults = Faults { rate: 10_000_000, ..Faults::delayed(delay) };
        let line = TcpLine::start(listener.local_addr().expect("bound"), faults).await.expect("starts");
        let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
        let started = Instant::now();
        let mut client = TcpStream::connect(line.address()).await.expect("connects");
        let (mut server, _) = listener.accept().await.expect("accepts");
        let sending = async {
            client.write_all(&sent).await.expect("sent");
            client.shutdown().await.expect("ended");
        };
        let mut got = Vec::new();
        let ((), read) = tokio::join!(sending, server.read_to_end(&mut got));
        assert!(read.is_ok() && got == sent);
        assert!(started.elapsed() >= delay + Duration::from_millis(290), "{:?}", started.elapsed());
    }
}
