//! A registered toy model, and the binary with a home folder of its own.

use obelysk_model::{IntegerModel, toy};
use obelysk_node::{NodeBackend, NodeSuite};
use obelysk_protocol::verifier::registered::SecurityParams;
use obelysk_shard::registration::register;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// A home folder, gone after the test.
pub struct Place(TempDir);

/// What a run of the binary gave.
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The one JSON value on stdout.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", self.stdout, self.stderr))
    }

    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Place {
    /// With a toy registered as `toy`.
    pub fn with_toy() -> Self {
        let place = Self::empty();
        place.toy("toy", 5);
        place
    }

    pub fn empty() -> Self {
        Self(tempfile::tempdir().expect("temporary folder"))
    }

    /// Registers the toy of a seed under a name.
    pub fn toy(&self, name: &str, seed: u64) -> PathBuf {
        self.toy_with(name, seed, SecurityParams::standard(2))
    }

    /// The same with other security parameters.
    pub fn toy_with(&self, name: &str, seed: u64, security: SecurityParams) -> PathBuf {
        let folder = self.path(&format!("home/models/{name}"));
        let model = self.integer(&format!("home/models/{name}"), seed);
        let registered = register::<NodeSuite, _>(&NodeBackend::default(), &model, security, [7; 32], &folder, &|_| ());
        std::fs::write(folder.join("registered.obr"), registered.expect("registers").write()).expect("written");
        folder
    }

    /// Registers a toy of so many layers, each a segment or more: enough to do for a fault to come in between.
    pub fn layers(&self, name: &str, seed: u64, layers: usize) {
        let folder = self.path(&format!("home/models/{name}"));
        let (tile_logs, row_log) = ((2, 2), 6);
        let shape = toy::Shape { vocab: 10, positions: 8, heads: 3, head_dim: 4, ffn: 20, layers, tile_logs, row_log };
        let model = toy::model_of(seed, shape);
        model.save(&folder, None).expect("saved");
        let security = SecurityParams::standard(2);
        let registered = register::<NodeSuite, _>(&NodeBackend::default(), &model, security, [7; 32], &folder, &|_| ());
        std::fs::write(folder.join("registered.obr"), registered.expect("registers").write()).expect("written");
    }

    /// Saves the integer toy of a seed in a folder.
    pub fn integer(&self, folder: &str, seed: u64) -> IntegerModel {
        let model = toy::model(seed);
        model.save(&self.path(folder), None).expect("saved");
        model
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_obelysk"));
        command.current_dir(self.0.path()).arg("--home").arg(self.path("home")).args(args).stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        self.command(args).output().expect("runs").into()
    }

    /// Proves with the toy into a file and returns its bytes.
    #[track_caller]
    pub fn prove(&self, args: &[&str], out: &str) -> Vec<u8> {
        let all = [&["prove", "--model", "toy", "--out", out], args].concat();
        self.run(&all).expect(0);
        self.read(out)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("file")
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).expect("written");
    }
}

/// Files of a folder by name, with their bytes.
pub fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).expect("folder").map(|e| e.expect("entry"));
    let mut files: Vec<_> =
        entries.map(|e| (e.file_name().into_string().expect("UTF-8"), std::fs::read(e.path()).expect("file"))).collect();
    files.sort();
    files
}

#[track_caller]
pub fn has_keys(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "`{key}` is missing in {value}");
    }
}
