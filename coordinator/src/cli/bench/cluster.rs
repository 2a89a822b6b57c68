//! `obelysk bench cluster`: what a cluster costs beside one process, on this machine.
//!
//! The same input is proved in this process and on node processes; the bytes must be equal. The nodes stay from proof to proof, as they do in
//! a cluster; starting them, which each does once, is shown apart. Processor time of the nodes is that of their whole processes, as the
//! system counts it.

use super::super::args::ClusterBenchArgs;
use super::super::cluster::LocalCluster;
use super::super::exit::{Code, Coded as _, Failure};
use super::super::home::Home;
use super::super::output::{Out, size};
use super::{Model, another_input};
use obelysk_node::job_bytes::JobSpec;
use obelysk_node::traffic::frames;
use obelysk_node::{ModelFolder, NodeBackend, NodeSuite, usage};
use obelysk_protocol::circuit::{PublicInput, segment_count};
use obelysk_protocol::verifier::aggregate::verify_bytes;
use obelysk_protocol::verifier::proof::MODE_FORKED;
use obelysk_shard::local;
use serde::Serialize;
use std::time::{Duration, Instant};

/// One token count, one way of proving: the least of several runs, which is what the machine's other work disturbs least.
#[derive(Clone, Copy, Debug, Serialize)]
struct Cost {
    seconds: f64,
    /// Processor time of all processes.
    core_seconds: f64,
    /// Of that, this process: the coordinator, its checks and the final verification, where there are nodes.
    own_core_seconds: f64,
}

/// One token count.
#[derive(Debug, Serialize)]
struct Row {
    tokens: usize,
    nodes: u32,
    alone: Cost,
    /// Starting the nodes and letting them in.
    start: Cost,
    /// The first proof of nodes that have just joined: weights are read and memory is touched for the first time.
    first: Cost,
    cluster: Cost,
    /// Core-seconds of the cluster over those of one process, less one.
    overhead: f64,
    /// The coordinator's share of the cluster's core-seconds.
    coordinator: f64,
    segments: usize,
    /// Frames other than chunks of blobs, both ways, from submission to proof, over the segments: the most of all runs.
    control_bytes_per_segment: u64,
    /// Chunks of blobs, likewise.
    bulk_bytes_per_segment: u64,
}

/// Runs `bench cluster`.
pub fn run(out: &Out, home: &Home, args: &ClusterBenchArgs) -> Result<(), Failure> {
    let folder = home.open(&args.model)?;
    let model = folder.load::<NodeSuite, NodeBackend>()?;
    let mut rows = Vec::new();
    for &tokens in &args.tokens {
        let row = measure(out, home, (&folder, &model), tokens, args)?;
        out.heading(&format!("{tokens} tokens"));
        let show = |name: &str, c: Cost| {
            out.field(name, format_args!("{:.2} s wall, {:.2} core-s", c.seconds, c.core_seconds));
        };
        show("one process", row.alone);
        show(&format!("{} nodes", row.nodes), row.cluster);
        out.field("overhead", format_args!("{:+.1}% core-seconds", row.overhead * 100.0));
        out.field("coordinator", format_args!("{:.1}% of the cluster's core-seconds", row.coordinator * 100.0));
        let per_segment =
            format!("{} of messages, {} of blobs", size(row.control_bytes_per_segment), size(row.bulk_bytes_per_segment));
        out.field("per segment", format_args!("{per_segment} ({} segments)", row.segments));
        show("starting the nodes", row.start);
        show("their first proof", row.first);
        rows.push(row);
    }
    out.json(&serde_json::json!({ "rows": rows }));
    Ok(())
}

fn measure(
    out: &Out,
    home: &Home,
    (folder, model): (&ModelFolder, &Model),
    tokens: usize,
    args: &ClusterBenchArgs,
) -> Result<Row, Failure> {
    // A node keeps what it has committed: the same input again would cost it less than a new one.
    let public = |run| another_input(model, tokens, run);
    let (mut alone, mut warm, mut proofs) = (None, None, Vec::new());
    for run in 0..=args.runs {
        let input = public(run)?;
        let (cost, proof) = timed(none, || {
            let (proof, _) = local::prove(&NodeBackend::default(), model, &input)?;
            let proof = proof.write();
            verify_bytes::<NodeSuite>(&model.registered, &proof).code(Code::Internal)?;
            Ok(proof)
        })?;
        alone = Some(least(alone, cost));
        proofs.push((input, proof));
    }
    let started = (Instant::now(), usage::cpu_time());
    let cluster = LocalCluster::start(out, home, folder, args.nodes)?;
    let (seconds, own) = (started.0.elapsed().as_secs_f64(), (usage::cpu_time() - started.1).as_secs_f64());
    let start = Cost { seconds, core_seconds: own + cluster.nodes_cpu_time().as_secs_f64(), own_core_seconds: own };
    let nodes = || cluster.nodes_cpu_time();
    let prove = |(input, bytes): &(PublicInput, Vec<u8>)| {
        let (ids, sequences) = (input.ids.clone(), input.sequences.clone());
        let spec = JobSpec { model: folder.id, mode: MODE_FORKED, ids, sequences };
        // Every frame of the cluster begins or ends in this process.
        let before = frames();
        let (cost, result) = timed(nodes, || cluster.prove(out, &spec))?;
        if &result.proof == bytes {
            let passed = frames().since(before);
            return Ok((cost, passed.control.both(), passed.bulk.both()));
        }
        let text = "nodes and one process gave different bytes; report this with the model and the token count";
        Err(Failure { code: Code::Internal, error: anyhow::anyhow!(text) })
    };
    let (first, mut control, mut bulk) = prove(&proofs[0])?;
    for proof in &proofs[1..] {
        let (cost, messages, blobs) = prove(proof)?;
        (control, bulk) = (control.max(messages), bulk.max(blobs));
        warm = Some(least(warm, cost));
    }
    cluster.stop();
    let (Some(alone), Some(cluster)) = (alone, warm) else { return Err(Failure::input("give --runs of at least 1")) };
    let segments = segment_count(&model.registered.descriptor) as usize;
    let each = |bytes: u64| bytes.div_ceil(segments.max(1) as u64);
    Ok(Row {
        tokens,
        nodes: args.nodes,
        alone,
        start,
        first,
        cluster,
        overhead: cluster.core_seconds / alone.core_seconds - 1.0,
        coordinator: cluster.own_core_seconds / cluster.core_seconds,
        segments,
        control_bytes_per_segment: each(control),
        bulk_bytes_per_segment: each(bulk),
    })
}

fn least(so_far: Option<Cost>, cost: Cost) -> Cost {
    so_far.filter(|best| best.core_seconds <= cost.core_seconds).unwrap_or(cost)
}

fn none() -> Duration {
    Duration::ZERO
}

/// What `f` costs in this process and in others.
fn timed<T>(others: impl Fn() -> Duration, f: impl FnOnce() -> Result<T, Failure>) -> Result<(Cost, T), Failure> {
    let (own, before, start) = (usage::cpu_time(), others(), Instant::now());
    let value = f()?;
    let seconds = start.elapsed().as_secs_f64();
    let own_core_seconds = (usage::cpu_time() - own).as_secs_f64();
    let core_seconds = own_core_seconds + others().saturating_sub(before).as_secs_f64();
    Ok((Cost { seconds, core_seconds, own_core_seconds }, value))
}
