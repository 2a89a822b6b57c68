//! A registered model, ready to prove with, at a security that only tests use.

use obelysk_model::IntegerModel;
use obelysk_protocol::circuit::PublicInput;
use obelysk_protocol::transcript::HashSuite;
use obelysk_protocol::verifier::aggregate::verify_reduced;
use obelysk_protocol::verifier::registered::{Registered, SecurityParams};
use obelysk_shard::job::{Backend, LoadedModel};
use obelysk_shard::local::prove;
use obelysk_shard::registration::register;
use tempfile::TempDir;

pub const TOY_SECURITY: SecurityParams = SecurityParams { queries: 12, g_seed: 3, g_fold: 2, g_query: 4 };

/// A registered model, in a folder that must outlive it.
pub struct Place<S: HashSuite, B: Backend> {
    pub model: IntegerModel,
    pub registered: Registered,
    pub loaded: LoadedModel<S, B>,
    pub dir: TempDir,
}

impl<S: HashSuite, B: Backend> Place<S, B> {
    pub fn new(k: &B, model: IntegerModel) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registered = register::<S, B>(k, &model, TOY_SECURITY, [7; 32], dir.path(), &|_| ()).unwrap();
        let loaded = LoadedModel::new(registered.clone(), model.clone(), dir.path().to_path_buf());
        Self { model, registered, loaded, dir }
    }

    /// Proves and verifies.
    pub fn whole(&self, k: &B, input: &PublicInput) -> Vec<u8> {
        let bytes = prove(k, &self.loaded, input).unwrap().0.write();
        let accepted = verify_reduced::<S>(&self.registered, &bytes).unwrap();
        assert_eq!((accepted.ids, accepted.sequences), (input.ids.clone(), input.sequences.clone()));
        assert!(accepted.output.is_empty());
        bytes
    }
}
