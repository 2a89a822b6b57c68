//! Numbers for tests: SplitMix64.

use obelysk_protocol::field::{M31, P, QM31};

pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Now and then an element at the edge of the field.
    pub fn base(&mut self) -> M31 {
        let edge = [0, 1, P - 1, P / 2, P / 2 + 1];
        let v = self.next();
        M31::from_u32_unchecked(if v.is_multiple_of(7) {
            edge[(v >> 8) as usize % edge.len()]
        } else {
            ((v >> 8) % u64::from(P)) as u32
        })
    }

    pub fn bases(&mut self, n: usize) -> Vec<M31> {
        (0..n).map(|_| self.base()).collect()
    }

    pub fn felt(&mut self) -> QM31 {
        QM31::from_m31_array([self.base(), self.base(), self.base(), self.base()])
    }

    pub fn felts(&mut self, n: usize) -> Vec<QM31> {
        (0..n).map(|_| self.felt()).collect()
    }

    pub fn bytes(&mut self, n: usize) -> Vec<i8> {
        (0..n).map(|i| if i % 5 == 0 { -128 } else { self.next() as i8 }).collect()
    }
}
