//! The rest of a layer, recomputed from a forged stage on: a cheat there is then consistent with everything after it.
//!
//! Written against the integer semantics, not against the executor.

use crate::harness::toy;
use obelysk_model::infer::{self, LayerTrace, ModelTrace, NormTrace, ResidualTrace, StopTrace, padded_length};
use obelysk_model::weights::{Matrix, slot};
use obelysk_protocol::circuit::descriptor::{Requant, Residual};
use obelysk_protocol::circuit::norm::shift_powers;

/// `sum_k W[n][k] x[k][t]`, channels above tokens.
pub fn product(m: &Matrix, x: &[i64], t_pad: usize) -> Vec<i64> {
    let cell = |n: usize, t: usize| (0..m.inputs).map(|k| i64::from(m.row(n)[k]) * x[k * t_pad + t]).sum();
    (0..m.outputs).flat_map(|n| (0..t_pad).map(move |t| (n, t))).map(|(n, t)| cell(n, t)).collect()
}

pub fn clipped(acc: i64, e: u8) -> i64 {
    ((acc + (1 << (e - 1))) >> e).clamp(-(1 << 15), (1 << 15) - 1)
}

pub fn wide<T: Copy + Into<i64>>(v: &[T]) -> Vec<i64> {
    v.iter().map(|&x| x.into()).collect()
}

pub fn stop(m: &Matrix, e: u8, x: &[i64], t_pad: usize) -> StopTrace {
    let acc = product(m, x, t_pad);
    StopTrace { t_hat: acc.iter().map(|&a| clipped(a, e) as i16).collect(), acc: acc.iter().map(|&a| a as i32).collect() }
}

/// `floor((t^ m + b) / 2^k)` of every accumulator.
pub fn requantised(r: &Requant, acc: &[i64], t_pad: usize) -> Vec<i32> {
    let one = |(i, &a): (usize, &i64)| {
        let c = i / t_pad;
        ((clipped(a, r.e) * i64::from(r.m[c]) + i64::from(r.b[c])) >> r.k) as i32
    };
    acc.iter().enumerate().map(one).collect()
}

/// A norm of `x` with chosen deviations of mu and sigma per token; the rest follows from them.
pub fn norm(x: &[i64], width: usize, eps: i64, nudge: &dyn Fn(usize) -> (i64, i64)) -> NormTrace {
    let t_pad = x.len() / width;
    let mut out = NormTrace {
        x: x.iter().map(|&v| v as i32).collect(),
        mu: Vec::new(),
        s: Vec::new(),
        sigma: Vec::new(),
        index: Vec::new(),
        recip: Vec::new(),
        x_scaled: vec![0; x.len()],
        u: vec![0; x.len()],
    };
    for t in 0..t_pad {
        let row: Vec<i64> = (0..width).map(|c| x[c * t_pad + t]).collect();
        let (d_mu, d_sigma) = nudge(t);
        let mu = (row.iter().sum::<i64>() + width as i64 / 2).div_euclid(width as i64) + d_mu;
        let s = (row.iter().map(|v| (v - mu) * (v - mu)).sum::<i64>() + eps) as u64;
        let least = (0..32).find(|k| s >> (2 * k) < 65_280).unwrap();
        let sigma = least + d_sigma;
        let index = s >> (2 * sigma);
        let recip = (((32_000u128 << 7).pow(2) / u128::from(index)) as f64).sqrt() as i64;
        let recip = (recip - 1..=recip + 1).rfind(|r| (r * r) as u128 * u128::from(index) <= (32_000u128 << 7).pow(2)).unwrap();
        for (c, v) in row.iter().enumerate() {
            let (p1, p2, half) = shift_powers(sigma as usize);
            let scaled = ((v - mu) * p2 + half).div_euclid(p1);
            out.x_scaled[c * t_pad + t] = scaled as i32;
            out.u[c * t_pad + t] = ((scaled * recip + (1 << 13)) >> 14) as i16;
        }
        out.mu.push(mu as i32);
        out.s.push(s);
        out.sigma.push(sigma as u8);
        out.index.push(index as u32);
        out.recip.push(recip as i32);
    }
    out
}

fn residual(r: &Residual, u: &[i16], t_hat: &[i16], t_pad: usize) -> ResidualTrace {
    let total = |i: usize| {
        let c = i / t_pad;
        let stay = i64::from(r.gain[c]) * i64::from(u[i]) + i64::from(r.bias[c]);
        stay + i64::from(r.mult[c]) * i64::from(t_hat[i]) + (1 << (r.shift - 1))
    };
    let totals: Vec<i64> = (0..u.len()).map(total).collect();
    let x: Vec<i64> = totals.iter().map(|v| v >> r.shift).collect();
    let rho = totals.iter().map(|v| (v & ((1 << r.shift) - 1)) as i32).collect();
    ResidualTrace { rho, norm: norm(&x, r.gain.len(), r.norm.eps as i64, &|_| (0, 0)) }
}

/// Stages from which a layer can be redone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum From {
    Mix,
    Act,
    Output,
}

/// Recomputes layer `l` after `stage` and every later layer and the output.
pub fn redo(trace: &mut ModelTrace, l: usize, stage: From) {
    let model = &toy().model;
    let (d, t_pad) = (obelysk_model::toy::encoder(model), trace.t_pad);
    let (spec, w) = (&d.layers[l], &model.weights.segments[l + 1]);
    let input = if l == 0 { trace.embed.norm.u.clone() } else { trace.layers[l - 1].ffn.norm.u.clone() };
    let t: &mut LayerTrace = &mut trace.layers[l];
    if stage <= From::Mix {
        t.o = stop(&w.matrices[slot::O], spec.o.e, &wide(&t.mix), t_pad);
        t.attn = residual(&spec.attn_residual, &input, &t.o.t_hat, t_pad);
        let acc = product(&w.matrices[slot::UP], &wide(&t.attn.norm.u), t_pad);
        t.up.y = requantised(&spec.up, &acc, t_pad);
        t.up.acc = acc.iter().map(|&a| a as i32).collect();
        t.act = t.up.y.iter().map(|&y| spec.activation[(y + (1 << 15)) as usize]).collect();
    }
    if stage <= From::Act {
        t.down = stop(&w.matrices[slot::DOWN], spec.down.e, &wide(&t.act), t_pad);
        t.ffn = residual(&spec.ffn_residual, &t.attn.norm.u, &t.down.t_hat, t_pad);
    }
    for next in l + 1..d.layers.len() {
        let u = trace.layers[next - 1].ffn.norm.u.clone();
        let w = &model.weights.segments[next + 1];
        trace.layers[next] = infer::layer(d, &d.layers[next], w, &u, trace.tokens, t_pad).unwrap();
    }
    let u = &trace.layers[d.layers.len() - 1].ffn.norm.u;
    trace.pooled = infer::pool(u, trace.tokens, t_pad);
}

#[test]
fn redoing_an_honest_layer_changes_nothing() {
    let ids = [4, 0, 9, 2, 7];
    let honest = infer::run(&toy().model, &ids).unwrap();
    assert_eq!(honest.t_pad, padded_length(ids.len()));
    for stage in [From::Mix, From::Act, From::Output] {
        let mut again = honest.clone();
        redo(&mut again, 0, stage);
        assert!(again == honest);
    }
}
