//! `obelysk bench layer`: layers of any shape with random weights, out of core.
//!
//! The model is written to disk, registered and proved with the weights of one segment in memory at a time; every proof is
//! verified. Beside the phases it says how often a proof reads the weights, and how fast against a plain read of memory.

use super::super::args::LayerArgs;
use super::super::exit::{Code, Coded as _, Failure};
use super::super::home::Home;
use super::super::output::{Out, size};
use super::{Model, Row, measure, measured, on_threads, print_row};
use obelysk_model::shaped::{Shape, Shaped};
use obelysk_model::{StoredModel, WeightSource as _, preset, store};
use obelysk_node::{NodeBackend, NodeSuite, usage};
use obelysk_protocol::verifier::registered::SecurityParams;
use obelysk_shard::ceilings::{self, Ceilings};
use obelysk_shard::registration;
use serde::Serialize;
use std::time::Instant;

/// Memory read to measure the stream: more than caches hold.
const STREAM_BYTES: usize = 1 << 29;
/// Seed of the weights: every run proves the same model.
const SEED: u64 = 1;
/// What reads weights, once per segment: name of the span, and what it is.
const READS: [(&str, &str); 5] = [
    ("forward", "forward"),
    ("products.weights", "fold, products"),
    ("open.partials", "tiles, opening"),
    ("open.combine", "rows, opening"),
    ("open.leaves", "leaves, opening"),
];

/// One number of layers.
#[derive(Debug, Serialize)]
struct Layers {
    layers: u32,
    /// Weights of the whole model.
    weights: usize,
    register_seconds: f64,
    rows: Vec<Measured>,
}

/// One token count.
#[derive(Debug, Serialize)]
struct Measured {
    #[serde(flatten)]
    row: Row,
    reads: Vec<Read>,
}

/// One way in which a proof reads the weights.
#[derive(Debug, Serialize)]
struct Read {
    what: &'static str,
    /// How often every weight was read.
    passes: f64,
    seconds: f64,
    /// Bytes of weights per second of wall time.
    bytes_per_second: f64,
}

/// Runs `bench layer`.
pub fn run(out: &Out, home: &Home, args: &LayerArgs) -> Result<(), Failure> {
    let shape = match args.shape.parse::<Shape>() {
        Ok(shape) => shape,
        Err(wrong) if args.shape.contains(',') => return Err(Failure::input(wrong.to_string())),
        Err(_) => Shape::from(&preset::named(&args.shape)?),
    };
    let ceilings = measured(out)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let begin = Instant::now();
    let stream = on_threads(cores, || ceilings::stream_rate(STREAM_BYTES, &|| begin.elapsed()))?;
    out.field("stream, all cores", format_args!("{:.1} GB/s", stream / 1e9));
    let mut all = Vec::new();
    for &layers in &args.layers {
        let shape = Shape { layers, vocab: args.vocab, ..shape };
        all.push(one(out, home, args, &shape, (&ceilings, stream, cores))?);
    }
    out.json(&serde_json::json!({ "shape": args.shape, "cores": cores, "stream_bytes": stream, "models": all }));
    Ok(())
}

fn one(
    out: &Out,
    home: &Home,
    args: &LayerArgs,
    shape: &Shape,
    (ceilings, stream, cores): (&Ceilings, f64, usize),
) -> Result<Layers, Failure> {
    std::fs::create_dir_all(home.root())?;
    let dir = tempfile::Builder::new().prefix(".bench-").tempdir_in(home.root())?;
    let spinner = out.spinner(format!("making {} layers of random weights", shape.layers));
    store::save(&Shaped::new(shape, SEED), dir.path())?;
    spinner.finish_and_clear();
    // One segment at a time: what a node with little memory does.
    let stored = StoredModel::open(dir.path(), 0)?;
    let bar = out.bar(stored.segments(), "registering");
    let security = SecurityParams::standard(stored.descriptor().blowup_log());
    let start = Instant::now();
    let registered = on_threads(cores, || {
        let progress = |done: usize| bar.set_position(done as u64);
        let to = (dir.path(), args.codewords.into());
        registration::register_with::<NodeSuite, _>(&NodeBackend::default(), &stored, security, [0; 32], to, &progress)
    })?
    .code(Code::Input)?;
    let register_seconds = start.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let weights = stored.cells()?;
    let model = Model::within(registered, stored, dir.path().to_path_buf(), 0);
    out.heading(&format!("{} layers, {:.1} M weights", shape.layers, weights as f64 / 1e6));
    out.field("registered", format_args!("{register_seconds:.1} s, {} at most so far", size(usage::peak_memory_bytes())));
    let mut rows = Vec::new();
    for &tokens in &args.tokens {
        let row = measure(out, &model, ceilings, tokens, cores)?;
        print_row(out, &row);
        let reads = reads(&row, weights, model.model.segments());
        print_reads(out, &reads, stream);
        rows.push(Measured { row, reads });
    }
    Ok(Layers { layers: shape.layers, weights, register_seconds, rows })
}

/// Every span of these names reads one segment's weights once.
fn reads(row: &Row, weights: usize, segments: usize) -> Vec<Read> {
    let read = |(name, what): (&str, &'static str)| {
        let spent = row.spans.named(name);
        let passes = spent.count as f64 / segments as f64;
        let bytes_per_second = if spent.seconds > 0.0 { weights as f64 * passes / spent.seconds } else { 0.0 };
        Read { what, passes, seconds: spent.seconds, bytes_per_second }
    };
    READS.into_iter().map(read).filter(|r| r.passes > 0.0).collect()
}

fn print_reads(out: &Out, reads: &[Read], stream: f64) {
    out.line("  weights read by      passes    seconds     GB/s   of stream");
    for r in reads {
        let (rate, share) = (r.bytes_per_second / 1e9, 100.0 * r.bytes_per_second / stream);
        out.line(format_args!("  {:<18} {:>8.2}   {:>8.3} {rate:>8.2}   {share:>8.0}%", r.what, r.passes, r.seconds));
    }
    let passes: f64 = reads.iter().filter(|r| r.what != READS[0].1).map(|r| r.passes).sum();
    out.field("passes", format_args!("{passes:.2} in the proof, and the forward pass"));
}
