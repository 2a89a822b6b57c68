//! `obelysk bench`: what proving costs here, as fractions of ceilings measured in the same run.
//!
//! Ceilings are S-two's own kernels on one core. A phase's fraction is its work at the ceilings divided by the processor
//! time it took, so it does not depend on how busy the machine is. Forward pass and grinding are printed apart.

mod brain;
mod cluster;
mod fit;
mod layer;
mod spans;
mod transfer;

use super::args::{BenchArgs, BenchCommand};
use super::exit::{Code, Coded as _, Failure};
use super::home::Home;
use super::output::{Out, size};
use fit::{quadratic, through};
use obelysk_model::infer::decoder::generate;
use obelysk_node::{NodeBackend, NodeSuite, usage};
use obelysk_protocol::circuit::{PublicInput, Sequence, build, exp_tables, segment_count};
use obelysk_protocol::verifier::aggregate::verify_bytes;
use obelysk_shard::ceilings::{self, Ceilings, Work};
use obelysk_shard::job::LoadedModel;
use obelysk_shard::local;
use serde::Serialize;
use spans::Spans;
use std::time::Instant;

/// Phases whose work has a ceiling, in order.
const PHASES: [&str; 5] = ["encode", "logup", "products", "final", "open"];
/// Phases reported without one.
const APART: [&str; 3] = ["forward", "witness", "grind"];

type Model = LoadedModel<NodeSuite, NodeBackend>;

/// One phase of one run.
#[derive(Debug, Serialize)]
struct PhaseRow {
    phase: &'static str,
    /// Processor time.
    core_seconds: f64,
    /// Least core-seconds at the ceilings; `None` for phases reported apart.
    work_seconds: Option<f64>,
    /// `work_seconds / core_seconds`.
    fraction: Option<f64>,
}

/// One token count.
#[derive(Debug, Serialize)]
struct Row {
    tokens: usize,
    threads: usize,
    /// Wall time of the whole proof.
    seconds: f64,
    core_seconds: f64,
    /// Work of the proving phases at the ceilings.
    work_seconds: f64,
    /// Work over processor time of the proving phases.
    fraction: f64,
    verify_seconds: f64,
    proof_bytes: usize,
    peak_memory_bytes: u64,
    security_bits: f64,
    /// Weights times tokens over processor time.
    parameter_tokens_per_core_second: f64,
    phases: Vec<PhaseRow>,
    #[serde(skip)]
    spans: Spans,
}

/// Runs `bench`.
pub fn run(out: &Out, home: &Home, args: &BenchArgs) -> Result<(), Failure> {
    match &args.command {
        Some(BenchCommand::Layer(args)) => return layer::run(out, home, args),
        Some(BenchCommand::Cluster(args)) => return cluster::run(out, home, args),
        Some(BenchCommand::Brain(args)) => return brain::run(out, args),
        Some(BenchCommand::Transfer(args)) => return transfer::run(out, args),
        None => {}
    }
    let folder = home.open(&args.model)?;
    let ceilings = measured(out)?;
    let model = folder.load::<NodeSuite, NodeBackend>()?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut rows = Vec::new();
    for &tokens in &args.tokens {
        let row = measure(out, &model, &ceilings, tokens, cores)?;
        print_row(out, &row);
        rows.push(row);
    }
    let scaling = scaling(out, &model, &ceilings, &rows, cores)?;
    let fitted = fit_rows(out, &rows);
    out.json(&serde_json::json!({
        "ceilings": { "logup_fractions": ceilings.logup, "fft_cells": ceilings.fft, "merkle_cells": ceilings.merkle,
            "qm31_products": ceilings.products, "stream_bytes": ceilings.stream },
        "cores": cores, "rows": rows, "scaling_from_one_core": scaling, "core_seconds_fit": fitted,
    }));
    Ok(())
}

/// This machine's ceilings, measured now and printed.
fn measured(out: &Out) -> Result<Ceilings, Failure> {
    let spinner = out.spinner("measuring ceilings on one core");
    let ceilings = on_threads(1, || ceilings::measure(&usage::cpu_time))?;
    spinner.finish_and_clear();
    print_ceilings(out, &ceilings);
    Ok(ceilings)
}

/// Runs `f` on a pool of `n` threads.
fn on_threads<T: Send>(n: usize, f: impl FnOnce() -> T + Send) -> Result<T, Failure> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().code(Code::Internal)?;
    Ok(pool.install(f))
}

fn measure(out: &Out, model: &Model, ceilings: &Ceilings, tokens: usize, threads: usize) -> Result<Row, Failure> {
    let backend = NodeBackend::default();
    let input = input(model, tokens)?;
    let spinner = out.spinner(format!("proving {tokens} tokens on {threads} threads"));
    let cpu = usage::cpu_time();
    let start = Instant::now();
    let (outcome, spans) = on_threads(threads, || spans::record(|| local::prove(&backend, model, &input)))?;
    let (proof, _) = outcome?;
    let seconds = start.elapsed().as_secs_f64();
    let core_seconds = (usage::cpu_time() - cpu).as_secs_f64();
    spinner.finish_and_clear();
    let bytes = proof.write();
    let start = Instant::now();
    let accepted = on_threads(1, || verify_bytes::<NodeSuite>(&model.registered, &bytes))?.code(Code::Internal)?;
    let verify_seconds = start.elapsed().as_secs_f64();
    let work = work(model, &input)?;
    let spent = |phase: &str| spans.phase(phase);
    let with_ceiling = PHASES.iter().zip(&work).map(|(&phase, w)| {
        let least = w.seconds(ceilings);
        let core_seconds = spent(phase);
        PhaseRow { phase, core_seconds, work_seconds: Some(least), fraction: Some(least / core_seconds) }
    });
    let apart = APART.iter().map(|&phase| PhaseRow { phase, core_seconds: spent(phase), work_seconds: None, fraction: None });
    let work_seconds = work.iter().map(|w| w.seconds(ceilings)).sum::<f64>();
    let proving: f64 = PHASES.iter().map(|p| spent(p)).sum::<f64>() + spent("witness");
    Ok(Row {
        tokens,
        threads,
        seconds,
        core_seconds,
        work_seconds,
        fraction: work_seconds / proving,
        verify_seconds,
        proof_bytes: bytes.len(),
        peak_memory_bytes: usage::peak_memory_bytes(),
        security_bits: accepted.security_bits,
        parameter_tokens_per_core_second: (model.model.cells()? * tokens) as f64 / core_seconds,
        phases: with_ceiling.chain(apart).collect(),
        spans,
    })
}

/// Ids spread over the vocabulary, whose values do not change the amount of work; a decoder continues them by one token.
fn input(model: &Model, tokens: usize) -> Result<PublicInput, Failure> {
    another_input(model, tokens, 0)
}

/// The input with this number: as much work as any other of its length, and no part in common.
fn another_input(model: &Model, tokens: usize, number: u32) -> Result<PublicInput, Failure> {
    let d = &model.registered.descriptor;
    let mut ids: Vec<u32> = (0..tokens as u32).map(|i| (1000 + number * 101 + i * 37) % d.vocab()).collect();
    let Some(decoder) = d.decoder() else { return Ok(PublicInput::text(ids)) };
    let completion = generate(decoder, &*model.model, &ids, 1, &[])?;
    let sequences = vec![Sequence { prompt: tokens as u32, completion: completion.len() as u32 }];
    ids.extend(completion);
    Ok(PublicInput { ids, sequences, output: Vec::new() })
}

/// Work of all segments by phase, in the order of [`PHASES`].
fn work(model: &Model, input: &PublicInput) -> Result<Vec<Work>, Failure> {
    let d = &model.registered.descriptor;
    let exp = exp_tables();
    let mut sums = vec![Work::default(); PHASES.len()];
    for segment in 0..segment_count(d) {
        let c = build(d, &exp, input, segment)?;
        for (sum, (_, w)) in sums.iter_mut().zip(ceilings::work(&c, usize::from(d.row_log()), usize::from(d.blowup_log()))) {
            sum.logup += w.logup;
            sum.fft += w.fft;
            sum.merkle += w.merkle;
            sum.products += w.products;
        }
    }
    Ok(sums)
}

/// Wall-time ratio of one thread to two at 128 tokens (or the largest count measured below it).
fn scaling(out: &Out, model: &Model, ceilings: &Ceilings, rows: &[Row], cores: usize) -> Result<Option<f64>, Failure> {
    let Some(row) = rows.iter().filter(|r| r.tokens <= 128).max_by_key(|r| r.tokens) else { return Ok(None) };
    if cores < 2 {
        out.note("one core only: scaling is not measured");
        return Ok(None);
    }
    let one = measure(out, model, ceilings, row.tokens, 1)?;
    let two = measure(out, model, ceilings, row.tokens, 2)?;
    let ratio = one.seconds / two.seconds;
    out.field("scaling", format_args!("{ratio:.2}x from one thread to two at {} tokens", row.tokens));
    Ok(Some(ratio))
}

/// Core-seconds as a + b T + c T^2: tables are constant, attention is quadratic.
fn fit_rows(out: &Out, rows: &[Row]) -> Option<[f64; 3]> {
    let points: Vec<(f64, f64)> = rows.iter().map(|r| (r.tokens as f64, r.core_seconds)).collect();
    let fit = quadratic(&points)?;
    out.field("core-seconds", format_args!("{:.3} + {:.3e} T + {:.3e} T^2", fit[0], fit[1], fit[2]));
    for (t, s) in &points {
        out.field("", format_args!("T = {t:>4}: measured {s:.2}, fitted {:.2}", through(&fit, *t)));
    }
    Some(fit)
}

fn print_ceilings(out: &Out, c: &Ceilings) {
    out.heading("Ceilings, one core, S-two's kernels");
    let mega = |v: f64, unit: &str| format!("{:.1} M {unit}/s", v / 1e6);
    out.field("LogUp", mega(c.logup, "fractions"));
    out.field("circle FFT", mega(c.fft, "cells"));
    out.field("Merkle", mega(c.merkle, "cells"));
    out.field("products", mega(c.products, "QM31"));
    out.field("memory stream", format_args!("{:.1} GB/s", c.stream / 1e9));
}

fn print_row(out: &Out, r: &Row) {
    out.heading(&format!("{} tokens, {} threads", r.tokens, r.threads));
    out.line("  phase       core-s   at ceiling   fraction");
    for p in &r.phases {
        let work = p.work_seconds.map_or_else(|| "         -".into(), |w| format!("{w:>10.3}"));
        let fraction = p.fraction.map_or_else(|| "       -".into(), |f| format!("{:>7.0}%", f * 100.0));
        out.line(format_args!("  {:<10} {:>7.3}   {work}   {fraction}", p.phase, p.core_seconds));
    }
    out.field("proving", format_args!("{:.0}% of the ceilings ({:.2} core-s of work)", r.fraction * 100.0, r.work_seconds));
    out.field("whole proof", format_args!("{:.2} s wall, {:.2} core-s", r.seconds, r.core_seconds));
    out.field(
        "throughput",
        format_args!("{:.1} M parameters x tokens per second and core", r.parameter_tokens_per_core_second / 1e6),
    );
    out.field("verification", format_args!("{:.3} s on one core", r.verify_seconds));
    out.field("proof", format_args!("{}, {:.1} bits", size(r.proof_bytes as u64), r.security_bits));
    out.field("peak memory", size(r.peak_memory_bytes));
}
