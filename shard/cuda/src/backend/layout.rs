//! Structs that kernels read, field by field as in `circuit.cuh`.

use super::CudaBackend;
use super::run::{EXT, WARP};
use crate::device::Device;
use bytemuck::{Pod, Zeroable};
use std::mem::offset_of;

/// A column read at a row: element `(i & low_mask) | ((i >> shift & high_mask) << place)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Source {
    pub(super) data: u64,
    pub(super) low_mask: u32,
    pub(super) shift: u32,
    pub(super) high_mask: u32,
    pub(super) place: u32,
    pub(super) is_ext: u32,
    pub(super) unused: u32,
}

/// `coef` times the product of `count` sources, in the base field.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(super) struct BaseTerm {
    pub(super) coef: u32,
    pub(super) count: u32,
    pub(super) factors: [u32; 3],
    pub(super) unused: [u32; 3],
}

/// The same with a coefficient of the extension.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C, align(16))]
pub(super) struct ExtTerm {
    pub(super) coef: [u32; 4],
    pub(super) count: u32,
    pub(super) factors: [u32; 3],
}

/// A column to bind.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Binding {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) length: u64,
    pub(super) is_ext: u32,
    pub(super) unused: u32,
}

/// Sizes and offsets in the order in which the kernel `layout` writes them.
fn sizes_and_offsets() -> [usize; 11] {
    [
        EXT,
        size_of::<Source>(),
        offset_of!(Source, low_mask),
        offset_of!(Source, is_ext),
        size_of::<BaseTerm>(),
        offset_of!(BaseTerm, factors),
        size_of::<ExtTerm>(),
        offset_of!(ExtTerm, count),
        size_of::<Binding>(),
        offset_of!(Binding, length),
        offset_of!(Binding, is_ext),
    ]
}

impl<D: Device> CudaBackend<D> {
    /// Sizes and offsets of all structs that kernels read, here and on the device: equal, or nothing else can be.
    #[must_use]
    pub fn layouts(&self) -> [Vec<u32>; 2] {
        let ours = sizes_and_offsets().map(|v| v as u32).to_vec();
        let out = self.buffer(4 * ours.len());
        self.blocks("layout", 1, WARP, 0, &[out.arg()]);
        let theirs = out.words(0, ours.len());
        [ours, theirs]
    }
}
