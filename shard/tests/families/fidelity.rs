//! How far the tiny integer models are from their float models, on random tokens.
//!
//! Random models give nearly even logits, so a choice between two can turn on the last bit of either model; cosines and the
//! divergence of the distributions do not hang on that.

use crate::models::{Made, made, made_of, options, rest};
use obelysk_model::IntegerModel;
use obelysk_model::fidelity::{DecoderFidelity, measure_decoder};
use obelysk_model::tiny::{FAMILIES, Family};
use obelysk_model::toy::{Prng, decoder_mut};

/// Texts, and tokens of each where the context has room.
const TEXTS: usize = 8;
const LENGTH: usize = 256;

fn measured(made: &Made, model: &IntegerModel) -> DecoderFidelity {
    let (vocab, length) = (made.graph.config.vocab as i32, made.graph.config.positions.min(LENGTH));
    let mut rng = Prng::new(3);
    let random: Vec<Vec<u32>> = (0..TEXTS).map(|_| (0..length).map(|_| rng.range(0, vocab - 1) as u32).collect()).collect();
    measure_decoder(&made.graph, model, made.fraction, &random).unwrap()
}

fn check(family: Family, made: &Made) {
    let report = measured(made, &made.model);
    assert!(report.tokens > 1_000, "{family:?}");
    assert!(report.logits.mean > 0.999_8 && report.logits.worst > 0.999_7, "{family:?}: logits {:?}", report.logits);
    assert_eq!(report.layers.len(), made.graph.config.layers, "{family:?}");
    for (l, layer) in report.layers.iter().enumerate() {
        assert!(layer.mean > 0.999_8 && layer.worst > 0.999_7, "{family:?}: layer {l} {layer:?}");
    }
    assert!(report.top1_agreement > 0.96, "{family:?}: {} of next tokens agree", report.top1_agreement);
    assert!((0.0..0.001).contains(&report.divergence), "{family:?}: {} nats apart", report.divergence);
    let ratio = report.integer_perplexity / report.float_perplexity;
    assert!((ratio - 1.0).abs() < 0.01, "{family:?}: perplexity times {ratio}");
    let clipped = report.saturation.iter().find(|(_, share)| **share > 1e-4);
    assert_eq!(clipped, None, "{family:?}: values at their clip");
}

#[test]
fn integer_models_of_all_families_follow_their_float_models() {
    for family in FAMILIES {
        check(family, &made(family));
        check(family, &made_of(family, 2, &rest(family), |_| ()));
    }
}

/// The same measures far off when one setting of the family is lost on the way.
#[test]
fn a_lost_setting_shows() {
    let plain = made_of(Family::Gemma2, 1, &options(Family::Gemma2), |graph| graph.config.norm_offset = 0.0);
    let with = |family: Family, change: &dyn Fn(&mut IntegerModel)| {
        let made = made(family);
        let mut model = made.model.clone();
        change(&mut model);
        measured(&made, &model)
    };
    let open = |model: &mut IntegerModel| decoder_mut(model).layers.iter_mut().for_each(|l| l.window = 0);
    let cases = [
        ("window", with(Family::Mistral, &open)),
        ("positions", with(Family::Phi3, &|model| decoder_mut(model).frequencies[1..].reverse())),
        ("gains", with(Family::Gemma2, &|model| *model = plain.model.clone())),
    ];
    for (setting, report) in cases {
        assert!(report.logits.mean < 0.98 && report.top1_agreement < 0.9, "{setting}: {report:?}");
    }
}
