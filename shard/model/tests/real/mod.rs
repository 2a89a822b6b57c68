//! The real weights that some tests need: the folder in `OBELYSK_MINILM`, or the default fetch cache.

use obelysk_model::fetch::default_cache;
use std::path::PathBuf;

/// The MiniLM folder, or nothing (with a printed note) where neither place has it.
pub fn minilm() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("OBELYSK_MINILM") {
        return Some(folder.into());
    }
    let cached = default_cache().map(|c| c.join("minilm")).filter(|c| c.join("config.json").exists());
    if cached.is_none() {
        eprintln!("skipped: set OBELYSK_MINILM to a folder with all-MiniLM-L6-v2, or fetch it into the cache as `minilm`");
    }
    cached
}
