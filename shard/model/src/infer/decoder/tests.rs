//! The defining executor against definitions told another way, and every executor against it.

use super::*;
use crate::toy::{self, DecoderToy, Prng};
use obelysk_protocol::circuit::Sequence;

/// Toys that together switch every option on and off.
fn toys() -> Vec<DecoderToy> {
    let plain = DecoderToy::default();
    vec![
        plain,
        DecoderToy { seed: 1, accumulators: 2, group: 1, kv_heads: 2, head_dim: 12, head_norm: true, limbs: 2, ..plain },
        DecoderToy { seed: 2, group: 3, head_dim: 24, cap: true, window: 3, branch_norm: true, ..plain },
        DecoderToy { seed: 3, group: 5, kv_heads: 6, head_norm: true, cap: true, window: 1, limbs: 2, ..plain },
        DecoderToy {
            seed: 4,
            accumulators: 2,
            group: 7,
            kv_heads: 3,
            head_dim: 10,
            branch_norm: true,
            layers: 3,
            width: 20,
            ffn: 36,
            ..plain
        },
        DecoderToy { seed: 5, head_dim: 6, window: 4, head_norm: true, branch_norm: true, limbs: 2, layers: 4, ..plain },
    ]
}

/// Random ids cut into sequences of the given lengths.
fn input(seed: u64, vocab: u32, cuts: &[(u32, u32)]) -> PublicInput {
    let mut rng = Prng::new(seed ^ 0x5eed);
    let sequences: Vec<Sequence> = cuts.iter().map(|&(prompt, completion)| Sequence { prompt, completion }).collect();
    let n: u32 = cuts.iter().map(|(p, c)| p + c).sum();
    let ids = (0..n).map(|_| rng.range(0, vocab as i32 - 1) as u32).collect();
    PublicInput { ids, sequences, output: Vec::new() }
}

/// Attention of one head in the model's natural order and in floating point, from the rotated traces.
#[test]
fn attention_is_that_of_the_float_formula() {
    for toy in toys() {
        let model = toy::decoder(&toy);
        let input = input(toy.seed, toy.vocab, &[(5, 2), (3, 2)]);
        let (rows, trace) = (input.rows(), run_reference(&model, &input).unwrap());
        let d = toy::decoder_of(&model);
        for (spec, l) in d.layers.iter().zip(&trace.layers) {
            for h in 0..d.heads as usize {
                float_head(d, spec, l, &rows, trace.t_pad, h);
            }
        }
    }
}

fn float_head(d: &Decoder, spec: &DecoderLayer, l: &DecoderLayerTrace, rows: &[TokenRow], t_pad: usize, h: usize) {
    let (kv, r) = (h / d.group(), h % d.group());
    let (heads, keys, dim) = (d.heads as usize, d.kv_heads as usize, d.head_dim as usize);
    let (part, hh) = (1usize << d.part_log(), r * keys + kv);
    // From the text of the order: the key head's odd factor, then the channel, then its low bits.
    let low = keys & keys.wrapping_neg();
    let at = |size: usize, heads: usize, head: usize, c: usize| {
        let (r, kv) = (head / keys, head % keys);
        (c / size) * heads * size + r * keys * size + (kv / low) * low * size + (c % size) * low + kv % low
    };
    let turned = |x: &RotatedTrace, r: &obelysk_protocol::circuit::descriptor::Rotated, heads: usize, head: usize, t: usize| {
        let raw = |c: usize| {
            let i = at(part / 2, heads, head, c) * t_pad + t;
            x.norm.as_ref().map_or_else(|| f64::from(x.y[i]), |n| f64::from(n.u[i])) * f64::from(r.rotary.gain[c])
        };
        let scale = 2f64.powi(-i32::from(r.rotary.shift));
        (0..dim)
            .map(|c| {
                let j = c % (dim / 2);
                let turns = u64::from(rows[t].position).wrapping_mul(d.frequencies[j]) as f64 / 2f64.powi(64);
                let (sin, cos) = (turns * std::f64::consts::TAU).sin_cos();
                let value = if c < dim / 2 { raw(j) * cos - raw(j + dim / 2) * sin } else { raw(j) * sin + raw(c) * cos };
                value * scale
            })
            .collect::<Vec<f64>>()
    };
    for i in 0..rows.len() {
        let q = turned(&l.q, &spec.q, heads, hh, i);
        for (c, q) in q.iter().enumerate() {
            let got = l.q.rot[at(part / 2, heads, hh, c) * t_pad + i];
            assert!((f64::from(got) - q).abs() < 3.0, "{got} {q}");
        }
        let seen: Vec<usize> = (0..=i).filter(|&j| rows[j].start == rows[i].start).collect();
        let seen = if spec.window == 0 { seen } else { seen[seen.len().saturating_sub(spec.window as usize)..].to_vec() };
        let keys_of_row: Vec<f64> = seen
            .iter()
            .map(|&j| {
                let exact: i64 = (0..dim)
                    .map(|c| {
                        let q = l.q.rot[at(part / 2, heads, hh, c) * t_pad + i];
                        i64::from(q) * i64::from(l.k.rot[at(part / 2, keys, kv, c) * t_pad + j])
                    })
                    .sum();
                assert_eq!(exact, i64::from(l.scores[(hh * t_pad + j) * t_pad + i]));
                let score = exact as f64 / 2f64.powi(i32::from(spec.score_shift));
                let capped = |e: u8| 5.0 * (exact as f64 / 2f64.powi(i32::from(e)) / 512.0 / 5.0).tanh();
                spec.score_cap.as_ref().map_or(score / 4096.0, |cap| capped(cap.e))
            })
            .collect();
        let max = keys_of_row.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = keys_of_row.iter().map(|s| (s - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        for c in 0..dim {
            let v = |j: usize| f64::from(l.v.y[at(part, keys, kv, c) * t_pad + j]);
            let mixed: f64 = seen.iter().zip(&weights).map(|(&j, w)| w * v(j)).sum::<f64>() / total * 16.0;
            let got = l.mix[at(part, heads, hh, c) * t_pad + i];
            assert!((f64::from(got) - mixed).abs() < 40.0, "head {h} row {i} channel {c}: {got} {mixed}");
        }
    }
}

#[test]
fn residual_stream_and_norms_follow_their_equations() {
    for toy in toys() {
        let model = toy::decoder(&toy);
        let d = toy::decoder_of(&model);
        let trace = run_reference(&model, &input(toy.seed, toy.vocab, &[(4, 3)])).unwrap();
        let t_pad = trace.t_pad;
        for (l, spec) in d.layers.iter().enumerate() {
            let (before, layer) = (trace.entering(l + 1), &trace.layers[l]);
            for (x, branch, stop, spec) in [
                (before, &layer.attn, &layer.o, &spec.attn_branch),
                (&layer.attn.x[..], &layer.ffn, &layer.down, &spec.ffn_branch),
            ] {
                let v = branch.norm.as_ref().map_or(&stop.t_hat, |n| &n.norm.u);
                for i in 0..x.len() {
                    let change = i64::from(branch.x[i]) - i64::from(x[i]);
                    let right = i64::from(spec.mult[i / t_pad]) * i64::from(v[i]) + (1 << (spec.shift - 1));
                    assert_eq!((change << spec.shift) + i64::from(branch.rho[i]), right);
                    assert!((0..1 << spec.shift).contains(&branch.rho[i]) && branch.x[i].unsigned_abs() < 1 << 23);
                }
            }
            for t in 0..t_pad {
                let row: Vec<f64> = (0..d.width as usize).map(|c| f64::from(before[c * t_pad + t])).collect();
                let length = row.iter().map(|v| v * v).sum::<f64>() + spec.attn_norm.eps as f64;
                for (c, v) in row.iter().enumerate() {
                    let got = f64::from(layer.attn_norm.u[c * t_pad + t]);
                    assert!((got - v / length.sqrt() * 32_000.0).abs() < 4.0);
                }
            }
        }
    }
}

#[test]
fn the_head_takes_the_smallest_of_the_largest() {
    let mut model = toy::decoder(&DecoderToy::default());
    let input = input(3, 21, &[(4, 3)]);
    let rows = model.weights.segments[3].matrices[0].inputs;
    let data = &mut model.weights.segments[3].matrices[0].data;
    // Tokens 4, 9 and 17 get one row, every other none: they tie, or all others tie at zero above them.
    data.fill(0);
    for j in [4, 9, 17] {
        data[j * rows..(j + 1) * rows].copy_from_slice(&[50; 16]);
    }
    toy::decoder_mut(&mut model).head.mult.fill(7);
    let trace = run_reference(&model, &input).unwrap();
    for (k, &token) in trace.head.tokens.iter().enumerate() {
        let t_hat = trace.head.linear.t_hat[4 * 4 + k];
        assert_eq!(token, if t_hat > 0 { 4 } else { 0 });
    }
    assert_eq!((trace.head.tokens.len(), trace.head.x.len()), (3, 16 * 4));
}

#[test]
fn results_do_not_depend_on_padding_or_neighbours() {
    for toy in toys() {
        let model = toy::decoder(&toy);
        let first = input(toy.seed, toy.vocab, &[(3, 2)]);
        let mut both = first.clone();
        both.ids.extend([1, 2, 3, 4, 5, 6]);
        both.sequences.push(Sequence { prompt: 2, completion: 4 });
        let (a, b) = (run_reference(&model, &first).unwrap(), run_reference(&model, &both).unwrap());
        assert_ne!(a.t_pad, b.t_pad);
        assert_eq!(a.head.tokens, b.head.tokens[..2]);
        let last = a.layers.len();
        for c in 0..toy.width as usize {
            let row = |trace: &DecoderTrace| trace.entering(last + 1)[c * trace.t_pad..c * trace.t_pad + 4].to_vec();
            assert_eq!(row(&a), row(&b));
        }
    }
}

#[test]
fn toys_reach_both_branches_of_every_clip() {
    let mut counts = [[0usize; 2]; 6];
    for toy in toys() {
        let trace = run_reference(&toy::decoder(&toy), &input(toy.seed, toy.vocab, &[(7, 9)])).unwrap();
        for l in &trace.layers {
            for (count, t_hat) in counts.iter_mut().zip([&l.o.t_hat, &l.up.t_hat, &l.product.t_hat, &l.down.t_hat]) {
                count[0] += t_hat.iter().filter(|t| matches!(**t, i16::MIN | i16::MAX)).count();
                count[1] += t_hat.len();
            }
            let spread = l.lambda.iter().max().unwrap() - l.lambda.iter().min().unwrap();
            counts[4][0] += usize::from(spread > 1000);
            counts[4][1] += 2;
        }
        counts[5][0] += trace.head.linear.t_hat.iter().filter(|t| matches!(**t, i16::MIN | i16::MAX)).count();
        counts[5][1] += trace.head.linear.t_hat.len();
    }
    for [clipped, total] in counts {
        assert!(clipped > 0 && clipped < total, "{counts:?}");
    }
}

const CUTS: [&[(u32, u32)]; 4] = [&[(1, 1)], &[(4, 2)], &[(3, 3), (1, 1), (2, 4)], &[(7, 10)]];

#[test]
fn forward_equals_reference() {
    for toy in toys() {
        for seed in 0..3 {
            let model = toy::decoder(&DecoderToy { seed: toy.seed + 100 * seed, ..toy });
            for cuts in CUTS {
                let input = input(seed, toy.vocab, cuts);
                assert_eq!(run(&model, &input).unwrap(), run_reference(&model, &input).unwrap(), "{toy:?}");
            }
        }
    }
}

/// Weights and scales at their extremes: all sums as large as the format admits, in both signs.
#[test]
fn forward_equals_reference_at_the_extremes() {
    for toy in toys() {
        for sign in [1i8, -1] {
            let mut model = toy::decoder(&toy);
            let mut rng = Prng::new(toy.seed);
            for m in model.weights.segments.iter_mut().flat_map(|s| &mut s.matrices) {
                let rows = m.inputs;
                for (n, row) in m.data.chunks_exact_mut(rows).enumerate() {
                    let q = if n % 3 == 0 { 127 } else { -127 };
                    row.iter_mut().for_each(|w| *w = if *w == 0 || rng.range(0, 9) == 0 { *w } else { sign * q });
                }
            }
            for l in &mut toy::decoder_mut(&mut model).layers {
                l.v.m.fill(240);
                l.activation.iter_mut().for_each(|v| *v = if *v < 0 { -32_000 } else { 32_000 });
            }
            let input = input(toy.seed, toy.vocab, &[(6, 4), (3, 2)]);
            assert_eq!(run(&model, &input).unwrap(), run_reference(&model, &input).unwrap(), "{toy:?}");
        }
    }
}

#[test]
fn kept_keys_and_values_give_what_a_whole_run_gives() {
    for toy in toys() {
        let model = toy::decoder(&toy);
        let d = toy::decoder_of(&model);
        let input = input(toy.seed, toy.vocab, &[(9, 4), (5, 3)]);
        let trace = run(&model, &input).unwrap();
        let rows = input.rows();
        let sequence = |row: &TokenRow| usize::from(row.start != 0);
        let fed: Vec<_> = rows.iter().map(|r| decode::Fed { sequence: sequence(r), id: r.id }).collect();
        // All at once, one by one, in chunks, and both sequences in turns.
        let turns: Vec<usize> = (0..12).chain(12..19).collect();
        let mixed: Vec<usize> = (0..12).flat_map(|i| [Some(i), (i < 7).then_some(i + 12)]).flatten().collect();
        for (order, size) in [(&turns, 19), (&turns, 1), (&turns, 5), (&mixed, 2), (&mixed, 7)] {
            let mut session = Session::new(d, 2);
            for chunk in order.chunks(size) {
                let tokens: Vec<_> = chunk.iter().map(|&i| fed[i]).collect();
                let x = session.feed(&model.weights, &tokens).unwrap();
                for (k, &row) in chunk.iter().enumerate() {
                    for c in 0..toy.width as usize {
                        let whole = trace.entering(d.layers.len() + 1)[c * trace.t_pad + row];
                        assert_eq!(x[c * tokens.len() + k], whole, "{toy:?} row {row} channel {c}");
                    }
                }
            }
            assert_eq!((session.length(0), session.length(1)), (12, 7));
        }
    }
}

#[test]
fn generation_is_what_the_head_says_at_every_step() {
    for toy in toys() {
        let model = toy::decoder(&toy);
        let d = toy::decoder_of(&model);
        let prompts: [&[u32]; 3] = [&[1, 2, 3], &[4], &[5, 6, 7, 8, 9]];
        let batch = generate_batch(d, &model.weights, &prompts, 8, &[]).unwrap();
        for (prompt, completion) in prompts.iter().zip(&batch) {
            assert_eq!(completion.len(), 8);
            assert_eq!(&generate(d, &model.weights, prompt, 8, &[]).unwrap(), completion);
            let sequences = vec![Sequence { prompt: prompt.len() as u32, completion: 8 }];
            let ids = [*prompt, &completion[..]].concat();
            let trace = run(&model, &PublicInput { ids, sequences, output: Vec::new() }).unwrap();
            assert_eq!(&trace.head.tokens, completion);
            let stopped = generate(d, &model.weights, prompt, 8, &completion[3..4]).unwrap();
            let end = completion.iter().position(|t| *t == completion[3]).unwrap();
            assert_eq!(stopped, completion[..=end]);
        }
    }
}

#[test]
fn prompts_longer_than_a_chunk_are_continued() {
    let model = toy::decoder(&DecoderToy::default());
    let d = toy::decoder_of(&model);
    let texts: Vec<Vec<u32>> = (0..22).map(|i| (0..50).map(|k| (k * k + i) % 21).collect()).collect();
    let prompts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let batch = generate_batch(d, &model.weights, &prompts, 3, &[]).unwrap();
    for (prompt, completion) in prompts.iter().zip(&batch) {
        assert_eq!(&generate(d, &model.weights, prompt, 3, &[]).unwrap(), completion);
    }
}

#[test]
fn generation_ends_with_the_positions_of_the_model() {
    let model = toy::decoder(&DecoderToy { positions: 6, ..DecoderToy::default() });
    let d = toy::decoder_of(&model);
    assert_eq!(generate(d, &model.weights, &[1, 2, 3, 4], 50, &[]).unwrap().len(), 3);
    assert!(generate(d, &model.weights, &[1, 2], 0, &[]).unwrap().is_empty());
    let long = generate(d, &model.weights, &[1; 7], 5, &[]);
    assert_eq!(long, Err(InferError::TooLong { tokens: 7, max: 6 }));
    assert_eq!(generate(d, &model.weights, &[], 5, &[]), Err(InferError::Empty));
    assert_eq!(generate(d, &model.weights, &[1, 21], 5, &[]), Err(InferError::Vocabulary { id: 21, position: 1, vocab: 21 }));
}

#[test]
fn bad_inputs_are_refused() {
    let model = toy::decoder(&DecoderToy::default());
    let (d, w) = (toy::decoder_of(&model), &model.weights.segments);
    let good = input(1, 21, &[(3, 2)]);
    let refused = |change: fn(&mut PublicInput)| {
        let mut input = good.clone();
        change(&mut input);
        run(&model, &input).unwrap_err()
    };
    assert_eq!(refused(|i| i.sequences.clear()), InferError::Empty);
    assert_eq!(refused(|i| i.sequences[0].prompt = 0), InferError::Empty);
    assert!(matches!(refused(|i| i.ids.truncate(4)), InferError::Shape { .. }));
    assert_eq!(refused(|i| i.ids[4] = 21), InferError::Vocabulary { id: 21, position: 4, vocab: 21 });
    let rows = good.rows();
    let x = vec![0; 16 * 4];
    assert_eq!(embed(d, &w[0], &rows, 3), Err(InferError::Padding { t_pad: 3, tokens: 4 }));
    assert!(matches!(layer(d, &d.layers[0], &w[1], &x[1..], &rows, 4), Err(InferError::Shape { .. })));
    assert!(matches!(layer(d, &d.layers[0], &w[0], &x, &rows, 4), Err(InferError::Shape { .. })));
    let late = [TokenRow { id: 0, position: 0, start: 1 }];
    assert_eq!(embed(d, &w[0], &late, 1), Err(InferError::Start { row: 0, start: 1 }));
    assert_eq!(head(d, &w[3], &x, &[4], 4), Err(InferError::TooLong { tokens: 5, max: 4 }));
    assert!(matches!(head(d, &w[1], &x, &[0], 4), Err(InferError::Shape { .. })));
    let mut session = Session::new(d, 1);
    assert_eq!(session.feed(&model.weights, &[decode::Fed { sequence: 1, id: 0 }]), Err(InferError::Sequence(1)));
    assert_eq!(session.length(0), 0);
}
