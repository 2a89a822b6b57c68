//! Whole jobs through engine and checker, without a network: encoders and decoders give the bytes of one process, and what a
//! node returns in error is refused where it is checked.

use obelysk_coordinator::ProofChecker;
use obelysk_model::infer::decoder::generate;
use obelysk_model::toy::{self, DecoderToy};
use obelysk_model::{IntegerModel, infer};
use obelysk_node::engine::{CheckError, Checker, Engine, EngineError, Pieces, Verdict, WorkKind, WorkRequest};
use obelysk_node::job_bytes::JobSpec;
use obelysk_node::{ModelFolder, NodeBackend, NodeSuite, ProverEngine};
use obelysk_protocol::circuit::Sequence;
use obelysk_protocol::verifier::aggregate::verify_bytes;
use obelysk_protocol::verifier::proof::MODE_FORKED;
use obelysk_protocol::verifier::registered::SecurityParams;
use obelysk_shard::local;
use obelysk_shard::registration::register;
use tempfile::TempDir;

/// A model on a node and at its coordinator.
struct Site {
    folder: ModelFolder,
    engine: ProverEngine<NodeSuite, NodeBackend>,
    checker: ProofChecker<NodeSuite, NodeBackend>,
    _dir: TempDir,
}

impl Site {
    fn new(model: &IntegerModel) -> Self {
        let dir = tempfile::tempdir().unwrap();
        model.save(dir.path(), None).unwrap();
        let security = SecurityParams::standard(model.descriptor.blowup_log());
        let registered =
            register::<NodeSuite, _>(&NodeBackend::default(), model, security, [7; 32], dir.path(), &|_| ()).unwrap();
        std::fs::write(dir.path().join("registered.obr"), registered.write()).unwrap();
        let folder = ModelFolder::open::<NodeSuite>(dir.path()).unwrap();
        let engine = ProverEngine::new(NodeBackend::default(), [folder.clone()]);
        let checker = ProofChecker::new(NodeBackend::default(), [registered]);
        Self { folder, engine, checker, _dir: dir }
    }

    fn spec(&self, ids: Vec<u32>, sequences: Vec<Sequence>) -> JobSpec {
        JobSpec { model: self.folder.id, mode: MODE_FORKED, ids, sequences }
    }

    fn run(&self, spec: &JobSpec, kind: WorkKind, segment: u32, inputs: &[&[u8]], extra: &[u8]) -> Result<Vec<u8>, EngineError> {
        let request = WorkRequest { job: [0; 32], model: spec.model, kind, segment, spec: spec.encode(), extra: extra.to_vec() };
        let inputs: Vec<Vec<u8>> = inputs.iter().map(|b| b.to_vec()).collect();
        self.engine.run(&request, &inputs, &|_| ()).map(|out| out.blob)
    }
}

/// Everything nodes gave for a job.
struct Job {
    spec: JobSpec,
    hidden: Vec<Vec<u8>>,
    commits: Vec<Vec<u8>>,
    challenge: Vec<u8>,
    proves: Vec<Vec<u8>>,
    opens: Vec<Vec<u8>>,
}

fn slices(blobs: &[Vec<u8>]) -> Vec<&[u8]> {
    blobs.iter().map(Vec::as_slice).collect()
}

impl Job {
    /// Hidden state before a segment, if there is one.
    fn before(&self, s: usize) -> Vec<&[u8]> {
        s.checked_sub(1).map(|s| self.hidden[s].as_slice()).into_iter().collect()
    }

    /// The same and the one after.
    fn around(&self, s: usize) -> Vec<&[u8]> {
        [self.before(s), vec![&self.hidden[s]]].concat()
    }

    fn run(site: &Site, spec: JobSpec) -> Self {
        let bytes = spec.encode();
        let segments = site.checker.segments(&bytes).unwrap() as usize;
        let (hidden, commits, proves, opens) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut job = Self { spec, hidden, commits, challenge: Vec::new(), proves, opens };
        let check = |kind, s: usize, inputs: &[&[u8]], extra: &[u8], output: &[u8]| {
            assert_eq!(site.checker.check(&bytes, kind, s as u32, inputs, extra, output), Verdict::Accept, "{kind:?} {s}");
        };
        for s in 0..segments {
            let blob = site.run(&job.spec, WorkKind::Forward, s as u32, &job.before(s), &[]).unwrap();
            check(WorkKind::Forward, s, &job.before(s), &[], &blob);
            job.hidden.push(blob);
            let blob = site.run(&job.spec, WorkKind::Commit, s as u32, &job.before(s), &[]).unwrap();
            check(WorkKind::Commit, s, &job.around(s), &[], &blob);
            job.commits.push(blob);
        }
        job.challenge = site.checker.challenge(&bytes, &slices(&job.commits)).unwrap();
        for s in 0..segments {
            let claims = site.run(&job.spec, WorkKind::Prove, s as u32, &job.before(s), &job.challenge).unwrap();
            check(WorkKind::Prove, s, &job.around(s), &job.challenge, &claims);
            let inputs = [job.before(s), vec![&claims]].concat();
            let opening = site.run(&job.spec, WorkKind::Open, s as u32, &inputs, &job.challenge).unwrap();
            check(WorkKind::Open, s, &inputs, &job.challenge, &opening);
            job.proves.push(claims);
            job.opens.push(opening);
        }
        job
    }

    fn finish(&self, site: &Site) -> Result<Vec<u8>, CheckError> {
        let [commits, proves, opens] = [&self.commits, &self.proves, &self.opens].map(|b| slices(b));
        let pieces = Pieces { commits: &commits, challenge: &self.challenge, proves: &proves, opens: &opens };
        site.checker.finish(&self.spec.encode(), pieces)
    }
}

/// The bytes of a job are those of one process, and verify.
fn same_as_one_process(site: &Site, job: &Job) {
    let proof = job.finish(site).unwrap();
    let loaded = site.folder.load::<NodeSuite, NodeBackend>().unwrap();
    let alone = local::prove(&NodeBackend::default(), &loaded, &job.spec.input()).unwrap().0.write();
    assert!(proof == alone, "a job's proof has other bytes than one process writes");
    assert_eq!(verify_bytes::<NodeSuite>(&site.folder.registered, &proof).unwrap().sequences, job.spec.sequences);
}

fn decoder_site() -> (Site, JobSpec) {
    let toy = DecoderToy { seed: 5, head_norm: true, limbs: 2, window: 2, accumulators: 2, ..DecoderToy::default() };
    let model = toy::decoder(&toy);
    let d = toy::decoder_of(&model);
    let with = |prompt: &[u32], n: usize| [prompt.to_vec(), generate(d, &model.weights, prompt, n, &[]).unwrap()].concat();
    let ids = [with(&[3, 1], 2), with(&[7], 1)].concat();
    let site = Site::new(&model);
    let sequences = vec![Sequence { prompt: 2, completion: 2 }, Sequence { prompt: 1, completion: 1 }];
    let spec = site.spec(ids, sequences);
    (site, spec)
}

#[test]
fn an_encoder_s_job_is_the_proof_of_one_process() {
    let site = Site::new(&toy::model(5));
    let job = Job::run(&site, site.spec(vec![1, 2, 3], Vec::new()));
    same_as_one_process(&site, &job);
}

#[test]
fn a_decoder_s_job_is_the_proof_of_one_process_and_errors_are_found_where_they_are_made() {
    let (site, spec) = decoder_site();
    let job = Job::run(&site, spec);
    same_as_one_process(&site, &job);
    let bytes = job.spec.encode();
    let check = |kind, s: usize, inputs: &[&[u8]], output: &[u8]| {
        site.checker.check(&bytes, kind, s as u32, inputs, &job.challenge, output)
    };
    let changed = |blob: &[u8]| {
        let mut out = blob.to_vec();
        out[0] ^= 1;
        out
    };
    // A state of another length, or of another kind of model.
    for bad in [&job.hidden[0][1..], &job.hidden[0][..job.hidden[0].len() / 3 * 2], &[]] {
        assert!(matches!(check(WorkKind::Forward, 0, &[], bad), Verdict::Reject(_)));
    }
    // A commit of another state.
    let other = changed(&job.hidden[1]);
    let verdict = check(WorkKind::Commit, 1, &[&job.hidden[0], &other], &job.commits[1]);
    assert!(matches!(verdict, Verdict::Dispute(_)), "{verdict:?}");
    // A head that offers sums.
    let last = job.commits.len() - 1;
    let verdict = check(WorkKind::Commit, last, &job.around(last), &[&job.commits[last][..], &[0; 8]].concat());
    assert!(matches!(verdict, Verdict::Reject(_)), "{verdict:?}");
    // Values of every limb of both boundaries are compared with the states.
    for limb in 0..6 {
        let mut claims = job.proves[1].clone();
        claims[16 * limb] ^= 1;
        let Verdict::Reject(reason) = check(WorkKind::Prove, 1, &job.around(1), &claims) else { panic!("limb {limb}") };
        assert!(reason.contains("boundary"), "{reason}");
    }
    // Pieces that do not continue from each other.
    let mut torn = job;
    torn.proves[1][0] ^= 1;
    assert!(matches!(torn.finish(&site), Err(CheckError::Pieces(_))));
}

#[test]
fn what_is_no_input_of_a_decoder_is_refused_by_coordinator_and_node() {
    let (site, spec) = decoder_site();
    let cuts = |cuts: &[(u32, u32)]| {
        let sequences = cuts.iter().map(|&(prompt, completion)| Sequence { prompt, completion }).collect();
        JobSpec { sequences, ..spec.clone() }
    };
    let ids = |ids: Vec<u32>| JobSpec { ids, ..spec.clone() };
    let bad = [
        cuts(&[]),
        cuts(&[(6, 0)]),
        cuts(&[(0, 6)]),
        cuts(&[(2, 2), (1, 2)]),
        cuts(&[(u32::MAX, 7)]),
        cuts(&[(2, 2), (u32::MAX, u32::MAX)]),
        ids(vec![3, 1, 2, 21, 7, 2]),
        ids(spec.ids[..5].to_vec()),
    ];
    for spec in bad {
        assert!(matches!(site.checker.segments(&spec.encode()), Err(CheckError::Spec(_))), "{spec:?}");
        for segment in 0..4 {
            let outcome = site.run(&spec, WorkKind::Commit, segment, &[&[]], &[]);
            assert!(matches!(outcome, Err(EngineError::Malformed(_))), "{spec:?}: {outcome:?}");
        }
    }
    // An encoder takes no sequences.
    let site = Site::new(&toy::model(5));
    let spec = site.spec(vec![1, 2], vec![Sequence { prompt: 1, completion: 1 }]);
    assert!(matches!(site.checker.segments(&spec.encode()), Err(CheckError::Spec(_))));
    assert!(matches!(site.run(&spec, WorkKind::Forward, 0, &[], &[]), Err(EngineError::Malformed(_))));
}

#[test]
fn a_node_refuses_a_completion_that_is_not_the_model_s() {
    let (site, mut spec) = decoder_site();
    let last = spec.ids.last_mut().unwrap();
    *last = (*last + 1) % 21;
    let loaded = site.folder.load::<NodeSuite, NodeBackend>().unwrap();
    let model = IntegerModel { descriptor: loaded.model.descriptor().clone(), weights: loaded.model.all().unwrap() };
    let trace = infer::decoder::run(&model, &spec.input()).unwrap();
    let before = obelysk_node::job_bytes::hidden_to_bytes(&model.descriptor, trace.entering(3));
    let outcome = site.run(&spec, WorkKind::Commit, 3, &[&before], &[]);
    let Err(EngineError::Malformed(reason)) = outcome else { panic!("{outcome:?}") };
    assert!(reason.contains("completion"), "{reason}");
}
