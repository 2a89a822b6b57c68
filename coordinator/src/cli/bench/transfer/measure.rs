//! The side that stands where a node does: fetches and offers the blob as a node does, then copies the same bytes over TCP.

use super::super::super::args::TransferArgs;
use super::super::super::exit::{Code, Coded as _, Failure};
use super::serve::{GET, PUT, receive};
use super::{Place, Row, payload};
use anyhow::anyhow;
use obelysk_coordinator::line::{Faults, Line, TcpLine};
use obelysk_node::CoordinatorAddress;
use obelysk_node::transport::quinn::Connection;
use obelysk_node::transport::{InMemory, Parts, connect, fetch_part, offer};
use obelysk_protocol::wire::BlobRef;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Bytes per second of a megabit per second.
const MBIT: u64 = 125_000;

/// The two directions.
#[derive(Clone, Copy)]
enum Direction {
    Fetch,
    Offer,
}

/// Measures every line in both directions and says it in one line.
pub(super) async fn measure(args: &TransferArgs) -> Result<(), Failure> {
    let place: Place = serde_json::from_str(args.at.as_deref().unwrap_or_default())?;
    let bytes = Arc::new(payload(args.mib));
    let source = InMemory { blob: BlobRef::of(&bytes), bytes };
    let address: CoordinatorAddress = place.address.parse()?;
    let server: SocketAddr = format!("{}:{}", address.host, address.port).parse()?;
    let mut lines = vec![(0, 0), (args.delay_ms, 0)];
    if args.rate_mbit > 0 {
        lines.push((args.delay_ms, args.rate_mbit));
    }
    let mut rows = Vec::new();
    for (delay_ms, rate_mbit) in lines {
        let delay = Duration::from_millis(delay_ms.into());
        let faults = Faults { rate: u64::from(rate_mbit) * MBIT, ..Faults::delayed(delay) };
        let direct = faults == Faults::default();
        // Both lines live until both directions are measured.
        let relays = if direct { None } else { Some((Line::start(server, faults)?, TcpLine::start(place.tcp, faults).await?)) };
        let (quic, tcp) = relays.as_ref().map_or((server, place.tcp), |(line, copies)| (line.address(), copies.address()));
        let there = CoordinatorAddress { host: quic.ip().to_string(), port: quic.port(), ..address.clone() };
        for direction in [Direction::Fetch, Direction::Offer] {
            rows.push(one(&there, tcp, &source, direction, (args.runs, delay_ms, rate_mbit)).await?);
        }
    }
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&rows).code(Code::Internal)?)?;
    Ok(())
}

async fn one(
    there: &CoordinatorAddress,
    tcp: SocketAddr,
    source: &InMemory,
    direction: Direction,
    (runs, delay_ms, rate_mbit): (u32, u32, u32),
) -> Result<Row, Failure> {
    let (_endpoint, connection) = connect(there, None).await.code(Code::Cluster)?;
    let (mut blobs, mut copies) = (Vec::new(), Vec::new());
    // In turns, so that what else the machine does disturbs both. One more of ours: the first is told apart.
    for run in 0..=runs {
        blobs.push(moved(&connection, source, direction).await?);
        if run > 0 {
            copies.push(copied(tcp, &source.bytes, direction).await?);
        }
    }
    let gbit = |seconds: f64| source.blob.length as f64 * 8e-9 / seconds;
    let first_gbit_per_s = gbit(blobs.remove(0));
    let (gbit_per_s, tcp_gbit_per_s) = (gbit(median(&mut blobs)), gbit(median(&mut copies)));
    let path = connection.stats().path;
    Ok(Row {
        delay_ms,
        rate_mbit,
        direction: match direction {
            Direction::Fetch => "fetch".to_owned(),
            Direction::Offer => "offer".to_owned(),
        },
        tcp_gbit_per_s,
        gbit_per_s,
        first_gbit_per_s,
        fraction: gbit_per_s / tcp_gbit_per_s,
        packet_bytes: path.current_mtu,
        lost_packets: path.lost_packets,
    })
}

/// Seconds that the blob takes, from the question to the last chunk checked, or to the word that it is there.
async fn moved(connection: &Connection, source: &InMemory, direction: Direction) -> Result<f64, Failure> {
    let started = Instant::now();
    match direction {
        Direction::Fetch => {
            let parts = Arc::new(Parts::in_memory());
            let whole = fetch_part(connection, &parts, source.blob, u64::MAX).await.code(Code::Cluster)?;
            let seconds = started.elapsed().as_secs_f64();
            if whole.into_bytes()? != *source.bytes {
                return Err(anyhow!("other bytes arrived; report this")).code(Code::Internal);
            }
            Ok(seconds)
        }
        Direction::Offer => {
            offer(connection, 0, source).await.code(Code::Cluster)?;
            Ok(started.elapsed().as_secs_f64())
        }
    }
}

/// Seconds that a plain copy takes, once connected.
async fn copied(tcp: SocketAddr, bytes: &[u8], direction: Direction) -> Result<f64, Failure> {
    let mut stream = TcpStream::connect(tcp).await.code(Code::Cluster)?;
    let started = Instant::now();
    match direction {
        Direction::Fetch => {
            stream.write_u8(GET).await?;
            let got = receive(&mut stream, bytes.len()).await?;
            let seconds = started.elapsed().as_secs_f64();
            drop(got);
            Ok(seconds)
        }
        Direction::Offer => {
            stream.write_u8(PUT).await?;
            stream.write_all(bytes).await?;
            stream.read_u8().await?;
            Ok(started.elapsed().as_secs_f64())
        }
    }
}

fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
}
