//! Layers of the LogUp tree and their sumchecks. Binding a variable and evaluating the next round is one pass; eq weights are an
//! outer product of two short vectors; of the constant leaves beyond the last table only the total weight is used: their share
//! of a round is `mu (1 - the weights of those in memory)`.

use super::CudaBackend;
use super::run::{Buffer, EXT, Ext, ext};
use crate::device::{Arg, Device, DeviceError, leave};
use obelysk_protocol::field::{M31, ONE, QM31, ZERO, eq_vector};

/// One layer: numerators and denominators of the first `stored` of `2^log` fractions; the others are 0 over 1.
pub struct Fractions<D: Device> {
    pub(super) num: Numerators<D>,
    pub(super) den: Buffer<D>,
    pub(super) stored: usize,
    pub(super) log: usize,
}

/// Numerators of leaves are of the base field.
pub(super) enum Numerators<D: Device> {
    Base(Buffer<D>),
    Ext(Buffer<D>),
}

/// A layer in its sumcheck.
pub struct Layer<D: Device> {
    parts: Parts<D>,
    /// Weights of the variables after the current one: low bits, high bits.
    low: Ext<D>,
    high: Ext<D>,
    rounds: usize,
    mu: QM31,
}

/// Children: even and odd fractions of a layer, or what is left of them after binding.
enum Parts<D: Device> {
    Layer(Fractions<D>),
    /// Four vectors, `room` apart, `stored` elements of each.
    Bound {
        data: Buffer<D>,
        room: usize,
        stored: usize,
    },
}

impl<D: Device> Fractions<D> {
    fn numerator(&self, i: usize) -> QM31 {
        match &self.num {
            _ if i >= self.stored => ZERO,
            Numerators::Base(b) => QM31::from(M31::from_u32_unchecked(b.words(i, 1)[0])),
            Numerators::Ext(e) => super::run::elements(&e.words(4 * i, 4))[0],
        }
    }

    fn denominator(&self, i: usize) -> QM31 {
        if i < self.stored { super::run::elements(&self.den.words(4 * i, 4))[0] } else { ONE }
    }

    /// Numerators and denominators of fractions 2i and 2i + 1.
    fn pair(&self, i: usize) -> [QM31; 4] {
        [self.numerator(2 * i), self.numerator(2 * i + 1), self.denominator(2 * i), self.denominator(2 * i + 1)]
    }

    fn args(&self) -> (bool, [Arg; 3]) {
        let (is_base, num) = match &self.num {
            Numerators::Base(b) => (true, b),
            Numerators::Ext(e) => (false, e),
        };
        (is_base, [num.arg(), self.den.arg(), Arg::U64(self.stored as u64)])
    }
}

impl<D: Device> Parts<D> {
    /// Children in memory.
    fn stored(&self) -> usize {
        match self {
            Self::Layer(f) => f.stored.div_ceil(2),
            Self::Bound { stored, .. } => *stored,
        }
    }

    fn at(&self, i: usize) -> [QM31; 4] {
        match self {
            Self::Layer(f) => f.pair(i),
            Self::Bound { stored, .. } if i >= *stored => [ZERO, ZERO, ONE, ONE],
            Self::Bound { data, room, .. } => {
                std::array::from_fn(|k| super::run::elements(&data.words(4 * (k * room + i), 4))[0])
            }
        }
    }
}

impl<D: Device> CudaBackend<D> {
    pub(super) fn parents(&self, f: &Fractions<D>) -> Fractions<D> {
        let stored = f.stored.div_ceil(2);
        let (num, den) = (self.buffer(EXT * stored), self.buffer(EXT * stored));
        let (is_base, [n, d, s]) = f.args();
        let kernel = if is_base { "layer_base" } else { "layer_ext" };
        self.each(kernel, stored as u64, &[n, d, s, Arg::U64(stored as u64), num.arg(), den.arg()]);
        Fractions { num: Numerators::Ext(num), den, stored, log: f.log - 1 }
    }

    pub(super) fn children_of(f: &Fractions<D>) -> [QM31; 4] {
        f.pair(0)
    }

    pub(super) fn layer(&self, f: Fractions<D>, point: &[QM31], mu: QM31) -> Layer<D> {
        let rest = point.get(1..).unwrap_or_default();
        let (low, high) = rest.split_at(rest.len() / 2);
        let (low, high) = (self.vector_of(&eq_vector(low)), self.vector_of(&eq_vector(high)));
        Layer { parts: Parts::Layer(f), low, high, rounds: 0, mu }
    }

    pub(super) fn layer_round(&self, layer: &mut Layer<D>, bind: Option<QM31>) -> [QM31; 2] {
        if layer.rounds > 0 {
            // The lowest weighted variable becomes the current one.
            let part = if layer.low.len > 1 { &mut layer.low } else { &mut layer.high };
            *part = self.drop_low_of(part);
        }
        layer.rounds += 1;
        let weights = [layer.low.data.arg(), layer.high.data.arg(), Arg::U32(layer.low.len.trailing_zeros())];
        let [at_zero, at_two, weight] = match bind {
            None => self.evaluate_layer(layer, &weights),
            Some(r) => self.bind_layer(layer, &weights, r),
        };
        let beyond = layer.mu * (ONE - weight);
        [at_zero + beyond, at_two + beyond]
    }

    /// The first round, from the layer itself.
    fn evaluate_layer(&self, layer: &Layer<D>, weights: &[Arg; 3]) -> [QM31; 3] {
        let n = layer.parts.stored().div_ceil(2) as u64;
        let (kernel, head) = match &layer.parts {
            Parts::Layer(f) => {
                let (is_base, head) = f.args();
                (if is_base { "gkr_first_base" } else { "gkr_first_ext" }, head)
            }
            Parts::Bound { .. } => leave(DeviceError::Kernel {
                kernel: "gkr_first".to_owned(),
                reason: "the first round of a layer that is bound already".to_owned(),
            }),
        };
        let tail = [weights[0], weights[1], weights[2], ext(layer.mu), Arg::U64(n)];
        self.sums(kernel, n, &[head.as_slice(), &tail].concat())
    }

    fn bind_layer(&self, layer: &mut Layer<D>, weights: &[Arg; 3], r: QM31) -> [QM31; 3] {
        let kept = layer.parts.stored().div_ceil(2);
        let n = kept.div_ceil(2) as u64;
        let out = self.buffer(4 * EXT * kept);
        let tail = [
            weights[0],
            weights[1],
            weights[2],
            ext(layer.mu),
            ext(r),
            Arg::U64(n),
            out.arg(),
            Arg::U64(kept as u64),
            Arg::U64(kept as u64),
        ];
        let (kernel, head) = match &layer.parts {
            Parts::Layer(f) => {
                let (is_base, head) = f.args();
                (if is_base { "gkr_bind_base" } else { "gkr_bind_ext" }, head)
            }
            Parts::Bound { data, room, stored } => {
                ("gkr_bind_parts", [data.arg(), Arg::U64(*room as u64), Arg::U64(*stored as u64)])
            }
        };
        let sums = self.sums(kernel, n, &[head.as_slice(), &tail].concat());
        layer.parts = Parts::Bound { data: out, room: kept, stored: kept };
        sums
    }

    pub(super) fn layer_end(layer: &Layer<D>, r: QM31) -> [QM31; 4] {
        let (even, odd) = (layer.parts.at(0), layer.parts.at(1));
        std::array::from_fn(|k| even[k] + r * (odd[k] - even[k]))
    }
}
