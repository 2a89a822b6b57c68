//! One segment's part in the opening of all, kept between steps. Whoever has none (another node did the steps so far) makes one and
//! replays what was drawn: the parts come out the same, and so does the digest that stands before each.

use crate::engine::EngineError;
use crate::joint_bytes::{JointRecord, JointStep, Payload, part};
use obelysk_protocol::field::{M31, QM31};
use obelysk_protocol::verifier::opening::TreeOpening;
use obelysk_shard::job::{Backend, Reduction};
use obelysk_shard::prover::aggregate::part::{FoldedPart, JointPart, PartRounds};
use obelysk_shard::prover::commitment::RegisteredWords;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// What is left to compute with.
enum Held<B: Backend> {
    Ready(JointPart<B>),
    Rounds(PartRounds<B>),
    Folded(FoldedPart<B>),
    Spent,
}

/// A segment in the opening of all.
pub struct Joining<B: Backend> {
    held: Held<B>,
    h: usize,
    oracles: usize,
    words: Option<RegisteredWords>,
    /// Steps done, and what they were done with.
    done: usize,
    delta: Vec<QM31>,
    zeta: Vec<QM31>,
    theta: Vec<QM31>,
    /// Drawn from the shares of all segments, so a record may differ in them alone.
    positions: Vec<usize>,
    /// The part of the last step; before the first, the result of `open`.
    last: Vec<u8>,
    /// Memory of what is held.
    held_bytes: usize,
}

/// Opens the segment's trees at these positions.
pub type Answer<'a> = dyn Fn(Option<&RegisteredWords>, &[usize]) -> Result<Vec<TreeOpening<M31>>, EngineError> + 'a;

impl<B: Backend> Joining<B> {
    /// Before the first step, of a segment whose `open` gave these bytes; rows have `2^h` elements.
    pub fn new(k: &B, reduction: Reduction<B>, opened: Vec<u8>, h: usize) -> Self {
        let Reduction { segment, words, .. } = reduction;
        let (held_bytes, oracles) = (segment.part.bytes(k), segment.reduced.len());
        let (delta, zeta, theta, positions) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let held = Held::Ready(segment.part);
        Self { held, h, oracles, words, done: 0, delta, zeta, theta, positions, last: opened, held_bytes }
    }

    /// Memory it takes, about.
    fn bytes(&self) -> usize {
        self.held_bytes + self.last.len()
    }

    /// Number of steps before and with the one that a record asks for.
    fn steps(&self, record: &JointRecord) -> usize {
        match record.step(self.h) {
            JointStep::Round(round) => round + 1,
            JointStep::Values => self.h + 1,
            JointStep::Fold => self.h + 2,
            JointStep::Answers => self.h + 3,
        }
    }

    /// Whether this can go on to the step of a record: what was done was done with what it says.
    fn leads_to(&self, record: &JointRecord, segment: usize) -> bool {
        self.done <= self.steps(record)
            && (self.delta.is_empty() || self.delta == record.own(&record.delta, segment))
            && record.zeta.starts_with(&self.zeta)
            && (self.theta.is_empty() || self.theta == record.own(&record.theta, segment))
            && (self.positions.is_empty() || self.positions == record.positions)
    }

    /// The segment's part in the step of a record, after replaying the steps before it as far as they were not done here.
    ///
    /// # Errors
    /// [`EngineError::Malformed`] for a record of another job.
    pub fn part(&mut self, k: &B, record: &JointRecord, segment: usize, answer: &Answer<'_>) -> Result<Vec<u8>, EngineError> {
        let (target, own) = (self.steps(record), record.own(&record.delta, segment));
        if own.len() != self.oracles || record.zeta.len() > self.h {
            return Err(EngineError::Malformed("the joint record is of another job".to_owned()));
        }
        self.delta = own.to_vec();
        while self.done < target {
            let payload = self.step(k, record, segment, answer)?;
            self.last = part(&self.last, &payload);
            self.done += 1;
        }
        Ok(self.last.clone())
    }

    fn step(&mut self, k: &B, record: &JointRecord, segment: usize, answer: &Answer<'_>) -> Result<Payload, EngineError> {
        let lost = || EngineError::Internal("a joint step out of order".to_owned());
        let challenge = self.done.checked_sub(1).and_then(|i| record.zeta.get(i)).copied();
        if self.done <= self.h {
            self.zeta.extend(challenge);
        }
        let held = std::mem::replace(&mut self.held, Held::Spent);
        let (held, payload) = match held {
            Held::Ready(ready) if self.done < self.h => {
                let mut rounds = ready.start(k, &self.delta);
                let share = rounds.round(k, None);
                (Held::Rounds(rounds), Payload::Round(share))
            }
            Held::Rounds(mut rounds) if self.done < self.h => {
                let share = rounds.round(k, challenge);
                (Held::Rounds(rounds), Payload::Round(share))
            }
            Held::Rounds(rounds) => {
                let (values, folded) = rounds.finish(k, challenge.ok_or_else(lost)?);
                (Held::Folded(folded), Payload::Felts(values))
            }
            Held::Folded(folded) => {
                self.theta = record.own(&record.theta, segment).to_vec();
                let row = folded.fold(k, &self.theta);
                (Held::Spent, Payload::Felts(k.to_host(&row)))
            }
            Held::Spent if self.done == self.h + 2 => {
                let trees = answer(self.words.as_ref(), &record.positions)?;
                self.positions.clone_from(&record.positions);
                (Held::Spent, Payload::Trees(trees))
            }
            Held::Ready(_) | Held::Spent => return Err(lost()),
        };
        self.held = held;
        Ok(payload)
    }
}

/// Segments in openings of all, in order of use, bounded by their bytes; what is dropped is made again.
pub struct Joinings<B: Backend> {
    limit: usize,
    kept: Mutex<VecDeque<([u8; 32], Joining<B>)>>,
}

impl<B: Backend> Joinings<B> {
    /// Keeps `limit` bytes, and always the one used last.
    pub const fn new(limit: usize) -> Self {
        Self { limit, kept: Mutex::new(VecDeque::new()) }
    }

    /// Takes the one under `key` out, if it can go on to the step of a record.
    pub fn take(&self, key: &[u8; 32], record: &JointRecord, segment: usize) -> Option<Joining<B>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(other, _)| other == key)?;
        kept.remove(at).map(|(_, joining)| joining).filter(|joining| joining.leads_to(record, segment))
    }

    /// Drops all of them.
    pub fn clear(&self) {
        let dropped = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        drop(dropped);
    }

    /// Keeps one for the next step.
    pub fn keep(&self, key: [u8; 32], joining: Joining<B>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(other, _)| *other != key);
        kept.push_back((key, joining));
        let mut total: usize = kept.iter().map(|(_, joining)| joining.bytes()).sum();
        while total > self.limit && kept.len() > 1 {
            total -= kept.pop_front().map_or(0, |(_, joining)| joining.bytes());
        }
    }
}
