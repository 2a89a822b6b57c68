//! The opening of all segments (mode 2): records that go out with its steps, parts that nodes deliver, judged by the coordinator's checker.

use super::jobs::{DECODER, Site, next};
use obelysk_node::engine::{Checker as _, Engine as _, Joined, Pieces, Verdict, WorkKind, WorkRequest};
use obelysk_node::job_bytes::JobSpec;
use obelysk_node::joint_bytes::JointRecord;
use obelysk_node::{ModelFolder, NodeBackend, NodeSuite, ProverEngine};
use obelysk_protocol::verifier::proof::MODE_AGGREGATED;
use obelysk_shard::registration::register;
use std::sync::LazyLock;

/// One joint step as it was.
pub struct Step {
    /// Its record.
    pub record: Vec<u8>,
    /// Each segment's part in the step before; in the first step, what it opened.
    pub before: Vec<Vec<u8>>,
    /// Each segment's part.
    pub parts: Vec<Vec<u8>>,
}

/// A job in mode 2 up to its joint steps, which are its honest course.
pub struct Joint {
    spec: Vec<u8>,
    hidden: Vec<Vec<u8>>,
    commits: Vec<Vec<u8>>,
    challenge: Vec<u8>,
    proves: Vec<Vec<u8>>,
    opens: Vec<Vec<u8>>,
    /// Steps in order.
    pub course: Vec<Step>,
}

/// Of the toy decoder.
pub static JOINT: LazyLock<Joint> = LazyLock::new(|| Joint::run(&DECODER));

fn slices(blobs: &[Vec<u8>]) -> Vec<&[u8]> {
    blobs.iter().map(Vec::as_slice).collect()
}

impl Joint {
    fn run(site: &Site) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        site.model.save(folder.path(), None).expect("saved");
        let security = site.registered.security;
        let registered =
            register::<NodeSuite, _>(&NodeBackend::default(), &site.model, security, [7; 32], folder.path(), &|_| ())
                .expect("registers");
        std::fs::write(folder.path().join("registered.obr"), registered.write()).expect("written");
        let opened = ModelFolder::open::<NodeSuite>(folder.path()).expect("opens");
        let engine = ProverEngine::<NodeSuite, _>::new(NodeBackend::default(), [opened]);
        let spec = JobSpec { mode: MODE_AGGREGATED, ..site.spec.clone() }.encode();
        let work = |kind, s: usize, inputs: &[&[u8]], extra: &[u8]| {
            let (model, spec, extra) = (site.spec.model, spec.clone(), extra.to_vec());
            let request = WorkRequest { job: [0; 32], model, kind, segment: s as u32, spec, extra };
            let inputs: Vec<Vec<u8>> = inputs.iter().map(|blob| blob.to_vec()).collect();
            engine.run(&request, &inputs, &|_| ()).expect("works").blob
        };
        let lists = || (Vec::new(), Vec::new(), Vec::new());
        let ((hidden, commits, proves), (opens, challenge, course)) = (lists(), (Vec::new(), Vec::new(), Vec::new()));
        let mut joint = Self { spec: spec.clone(), hidden, commits, challenge, proves, opens, course };
        for s in 0..site.segments() {
            let hidden = work(WorkKind::Forward, s, &joint.before(s), &[]);
            let commit = work(WorkKind::Commit, s, &joint.before(s), &[]);
            joint.hidden.push(hidden);
            joint.commits.push(commit);
        }
        joint.challenge = site.checker.challenge(&spec, &slices(&joint.commits)).expect("drawn");
        for s in 0..site.segments() {
            let claims = work(WorkKind::Prove, s, &joint.before(s), &joint.challenge);
            let opened = work(WorkKind::Open, s, &[joint.before(s), vec![&claims]].concat(), &joint.challenge);
            joint.proves.push(claims);
            joint.opens.push(opened);
        }
        let (mut before, mut parts, mut record) = (joint.opens.clone(), Vec::new(), Vec::new());
        // The end is an error: a proof of so weak a model is never published.
        while let Ok(Joined::Step(step)) = joint.join(&record, &slices(&parts)) {
            record = step;
            parts = (0..site.segments()).map(|s| work(WorkKind::Joint, s, &joint.inputs(s), &record)).collect();
            joint.course.push(Step { record: record.clone(), before, parts: parts.clone() });
            before = parts.clone();
        }
        joint
    }

    /// Hidden state before a segment, if there is one.
    fn before(&self, s: usize) -> Vec<&[u8]> {
        s.checked_sub(1).map(|s| self.hidden[s].as_slice()).into_iter().collect()
    }

    /// What a segment's joint item takes.
    fn inputs(&self, s: usize) -> Vec<&[u8]> {
        [self.before(s), vec![&self.proves[s], &self.opens[s], &self.challenge]].concat()
    }

    fn join(&self, record: &[u8], parts: &[&[u8]]) -> Result<Joined, String> {
        let [commits, proves, opens] = [&self.commits, &self.proves, &self.opens].map(|blobs| slices(blobs));
        let pieces = Pieces { commits: &commits, challenge: &self.challenge, proves: &proves, opens: &opens };
        DECODER.checker.join(&self.spec, pieces, record, parts).map_err(|e| e.to_string())
    }
}

/// The first byte chooses: the bytes of a record; a record, a part before and a part of the segment that the second byte names, before the
/// checker; a record and the parts of all segments, from which the coordinator goes on.
pub fn joint(data: &[u8]) -> bool {
    let Some(([choice, segment], mut rest)) = data.split_first_chunk::<2>() else { return false };
    let (joint, segment) = (&*JOINT, usize::from(*segment) % DECODER.segments());
    match choice % 3 {
        0 => {
            let Ok(record) = JointRecord::decode(rest) else { return false };
            assert_eq!(record.encode(), rest);
            let _ = (record.step(usize::from(*choice)), record.own(&record.delta, segment), record.own(&record.values, segment));
            record.fits(DECODER.segments(), &DECODER.registered.opening())
        }
        1 => {
            let [record, before, part] = std::array::from_fn(|_| next(&mut rest));
            let inputs = [joint.inputs(segment), vec![before]].concat();
            DECODER.checker.check(&joint.spec, WorkKind::Joint, segment as u32, &inputs, record, part) == Verdict::Accept
        }
        _ => {
            let record = next(&mut rest);
            let parts: Vec<&[u8]> = (0..DECODER.segments()).map(|_| next(&mut rest)).collect();
            match joint.join(record, &parts) {
                Ok(Joined::Proof(_)) => panic!("a proof of a weak model was published"),
                Ok(Joined::Step(_)) => true,
                Err(_) => false,
            }
        }
    }
}
