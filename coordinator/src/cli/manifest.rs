//! What a model was made from. The manifest's digest is part of the registration, hence of the model id; it holds no time,
//! machine or path, so that the same input gives the same id everywhere.

use super::exit::Failure;
use obelysk_model::quantise::QuantiseOptions;
use obelysk_model::{calibrate, fidelity};
use serde::Serialize;
use std::io::Read as _;
use std::path::Path;

/// Name of the manifest in a model's folder.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Name of the fidelity report in a model's folder.
pub const FIDELITY_FILE: &str = "fidelity.json";

/// A file by name and content.
#[derive(Debug, Serialize)]
struct FileEntry {
    name: String,
    bytes: u64,
    blake3: String,
}

/// How a float model was quantised.
#[derive(Debug, Serialize)]
struct Quantisation {
    name: String,
    row_log: u8,
    blowup_log: u8,
    headroom: f64,
    residual_shift: u8,
    residual_fraction: i32,
    embed_limbs: u8,
    calibration: String,
    test_sentences: String,
}

/// What is hashed into the registration.
#[derive(Debug, Serialize)]
pub struct Manifest {
    format: u32,
    files: Vec<FileEntry>,
    quantisation: Option<Quantisation>,
    fidelity: Option<String>,
}

/// What a model is calibrated and measured on.
#[derive(Debug)]
pub struct Texts {
    /// Calibration text.
    pub calibration: String,
    /// Test text, disjoint from it.
    pub test: String,
}

impl Texts {
    /// The built-in sentences.
    pub fn builtin() -> Self {
        let join = |sentences: Vec<&str>| sentences.join("\n");
        Self { calibration: join(calibrate::builtin_sentences().collect()), test: join(fidelity::builtin_sentences().collect()) }
    }

    /// `calibration.txt` and `eval.txt` beside a model, else the built-in sentences.
    pub fn beside(folder: &Path) -> Result<Self, Failure> {
        let builtin = Self::builtin();
        let read = |name: &str, default: String| {
            let path = folder.join(name);
            if !path.is_file() {
                return Ok(default);
            }
            std::fs::read_to_string(&path).map_err(|e| Failure::input(format!("cannot read {}: {e}", path.display())))
        };
        Ok(Self { calibration: read("calibration.txt", builtin.calibration)?, test: read("eval.txt", builtin.test)? })
    }
}

impl Manifest {
    /// Of a float model, the texts it was quantised with and the report on that.
    pub fn quantised(source: &Path, options: &QuantiseOptions, texts: &Texts, report: &[u8]) -> Result<Self, Failure> {
        let text = |text: &str| blake3::hash(text.as_bytes()).to_hex().to_string();
        let quantisation = Quantisation {
            name: options.name.clone(),
            row_log: options.row_log,
            blowup_log: options.blowup_log,
            headroom: options.headroom,
            residual_shift: options.residual_shift,
            residual_fraction: options.residual_fraction,
            embed_limbs: options.embed_limbs,
            calibration: text(&texts.calibration),
            test_sentences: text(&texts.test),
        };
        let named = ["config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json"];
        let files = files(source, |name| named.contains(&name) || name.ends_with(".safetensors"))?;
        let fidelity = Some(blake3::hash(report).to_hex().to_string());
        Ok(Self { format: 1, files, quantisation: Some(quantisation), fidelity })
    }

    /// Of an integer model whose origin is not known.
    pub fn integer(folder: &Path) -> Result<Self, Failure> {
        let files = files(folder, |name| name == "descriptor.bin" || name.starts_with("segment-") || name == "tokenizer.json")?;
        Ok(Self { format: 1, files, quantisation: None, fidelity: None })
    }

    /// The file's bytes.
    pub fn bytes(&self) -> Result<Vec<u8>, Failure> {
        Ok(serde_json::to_vec_pretty(self)?)
    }
}

fn files(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<FileEntry>, Failure> {
    let mut names = Vec::new();
    for inner in ["", "1_Pooling"] {
        let entries = std::fs::read_dir(folder.join(inner)).into_iter().flatten().flatten();
        let found = entries.filter(|e| e.path().is_file()).filter_map(|e| e.file_name().into_string().ok());
        names.extend(found.map(|n| if inner.is_empty() { n } else { format!("{inner}/{n}") }));
    }
    names.retain(|name| wanted(name));
    names.sort();
    names.into_iter().map(|name| entry(folder, name)).collect()
}

fn entry(folder: &Path, name: String) -> Result<FileEntry, Failure> {
    let path = folder.join(&name);
    let wrong = |e: std::io::Error| Failure::input(format!("cannot read {}: {e}", path.display()));
    let mut file = std::fs::File::open(&path).map_err(wrong)?;
    let (mut hasher, mut bytes, mut buffer) = (blake3::Hasher::new(), 0u64, vec![0u8; 1 << 20]);
    loop {
        let n = file.read(&mut buffer).map_err(wrong)?;
        if n == 0 {
            return Ok(FileEntry { name, bytes, blake3: hasher.finalize().to_hex().to_string() });
        }
        hasher.update(&buffer[..n]);
        bytes += n as u64;
    }
}
