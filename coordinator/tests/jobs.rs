//! Whole jobs through engine and checker, without a network: encoders and decoders give the bytes of one process, and what a
//! node returns in error is refused where it is checked.

use obelysk_coordinator::ProofChecker;
use obelysk_model::infer::decoder::generate;
use obelysk_model::toy::{self, DecoderToy};
use obelysk_model::{IntegerModel, infer};
use obelysk_node::engine::{CheckError, Checker, Engine, EngineError, Joined, Pieces, Verdict, WorkKind, WorkRequest};
use obelysk_node::job_bytes::JobSpec;
use obelysk_node::joint_bytes::{JointRecord, JointStep};
use obelysk_node::{ModelFolder, NodeBackend, NodeSuite, ProverEngine};
use obelysk_protocol::circuit::Sequence;
use obelysk_protocol::field::{ONE, QM31};
use obelysk_protocol::verifier::aggregate::verify_bytes;
use obelysk_protocol::verifier::mode::Mode;
use obelysk_protocol::verifier::proof::{MODE_AGGREGATED, MODE_FORKED};
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
        let engine = engine(&folder);
        let checker = ProofChecker::new(NodeBackend::default(), [registered]);
        Self { folder, engine, checker, _dir: dir }
    }

    fn spec(&self, ids: Vec<u32>, sequences: Vec<Sequence>) -> JobSpec {
        JobSpec { model: self.folder.id, mode: MODE_FORKED, ids, sequences }
    }

    fn run(&self, spec: &JobSpec, kind: WorkKind, segment: u32, inputs: &[&[u8]], extra: &[u8]) -> Result<Vec<u8>, EngineError> {
        run(&self.engine, spec, (kind, segment), inputs, extra)
    }
}

type ProofEngine = ProverEngine<NodeSuite, NodeBackend>;

fn engine(folder: &ModelFolder) -> ProofEngine {
    ProverEngine::new(NodeBackend::default(), [folder.clone()])
}

fn run(
    engine: &ProofEngine,
    spec: &JobSpec,
    (kind, segment): (WorkKind, u32),
    inputs: &[&[u8]],
    extra: &[u8],
) -> Result<Vec<u8>, EngineError> {
    let request = WorkRequest { job: [0; 32], model: spec.model, kind, segment, spec: spec.encode(), extra: extra.to_vec() };
    let inputs: Vec<Vec<u8>> = inputs.iter().map(|b| b.to_vec()).collect();
    engine.run(&request, &inputs, &|_| ()).map(|out| out.blob)
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

    fn with_pieces<T>(&self, f: impl FnOnce(Pieces<'_>) -> T) -> T {
        let [commits, proves, opens] = [&self.commits, &self.proves, &self.opens].map(|b| slices(b));
        f(Pieces { commits: &commits, challenge: &self.challenge, proves: &proves, opens: &opens })
    }

    fn finish(&self, site: &Site) -> Result<Vec<u8>, CheckError> {
        self.with_pieces(|pieces| site.checker.finish(&self.spec.encode(), pieces))
    }

    /// What a joint item of a segment takes.
    fn joint_inputs(&self, s: usize) -> Vec<&[u8]> {
        [self.before(s), vec![&self.proves[s], &self.opens[s], &self.challenge]].concat()
    }

    fn join(&self, site: &Site, step: &[u8], parts: &[Vec<u8>]) -> Result<Joined, CheckError> {
        self.with_pieces(|pieces| site.checker.join(&self.spec.encode(), pieces, step, &slices(parts)))
    }

    fn check_joint(&self, site: &Site, s: usize, step: &[u8], (before, part): (&[u8], &[u8])) -> Verdict {
        let inputs = [self.joint_inputs(s), vec![before]].concat();
        site.checker.check(&self.spec.encode(), WorkKind::Joint, s as u32, &inputs, step, part)
    }

    /// All joint steps: `engine` says who does which segment's part in a step; `look` sees every step with the parts before it and in it.
    fn aggregate<'a>(
        &self,
        site: &'a Site,
        engine: impl Fn(usize, usize) -> &'a ProofEngine,
        mut look: impl FnMut(&JointRecord, &[u8], &[Vec<u8>], &[Vec<u8>]),
    ) -> Vec<u8> {
        let mut before = self.opens.clone();
        let mut answer = self.join(site, &[], &[]).unwrap();
        for number in 0.. {
            let step = match answer {
                Joined::Proof(proof) => return proof,
                Joined::Step(step) => step,
            };
            let part = |s: usize| {
                let about = (WorkKind::Joint, s as u32);
                let part = run(engine(number, s), &self.spec, about, &self.joint_inputs(s), &step).unwrap();
                assert_eq!(self.check_joint(site, s, &step, (&before[s], &part)), Verdict::Accept, "step {number}, segment {s}");
                part
            };
            let parts: Vec<Vec<u8>> = (0..self.proves.len()).map(part).collect();
            look(&JointRecord::decode(&step).unwrap(), &step, &before, &parts);
            answer = self.join(site, &step, &parts).unwrap();
            before = parts;
        }
        unreachable!("steps end with a proof")
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

fn alone(site: &Site, spec: &JobSpec, mode: Mode) -> Vec<u8> {
    let loaded = site.folder.load::<NodeSuite, NodeBackend>().unwrap();
    local::prove_in(&NodeBackend::default(), &loaded, (&spec.input(), mode), &|_, _, _| ()).unwrap().0.write()
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

#[test]
fn a_job_in_mode_2_is_the_proof_of_one_process_whoever_does_which_step() {
    for (site, spec) in [decoder_site(), encoder_site()] {
        let job = Job::run(&site, JobSpec { mode: MODE_AGGREGATED, ..spec });
        let alone = alone(&site, &job.spec, Mode::Aggregated);
        let fresh: Vec<ProofEngine> = (0..3).map(|_| engine(&site.folder)).collect();
        let mut steps = 0;
        let proof = job.aggregate(&site, |_, _| &site.engine, |_, _, _, _| steps += 1);
        assert!(proof == alone, "the engine that did all before");
        let h = usize::from(site.folder.registered.descriptor.row_log());
        assert_eq!(steps, h + 3);
        // Every segment changes hands at every step: whoever takes it over has nothing of it, or the state of an earlier step.
        let proof = job.aggregate(&site, |step, s| &fresh[(step + s) % 3], |_, _, _, _| ());
        assert!(proof == alone, "other engines in turn");
        // Once more from the first step, by those who have done all steps already.
        assert!(job.aggregate(&site, |step, s| &fresh[(step * s) % 3], |_, _, _, _| ()) == alone);
        verify_bytes::<NodeSuite>(&site.folder.registered, &proof).unwrap();
        assert!(matches!(job.finish(&site), Err(CheckError::Pieces(_))));
    }
}

/// Positions follow from the shares of all segments: when another segment's is made again, they change and nothing else does.
#[test]
fn an_engine_that_has_answered_answers_at_other_positions_as_a_fresh_one_does() {
    let (site, spec) = decoder_site();
    let job = Job::run(&site, JobSpec { mode: MODE_AGGREGATED, ..spec });
    let (h, mut answered) = (usize::from(site.folder.registered.descriptor.row_log()), 0);
    let answer =
        |engine: &ProofEngine, step: &[u8]| run(engine, &job.spec, (WorkKind::Joint, 1), &job.joint_inputs(1), step).unwrap();
    let look = |record: &JointRecord, step: &[u8], _: &[Vec<u8>], parts: &[Vec<u8>]| {
        if record.step(h) == JointStep::Answers {
            let other = JointRecord { positions: record.positions[1..].to_vec(), ..record.clone() }.encode();
            let fresh = answer(&engine(&site.folder), &other);
            assert!(fresh != parts[1] && answer(&site.engine, &other) == fresh, "other positions");
            assert!(answer(&site.engine, &other) == fresh, "the same again");
            assert!(answer(&site.engine, step) == parts[1], "and back");
            answered += 1;
        }
    };
    job.aggregate(&site, |_, _| &site.engine, look);
    assert_eq!(answered, 1);
}

fn encoder_site() -> (Site, JobSpec) {
    let site = Site::new(&toy::model(5));
    let spec = site.spec(vec![1, 2, 3], Vec::new());
    (site, spec)
}

/// Adds 1 to one of a part's elements.
fn bumped(part: &[u8], at: usize) -> Vec<u8> {
    let (mut out, at) = (part.to_vec(), 32 + 16 * at);
    let mut limbs: Vec<u32> = out[at..at + 16].chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
    limbs[0] = (limbs[0] + 1) % ((1 << 31) - 1);
    out[at..at + 16].copy_from_slice(&limbs.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
    out
}

#[test]
fn a_wrong_part_is_refused_at_its_step_and_a_false_history_is_a_dispute() {
    let (site, spec) = decoder_site();
    let job = Job::run(&site, JobSpec { mode: MODE_AGGREGATED, ..spec });
    let (h, mut seen) = (usize::from(site.folder.registered.descriptor.row_log()), Vec::new());
    job.aggregate(
        &site,
        |_, _| &site.engine,
        |record, step, before, parts| {
            for s in [0, parts.len() - 1] {
                let refused = |part: &[u8]| match job.check_joint(&site, s, step, (&before[s], part)) {
                    Verdict::Reject(reason) => reason,
                    other => panic!("{:?} of segment {s}: {other:?}", record.step(h)),
                };
                let bad = match record.step(h) {
                    JointStep::Answers => {
                        let mut bad = parts[s].clone();
                        let last = bad.len() - 1;
                        bad[last] ^= 1;
                        bad
                    }
                    _ => bumped(&parts[s], 0),
                };
                seen.push(refused(&bad));
                refused(&parts[s][..parts[s].len() - 1]);
                refused(&[&parts[s][..], &[0]].concat());
                // Another history than the one accepted: one of two is wrong, and this cannot say which.
                let mut other = parts[s].clone();
                other[0] ^= 1;
                assert!(matches!(job.check_joint(&site, s, step, (&before[s], &other)), Verdict::Dispute(_)));
                assert!(matches!(job.check_joint(&site, s, step, (&job.proves[s], &parts[s])), Verdict::Dispute(_)));
            }
        },
    );
    for what in ["round contradicts the segment's claim", "values at the joint point", "combined row contradicts", "oracle"] {
        assert!(seen.iter().any(|reason| reason.contains(what)), "{what}: {seen:?}");
    }
}

#[test]
fn a_false_share_that_has_the_right_value_is_found_by_the_answers() {
    let (site, spec) = decoder_site();
    let job = Job::run(&site, JobSpec { mode: MODE_AGGREGATED, ..spec });
    let h = usize::from(site.folder.registered.descriptor.row_log());
    let s = 1;
    let mut forged = None;
    job.aggregate(
        &site,
        |_, _| &site.engine,
        |record, step, before, parts| match record.step(h) {
            JointStep::Fold => {
                // Moves along a direction that the value at the joint point does not see: eq(ζ, 0) and eq(ζ, 1) by ζ_0.
                let z = record.zeta[0];
                let mut row = felts(&parts[s][32..]);
                row[0] += z;
                row[1] += z - ONE;
                let part = [&parts[s][..32], &bytes_of(&row)].concat();
                assert_eq!(job.check_joint(&site, s, step, (&before[s], &part)), Verdict::Accept);
                forged = Some(part);
            }
            JointStep::Answers => {
                // Had it been accepted, its author's answers would give it away, under any challenges that followed.
                let forged = forged.as_ref().unwrap();
                let answers = [blake3::hash(forged).as_bytes(), &parts[s][32..]].concat();
                let Verdict::Reject(reason) = job.check_joint(&site, s, step, (forged, &answers)) else { panic!("accepted") };
                assert!(reason.contains("other data"), "{reason}");
                // An honest successor does not vouch for it.
                assert!(matches!(job.check_joint(&site, s, step, (forged, &parts[s])), Verdict::Dispute(_)));
            }
            _ => {}
        },
    );
}

fn felts(data: &[u8]) -> Vec<QM31> {
    let mut r = obelysk_protocol::verifier::bytes::Reader::new(data);
    (0..data.len() / 16).map(|_| r.felt().unwrap()).collect()
}

fn bytes_of(values: &[QM31]) -> Vec<u8> {
    let mut out = Vec::new();
    obelysk_protocol::verifier::bytes::put_felts(&mut out, values);
    out
}

/// Claims that verify in their fork and are not those of the values: in mode 2 nothing before the opening of all refuses them, so
/// whoever would go on from them must.
#[test]
fn a_node_does_not_go_on_from_claims_that_its_values_do_not_have() {
    let (site, spec) = decoder_site();
    let job = Job::run(&site, JobSpec { mode: MODE_AGGREGATED, ..spec });
    let mut other = job.challenge.clone();
    // Another root for segment 1, as a liar's commit would give: the seed is another, the fork with it.
    let root = other.len() - 8 - 32 * (job.commits.len() - 1);
    other[root] ^= 1;
    let step = match job.join(&site, &[], &[]).unwrap() {
        Joined::Step(step) => step,
        Joined::Proof(_) => panic!("no step"),
    };
    for (kind, extra, mut inputs) in [
        (WorkKind::Open, other.clone(), [job.before(1), vec![&job.proves[1]]].concat()),
        (WorkKind::Joint, step, job.joint_inputs(1)),
    ] {
        if kind == WorkKind::Joint {
            *inputs.last_mut().unwrap() = &other;
        }
        let outcome = run(&engine(&site.folder), &job.spec, (kind, 1), &inputs, &extra);
        assert!(matches!(outcome, Err(EngineError::Disagrees(_) | EngineError::Malformed(_))), "{outcome:?}");
    }
}
