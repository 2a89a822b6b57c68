//! Text to token ids. Padding and truncation of the published file are switched off: a proof covers exactly the tokens of
//! the text, and a text that is too long is an error of the caller, not a silent cut.

use super::{ImportError, read_file};
use std::path::Path;
use std::sync::Arc;
use tokenizers::Tokenizer;

/// A tokenizer and the bytes it was read from.
#[derive(Clone)]
pub struct TextTokenizer {
    inner: Arc<Tokenizer>,
    bytes: Arc<[u8]>,
}

impl TextTokenizer {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// Unreadable file, unknown components.
    pub fn read(path: &Path) -> Result<Self, ImportError> {
        Self::from_bytes(&read_file(path)?)
    }

    /// From the contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// Unknown components.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ImportError> {
        let mut inner = Tokenizer::from_bytes(bytes).map_err(|e| ImportError::Tokenizer(e.to_string()))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| ImportError::Tokenizer(e.to_string()))?;
        Ok(Self { inner: Arc::new(inner), bytes: bytes.into() })
    }

    /// Token ids of `text` with the model's special tokens around them.
    ///
    /// # Errors
    /// Whatever the tokenizer refuses.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ImportError> {
        self.ids(text, true)
    }

    /// Token ids of `text` and of nothing else: special tokens only where the text itself has them, as a rendered chat does.
    ///
    /// # Errors
    /// Whatever the tokenizer refuses.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, ImportError> {
        self.ids(text, false)
    }

    fn ids(&self, text: &str, special: bool) -> Result<Vec<u32>, ImportError> {
        let encoding = self.inner.encode(text, special).map_err(|e| ImportError::Tokenizer(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of token ids. Ids that the tokenizer does not know have none; special tokens are written out if `special`.
    /// Bytes that are not yet a whole letter become U+FFFD.
    ///
    /// # Errors
    /// Whatever the tokenizer refuses.
    pub fn decode(&self, ids: &[u32], special: bool) -> Result<String, ImportError> {
        self.inner.decode(ids, !special).map_err(|e| ImportError::Tokenizer(e.to_string()))
    }

    /// The file's bytes, to be stored beside a quantised model.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
