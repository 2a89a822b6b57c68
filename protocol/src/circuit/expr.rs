//! Expressions of a chip: integer combinations of products of at most three sources.
//!
//! The normal form (a sum of monomials) is what every backend evaluates, what the verifier evaluates at one point, and
//! what the interval check bounds; there is nothing to keep in step.

use std::collections::BTreeMap;
use std::ops::{Add, Mul, Sub};

/// Largest degree of a constraint or a lookup input in committed and public sources together.
pub const MAX_DEGREE: usize = 3;

/// Something an expression reads at a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A committed column; shorter columns are read by the low bits of the row (prefix columns).
    Col(u32),
    /// A registered per-channel parameter of one block: read by the bits above the token axis.
    Param(u32),
    /// A public column of the circuit.
    Public(u32),
    /// The public attention mask over (query, head, key): 1 where the key may be attended.
    Mask,
}

impl Source {
    /// Whether the verifier can evaluate it without an opening.
    #[must_use]
    pub fn is_public(self) -> bool {
        !matches!(self, Self::Col(_))
    }
}

/// `coef` times the product of `factors` (sorted; empty for a constant).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// Integer coefficient.
    pub coef: i64,
    /// At most [`MAX_DEGREE`] sources.
    pub factors: Vec<Source>,
}

impl Term {
    /// Whether no committed column occurs.
    #[must_use]
    pub fn is_public(&self) -> bool {
        self.factors.iter().all(|f| f.is_public())
    }
}

/// A sum of monomials in canonical order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expr {
    terms: BTreeMap<Vec<Source>, i64>,
}

impl Expr {
    /// A constant.
    #[must_use]
    pub fn constant(v: i64) -> Self {
        Self::monomial(v, &[])
    }

    /// A committed column.
    #[must_use]
    pub fn col(id: u32) -> Self {
        Self::monomial(1, &[Source::Col(id)])
    }

    /// A registered parameter.
    #[must_use]
    pub fn param(id: u32) -> Self {
        Self::monomial(1, &[Source::Param(id)])
    }

    /// A public column.
    #[must_use]
    pub fn public(id: u32) -> Self {
        Self::monomial(1, &[Source::Public(id)])
    }

    /// The attention mask.
    #[must_use]
    pub fn mask() -> Self {
        Self::monomial(1, &[Source::Mask])
    }

    fn monomial(coef: i64, factors: &[Source]) -> Self {
        let mut e = Self::default();
        e.insert(factors.to_vec(), coef);
        e
    }

    fn insert(&mut self, factors: Vec<Source>, coef: i64) {
        let sum = self.terms.get(&factors).copied().unwrap_or(0) + coef;
        if sum == 0 {
            self.terms.remove(&factors);
        } else {
            self.terms.insert(factors, sum);
        }
    }

    /// The same expression times an integer.
    #[must_use]
    pub fn scale(&self, k: i64) -> Self {
        let mut out = Self::default();
        for (f, c) in &self.terms {
            out.insert(f.clone(), c * k);
        }
        out
    }

    /// The monomials, in canonical order.
    pub fn terms(&self) -> impl Iterator<Item = Term> + '_ {
        self.terms.iter().map(|(f, &coef)| Term { coef, factors: f.clone() })
    }

    /// Largest number of factors in a monomial.
    #[must_use]
    pub fn degree(&self) -> usize {
        self.terms.keys().map(Vec::len).max().unwrap_or(0)
    }

    /// All sources, sorted, without repetition.
    #[must_use]
    pub fn sources(&self) -> Vec<Source> {
        let mut all: Vec<Source> = self.terms.keys().flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Replaces sources by constants (a row of a table tuple) and merges what becomes equal.
    #[must_use]
    pub fn substitute(&self, values: &[(Source, i64)]) -> Self {
        let mut out = Self::default();
        for (factors, &coef) in &self.terms {
            let mut c = coef;
            let mut rest = Vec::new();
            for &f in factors {
                match values.iter().find(|(s, _)| *s == f) {
                    Some((_, v)) => c *= v,
                    None => rest.push(f),
                }
            }
            out.insert(rest, c);
        }
        out
    }
}

impl Add for Expr {
    type Output = Self;
    fn add(mut self, o: Self) -> Self {
        for (f, c) in o.terms {
            self.insert(f, c);
        }
        self
    }
}

impl Sub for Expr {
    type Output = Self;
    fn sub(self, o: Self) -> Self {
        self + o.scale(-1)
    }
}

impl Mul for Expr {
    type Output = Self;
    fn mul(self, o: Self) -> Self {
        let mut out = Self::default();
        for (fa, ca) in &self.terms {
            for (fb, cb) in &o.terms {
                let mut f = fa.clone();
                f.extend_from_slice(fb);
                f.sort_unstable();
                out.insert(f, ca * cb);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_form_cancels() {
        let (s, t) = (Expr::col(0), Expr::col(1));
        let e = (Expr::constant(1) - s.clone()) * t.clone() + s.clone() * t.clone() - t;
        assert_eq!(e, Expr::default());
        assert_eq!((s.clone() * s).degree(), 2);
    }

    #[test]
    fn substitution_merges() {
        let e = (Expr::constant(1) - Expr::col(0)) * Expr::col(1) + Expr::col(2);
        assert_eq!(e.substitute(&[(Source::Col(0), 1), (Source::Col(2), 7)]), Expr::constant(7));
    }
}
