//! Models and inputs of these tests.

use obelysk_model::IntegerModel;
use obelysk_model::infer::decoder::generate;
use obelysk_model::toy::{self, DecoderToy, Prng};
use obelysk_protocol::circuit::{PublicInput, Sequence};

/// Toys that together switch every option on and off; every part of the channel order has odd and even factors somewhere.
pub fn toys() -> Vec<DecoderToy> {
    let plain = DecoderToy { layers: 1, ..DecoderToy::default() };
    vec![
        plain,
        DecoderToy { seed: 1, accumulators: 2, group: 1, kv_heads: 2, head_dim: 12, head_norm: true, limbs: 2, ..plain },
        DecoderToy { seed: 2, group: 3, head_dim: 24, cap: true, window: 3, layers: 2, branch_norm: true, ..plain },
        DecoderToy { seed: 3, group: 5, kv_heads: 6, head_norm: true, cap: true, window: 1, layers: 2, limbs: 2, ..plain },
        DecoderToy {
            seed: 4,
            accumulators: 2,
            group: 7,
            kv_heads: 3,
            head_dim: 10,
            branch_norm: true,
            width: 20,
            ffn: 36,
            ..plain
        },
        DecoderToy { seed: 5, head_dim: 6, window: 2, head_norm: true, branch_norm: true, limbs: 2, layers: 2, ..plain },
        DecoderToy { seed: 6, accumulators: 2, kv_heads: 4, cap: true, vocab: 300, ..plain },
    ]
}

/// Decoders so wide that a line of a norm's products would reach p: sums of products are split. All else is tiny.
pub fn wide() -> [IntegerModel; 2] {
    let narrow = DecoderToy { seed: 9, group: 1, layers: 1, ffn: 16, vocab: 16, limbs: 2, ..DecoderToy::default() };
    let toys = [DecoderToy { width: 6144, ..narrow }, DecoderToy { width: 8192, branch_norm: true, head_norm: true, ..narrow }];
    toys.map(|toy| {
        let mut model = toy::decoder(&toy);
        // Rows of a length for columns of this width.
        toy::decoder_mut(&mut model).row_log = 12;
        model
    })
}

/// Prompt and completion lengths that give 1, 2, 3, 5 and 8 rows.
pub const CUTS: [&[(u32, u32)]; 6] = [&[(1, 1)], &[(1, 2)], &[(2, 2)], &[(2, 1), (2, 2)], &[(3, 2), (1, 1), (2, 2)], &[(1, 8)]];

/// Random prompts with the model's own completions.
pub fn input(model: &IntegerModel, cuts: &[(u32, u32)], seed: u64) -> PublicInput {
    let d = toy::decoder_of(model);
    let mut rng = Prng::new(seed ^ 0x5eed);
    let mut ids = Vec::new();
    for &(prompt, completion) in cuts {
        let start = ids.len();
        ids.extend((0..prompt).map(|_| rng.range(0, d.vocab as i32 - 1) as u32));
        let next = generate(d, &model.weights, &ids[start..], completion as usize, &[]).unwrap();
        assert_eq!(next.len(), completion as usize);
        ids.extend(next);
    }
    let sequences = cuts.iter().map(|&(prompt, completion)| Sequence { prompt, completion }).collect();
    PublicInput { ids, sequences, output: Vec::new() }
}
