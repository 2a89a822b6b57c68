//! What there is on this machine, without `nvidia-smi`: driver, compiler, cards. It changes nothing.

use super::{compile, failed};
use crate::device::DeviceError;
use cudarc::driver::{CudaContext, DriverError, result, sys};
use std::ffi::c_int;

/// Oldest driver whose CUDA version runs what is compiled here, as the driver writes it: 12.0.
const OLDEST_DRIVER: u32 = 12_000;

/// A card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its number, for `cuda:N`.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Architecture, 90 for sm_90.
    pub architecture: u32,
    /// Bytes of memory.
    pub memory: usize,
    /// Bytes that are free now.
    pub free: usize,
}

/// What a machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// CUDA version of the driver: 12080 is 12.8.
    pub driver: Result<u32, DeviceError>,
    /// Version of the run-time compiler.
    pub compiler: Result<(u32, u32), DeviceError>,
    /// Cards; none without a driver.
    pub cards: Vec<Result<Found, DeviceError>>,
}

/// Looks.
#[must_use]
pub fn report() -> Report {
    let driver = driver(0);
    let count = driver.as_ref().map_or(0, |_| count().unwrap_or(0));
    let card = |ordinal| describe(&*CudaContext::new(ordinal).map_err(failed("opening the card"))?);
    Report { driver, compiler: compile::version(), cards: (0..count).map(card).collect() }
}

/// The driver's CUDA version, once it has started; `wanted` is the card it is asked for.
///
/// # Errors
/// [`DeviceError::NoDriver`], [`DeviceError::NoDevice`], [`DeviceError::Driver`].
pub fn driver(wanted: usize) -> Result<u32, DeviceError> {
    // SAFETY: loading the driver runs its initialisers, which only set it up.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::NoDriver);
    }
    result::init().map_err(|e| not_started(e, wanted))?;
    let mut version: c_int = 0;
    // SAFETY: the driver is there; the pointer is to an integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(|e| DeviceError::Driver(e.to_string()))?;
    let version = version.max(0) as u32;
    if version < OLDEST_DRIVER {
        return Err(DeviceError::Driver(format!("it is of CUDA {}.{}", version / 1000, version % 1000 / 10)));
    }
    Ok(version)
}

/// A driver without a card does not start, either.
fn not_started(error: DriverError, wanted: usize) -> DeviceError {
    match error.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => DeviceError::NoDevice { wanted, found: 0 },
        _ => DeviceError::Driver(error.to_string()),
    }
}

/// Number of cards.
///
/// # Errors
/// [`DeviceError::Driver`].
pub(super) fn count() -> Result<usize, DeviceError> {
    let count = CudaContext::device_count().map_err(|e| DeviceError::Driver(e.to_string()))?;
    Ok(count.max(0) as usize)
}

/// What a card is.
pub(super) fn describe(context: &CudaContext) -> Result<Found, DeviceError> {
    let asked = failed("asking the card");
    let (major, minor) = context.compute_capability().map_err(&asked)?;
    let (free, memory) = context.mem_get_info().map_err(&asked)?;
    let name = context.name().map_err(&asked)?;
    Ok(Found { ordinal: context.ordinal(), name, architecture: (10 * major + minor).max(0) as u32, memory, free })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_without_a_card_is_no_old_driver() {
        let told = |code| not_started(DriverError(code), 2);
        assert_eq!(told(sys::CUresult::CUDA_ERROR_NO_DEVICE), DeviceError::NoDevice { wanted: 2, found: 0 });
    }

    #[test]
    fn looking_is_safe_on_any_machine() {
        let report = report();
        assert!(report.driver.is_ok() || report.cards.is_empty());
    }
}
