//! The fast CPU implementation: S-two's packed field (16 lanes), its circle FFT and 16-lane Blake2s, rayon over rows and chunks.
//!
//! Byte-equal to the reference tier for every number of threads: field sums do not depend on their order. Sizes too small
//! for 16 lanes take the reference path. Packed lanes may hold p for 0; everything that is hashed, stored as symbols or
//! returned to the host is canonical.

mod chip;
mod combine;
mod commit;
mod encode;
mod ext;
mod fractions;
mod gkr;
mod hash;
pub(crate) mod int8;
mod leaves;
mod proof;

pub use chip::Chip;
pub use commit::AlignedWords;
pub use ext::SimdExt;
pub use fractions::Fractions;
pub use gkr::Layer;
pub use proof::Column;

use encode::Tables;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The SIMD backend. Cheap to create; keeps the twiddles of the word lengths it has seen.
#[derive(Default)]
pub struct Simd {
    tables: Mutex<BTreeMap<u32, Arc<Tables>>>,
}

impl std::fmt::Debug for Simd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Simd")
    }
}

impl Simd {
    fn tables(&self, log_n: u32) -> Arc<Tables> {
        // The map only ever gains finished tables, so one left behind by a panicking thread is still sound.
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(tables.entry(log_n).or_insert_with(|| Arc::new(Tables::new(log_n))))
    }
}
