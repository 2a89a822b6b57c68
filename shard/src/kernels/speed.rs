//! Speeds on the machine at hand: `cargo test --release -p obelysk-shard -- --ignored --nocapture speed`.

use super::simd::Simd;
use super::{CodeShape, CommitKernels};
use crate::prover::commitment::{CommittedValues, Oracle, RegisteredOracle};
use crate::prover::opening::{OpeningInput, prove};
use crate::prover::tests::{Kind, Rng, true_claim};
use obelysk_protocol::field::signed;
use obelysk_protocol::transcript::{Blake2s, Transcript};
use obelysk_protocol::verifier::opening::{OpeningParams, OracleClaim, verify};
use std::time::Instant;

/// Best of three, in seconds.
fn time<T>(mut f: impl FnMut() -> T) -> (f64, T) {
    let mut best = f64::INFINITY;
    let mut out = None;
    for _ in 0..3 {
        let start = Instant::now();
        let value = f();
        best = best.min(start.elapsed().as_secs_f64());
        out = Some(value);
    }
    (best, out.unwrap())
}

fn report(name: &str, items: usize, unit: &str, seconds: f64) {
    println!("{name:<34} {:>9.2} ms  {:>8.1} M {unit}/s", seconds * 1e3, items as f64 / seconds / 1e6);
}

#[test]
#[ignore = "a measurement, not a check"]
fn speed_of_kernels() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        let simd = Simd::default();
        let code = CodeShape { h: 16, blowup_log: 2 };
        let (n, cells) = (1usize << 16, 1usize << 18);
        let mut rng = Rng(1);
        let rows = 64;
        let values = rng.rows(rows, 16);
        let bytes: Vec<i8> = (0..rows * n).map(|_| rng.next() as i8).collect();
        simd.encode_base(&values[..n].to_vec(), code);
        let (t, words) = time(|| simd.encode_base(&values, code));
        report("encode (code cells)", rows * cells, "cells", t);
        let (t, _) = time(|| simd.encode_base(&values[..4 * n].to_vec(), code));
        report("encode, 4 rows in warm memory", 4 * cells, "cells", t);
        let (t, _) = time(|| simd.words_tree::<Blake2s>(&words, code));
        report("tree, 64 rows (code cells)", rows * cells, "cells", t);
        let few = simd.encode_base(&values[..16 * n].to_vec(), code);
        let (t, _) = time(|| simd.words_tree::<Blake2s>(&few, code));
        report("tree, 16 rows (code cells)", 16 * cells, "cells", t);
        let mut leaves = vec![0u8; 4 * rows * cells];
        let (t, _) = time(|| simd.encode_int8::<Blake2s>(&bytes, code, Some(&mut leaves)));
        report("register int8 (code cells)", rows * cells, "cells", t);
        let (t, _) = time(|| simd.encode_int8::<Blake2s>(&bytes, code, None));
        report("register int8, tree only", rows * cells, "cells", t);
        let positions: Vec<usize> = (0..120).map(|i| i * 2161).collect();
        let (t, _) = time(|| simd.symbols_int8(&bytes, code, &positions));
        report("120 leaves of int8 rows", rows * n, "weights", t);
        let c = rng.felts(rows);
        let (t, f) = time(|| simd.combine_base(&values, 16, &c));
        report("combine base rows", rows * n, "cells", t);
        let (t, _) = time(|| simd.combine_int8(&bytes, 16, &c));
        report("combine int8 rows", rows * n, "weights", t);
        let point = rng.felts(14);
        let (t, _) = time(|| simd.partials_int8(&bytes, &point));
        report("partials int8, s = 2", rows * n, "weights", t);
        let (t, _) = time(|| simd.partials_base(&values, &point));
        report("partials base, s = 2", rows * n, "cells", t);
        let (t, _) = time(|| simd.product_round(&f, &f));
        report("sumcheck round", n, "pairs of felts", t);
        let (t, _) = time(|| simd.bind(&f, c[0]));
        report("bind", n, "felts", t);
        let (t, word) = time(|| simd.encode_ext(&f, code));
        report("encode extension (code felts)", cells, "felts", t);
        let (t, _) = time(|| simd.fold_word(&word, code, 0, c[0]));
        report("fold word", cells, "felts", t);
        let (t, _) = time(|| simd.blocks_tree::<Blake2s>(&word, 3));
        report("tree of 8 neighbours", cells, "felts", t);
        let (t, nonce) = time(|| simd.grind::<Blake2s>(&[5; 32], 20));
        report("grind", nonce as usize + 1, "hashes", t);
    });
}

#[test]
#[ignore = "a measurement, not a check"]
fn speed_of_an_opening() {
    let params = OpeningParams { h: 16, blowup_log: 2, queries: 120, g_fold: 8, g_query: 20 };
    let code = CodeShape { h: 16, blowup_log: 2 };
    let simd = Simd::default();
    let mut rng = Rng(2);
    let weights: Vec<i8> = (0..110 << 16).map(|_| rng.next() as i8).collect();
    let as_base: Vec<_> = weights.iter().map(|&w| signed(i64::from(w))).collect();
    let values = rng.rows(100, 16);
    let path = std::env::temp_dir().join(format!("obelysk-speed-{}.obk", std::process::id()));
    let start = Instant::now();
    let registered = RegisteredOracle::register::<Blake2s>(&simd, code, weights, &path, true).unwrap();
    println!("register 110 rows                  {:>9.2} ms", start.elapsed().as_secs_f64() * 1e3);
    let (t, fresh) = time(|| CommittedValues::commit::<Blake2s>(&simd, code, values.clone()));
    println!("commit 100 rows                    {:>9.2} ms", t * 1e3);
    let oracles: [(&dyn Oracle<Simd>, _, _); 2] = [(&registered, &as_base, Kind::Tiles(2)), (&fresh, &values, Kind::Point)];
    let claims = oracles.map(|(o, v, kind)| true_claim(&simd, &mut rng, o, v, 16, kind));
    let (t, proof) = time(|| {
        let inputs: Vec<_> = oracles
            .iter()
            .zip(&claims)
            .map(|((oracle, _, _), claim)| OpeningInput { oracle: *oracle, claim: claim.clone(), partials: None })
            .collect();
        prove(&simd, &mut Transcript::<Blake2s>::new("speed"), &params, &inputs).unwrap()
    });
    println!("open                               {:>9.2} ms", t * 1e3);
    let statement: Vec<OracleClaim> = oracles
        .iter()
        .zip(&claims)
        .map(|((o, _, _), claim)| OracleClaim { root: o.root(), rows: o.rows(), claim: claim.clone() })
        .collect();
    let (t, verdict) = time(|| verify(&mut Transcript::<Blake2s>::new("speed"), &params, &statement, &proof));
    let mut bytes = Vec::new();
    proof.write(&mut bytes);
    println!("verify                             {:>9.2} ms, proof {} bytes", t * 1e3, bytes.len());
    std::fs::remove_file(path).unwrap();
    assert_eq!(verdict, Ok(()));
}
