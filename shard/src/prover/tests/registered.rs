//! Registered oracles: files, and openings that mix them with fresh values, on both backends and several thread counts.

use super::{Kind, Rng, params, true_claim};
use crate::kernels::reference::Reference;
use crate::kernels::simd::Simd;
use crate::kernels::{CodeShape, CommitKernels};
use crate::prover::commitment::{CommittedValues, Oracle, RegisteredOracle, RegistrationError};
use crate::prover::opening::{OpeningInput, prove};
use obelysk_protocol::field::signed;
use obelysk_protocol::transcript::{Blake2s, Poseidon252, Transcript};
use obelysk_protocol::verifier::opening::{OpeningParams, OracleClaim, verify};
use std::path::PathBuf;

/// A file that is removed when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("obelysk-{}-{name}.obk", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn int8_rows(seed: u64, rows: usize, h: u32) -> Vec<i8> {
    let mut rng = Rng(seed);
    (0..rows << h).map(|_| rng.next() as i8).collect()
}

/// One opening of a registered and a fresh oracle; returns the proof's bytes.
fn mixed<B: CommitKernels>(backend: &B, p: &OpeningParams, file: &Scratch, keep: bool) -> Vec<u8> {
    let code = CodeShape { h: p.h, blowup_log: p.blowup_log };
    let weights = int8_rows(1, 21, p.h);
    let as_base: Vec<_> = weights.iter().map(|&w| signed(i64::from(w))).collect();
    let values = Rng(2).rows(18, p.h);
    let registered = RegisteredOracle::register::<Blake2s>(backend, code, weights, &file.0, keep).unwrap();
    let fresh = CommittedValues::commit::<Blake2s>(backend, code, values.clone());
    let mut rng = Rng(3);
    let oracles: [(&dyn Oracle<B>, _, _); 2] = [(&registered, &as_base, Kind::Tiles(2)), (&fresh, &values, Kind::Point)];
    let claims = oracles.map(|(o, v, kind)| true_claim(backend, &mut rng, o, v, p.h, kind));
    let pairs = || oracles.iter().zip(&claims).map(|((o, _, _), c)| (*o, c.clone()));
    let inputs: Vec<_> = pairs().map(|(oracle, claim)| OpeningInput { oracle, claim, partials: None }).collect();
    let proof = prove(backend, &mut Transcript::<Blake2s>::new("mixed"), p, &inputs).unwrap();
    let statement: Vec<_> = pairs().map(|(o, claim)| OracleClaim { root: o.root(), rows: o.rows(), claim }).collect();
    assert_eq!(verify(&mut Transcript::<Blake2s>::new("mixed"), p, &statement, &proof), Ok(()));
    let mut bytes = Vec::new();
    proof.write(&mut bytes);
    bytes
}

#[test]
fn proof_bytes_do_not_depend_on_backend_or_threads() {
    let file = Scratch::new("mixed");
    for h in [3, 4, 7, 10] {
        let p = params(h, 2);
        let reference = mixed(&Reference, &p, &file, true);
        assert!(mixed(&Reference, &p, &file, false) == reference, "h {h}");
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for keep in [true, false] {
                let proof = pool.install(|| mixed(&Simd::default(), &p, &file, keep));
                assert!(proof == reference, "h {h}, {threads} threads, kept {keep}");
            }
        }
    }
}

#[test]
fn a_registered_file_opens_again_and_only_as_itself() {
    for keep in [true, false] {
        opens_again(keep);
    }
}

fn opens_again(keep: bool) {
    let file = Scratch::new(if keep { "again" } else { "again-tree" });
    let code = CodeShape { h: 6, blowup_log: 1 };
    let weights = int8_rows(4, 5, 6);
    let simd = Simd::default();
    let first = RegisteredOracle::register::<Blake2s>(&simd, code, weights.clone(), &file.0, keep).unwrap();
    let root = first.root();
    let open =
        |code, rows: usize, root| RegisteredOracle::open::<Blake2s>(&simd, code, weights[..rows << 6].to_vec(), &file.0, root);
    let again = open(code, 5, &root).unwrap();
    let positions = [0, 7, 127];
    assert_eq!(again.leaves(&simd, &positions), first.leaves(&simd, &positions));
    let mut other = root;
    other[0] ^= 1;
    assert!(matches!(open(code, 5, &other), Err(RegistrationError::Root)));
    assert!(matches!(open(code, 4, &root), Err(RegistrationError::Shape)));
    assert!(matches!(open(CodeShape { h: 6, blowup_log: 2 }, 5, &root), Err(RegistrationError::Shape)));
    let suite = RegisteredOracle::open::<Poseidon252>(&simd, code, weights.clone(), &file.0, &root);
    assert!(matches!(suite, Err(RegistrationError::Shape)));
    let size = std::fs::metadata(&file.0).unwrap().len();
    assert_eq!(size, 64 + 32 * 255 + if keep { 4 * 5 * 128 } else { 0 });
    drop((first, again));
    std::fs::write(&file.0, b"short").unwrap();
    assert!(matches!(open(code, 5, &root), Err(RegistrationError::Shape)));
}
