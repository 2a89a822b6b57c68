//! The public input of a proof: token ids, how they form sequences, and the claimed output.

/// A prompt and its greedy completion, both in [`PublicInput::ids`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Tokens of the prompt, at least 1.
    pub prompt: u32,
    /// Tokens that were generated, at least 1.
    pub completion: u32,
}

/// Public data of a job that a segment's circuit depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublicInput {
    /// Token ids. Encoder: the text. Decoder: each sequence's prompt and completion, one sequence after the other.
    pub ids: Vec<u32>,
    /// Decoder: how `ids` are cut. Encoder: empty.
    pub sequences: Vec<Sequence>,
    /// Encoder: the claimed pooled sums, one per channel. Decoder: empty, the completions are the output.
    pub output: Vec<i64>,
}

/// What one row of the token axis reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// Token id.
    pub id: u32,
    /// Position in its sequence.
    pub position: u32,
    /// First row of its sequence.
    pub start: u32,
}

/// A row whose next token is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Row of the token axis.
    pub row: u32,
    /// The token that must be the smallest index of the largest logit there.
    pub target: u32,
}

impl PublicInput {
    /// An encoder's text.
    #[must_use]
    pub fn text(ids: Vec<u32>) -> Self {
        Self { ids, ..Self::default() }
    }

    /// Rows of the token axis that are real. The last token of a sequence is only ever predicted, never read.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.ids.len().saturating_sub(self.sequences.len())
    }

    /// log2 of the padded token count.
    #[must_use]
    pub fn token_log(&self) -> usize {
        self.tokens().next_power_of_two().trailing_zeros() as usize
    }

    /// The real rows in order.
    #[must_use]
    pub fn rows(&self) -> Vec<TokenRow> {
        let mut out = Vec::with_capacity(self.tokens());
        let mut ids = self.ids.iter();
        if self.sequences.is_empty() {
            out.extend(ids.zip(0..).map(|(&id, position)| TokenRow { id, position, start: 0 }));
            return out;
        }
        for s in &self.sequences {
            let start = out.len() as u32;
            let length = u64::from(s.prompt) + u64::from(s.completion);
            let row = |(&id, position)| TokenRow { id, position, start };
            out.extend(ids.by_ref().take(length.saturating_sub(1) as usize).zip(0..).map(row));
            ids.next();
        }
        out
    }

    /// The rows whose next token is proven, in order.
    #[must_use]
    pub fn checked(&self) -> Vec<Checked> {
        let mut out = Vec::new();
        let (mut row, mut at) = (0u32, 0usize);
        for s in &self.sequences {
            // Saturating: a malformed statement is refused where it is read, and must not panic before that.
            let first = row.saturating_add(s.prompt).saturating_sub(1);
            for k in 0..s.completion {
                let target = self.ids.get(at + s.prompt as usize + k as usize).copied().unwrap_or(0);
                out.push(Checked { row: first.saturating_add(k), target });
            }
            row = first.saturating_add(s.completion);
            at += s.prompt as usize + s.completion as usize;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sequences() {
        let sequences = vec![Sequence { prompt: 2, completion: 2 }, Sequence { prompt: 1, completion: 1 }];
        let input = PublicInput { ids: vec![5, 6, 7, 8, 9, 4], sequences, output: Vec::new() };
        assert_eq!((input.tokens(), input.token_log()), (4, 2));
        let rows: Vec<_> = input.rows().iter().map(|r| (r.id, r.position, r.start)).collect();
        assert_eq!(rows, [(5, 0, 0), (6, 1, 0), (7, 2, 0), (9, 0, 3)]);
        let checked: Vec<_> = input.checked().iter().map(|c| (c.row, c.target)).collect();
        assert_eq!(checked, [(1, 7), (2, 8), (3, 4)]);
    }

    #[test]
    fn empty_prompts_do_not_panic() {
        let sequences = vec![Sequence { prompt: 0, completion: 1 }, Sequence { prompt: 0, completion: 0 }];
        let input = PublicInput { ids: vec![7], sequences, output: Vec::new() };
        assert_eq!((input.tokens(), input.checked().len()), (0, 1));
    }

    #[test]
    fn an_encoder_reads_every_token() {
        let input = PublicInput::text(vec![3, 1, 2]);
        assert_eq!((input.tokens(), input.token_log(), input.rows().len()), (3, 2, 3));
        assert!(input.checked().is_empty());
    }
}
