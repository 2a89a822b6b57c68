//! What a node computes on: its processors, or a card with the processors behind it.
//!
//! A card that fails in the middle of an item costs that item's time and nothing else: it is done again on the processors, with
//! the same bytes, unless only the card may be used. One that is full drops what it keeps of earlier items and does the item once more
//! first, and stays in use. One that answers no more, or fails several items in a row, is lost and not used again.

use crate::NodeBackend;
use crate::engine::{Engine, EngineError, WorkOutput, WorkRequest};
use crate::model_folder::ModelFolder;
use crate::prover_engine::ProverEngine;
use obelysk_cuda::card::Card;
use obelysk_cuda::{CudaBackend, Device, DeviceError, answers, attempt, compared};
use obelysk_protocol::transcript::HashSuite;
use obelysk_protocol::wire::PERMILLE;
use std::cell::Cell;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Items in a row that a card may fail and still be tried: more would cost every item twice its time.
const MOST_FAILURES: u32 = 3;
/// What there is to say about a card that was lost.
const LOST: &str = "the card was lost: restart the node, and look at its log for what the driver said";

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
    /// Opens the card, if one was chosen, and compares what it computes with the processors; compiled kernels are kept in `folder`.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn open(self, folder: &Path) -> Result<Option<Card>, DeviceError> {
        match self {
            Self::Cpu => Ok(None),
            Self::Cuda(ordinal) => compared(Card::open(ordinal, folder, None)?).map(Some),
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
        let own = device.facts().budget;
        let card = ProverEngine::new(CudaBackend::new(device), folders).with_weight_bytes(weight_bytes).with_own_memory(own);
        let (failures, lost) = (AtomicU32::new(0), AtomicBool::new(false));
        Self::Card(Box::new(CardEngine { card, host, failures, lost, gpu_only }))
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

    fn lost(&self) -> Option<String> {
        match self {
            Self::Card(engine) if engine.gpu_only && engine.is_lost() => Some(LOST.to_owned()),
            Self::Card(_) | Self::Cpu(_) => None,
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
    /// Items in a row that failed on a card which was not full.
    failures: AtomicU32,
    lost: AtomicBool,
    gpu_only: bool,
}

impl<S: HashSuite, D: Device> CardEngine<S, D> {
    fn run(&self, request: &WorkRequest, inputs: &[Vec<u8>], progress: &dyn Fn(u32)) -> Result<WorkOutput, EngineError> {
        let rising = Rising::new(progress);
        if !self.is_lost() {
            let error = match self.on_card(request, inputs, &rising) {
                Ok(done) => return done,
                Err(error) => error,
            };
            self.judge(&error);
            if self.gpu_only {
                return Err(EngineError::Resources(format!("its card ({error})")));
            }
            let what = if self.is_lost() { "the card is lost, everything from now on is" } else { "this item is" };
            tracing::error!(%error, segment = request.segment, "{what} done on the processors");
            rising.again();
        } else if self.gpu_only {
            return Err(EngineError::Resources(format!("its card ({LOST})")));
        }
        self.host.run(request, inputs, &|permille| rising.report(permille))
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// On the card, a second time when it is full with what was kept for other items.
    fn on_card(
        &self,
        request: &WorkRequest,
        inputs: &[Vec<u8>],
        rising: &Rising<'_>,
    ) -> Result<Result<WorkOutput, EngineError>, DeviceError> {
        let once = || attempt(|| self.card.run(request, inputs, &|permille| rising.report(permille)));
        let mut outcome = once();
        if let Err(error) = outcome.as_ref()
            && error.is_full()
        {
            tracing::warn!(%error, segment = request.segment, "what the card keeps of earlier items is dropped, once more");
            self.card.forget_values();
            rising.again();
            outcome = once();
        }
        if outcome.is_ok() {
            self.failures.store(0, Ordering::Relaxed);
        }
        outcome
    }

    /// Whether the card can be used again. What it leaves behind makes room for others, or for the processors.
    fn judge(&self, error: &DeviceError) {
        if error.is_full() {
            self.card.forget_values();
            return;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures >= MOST_FAILURES || !answers(self.card.backend().device()) {
            self.lost.store(true, Ordering::Relaxed);
            self.card.forget_all();
        }
    }
}

/// Progress of an item that may be begun again: it goes on rising from where the attempt before ended, because only what rises renews
/// a lease.
struct Rising<'a> {
    report: &'a dyn Fn(u32),
    /// Where this attempt began.
    floor: Cell<u32>,
    highest: Cell<u32>,
}

impl<'a> Rising<'a> {
    fn new(report: &'a dyn Fn(u32)) -> Self {
        Self { report, floor: Cell::new(0), highest: Cell::new(0) }
    }

    /// What an attempt says of itself, in what is left of the whole.
    fn report(&self, permille: u32) {
        let floor = self.floor.get();
        let permille = floor + permille.min(PERMILLE) * (PERMILLE - floor) / PERMILLE;
        self.highest.set(self.highest.get().max(permille));
        (self.report)(permille);
    }

    /// The next attempt begins, which is progress, too.
    fn again(&self) {
        self.floor.set((self.highest.get() + 1).min(PERMILLE));
        self.report(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeSuite, WorkKind, calibration};
    use obelysk_cuda::host::Host;
    use std::cell::RefCell;

    #[test]
    fn devices_have_names() {
        assert_eq!("cpu".parse(), Ok(DeviceChoice::Cpu));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        for wrong in ["", "cuda", "cuda:", "cuda:x", "cuda:-1", "CUDA:0", "gpu"] {
            assert!(wrong.parse::<DeviceChoice>().is_err(), "{wrong}");
        }
    }

    /// The processor as a device, with these kernels.
    fn host(folder: &Path, text: &str) -> Option<Host> {
        match Host::of_text(folder, text, 0) {
            Ok(host) => Some(host),
            Err(error) => {
                assert!(std::env::var("REQUIRE_KERNELS").as_deref() != Ok("1"), "REQUIRE_KERNELS=1, and {error}");
                println!("SKIPPED, no device did anything: {error}");
                None
            }
        }
    }

    fn request(model: &ModelFolder, kind: WorkKind, segment: u32) -> WorkRequest {
        let spec = calibration::spec(model.id, 7).encode();
        WorkRequest { job: [0; 32], model: model.id, kind, segment, spec, extra: Vec::new() }
    }

    fn engine<D: Device>(device: Option<D>, gpu_only: bool, model: &ModelFolder) -> DeviceEngine<NodeSuite, D> {
        DeviceEngine::new(device, gpu_only, vec![model.clone()], 1 << 30)
    }

    fn of_card<D: Device>(engine: &DeviceEngine<NodeSuite, D>) -> &CardEngine<NodeSuite, D> {
        let DeviceEngine::Card(card) = engine else { panic!("a device was given") };
        card
    }

    #[test]
    fn what_a_card_cannot_do_is_done_on_the_processors_or_refused() {
        let place = tempfile::tempdir().expect("folder");
        let model = calibration::folder(&place.path().join("calibration")).expect("made");
        let item = request(&model, WorkKind::Commit, 0);
        let expected = engine::<Host>(None, false, &model).run(&item, &[], &|_| ()).expect("done").blob;
        let Some(empty) = host(place.path(), "") else { return };
        // Without memory it is full, every time. Without kernels it fails, and is lost when it has done so often enough.
        for (device, lost_after) in [(empty.within(0), u32::MAX), (empty.in_order(0), MOST_FAILURES)] {
            let only = engine(Some(device.in_order(0)), true, &model);
            let both = engine(Some(device), false, &model);
            for round in 1..=MOST_FAILURES {
                let told = RefCell::new(Vec::new());
                let done = both.run(&item, &[], &|permille| told.borrow_mut().push(permille)).expect("done");
                let told = told.into_inner();
                assert_eq!(done.blob, expected);
                assert!(told.is_sorted_by(|a, b| a < b) && told.len() >= 3, "only what rises renews a lease: {told:?}");
                assert!(matches!(only.run(&item, &[], &|_| ()), Err(EngineError::Resources(_))));
                assert_eq!(of_card(&both).is_lost(), round >= lost_after);
                assert_eq!(only.lost().is_some(), round >= lost_after);
                assert_eq!(both.lost(), None, "there are processors");
            }
        }
        let gone = engine(Some(empty.gone()), true, &model);
        assert!(gone.run(&item, &[], &|_| ()).is_err());
        assert!(of_card(&gone).is_lost() && gone.lost().is_some(), "at once");
        let adopting = engine::<Host>(None, false, &model);
        adopting.adopt(model.clone());
        assert_eq!(adopting.models(), [model.id]);
    }

    #[test]
    fn a_card_full_with_earlier_items_drops_them_and_goes_on() {
        let place = tempfile::tempdir().expect("folder");
        let model = calibration::folder(&place.path().join("calibration")).expect("made");
        let Some(device) = host(place.path(), obelysk_cuda::source::text()) else { return };
        let plain = engine::<Host>(None, false, &model);
        let hidden = plain.run(&request(&model, WorkKind::Forward, 0), &[], &|_| ()).expect("done").blob;
        let inputs = [Vec::new(), vec![hidden]];
        let commit = |engine: &DeviceEngine<NodeSuite, Host>, segment: usize| {
            let item = request(&model, WorkKind::Commit, segment as u32);
            engine.run(&item, &inputs[segment], &|_| ()).map(|done| done.blob)
        };
        let need = |segment: usize| {
            let alone = engine(Some(device.in_order(0)), true, &model);
            commit(&alone, segment).expect("done");
            of_card(&alone).card.backend().device().most_used()
        };
        let needs = [need(0), need(1)];
        // The smaller one stays on the card, where the larger one then fits only alone.
        let (small, large) = if needs[0] < needs[1] { (0, 1) } else { (1, 0) };
        let tight = engine(Some(device.within(needs[large])), true, &model);
        for segment in [small, large, small, large] {
            assert_eq!(commit(&tight, segment), commit(&plain, segment), "segment {segment} of {needs:?}");
        }
        assert!(!of_card(&tight).is_lost());
    }
}
