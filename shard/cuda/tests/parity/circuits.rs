//! Circuits of toy models: every kind of source, table and chip there is.

use obelysk_model::infer::decoder::generate;
use obelysk_model::toy::{self, DecoderToy, Prng};
use obelysk_model::{IntegerModel, infer};
use obelysk_protocol::circuit::segment::Circuit;
use obelysk_protocol::circuit::{self, PublicInput, Sequence, exp_tables, segment_count};

/// Prompt and completion of the decoders' only sequence.
const CUT: (u32, u32) = (3, 2);

/// Decoders that together have every option.
pub fn decoders() -> [DecoderToy; 2] {
    let plain = DecoderToy { layers: 1, ..DecoderToy::default() };
    [
        DecoderToy { seed: 1, accumulators: 2, group: 1, kv_heads: 2, head_dim: 12, head_norm: true, limbs: 2, ..plain },
        DecoderToy { seed: 2, group: 3, head_dim: 24, cap: true, window: 3, branch_norm: true, ..plain },
    ]
}

/// A random prompt with the model's own completion.
pub fn text(model: &IntegerModel) -> PublicInput {
    let d = toy::decoder_of(model);
    let mut rng = Prng::new(7);
    let mut ids: Vec<u32> = (0..CUT.0).map(|_| rng.range(0, d.vocab as i32 - 1) as u32).collect();
    let next = generate(d, &model.weights, &ids, CUT.1 as usize, &[]).unwrap();
    ids.extend(next);
    PublicInput { ids, sequences: vec![Sequence { prompt: CUT.0, completion: CUT.1 }], output: Vec::new() }
}

/// All segments of an encoder and of the decoders.
pub fn circuits() -> Vec<Circuit> {
    let encoder = toy::model(3);
    let ids = vec![1, 2, 3];
    let output = infer::run(&encoder, &ids).unwrap().pooled;
    let mut models = vec![(PublicInput { ids, sequences: Vec::new(), output }, encoder)];
    models.extend(decoders().map(|d| toy::decoder(&d)).map(|m| (text(&m), m)));
    let exp = exp_tables();
    let all = |(input, m): &(PublicInput, IntegerModel)| -> Vec<Circuit> {
        (0..segment_count(&m.descriptor)).map(|s| circuit::build(&m.descriptor, &exp, input, s).unwrap()).collect()
    };
    models.iter().flat_map(all).collect()
}
