//! The rule of output: nothing that follows from a fact is done before the fact is agreed, and everything is done in order. Pure: knows
//! neither the log nor how effects are carried out.

use std::collections::VecDeque;

use super::fact::Fact;
use super::types::Effect;

#[derive(Debug, Clone)]
enum Step {
    /// Waits until this batch of facts is agreed.
    Batch(u64),
    Effect(Box<Effect>),
}

/// Effects in their order, between batches of facts.
#[derive(Debug, Clone, Default)]
pub struct Outbox {
    steps: VecDeque<Step>,
    batches: u64,
}

impl Outbox {
    /// Takes what the brain decided; returns batches of facts to propose, in this order, with their numbers.
    pub fn take(&mut self, effects: Vec<Effect>) -> Vec<(u64, Vec<Fact>)> {
        let mut batches: Vec<(u64, Vec<Fact>)> = Vec::new();
        let mut open = false;
        for effect in effects {
            let Effect::Record(fact) = effect else {
                open = false;
                self.steps.push_back(Step::Effect(Box::new(effect)));
                continue;
            };
            if let Some((_, facts)) = batches.last_mut().filter(|_| open) {
                facts.push(fact);
                continue;
            }
            self.batches += 1;
            self.steps.push_back(Step::Batch(self.batches));
            batches.push((self.batches, vec![fact]));
            open = true;
        }
        batches
    }

    /// The batch that everything else waits for.
    #[must_use]
    pub fn awaits(&self) -> Option<u64> {
        match self.steps.front() {
            Some(Step::Batch(number)) => Some(*number),
            _ => None,
        }
    }

    /// This batch is agreed. Batches are agreed in the order of their numbers; any other is not waited for and changes nothing.
    pub fn agreed(&mut self, number: u64) {
        if self.awaits() == Some(number) {
            self.steps.pop_front();
        }
    }

    /// The next effect, if nothing before it still waits.
    pub fn next_effect(&mut self) -> Option<Effect> {
        match self.steps.pop_front()? {
            Step::Effect(effect) => Some(*effect),
            batch @ Step::Batch(_) => {
                self.steps.push_front(batch);
                None
            }
        }
    }

    /// What waits.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{JobId, NodeId};
    use super::*;

    #[test]
    fn nothing_passes_a_fact_that_is_not_agreed() {
        let fact = |n: u8| Fact::Forgotten { job: JobId([n; 32]) };
        let ack = |epoch| Effect::Ack { node: NodeId(1), epoch };
        let mut outbox = Outbox::default();
        let effects = vec![ack(1), Effect::Record(fact(1)), Effect::Record(fact(2)), ack(2), Effect::Record(fact(3)), ack(3)];
        assert_eq!(outbox.take(effects), [(1, vec![fact(1), fact(2)]), (2, vec![fact(3)])]);
        assert_eq!(outbox.take(vec![ack(4)]), []);
        assert_eq!((outbox.next_effect(), outbox.next_effect(), outbox.awaits()), (Some(ack(1)), None, Some(1)));
        outbox.agreed(2);
        assert_eq!(outbox.next_effect(), None, "out of order");
        outbox.agreed(1);
        assert_eq!((outbox.next_effect(), outbox.next_effect()), (Some(ack(2)), None));
        outbox.agreed(2);
        assert_eq!((outbox.next_effect(), outbox.next_effect(), outbox.next_effect()), (Some(ack(3)), Some(ack(4)), None));
        assert!(outbox.is_empty() && outbox.awaits().is_none());
    }
}
