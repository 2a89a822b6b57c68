//! Inverse frequencies of the rotary position code, after the scaling the config asks for.
//!
//! Scalings: none, `linear`, `llama3` (Llama 3.1) and `longrope`/`su` (Phi-3). Others (`yarn`, `dynamic`, ...) and partial
//! rotation are refused by name. Of longrope the short factors are used, which hold up to the original length: the model is
//! limited to that.

use super::ImportError;
use super::fields::Fields;
use serde_json::{Value, json};
use std::f64::consts::TAU;

/// Base of published models that write none down.
const DEFAULT_THETA: f64 = 10_000.0;

/// The rotation of one head.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rope {
    /// `head_dim / 2` values, radians per position.
    pub inverse: Vec<f64>,
    /// Factor on cosine and sine.
    pub amplitude: f64,
    /// Positions for which `inverse` holds.
    pub positions: usize,
}

/// Takes every field that concerns the rotation.
pub(super) fn read(fields: &mut Fields, head_dim: usize, positions: usize) -> Result<Rope, ImportError> {
    if !head_dim.is_multiple_of(2) {
        return Err(fields.wrong("head_dim", &json!(head_dim), "an even number: rotation works on pairs"));
    }
    fields.only("partial_rotary_factor", &json!(1.0), "1.0: all channels rotate")?;
    let mut theta = fields.positive("rope_theta")?;
    let original = fields.size("original_max_position_embeddings", positions)?;
    let scaling = fields.object("rope_scaling")?;
    let newer = fields.object("rope_parameters")?;
    if let (Some(_), Some(_)) = (&scaling, &newer) {
        return Err(fields.wrong("rope_parameters", &json!("given with rope_scaling"), "one of the two"));
    }
    let Some(mut scaling) = scaling.or(newer) else { return Ok(plain(head_dim, theta, positions)) };
    if let Some(inner) = scaling.positive("rope_theta")? {
        if theta.is_some_and(|outer| outer != inner) {
            return Err(scaling.wrong("rope_theta", &json!(inner), "the same value as rope_theta outside"));
        }
        theta = Some(inner);
    }
    scaling.only("partial_rotary_factor", &json!(1.0), "1.0: all channels rotate")?;
    let older = scaling.take("type");
    let kind = scaling.take("rope_type").or(older).unwrap_or_else(|| json!("default"));
    let mut rope = plain(head_dim, theta, positions);
    match kind.as_str() {
        Some("default") => {}
        Some("linear") => {
            let factor = required(&mut scaling, "factor")?;
            rope.inverse.iter_mut().for_each(|f| *f /= factor);
        }
        Some("llama3") => llama3(&mut rope, &mut scaling)?,
        Some("longrope" | "su") => longrope(&mut rope, &mut scaling, original)?,
        _ => return Err(scaling.wrong("rope_type", &kind, "default, linear, llama3, longrope, su")),
    }
    scaling.finish()?;
    Ok(rope)
}

fn plain(head_dim: usize, theta: Option<f64>, positions: usize) -> Rope {
    let theta = theta.unwrap_or(DEFAULT_THETA);
    let inverse = (0..head_dim / 2).map(|i| theta.powf(-((2 * i) as f64) / head_dim as f64)).collect();
    Rope { inverse, amplitude: 1.0, positions }
}

fn required(fields: &mut Fields, name: &str) -> Result<f64, ImportError> {
    fields.positive(name)?.ok_or_else(|| fields.missing(name, "a positive number"))
}

/// Waves shorter than `original / high` stay, longer than `original / low` are stretched by `factor`, with a ramp between.
fn llama3(rope: &mut Rope, fields: &mut Fields) -> Result<(), ImportError> {
    let factor = required(fields, "factor")?;
    let low = required(fields, "low_freq_factor")?;
    let high = required(fields, "high_freq_factor")?;
    let original = required(fields, "original_max_position_embeddings")?;
    if high <= low {
        return Err(fields.wrong("high_freq_factor", &json!(high), "a number above low_freq_factor"));
    }
    for f in &mut rope.inverse {
        let turns = original * *f / TAU;
        let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        *f *= kept + (1.0 - kept) / factor;
    }
    Ok(())
}

/// Divides each frequency by its own factor; the amplitude grows with the logarithm of the stretch.
fn longrope(rope: &mut Rope, fields: &mut Fields, outside: Option<usize>) -> Result<(), ImportError> {
    const LENGTH: &str = "head_dim / 2 positive numbers";
    let inside = fields.size("original_max_position_embeddings", rope.positions)?;
    let original = outside.or(inside).ok_or_else(|| fields.missing("original_max_position_embeddings", "a number"))?;
    let stretch = rope.positions as f64 / original as f64;
    if let Some(factor) = fields.positive("factor")?.filter(|f| (f / stretch - 1.0).abs() > 1e-9) {
        let supported = "max_position_embeddings / original_max_position_embeddings";
        return Err(fields.wrong("factor", &json!(factor), supported));
    }
    for name in ["short_factor", "long_factor"] {
        let factors = fields.numbers(name)?.ok_or_else(|| fields.missing(name, LENGTH))?;
        if factors.len() != rope.inverse.len() {
            return Err(fields.wrong(name, &Value::from(format!("{} numbers", factors.len())), LENGTH));
        }
        if name == "short_factor" {
            rope.inverse.iter_mut().zip(&factors).for_each(|(f, factor)| *f /= factor);
        }
    }
    let computed = if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / (original as f64).ln()).sqrt() };
    rope.amplitude = fields.positive("attention_factor")?.unwrap_or(computed);
    if !rope.amplitude.is_finite() {
        return Err(fields.wrong("original_max_position_embeddings", &json!(original), "a length above 1"));
    }
    rope.positions = original;
    Ok(())
}
