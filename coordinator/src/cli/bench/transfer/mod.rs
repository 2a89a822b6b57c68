//! `obelysk bench transfer`: blobs as nodes move them, beside a plain copy over TCP of the same bytes, from memory to memory, in the same run.
//!
//! Two processes, each in a network namespace of its own with a cable between them where this user may make those, otherwise both on the
//! loopback interface. The second part goes through lines that delay each way: packets of QUIC through a relay of packets, the copy through a
//! relay of streams, both in the process that measures.

mod measure;
mod serve;

use super::super::args::{TransferArgs, TransferSide};
use super::super::cluster::runtime;
use super::super::exit::{Code, Coded as _, Failure};
use super::super::output::Out;
use anyhow::anyhow;
use serde::{Deserialize, Serialize};
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

/// Addresses at the two ends of the cable: of a block for tests (RFC 5737).
const ENDS: [&str; 2] = ["192.0.2.1", "192.0.2.2"];

/// Where the serving side is.
#[derive(Debug, Serialize, Deserialize)]
struct Place {
    /// Of blobs, with its pin.
    address: String,
    /// Of copies.
    tcp: SocketAddr,
}

/// One direction over one line: medians.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    /// Each way.
    delay_ms: u32,
    /// Of the line; 0: as fast as this machine goes.
    rate_mbit: u32,
    /// `fetch` or `offer`, as the node sees it.
    direction: String,
    tcp_gbit_per_s: f64,
    gbit_per_s: f64,
    /// The first on its connection, which has to find out first what the line carries.
    first_gbit_per_s: f64,
    /// `gbit_per_s / tcp_gbit_per_s`.
    fraction: f64,
    /// UDP payload of a packet at the end.
    packet_bytes: u16,
    /// Packets that the sender took for lost, of all runs.
    lost_packets: u64,
}

/// Runs `bench transfer`, or one of its sides.
pub fn run(out: &Out, args: &TransferArgs) -> Result<(), Failure> {
    match &args.side {
        Some(TransferSide::Serve) => return runtime()?.block_on(serve::serve(args)),
        Some(TransferSide::Measure) => return runtime()?.block_on(measure::measure(args)),
        None => {}
    }
    let cable = Cable::plug_in();
    let stage = if cable.is_some() { "two network namespaces with a cable of 1,500 bytes" } else { "the loopback interface" };
    if cable.is_none() {
        out.note("network namespaces need root and iproute2; both processes are on the loopback interface instead");
    }
    let host = if cable.is_some() { ENDS[0] } else { "127.0.0.1" };
    let mut server = Side::spawn(&cable, 0, args, &["--side", "serve", "--host", host])?;
    let place = server.line()?;
    let spinner = out.spinner("moving bytes");
    let mut client = Side::spawn(&cable, 1, args, &["--side", "measure", "--at", &place])?;
    let rows = client.line();
    spinner.finish_and_clear();
    let rows: Vec<Row> = serde_json::from_str(&rows?).code(Code::Internal)?;
    out.heading(&format!("{} MiB, {stage}, medians of {}", args.mib, args.runs));
    out.line("  each way   line        direction  TCP Gbit/s  blobs Gbit/s  fraction  first  packet");
    for r in &rows {
        let line = if r.rate_mbit == 0 { "unlimited".to_owned() } else { format!("{} Mbit/s", r.rate_mbit) };
        out.line(format_args!(
            "  {:>5} ms   {line:<11} {:<9} {:>11.2} {:>13.2} {:>8.0}% {:>6.2} {:>7}",
            r.delay_ms,
            r.direction,
            r.tcp_gbit_per_s,
            r.gbit_per_s,
            r.fraction * 100.0,
            r.first_gbit_per_s,
            r.packet_bytes
        ));
    }
    let least = rows.iter().map(|r| r.fraction).fold(f64::INFINITY, f64::min);
    out.field("least", format_args!("{:.0}% of the copy", least * 100.0));
    out.json(
        &serde_json::json!({ "mib": args.mib, "runs": args.runs, "namespaces": cable.is_some(), "rows": rows, "least": least }),
    );
    Ok(())
}

/// Two namespaces and the cable between them; gone when dropped.
struct Cable([String; 2]);

impl Cable {
    /// `None` where this user may not.
    fn plug_in() -> Option<Self> {
        let cable = Self([0, 1].map(|end| format!("obkt{}x{end}", std::process::id())));
        let [a, b] = &cable.0;
        let ip = |args: &[&str]| {
            let run = Command::new("ip").args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
            run.is_ok_and(|status| status.success())
        };
        let up = |end: usize| {
            let (namespace, address) = (&cable.0[end], format!("{}/24", ENDS[end]));
            ip(&["-n", namespace, "address", "add", &address, "dev", "cable"])
                && ip(&["-n", namespace, "link", "set", "lo", "up"])
                && ip(&["-n", namespace, "link", "set", "cable", "up"])
        };
        let plugged = ip(&["netns", "add", a])
            && ip(&["netns", "add", b])
            && ip(&["-n", a, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", b])
            && up(0)
            && up(1);
        plugged.then_some(cable)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for namespace in &self.0 {
            let _ = Command::new("ip").args(["netns", "del", namespace]).stderr(Stdio::null()).status();
        }
    }
}

/// One of the two processes; it ends with this one, however that ends, because it reads from it.
struct Side(Child);

impl Side {
    fn spawn(cable: &Option<Cable>, end: usize, args: &TransferArgs, how: &[&str]) -> Result<Self, Failure> {
        let this = std::env::current_exe()?;
        let mut command = match cable {
            None => Command::new(this),
            Some(cable) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &cable.0[end]]).arg(this);
                command
            }
        };
        let [mib, runs, delay, rate] = [args.mib, args.runs, args.delay_ms, args.rate_mbit].map(|n| n.to_string());
        let same = ["bench", "transfer", "--mib", &mib, "--runs", &runs, "--delay-ms", &delay, "--rate-mbit", &rate];
        command.args(same).args(how).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().map(Self).map_err(|e| anyhow!("cannot start a process: {e}")).code(Code::Cluster)
    }

    /// The one line it says.
    fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        if let Some(said) = self.0.stdout.as_mut() {
            BufReader::new(said).read_line(&mut line)?;
        }
        let silent = || anyhow!("a side of the measurement ended; its message is above");
        Some(line).filter(|line| !line.is_empty()).ok_or_else(silent).code(Code::Cluster)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Completes when the process that started this one is gone.
async fn orphaned() {
    let closed = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let _ = closed.await;
}

/// Bytes that no network can compress and that both sides make alike.
fn payload(mib: u32) -> Vec<u8> {
    let words = u64::from(mib) << 17;
    let mut bytes = Vec::with_capacity(words as usize * 8);
    let mut state = 1_u64;
    for _ in 0..words {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    bytes
}
