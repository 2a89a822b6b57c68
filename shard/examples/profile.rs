//! Proves with a quantised model folder in one process and prints where the time goes:
//! `profile MODEL_FOLDER WORK_FOLDER TOKENS [REPEAT]`.
use obelysk_model::source::WEIGHT_BYTES;
use obelysk_model::{StoredModel, WeightSource as _};
use obelysk_protocol::circuit::PublicInput;
use obelysk_protocol::transcript::Blake2s;
use obelysk_protocol::verifier::aggregate::verify_bytes;
use obelysk_protocol::verifier::registered::SecurityParams;
use obelysk_shard::job::LoadedModel;
use obelysk_shard::kernels::simd::Simd;
use obelysk_shard::local::prove;
use obelysk_shard::registration::register;
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, work, tokens, ..] = args.as_slice() else { return Err("usage: profile MODEL WORK TOKENS [REPEAT]".into()) };
    let tokens: u32 = tokens.parse()?;
    let repeat: usize = args.get(4).map_or(Ok(1), |r| r.parse())?;
    let k = Simd::default();
    let model = StoredModel::open(Path::new(model), WEIGHT_BYTES)?;
    let start = Instant::now();
    let security = SecurityParams::standard(model.descriptor().blowup_log());
    let registered = register::<Blake2s, _>(&k, &model, security, [0; 32], Path::new(work), &|_| ())?;
    println!("register {:.3} s", start.elapsed().as_secs_f64());
    let loaded = LoadedModel::<Blake2s, _>::new(registered.clone(), model, work.into());
    let ids: Vec<u32> = (0..tokens).map(|i| 1000 + i * 37 % 20_000).collect();
    let input = PublicInput::text(ids);
    for _ in 0..repeat {
        let start = Instant::now();
        let (proof, phases) = prove(&k, &loaded, &input)?;
        let total = start.elapsed().as_secs_f64();
        let bytes = proof.write();
        println!("prove {total:.3} s, {} bytes", bytes.len());
        for (name, spent) in phases.0 {
            println!("  {name:12} {:.3} s", spent.as_secs_f64());
        }
        let start = Instant::now();
        let accepted = verify_bytes::<Blake2s>(&registered, &bytes)?;
        println!("verify {:.3} s, {:.1} bits", start.elapsed().as_secs_f64(), accepted.security_bits);
    }
    Ok(())
}
