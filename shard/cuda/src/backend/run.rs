//! Buffers and launches: the only place that starts kernels.

use super::CudaBackend;
use crate::device::{Arg, Device, DeviceError, Shape, leave};
use crate::source;
use bytemuck::{cast_slice, cast_slice_mut};
use obelysk_protocol::field::{M31, QM31, eq_vector};
use std::sync::Arc;

/// Threads of a block.
pub(super) const THREADS: u32 = 256;
/// Threads of a warp: the least a block has.
pub(super) const WARP: u32 = 32;
/// Blocks of a launch whose threads take several elements each: enough to fill every card, few enough to be summed by one block.
const MOST_BLOCKS: u64 = 2048;
/// Elements a thread sums up before its block does: below, adding up costs more than reading.
const PER_THREAD: u64 = 4;
/// Bytes of an extension element.
pub(super) const EXT: usize = 16;

/// A piece of device memory.
pub(super) struct Buffer<D: Device> {
    device: Arc<D>,
    memory: D::Memory,
    bytes: usize,
}

impl<D: Device> Buffer<D> {
    /// As a kernel's argument.
    pub(super) fn arg(&self) -> Arg {
        self.arg_at(0)
    }

    /// As a kernel's argument, from byte `at` on.
    pub(super) fn arg_at(&self, at: usize) -> Arg {
        Arg::Address(self.device.address(&self.memory) + at as u64)
    }

    pub(super) fn address(&self) -> u64 {
        self.device.address(&self.memory)
    }

    /// Whether an address lies in it.
    pub(super) fn holds(&self, address: u64) -> bool {
        (self.address()..self.address() + self.bytes as u64).contains(&address)
    }

    pub(super) fn read(&self, at: usize, out: &mut [u8]) {
        must(self.device.download(&self.memory, at, out));
    }

    pub(super) fn words(&self, at: usize, count: usize) -> Vec<u32> {
        let mut out = vec![0u32; count];
        self.read(4 * at, cast_slice_mut(&mut out));
        out
    }
}

/// A vector of extension elements on the device.
pub struct Ext<D: Device> {
    pub(super) data: Buffer<D>,
    pub(super) len: usize,
}

impl<D: Device> Ext<D> {
    pub(super) fn to_host(&self) -> Vec<QM31> {
        elements(&self.data.words(0, 4 * self.len))
    }
}

/// Base elements or signed bytes on the device.
pub struct Column<D: Device> {
    pub(super) data: Buffer<D>,
    pub(super) len: usize,
}

/// Words of extension elements.
pub(super) fn elements(words: &[u32]) -> Vec<QM31> {
    words.chunks_exact(4).map(|w| QM31::from_u32_unchecked(w[0], w[1], w[2], w[3])).collect()
}

/// Extension elements as words.
pub(super) fn words(values: &[QM31]) -> Vec<u32> {
    values.iter().flat_map(|&v| coordinates(v)).collect()
}

fn coordinates(v: QM31) -> [u32; 4] {
    v.to_m31_array().map(|c| c.0)
}

/// An extension element as an argument.
pub(super) fn ext(v: QM31) -> Arg {
    Arg::Ext(coordinates(v))
}

/// The result of a call to the device, or the end of the step.
pub(super) fn must<T>(result: Result<T, DeviceError>) -> T {
    result.unwrap_or_else(|error| leave(error))
}

impl<D: Device> CudaBackend<D> {
    pub(super) fn buffer(&self, bytes: usize) -> Buffer<D> {
        // No device gives memory of no size.
        let bytes = bytes.max(EXT);
        Buffer { memory: must(self.device.allocate(bytes)), device: self.device.clone(), bytes }
    }

    pub(super) fn upload(&self, bytes: &[u8]) -> Buffer<D> {
        let buffer = self.buffer(bytes.len());
        must(self.device.upload(&buffer.memory, 0, bytes));
        buffer
    }

    pub(super) fn upload_u64(&self, values: &[u64]) -> Buffer<D> {
        self.upload(cast_slice(values))
    }

    pub(super) fn upload_ext(&self, values: &[QM31]) -> Buffer<D> {
        self.upload(cast_slice(&words(values)))
    }

    pub(super) fn upload_base(&self, values: &[M31]) -> Buffer<D> {
        self.upload(cast_slice(values))
    }

    pub(super) fn vector_of(&self, values: &[QM31]) -> Ext<D> {
        Ext { data: self.upload_ext(values), len: values.len() }
    }

    pub(super) fn empty_ext(&self, len: usize) -> Ext<D> {
        Ext { data: self.buffer(EXT * len), len }
    }

    /// Positions as a kernel reads them.
    pub(super) fn upload_positions(&self, positions: impl Iterator<Item = usize>) -> Buffer<D> {
        self.upload_u64(&positions.map(|p| p as u64).collect::<Vec<_>>())
    }

    /// Runs a kernel over `n` elements, however many threads that takes.
    pub(super) fn each(&self, kernel: &'static str, n: u64, args: &[Arg]) {
        let threads = threads_for(n);
        let blocks = n.div_ceil(u64::from(threads)).min(8 * MOST_BLOCKS);
        self.blocks(kernel, blocks, threads, 0, args);
    }

    /// Runs a kernel with these blocks.
    pub(super) fn blocks(&self, kernel: &'static str, blocks: u64, threads: u32, shared: usize, args: &[Arg]) {
        if blocks == 0 {
            return;
        }
        must(source::check(kernel, args));
        let grid = || Some(Shape { blocks: i32::try_from(blocks).ok()? as u32, threads, shared: u32::try_from(shared).ok()? });
        let too_many = || DeviceError::Kernel { kernel: kernel.to_owned(), reason: format!("{blocks} blocks are too many") };
        let shape = must(grid().ok_or_else(too_many));
        // SAFETY: the arguments are of the kernel's kinds, just checked. Addresses come from buffers borrowed by the caller, which
        // give memory back only after work that was asked for before. That lengths fit the buffers is held by the parity tests,
        // which run every kernel between guards.
        must(unsafe { self.device.launch(kernel, shape, args) });
    }

    /// Runs a kernel that sums over `n` elements, `K` sums per block, its last argument left to this function; returns the sums.
    pub(super) fn sums<const K: usize>(&self, kernel: &'static str, n: u64, args: &[Arg]) -> [QM31; K] {
        let threads = threads_for(n);
        let blocks = n.div_ceil(u64::from(threads) * PER_THREAD).clamp(1, MOST_BLOCKS);
        let partial = self.empty_ext(K * blocks as usize);
        let all: Vec<Arg> = args.iter().copied().chain([partial.data.arg()]).collect();
        self.blocks(kernel, blocks, threads, K * threads as usize * EXT, &all);
        let total = if blocks == 1 { partial } else { self.sum_partials(&partial, blocks as u32, K) };
        let sums = elements(&total.data.words(0, 4 * K));
        std::array::from_fn(|k| sums[k])
    }

    fn sum_partials(&self, partial: &Ext<D>, blocks: u32, count: usize) -> Ext<D> {
        let total = self.empty_ext(count);
        let args = [partial.data.arg(), Arg::U32(blocks), Arg::U32(count as u32), total.data.arg()];
        self.blocks("sum_partials", count as u64, THREADS, THREADS as usize * EXT, &args);
        total
    }

    /// `low[i mod len] * high[i / len]`.
    pub(super) fn outer_of(&self, low: &[QM31], high: &[QM31]) -> Ext<D> {
        let out = self.empty_ext(low.len() * high.len());
        let (l, h) = (self.upload_ext(low), self.upload_ext(high));
        let n = out.len as u64;
        if low.len().is_power_of_two() {
            let args = [l.arg(), h.arg(), Arg::U32(low.len().trailing_zeros()), Arg::U64(n), out.data.arg()];
            self.each("outer", n, &args);
        } else {
            self.each("outer_any", n, &[l.arg(), h.arg(), Arg::U64(low.len() as u64), Arg::U64(n), out.data.arg()]);
        }
        out
    }

    /// `eq(point, i)` for all i.
    pub(super) fn eq_of(&self, point: &[QM31]) -> Ext<D> {
        let (low, high) = point.split_at(point.len() / 2);
        self.outer_of(&eq_vector(low), &eq_vector(high))
    }

    /// `v[2i] + v[2i+1]`.
    pub(super) fn drop_low_of(&self, v: &Ext<D>) -> Ext<D> {
        let out = self.empty_ext(v.len / 2);
        self.each("drop_low", out.len as u64, &[v.data.arg(), Arg::U64(out.len as u64), out.data.arg()]);
        out
    }

    /// `v[2i] + r (v[2i+1] - v[2i])`.
    pub(super) fn bind_of(&self, v: &Ext<D>, r: QM31) -> Ext<D> {
        let out = self.empty_ext(v.len / 2);
        self.each("bind", out.len as u64, &[v.data.arg(), ext(r), Arg::U64(out.len as u64), out.data.arg()]);
        out
    }
}

/// Threads of a block that has `n` elements to share out.
pub(super) fn threads_for(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(THREADS).clamp(1, THREADS).next_multiple_of(WARP)
}
