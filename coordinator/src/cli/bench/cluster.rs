//! `obelysk bench cluster`: what a cluster costs beside one process, on this machine.
//!
//! The same input is proved in this process and on node processes; the bytes must be equal. Processor time of the nodes is
//! that of their whole processes, start and loading included, as the system counts it.

use super::super::args::ClusterBenchArgs;
use super::super::cluster;
use super::super::exit::{Code, Coded as _, Failure};
use super::super::home::Home;
use super::super::output::{Out, size};
use super::{Model, input};
use obelysk_node::job_bytes::JobSpec;
use obelysk_node::traffic::frames;
use obelysk_node::{ModelFolder, NodeBackend, NodeSuite, usage};
use obelysk_protocol::circuit::segment_count;
use obelysk_protocol::verifier::aggregate::verify_bytes;
use obelysk_protocol::verifier::proof::MODE_FORKED;
use obelysk_shard::local;
use serde::Serialize;
use std::time::Instant;

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
    cluster: Cost,
    /// Core-seconds of the cluster over those of one process, less one.
    overhead: f64,
    /// The coordinator's share of the cluster's core-seconds.
    coordinator: f64,
    segments: usize,
    /// Frames other than chunks of blobs, both ways, joining and leaving included, over the segments: the most of all runs.
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
    let public = input(model, tokens)?;
    let spec = JobSpec { model: folder.id, mode: MODE_FORKED, ids: public.ids.clone(), sequences: public.sequences.clone() };
    let (mut alone, mut cluster, mut bytes) = (None, None, Vec::new());
    let (mut control, mut bulk) = (0, 0);
    for _ in 0..args.runs {
        let (cost, proof) = timed(|| {
            let (proof, _) = local::prove(&NodeBackend::default(), model, &public)?;
            let proof = proof.write();
            verify_bytes::<NodeSuite>(&model.registered, &proof).code(Code::Internal)?;
            Ok(proof)
        })?;
        alone = Some(least(alone, cost));
        bytes = proof;
    }
    for _ in 0..args.runs {
        // Every frame of the cluster begins or ends in this process.
        let before = frames();
        let (cost, proof) = timed(|| Ok(cluster::prove(out, home, folder, &spec, args.nodes)?.proof))?;
        if proof != bytes {
            let text = "nodes and one process gave different bytes; report this with the model and the token count";
            return Err(Failure { code: Code::Internal, error: anyhow::anyhow!(text) });
        }
        let passed = frames().since(before);
        (control, bulk) = (passed.control.both().max(control), passed.bulk.both().max(bulk));
        cluster = Some(least(cluster, cost));
    }
    let (Some(alone), Some(cluster)) = (alone, cluster) else { return Err(Failure::input("give --runs of at least 1")) };
    let segments = segment_count(&model.registered.descriptor) as usize;
    let each = |bytes: u64| bytes.div_ceil(segments.max(1) as u64);
    Ok(Row {
        tokens,
        nodes: args.nodes,
        alone,
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

fn timed<T>(f: impl FnOnce() -> Result<T, Failure>) -> Result<(Cost, T), Failure> {
    let (own, children, start) = (usage::cpu_time(), usage::children_cpu_time(), Instant::now());
    let value = f()?;
    let seconds = start.elapsed().as_secs_f64();
    let own_core_seconds = (usage::cpu_time() - own).as_secs_f64();
    let core_seconds = own_core_seconds + (usage::children_cpu_time() - children).as_secs_f64();
    Ok((Cost { seconds, core_seconds, own_core_seconds }, value))
}
