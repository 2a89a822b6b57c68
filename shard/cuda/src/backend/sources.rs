//! Sources of a circuit's expressions as kernels read them: nothing is spread over rows that can be read by index.

use super::CudaBackend;
use super::layout::Source as Read;
use super::run::{Buffer, Column};
use crate::device::{Arg, Device};
use obelysk_protocol::circuit::expr::Source;
use obelysk_protocol::circuit::segment::{Circuit, PublicColumn};
use obelysk_protocol::field::{M31, signed};

/// A column as it is read, and the memory it is read from where that is not the circuit's own column.
pub(super) struct Reading<D: Device> {
    pub(super) read: Read,
    pub(super) own: Option<Buffer<D>>,
}

/// Reads a whole column of `len` elements, again and again.
pub(super) fn repeating(data: u64, len: usize) -> Read {
    Read { data, low_mask: (len - 1) as u32, ..Read::default() }
}

fn mask(bits: usize) -> u32 {
    ((1u64 << bits) - 1) as u32
}

impl<D: Device> CudaBackend<D> {
    /// How `source` is read.
    pub(super) fn reading(&self, c: &Circuit, source: Source, columns: &[Column<D>]) -> Reading<D> {
        match source {
            Source::Col(id) => {
                let column = &columns[id as usize];
                Reading { read: repeating(column.data.address(), column.len), own: None }
            }
            Source::Param(id) => {
                let p = &c.params[id as usize];
                self.by_channel(&p.values, (1 << p.log_size, 0, c.token_log, p.log_size))
            }
            Source::Public(id) => match &c.public[id as usize] {
                PublicColumn::Table { values, skip, log_channels } => {
                    let len = 1 << (c.token_log + log_channels);
                    self.by_channel(values, (len, c.token_log, c.token_log + skip, *log_channels))
                }
                PublicColumn::Below { thresholds, log_channels } => {
                    let len = 1usize << (c.token_log + log_channels);
                    let mut limits = thresholds.to_vec();
                    limits.resize(1 << c.token_log, 0);
                    let (limits, out) = (self.upload(bytemuck::cast_slice(&limits)), self.buffer(4 * len));
                    let args = [limits.arg(), Arg::U32(c.token_log as u32), Arg::U64(len as u64), out.arg()];
                    self.each("below_column", len as u64, &args);
                    Reading { read: repeating(out.address(), len), own: Some(out) }
                }
            },
            Source::Mask => {
                let len = 1usize << (2 * c.token_log + c.block_heads_log);
                let visible: Vec<u32> = c.visible.iter().flat_map(|&(first, end)| [first, end]).collect();
                let (visible, out) = (self.upload(bytemuck::cast_slice(&visible)), self.buffer(4 * len));
                let logs = [c.token_log, c.block_heads_log].map(|v| Arg::U32(v as u32));
                self.each("mask_column", len as u64, &[visible.arg(), logs[0], logs[1], Arg::U64(len as u64), out.arg()]);
                Reading { read: repeating(out.address(), len), own: Some(out) }
            }
        }
    }

    /// `len` values, those missing zero, read by `low` low bits and by `high` bits from `shift` on.
    fn by_channel(&self, values: &[i32], (len, low, shift, high): (usize, usize, usize, usize)) -> Reading<D> {
        let mut all: Vec<M31> = values.iter().take(len).map(|&v| signed(i64::from(v))).collect();
        all.resize(len, signed(0));
        let data = self.upload_base(&all);
        let (shift, place) = (shift as u32, low as u32);
        let read = Read { data: data.address(), low_mask: mask(low), shift, high_mask: mask(high), place, ..Read::default() };
        Reading { read, own: Some(data) }
    }
}

impl Read {
    /// Index after the lowest bit of the row is bound; whether the column itself has to be bound.
    pub(super) fn drop_bit(&mut self) -> bool {
        if self.low_mask == 0 && self.high_mask != 0 && self.shift == 0 {
            (self.low_mask, self.high_mask) = (self.high_mask, 0);
        }
        self.shift = self.shift.saturating_sub(1);
        if self.low_mask == 0 {
            return false;
        }
        self.low_mask >>= 1;
        self.place = self.place.saturating_sub(1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(s: &Read, i: u32) -> u32 {
        (i & s.low_mask) | ((i >> s.shift & s.high_mask) << s.place)
    }

    /// Binding the lowest bit of rows is binding that of the column, where the column reads it, and nothing elsewhere.
    #[test]
    fn what_is_read_after_a_bit_is_bound_is_what_was_read_of_the_pair() {
        for (low, skip, high) in [(3, 0, 0), (0, 2, 2), (2, 0, 3), (2, 2, 1), (0, 0, 2), (0, 0, 0)] {
            let mut s = Read {
                low_mask: mask(low),
                shift: (low + skip) as u32,
                high_mask: mask(high),
                place: low as u32,
                ..Read::default()
            };
            for _ in 0..7 {
                let before = s;
                let bound = s.drop_bit();
                for row in 0..128 {
                    let pair = [index(&before, 2 * row), index(&before, 2 * row + 1)];
                    let now = index(&s, row);
                    let expected = if bound { [2 * now, 2 * now + 1] } else { [now, now] };
                    assert_eq!(pair, expected, "{before:?} row {row}");
                }
            }
        }
    }
}
