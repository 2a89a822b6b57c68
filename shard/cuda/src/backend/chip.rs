//! Non-linear monomials of a chip group. Columns are read where they lie, and bound only where a row's lowest bit reads them: a
//! column that repeats, or is read by channel, stays as short as it is.

use super::CudaBackend;
use super::layout::{Binding, ExtTerm, Source as Read};
use super::run::{Buffer, Column, EXT, Ext, THREADS, ext};
use crate::device::{Arg, Device};
use bytemuck::cast_slice;
use obelysk_protocol::circuit::expr::Source;
use obelysk_protocol::circuit::segment::Circuit;
use obelysk_protocol::field::QM31;

/// Most blocks that bind one column.
const BINDING_BLOCKS: u64 = 256;

/// A chip group being folded.
pub struct Chip<D: Device> {
    sources: Vec<Read>,
    terms: Buffer<D>,
    count: u32,
    /// What sources read that is not a column of the circuit.
    kept: Vec<Buffer<D>>,
}

impl<D: Device> CudaBackend<D> {
    pub(super) fn chip_of(&self, c: &Circuit, terms: &[(QM31, Vec<Source>)], columns: &[Column<D>]) -> Chip<D> {
        let mut all: Vec<Source> = terms.iter().flat_map(|t| t.1.iter().copied()).collect();
        all.sort_unstable();
        all.dedup();
        let (mut sources, mut kept) = (Vec::new(), Vec::new());
        for &s in &all {
            let reading = self.reading(c, s, columns);
            sources.push(reading.read);
            kept.extend(reading.own);
        }
        let term = |(coef, factors): &(QM31, Vec<Source>)| {
            let mut at = [0; 3];
            for (slot, f) in at.iter_mut().zip(factors) {
                *slot = all.iter().position(|s| s == f).unwrap_or(0) as u32;
            }
            let coef = coef.to_m31_array().map(|v| v.0);
            ExtTerm { coef, count: factors.len() as u32, factors: at }
        };
        let program: Vec<ExtTerm> = terms.iter().map(term).collect();
        Chip { sources, terms: self.upload(cast_slice(&program)), count: terms.len() as u32, kept }
    }

    pub(super) fn chip_sums(&self, chip: &Chip<D>, rest: &Ext<D>) -> [QM31; 4] {
        let is_ext = chip.sources.iter().any(|s| s.is_ext != 0);
        let kernel = if is_ext { "chip_round_ext" } else { "chip_round_base" };
        let (sources, n) = (self.upload(cast_slice(&chip.sources)), rest.len as u64);
        let args = [sources.arg(), chip.terms.arg(), Arg::U32(chip.count), rest.data.arg(), Arg::U64(n)];
        self.sums(kernel, n, &args)
    }

    pub(super) fn bind_chip(&self, chip: &mut Chip<D>, r: QM31) {
        let (mut bindings, mut at) = (Vec::new(), Vec::new());
        let mut total = 0;
        for (i, s) in chip.sources.iter_mut().enumerate() {
            let from = s.data;
            // Columns are as long as the largest index and no longer.
            let (length, is_ext) = (s.elements() / 2, s.is_ext);
            if s.drop_bit() {
                bindings.push(Binding { from, to: 0, length, is_ext, unused: 0 });
                at.push((i, total));
                total += length as usize;
            }
        }
        if bindings.is_empty() {
            return;
        }
        let out = self.buffer(EXT * total);
        for (b, &(i, offset)) in bindings.iter_mut().zip(&at) {
            b.to = out.address() + (EXT * offset) as u64;
            (chip.sources[i].data, chip.sources[i].is_ext) = (b.to, 1);
        }
        let longest = bindings.iter().map(|b| b.length).max().unwrap_or(1);
        let per = longest.div_ceil(u64::from(THREADS)).clamp(1, BINDING_BLOCKS);
        let program = self.upload(cast_slice(&bindings));
        let args = [program.arg(), Arg::U32(per as u32), ext(r)];
        self.blocks("bind_all", per * bindings.len() as u64, THREADS, 0, &args);
        chip.keep(out);
    }

    pub(super) fn chip_end(&self, chip: &Chip<D>) -> QM31 {
        let (sources, out) = (self.upload(cast_slice(&chip.sources)), self.empty_ext(1));
        let args = [sources.arg(), chip.terms.arg(), Arg::U32(chip.count), out.data.arg()];
        self.blocks("chip_value", 1, THREADS, THREADS as usize * EXT, &args);
        out.to_host()[0]
    }
}

impl<D: Device> Chip<D> {
    /// Keeps a buffer, and lets go of those that no source reads any more.
    fn keep(&mut self, buffer: Buffer<D>) {
        self.kept.push(buffer);
        let sources = &self.sources;
        self.kept.retain(|b| sources.iter().any(|s| b.holds(s.data)));
    }
}

impl Read {
    /// Elements that can be read.
    fn elements(&self) -> u64 {
        let high = if self.high_mask == 0 { 0 } else { u64::from(self.high_mask) << self.place };
        (u64::from(self.low_mask) | high) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_those_an_index_reaches() {
        let table = Read { low_mask: 3, shift: 4, high_mask: 7, place: 2, ..Read::default() };
        assert_eq!((table.elements(), Read::default().elements()), (32, 1));
    }
}
