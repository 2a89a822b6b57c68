//! What a device does, as little as kernels need: memory, copies, launches. It refuses what does not fit, by name.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Why a device cannot be used, or failed at work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No driver.
    #[error("no NVIDIA driver on this machine (libcuda is missing): install one, or leave out --device")]
    NoDriver,
    /// The driver refuses to start.
    #[error("the NVIDIA driver does not start ({0}): it may be older than CUDA 12; update it, or leave out --device")]
    Driver(String),
    /// No run-time compiler.
    #[error(
        "no NVRTC on this machine (libnvrtc is missing): install CUDA 12's NVRTC, for example `pip install nvidia-cuda-nvrtc-cu12`, and put its folder on LD_LIBRARY_PATH"
    )]
    NoCompiler,
    /// A run-time compiler that is too old.
    #[error(
        "NVRTC {major}.{minor} is what is found first on this machine, kernels need 12.0 or newer: install CUDA 12's NVRTC, for example `pip install nvidia-cuda-nvrtc-cu12`, and put its folder first on LD_LIBRARY_PATH"
    )]
    OldCompiler {
        /// Version found.
        major: u32,
        /// Its second part.
        minor: u32,
    },
    /// No device of this number.
    #[error("there is no device cuda:{wanted}, the driver finds {found} here: name one that it finds, or leave out --device")]
    NoDevice {
        /// Asked for.
        wanted: usize,
        /// Devices found.
        found: usize,
    },
    /// A card that is too old.
    #[error("{name} has architecture sm_{found}, kernels need sm_{needed} or newer: leave out --device on this machine")]
    Architecture {
        /// The card.
        name: String,
        /// Its architecture.
        found: u32,
        /// The oldest supported.
        needed: u32,
    },
    /// Kernels do not compile.
    #[error("kernels do not compile for {architecture}: {log}; use CUDA 12's NVRTC 12.8 or newer, and report this with the log")]
    Compile {
        /// What for.
        architecture: String,
        /// What the compiler says.
        log: String,
    },
    /// No memory left on the device.
    #[error(
        "the card is full: {wanted} bytes more do not fit in the budget of {budget}, {used} of which are in use; stop what else uses the card, or prove a shorter text"
    )]
    Full {
        /// Bytes asked for.
        wanted: usize,
        /// Bytes in use by this process's buffers.
        used: usize,
        /// Bytes this process may use.
        budget: usize,
    },
    /// The driver had no memory or other resources left for a call.
    #[error("the card is full at {at}: {reason}; stop what else uses the card, or prove a shorter text")]
    Exhausted {
        /// Kernel or call.
        at: String,
        /// What the driver says.
        reason: String,
    },
    /// A device that computes something else.
    #[error(
        "{name} computes {what} differently from the processor: do not use this card before its driver and its memory are checked, and report this with the driver's version"
    )]
    Differs {
        /// The device.
        name: String,
        /// What was compared.
        what: &'static str,
    },
    /// A call failed.
    #[error("the device failed at {at}: {reason}; if it repeats, restart the machine, and report this with the node's log")]
    Failed {
        /// Kernel or call.
        at: String,
        /// What the driver says.
        reason: String,
    },
    /// A kernel that is not there, or called with other arguments than it takes.
    #[error("kernel {kernel}: {reason}; report this")]
    Kernel {
        /// Its name.
        kernel: String,
        /// What is wrong.
        reason: String,
    },
    /// Kernels cannot be compiled for the processor.
    #[error("kernels cannot be compiled for this processor: {0}; install g++, version 9 or newer")]
    HostCompiler(String),
}

impl DeviceError {
    /// Whether less work, or less kept from the work before, may succeed.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Exhausted { .. })
    }
}

/// How many threads run a kernel: one dimension of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Blocks.
    pub blocks: u32,
    /// Threads of a block, a multiple of 32, at most 1024.
    pub threads: u32,
    /// Bytes of shared memory of a block.
    pub shared: u32,
}

/// One argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// An address in device memory.
    Address(u64),
    /// A 32-bit number.
    U32(u32),
    /// A 64-bit number.
    U64(u64),
    /// An extension element by value.
    Ext([u32; 4]),
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Name for people.
    pub name: String,
    /// Architecture, 90 for sm_90; 0 on the host.
    pub architecture: u32,
    /// Bytes of memory.
    pub memory: usize,
    /// Bytes this process may use.
    pub budget: usize,
}

/// A device with the kernels of [`crate::source`] loaded. Work is done in the order of calls.
pub trait Device: Send + Sync + 'static {
    /// A piece of device memory, given back when dropped, after the work that was asked for before.
    type Memory: Send + Sync;

    /// What it is.
    fn facts(&self) -> Facts;
    /// Takes memory, whose contents are undefined.
    ///
    /// # Errors
    /// [`DeviceError::Full`], [`DeviceError::Failed`].
    fn allocate(&self, bytes: usize) -> Result<Self::Memory, DeviceError>;
    /// Where a piece of memory lies, for kernels.
    fn address(&self, memory: &Self::Memory) -> u64;
    /// Copies to a piece of memory, from byte `at` on.
    ///
    /// # Errors
    /// [`DeviceError::Failed`], also if it does not fit.
    fn upload(&self, memory: &Self::Memory, at: usize, bytes: &[u8]) -> Result<(), DeviceError>;
    /// Copies from a piece of memory, from byte `at` on, once all work before is done.
    ///
    /// # Errors
    /// [`DeviceError::Failed`], also if there is less.
    fn download(&self, memory: &Self::Memory, at: usize, out: &mut [u8]) -> Result<(), DeviceError>;
    /// Runs a kernel.
    ///
    /// # Safety
    /// `args` are what the kernel is declared with, and every address and length among them describes memory of this device that
    /// is not given back before the call returns.
    ///
    /// # Errors
    /// [`DeviceError::Kernel`], [`DeviceError::Failed`].
    unsafe fn launch(&self, kernel: &'static str, shape: Shape, args: &[Arg]) -> Result<(), DeviceError>;
    /// Waits for all work.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] if any of it failed.
    fn synchronise(&self) -> Result<(), DeviceError>;
}

/// Bytes that [`answers`] sends; fresh memory holds others.
const QUESTION: [u8; 64] = [0x3c; 64];

/// Whether a device still takes bytes and gives them back. A device that was lost refuses every call; one that refused a single call
/// does not. A device that is full to the last byte answers, too.
pub fn answers<D: Device>(device: &D) -> bool {
    let ask = || {
        let memory = device.allocate(QUESTION.len())?;
        device.upload(&memory, 0, &QUESTION)?;
        let mut back = [0; QUESTION.len()];
        device.download(&memory, 0, &mut back)?;
        Ok(back == QUESTION)
    };
    ask().unwrap_or_else(|error: DeviceError| error.is_full())
}

/// Leaves the step that cannot be done without the device; [`attempt`] catches it at the step's edge.
///
/// Kernels return values, not results: a prover's step is a long chain of them, and none of its parts is worth keeping once
/// the device is lost. Nothing is printed on the way: whoever catches it says what it means.
pub(crate) fn leave(error: DeviceError) -> ! {
    resume_unwind(Box::new(error))
}

/// Runs a step on a device; a device that fails in it is an error here.
///
/// # Errors
/// The [`DeviceError`] that ended the step. Any other panic goes on.
pub fn attempt<T>(step: impl FnOnce() -> T) -> Result<T, DeviceError> {
    catch_unwind(AssertUnwindSafe(step)).map_err(|payload| match payload.downcast::<DeviceError>() {
        Ok(error) => *error,
        Err(other) => resume_unwind(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_device_is_an_error_at_the_edge_of_a_step() {
        let full = DeviceError::Full { wanted: 2, used: 3, budget: 4 };
        let lost = full.clone();
        assert_eq!(attempt(|| if full.to_string().is_empty() { 1 } else { leave(lost) }), Err(full));
        assert_eq!(attempt(|| 7), Ok(7));
    }

    #[test]
    fn an_error_says_what_to_do() {
        let all = [DeviceError::NoDriver, DeviceError::NoCompiler, DeviceError::NoDevice { wanted: 1, found: 1 }];
        assert!(all.iter().all(|e| e.to_string().contains(": ")));
    }
}
