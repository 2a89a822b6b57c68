//! The model that every program carries for calibration: small enough to prove in well under a second, made by the same engine and
//! checked by the same checker as any other. It proves nothing to anybody and is registered for speed, not for security: jobs on it are
//! refused.

use crate::job_bytes::JobSpec;
use crate::model_folder::{ModelFolder, REGISTERED_FILE};
use crate::{NodeBackend, NodeSuite};
use obelysk_model::IntegerModel;
use obelysk_model::toy::{self, Prng, Shape};
use obelysk_protocol::verifier::proof::MODE_FORKED;
use obelysk_protocol::verifier::registered::SecurityParams;
use obelysk_shard::registration::register;
use std::path::{Path, PathBuf};

/// One layer, wide enough that the work is that of layers and not of their tables.
const SHAPE: Shape =
    Shape { vocab: 64, positions: 32, heads: 4, head_dim: 16, ffn: 256, layers: 1, tile_logs: (4, 4), row_log: 10 };
/// Any; fixed, so that the model's id is the same everywhere.
const SEED: u64 = 0x0be1_75c0;
/// Enough to catch a machine that computes wrongly, at a cost that does not hide its speed.
const SECURITY: SecurityParams = SecurityParams { queries: 12, g_seed: 3, g_fold: 2, g_query: 4 };
/// Tokens of a calibration.
const TOKENS: usize = 32;

/// The model.
#[must_use]
pub fn model() -> IntegerModel {
    toy::model_of(SEED, SHAPE)
}

/// What a node is to prove for this number: another input for each, so that no answer can be had beforehand.
#[must_use]
pub fn spec(model: [u8; 32], number: u64) -> JobSpec {
    let mut random = Prng::new(number);
    let ids = (0..TOKENS).map(|_| random.range(0, SHAPE.vocab as i32 - 1).unsigned_abs()).collect();
    JobSpec { model, mode: MODE_FORKED, ids, sequences: Vec::new() }
}

/// The registered model in `folder`, made there first if need be. Processes that do this at the same time do not disturb each other.
///
/// # Errors
/// What cannot be written, or what is wrong with what is there, for people.
pub fn folder(folder: &Path) -> Result<ModelFolder, String> {
    let wrong = |what: &str, e: &dyn std::fmt::Display| format!("calibration model in {}: {what}: {e}", folder.display());
    let expected = model().descriptor;
    let usable = || ModelFolder::open::<NodeSuite>(folder).ok().filter(|found| found.registered.descriptor == expected);
    if let Some(found) = usable() {
        return Ok(found);
    }
    let staging = staging(folder);
    let made = build(&staging).map_err(|e| wrong("cannot be made", &e)).and_then(|()| {
        // What another release left is not this model.
        let _ = std::fs::remove_dir_all(folder);
        std::fs::rename(&staging, folder).map_err(|e| wrong("cannot be put in place", &e))
    });
    let _ = std::fs::remove_dir_all(&staging);
    // Somebody else may have been faster: then that one serves.
    usable().ok_or_else(|| made.err().unwrap_or_else(|| wrong("is not usable", &"remove the folder")))
}

fn staging(folder: &Path) -> PathBuf {
    let name = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    folder.with_file_name(format!(".{name}.{}", std::process::id()))
}

fn build(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let model = model();
    model.save(folder, None)?;
    let registered = register::<NodeSuite, _>(&NodeBackend::default(), &model, SECURITY, [0; 32], folder, &|_| ())?;
    Ok(std::fs::write(folder.join(REGISTERED_FILE), registered.write())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Engine as _, WorkKind, WorkRequest};
    use crate::prover_engine::ProverEngine;

    #[test]
    fn it_is_made_once_and_can_be_worked_on() {
        let place = tempfile::tempdir().expect("folder");
        let path = place.path().join("calibration");
        let first = folder(&path).expect("made");
        let before = std::fs::metadata(path.join(REGISTERED_FILE)).expect("there").modified().expect("known");
        assert_eq!(folder(&path).expect("there").id, first.id);
        assert_eq!(std::fs::metadata(path.join(REGISTERED_FILE)).expect("there").modified().expect("known"), before);
        let spec = spec(first.id, 7);
        assert_ne!(spec.ids, super::spec(first.id, 8).ids);
        let engine = ProverEngine::<NodeSuite, _>::new(NodeBackend::default(), [first.clone()]);
        let request =
            |kind| WorkRequest { job: [0; 32], model: first.id, kind, segment: 0, spec: spec.encode(), extra: Vec::new() };
        for kind in [WorkKind::Forward, WorkKind::Commit] {
            let t = std::time::Instant::now();
            let done = engine.run(&request(kind), &[], &|_| ()).expect("done");
            println!("{kind:?} {} bytes {} us {:?}", done.blob.len(), done.core_us, t.elapsed());
            assert!(!done.blob.is_empty() && done.core_us > 0);
        }
    }

    #[test]
    fn what_another_release_left_is_replaced() {
        let place = tempfile::tempdir().expect("folder");
        let path = place.path().join("calibration");
        std::fs::create_dir(&path).expect("made");
        std::fs::write(path.join(REGISTERED_FILE), b"old").expect("written");
        folder(&path).expect("made anew");
        assert_eq!(std::fs::read_dir(place.path()).expect("lists").count(), 1, "nothing else stays");
    }
}
