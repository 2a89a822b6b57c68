//! An NVIDIA card, through its driver. Nothing is linked: driver and compiler are looked for when a card is asked for, and what is
//! missing is an error that says what to install.
//!
//! Work goes to one stream, in the order of calls; memory comes from the driver's pool and goes back in that order. What it
//! refuses: cards older than [`compile::OLDEST`], and more memory than the budget.

pub mod cache;
pub mod compile;
mod memory;
pub mod preset;
pub mod probe;

pub use memory::CardMemory;

use crate::device::{Arg, Device, DeviceError, Facts, Shape};
use crate::source;
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DeviceRepr, DriverError, LaunchConfig, PushKernelArg, sys};
use cudarc::nvrtc::Ptx;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Memory left to the driver, the display and what else runs on the card, in hundredths of what is free.
const RESERVE_PERCENT: usize = 8;

/// A card with kernels loaded.
pub struct Card {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    functions: BTreeMap<&'static str, CudaFunction>,
    facts: Facts,
    used: Arc<AtomicUsize>,
}

/// An extension element as an argument.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Element([u32; 4]);

// SAFETY: sixteen plain bytes aligned to sixteen, as the kernels' QM31.
unsafe impl DeviceRepr for Element {}

fn failed(at: &str) -> impl Fn(DriverError) -> DeviceError {
    let at = at.to_owned();
    move |error| told(error.0, at.clone(), error.to_string())
}

/// What the driver says, as an error: that there was no room left is no loss of the card.
fn told(code: sys::CUresult, at: String, reason: String) -> DeviceError {
    match code {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY | sys::CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES => {
            DeviceError::Exhausted { at, reason }
        }
        _ => DeviceError::Failed { at, reason },
    }
}

impl Card {
    /// Opens card number `ordinal`. Compiled kernels are kept in `folder`; `budget` bounds memory, which otherwise is what is free
    /// now less a reserve, and for known cards no more than their preset says.
    ///
    /// # Errors
    /// [`DeviceError`] for a missing or old driver or compiler, a card that is not there or too old, kernels that do not compile.
    pub fn open(ordinal: usize, folder: &Path, budget: Option<usize>) -> Result<Self, DeviceError> {
        let driver = probe::driver(ordinal)?;
        let found = probe::count()?;
        if ordinal >= found {
            return Err(DeviceError::NoDevice { wanted: ordinal, found });
        }
        let context = CudaContext::new(ordinal).map_err(failed("opening the card"))?;
        let card = probe::describe(&context)?;
        if card.architecture < compile::OLDEST {
            return Err(DeviceError::Architecture { name: card.name, found: card.architecture, needed: compile::OLDEST });
        }
        let compiler = compile::version()?;
        let target = compile::target(card.architecture)?;
        let key = cache::Key { text: source::text(), options: &compile::options(&target), compiler, driver };
        let make = || compile::compile(source::text(), &target).map(|image| image.bytes);
        let load = |bytes: &[u8]| context.load_module(Ptx::from_binary(bytes.to_vec())).map_err(failed("loading kernels"));
        let module = cache::loaded(folder, &key, make, load)?;
        let mut functions = BTreeMap::new();
        for &kernel in source::kernels().keys() {
            functions.insert(kernel, module.load_function(kernel).map_err(failed(kernel))?);
        }
        let stream = context.default_stream();
        memory::keep_pool(&context)?;
        let known = preset::of(&card.name, card.architecture).map_or(usize::MAX, |p| p.budget_bytes);
        let free = card.free / 100 * (100 - RESERVE_PERCENT);
        let budget = budget.unwrap_or(known.min(free)).min(card.memory);
        let facts = Facts { name: card.name, architecture: card.architecture, memory: card.memory, budget };
        Ok(Self { context, stream, functions, facts, used: Arc::default() })
    }

    fn bound(&self) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(failed("the card's context"))
    }
}

impl Device for Card {
    type Memory = CardMemory;

    fn facts(&self) -> Facts {
        self.facts.clone()
    }

    fn allocate(&self, bytes: usize) -> Result<CardMemory, DeviceError> {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed);
        let full = || DeviceError::Full { wanted: bytes, used, budget: self.facts.budget };
        let made = if used.saturating_add(bytes) > self.facts.budget {
            Err(full())
        } else {
            CardMemory::new(&self.stream, bytes, self.used.clone()).map_err(|error| match error.0 {
                sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => full(),
                _ => failed("allocation")(error),
            })
        };
        if made.is_err() {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        made
    }

    fn address(&self, memory: &CardMemory) -> u64 {
        memory.address()
    }

    fn upload(&self, memory: &CardMemory, at: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.bound()?;
        memory.write(at, bytes)
    }

    fn download(&self, memory: &CardMemory, at: usize, out: &mut [u8]) -> Result<(), DeviceError> {
        self.bound()?;
        memory.read(at, out)
    }

    unsafe fn launch(&self, kernel: &'static str, shape: Shape, args: &[Arg]) -> Result<(), DeviceError> {
        let missing = || DeviceError::Kernel { kernel: kernel.to_owned(), reason: "there is none of this name".to_owned() };
        let function = self.functions.get(kernel).ok_or_else(missing)?;
        self.bound()?;
        let elements: Vec<Element> =
            args.iter().filter_map(|a| if let Arg::Ext(v) = a { Some(Element(*v)) } else { None }).collect();
        let mut elements = elements.iter();
        let mut builder = self.stream.launch_builder(function);
        for arg in args {
            match arg {
                Arg::Address(v) | Arg::U64(v) => builder.arg(v),
                Arg::U32(v) => builder.arg(v),
                Arg::Ext(_) => match elements.next() {
                    Some(v) => builder.arg(v),
                    None => continue,
                },
            };
        }
        let config =
            LaunchConfig { grid_dim: (shape.blocks, 1, 1), block_dim: (shape.threads, 1, 1), shared_mem_bytes: shape.shared };
        // SAFETY: arguments are the kernel's and describe memory of this card, as the caller promises; they are copied by the call.
        unsafe { builder.launch(config) }.map(|_| ()).map_err(failed(kernel))
    }

    fn synchronise(&self) -> Result<(), DeviceError> {
        self.stream.synchronize().map_err(failed("waiting for the card"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_without_room_is_full_and_not_lost() {
        let full = |code| told(code, "upload".to_owned(), String::new()).is_full();
        assert!(full(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY) && full(sys::CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES));
        assert!(!full(sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS));
    }
}
