//! Rotation tables that the circuits of a statement share: angles are the same in every layer, plain gains in most.
//!
//! A pure cache beside [`rotary::tables`](super::rotary::tables): whatever it is asked, it gives the same numbers. It holds
//! the angles of one statement and few tables, however many layers and gains a descriptor has.

use super::descriptor::Decoder;
use super::rotary::{coefficients, cos_sin};
use std::sync::{Arc, Mutex, PoisonError};

/// Tables kept: cosine and sine of each part, for one gain of queries and one of keys. Gains that differ from layer to layer
/// gain nothing from being kept.
const KEPT: usize = 16;

/// Cosines and sines by pair and row.
#[derive(Debug)]
struct Angles {
    frequencies: Vec<u64>,
    positions: Vec<u32>,
    /// Pair j in row t at `t + j * positions.len()`.
    cos: Vec<i64>,
    sin: Vec<i64>,
}

/// One table: of a part's cosines or sines, with one gain per pair.
#[derive(Debug)]
struct Kept {
    part: usize,
    sine: bool,
    gains: Vec<i32>,
    values: Arc<Vec<i32>>,
}

#[derive(Debug, Default)]
struct Known {
    angles: Option<Arc<Angles>>,
    tables: Vec<Kept>,
}

/// A cache of rotations; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Rotations(Arc<Mutex<Known>>);

impl Rotations {
    /// The coefficients of [`rotary::tables`](super::rotary::tables), equal ones in the same place.
    pub(super) fn tables(&self, d: &Decoder, gain: &[i32], positions: &[u32], part: usize) -> [Arc<Vec<i32>>; 4] {
        let half = d.head_dim as usize / 2;
        let pairs = part << d.pair_log()..(part + 1) << d.pair_log();
        let gains = |from: usize| pairs.clone().map(|j| gain.get(j + from).copied().unwrap_or(0)).collect::<Vec<_>>();
        let (first, second) = (gains(0), gains(half));
        let angles = self.angles(&d.frequencies, half, positions);
        [(&first, false), (&second, true), (&first, true), (&second, false)].map(|(g, sine)| self.table(&angles, part, sine, g))
    }

    fn angles(&self, frequencies: &[u64], pairs: usize, positions: &[u32]) -> Arc<Angles> {
        let same = |a: &&Arc<Angles>| a.frequencies.get(..pairs) == Some(frequencies) && a.positions == positions;
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).angles.as_ref().filter(same).cloned();
        known.unwrap_or_else(|| {
            let angles = Arc::new(Angles::new(frequencies, pairs, positions));
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Tables are of the angles beside them.
            *known = Known { angles: Some(angles.clone()), tables: Vec::new() };
            angles
        })
    }

    fn table(&self, angles: &Arc<Angles>, part: usize, sine: bool, gains: &[i32]) -> Arc<Vec<i32>> {
        let of_these = |known: &Known| known.angles.as_ref().is_some_and(|a| Arc::ptr_eq(a, angles));
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.tables.iter().find(|t| t.part == part && t.sine == sine && t.gains == gains);
        if let Some(found) = found.filter(|_| of_these(&known)) {
            return found.values.clone();
        }
        drop(known);
        let values = Arc::new(angles.table(part, sine, gains));
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.tables.len() < KEPT && of_these(&known) {
            known.tables.push(Kept { part, sine, gains: gains.to_vec(), values: values.clone() });
        }
        values
    }
}

impl Angles {
    fn new(frequencies: &[u64], pairs: usize, positions: &[u32]) -> Self {
        let mut frequencies = frequencies.to_vec();
        frequencies.resize(pairs, 0);
        let angle = |(&f, &p): (&u64, &u32)| cos_sin(u64::from(p).wrapping_mul(f));
        let (cos, sin) = frequencies.iter().flat_map(|f| positions.iter().map(move |p| (f, p))).map(angle).unzip();
        Self { frequencies, positions: positions.to_vec(), cos, sin }
    }

    fn table(&self, part: usize, sine: bool, gains: &[i32]) -> Vec<i32> {
        let (values, rows) = (if sine { &self.sin } else { &self.cos }, self.positions.len());
        let first = part * gains.len() * rows;
        let of_part = values.get(first..first + gains.len() * rows).unwrap_or(&[]);
        let pairs = of_part.chunks_exact(rows.max(1)).zip(gains);
        pairs.flat_map(|(values, &gain)| values.iter().map(move |&v| coefficients(gain, v))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::descriptor::{Head, NormSpec, Stop, TokenEmbed};
    use super::super::rotary;
    use super::*;

    fn decoder(head_dim: u32) -> Decoder {
        Decoder {
            name: String::new(),
            vocab: 8,
            positions: 64,
            width: 8,
            heads: 1,
            kv_heads: 1,
            head_dim,
            ffn: 8,
            tile_k_log: 0,
            tile_n_log: 0,
            row_log: 14,
            blowup_log: 2,
            embed: TokenEmbed { limbs: 1, scale: Vec::new(), shift: 1 },
            frequencies: (0..u64::from(head_dim) / 2).map(|j| 0x0123_4567_89ab_cdef_u64.rotate_left(7 * j as u32)).collect(),
            layers: Vec::new(),
            head: Head { norm: NormSpec { eps: 1 << 14 }, linear: Stop { e: 8 }, mult: Vec::new() },
        }
    }

    fn same(shared: &Rotations, d: &Decoder, gain: &[i32], positions: &[u32]) {
        for part in 0..d.delta() {
            let found = shared.tables(d, gain, positions, part).map(|t| t.to_vec());
            assert_eq!(found, rotary::tables(d, gain, positions, part), "part {part} of {gain:?} at {positions:?}");
        }
    }

    #[test]
    fn shared_tables_equal_unshared_ones_whatever_came_before() {
        let shared = Rotations::default();
        // Three parts of four pairs, and one part of eight.
        let (odd, even) = (decoder(24), decoder(16));
        let plain = vec![1 << 14; 24];
        let mixed: Vec<i32> = (0..24).map(|c| 20_000 - 1700 * c).collect();
        let rows: Vec<u32> = (0..13).chain(0..3).collect();
        let later: Vec<u32> = (5..21).collect();
        for _ in 0..2 {
            for positions in [&rows, &later] {
                same(&shared, &odd, &plain, positions);
                same(&shared, &odd, &mixed, positions);
                same(&shared, &even, &mixed, positions);
            }
        }
        // As many gains as a descriptor likes.
        (0..20).for_each(|g| same(&shared, &odd, &[g * 1000; 24], &rows));
        assert!(shared.0.lock().unwrap().tables.len() <= KEPT);
        // Frequencies that the descriptor forgot count as zero.
        let short = Decoder { frequencies: vec![1 << 60; 2], ..decoder(16) };
        same(&shared, &short, &plain, &rows);
        same(&shared, &even, &plain[..5], &rows);
        same(&shared, &even, &plain, &[]);
    }

    #[test]
    fn equal_gains_share_their_tables_between_halves_and_layers() {
        let (shared, d) = (Rotations::default(), decoder(16));
        let rows: Vec<u32> = (0..8).collect();
        let [a, b] = [0, 0].map(|part| shared.tables(&d, &[1 << 14; 16], &rows, part));
        assert!(Arc::ptr_eq(&a[0], &a[3]) && Arc::ptr_eq(&a[1], &a[2]));
        assert!(a.iter().zip(&b).all(|(a, b)| Arc::ptr_eq(a, b)));
        assert!(!Arc::ptr_eq(&a[0], &a[1]));
    }
}
