//! Wild descriptors of decoders: each field in turn at extreme values. The builder refuses them or builds a circuit; it never
//! panics, and what it builds has no equation that could wrap.

use crate::decoder_circuits::{FULL, build, descriptor, input, plain};
use obelysk_protocol::circuit::descriptor::{Branch, Decoder, Requant, Rotated};

const WORDS: [i32; 7] = [i32::MIN, -40_000, -1, 0, 1, 40_000, i32::MAX];
const BYTES: [u8; 8] = [0, 1, 2, 9, 14, 17, 64, 255];
const SIZES: [u32; 8] = [0, 1, 2, 3, 4096, 1 << 20, (1 << 20) + 1, u32::MAX];
const LARGE: [u64; 5] = [0, 1, 1 << 40, 1 << 62, u64::MAX];

fn requants(d: &mut Decoder) -> Vec<&mut Requant> {
    let l = &mut d.layers[0];
    vec![&mut l.q.linear, &mut l.k.linear, &mut l.v, &mut l.gate]
}

fn rotated(d: &mut Decoder) -> Vec<&mut Rotated> {
    let l = &mut d.layers[0];
    vec![&mut l.q, &mut l.k]
}

fn branches(d: &mut Decoder) -> Vec<&mut Branch> {
    let l = &mut d.layers[0];
    vec![&mut l.attn_branch, &mut l.ffn_branch]
}

/// Every vector of 32-bit numbers.
fn vectors(d: &mut Decoder) -> Vec<&mut Vec<i32>> {
    let Decoder { embed, head, layers, .. } = d;
    let l = &mut layers[0];
    let mut out = vec![&mut embed.scale, &mut head.mult];
    for r in [&mut l.q.linear, &mut l.k.linear, &mut l.v, &mut l.gate] {
        out.extend([&mut r.m, &mut r.b]);
    }
    out.extend([&mut l.q.rotary.gain, &mut l.k.rotary.gain]);
    for b in [&mut l.attn_branch, &mut l.ffn_branch] {
        out.push(&mut b.mult);
        out.extend(b.norm.as_mut().map(|n| &mut n.mult));
    }
    out.extend(l.score_cap.as_mut().map(|c| &mut c.table));
    out
}

/// Every single 32-bit number.
fn words(d: &mut Decoder) -> Vec<&mut i32> {
    let l = &mut d.layers[0];
    let mut out = vec![&mut l.q.limit, &mut l.k.limit];
    for r in [&mut l.q.linear, &mut l.k.linear, &mut l.v, &mut l.gate] {
        out.extend([&mut r.lo, &mut r.hi]);
    }
    out
}

/// Every byte.
fn bytes(d: &mut Decoder) -> Vec<&mut u8> {
    let Decoder { tile_k_log, tile_n_log, row_log, blowup_log, embed, head, layers, .. } = d;
    let l = &mut layers[0];
    let mut out = vec![tile_k_log, tile_n_log, row_log, blowup_log, &mut embed.limbs, &mut embed.shift, &mut head.linear.e];
    for r in [&mut l.q.linear, &mut l.k.linear, &mut l.v, &mut l.gate] {
        out.extend([&mut r.e, &mut r.k]);
    }
    out.extend([&mut l.q.rotary.shift, &mut l.k.rotary.shift, &mut l.score_shift, &mut l.o.e, &mut l.o.limbs]);
    out.extend([&mut l.up.e, &mut l.product.e, &mut l.down.e, &mut l.down.limbs]);
    for b in [&mut l.attn_branch, &mut l.ffn_branch] {
        out.push(&mut b.shift);
        out.extend(b.norm.as_mut().map(|n| &mut n.shift));
    }
    out.extend(l.score_cap.as_mut().map(|c| &mut c.e));
    out
}

/// Every size.
fn sizes(d: &mut Decoder) -> Vec<&mut u32> {
    let Decoder { vocab, positions, width, heads, kv_heads, head_dim, ffn, layers, .. } = d;
    vec![vocab, positions, width, heads, kv_heads, head_dim, ffn, &mut layers[0].window]
}

/// Every epsilon and every frequency.
fn larges(d: &mut Decoder) -> Vec<&mut u64> {
    let Decoder { head, layers, frequencies, .. } = d;
    let l = &mut layers[0];
    let mut out = vec![&mut head.norm.eps, &mut l.attn_norm.eps, &mut l.ffn_norm.eps];
    out.extend([&mut l.q, &mut l.k].into_iter().filter_map(|r| r.norm.as_mut()).map(|n| &mut n.norm.eps));
    out.extend([&mut l.attn_branch, &mut l.ffn_branch].into_iter().filter_map(|b| b.norm.as_mut()).map(|n| &mut n.norm.eps));
    out.extend(frequencies);
    out
}

/// Builds every segment of every descriptor that differs in one place; returns how many were refused and how many not.
fn each<T: Copy>(of: fn(&mut Decoder) -> Vec<&mut T>, values: &[T]) -> [usize; 2] {
    changed(of, &values.iter().map(|&v| move |x: &mut T| *x = v).collect::<Vec<_>>())
}

fn changed<T: ?Sized>(of: fn(&mut Decoder) -> Vec<&mut T>, changes: &[impl Fn(&mut T)]) -> [usize; 2] {
    let mut counts = [0, 0];
    let text = input(&[(2, 2), (1, 1)]);
    for toy in [FULL, plain()] {
        let honest = descriptor(&toy);
        for i in 0..of(&mut honest.clone()).len() {
            for change in changes {
                let mut d = honest.clone();
                if let Some(field) = of(&mut d).into_iter().nth(i) {
                    change(field);
                }
                counts[usize::from(build(&d, &text).is_ok())] += 1;
            }
        }
    }
    counts
}

#[test]
fn extreme_numbers_are_refused_or_harmless() {
    let [refused, built] = each(words, &WORDS);
    assert!(refused > 60 && built > 10, "{refused} {built}");
    let [refused, built] = each(bytes, &BYTES);
    assert!(refused > 200 && built > 50, "{refused} {built}");
    let [refused, built] = each(sizes, &SIZES);
    assert!(refused > 80 && built > 10, "{refused} {built}");
    // No epsilon makes an equation wrap that did not: a circuit of a larger one has more digits.
    let [refused, built] = each(larges, &LARGE);
    assert!(refused > 10 && built > 20, "{refused} {built}");
}

#[test]
fn extreme_vectors_are_refused_or_harmless() {
    type Change = Box<dyn Fn(&mut Vec<i32>)>;
    let mut changes: Vec<Change> = vec![Box::new(Vec::clear), Box::new(|x| x.push(1)), Box::new(|x| x.truncate(x.len() - 1))];
    changes.extend(WORDS.map(|v| Box::new(move |x: &mut Vec<i32>| x.fill(v)) as Change));
    changes.extend(WORDS.map(|v| Box::new(move |x: &mut Vec<i32>| x.iter_mut().take(1).for_each(|x| *x = v)) as Change));
    let [refused, built] = changed(vectors, &changes);
    assert!(refused > 200 && built > 100, "{refused} {built}");
}

#[test]
fn extreme_shapes_are_refused_or_harmless() {
    type Change = Box<dyn Fn(&mut Requant)>;
    let windows = [(0, 0), (-1, -1), (5, 4), (-32_768, 32_767), (32_767, 32_767), (i32::MIN, i32::MAX)];
    let changes: Vec<Change> = windows.map(|(lo, hi)| Box::new(move |r: &mut Requant| (r.lo, r.hi) = (lo, hi)) as Change).into();
    let [refused, built] = changed(requants, &changes);
    assert!(refused > 10 && built > 5, "{refused} {built}");
    let norms: [fn(&mut Rotated); 2] = [|r| r.norm = None, |r| r.rotary.gain.reverse()];
    assert_eq!(changed(rotated, &norms)[0] + changed(rotated, &norms)[1], 8);
    let none: [fn(&mut Branch); 2] = [|b| b.norm = None, |b| b.shift = 6];
    assert_eq!(changed(branches, &none).iter().sum::<usize>(), 8);
    // No layer at all.
    let mut d = descriptor(&plain());
    d.layers.clear();
    assert!(build(&d, &input(&[(1, 1)])).is_ok());
}
