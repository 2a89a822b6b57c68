//! Proves random models in every weight-binding mode and prints sizes and times:
//! `modes decoder W,H,KV,D,F LAYERS VOCAB TOKENS` or `modes encoder HEADS HEAD_DIM FFN LAYERS TOKENS`.
use obelysk_model::infer::decoder::generate;
use obelysk_model::shaped::{Shape, Shaped};
use obelysk_model::{WeightSource, toy};
use obelysk_protocol::circuit::{PublicInput, Sequence};
use obelysk_protocol::transcript::Blake2s;
use obelysk_protocol::verifier::aggregate::verify_bytes;
use obelysk_protocol::verifier::mode::Mode;
use obelysk_protocol::verifier::registered::SecurityParams;
use obelysk_shard::job::LoadedModel;
use obelysk_shard::kernels::simd::Simd;
use obelysk_shard::local::prove_in;
use obelysk_shard::registration::register;
use std::str::FromStr as _;
use std::time::Instant;

type Failed = Box<dyn std::error::Error>;

fn main() -> Result<(), Failed> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize| -> Result<u32, Failed> { Ok(args.get(i).ok_or("an argument is missing")?.parse()?) };
    match args.first().map(String::as_str) {
        Some("decoder") => {
            let shape = Shape::from_str(args.get(1).ok_or("no shape")?)?;
            let shape = Shape { layers: number(2)?, vocab: number(3)?, ..shape };
            let (model, tokens) = (Shaped::new(&shape, 1), number(4)?);
            let mut ids: Vec<u32> = (0..tokens).map(|i| i * 37 % shape.vocab).collect();
            let decoder = model.descriptor().decoder().ok_or("no decoder")?;
            ids.extend(generate(decoder, &model as &dyn WeightSource, &ids, 1, &[])?);
            let sequences = vec![Sequence { prompt: tokens, completion: 1 }];
            compare(model, &PublicInput { ids, sequences, output: Vec::new() })
        }
        Some("encoder") => {
            let (heads, head_dim, ffn, layers) = (number(1)?, number(2)?, number(3)?, number(4)? as usize);
            let shape = toy::Shape { vocab: 512, positions: 512, heads, head_dim, ffn, layers, tile_logs: (7, 7), row_log: 16 };
            let ids = (0..number(5)?).map(|i| i * 37 % shape.vocab).collect();
            compare(toy::model_of(1, shape), &PublicInput::text(ids))
        }
        _ => Err("usage: modes decoder W,H,KV,D,F LAYERS VOCAB TOKENS | modes encoder HEADS HEAD_DIM FFN LAYERS TOKENS".into()),
    }
}

fn compare(model: impl WeightSource + 'static, input: &PublicInput) -> Result<(), Failed> {
    let (k, dir) = (Simd::default(), tempfile::tempdir()?);
    let security = SecurityParams::standard(model.descriptor().blowup_log());
    let registered = register::<Blake2s, _>(&k, &model, security, [0; 32], dir.path(), &|_| ())?;
    let loaded = LoadedModel::<Blake2s, _>::new(registered.clone(), model, dir.path().to_path_buf());
    for mode in [Mode::Forked, Mode::Aggregated, Mode::Sequential, Mode::Forked, Mode::Aggregated] {
        let start = Instant::now();
        let (proof, phases) = prove_in(&k, &loaded, (input, mode), &|_, _, _| ())?;
        let proved = start.elapsed().as_secs_f64();
        let bytes = proof.write();
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let start = Instant::now();
            verify_bytes::<Blake2s>(&registered, &bytes)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        let phases: Vec<String> = phases.0.iter().map(|(name, t)| format!("{name} {:.3}", t.as_secs_f64())).collect();
        println!("mode {}: {} bytes, verify {best:.4} s, prove {proved:.3} s ({})", mode as u8, bytes.len(), phases.join(", "));
    }
    Ok(())
}
