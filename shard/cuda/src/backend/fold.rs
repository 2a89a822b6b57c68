//! Folds of matrices by extension vectors. Int8 rows are folded by digits, four rows and four columns at a time, where their
//! shape allows it, else entry by entry: the same bytes.

use super::CudaBackend;
use super::run::{Buffer, EXT, Ext, THREADS, threads_for};
use crate::device::{Arg, Device};
use obelysk_protocol::field::QM31;

/// Blocks of a fold below which rows are split into slabs, so that every card is filled.
const FOLD_BLOCKS: u64 = 1024;
/// Fewest rows of a slab: its sums are written and read once more.
const SLAB_ROWS: u64 = 32;
/// Rows and columns that digits are folded at a time.
const PACK: u64 = 4;
/// Most rows of a slab whose sums of digits fit 32 bits, as in `packed.cu`.
const PACKED_ROWS: u64 = 1 << 16;
/// Bytes of the digits of [`PACK`] weights.
const DIGITS: usize = 64;

/// What a matrix holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entries {
    Base,
    Int8,
    Ext,
}

/// A matrix on the device, row after row.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub(super) entries: Entries,
    pub(super) data: Arg,
    pub(super) rows: u64,
    pub(super) columns: u64,
}

impl Matrix {
    /// Whether slabs of `rows` rows can be folded by digits.
    fn packs(&self, rows: u64) -> bool {
        let aligned = matches!(self.data, Arg::Address(at) if at.is_multiple_of(PACK));
        let whole = self.columns.is_multiple_of(PACK) && rows.is_multiple_of(PACK);
        self.entries == Entries::Int8 && aligned && whole && rows <= PACKED_ROWS
    }
}

impl<D: Device> CudaBackend<D> {
    /// `out[k] = sum_row weights[row] m[row][k]`, zero beyond the columns, `len` elements.
    pub(super) fn combined(&self, m: Matrix, weights: &[QM31], len: usize) -> Ext<D> {
        let across = m.columns.div_ceil(u64::from(THREADS)).max(1);
        let slabs = FOLD_BLOCKS.div_ceil(across).min(m.rows.div_ceil(SLAB_ROWS)).max(1);
        let rows = m.rows.div_ceil(slabs).min(PACKED_ROWS).next_multiple_of(PACK).max(PACK);
        let slabs = m.rows.div_ceil(rows);
        let sums = self.slabs(m, weights, rows, false);
        if slabs == 1 && m.columns == len as u64 {
            return sums;
        }
        let out = self.empty_ext(len);
        let n = Arg::U64(len as u64);
        self.each("sum_slabs", len as u64, &[sums.data.arg(), Arg::U64(m.columns), Arg::U64(slabs), n, out.data.arg()]);
        out
    }

    /// Sums of every `rows` rows, one vector of columns after the other. Weights go on from slab to slab, or begin `again` in each.
    pub(super) fn slabs(&self, m: Matrix, weights: &[QM31], rows: u64, again: bool) -> Ext<D> {
        let slabs = m.rows.div_ceil(rows);
        let out = self.empty_ext((slabs * m.columns) as usize);
        let weights_on_device = self.upload_ext(weights);
        let shape = [m.columns, m.rows, rows].map(Arg::U64);
        let stride = if again { 0 } else { rows };
        let across = |width: u64| slabs * width.div_ceil(u64::from(THREADS));
        if m.packs(rows) {
            let count = if again { rows } else { m.rows }.min(weights.len() as u64);
            let table = self.digits(&weights_on_device, count);
            let args = [m.data, shape[0], shape[1], shape[2], table.arg(), Arg::U64(stride / PACK), out.data.arg()];
            self.blocks("fold_packed", across(m.columns / PACK), THREADS, 0, &args);
        } else {
            let kernel = match m.entries {
                Entries::Base => "fold_base",
                Entries::Int8 => "fold_int8",
                Entries::Ext => "fold_ext",
            };
            let args = [m.data, shape[0], shape[1], shape[2], weights_on_device.arg(), Arg::U64(stride), out.data.arg()];
            self.blocks(kernel, across(m.columns), THREADS, 0, &args);
        }
        out
    }

    fn digits(&self, weights: &Buffer<D>, count: u64) -> Buffer<D> {
        let groups = count.div_ceil(PACK);
        let table = self.buffer(DIGITS * groups as usize);
        self.each("digits", PACK * groups, &[weights.arg(), Arg::U64(count), Arg::U64(groups), table.arg()]);
        table
    }

    /// Inner products of every `weights.len` entries with the weights.
    pub(super) fn dots(&self, kernel: &'static str, data: &Buffer<D>, len: usize, weights: &Ext<D>) -> Vec<QM31> {
        let slots = len / weights.len;
        let out = self.empty_ext(slots);
        let threads = threads_for(weights.len as u64);
        let args = [data.arg(), Arg::U64(weights.len as u64), weights.data.arg(), out.data.arg()];
        self.blocks(kernel, slots as u64, threads, threads as usize * EXT, &args);
        out.to_host()
    }
}
