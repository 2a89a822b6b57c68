//! The pocket decoder (`configs/pocket`), carried inside the program so that a demo needs no download.

use super::exit::Failure;
use super::home::{Home, write_whole};
use std::path::PathBuf;

macro_rules! file {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../../configs/pocket/", $name)).as_slice())
    };
}

/// The files of the model, and the texts it is calibrated and measured on.
const FILES: [(&str, &[u8]); 7] = [
    file!("config.json"),
    file!("generation_config.json"),
    file!("tokenizer.json"),
    file!("tokenizer_config.json"),
    file!("calibration.txt"),
    file!("eval.txt"),
    file!("model.safetensors"),
];

/// Writes the model into the cache, unless it is there, and returns its folder.
pub fn folder(home: &Home) -> Result<PathBuf, Failure> {
    let folder = home.cache().join("pocket");
    std::fs::create_dir_all(&folder)?;
    for (name, bytes) in FILES {
        let path = folder.join(name);
        let there = std::fs::read(&path).is_ok_and(|found| found == bytes);
        if !there {
            write_whole(&path, bytes)?;
        }
    }
    Ok(folder)
}
