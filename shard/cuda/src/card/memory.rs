//! Memory of a card: from the driver's pool in the order of the stream, so that giving it back waits for nothing.

use super::failed;
use crate::device::DeviceError;
use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A piece of a card's memory.
pub struct CardMemory {
    address: sys::CUdeviceptr,
    bytes: usize,
    stream: Arc<CudaStream>,
    used: Arc<AtomicUsize>,
}

impl CardMemory {
    /// Takes `bytes`, which the caller has counted in `used`.
    pub(super) fn new(stream: &Arc<CudaStream>, bytes: usize, used: Arc<AtomicUsize>) -> Result<Self, DriverError> {
        let context = stream.context();
        context.bind_to_thread()?;
        // SAFETY: memory is given back by Drop alone, in the same way; nothing reads it before it is written but kernels, whose
        // inputs are written first.
        let address = unsafe {
            if context.has_async_alloc() { result::malloc_async(stream.cu_stream(), bytes) } else { result::malloc_sync(bytes) }
        }?;
        Ok(Self { address, bytes, stream: stream.clone(), used })
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    pub(super) fn write(&self, at: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.fits("upload", at, bytes.len())?;
        // SAFETY: the range lies in this memory; the call returns when the bytes are read.
        unsafe { result::memcpy_htod_sync(self.address + at as u64, bytes) }.map_err(failed("upload"))
    }

    pub(super) fn read(&self, at: usize, out: &mut [u8]) -> Result<(), DeviceError> {
        self.fits("download", at, out.len())?;
        // SAFETY: the range lies in this memory; the call waits for all work before it, and returns when `out` is written.
        unsafe { result::memcpy_dtoh_sync(out, self.address + at as u64) }.map_err(failed("download"))
    }

    fn fits(&self, at: &str, from: usize, bytes: usize) -> Result<(), DeviceError> {
        let end = from.checked_add(bytes).filter(|&end| end <= self.bytes);
        let beyond = || DeviceError::Failed { at: at.to_owned(), reason: format!("{bytes} bytes at {from} of {}", self.bytes) };
        end.map(|_| ()).ok_or_else(beyond)
    }
}

impl Drop for CardMemory {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
        let context = self.stream.context();
        // A card that is lost has lost its memory, too.
        if context.bind_to_thread().is_err() {
            return;
        }
        // SAFETY: taken in `new` in the same way, given back once; kernels that use it were launched before, on the same stream.
        let freed = unsafe {
            if context.has_async_alloc() {
                result::free_async(self.address, self.stream.cu_stream())
            } else {
                result::free_sync(self.address)
            }
        };
        if let Err(error) = freed {
            tracing::debug!(%error, "memory of the card was not given back");
        }
    }
}

/// Lets the pool keep what is given back: the next step needs as much.
pub(super) fn keep_pool(context: &CudaContext) -> Result<(), DeviceError> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut threshold = u64::MAX;
    let value = std::ptr::from_mut(&mut threshold).cast::<c_void>();
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device is the context's.
    let pool = unsafe { result::device::get_default_mem_pool(context.cu_device()) };
    // SAFETY: the pool is this device's own; the attribute is a 64-bit number that lives through the call.
    pool.and_then(|pool| unsafe { result::mem_pool::set_attribute(pool, attribute, value) }).map_err(failed("the memory pool"))
}
