//! What one core of this machine can do with S-two's own kernels, measured in the run that reports against it.
//!
//! A proving phase's work divided by these rates is the least time it could take; `bench` prints the fraction reached.

use crate::kernels::simd::int8::{self, Path};
use obelysk_protocol::circuit::segment::Circuit;
use obelysk_protocol::field::{M31, QM31};
use obelysk_protocol::verifier::final_sumcheck::value_rows;
use obelysk_protocol::verifier::points::weight_rows;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Duration;
use stwo::core::channel::Blake2sChannel;
use stwo::core::poly::circle::CanonicCoset;
use stwo::core::vcs::blake2_merkle::Blake2sMerkleHasher;
use stwo::prover::backend::simd::SimdBackend;
use stwo::prover::backend::simd::column::{BaseColumn, SecureColumn};
use stwo::prover::backend::simd::m31::PackedM31;
use stwo::prover::backend::simd::qm31::PackedQM31;
use stwo::prover::lookups::gkr_prover::{Layer, prove_batch};
use stwo::prover::lookups::mle::Mle;
use stwo::prover::poly::circle::{CircleCoefficients, PolyOps};
use stwo::prover::vcs::ops::MerkleOps;

/// Rates of one core, in items per second (bytes per second for `stream`).
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Fractions of a LogUp tree proved by S-two's GKR.
    pub logup: f64,
    /// Output cells of S-two's circle FFT at rate 1/4.
    pub fft: f64,
    /// Cells of S-two's Blake2s Merkle tree, 16 columns.
    pub merkle: f64,
    /// QM31 products, operands from memory.
    pub products: f64,
    /// Sequential read.
    pub stream: f64,
}

/// Work of one phase in items.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// LogUp fractions.
    pub logup: f64,
    /// FFT output cells.
    pub fft: f64,
    /// Merkle cells.
    pub merkle: f64,
    /// QM31 products.
    pub products: f64,
}

impl Work {
    /// Least core-seconds at the ceilings.
    #[must_use]
    pub fn seconds(&self, c: &Ceilings) -> f64 {
        self.logup / c.logup + self.fft / c.fft + self.merkle / c.merkle + self.products / c.products
    }
}

/// Work of a segment by phase, counted from its circuit (`(phase name, work)`).
///
/// Products per cell follow the cost model of the design: 14 per committed cell and 6 per lookup in the sumchecks; half a
/// product per cell to combine rows; three per position of the combined word.
#[must_use]
pub fn work(c: &Circuit, h: usize, blowup_log: usize) -> Vec<(&'static str, Work)> {
    let cells = (value_rows(c, h) << h) as f64;
    let rate = (1u64 << blowup_log) as f64;
    let fractions: f64 = c.leaves().iter().map(|l| (1u64 << l.log_size) as f64).sum();
    let lookups: f64 = c.lookups.iter().map(|l| (1u64 << l.log_size) as f64).sum();
    let weights = if c.matrices.is_empty() { 0.0 } else { (weight_rows(c, h) << h) as f64 };
    let word = (1u64 << (h + blowup_log)) as f64;
    let fold = 4.0 * word * 1.15;
    vec![
        ("encode", Work { fft: cells * rate, merkle: cells * rate, ..Work::default() }),
        ("logup", Work { logup: fractions, ..Work::default() }),
        ("products", Work { products: weights, ..Work::default() }),
        ("final", Work { products: cells * 14.0 + lookups * 6.0, ..Work::default() }),
        ("open", Work { fft: fold, merkle: fold, products: (cells + weights) * 0.5 + word * 3.0, ..Work::default() }),
    ]
}

/// Repetitions of a measurement; the best counts.
const REPEAT: usize = 5;

/// A clock of processor time: a busy machine must not make its ceilings look low.
type Clock<'a> = &'a dyn Fn() -> Duration;

/// Items per second, best of [`REPEAT`].
fn rate(items: f64, clock: Clock<'_>, mut f: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..REPEAT {
        let start = clock();
        f();
        best = best.min(clock().saturating_sub(start).as_secs_f64());
    }
    items / best
}

fn base(i: usize) -> M31 {
    M31::from_u32_unchecked((i as u32).wrapping_mul(2_654_435_761) >> 2)
}

fn ext(i: usize) -> QM31 {
    QM31::from_m31_array([base(i), base(i + 7), base(3 * i + 1), base(i ^ 5)])
}

/// Measures all ceilings on this thread; `clock` is the process's processor time. About two seconds.
#[must_use]
pub fn measure(clock: Clock<'_>) -> Ceilings {
    Ceilings { logup: logup(clock), fft: fft(clock), merkle: merkle(clock), products: products(clock), stream: stream(clock) }
}

fn logup(clock: Clock<'_>) -> f64 {
    // Numerators implicitly 1, as most of ours are: S-two's fastest gate.
    let log = 19;
    let denominators: SecureColumn = (1..=1usize << log).map(ext).collect();
    rate((1u64 << log) as f64, clock, || {
        let layer = Layer::LogUpSingles { denominators: Mle::new(denominators.clone()) };
        black_box(prove_batch::<SimdBackend>(&mut Blake2sChannel::default(), vec![layer]));
    })
}

/// Columns of the FFT and Merkle measurements.
const COLUMNS: usize = 16;

fn column(log: u32) -> BaseColumn {
    (0..1usize << log).map(base).collect()
}

fn fft(clock: Clock<'_>) -> f64 {
    let domain = CanonicCoset::new(18).circle_domain();
    let twiddles = SimdBackend::precompute_twiddles(domain.half_coset);
    let polys: Vec<CircleCoefficients<SimdBackend>> = (0..COLUMNS).map(|_| CircleCoefficients::new(column(16))).collect();
    rate((COLUMNS << 18) as f64, clock, || {
        for p in &polys {
            black_box(p.evaluate_with_twiddles(domain, &twiddles));
        }
    })
}

fn merkle(clock: Clock<'_>) -> f64 {
    let columns: Vec<BaseColumn> = (0..COLUMNS).map(|_| column(18)).collect();
    let refs: Vec<&BaseColumn> = columns.iter().collect();
    rate((COLUMNS << 18) as f64, clock, || {
        let mut layer = <SimdBackend as MerkleOps<Blake2sMerkleHasher>>::commit_on_layer(18, None, &refs);
        for log in (0..18).rev() {
            layer = <SimdBackend as MerkleOps<Blake2sMerkleHasher>>::commit_on_layer(log, Some(&layer), &[]);
        }
        black_box(layer);
    })
}

fn products(clock: Clock<'_>) -> f64 {
    let pack = |i: usize| PackedQM31::from_array(std::array::from_fn(|l| ext(i * 16 + l)));
    let packs = 1usize << 16;
    let a: Vec<PackedQM31> = (0..packs).map(pack).collect();
    let mut b: Vec<PackedQM31> = (0..packs).map(|i| pack(i + 3)).collect();
    rate((packs * 16) as f64, clock, || {
        for (x, &y) in b.iter_mut().zip(&a) {
            *x *= y;
        }
        black_box(&mut b);
    })
}

fn stream(clock: Clock<'_>) -> f64 {
    let data: Vec<PackedM31> = vec![PackedM31::broadcast(base(9)); 1 << 22];
    let bytes = (data.len() * 64) as f64;
    rate(bytes, clock, || {
        let zero = PackedM31::broadcast(M31::from_u32_unchecked(0));
        black_box(data.iter().fold(zero, |a, &v| a + v));
    })
}

/// The int8 fold by one kind of instructions, in weights per second.
#[derive(Clone, Copy, Debug)]
pub struct FoldRate {
    /// Name of the instructions.
    pub path: &'static str,
    /// Rows combined by extension elements.
    pub combine: f64,
    /// Inner products of slots of rows with an extension vector.
    pub partials: f64,
}

/// What folding int8 weights reaches, and what reading them costs at least.
#[derive(Clone, Debug)]
pub struct FoldRates {
    /// Bytes per second of a plain read of the same weights; a weight is one byte.
    pub stream: f64,
    /// Every kind of instructions this processor has, fastest first.
    pub paths: Vec<FoldRate>,
}

/// log2 of the row length of the fold measurement, and of its slots.
const FOLD_LOGS: (usize, usize) = (16, 14);

/// Measures the int8 fold and the stream on the threads of the current pool over `bytes` of memory (rounded up to whole
/// rows of 2^16), which should be more than the caches hold. Rates are per second of `clock`.
#[must_use]
pub fn fold_rates(bytes: usize, clock: Clock<'_>) -> FoldRates {
    let (h, vars) = FOLD_LOGS;
    let rows = bytes.div_ceil(1 << h);
    let weights: Vec<i8> = (0..rows << h).into_par_iter().map(|i| base(i).0 as i8).collect();
    let items = weights.len() as f64;
    let coefficients: Vec<QM31> = (0..rows).map(ext).collect();
    let point: Vec<QM31> = (0..vars).map(ext).collect();
    let stream = stream_of(&weights, clock);
    let measured = |path: Path| FoldRate {
        path: path.name(),
        combine: rate(items, clock, || {
            black_box(int8::combine(path, &weights, 1 << h, &coefficients));
        }),
        partials: rate(items, clock, || {
            black_box(int8::partials(path, &weights, &point));
        }),
    };
    FoldRates { stream, paths: Path::all().into_iter().map(measured).collect() }
}

/// Bytes per second of a plain read of `bytes` of memory on the threads of the current pool, per second of `clock`.
#[must_use]
pub fn stream_rate(bytes: usize, clock: Clock<'_>) -> f64 {
    let weights: Vec<i8> = (0..bytes).into_par_iter().map(|i| i as i8).collect();
    stream_of(&weights, clock)
}

fn stream_of(weights: &[i8], clock: Clock<'_>) -> f64 {
    rate(weights.len() as f64, clock, || {
        let words = bytemuck::cast_slice::<i8, u8>(weights).par_chunks(1 << 16);
        let sum = |chunk: &[u8]| chunk.iter().fold(0u8, |a, &b| a ^ b);
        black_box(words.map(sum).reduce(|| 0, |a, b| a ^ b));
    })
}
