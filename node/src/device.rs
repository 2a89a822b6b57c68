//! What a node computes on: its processors, or a card with the processors behind it.
//!
//! A card that fails in the middle of an item costs that item's time and nothing else: it is done again on the processors, with
//! the same bytes, unless only the card may be used. A card that was lost is not used again; one that was merely full is.

use crate::NodeBackend;
use crate::engine::{Engine, EngineError, WorkOutput, WorkRequest};
use crate::model_folder::ModelFolder;
use crate::prover_engine::ProverEngine;
use obelysk_cuda::card::Card;
use obelysk_cuda::{CudaBackend, Device, DeviceError, attempt};
use obelysk_protocol::transcript::HashSuite;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

/// A device by name: `cpu`, or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The processors.
    #[default]
    Cpu,
    /// The card of this number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "cpu" {
            return Ok(Self::Cpu);
        }
        let number = text.strip_prefix("cuda:").and_then(|n| n.parse().ok());
        number.map(Self::Cuda).ok_or_else(|| format!("`{text}` is no device: give cpu, or cuda:0 for the first card"))
    }
}

impl DeviceChoice {
    /// Opens the card, if one was chosen; compiled kernels are kept in `folder`.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn open(self, folder: &Path) -> Result<Option<Card>, DeviceError> {
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda(ordinal) => Card::open(ordinal, folder, None).map(Some),
        }
    }
}

/// The engine of a node, on what it computes on.
pub enum DeviceEngine<S: HashSuite, D: Device = Card> {
    /// Processors only.
    Cpu(Box<ProverEngine<S, NodeBackend>>),
    /// A card first.
    Card(Box<CardEngine<S, D>>),
}

impl<S: HashSuite, D: Device> DeviceEngine<S, D> {
    /// An engine for these models, on a device if there is one; `gpu_only` fails items instead of doing them on the processors.
    #[must_use]
    pub fn new(device: Option<D>, gpu_only: bool, folders: Vec<ModelFolder>, weight_bytes: usize) -> Self {
        let host = ProverEngine::new(NodeBackend::default(), folders.clone()).with_weight_bytes(weight_bytes);
        let Some(device) = device else { return Self::Cpu(Box::new(host)) };
        let card = ProverEngine::new(CudaBackend::new(device), folders).with_weight_bytes(weight_bytes);
        Self::Card(Box::new(CardEngine { card, host, lost: AtomicBool::new(false), gpu_only }))
    }

    /// Takes one more model.
    pub fn adopt(&self, folder: ModelFolder) {
        match self {
            Self::Cpu(engine) => engine.adopt(folder),
            Self::Card(engine) => {
                engine.host.adopt(folder.clone());
                engine.card.adopt(folder);
            }
        }
    }
}

impl<S: HashSuite, D: Device> Engine for DeviceEngine<S, D> {
    fn models(&self) -> Vec<[u8; 32]> {
        match self {
            Self::Cpu(engine) => engine.models(),
            Self::Card(engine) => engine.card.models(),
        }
    }

    fn run(&self, request: &WorkRequest, inputs: &[Vec<u8>], progress: &dyn Fn(u32)) -> Result<WorkOutput, EngineError> {
        match self {
            Self::Cpu(engine) => engine.run(request, inputs, progress),
            Self::Card(engine) => engine.run(request, inputs, progress),
        }
    }
}

/// A card, and processors for what it cannot do.
pub struct CardEngine<S: HashSuite, D: Device> {
    card: ProverEngine<S, CudaBackend<D>>,
    host: ProverEngine<S, NodeBackend>,
    lost: AtomicBool,
    gpu_only: bool,
}

impl<S: HashSuite, D: Device> CardEngine<S, D> {
    fn run(&self, request: &WorkRequest, inputs: &[Vec<u8>], progress: &dyn Fn(u32)) -> Result<WorkOutput, EngineError> {
        if !self.lost.load(Ordering::Relaxed) {
            let error = match attempt(|| self.card.run(request, inputs, progress)) {
                Ok(done) => return done,
                Err(error) => error,
            };
            if self.gpu_only {
                return Err(EngineError::Resources(format!("its card ({error})")));
            }
            let full = matches!(error, DeviceError::Full { .. });
            self.lost.store(!full, Ordering::Relaxed);
            let what = if full { "this item is" } else { "the card is lost, everything from now on is" };
            tracing::error!(%error, segment = request.segment, "{what} done on the processors");
        } else if self.gpu_only {
            return Err(EngineError::Resources("its card, which was lost earlier; restart the node".to_owned()));
        }
        self.host.run(request, inputs, progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeSuite, WorkKind, calibration};
    use obelysk_cuda::host::Host;

    #[test]
    fn devices_have_names() {
        assert_eq!("cpu".parse(), Ok(DeviceChoice::Cpu));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        for wrong in ["", "cuda", "cuda:", "cuda:x", "cuda:-1", "CUDA:0", "gpu"] {
            assert!(wrong.parse::<DeviceChoice>().is_err(), "{wrong}");
        }
    }

    /// Devices that fail: one without memory, one without kernels.
    fn broken(folder: &Path) -> Option<[(Host, bool); 2]> {
        match Host::of_text(folder, "", 0) {
            Ok(host) => Some([(host.within(0), false), (host, true)]),
            Err(error) => {
                assert!(std::env::var("REQUIRE_KERNELS").as_deref() != Ok("1"), "REQUIRE_KERNELS=1, and {error}");
                println!("SKIPPED, no device was lost: {error}");
                None
            }
        }
    }

    #[test]
    fn what_a_card_cannot_do_is_done_on_the_processors_or_refused() {
        let place = tempfile::tempdir().expect("folder");
        let model = calibration::folder(&place.path().join("calibration")).expect("made");
        let spec = calibration::spec(model.id, 7).encode();
        let request = WorkRequest { job: [0; 32], model: model.id, kind: WorkKind::Commit, segment: 0, spec, extra: Vec::new() };
        let run = |engine: &DeviceEngine<NodeSuite, Host>| engine.run(&request, &[], &|_| ()).map(|done| done.blob);
        let of = |device, gpu_only| DeviceEngine::new(device, gpu_only, vec![model.clone()], 1 << 30);
        let expected = run(&of(None, false)).expect("done");
        let Some(devices) = broken(place.path()) else { return };
        for (device, lost) in devices {
            let only = of(Some(device.in_order(0)), true);
            let engine = of(Some(device), false);
            assert_eq!((run(&engine), run(&engine)), (Ok(expected.clone()), Ok(expected.clone())));
            let DeviceEngine::Card(card) = &engine else { panic!("a device was given") };
            assert_eq!(card.lost.load(Ordering::Relaxed), lost);
            assert!(matches!(run(&only), Err(EngineError::Resources(_))));
        }
        let adopting = of(None, false);
        adopting.adopt(model.clone());
        assert_eq!(adopting.models(), [model.id]);
    }
}
