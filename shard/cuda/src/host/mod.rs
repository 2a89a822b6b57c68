//! Kernels on the processor, for tests: compiled by a C++ compiler, every thread a fiber, in any order a seed gives.
//!
//! Memory has guards on both sides and begins with a pattern that is no field element, so that what a kernel reads or writes
//! beside its buffers shows. It is for correctness; it says nothing about speed.

mod build;

use crate::device::{Arg, Device, DeviceError, Facts, Shape};
use crate::source;
use build::Kernels;
use rayon::prelude::*;
use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeSet;
use std::ffi::c_void;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes on both sides of every piece of memory that nobody may write.
const GUARD: usize = 64;
/// What guards and fresh memory hold; as a word it is no field element.
const PATTERN: u8 = 0xa5;
/// Blocks one processor runs before it looks for others.
const BLOCKS_PER_TASK: u32 = 8;

/// The processor as a device.
pub struct Host {
    kernels: Arc<Kernels>,
    order: u64,
    budget: usize,
    used: Arc<AtomicUsize>,
    most: AtomicUsize,
    gone: bool,
    launched: Mutex<BTreeSet<&'static str>>,
}

impl Host {
    /// Compiles the kernels into `folder`, unless they are there, and runs threads in the order that `order` gives: 0 is theirs.
    ///
    /// # Errors
    /// [`DeviceError::HostCompiler`].
    pub fn new(folder: &Path, order: u64) -> Result<Self, DeviceError> {
        Self::of_text(folder, source::text(), order)
    }

    /// As [`Self::new`], of other kernels.
    ///
    /// # Errors
    /// [`DeviceError::HostCompiler`].
    pub fn of_text(folder: &Path, text: &str, order: u64) -> Result<Self, DeviceError> {
        Ok(Self::of(Arc::new(Kernels::compile(folder, text)?), order, usize::MAX))
    }

    fn of(kernels: Arc<Kernels>, order: u64, budget: usize) -> Self {
        Self { kernels, order, budget, used: Arc::default(), most: AtomicUsize::new(0), gone: false, launched: Mutex::default() }
    }

    /// The same kernels in another order of threads.
    #[must_use]
    pub fn in_order(&self, order: u64) -> Self {
        Self::of(self.kernels.clone(), order, self.budget)
    }

    /// The same with no more memory than this.
    #[must_use]
    pub fn within(&self, budget: usize) -> Self {
        Self::of(self.kernels.clone(), self.order, budget)
    }

    /// The same, but no call succeeds any more, as on a card that was lost.
    #[must_use]
    pub fn gone(&self) -> Self {
        Self { gone: true, ..Self::of(self.kernels.clone(), self.order, self.budget) }
    }

    fn there(&self, at: &str) -> Result<(), DeviceError> {
        if self.gone { Err(failed(at, "the device is gone")) } else { Ok(()) }
    }

    /// Most bytes that were in use at once.
    #[must_use]
    pub fn most_used(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    /// Kernels launched so far, by name.
    #[must_use]
    pub fn launched(&self) -> BTreeSet<&'static str> {
        self.launched.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Memory of the processor with its guards.
pub struct HostMemory {
    base: *mut u8,
    bytes: usize,
    used: Arc<AtomicUsize>,
}

// SAFETY: the pointer is to memory that this value alone owns; who writes it when is decided by the caller of launches, as on a card.
unsafe impl Send for HostMemory {}
// SAFETY: as above; shared references only give the address away.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    fn layout(bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes.checked_add(2 * GUARD)?, GUARD).ok()
    }

    fn data(&self) -> *mut u8 {
        self.base.wrapping_add(GUARD)
    }

    /// Whether the guards are as they were.
    fn is_whole(&self) -> bool {
        let whole = |at: usize| {
            // SAFETY: both guards lie inside the allocation and were filled when it was made.
            let guard = unsafe { std::slice::from_raw_parts(self.base.add(at), GUARD) };
            guard.iter().all(|&b| b == PATTERN)
        };
        whole(0) && whole(GUARD + self.bytes)
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
        let whole = self.is_whole();
        if let Some(layout) = Self::layout(self.bytes) {
            // SAFETY: allocated with this layout, given back once.
            unsafe { dealloc(self.base, layout) };
        }
        assert!(whole || std::thread::panicking(), "a kernel wrote beside a buffer of {} bytes", self.bytes);
    }
}

fn failed(at: &str, reason: &str) -> DeviceError {
    DeviceError::Failed { at: at.to_owned(), reason: reason.to_owned() }
}

impl Device for Host {
    type Memory = HostMemory;

    fn facts(&self) -> Facts {
        Facts { name: "host".to_owned(), architecture: 0, memory: self.budget, budget: self.budget }
    }

    fn allocate(&self, bytes: usize) -> Result<HostMemory, DeviceError> {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed);
        let layout = HostMemory::layout(bytes).filter(|_| used.saturating_add(bytes) <= self.budget);
        let Some(layout) = layout else {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(DeviceError::Full { wanted: bytes, used, budget: self.budget });
        };
        // SAFETY: the layout is not empty.
        let base = unsafe { alloc(layout) };
        if base.is_null() {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(DeviceError::Full { wanted: bytes, used, budget: self.budget });
        }
        self.most.fetch_max(used + bytes, Ordering::Relaxed);
        // SAFETY: freshly allocated with this size.
        unsafe { base.write_bytes(PATTERN, layout.size()) };
        Ok(HostMemory { base, bytes, used: self.used.clone() })
    }

    fn address(&self, memory: &HostMemory) -> u64 {
        memory.data() as u64
    }

    fn upload(&self, memory: &HostMemory, at: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.there("upload")?;
        if at.checked_add(bytes.len()).is_none_or(|end| end > memory.bytes) {
            return Err(failed("upload", "more than fits"));
        }
        // SAFETY: the range lies inside the buffer, and source and target cannot overlap: nobody else has a reference into it.
        unsafe { memory.data().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn download(&self, memory: &HostMemory, at: usize, out: &mut [u8]) -> Result<(), DeviceError> {
        self.there("download")?;
        if at.checked_add(out.len()).is_none_or(|end| end > memory.bytes) {
            return Err(failed("download", "more than there is"));
        }
        // SAFETY: as in upload; every byte was at least filled when the memory was made.
        unsafe { out.as_mut_ptr().copy_from_nonoverlapping(memory.data().add(at), out.len()) };
        if memory.is_whole() { Ok(()) } else { Err(failed("download", "a kernel wrote beside this buffer")) }
    }

    unsafe fn launch(&self, kernel: &'static str, shape: Shape, args: &[Arg]) -> Result<(), DeviceError> {
        self.there(kernel)?;
        let run = self.kernels.get(kernel)?;
        let run = *run;
        self.launched.lock().unwrap_or_else(PoisonError::into_inner).insert(kernel);
        let tasks = shape.blocks.div_ceil(BLOCKS_PER_TASK);
        let faults = (0..tasks).into_par_iter().map(|task| {
            let mut pointers: Vec<*mut c_void> = args.iter().map(pointer).collect();
            let (from, to) = (task * BLOCKS_PER_TASK, ((task + 1) * BLOCKS_PER_TASK).min(shape.blocks));
            // The lowest bit turns the order of blocks around; not 0, unless threads keep their order.
            let seed = if self.order == 0 { 0 } else { self.order << 33 | u64::from(task) << 1 | self.order & 1 };
            // SAFETY: the wrapper was generated for this kernel; arguments are as the caller promises, and outlive the call.
            unsafe { run(shape.blocks, shape.threads, shape.shared as usize, pointers.as_mut_ptr(), from, to, seed) }
        });
        match faults.max().unwrap_or(0) {
            0 => Ok(()),
            1 => Err(failed(kernel, "a barrier or shuffle that not all threads reach")),
            2 => Err(failed(kernel, "more threads or shared memory than a block has, or no whole warps")),
            _ => Err(failed(kernel, "a block wrote behind its shared memory")),
        }
    }

    fn synchronise(&self) -> Result<(), DeviceError> {
        self.there("waiting")
    }
}

/// Where an argument's value lies.
pub(crate) fn pointer(arg: &Arg) -> *mut c_void {
    match arg {
        Arg::Address(v) | Arg::U64(v) => std::ptr::from_ref(v).cast_mut().cast(),
        Arg::U32(v) => std::ptr::from_ref(v).cast_mut().cast(),
        Arg::Ext(v) => v.as_ptr().cast_mut().cast(),
    }
}
