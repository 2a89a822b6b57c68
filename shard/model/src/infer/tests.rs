//! Fast against defining executor, and both norms and softmax against definitions in wider arithmetic.

use super::*;
use crate::toy::{self, Prng, Shape};
use obelysk_protocol::circuit::descriptor::NormSpec;

fn run_reference(model: &IntegerModel, ids: &[u32], t_pad: usize) -> ModelTrace {
    let (d, w) = (crate::toy::encoder(model), &model.weights.segments);
    let embed = reference::embed(d, &w[0], ids, t_pad).unwrap();
    let mut u = embed.norm.u.clone();
    let mut layers = Vec::new();
    for (l, spec) in d.layers.iter().enumerate() {
        let trace = reference::layer(d, spec, &w[l + 1], &u, ids.len(), t_pad).unwrap();
        u.clone_from(&trace.ffn.norm.u);
        layers.push(trace);
    }
    let pooled = reference::pool(&u, ids.len(), t_pad);
    ModelTrace { tokens: ids.len(), t_pad, embed, layers, pooled }
}

#[test]
fn forward_equals_reference_on_toys() {
    let odd = Shape { vocab: 33, positions: 40, heads: 5, head_dim: 6, ffn: 22, layers: 3, tile_logs: (1, 1), row_log: 5 };
    for seed in 0..6 {
        for (shape, lengths) in [(toy::SMALL, [1, 2, 3, 5, 8]), (odd, [1, 4, 7, 16, 33])] {
            let model = toy::model_of(seed, shape);
            let mut rng = Prng::new(seed ^ 0xabc);
            for n in lengths {
                let ids: Vec<u32> = (0..n).map(|_| rng.range(0, shape.vocab as i32 - 1) as u32).collect();
                assert_eq!(run(&model, &ids).unwrap(), run_reference(&model, &ids, padded_length(n)));
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_padding() {
    let model = toy::model(3);
    let ids = [1, 2, 3];
    let (short, long) = (run(&model, &ids).unwrap(), run_reference(&model, &ids, 16));
    assert_eq!(short.pooled, long.pooled);
}

#[test]
fn toys_reach_both_branches_of_the_clip() {
    let (mut clipped, mut total) = (0usize, 0usize);
    for seed in 0..10 {
        let trace = run(&toy::model(seed), &[0, 1, 2, 3, 4, 5, 6, 7]).unwrap();
        for t in trace.layers.iter().flat_map(|l| [&l.o.t_hat, &l.down.t_hat]).flatten() {
            clipped += usize::from(*t == i16::MIN || *t == i16::MAX);
            total += 1;
        }
    }
    assert!(clipped > 0 && clipped * 2 < total, "{clipped} of {total}");
}

/// Norm of one row straight from its definition, in u128 and by search.
fn norm_by_definition(x: &[i64], eps: u64) -> (i64, u128, u32, Vec<i64>) {
    let d = x.len() as i64;
    let sum: i64 = x.iter().sum();
    let start = sum / d;
    let mu = (start - 2..=start + 2).find(|mu| (0..d).contains(&(sum - mu * d + d / 2))).unwrap();
    let s: u128 = x.iter().map(|v| ((v - mu) as i128).pow(2) as u128).sum::<u128>() + u128::from(eps);
    let sigma = (0..60u32).find(|sigma| s / 4u128.pow(*sigma) < 65_280).unwrap();
    let i = s / 4u128.pow(sigma);
    let square = 4_096_000u128 * 4_096_000;
    let r = (0..40_000u128).take_while(|r| r * r * i <= square).last().unwrap() as i64;
    let u = x.iter().map(|v| {
        let half = if sigma > 7 { 1i128 << (sigma - 1) } else { 0 };
        let scaled = (i128::from(v - mu) * 128 + half).div_euclid(1 << sigma) as i64;
        assert!((-32_768..32_768).contains(&scaled));
        (scaled * r + (1 << 13)).div_euclid(1 << 14)
    });
    (mu, s, sigma, u.collect())
}

#[test]
fn norms_equal_the_definition() {
    let mut rng = Prng::new(5);
    let top = 127 << 16;
    for d in [1usize, 2, 12, 384] {
        let mut rows: Vec<Vec<i64>> = vec![vec![0; d], vec![top; d], vec![-top; d], vec![-1; d]];
        let mut one_hot = vec![0; d];
        one_hot[d / 2] = -top;
        rows.push(one_hot);
        rows.push((0..d).map(|c| if c % 2 == 0 { top } else { -top }).collect());
        for bits in 0..23 {
            rows.push((0..d).map(|_| i64::from(rng.range(-(1 << bits), 1 << bits))).collect());
        }
        let t_pad = rows.len();
        let x: Vec<i32> = (0..d).flat_map(|c| rows.iter().map(move |r| r[c] as i32)).collect();
        let spec = NormSpec { eps: 1 << 14 };
        let trace = forward::norm(&spec, x.clone(), d, t_pad);
        assert_eq!(trace, reference::norm(&spec, x, d, t_pad));
        for (t, row) in rows.iter().enumerate() {
            let (mu, s, sigma, u) = norm_by_definition(row, spec.eps);
            assert_eq!((i64::from(trace.mu[t]), u128::from(trace.s[t])), (mu, s));
            assert_eq!(u32::from(trace.sigma[t]), sigma);
            let got: Vec<i64> = (0..d).map(|c| i64::from(trace.u[c * t_pad + t])).collect();
            assert_eq!(got, u);
            assert!((16_320..65_280).contains(&trace.index[t]));
            assert!(u.iter().map(|v| v * v).sum::<i64>() <= tables::NORM_L2 * tables::NORM_L2);
        }
    }
}

#[test]
fn normaliser_is_least_and_unique() {
    let mut rng = Prng::new(9);
    let (exp, shifted) = tables::exp_table();
    for n in [1usize, 2, 7, 64, 512] {
        for spread in [0, 1, 100, 5000, 100_000, 4_000_000] {
            let keys: Vec<i64> = (0..n).map(|_| i64::from(rng.range(-spread, spread))).collect();
            let lambda = reference::least_normaliser(&keys);
            let sum = |table: &[i32]| -> i64 {
                keys.iter().map(|s| (lambda - s) as usize).map(|i| i64::from(*table.get(i).unwrap_or(&0))).sum()
            };
            assert!(sum(&exp) <= 1 << 18 && sum(&shifted) > 1 << 18, "n = {n}, spread = {spread}");
        }
    }
}

#[test]
fn bad_inputs_are_refused() {
    let model = toy::model(1);
    let (d, w) = (crate::toy::encoder(&model), &model.weights.segments);
    assert_eq!(run(&model, &[]), Err(InferError::Empty));
    assert_eq!(run(&model, &[0; 9]), Err(InferError::TooLong { tokens: 9, max: 8 }));
    assert_eq!(run(&model, &[0, 10]), Err(InferError::Vocabulary { id: 10, position: 1, vocab: 10 }));
    assert_eq!(embed(d, &w[0], &[0; 3], 3), Err(InferError::Padding { t_pad: 3, tokens: 3 }));
    assert_eq!(embed(d, &w[0], &[0; 3], 2), Err(InferError::Padding { t_pad: 2, tokens: 3 }));
    assert!(matches!(layer(d, &d.layers[0], &w[1], &[0; 3], 1, 1), Err(InferError::Shape { .. })));
    assert!(matches!(layer(d, &d.layers[0], &w[0], &[0; 12], 1, 1), Err(InferError::Shape { .. })));
}

#[test]
fn embedding_has_unit_length() {
    let model = toy::model(2);
    let trace = run(&model, &[1, 2, 3]).unwrap();
    let e = embedding(&crate::toy::encoder(&model).output, &trace.pooled, trace.tokens);
    let norm: f64 = e.iter().map(|&v| f64::from(v).powi(2)).sum();
    assert!((norm - 1.0).abs() < 1e-6);
}
