//! A registered model on disk: `registered.obr`, the integer model, the committed weights, and what belongs to them.
//!
//! Verifying needs `registered.obr` alone. Nothing here is trusted: files are read whole, decoded by their readers and checked.

use obelysk_model::source::WEIGHT_BYTES;
use obelysk_model::store::StoreError;
use obelysk_model::{StoredModel, WeightSource as _};
use obelysk_protocol::transcript::{Digest, HashSuite};
use obelysk_protocol::verifier::registered::{Registered, RegisteredError};
use obelysk_shard::job::{Backend, LoadedModel};
use std::path::{Path, PathBuf};

/// The file a verifier needs.
pub const REGISTERED_FILE: &str = "registered.obr";

/// Why a folder is no registered model.
#[derive(Debug, thiserror::Error)]
pub enum ModelFolderError {
    /// No registration there.
    #[error("cannot read {path}: {source}; give the folder or name of a registered model (`obelysk model register`)")]
    File {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The registration does not parse.
    #[error("{path}: {source}")]
    Registered {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: RegisteredError,
    },
    /// Weights are missing, damaged or not admissible.
    #[error("model in {path}: {source}")]
    Weights {
        /// The folder.
        path: PathBuf,
        /// Cause.
        source: StoreError,
    },
    /// Weights of another model.
    #[error("{path} holds weights of another descriptor than {REGISTERED_FILE}: register the model again")]
    Mixed {
        /// The folder.
        path: PathBuf,
    },
}

/// A registered model's folder with its registration read.
#[derive(Debug, Clone)]
pub struct ModelFolder {
    /// Where it is.
    pub path: PathBuf,
    /// What the verifier knows.
    pub registered: Registered,
    /// Model id.
    pub id: Digest,
}

impl ModelFolder {
    /// Reads the registration in `path`, a folder or the file itself.
    ///
    /// # Errors
    /// [`ModelFolderError`].
    pub fn open<S: HashSuite>(path: &Path) -> Result<Self, ModelFolderError> {
        let file = if path.is_dir() { path.join(REGISTERED_FILE) } else { path.to_owned() };
        let bytes = std::fs::read(&file).map_err(|source| ModelFolderError::File { path: file.clone(), source })?;
        let registered =
            Registered::read(&bytes).map_err(|source| ModelFolderError::Registered { path: file.clone(), source })?;
        let id = registered.model_id::<S>();
        let path = file.parent().map_or_else(PathBuf::new, Path::to_owned);
        Ok(Self { path, registered, id })
    }

    /// [`Self::load_within`] the default bound.
    ///
    /// # Errors
    /// [`ModelFolderError`].
    pub fn load<S: HashSuite, B: Backend>(&self) -> Result<LoadedModel<S, B>, ModelFolderError> {
        self.load_within(WEIGHT_BYTES)
    }

    /// Checks the weights, reading them once, and keeps at most `bytes` of them: half as they are, half in tiles. One
    /// segment is kept even if it has more.
    ///
    /// # Errors
    /// [`ModelFolderError`]; files that are damaged say so by their digest.
    pub fn load_within<S: HashSuite, B: Backend>(&self, bytes: usize) -> Result<LoadedModel<S, B>, ModelFolderError> {
        self.load_parted(bytes / 2, bytes / 2)
    }

    /// As [`Self::load_within`], with bounds of their own: for the weights as they are, in the memory of the machine, and for tiles,
    /// which lie where the backend has its values.
    ///
    /// # Errors
    /// As [`Self::load_within`].
    pub fn load_parted<S: HashSuite, B: Backend>(
        &self,
        weights_bytes: usize,
        tiles_bytes: usize,
    ) -> Result<LoadedModel<S, B>, ModelFolderError> {
        let weights = |source| ModelFolderError::Weights { path: self.path.clone(), source };
        let model = StoredModel::open(&self.path, weights_bytes).map_err(weights)?;
        if *model.descriptor() != self.registered.descriptor {
            return Err(ModelFolderError::Mixed { path: self.path.clone() });
        }
        model.check().map_err(weights)?;
        Ok(LoadedModel::within(self.registered.clone(), model, self.path.clone(), tiles_bytes))
    }
}
