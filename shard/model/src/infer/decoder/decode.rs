//! Greedy generation with kept keys and values: bit for bit what a run over the whole text gives.
//!
//! Several sequences advance together, so that every weight is read once for all of them. Segments are asked for one at a
//! time and in order, so that a model larger than memory can be streamed. Refuses ids and positions the model does not have.

use super::super::InferError;
use super::super::forward::{normaliser, weight};
use super::super::kernel::dot;
use super::attention::Heads;
use super::{forward, key_of, shape};
use crate::source::{Segment, WeightSource};
use crate::tables;
use crate::weights::Weights;
use obelysk_protocol::circuit::descriptor::{Decoder, DecoderLayer};
use rayon::prelude::*;

/// Most rows that go through a layer at once: bounds the memory of long prompts, not what is computed.
const MAX_ROWS: usize = 512;

/// Where weights come from.
pub trait Source {
    /// The weights of segment `index`: 0 the embedding, then the layers, then the head.
    ///
    /// # Errors
    /// Weights that cannot be had.
    fn segment(&self, index: usize) -> Result<Segment<'_>, InferError>;
}

impl Source for Weights {
    fn segment(&self, index: usize) -> Result<Segment<'_>, InferError> {
        self.segments.get(index).map(Segment::Borrowed).ok_or(InferError::Segment(index))
    }
}

impl Source for dyn WeightSource + '_ {
    fn segment(&self, index: usize) -> Result<Segment<'_>, InferError> {
        WeightSource::segment(self, index).map_err(|e| InferError::Weights(e.to_string()))
    }
}

/// A token that extends a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fed {
    /// Number of the sequence.
    pub sequence: usize,
    /// The token.
    pub id: u32,
}

/// Keys and values of one sequence in one layer: `(position * kv_heads + kv) * head_dim + c`, c natural in the head.
#[derive(Clone, Debug, Default)]
struct Kept {
    keys: Vec<i16>,
    values: Vec<i16>,
}

/// Sequences under way.
#[derive(Clone, Debug)]
pub struct Session<'d> {
    d: &'d Decoder,
    /// Tokens fed, per sequence.
    lengths: Vec<usize>,
    /// Per layer and sequence.
    kept: Vec<Vec<Kept>>,
}

impl<'d> Session<'d> {
    /// `sequences` empty sequences.
    #[must_use]
    pub fn new(d: &'d Decoder, sequences: usize) -> Self {
        Self { d, lengths: vec![0; sequences], kept: vec![vec![Kept::default(); sequences]; d.layers.len()] }
    }

    /// Tokens fed to a sequence so far, 0 for one that does not exist.
    #[must_use]
    pub fn length(&self, sequence: usize) -> usize {
        self.lengths.get(sequence).copied().unwrap_or(0)
    }

    /// Extends sequences and returns the residual stream that enters the head, `c * fed.len() + row`.
    ///
    /// # Errors
    /// See [`InferError`]; the session is unchanged if the tokens were refused, and unusable if weights were missing.
    pub fn feed(&mut self, source: &(impl Source + ?Sized), fed: &[Fed]) -> Result<Vec<i32>, InferError> {
        let positions = self.places(fed)?;
        let ids: Vec<u32> = fed.iter().map(|f| f.id).collect();
        let weights = source.segment(0)?;
        shape::embed(self.d, &weights)?;
        let mut x = forward::embedded(self.d, &weights, &ids, fed.len()).x;
        drop(weights);
        for (l, spec) in self.d.layers.iter().enumerate() {
            let weights = source.segment(l + 1)?;
            shape::layer(self.d, spec, &weights, &x, fed.len())?;
            let p = forward::projected(self.d, spec, &weights, &x, &positions);
            keep(self.d, &mut self.kept[l], fed, &p);
            let mix = attend(self.d, spec, &self.kept[l], (fed, &positions), &p.q.rot);
            x = forward::block(self.d, spec, &weights, &x, &mix, fed.len()).ffn.x;
        }
        for f in fed {
            self.lengths[f.sequence] += 1;
        }
        Ok(x)
    }

    /// The tokens that follow rows `rows` of what [`Self::feed`] returned for `fed` tokens.
    ///
    /// # Errors
    /// See [`InferError`].
    pub fn next(&self, source: &(impl Source + ?Sized), x: &[i32], rows: &[u32], fed: usize) -> Result<Vec<u32>, InferError> {
        let weights = source.segment(self.d.layers.len() + 1)?;
        Ok(forward::head(self.d, &weights, x, rows, fed)?.tokens)
    }

    /// The position of each fed token.
    fn places(&self, fed: &[Fed]) -> Result<Vec<u32>, InferError> {
        if fed.is_empty() {
            return Err(InferError::Empty);
        }
        shape::vocabulary(self.d, fed.iter().map(|f| f.id))?;
        let mut lengths = self.lengths.clone();
        let mut out = Vec::with_capacity(fed.len());
        for f in fed {
            let length = lengths.get_mut(f.sequence).ok_or(InferError::Sequence(f.sequence))?;
            let position = u32::try_from(*length).unwrap_or(u32::MAX);
            shape::position(self.d, position)?;
            out.push(position);
            *length += 1;
        }
        Ok(out)
    }
}

/// Appends the keys and values of all rows.
fn keep(d: &Decoder, kept: &mut [Kept], fed: &[Fed], p: &forward::Projected) {
    let (keys, dim, t) = (d.kv_heads as usize, d.head_dim as usize, fed.len());
    let (of_k, of_v) = (Heads::new(d, keys, d.pair_log()), Heads::new(d, keys, d.part_log()));
    for (row, f) in fed.iter().enumerate() {
        let kept = &mut kept[f.sequence];
        for i in 0..keys * dim {
            kept.keys.push(p.k.rot[of_k.channel(i / dim, i % dim) * t + row] as i16);
            kept.values.push(p.v.y[of_v.channel(i / dim, i % dim) * t + row] as i16);
        }
    }
}

/// The mix of every row, in proof order.
fn attend(d: &Decoder, spec: &DecoderLayer, kept: &[Kept], (fed, positions): (&[Fed], &[u32]), q: &[i32]) -> Vec<i16> {
    let (heads, keys, dim, t) = (d.heads as usize, d.kv_heads as usize, d.head_dim as usize, fed.len());
    let of_q = Heads::new(d, heads, d.pair_log());
    let task = |i: usize| {
        let (row, hh) = (i / heads, i % heads);
        let (kept, last) = (&kept[fed[row].sequence], positions[row] as usize);
        let first = if spec.window == 0 { 0 } else { (last + 1).saturating_sub(spec.window as usize) };
        let query: Vec<i16> = (0..dim).map(|c| q[of_q.channel(hh, c) * t + row] as i16).collect();
        let of = |position: usize| (position * keys + hh % keys) * dim..(position * keys + hh % keys + 1) * dim;
        let seen: Vec<i32> = (first..=last).map(|j| key_of(spec, dot(&query, &kept.keys[of(j)]))).collect();
        let exp = &tables::exp_ref().0;
        let lambda = i64::from(normaliser(&seen, exp));
        let mut acc = vec![0i32; dim];
        for (j, &key) in (first..=last).zip(&seen) {
            let weight = weight(exp, lambda - i64::from(key));
            if weight != 0 {
                let values = kept.values[of(j)].iter().map(|&v| i32::from(v));
                acc.iter_mut().zip(values).for_each(|(acc, v)| *acc = acc.wrapping_add(weight.wrapping_mul(v)));
            }
        }
        acc
    };
    let mixed: Vec<Vec<i32>> = (0..t * heads).into_par_iter().map(task).collect();
    let of_mix = Heads::new(d, heads, d.part_log());
    let mut out = vec![0i16; heads * dim * t];
    for (i, acc) in mixed.iter().enumerate() {
        for (c, acc) in acc.iter().enumerate() {
            out[of_mix.channel(i % heads, c) * t + i / heads] = (acc.wrapping_add(1 << 13) >> 14) as i16;
        }
    }
    out
}

/// The greedy completion of a prompt: at most `max_tokens` tokens, ending with the first one of `eos` or at the model's
/// longest sequence.
///
/// # Errors
/// See [`InferError`].
pub fn generate(
    d: &Decoder,
    source: &(impl Source + ?Sized),
    prompt: &[u32],
    max_tokens: usize,
    eos: &[u32],
) -> Result<Vec<u32>, InferError> {
    Ok(generate_batch(d, source, &[prompt], max_tokens, eos)?.pop().unwrap_or_default())
}

/// [`generate`] for several prompts at once, in their order.
///
/// # Errors
/// See [`InferError`].
pub fn generate_batch(
    d: &Decoder,
    source: &(impl Source + ?Sized),
    prompts: &[&[u32]],
    max_tokens: usize,
    eos: &[u32],
) -> Result<Vec<Vec<u32>>, InferError> {
    let mut session = Session::new(d, prompts.len());
    let mut out = vec![Vec::new(); prompts.len()];
    if prompts.iter().any(|p| p.is_empty()) {
        return Err(InferError::Empty);
    }
    if max_tokens == 0 || prompts.is_empty() {
        return Ok(out);
    }
    let each = |(sequence, prompt): (usize, &&[u32])| prompt.iter().map(move |&id| Fed { sequence, id }).collect::<Vec<_>>();
    let mut fed: Vec<Fed> = prompts.iter().enumerate().flat_map(each).collect();
    // Refused before any work, not after the first rows.
    session.places(&fed)?;
    while !fed.is_empty() {
        let mut next = Vec::new();
        for chunk in fed.chunks(MAX_ROWS) {
            let x = session.feed(source, chunk)?;
            let ends = |row: &u32| {
                let sequence = chunk[*row as usize].sequence;
                let last = chunk.get(*row as usize + 1).is_none_or(|after| after.sequence != sequence);
                last && session.length(sequence) == prompts[sequence].len() + out[sequence].len()
            };
            let rows: Vec<u32> = (0..chunk.len() as u32).filter(ends).collect();
            if rows.is_empty() {
                continue;
            }
            for (&row, id) in rows.iter().zip(session.next(source, &x, &rows, chunk.len())?) {
                let sequence = chunk[row as usize].sequence;
                out[sequence].push(id);
                let full = out[sequence].len() >= max_tokens || session.length(sequence) >= d.positions as usize;
                if !full && !eos.contains(&id) {
                    next.push(Fed { sequence, id });
                }
            }
        }
        fed = next;
    }
    Ok(out)
}
