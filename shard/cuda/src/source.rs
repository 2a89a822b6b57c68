//! The kernels' text: one translation unit, put together here so that no compiler needs a folder of headers, and what each
//! kernel takes, read from its declaration.

use crate::device::{Arg, DeviceError};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Files in the order in which they are compiled.
const FILES: [&str; 11] = [
    include_str!("../kernels/prelude.cuh"),
    include_str!("../kernels/field.cuh"),
    include_str!("../kernels/reduce.cuh"),
    include_str!("../kernels/circuit.cuh"),
    include_str!("../kernels/vector.cu"),
    include_str!("../kernels/encode.cu"),
    include_str!("../kernels/merkle.cu"),
    include_str!("../kernels/rows.cu"),
    include_str!("../kernels/packed.cu"),
    include_str!("../kernels/logup.cu"),
    include_str!("../kernels/chip.cu"),
];

/// How a kernel is declared.
const DECLARATION: &str = "extern \"C\" __global__ void ";

/// What a kernel takes at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A pointer.
    Address,
    /// `u32`.
    U32,
    /// `u64`.
    U64,
    /// `QM31`.
    Ext,
}

impl Kind {
    fn of(arg: &Arg) -> Self {
        match arg {
            Arg::Address(_) => Self::Address,
            Arg::U32(_) => Self::U32,
            Arg::U64(_) => Self::U64,
            Arg::Ext(_) => Self::Ext,
        }
    }

    fn declared(text: &str) -> Option<Self> {
        let before = text.trim().trim_end_matches(|c: char| c.is_alphanumeric() || c == '_').trim_end();
        match before.trim_start_matches("const ").trim() {
            pointer if pointer.ends_with('*') => Some(Self::Address),
            "u32" => Some(Self::U32),
            "u64" => Some(Self::U64),
            "QM31" => Some(Self::Ext),
            _ => None,
        }
    }
}

/// All kernels as one text.
#[must_use]
pub fn text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| FILES.join("\n"))
}

/// What every kernel takes.
#[must_use]
pub fn kernels() -> &'static BTreeMap<&'static str, Vec<Kind>> {
    static KERNELS: OnceLock<BTreeMap<&'static str, Vec<Kind>>> = OnceLock::new();
    KERNELS.get_or_init(|| declarations(text()))
}

/// Kernels declared in a text.
pub(crate) fn declarations(text: &str) -> BTreeMap<&str, Vec<Kind>> {
    let declared = text.split(DECLARATION).skip(1);
    declared
        .filter_map(|rest| {
            let (name, rest) = rest.split_once('(')?;
            let (arguments, _) = rest.split_once(')')?;
            Some((name.trim(), arguments.split(',').filter_map(Kind::declared).collect()))
        })
        .collect()
}

/// Checks a call against the kernel's declaration.
///
/// # Errors
/// [`DeviceError::Kernel`].
pub(crate) fn check(kernel: &str, args: &[Arg]) -> Result<(), DeviceError> {
    let wrong = |reason: String| Err(DeviceError::Kernel { kernel: kernel.to_owned(), reason });
    let Some(kinds) = kernels().get(kernel) else { return wrong("there is none of this name".to_owned()) };
    let given: Vec<Kind> = args.iter().map(Kind::of).collect();
    if given == *kinds { Ok(()) } else { wrong(format!("takes {kinds:?}, was called with {given:?}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_are_read() {
        let text = "extern \"C\" __global__ void one(const QM31* f, QM31 r, u64 n,\n    const Hash * out, u32 last) {\nx(); }";
        let kinds = vec![Kind::Address, Kind::Ext, Kind::U64, Kind::Address, Kind::U32];
        assert_eq!(declarations(text), BTreeMap::from([("one", kinds)]));
    }

    #[test]
    fn every_argument_of_every_kernel_is_understood() {
        for rest in text().split(DECLARATION).skip(1) {
            let (name, rest) = rest.split_once('(').unwrap();
            let count = rest.split_once(')').unwrap().0.split(',').count();
            assert_eq!(kernels()[name].len(), count, "{name}");
        }
    }

    #[test]
    fn a_wrong_call_is_refused() {
        assert!(check("bind", &[Arg::Address(0), Arg::Ext([0; 4]), Arg::U64(1), Arg::Address(0)]).is_ok());
        let short = check("bind", &[Arg::Address(0)]);
        assert!(matches!(short, Err(DeviceError::Kernel { .. })));
        assert!(matches!(check("none", &[]), Err(DeviceError::Kernel { .. })));
    }
}
