//! A claim's vector: a column contracted along the fixed coordinates of its point.

use super::CudaBackend;
use super::run::{Column, EXT, Ext, THREADS, ext, threads_for};
use crate::device::{Arg, Device};
use bytemuck::cast_slice;
use obelysk_protocol::circuit::segment::{Coord, Eval};
use obelysk_protocol::field::{ONE, ZERO};
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::points::Points;
use obelysk_shard::kernels::rows::place_bits;

/// log2 of the products from which on a block, not a thread, sums them up.
const DEEP_LOG: usize = 6;

/// Bits of a column's index: places of the free ones, where they go, places of those that are contracted.
fn bits(lo: &[Coord]) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let (mut from, mut to, mut fixed) = (Vec::new(), Vec::new(), Vec::new());
    for (k, c) in lo.iter().enumerate() {
        match c {
            Coord::Kappa(at) => {
                from.push(k as u32);
                to.push(*at as u32);
            }
            _ => fixed.push(k as u32),
        }
    }
    (from, to, fixed)
}

impl<D: Device> CudaBackend<D> {
    pub(super) fn claim_of(
        &self,
        eval: &Eval,
        columns: &[Column<D>],
        points: &Points,
        vars: usize,
    ) -> Result<Ext<D>, VerifyError> {
        let contracted: Vec<Coord> = eval.lo.iter().filter(|c| !matches!(c, Coord::Kappa(_))).copied().collect();
        let weights = self.eq_of(&points.resolve(&contracted)?);
        let (from, to, fixed) = bits(&eval.lo);
        let places = self.upload(cast_slice(&[from.as_slice(), &to, &fixed].concat()));
        let out = self.vector_of(&vec![ZERO; 1 << vars]);
        let summed = eval.hi.iter().all(|c| matches!(c, Coord::Kappa(_)));
        for (b, &column) in eval.blocks.iter().enumerate() {
            // A fixed block index weighs the block; a summed one places it.
            let (base, scale) = if summed { (place_bits(b, &eval.hi).0, ONE) } else { (0, points.block_weight(eval, b)?) };
            let args = [
                columns[column as usize].data.arg(),
                weights.data.arg(),
                ext(scale),
                places.arg(),
                Arg::U32(from.len() as u32),
                Arg::U32(fixed.len() as u32),
                Arg::U64(base as u64),
                out.data.arg(),
            ];
            if fixed.len() >= DEEP_LOG {
                let threads = threads_for(1 << fixed.len()).min(THREADS);
                self.blocks("claim_deep", 1 << from.len(), threads, (threads as usize + 1) * EXT, &args);
            } else {
                self.each("claim_wide", 1 << from.len(), &args);
            }
        }
        Ok(out)
    }
}
