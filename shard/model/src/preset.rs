//! Models we ship settings for: where they are published and what shape they have.
//!
//! A preset is a promise about a download: [`Preset::check`] holds the downloaded `config.json` to it. Refuses unknown fields,
//! unknown architectures, and a parameter count that does not follow from the shape.

use crate::import::DecoderConfig;
use serde::Deserialize;
use thiserror::Error;

/// The shipped files, by the name of the model.
const FILES: [(&str, &str); 6] = [
    ("qwen3-14b", include_str!("../../../configs/models/qwen3-14b.toml")),
    ("llama3-8b", include_str!("../../../configs/models/llama3-8b.toml")),
    ("llama3-70b", include_str!("../../../configs/models/llama3-70b.toml")),
    ("mistral-7b", include_str!("../../../configs/models/mistral-7b.toml")),
    ("phi3-mini", include_str!("../../../configs/models/phi3-mini.toml")),
    ("gemma2-9b", include_str!("../../../configs/models/gemma2-9b.toml")),
];
/// The template for others.
pub const TEMPLATE: &str = include_str!("../../../configs/models/custom.toml");

/// A published decoder.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preset {
    /// Name under which it is kept.
    pub name: String,
    /// `owner/name` on the hub.
    pub repository: String,
    /// Branch or commit.
    pub revision: String,
    /// Whether the repository asks for an access token.
    pub gated: bool,
    /// What its use is subject to.
    pub licence: String,
    /// Architecture name as published.
    pub architecture: String,
    /// Layers.
    pub layers: u64,
    /// Hidden width.
    pub width: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Channels per head.
    pub head_dim: u64,
    /// Inner width of the feed-forward block.
    pub ffn: u64,
    /// Vocabulary.
    pub vocab: u64,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Number of parameters, a tied head counted once.
    pub parameters: u64,
}

/// Why a preset, or a model that is to be it, is refused.
#[derive(Debug, Error)]
pub enum PresetError {
    /// Not a preset.
    #[error("the preset does not parse: {0}; configs/models/custom.toml names the fields")]
    Parse(#[from] toml::de::Error),
    /// No preset of this name.
    #[error("there is no preset `{name}`; there are: {known}")]
    Unknown {
        /// Name asked for.
        name: String,
        /// Names there are.
        known: String,
    },
    /// A field that cannot be.
    #[error("preset `{name}`: {field} is {found}, but {expected} is needed; correct the preset")]
    Field {
        /// Preset.
        name: String,
        /// Field.
        field: &'static str,
        /// Value.
        found: String,
        /// What would do.
        expected: String,
    },
    /// A config of another model.
    #[error("preset `{name}` promises {field} = {promised}, but config.json has {found}; the repository holds another model")]
    Differs {
        /// Preset.
        name: String,
        /// Field.
        field: &'static str,
        /// Value in the preset.
        promised: String,
        /// Value in the config.
        found: String,
    },
}

/// All shipped presets.
///
/// # Errors
/// A shipped file that is wrong, which the tests exclude.
pub fn all() -> Result<Vec<Preset>, PresetError> {
    FILES.iter().map(|(_, text)| Preset::parse(text)).collect()
}

/// The shipped preset of this name.
///
/// # Errors
/// There is none.
pub fn named(name: &str) -> Result<Preset, PresetError> {
    match FILES.iter().find(|(known, _)| *known == name) {
        Some((_, text)) => Preset::parse(text),
        None => {
            let known = FILES.map(|(known, _)| known).join(", ");
            Err(PresetError::Unknown { name: name.to_owned(), known })
        }
    }
}

impl Preset {
    /// Reads and checks the text of a preset.
    ///
    /// # Errors
    /// Missing, unknown and malformed fields; an architecture without a builder; a parameter count that is not the shape's.
    pub fn parse(text: &str) -> Result<Self, PresetError> {
        let preset: Self = toml::from_str(text)?;
        let wrong = |field, found: String, expected: String| {
            Err(PresetError::Field { name: preset.name.clone(), field, found, expected })
        };
        let families = ["LlamaForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM", "Phi3ForCausalLM", "Gemma2ForCausalLM"];
        if !families.contains(&preset.architecture.as_str()) {
            return wrong("architecture", preset.architecture.clone(), families.join(" or "));
        }
        if preset.kv_heads == 0 || !preset.heads.is_multiple_of(preset.kv_heads) {
            return wrong("kv_heads", preset.kv_heads.to_string(), format!("a divisor of {} heads", preset.heads));
        }
        match preset.count() {
            Some(count) if count == preset.parameters => Ok(preset),
            Some(count) => wrong("parameters", preset.parameters.to_string(), format!("{count} by the shape")),
            None => wrong("parameters", preset.parameters.to_string(), "a shape whose count fits 64 bits".to_owned()),
        }
    }

    /// Parameters by the shape; `None` if they do not fit 64 bits.
    #[must_use]
    pub fn count(&self) -> Option<u64> {
        let d = u128::from(self.width);
        let [heads, kv, dim, ffn] = [self.heads, self.kv_heads, self.head_dim, self.ffn].map(u128::from);
        let product = |factors: &[u128]| factors.iter().try_fold(1u128, |p, &f| p.checked_mul(f));
        let (norms, head_norms) = match self.architecture.as_str() {
            "Gemma2ForCausalLM" => (4, 0),
            "Qwen3ForCausalLM" => (2, 2),
            _ => (2, 0),
        };
        let parts = [
            product(&[2, d, heads, dim])?,
            product(&[2, d, kv, dim])?,
            product(&[3, d, ffn])?,
            product(&[norms, d])?,
            product(&[head_norms, dim])?,
        ];
        let layer = parts.into_iter().try_fold(0u128, u128::checked_add)?;
        let ends = product(&[u128::from(self.vocab), d, if self.tied { 1 } else { 2 }])?;
        let all = product(&[layer, u128::from(self.layers)])?.checked_add(ends)?.checked_add(d)?;
        u64::try_from(all).ok()
    }

    /// That a downloaded model is the promised one.
    ///
    /// # Errors
    /// The first field that differs, with both values.
    pub fn check(&self, config: &DecoderConfig) -> Result<(), PresetError> {
        let numbers = [
            ("layers", self.layers, config.layers),
            ("width", self.width, config.width),
            ("heads", self.heads, config.heads),
            ("kv_heads", self.kv_heads, config.kv_heads),
            ("head_dim", self.head_dim, config.head_dim),
            ("ffn", self.ffn, config.ffn),
            ("vocab", self.vocab, config.vocab),
        ];
        let numbers = numbers.map(|(field, promised, found)| (field, promised.to_string(), found.to_string()));
        let others = [
            ("architecture", self.architecture.clone(), config.architecture.clone()),
            ("tied", self.tied.to_string(), config.tied.to_string()),
        ];
        match numbers.into_iter().chain(others).find(|(_, promised, found)| promised != found) {
            None => Ok(()),
            Some((field, promised, found)) => Err(PresetError::Differs { name: self.name.clone(), field, promised, found }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::{Config, import};
    use crate::tiny::{self, FAMILIES, Family, Options};

    #[test]
    fn shipped_presets_have_the_parameters_they_state() {
        let presets = all().unwrap();
        assert_eq!(presets.len(), FILES.len());
        for (preset, (name, _)) in presets.iter().zip(FILES) {
            assert_eq!(preset.name, name);
            assert_eq!(preset.count(), Some(preset.parameters));
            assert_eq!(named(name).unwrap(), *preset);
        }
        assert_eq!(Preset::parse(TEMPLATE).unwrap().name, "custom");
        assert!(named("no-such-model").unwrap_err().to_string().contains("qwen3-14b"));
    }

    #[test]
    fn wrong_presets_are_refused() {
        for (from, to, word) in [
            ("layers = 22", "layers = 23", "parameters"),
            ("layers = 22", "layers = 22\nrouters = 8", "routers"),
            ("layers = 22", "", "layers"),
            ("LlamaForCausalLM\"", "MambaForCausalLM\"", "architecture"),
            ("kv_heads = 4", "kv_heads = 5", "kv_heads"),
            ("kv_heads = 4", "kv_heads = 0", "kv_heads"),
            ("vocab = 32000", "vocab = 9000000000000000000", "parameters"),
            ("gated = false", "gated = \"no\"", "gated"),
        ] {
            assert!(TEMPLATE.contains(from), "{from}");
            let text = Preset::parse(&TEMPLATE.replace(from, to)).unwrap_err().to_string();
            assert!(text.contains(word), "{to}: {text}");
        }
    }

    #[test]
    fn models_are_held_to_their_preset() {
        for family in FAMILIES {
            let folder = tempfile::tempdir().unwrap();
            let o = Options::of(family);
            tiny::write(family, folder.path(), 1, &o).unwrap();
            let Config::Decoder(config) = import(folder.path()).unwrap().config else { panic!("{family:?}") };
            let [layers, width, heads, kv_heads, head_dim, ffn, vocab] =
                [o.layers, o.width, o.heads, o.kv_heads, o.head_dim, o.ffn, o.vocab].map(|n| n as u64);
            let mut preset = Preset {
                architecture: config.architecture.clone(),
                tied: o.tied,
                parameters: 0,
                ..Preset { layers, width, heads, kv_heads, head_dim, ffn, vocab, ..Preset::parse(TEMPLATE).unwrap() }
            };
            // The count must be that of the stored values.
            let bytes = std::fs::read(folder.path().join("model.safetensors")).unwrap();
            let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let values: usize = stored.iter().map(|(_, view)| view.data().len() / 2).sum();
            assert_eq!(preset.count(), Some(values as u64), "{family:?}");
            preset.check(&config).unwrap();
            preset.head_dim += 2;
            assert!(preset.check(&config).unwrap_err().to_string().contains("head_dim"));
        }
        let llama = named("llama3-8b").unwrap();
        assert!(tiny::config(Family::Llama, &Options::of(Family::Llama))["architectures"][0] == llama.architecture.as_str());
    }
}
