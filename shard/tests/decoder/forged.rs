//! Provers who claim a completion that the model does not give. Their witnesses are as true as they can be made, so that each
//! lie is refused for itself, by the head.

use crate::forger::Forger;
use crate::place::Place;
use crate::toys::{CUTS, input, toys};
use obelysk_model::IntegerModel;
use obelysk_model::toy;
use obelysk_protocol::circuit::{PublicInput, segment_count};
use obelysk_protocol::transcript::Blake2s;
use obelysk_protocol::verifier::aggregate::verify;
use obelysk_shard::kernels::simd::Simd;

/// A registered toy and the model's own continuation.
fn place(change: impl Fn(&mut IntegerModel)) -> Place<Blake2s, Simd> {
    let mut model = toy::decoder(&toys()[5]);
    change(&mut model);
    Place::new(&Simd::default(), model)
}

fn with_last(input: &PublicInput, id: u32) -> PublicInput {
    let mut out = input.clone();
    *out.ids.last_mut().unwrap() = id;
    out
}

#[test]
fn the_forger_s_true_proof_is_accepted() {
    let place = place(|_| ());
    let input = input(&place.model, CUTS[3], 1);
    let proof = Forger::new(&place, &input, input.clone()).prove();
    verify::<Blake2s>(&place.registered, &proof).unwrap();
    assert_eq!(proof, obelysk_shard::local::prove(&Simd::default(), &place.loaded, &input).unwrap().0);
}

#[test]
fn no_other_last_token_is_accepted() {
    let place = place(|_| ());
    let input = input(&place.model, CUTS[2], 1);
    let best = *input.ids.last().unwrap();
    for id in (0..21).filter(|&id| id != best) {
        Forger::new(&place, &input, with_last(&input, id)).refused(&format!("{id} for {best}"));
    }
}

/// The best logit said to be the claimed token's: then the true best is above it.
#[test]
fn a_smaller_maximum_is_refused() {
    let place = place(|_| ());
    let input = input(&place.model, CUTS[0], 1);
    let claimed = (*input.ids.last().unwrap() + 1) % 21;
    let mut f = Forger::new(&place, &input, with_last(&input, claimed));
    let d = toy::decoder_of(&place.model);
    let logit = |j: u32| i64::from(d.head.mult[j as usize]) * i64::from(f.trace.head.linear.t_hat[j as usize]);
    let (best, gaps) = (logit(claimed), (0..21).map(|j| logit(claimed) - logit(j) - i64::from(j < claimed)));
    let gaps: Vec<i64> = gaps.collect();
    let (low, blocks) = (|v: i64| v & 8191, d.head_outputs());
    f.edit("best.0", 0, low(best));
    f.edit("best.1", 0, best >> 13);
    let block =
        f.statement.circuits[f.head()].columns.iter().find(|c| c.name == "gap.0.0").map(|c| 1usize << c.log_size).unwrap();
    for j in 0..blocks {
        let gap = gaps.get(j).copied().unwrap_or(best + (1 << 24));
        f.edit(&format!("gap.{}.0", j / block), j % block, low(gap));
        f.edit(&format!("gap.{}.1", j / block), j % block, gap >> 13);
    }
    f.refused("a smaller maximum");
}

/// Of equal logits the smallest index is the model's; the larger one is refused.
#[test]
fn the_larger_of_two_equal_logits_is_refused() {
    let plain = toy::decoder(&toys()[5]);
    let text = input(&plain, CUTS[0], 1);
    let best = *text.ids.last().unwrap() as usize;
    let twin = if best == 20 { 19 } else { best + 1 };
    let place = place(|model| {
        let head = segment_count(&model.descriptor) - 1;
        let m = &mut model.weights.segments[head].matrices[0];
        let row = m.data[best * m.inputs..(best + 1) * m.inputs].to_vec();
        m.data[twin * m.inputs..(twin + 1) * m.inputs].copy_from_slice(&row);
        let mult = &mut toy::decoder_mut(model).head.mult;
        mult[twin] = mult[best];
    });
    let (first, second) = (best.min(twin) as u32, best.max(twin) as u32);
    let truth = with_last(&text, first);
    assert_eq!(input(&place.model, CUTS[0], 1), truth);
    verify::<Blake2s>(&place.registered, &Forger::new(&place, &truth, truth.clone()).prove()).unwrap();
    Forger::new(&place, &truth, with_last(&truth, second)).refused("the larger of two");
}

/// A token in the middle of a completion that was not the model's choice, but from which the text goes on truly.
#[test]
fn a_forced_token_in_the_middle_is_refused() {
    let place = place(|_| ());
    let model = &place.model;
    let truth = input(model, &[(1, 3)], 2);
    let forced = (truth.ids[1] + 1) % 21;
    let rest = obelysk_model::infer::decoder::generate(toy::decoder_of(model), &model.weights, &[truth.ids[0], forced], 2, &[]);
    let claimed = PublicInput { ids: [vec![truth.ids[0], forced], rest.unwrap()].concat(), ..truth.clone() };
    Forger::new(&place, &claimed, claimed.clone()).refused("a forced token");
}
