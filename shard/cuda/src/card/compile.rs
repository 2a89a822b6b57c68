//! The run-time compiler: kernels for one architecture, from text. Needs no driver and no card.

use crate::device::DeviceError;
use cudarc::nvrtc::result::{self, NvrtcError};
use cudarc::nvrtc::sys;
use std::ffi::{CStr, CString, c_char, c_int};

/// Oldest architecture kernels are compiled for.
pub const OLDEST: u32 = 70;
/// Oldest release of the compiler.
const OLDEST_COMPILER: u32 = 12;

/// Code for a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Machine code, or text that the driver compiles, which ends in a zero byte.
    pub bytes: Vec<u8>,
    /// Architecture it was compiled for.
    pub architecture: u32,
}

/// The compiler's version.
///
/// # Errors
/// [`DeviceError::NoCompiler`], [`DeviceError::OldCompiler`], [`DeviceError::Compile`].
pub fn version() -> Result<(u32, u32), DeviceError> {
    present()?;
    let (mut major, mut minor): (c_int, c_int) = (0, 0);
    // SAFETY: the library is there; both pointers are to integers that live through the call.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) }.result().map_err(|e| refused("nvrtcVersion", e))?;
    new_enough((major.max(0) as u32, minor.max(0) as u32))
}

/// Refuses a compiler of the releases before, which lacks functions that are called here: to look for one that is not there panics.
fn new_enough((major, minor): (u32, u32)) -> Result<(u32, u32), DeviceError> {
    if major < OLDEST_COMPILER { Err(DeviceError::OldCompiler { major, minor }) } else { Ok((major, minor)) }
}

/// Options for an architecture; part of a cache's key.
#[must_use]
pub fn options(target: &str) -> Vec<String> {
    vec![format!("--gpu-architecture={target}"), "--std=c++17".to_owned(), "--generate-line-info".to_owned()]
}

/// What to compile for, for a card of this architecture: its own machine code where the compiler knows it, else text for the
/// newest one before it.
///
/// # Errors
/// [`DeviceError::NoCompiler`], [`DeviceError::OldCompiler`], [`DeviceError::Compile`].
pub fn target(architecture: u32) -> Result<String, DeviceError> {
    let known = architectures()?;
    if known.contains(&architecture) {
        return Ok(format!("sm_{architecture}"));
    }
    let before = known.into_iter().filter(|&a| a < architecture).max();
    let before = before.ok_or_else(|| refused("nvrtcGetSupportedArchs", format!("it knows nothing for sm_{architecture}")))?;
    Ok(format!("compute_{before}"))
}

/// Compiles `text` for a target of [`target`].
///
/// # Errors
/// [`DeviceError::NoCompiler`], [`DeviceError::OldCompiler`], [`DeviceError::Compile`] with the compiler's log.
pub fn compile(text: &str, target: &str) -> Result<Image, DeviceError> {
    version()?;
    let failed = |e: NvrtcError| refused(target, e);
    let source = CString::new(text).map_err(|e| refused(target, e))?;
    let program = Program(result::create_program(&source, Some(c"obelysk.cu")).map_err(failed)?);
    // SAFETY: the program was made just now and is destroyed when it is dropped.
    if unsafe { result::compile_program(program.0, &options(target)) }.is_err() {
        return Err(DeviceError::Compile { architecture: target.to_owned(), log: program.log() });
    }
    let architecture = target.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().map_err(|e| refused(target, e))?;
    let bytes = if target.starts_with("sm_") { program.cubin().map_err(failed)? } else { program.ptx().map_err(failed)? };
    Ok(Image { bytes, architecture })
}

/// Architectures the compiler knows.
fn architectures() -> Result<Vec<u32>, DeviceError> {
    version()?;
    let mut count: c_int = 0;
    // SAFETY: the library is there; the pointer is to an integer.
    unsafe { sys::nvrtcGetNumSupportedArchs(&mut count) }.result().map_err(|e| refused("nvrtcGetNumSupportedArchs", e))?;
    let mut all: Vec<c_int> = vec![0; count.max(0) as usize];
    // SAFETY: the compiler writes as many integers as it said there are.
    unsafe { sys::nvrtcGetSupportedArchs(all.as_mut_ptr()) }.result().map_err(|e| refused("nvrtcGetSupportedArchs", e))?;
    Ok(all.into_iter().map(|a| a as u32).collect())
}

/// Refuses to go on without the library, which any call would panic about.
fn present() -> Result<(), DeviceError> {
    // SAFETY: loading the library runs its initialisers, which only set it up.
    if unsafe { sys::is_culib_present() } { Ok(()) } else { Err(DeviceError::NoCompiler) }
}

fn refused(architecture: &str, reason: impl std::fmt::Display) -> DeviceError {
    DeviceError::Compile { architecture: architecture.to_owned(), log: reason.to_string() }
}

/// A program of the compiler.
struct Program(sys::nvrtcProgram);

impl Program {
    fn log(&self) -> String {
        // SAFETY: the program is alive; what comes back ends in a zero byte.
        unsafe { result::get_program_log(self.0) }.map_or_else(|e| e.to_string(), |log| text(&log))
    }

    fn ptx(&self) -> Result<Vec<u8>, NvrtcError> {
        // SAFETY: the program is alive and compiled.
        let ptx = unsafe { result::get_ptx(self.0) }?;
        Ok(ptx.into_iter().map(|c| c as u8).collect())
    }

    fn cubin(&self) -> Result<Vec<u8>, NvrtcError> {
        let mut size = 0usize;
        // SAFETY: the program is alive and compiled; the pointer is to an integer.
        unsafe { sys::nvrtcGetCUBINSize(self.0, &mut size) }.result()?;
        let mut out = vec![0u8; size];
        // SAFETY: as many bytes are written as were asked for just now.
        unsafe { sys::nvrtcGetCUBIN(self.0, out.as_mut_ptr().cast::<c_char>()) }.result()?;
        Ok(out)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by the compiler, destroyed once. There is nothing to do about a program that cannot be.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

fn text(log: &[c_char]) -> String {
    let bytes: Vec<u8> = log.iter().map(|&c| c as u8).collect();
    CStr::from_bytes_until_nul(&bytes).map_or_else(|_| String::new(), |s| s.to_string_lossy().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_of_an_older_release_is_refused_with_what_was_found() {
        assert_eq!(new_enough((12, 0)), Ok((12, 0)));
        assert_eq!(new_enough((13, 1)), Ok((13, 1)));
        for old in [(10, 1), (11, 8)] {
            let error = new_enough(old).unwrap_err();
            assert!(error.to_string().contains(&format!("NVRTC {}.{}", old.0, old.1)), "{error}");
        }
    }
}
