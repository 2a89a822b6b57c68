//! Quantises a Hugging Face folder and prints scales and fidelity: `quantise FOLDER [OUT]`.

use obelysk_model::calibrate::{self, calibrate};
use obelysk_model::fidelity;
use obelysk_model::graph::Graph;
use obelysk_model::import::import;
use obelysk_model::quantise::{QuantiseOptions, quantise};
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().ok_or("usage: quantise FOLDER [OUT]")?;
    let imported = import(Path::new(&folder))?;
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
