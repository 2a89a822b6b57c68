//! A device is compared with the processor before it gets work: structs, a small commitment, some rounds. It
//! refuses a card whose driver or memory makes other values; what a card gets wrong later is found by whoever checks the proof.

use super::CudaBackend;
use crate::device::{Device, DeviceError, attempt};
use obelysk_protocol::circuit::segment::MatrixShape;
use obelysk_protocol::field::{M31, QM31};
use obelysk_protocol::transcript::Blake2s;
use obelysk_shard::kernels::proof::ProofKernels;
use obelysk_shard::kernels::simd::Simd;
use obelysk_shard::kernels::{CodeShape, CommitKernels};
use std::sync::Arc;

/// Several passes of an encoding, and more rows than one batch of a leaf's hash.
const CODE: CodeShape = CodeShape { h: 13, blowup_log: 1 };
/// Rows of the small commitment.
const ROWS: usize = 5;
/// A matrix whose rows are folded by digits.
const MATRIX: MatrixShape = MatrixShape { inputs: 64, outputs: 48 };
/// Variables of the vectors whose rounds are compared.
const VARIABLES: u32 = 12;

/// The device, if it computes what the processor does.
///
/// # Errors
/// [`DeviceError::Differs`]; whatever ends work on the device.
pub fn compared<D: Device>(device: D) -> Result<D, DeviceError> {
    let backend = CudaBackend::new(device);
    let name = backend.device.facts().name;
    if let Some(what) = attempt(|| backend.difference())? {
        return Err(DeviceError::Differs { name, what });
    }
    let CudaBackend { device, tables } = backend;
    drop(tables);
    let reason = || "buffers of the comparison are still in use".to_owned();
    Arc::into_inner(device).ok_or_else(|| DeviceError::Failed { at: "the comparison".to_owned(), reason: reason() })
}

/// Elements that fill the field, the same at every start.
fn element(i: usize) -> M31 {
    M31::reduce((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 3)
}

fn extension(i: usize) -> QM31 {
    QM31::from_m31_array(std::array::from_fn(|k| element(4 * i + k)))
}

impl<D: Device> CudaBackend<D> {
    /// What this device computes differently from the processor.
    fn difference(&self) -> Option<&'static str> {
        let [ours, theirs] = self.layouts();
        if ours != theirs {
            return Some("the layout of structs");
        }
        let host = Simd::default();
        if committed(self) != committed(&host) {
            return Some("a commitment");
        }
        (rounds(self) != rounds(&host)).then_some("rounds of a sumcheck")
    }
}

/// Root, symbols and combinations of a small commitment, and a nonce.
fn committed<K: CommitKernels>(k: &K) -> ([u8; 32], Vec<M31>, Vec<QM31>, u64) {
    let rows = k.base((0..ROWS << CODE.h).map(element).collect());
    let words = k.encode_base(&rows, CODE);
    let root = k.root(&k.words_tree::<Blake2s>(&words, CODE));
    let symbols = k.words_at(&words, CODE, &[0, 1, (1 << CODE.log_n()) - 1]);
    let coefficients: Vec<QM31> = (0..ROWS).map(extension).collect();
    let combined = k.to_host(&k.combine_base(&rows, CODE.h, &coefficients));
    (root, symbols, combined, k.grind::<Blake2s>(&root, 6))
}

/// Products, folds, and a matrix of weights.
fn rounds<K: ProofKernels>(k: &K) -> Vec<QM31> {
    let values = |from: usize, vars: u32| (from..from + (1 << vars)).map(extension).collect::<Vec<_>>();
    let (mut a, mut b) = (k.vector(&values(0, VARIABLES)), k.vector(&values(9, VARIABLES)));
    let mut out = Vec::new();
    for round in 0..VARIABLES as usize {
        out.extend(k.product_round(&[&a, &b]));
        (a, b) = (k.fold(&a, extension(round)), k.fold(&b, extension(round)));
    }
    let weights: Vec<i8> = (0..MATRIX.inputs * MATRIX.outputs).map(|i| (element(i).0 & 0xff) as u8 as i8).collect();
    let folded = k.fold_matrix(MATRIX, &weights, &values(3, 6), 6);
    out.extend(k.product_round(&[&folded, &k.vector(&values(5, 6))]));
    out
}
