//! Provers with another model: they run, multiply and open it honestly, and say that it is the registered one.

use crate::forger::Forger;
use crate::models::{Made, made, made_of, options};
use crate::place::Place;
use obelysk_model::IntegerModel;
use obelysk_model::infer::decoder::{generate_batch, run};
use obelysk_model::tiny::{Family, Options, Rope};
use obelysk_model::toy::{decoder_mut, decoder_of};
use obelysk_protocol::circuit::PublicInput;
use obelysk_protocol::circuit::descriptor::Rotated;
use obelysk_protocol::circuit::rotary::reach;
use obelysk_protocol::transcript::Blake2s;
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::aggregate::verify;
use obelysk_shard::kernels::simd::Simd;
use obelysk_shard::local::prove;

type Registered = Place<Blake2s, Simd>;

/// A family's registered model, and what it says truly.
struct Stage {
    made: Made,
    place: Registered,
    truth: PublicInput,
}

impl Stage {
    fn new(family: Family) -> Self {
        let made = made(family);
        let place = Place::new(&Simd::default(), made.model.clone());
        let truth = made.input();
        Self { made, place, truth }
    }

    /// The same model with its description changed.
    fn changed(&self, change: impl FnOnce(&mut obelysk_protocol::circuit::descriptor::Decoder)) -> IntegerModel {
        let mut other = self.made.model.clone();
        change(decoder_mut(&mut other));
        other
    }

    /// A completion's last token is another than the model's, all before it are its own.
    fn refuses_another_token(&self) {
        let best = *self.truth.ids.last().unwrap();
        let mut claimed = self.truth.clone();
        *claimed.ids.last_mut().unwrap() = (best + 1) % decoder_of(&self.made.model).vocab;
        Forger::new(&self.place, &self.truth, claimed).refused("another last token");
    }

    /// What the other model says is not taken for this one's: neither its true proof under this model's id, nor a proof that
    /// binds this model from its first byte. `segment` is the first one where they differ.
    fn refuses_model(&self, other: IntegerModel, segment: usize, about: &str) {
        let own = Registered::new(&Simd::default(), other);
        let said = continued(&own.model, &self.truth);
        let (ours, theirs) = (run(&self.made.model, &said).unwrap(), run(&own.model, &said).unwrap());
        let head = decoder_of(&own.model).layers.len() + 1;
        assert_ne!(ours.entering(head), theirs.entering(head), "{about}: the other model computes the same");
        let mut proof = prove(&Simd::default(), &own.loaded, &said).unwrap().0;
        verify::<Blake2s>(&own.registered, &proof).unwrap();
        assert!(verify::<Blake2s>(&self.place.registered, &proof).is_err(), "{about}: the other model's proof");
        proof.header.model_id = self.place.registered.model_id::<Blake2s>();
        match verify::<Blake2s>(&self.place.registered, &proof) {
            Err(VerifyError::Grinding(_) | VerifyError::Segment { .. }) => {}
            other => panic!("{about}, under this model's id: {other:?}"),
        }
        Forger::with(&self.place, &own, &said, said.clone()).refused_in(segment, about);
    }
}

/// The prompts of an input with another model's completions, of the same lengths.
fn continued(model: &IntegerModel, input: &PublicInput) -> PublicInput {
    let (mut ids, mut at) = (Vec::new(), 0);
    for s in &input.sequences {
        let prompt = &input.ids[at..at + s.prompt as usize];
        let completion = generate_batch(decoder_of(model), &model.weights, &[prompt], s.completion as usize, &[]).unwrap();
        ids.extend(prompt.iter().chain(&completion[0]));
        at += (s.prompt + s.completion) as usize;
    }
    PublicInput { ids, ..input.clone() }
}

/// Takes another's gains.
fn with_rotary(r: &mut Rotated, other: &Rotated) {
    r.rotary = other.rotary.clone();
    r.limit = i32::try_from(reach(r).pairs.into_iter().max().unwrap()).unwrap();
}

#[test]
fn llama_with_unscaled_positions_is_refused() {
    let stage = Stage::new(Family::Llama);
    stage.refuses_another_token();
    let plain = made_of(Family::Llama, 1, &Options { rope: Rope::Plain, ..options(Family::Llama) }, |_| ());
    let frequencies = decoder_of(&plain.model).frequencies.clone();
    stage.refuses_model(stage.changed(|d| d.frequencies = frequencies), 1, "positions without their scaling");
}

#[test]
fn qwen3_with_another_s_head_norms_is_refused() {
    let stage = Stage::new(Family::Qwen3);
    stage.refuses_another_token();
    let other = made_of(Family::Qwen3, 2, &options(Family::Qwen3), |_| ());
    let of_other = decoder_of(&other.model).layers[1].clone();
    stage.refuses_model(stage.changed(|d| with_rotary(&mut d.layers[1].q, &of_other.q)), 2, "gains of query heads");
    stage.refuses_model(stage.changed(|d| d.layers[1].window = 0), 2, "no window on the layer that slides");
}

#[test]
fn mistral_with_another_window_is_refused() {
    let stage = Stage::new(Family::Mistral);
    stage.refuses_another_token();
    stage.refuses_model(stage.changed(|d| d.layers[1].window += 1), 2, "a window wider by one");
    stage.refuses_model(stage.changed(|d| d.layers[0].window = 0), 1, "a layer without its window");
}

#[test]
fn phi3_with_unscaled_positions_is_refused() {
    let stage = Stage::new(Family::Phi3);
    stage.refuses_another_token();
    let plain = made_of(Family::Phi3, 1, &Options { rope: Rope::Plain, ..options(Family::Phi3) }, |_| ());
    let frequencies = decoder_of(&plain.model).frequencies.clone();
    stage.refuses_model(stage.changed(|d| d.frequencies = frequencies), 1, "positions without their factors");
}

#[test]
fn gemma2_with_another_s_settings_is_refused() {
    let stage = Stage::new(Family::Gemma2);
    stage.refuses_another_token();
    let wider = made_of(Family::Gemma2, 1, &options(Family::Gemma2), |graph| graph.config.score_cap = Some(6.0));
    let cap = decoder_of(&wider.model).layers[1].score_cap.clone();
    stage.refuses_model(stage.changed(|d| d.layers[1].score_cap = cap), 2, "another cap");
    stage.refuses_model(stage.changed(|d| d.layers[1].window = 6), 2, "a window on a layer that sees everything");
    let without = made_of(Family::Gemma2, 1, &options(Family::Gemma2), |graph| graph.config.norm_offset = 0.0);
    stage.refuses_model(without.model, 0, "gains w instead of 1 + w");
    let behind = stage.made.graph.layer(1).unwrap().post_ffn_norm.unwrap();
    let mult = &decoder_of(&stage.made.model).layers[1].ffn_branch.mult;
    let bare = mult.iter().zip(behind).map(|(&m, gain)| (m as f32 * (gain - 1.0) / gain).round() as i32).collect();
    stage.refuses_model(stage.changed(|d| d.layers[1].ffn_branch.mult = bare), 2, "one norm with w instead of 1 + w");
}
