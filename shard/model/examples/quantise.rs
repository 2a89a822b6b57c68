//! Quantises a Hugging Face folder and prints scales and fidelity: `quantise FOLDER [OUT]`.

use obelysk_model::calibrate::{self, calibrate};
use obelysk_model::fidelity;
use obelysk_model::graph::Graph;
use obelysk_model::graph::decoder::DecoderGraph;
use obelysk_model::import::{Config, Imported, import};
use obelysk_model::quantise::{QuantiseOptions, quantise, quantise_decoder};
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().ok_or("usage: quantise FOLDER [OUT]")?;
    let imported = import(Path::new(&folder))?;
    if matches!(imported.config, Config::Decoder(_)) {
        return decoder(Path::new(&folder), &imported, args.next());
    }
    let graph = Graph::build(&imported)?;
    let positions = imported.config.positions();
    let ranges = calibrate(&graph, &imported.tokenizer, positions, calibrate::builtin_sentences())?;
    let quantised = quantise(
        &graph,
        &ranges,
        &QuantiseOptions {
            headroom: std::env::var("HR").map_or(1.3, |v| v.parse().unwrap()),
            residual_shift: std::env::var("RW").map_or(5, |v| v.parse().unwrap()),
            ..QuantiseOptions::default()
        },
    )?;
    for s in &quantised.scales {
        println!("{}", serde_json::to_string(s)?);
    }
    if let Some(out) = args.next() {
        quantised.model.save(Path::new(&out), Some(&imported.tokenizer))?;
    }
    let report = fidelity::measure(&graph, &imported.tokenizer, &quantised.model, fidelity::builtin_sentences())?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}

/// Calibrates on `calibration.txt` and measures on `eval.txt` of the folder, in pieces of 256 tokens.
fn decoder(folder: &Path, imported: &Imported, out: Option<String>) -> Result<(), Box<dyn std::error::Error>> {
    let graph = DecoderGraph::build(imported)?;
    let pieces = |name: &str, most: usize| -> Result<Vec<Vec<u32>>, Box<dyn std::error::Error>> {
        let ids = imported.tokenizer.encode(&std::fs::read_to_string(folder.join(name))?)?;
        Ok(ids.chunks(256).take(most).map(<[u32]>::to_vec).collect())
    };
    let options =
        QuantiseOptions { headroom: std::env::var("HR").map_or(1.3, |v| v.parse().unwrap()), ..QuantiseOptions::default() };
    let started = std::time::Instant::now();
    let quantised = quantise_decoder(&graph, &pieces("calibration.txt", 16)?, &options, &|l, n| eprintln!("layer {l} of {n}"))?;
    println!("quantised in {:.1} s", started.elapsed().as_secs_f64());
    for s in &quantised.scales {
        println!("{}", serde_json::to_string(s)?);
    }
    if let Some(out) = out {
        quantised.model.save(Path::new(&out), Some(&imported.tokenizer))?;
    }
    let fraction = quantised.scales.iter().find(|s| s.name == "head").map_or(0, |s| s.fraction);
    let most = std::env::var("PIECES").map_or(40, |v| v.parse().unwrap());
    let report = obelysk_model::fidelity::measure_decoder(&graph, &quantised.model, fraction, &pieces("eval.txt", most)?)?;
    println!("{} in {:.1} s", serde_json::to_string_pretty(&report)?, started.elapsed().as_secs_f64());
    Ok(())
}
