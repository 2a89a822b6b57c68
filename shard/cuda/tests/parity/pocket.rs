//! The pocket decoder, quantised from its published weights: its whole proof at full security has the same bytes.

use crate::places::{card, host};
use crate::whole::whole_at;
use obelysk_cuda::{CudaBackend, Device};
use obelysk_model::IntegerModel;
use obelysk_model::graph::decoder::DecoderGraph;
use obelysk_model::import::import;
use obelysk_model::infer::decoder::generate;

use obelysk_model::quantise::{QuantiseOptions, quantise_decoder};
use obelysk_model::toy::decoder_of;
use obelysk_protocol::circuit::{PublicInput, Sequence};
use obelysk_protocol::transcript::Blake2s;
use obelysk_protocol::verifier::mode::Mode;
use obelysk_protocol::verifier::registered::SecurityParams;
use obelysk_shard::kernels::simd::Simd;
use obelysk_shard::registration::Codewords;
use std::path::Path;

/// Tokens of calibration: enough for integers of the usual size.
const CALIBRATION_TOKENS: usize = 256;
const PROMPT: &str = "In the";
const COMPLETION: usize = 4;

fn pocket() -> (IntegerModel, PublicInput) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/pocket");
    let imported = import(&folder).unwrap();
    let graph = DecoderGraph::build(&imported).unwrap();
    let text = std::fs::read_to_string(folder.join("calibration.txt")).unwrap();
    let ids = imported.tokenizer.encode(&text[..text.floor_char_boundary(8 * CALIBRATION_TOKENS)]).unwrap();
    let pieces: Vec<Vec<u32>> = ids.chunks(CALIBRATION_TOKENS).take(1).map(<[u32]>::to_vec).collect();
    let model = quantise_decoder(&graph, &pieces, &QuantiseOptions::default(), &|_, _| ()).unwrap().model;
    let mut ids = imported.tokenizer.encode(PROMPT).unwrap();
    let prompt = ids.len() as u32;
    let next = generate(decoder_of(&model), &model.weights, &ids, COMPLETION, &[]).unwrap();
    let completion = next.len() as u32;
    ids.extend(next);
    (model, PublicInput { ids, sequences: vec![Sequence { prompt, completion }], output: Vec::new() })
}

fn equal<D: Device>(k: &CudaBackend<D>) {
    let (model, input) = pocket();
    let security = SecurityParams::standard(model.descriptor.blowup_log());
    let place = (Mode::Forked, Codewords::Recomputed);
    let expected = whole_at::<Blake2s, _>(&Simd::default(), &model, &input, security, place);
    assert!(whole_at::<Blake2s, _>(k, &model, &input, security, place) == expected);
}

#[test]
fn a_proof_of_the_pocket_decoder_on_the_host_is_equal() {
    if let Some(host) = host() {
        equal(&CudaBackend::new(host));
    }
}

#[test]
fn a_proof_of_the_pocket_decoder_on_a_card_is_equal() {
    if let Some(card) = card() {
        equal(&CudaBackend::new(card));
    }
}
