//! Jobs: specifications that clients submit, results that nodes deliver, judged by the coordinator's own checker.

use obelysk_coordinator::ProofChecker;
use obelysk_model::IntegerModel;
use obelysk_model::toy::{self, DecoderToy};
use obelysk_node::engine::{Checker as _, Pieces, Verdict, WorkKind};
use obelysk_node::job_bytes::{Challenge, CommitBlob, JobSpec};
use obelysk_node::{NodeBackend, NodeSuite};
use obelysk_protocol::circuit::{Sequence, segment_count};
use obelysk_protocol::verifier::proof::MODE_FORKED;
use obelysk_protocol::verifier::registered::{Registered, SecurityParams};
use obelysk_shard::registration::register;
use std::sync::LazyLock;

/// Output channels tried for a commit: none, and those of the encoder.
const CHANNELS: [usize; 2] = [0, 12];

/// A model at its coordinator, and a job of it.
pub struct Site {
    /// The model.
    pub model: IntegerModel,
    /// Its registration.
    pub registered: Registered,
    /// Who judges.
    pub checker: ProofChecker<NodeSuite, NodeBackend>,
    /// The job.
    pub spec: JobSpec,
}

impl Site {
    /// Few queries and no grinding: a real opening has few kilobytes, and nothing stands between the bytes and the checks.
    fn new(model: IntegerModel, ids: Vec<u32>, sequences: Vec<Sequence>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let security = SecurityParams { queries: 2, g_seed: 0, g_fold: 0, g_query: 0 };
        let registered = register::<NodeSuite, _>(&NodeBackend::default(), &model, security, [7; 32], folder.path(), &|_| ())
            .expect("registers");
        let spec = JobSpec { model: registered.model_id::<NodeSuite>(), mode: MODE_FORKED, ids, sequences };
        let checker = ProofChecker::new(NodeBackend::default(), [registered.clone()]);
        Self { model, registered, checker, spec }
    }

    /// Segments of the model.
    pub fn segments(&self) -> usize {
        segment_count(&self.registered.descriptor)
    }
}

/// An encoder of no layers: embedding and head.
pub static ENCODER: LazyLock<Site> =
    LazyLock::new(|| Site::new(toy::model_of(5, toy::Shape { layers: 0, ..toy::SMALL }), vec![1, 2, 3], Vec::new()));

/// A decoder, with a prompt and the completion it gives.
pub static DECODER: LazyLock<Site> = LazyLock::new(|| {
    let model = toy::decoder(&DecoderToy::default());
    let d = toy::decoder_of(&model);
    let ids = obelysk_model::infer::decoder::generate(d, &model.weights, &[3, 1], 1, &[]).expect("generates");
    let ids = [vec![3, 1], ids].concat();
    Site::new(model, ids, vec![Sequence { prompt: 2, completion: 1 }])
});

/// The first byte chooses a kind of blob, the rest is one: what is read is what would be written.
pub fn jobs(data: &[u8]) -> bool {
    let Some((choice, blob)) = data.split_first() else { return false };
    match choice % 4 {
        0 => {
            let spec = JobSpec::decode(blob);
            // Whatever it says, an answer: these models are too weak for any job.
            let judged = [&*ENCODER, &*DECODER].map(|site| site.checker.segments(blob).is_ok());
            assert_eq!(judged, [false; 2]);
            let Ok(spec) = spec else { return false };
            assert_eq!(spec.encode(), blob);
            true
        }
        1 => {
            let Ok(challenge) = Challenge::decode(blob) else { return false };
            assert_eq!(challenge.encode(), blob);
            for site in [&*ENCODER, &*DECODER] {
                let _ = challenge.open::<NodeSuite>(&site.registered, &site.spec);
            }
            true
        }
        channels => {
            let Ok(commit) = CommitBlob::decode(blob, CHANNELS[usize::from(channels - 2)]) else { return false };
            assert_eq!(commit.encode(), blob);
            true
        }
    }
}

/// Splits a blob with its length of four bytes from the front; what is too short is given as it is.
pub(super) fn next<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let Some((length, after)) = rest.split_first_chunk::<4>() else { return std::mem::take(rest) };
    let (blob, after) = after.split_at(after.len().min(u32::from_le_bytes(*length) as usize));
    *rest = after;
    blob
}

/// A work item's whole surroundings, from nodes that may all lie: model, kind and segment in one byte each, then with their lengths two
/// inputs, the public bytes, and the result. Taken when the checker accepts it.
pub fn results(data: &[u8]) -> bool {
    let Some(([model, kind, segment], mut rest)) = data.split_first_chunk::<3>() else { return false };
    let site = [&*ENCODER, &*DECODER][usize::from(model % 2)];
    let (spec, segments) = (site.spec.encode(), site.segments());
    let segment = usize::from(*segment) % segments;
    let [before, after, extra, output] = std::array::from_fn(|_| next(&mut rest));
    if kind % 5 == 4 {
        // The last step: the pieces of every segment, all the same. Never taken, as these models are too weak to be published.
        let [commits, proves, opens] = [before, after, output].map(|piece| vec![piece; segments]);
        let _ = site.checker.challenge(&spec, &commits);
        let pieces = Pieces { commits: &commits, challenge: extra, proves: &proves, opens: &opens };
        return site.checker.finish(&spec, pieces).is_ok();
    }
    let kind = WorkKind::ALL[usize::from(kind % 5)];
    // The first segment has nothing before it.
    let inputs = [before, after];
    let inputs = if segment == 0 { &inputs[1..] } else { &inputs[..] };
    site.checker.check(&spec, kind, segment as u32, inputs, extra, output) == Verdict::Accept
}
