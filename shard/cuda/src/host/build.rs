//! Compiles kernels for the processor into a shared library, once per text: a wrapper per kernel reads its arguments as the
//! driver would.

use crate::device::DeviceError;
use crate::source::declarations;
use libloading::Library;
use obelysk_protocol::transcript::{Blake2s, HashSuite as _};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// How kernels run on the processor.
const SHIM: &str = include_str!("shim.h");
/// Options of the compiler. Fibers keep their thread-local state in the library's own, small block.
const OPTIONS: [&str; 7] = ["-std=c++17", "-O2", "-g1", "-shared", "-fPIC", "-fno-strict-aliasing", "-ftls-model=initial-exec"];
/// Compilers to try.
const COMPILERS: [&str; 3] = ["g++", "c++", "clang++"];

/// Blocks `from..to` of a launch: blocks, threads, shared bytes, arguments, from, to, order.
pub(super) type Run = unsafe extern "C" fn(u32, u32, usize, *mut *mut c_void, u32, u32, u64) -> i32;

/// Kernels in a shared library.
pub(super) struct Kernels {
    runs: BTreeMap<String, Run>,
    // Dropped after what points into it.
    _library: Library,
}

fn refused(reason: impl std::fmt::Display) -> DeviceError {
    DeviceError::HostCompiler(reason.to_string())
}

impl Kernels {
    /// Compiles `text` into `folder`, unless it is there.
    pub(super) fn compile(folder: &Path, text: &str) -> Result<Self, DeviceError> {
        let unit = unit(text);
        let path = folder.join(format!("obelysk-kernels-{}.so", name(&unit)));
        if !path.exists() {
            std::fs::create_dir_all(folder).map_err(refused)?;
            build(&unit, &path)?;
        }
        // SAFETY: the library is what was compiled from our text and has no initialisers.
        let library = unsafe { Library::new(&path) }.map_err(refused)?;
        let mut runs = BTreeMap::new();
        for kernel in declarations(text).into_keys() {
            // SAFETY: every kernel's wrapper has this type.
            let run = unsafe { library.get::<Run>(format!("run_{kernel}").as_bytes()) }.map_err(refused)?;
            runs.insert(kernel.to_owned(), *run);
        }
        Ok(Self { runs, _library: library })
    }

    pub(super) fn get(&self, kernel: &str) -> Result<&Run, DeviceError> {
        let missing = || DeviceError::Kernel { kernel: kernel.to_owned(), reason: "there is none of this name".to_owned() };
        self.runs.get(kernel).ok_or_else(missing)
    }
}

/// The shim, the kernels, a wrapper per kernel.
fn unit(text: &str) -> String {
    let mut unit = format!("{SHIM}\n{text}\n");
    for kernel in declarations(text).into_keys() {
        let _ = writeln!(
            unit,
            "extern \"C\" int run_{kernel}(uint32_t g, uint32_t t, size_t s, void** a, uint32_t from, uint32_t to, uint64_t seed) {{ return shim::launch(&{kernel}, g, t, s, a, from, to, seed); }}"
        );
    }
    unit
}

fn name(unit: &str) -> String {
    let key = format!("{OPTIONS:?}{unit}");
    Blake2s::hash(0, key.as_bytes()).iter().take(12).map(|b| format!("{b:02x}")).collect()
}

/// Compiles beside the target and moves it there whole, so that others may do the same at the same time.
fn build(unit: &str, target: &Path) -> Result<(), DeviceError> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let own = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let (source, made) = (target.with_extension(format!("{own}.cpp")), target.with_extension(format!("{own}.so")));
    std::fs::write(&source, unit).map_err(refused)?;
    let result = compile(&source, &made).and_then(|()| std::fs::rename(&made, target).map_err(refused));
    let _ = std::fs::remove_file(&source);
    result
}

fn compile(source: &PathBuf, made: &PathBuf) -> Result<(), DeviceError> {
    for compiler in COMPILERS {
        match Command::new(compiler).args(OPTIONS).arg("-o").arg(made).arg(source).output() {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => return Err(refused(format!("{compiler}: {}", String::from_utf8_lossy(&output.stderr)))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(refused(format!("{compiler}: {error}"))),
        }
    }
    Err(refused("there is no C++ compiler"))
}
