//! Tokenizer files of a tiny model: byte-level pairs without training, special tokens first, a chat template.

use super::Family;
use serde_json::{Map, Value, json};

/// Id of the token a text begins with.
pub const BOS: u32 = 0;
/// Id of the token that ends a text.
pub const EOS: u32 = 1;
/// Id of the token that ends a message.
pub(super) const END: u32 = 5;
/// Special tokens and one token for every byte.
pub const MIN_VOCAB: usize = SPECIAL.len() + 256;

const SPECIAL: [&str; 6] = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"];
const TEMPLATE: &str = "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}";

/// Whether the family's tokenizers put a begin token before a text.
fn begins(family: Family) -> bool {
    matches!(family, Family::Llama | Family::Mistral | Family::Gemma2)
}

/// The `tokenizer.json` with exactly `vocab` tokens.
pub(super) fn tokenizer(family: Family, vocab: usize) -> Value {
    let letters = || 'a'..='z';
    let pairs = letters().flat_map(|a| letters().map(move |b| (a, b)));
    let free = vocab.saturating_sub(MIN_VOCAB);
    let merges: Vec<(char, char)> = pairs.take(free).collect();
    let bytes = (0..=255u8).map(|b| printable(b).to_string());
    let merged = merges.iter().map(|(a, b)| format!("{a}{b}"));
    let spare = (merges.len()..free).map(|i| format!("<spare {i}>"));
    let words = SPECIAL.iter().map(|s| (*s).to_owned()).chain(bytes).chain(merged).chain(spare);
    let vocabulary: Map<String, Value> = words.enumerate().map(|(id, word)| (word, json!(id))).collect();
    let special = |(id, word): (usize, &&str)| {
        json!({ "id": id, "content": word, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": true })
    };
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let processor = json!({
        "type": "TemplateProcessing",
        "single": [{ "SpecialToken": { "id": SPECIAL[0], "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
        "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
        "special_tokens": { "<s>": { "id": SPECIAL[0], "ids": [BOS], "tokens": [SPECIAL[0]] } },
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": SPECIAL.iter().enumerate().map(special).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": if begins(family) { processor } else { byte_level.clone() },
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges.iter().map(|(a, b)| format!("{a} {b}")).collect::<Vec<_>>(),
        },
    })
}

/// The `tokenizer_config.json`.
pub(super) fn settings(family: Family, positions: usize) -> Value {
    let bos = if begins(family) { "{{ bos_token }}" } else { "" };
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": begins(family),
        "bos_token": SPECIAL[BOS as usize],
        "eos_token": SPECIAL[EOS as usize],
        "chat_template": format!("{bos}{TEMPLATE}"),
        "clean_up_tokenization_spaces": false,
        "model_max_length": positions,
    })
}

/// The character that stands for a byte in byte-level vocabularies: itself if it can be seen, else one above 255.
fn printable(byte: u8) -> char {
    let seen = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    if seen(byte) {
        return char::from(byte);
    }
    let hidden = (0..byte).filter(|&b| !seen(b)).count() as u32;
    char::from_u32(256 + hidden).unwrap_or(char::REPLACEMENT_CHARACTER)
}
