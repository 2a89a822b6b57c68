//! [`CudaBackend`]: the kernels of a prover as launches on a [`Device`]. Buffers stay on the device from call to call; what comes
//! back are sums of rounds, opened symbols, and roots.
//!
//! A device that fails ends the step, see [`crate::attempt`]; nothing here guesses a result.

mod check;
mod chip;
mod claim;
mod commit;
mod encode;
mod fold;
mod gkr;
mod layout;
mod leaves;
mod proof;
mod run;
mod sources;
mod tree;

pub use check::compared;
pub use chip::Chip;
pub use gkr::{Fractions, Layer};
pub use run::{Column, Ext};
pub use tree::Tree;

use crate::device::Device;
use encode::Tables;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// All kernels on one device. Keeps the twiddles of the word lengths it has seen.
pub struct CudaBackend<D: Device> {
    device: Arc<D>,
    tables: Mutex<BTreeMap<u32, Arc<Tables<D>>>>,
}

impl<D: Device> CudaBackend<D> {
    /// On this device.
    #[must_use]
    pub fn new(device: D) -> Self {
        Self { device: Arc::new(device), tables: Mutex::default() }
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &D {
        &self.device
    }
}
