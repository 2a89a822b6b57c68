//! Known cards (`configs/gpus`): how much of their memory buffers may take. A card that is not among them is bounded by what is
//! free alone.

use serde::Deserialize;
use std::sync::OnceLock;

const FILES: [&str; 8] = [
    include_str!("../../../../configs/gpus/a100-40.toml"),
    include_str!("../../../../configs/gpus/a100-80.toml"),
    include_str!("../../../../configs/gpus/b200.toml"),
    include_str!("../../../../configs/gpus/b300.toml"),
    include_str!("../../../../configs/gpus/h100.toml"),
    include_str!("../../../../configs/gpus/h200.toml"),
    include_str!("../../../../configs/gpus/rtx-3090.toml"),
    include_str!("../../../../configs/gpus/rtx-4090.toml"),
];

/// A known card.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preset {
    /// Words that all occur in its name.
    pub name: Vec<String>,
    /// Architecture, 90 for sm_90.
    pub architecture: u32,
    /// Memory in gigabytes, as published.
    pub memory_gb: u32,
    /// Bytes that buffers may take.
    pub budget_bytes: usize,
}

/// All of them. A file that does not parse is left out, which a test does not let happen.
#[must_use]
pub fn presets() -> &'static [Preset] {
    static PRESETS: OnceLock<Vec<Preset>> = OnceLock::new();
    PRESETS.get_or_init(|| FILES.iter().filter_map(|text| toml::from_str(text).ok()).collect())
}

/// The preset of a card by its name and architecture.
#[must_use]
pub fn of(name: &str, architecture: u32) -> Option<&'static Preset> {
    presets().iter().find(|p| p.architecture == architecture && p.name.iter().all(|word| name.contains(word.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::compile::OLDEST;

    #[test]
    fn every_file_parses_and_leaves_room() {
        for text in FILES {
            let preset: Preset = toml::from_str(text).expect("parses");
            let memory = preset.memory_gb as usize * 1_000_000_000;
            assert!(preset.architecture >= OLDEST && !preset.name.is_empty(), "{preset:?}");
            assert!(preset.budget_bytes < memory && preset.budget_bytes > memory / 2, "{preset:?}");
        }
        let there = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/gpus")).expect("lists").count();
        assert_eq!((there, presets().len()), (FILES.len(), FILES.len()));
    }

    #[test]
    fn names_of_drivers_are_found() {
        let memory = |name, architecture| of(name, architecture).map(|p| p.memory_gb);
        assert_eq!(memory("NVIDIA GeForce RTX 3090", 86), Some(24));
        assert_eq!(memory("NVIDIA A100-SXM4-40GB", 80), Some(40));
        assert_eq!(memory("NVIDIA A100 80GB PCIe", 80), Some(80));
        assert_eq!(memory("NVIDIA H200", 90), Some(141));
        assert_eq!(memory("NVIDIA B300 SXM6 AC", 103), Some(288));
        assert_eq!(memory("NVIDIA L40S", 89), None);
    }
}
