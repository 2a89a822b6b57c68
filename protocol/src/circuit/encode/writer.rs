//! Fields to bytes; the order of calls is the format.

use crate::circuit::descriptor::{Branch, Decoder, DecoderLayer, Encoder, LayerSpec, NormSpec, Requant, Residual, Rotated};

/// Bytes so far.
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn length(&mut self, n: usize) {
        // Lengths beyond u32 cannot occur in memory-sized models; saturating keeps the encoding total and undecodable.
        self.0.extend_from_slice(&u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes());
    }

    pub(super) fn name(&mut self, name: &str) {
        self.length(name.len());
        self.0.extend_from_slice(name.as_bytes());
    }

    pub(super) fn words(&mut self, values: &[u32]) {
        for v in values {
            self.0.extend_from_slice(&v.to_le_bytes());
        }
    }

    pub(super) fn table(&mut self, values: &[i16]) {
        self.length(values.len());
        for v in values {
            self.0.extend_from_slice(&v.to_le_bytes());
        }
    }

    pub(super) fn encoder(&mut self, e: &Encoder) {
        self.signed(&e.embed.scale);
        self.0.push(e.embed.shift);
        self.norm(&e.embed.norm);
        self.length(e.layers.len());
        for layer in &e.layers {
            self.layer(layer);
        }
        self.unsigned(&e.output.gain_bits);
        self.unsigned(&e.output.bias_bits);
    }

    pub(super) fn decoder(&mut self, d: &Decoder) {
        self.0.push(d.embed.limbs);
        self.signed(&d.embed.scale);
        self.0.push(d.embed.shift);
        self.length(d.frequencies.len());
        for v in &d.frequencies {
            self.0.extend_from_slice(&v.to_le_bytes());
        }
        self.length(d.layers.len());
        for layer in &d.layers {
            self.decoder_layer(layer);
        }
        self.norm(&d.head.norm);
        self.0.push(d.head.linear.e);
        self.signed(&d.head.mult);
    }

    pub(super) fn decoder_layer(&mut self, l: &DecoderLayer) {
        self.norm(&l.attn_norm);
        self.rotated(&l.q);
        self.rotated(&l.k);
        self.requant(&l.v);
        self.0.push(l.score_shift);
        self.0.push(u8::from(l.score_cap.is_some()));
        if let Some(cap) = &l.score_cap {
            self.0.push(cap.e);
            self.signed(&cap.table);
        }
        self.words(&[l.window]);
        self.0.extend_from_slice(&[l.o.e, l.o.limbs]);
        self.branch(&l.attn_branch);
        self.norm(&l.ffn_norm);
        self.requant(&l.gate);
        self.table(&l.activation);
        self.0.extend_from_slice(&[l.up.e, l.product.e, l.down.e, l.down.limbs]);
        self.branch(&l.ffn_branch);
    }

    pub(super) fn rotated(&mut self, r: &Rotated) {
        self.requant(&r.linear);
        self.0.push(u8::from(r.norm.is_some()));
        if let Some(n) = &r.norm {
            self.norm(&n.norm);
        }
        self.signed(&r.rotary.gain);
        self.0.push(r.rotary.shift);
        self.0.extend_from_slice(&r.limit.to_le_bytes());
    }

    pub(super) fn branch(&mut self, b: &Branch) {
        self.0.push(u8::from(b.norm.is_some()));
        if let Some(n) = &b.norm {
            self.0.push(n.shift);
            self.signed(&n.mult);
            self.norm(&n.norm);
        }
        self.0.push(b.shift);
        self.signed(&b.mult);
    }

    pub(super) fn signed(&mut self, values: &[i32]) {
        self.length(values.len());
        for v in values {
            self.0.extend_from_slice(&v.to_le_bytes());
        }
    }

    pub(super) fn unsigned(&mut self, values: &[u32]) {
        self.length(values.len());
        for v in values {
            self.0.extend_from_slice(&v.to_le_bytes());
        }
    }

    pub(super) fn norm(&mut self, norm: &NormSpec) {
        self.0.extend_from_slice(&norm.eps.to_le_bytes());
    }

    pub(super) fn requant(&mut self, q: &Requant) {
        self.0.extend_from_slice(&[q.e, q.k]);
        self.signed(&q.m);
        self.signed(&q.b);
        self.0.extend_from_slice(&q.lo.to_le_bytes());
        self.0.extend_from_slice(&q.hi.to_le_bytes());
    }

    pub(super) fn residual(&mut self, r: &Residual) {
        self.0.push(r.shift);
        self.signed(&r.gain);
        self.signed(&r.bias);
        self.signed(&r.mult);
        self.norm(&r.norm);
    }

    pub(super) fn layer(&mut self, l: &LayerSpec) {
        self.requant(&l.q);
        self.requant(&l.k);
        self.requant(&l.v);
        self.0.push(l.score_shift);
        self.0.push(l.o.e);
        self.residual(&l.attn_residual);
        self.requant(&l.up);
        self.table(&l.activation);
        self.0.push(l.down.e);
        self.residual(&l.ffn_residual);
    }
}
