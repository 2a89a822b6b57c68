//! Whole toy proofs: every option, several sequences, any backend and number of threads; and completions the model does not
//! give.

use crate::toys::{CUTS, input, toys};
use obelysk_model::IntegerModel;
use obelysk_model::toy::{self, DecoderToy};
use obelysk_protocol::circuit::PublicInput;
use obelysk_protocol::transcript::{Blake2s, HashSuite, Poseidon252};
use obelysk_protocol::verifier::aggregate::verify_reduced;
use obelysk_protocol::verifier::registered::{Registered, SecurityParams};
use obelysk_shard::job::{Backend, JobError, LoadedModel};
use obelysk_shard::kernels::reference::Reference;
use obelysk_shard::kernels::simd::Simd;
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

fn whole<S: HashSuite, B: Backend>(k: &B, toy: DecoderToy, cuts: &[(u32, u32)]) -> Vec<u8> {
    let model = toy::decoder(&toy);
    let input = input(&model, cuts, toy.seed);
    Place::<S, B>::new(k, model).whole(k, &input)
}

#[test]
fn a_proof_of_every_option_verifies() {
    for (toy, cuts) in toys().into_iter().zip(CUTS.into_iter().cycle()) {
        whole::<Blake2s, _>(&Simd::default(), toy, cuts);
    }
}

#[test]
fn a_proof_of_every_number_of_rows_verifies() {
    let k = Simd::default();
    let place = Place::<Blake2s, _>::new(&k, toy::decoder(&toys()[5]));
    for cuts in CUTS {
        place.whole(&k, &input(&place.model, cuts, 3));
    }
}

#[test]
fn a_proof_under_poseidon_verifies() {
    whole::<Poseidon252, _>(&Simd::default(), toys()[0], CUTS[2]);
}

#[test]
fn both_backends_and_any_number_of_threads_write_the_same_proof() {
    for (toy, cuts) in [(toys()[1], CUTS[3]), (toys()[2], CUTS[0])] {
        let pool = |n: usize| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        let [one, two] = [1, 2].map(|n| pool(n).install(|| whole::<Blake2s, _>(&Simd::default(), toy, cuts)));
        assert!(one == two, "{toy:?}: another number of threads gives other bytes");
        assert!(one == whole::<Blake2s, _>(&Reference, toy, cuts), "{toy:?}: another backend gives other bytes");
    }
}

#[test]
fn a_completion_that_is_not_the_model_s_is_not_proved() {
    let k = Simd::default();
    let place = Place::<Blake2s, _>::new(&k, toy::decoder(&toys()[0]));
    let mut input = input(&place.model, CUTS[3], 0);
    let last = input.ids.last_mut().unwrap();
    let found = std::mem::replace(last, (*last + 1) % 21);
    let claimed = *last;
    match prove(&k, &place.loaded, &input) {
        Err(JobError::Completion { row: 4, found: f, claimed: c }) => assert_eq!((f, c), (found, claimed)),
        other => panic!("{:?}", other.map(|_| ())),
    }
}
