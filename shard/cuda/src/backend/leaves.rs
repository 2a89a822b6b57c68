//! Leaves of the LogUp tree: one launch per lookup or table, every expression evaluated where its columns lie.

use super::CudaBackend;
use super::gkr::{Fractions, Numerators};
use super::layout::{BaseTerm, Source as Read};
use super::run::{Buffer, Column, EXT, ext};
use super::sources::repeating;
use crate::device::{Arg, Device};
use bytemuck::cast_slice;
use obelysk_protocol::circuit::expr::{Expr, Source};
use obelysk_protocol::circuit::segment::{Circuit, Leaf, LeafKind};
use obelysk_protocol::field::{QM31, signed, signed_ext};
use obelysk_protocol::verifier::product::powers;
use std::collections::BTreeMap;

/// What numerators are, as in `logup.cu`.
const ONES: u32 = 0;
const COLUMN: u32 = 1;
const MINUS_COLUMN: u32 = 2;

/// Expressions as a kernel reads them.
#[derive(Default)]
struct Program {
    sources: Vec<Read>,
    terms: Vec<BaseTerm>,
    starts: Vec<u32>,
    kind: u32,
    numerator: u32,
}

/// Sources of a circuit seen so far, so that each is prepared once.
struct Readings<'a, D: Device> {
    backend: &'a CudaBackend<D>,
    circuit: &'a Circuit,
    columns: &'a [Column<D>],
    known: BTreeMap<Source, Read>,
    kept: Vec<Buffer<D>>,
}

impl<D: Device> Readings<'_, D> {
    fn of(&mut self, source: Source) -> Read {
        if let Some(read) = self.known.get(&source) {
            return *read;
        }
        let reading = self.backend.reading(self.circuit, source, self.columns);
        self.kept.extend(reading.own);
        self.known.insert(source, reading.read);
        reading.read
    }

    fn place(&mut self, program: &mut Program, source: Source) -> u32 {
        let read = self.of(source);
        let at = program.sources.iter().position(|s| *s == read).unwrap_or_else(|| {
            program.sources.push(read);
            program.sources.len() - 1
        });
        at as u32
    }

    fn input(&mut self, program: &mut Program, e: &Expr) {
        for term in e.terms() {
            let mut factors = [0; 3];
            for (slot, &f) in factors.iter_mut().zip(&term.factors) {
                *slot = self.place(program, f);
            }
            let (coef, count) = (signed(term.coef).0, term.factors.len() as u32);
            program.terms.push(BaseTerm { coef, count, factors, ..BaseTerm::default() });
        }
        program.starts.push(program.terms.len() as u32);
    }

    fn program(&mut self, leaf: Leaf) -> (u32, Program) {
        let mut program = Program { starts: vec![0], ..Program::default() };
        match leaf.kind {
            LeafKind::Lookup(i) => {
                let lookup = &self.circuit.lookups[i];
                lookup.inputs.iter().for_each(|e| self.input(&mut program, e));
                if lookup.masked {
                    (program.kind, program.numerator) = (COLUMN, self.place(&mut program, Source::Mask));
                } else {
                    program.kind = ONES;
                }
                (self.circuit.tables[lookup.table].tag, program)
            }
            LeafKind::Table(i) => {
                let table = &self.circuit.tables[i];
                for values in table.materialise() {
                    let column = self.backend.upload_base(&values);
                    program.sources.push(repeating(column.address(), values.len()));
                    self.kept.push(column);
                    let factors = [program.sources.len() as u32 - 1, 0, 0];
                    program.terms.push(BaseTerm { coef: 1, count: 1, factors, ..BaseTerm::default() });
                    program.starts.push(program.terms.len() as u32);
                }
                program.kind = MINUS_COLUMN;
                program.numerator = self.place(&mut program, Source::Col(table.multiplicity));
                (table.tag, program)
            }
        }
    }
}

impl<D: Device> CudaBackend<D> {
    pub(super) fn leaves_of(&self, c: &Circuit, columns: &[Column<D>], alpha: QM31, beta: QM31) -> Fractions<D> {
        let leaves = c.leaves();
        let stored: usize = leaves.iter().map(|l| 1usize << l.log_size).sum();
        let (num, den) = (self.buffer(4 * stored), self.buffer(EXT * stored));
        let alphas = self.upload_ext(&powers(alpha, 1 + c.tuple_len())[1..]);
        let mut readings = Readings { backend: self, circuit: c, columns, known: BTreeMap::new(), kept: Vec::new() };
        for leaf in leaves {
            let (tag, program) = readings.program(leaf);
            let sources = self.upload(cast_slice(&program.sources));
            let (terms, starts) = (self.upload(cast_slice(&program.terms)), self.upload(cast_slice(&program.starts)));
            let (inputs, n) = (program.starts.len() as u32 - 1, 1u64 << leaf.log_size);
            let args = [
                sources.arg(),
                terms.arg(),
                starts.arg(),
                alphas.arg(),
                Arg::U32(inputs),
                ext(beta - signed_ext(i64::from(tag))),
                Arg::U32(program.kind),
                Arg::U32(program.numerator),
                Arg::U64(n),
                num.arg_at(4 * leaf.offset),
                den.arg_at(EXT * leaf.offset),
            ];
            self.each("leaf_block", n, &args);
        }
        Fractions { num: Numerators::Base(num), den, stored, log: c.tree_log() }
    }
}
