//! Tiny checkpoints with what each family adds, read and quantised as `obelysk model register` does it.

use obelysk_model::graph::decoder::DecoderGraph;
use obelysk_model::import::{TextTokenizer, import};
use obelysk_model::infer::decoder::generate_batch;
use obelysk_model::quantise::{QuantiseOptions, Quantised, quantise_decoder};
use obelysk_model::tiny::{self, Family, Options, Rope, Stored};
use obelysk_model::toy::decoder_of;
use obelysk_model::{IntegerModel, calibrate};
use obelysk_protocol::circuit::{PublicInput, Sequence};
use std::path::Path;
use tempfile::TempDir;

/// Tokens of a piece of calibration text, and pieces of it, as in the command line.
const PIECE_TOKENS: usize = 256;
const PIECES: usize = 16;

/// A checkpoint and what became of it.
pub struct Made {
    pub family: Family,
    /// The published folder.
    pub folder: TempDir,
    pub graph: DecoderGraph,
    pub tokenizer: TextTokenizer,
    pub model: IntegerModel,
    /// Fraction bits of a logit.
    pub fraction: i32,
}

/// What the family adds, as much of it at once as goes together.
pub fn options(family: Family) -> Options {
    let base = Options::of(family);
    match family {
        // Scaled positions, groups of three, biases, heads with an odd factor; halves in three files.
        Family::Llama => Options { heads: 6, head_dim: 24, positions: 256, bias: true, stored: Stored::F16, shards: 3, ..base },
        // Norms per head, heads wider than the width, groups of five; the second layer slides.
        Family::Qwen3 => Options { window: Some(6), shards: 2, ..base },
        // A window on every layer.
        Family::Mistral => Options { window: Some(7), ..base },
        // Fused matrices, heads of 96, factors per channel, a window; singles.
        Family::Phi3 => Options {
            width: 192,
            heads: 2,
            kv_heads: 1,
            head_dim: 96,
            rope: Rope::Longrope,
            window: Some(9),
            stored: Stored::F32,
            shards: 2,
            ..base
        },
        // Soft caps, norms behind branches, gains 1 + w, a scaled and tied embedding, windows on the even layers.
        Family::Gemma2 => Options { window: Some(6), layers: 3, shards: 3, ..base },
    }
}

/// What [`options`] leaves out.
pub fn rest(family: Family) -> Options {
    let base = Options::of(family);
    match family {
        Family::Llama => Options { rope: Rope::Linear, tied: true, heads: 7, kv_heads: 1, ..base },
        Family::Qwen3 => Options { heads: 2, head_dim: 24, tied: true, bias: true, ..base },
        Family::Mistral => Options { window: Some(1), stored: Stored::F16, shards: 4, ..base },
        Family::Phi3 => Options { window: None, tied: true, ..base },
        Family::Gemma2 => Options { tied: false, bias: true, window: None, ..base },
    }
}

/// Writes the family's checkpoint and reads it to its end.
pub fn made(family: Family) -> Made {
    made_of(family, 1, &options(family), |_| ())
}

/// The same from other options, with settings of the float model changed before it is quantised.
pub fn made_of(family: Family, seed: u64, options: &Options, change: impl FnOnce(&mut DecoderGraph)) -> Made {
    let folder = tempfile::tempdir().unwrap();
    tiny::write(family, folder.path(), seed, options).unwrap();
    let imported = import(folder.path()).unwrap();
    let mut graph = DecoderGraph::build(&imported).unwrap();
    change(&mut graph);
    let texts: Vec<&str> = calibrate::builtin_sentences().collect();
    let pieces = pieces(&imported.tokenizer, &texts.join("\n"), graph.config.positions);
    let options = QuantiseOptions { name: format!("tiny-{family:?}"), ..QuantiseOptions::default() };
    let Quantised { model, scales } = quantise_decoder(&graph, &pieces, &options, &|_, _| ()).unwrap();
    let fraction = scales.iter().find(|s| s.name == "head").unwrap().fraction;
    Made { family, folder, graph, tokenizer: imported.tokenizer, model, fraction }
}

/// A text in pieces that the model takes.
pub fn pieces(tokenizer: &TextTokenizer, text: &str, positions: usize) -> Vec<Vec<u32>> {
    let ids = tokenizer.encode(text).unwrap();
    ids.chunks(PIECE_TOKENS.min(positions)).take(PIECES).map(<[u32]>::to_vec).collect()
}

impl Made {
    /// Two prompts with the model's own completions of six and of three tokens, both longer than any window above.
    pub fn input(&self) -> PublicInput {
        input_of(&self.model, &self.tokenizer)
    }

    /// The model as it is read back from a folder it was written to, with the folder.
    pub fn stored(&self) -> (TempDir, IntegerModel) {
        let folder = tempfile::tempdir().unwrap();
        self.model.save(&folder.path().join("model"), Some(&self.tokenizer)).unwrap();
        let read = IntegerModel::load(&folder.path().join("model")).unwrap();
        (folder, read)
    }
}

/// As [`Made::input`].
pub fn input_of(model: &IntegerModel, tokenizer: &TextTokenizer) -> PublicInput {
    let d = decoder_of(model);
    let prompts = ["Tell me a tale", "We saw it rain"].map(|text| tokenizer.encode(text).unwrap());
    let (mut ids, mut sequences) = (Vec::new(), Vec::new());
    for (prompt, length) in prompts.iter().zip([6, 3]) {
        let completion = generate_batch(d, &model.weights, &[prompt], length, &[]).unwrap().remove(0);
        assert_eq!(completion.len(), length);
        sequences.push(Sequence { prompt: prompt.len() as u32, completion: length as u32 });
        ids.extend(prompt.iter().copied().chain(completion));
    }
    PublicInput { ids, sequences, output: Vec::new() }
}

/// Files of a published folder.
pub fn files(folder: &Path) -> Vec<String> {
    let mut out: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    out.sort();
    out
}
