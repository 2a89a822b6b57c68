//! A coordinator as a process of its own, ended by SIGKILL in each phase of a job and started again on the same folder and port: its
//! nodes and its client come back, and nothing that was accepted is run again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::bucket_server::{BUCKET, BucketServer, KEY_ID, SECRET, key_file};
use crate::loopback::{Faulty, Outcome, PATIENCE, config, joined, start};
use crate::toy::{MODEL, expected_proof, joint_spec, spec, toy};
use obelysk_coordinator::blobs::StoreSettings;
use obelysk_coordinator::consensus::Solo;
use obelysk_coordinator::core::Work;
use obelysk_coordinator::identity::{FileStorage, TokenOrder};
use obelysk_coordinator::ledger::SharedLedger;
use obelysk_coordinator::{Admissions, Blobs, Coordinator, CoordinatorConfig, Facts, submit_remote};
use obelysk_node::engine::{WorkKind, WorkRequest};
use obelysk_node::transport::{CLOSE_DONE, connect, fetch, read_message, store, write_message};
use obelysk_node::{CoordinatorAddress, IdentityStore, Node, NodeConfig};
use obelysk_protocol::wire::{BlobRef, ClientHello, JobDone, Message, SubmitOnce};

/// Tell the child where it lives.
const FOLDER: &str = "OBELYSK_TEST_FOLDER";
const PORT: &str = "OBELYSK_TEST_PORT";
/// ... and where the server of its bucket is, if it has one.
const BUCKET_AT: &str = "OBELYSK_TEST_BUCKET_AT";
/// Each work item takes this long, so that the end meets it at work.
const WORK: Duration = Duration::from_millis(120);

#[test]
#[ignore = "the body of the child processes below"]
fn child_coordinator() {
    let (Ok(folder), Ok(port)) = (std::env::var(FOLDER), std::env::var(PORT)) else { return };
    let folder = Path::new(&folder);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    let facts = match std::env::var(BUCKET_AT) {
        Err(_) => Facts::open(&folder.join("state")),
        Ok(endpoint) => {
            let settings = in_bucket(folder, endpoint);
            let blobs = runtime.block_on(Blobs::open(&settings, 1 << 20)).expect("the bucket is there");
            Facts::open_with(&folder.join("state"), blobs)
        }
    };
    let facts = facts.expect("opens");
    let admissions = Arc::new(Admissions::open(Arc::new(facts.storage())).expect("opens"));
    runtime.block_on(async {
        let listen = ([127, 0, 0, 1], port.parse().expect("a port")).into();
        let config = CoordinatorConfig { listen, wait_deadline_ms: 60_000, ..config() };
        let handle = Coordinator::start_with(config, admissions, toy(), None, facts).await.expect("starts");
        if !folder.join("ready").exists() {
            let token = handle.invite(PATIENCE, 8).expect("made");
            std::fs::write(folder.join("token"), token.to_line().as_str()).expect("written");
            std::fs::write(folder.join("address"), handle.address()).expect("written");
            std::fs::write(folder.join("ready"), "").expect("written");
        }
        std::future::pending::<()>().await;
    });
}

fn in_bucket(folder: &Path, endpoint: String) -> StoreSettings {
    let credentials = key_file(folder, KEY_ID, SECRET);
    StoreSettings { place: format!("s3://{BUCKET}/cluster"), endpoint, region: String::new(), credentials }
}

/// A coordinator's place in the world.
struct Site {
    folder: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
    bucket_at: Option<String>,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Site {
    fn new() -> Self {
        Self::with(None)
    }

    fn with(bucket_at: Option<String>) -> Self {
        let port = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("free").port();
        let mut site = Self { folder: tempfile::tempdir().expect("folder"), port, child: None, bucket_at };
        site.start();
        for _ in 0..600 {
            if site.folder.path().join("ready").exists() {
                return site;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the coordinator does not start");
    }

    fn start(&mut self) {
        let this = std::env::current_exe().expect("own path");
        let mut command = Command::new(this);
        command.args(["--exact", "outlive::child_coordinator", "--ignored"]).stdout(Stdio::null());
        command.env(FOLDER, self.folder.path()).env(PORT, self.port.to_string());
        if let Some(endpoint) = &self.bucket_at {
            command.env(BUCKET_AT, endpoint);
        }
        self.child = Some(command.spawn().expect("starts"));
    }

    /// SIGKILL.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(file)).expect("there")
    }

    fn address(&self) -> CoordinatorAddress {
        self.read("address").parse().expect("an address")
    }

    /// What the facts on disk say was accepted, of jobs that are open; read from a copy.
    fn accepted(&self) -> BTreeSet<Work> {
        self.outputs().into_keys().collect()
    }

    /// The same, with the blob of each.
    fn outputs(&self) -> BTreeMap<Work, BlobRef> {
        let copy = tempfile::tempdir().expect("folder");
        for file in std::fs::read_dir(self.folder.path().join("state/ledger")).expect("lists") {
            let path = file.expect("file").path();
            std::fs::copy(&path, copy.path().join(path.file_name().expect("name"))).expect("copied");
        }
        let ledger = SharedLedger::default();
        let _solo = Solo::open(copy.path(), Box::new(ledger.clone())).expect("reads");
        let facts = ledger.lock();
        facts.open_jobs().flat_map(|(_, job)| job.accepted.iter().map(|(work, piece)| (*work, piece.output))).collect()
    }

    fn node(&self, name: &str, runs: &Runs) -> tokio::task::JoinHandle<()> {
        let token = self.read("token").parse().expect("a token");
        let runs = runs.clone();
        let slow = Arc::new(Faulty(move |request: &WorkRequest, outcome: Outcome| {
            runs.lock().expect("whole").push(Work::new(request.kind, request.segment));
            std::thread::sleep(WORK);
            outcome
        }));
        let config = NodeConfig { threads: 1, ..NodeConfig::new(name) };
        let membership = (IdentityStore::Memory, Some(token));
        tokio::spawn(async move {
            let _ = Node::run_until(config, membership, slow, std::future::pending()).await;
        })
    }
}

/// Work items in the order in which nodes began them.
type Runs = Arc<Mutex<Vec<Work>>>;

async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigkill_of_the_coordinator_in_each_phase_costs_nothing_accepted() {
    let mut site = Site::new();
    let (address, runs) = (site.address(), Runs::default());
    let nodes = [site.node("a", &runs), site.node("b", &runs)];
    let (segments, seed) = (5, 300);
    let spec = joint_spec(segments, seed, 4);
    let lost = Arc::new(Mutex::new(0));
    let client = tokio::spawn({
        let (spec, lost) = (spec.clone(), lost.clone());
        async move {
            let count = |event: &obelysk_protocol::wire::Event| {
                *lost.lock().expect("whole") += u32::from(event.text.contains("calling again"));
            };
            submit_remote(&address, "laptop", &spec, MODEL, count).await
        }
    });
    let mut kept = Vec::new();
    for kind in WorkKind::EVERY {
        // The second item of the kind has begun, so one may be accepted and another not.
        let begun = || runs.lock().expect("whole").iter().filter(|work| work.kind == kind).count() >= 2;
        until(kind.name(), begun).await;
        tokio::time::sleep(WORK / 2).await;
        site.kill();
        let accepted = site.accepted();
        kept.push((kind, accepted.len(), runs.lock().expect("whole").len(), accepted));
        site.start();
    }
    let result = tokio::time::timeout(PATIENCE, client).await.expect("ends").expect("no panic").expect("proved");
    assert!(result.proof == expected_proof(&spec, 64), "same bytes");
    // Not each time: it may still be away when the next end comes.
    assert!(*lost.lock().expect("whole") >= 1, "the client was told");
    let all = runs.lock().expect("whole").clone();
    for (kind, _, before, accepted) in &kept {
        let again: Vec<_> = all[*before..].iter().filter(|work| accepted.contains(work)).collect();
        assert!(again.is_empty(), "killed in {kind:?}: {again:?} were accepted and run again");
    }
    let counts: Vec<usize> = kept.iter().map(|(_, accepted, ..)| *accepted).collect();
    assert!(counts.windows(2).all(|w| w[0] < w[1]), "what was accepted stays accepted: {counts:?}");
    println!("accepted at each kill: {counts:?}; {} runs for {} items", all.len(), 4 * segments);
    nodes.iter().for_each(tokio::task::JoinHandle::abort);
}

/// The same with its blobs in a bucket, whose server is away for a while too: three nodes, the same bytes, and nothing in the folder but
/// the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_whose_blobs_lie_in_a_bucket_goes_on_where_it_was_killed() {
    let s3 = tempfile::tempdir().expect("folder");
    let mut server = Some(BucketServer::start(s3.path(), None).await);
    let (at, endpoint) = server.as_ref().map(|server| (server.address(), server.endpoint())).expect("runs");
    let known = endpoint.clone();
    let mut site = tokio::task::spawn_blocking(move || Site::with(Some(known))).await.expect("starts");
    let (address, runs) = (site.address(), Runs::default());
    let nodes = ["a", "b", "c"].map(|name| site.node(name, &runs));
    let (segments, seed) = (5, 303);
    let spec = joint_spec(segments, seed, 4);
    let client = tokio::spawn({
        let spec = spec.clone();
        async move { submit_remote(&address, "laptop", &spec, MODEL, |_| ()).await }
    });
    let mut kept = Vec::new();
    for kind in [WorkKind::Forward, WorkKind::Prove, WorkKind::Open] {
        let begun = || runs.lock().expect("whole").iter().filter(|work| work.kind == kind).count() >= 2;
        until(kind.name(), begun).await;
        if kind == WorkKind::Prove {
            // Results wait until the bucket is there again.
            drop(server.take());
            tokio::time::sleep(WORK).await;
            server = Some(BucketServer::start(s3.path(), Some(at)).await);
        }
        tokio::time::sleep(WORK / 2).await;
        site.kill();
        kept.push((runs.lock().expect("whole").len(), site.accepted()));
        site.start();
    }
    let result = tokio::time::timeout(PATIENCE, client).await.expect("ends").expect("no panic").expect("proved");
    assert!(result.proof == expected_proof(&spec, 64), "same bytes");
    let all = runs.lock().expect("whole").clone();
    for (before, accepted) in &kept {
        let again: Vec<_> = all[*before..].iter().filter(|work| accepted.contains(work)).collect();
        assert!(again.is_empty(), "{again:?} were accepted and run again");
    }
    assert!(!kept[2].1.is_empty() && !site.folder.path().join("state/blobs").exists());
    let proof = Blobs::open(&in_bucket(site.folder.path(), endpoint), 0).await.expect("opens");
    assert!(*proof.get(BlobRef::of(&result.proof)).await.expect("the proof is in the bucket") == result.proof);
    nodes.iter().for_each(tokio::task::JoinHandle::abort);
}

async fn submit_once(address: &CoordinatorAddress, key: [u8; 16], spec: &[u8]) -> (JobDone, Vec<u8>) {
    let (_endpoint, connection) = connect(address, None).await.expect("connects");
    let (mut send, mut recv) = connection.open_bi().await.expect("opens");
    write_message(&mut send, &Message::ClientHello(ClientHello { name: "raw".to_owned() })).await.expect("said");
    let blob = BlobRef::of(spec);
    store(&connection, 0, blob, spec).await.expect("stored");
    write_message(&mut send, &Message::SubmitOnce(SubmitOnce { key, spec: blob, model: MODEL, priority: 5 }))
        .await
        .expect("said");
    loop {
        match read_message(&mut recv).await.expect("answers").expect("not over") {
            Message::JobDone(done) => {
                let proof = fetch(&connection, done.proof, u64::MAX).await.expect("fetched");
                connection.close(CLOSE_DONE, b"done");
                return (done, proof);
            }
            Message::JobAccepted(_) | Message::Event(_) => {}
            other => panic!("no news of a job: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_proof_is_there_after_a_restart_for_who_has_the_key() {
    let mut site = Site::new();
    let (address, runs) = (site.address(), Runs::default());
    let node = site.node("only", &runs);
    let spec = spec(2, 301);
    let (done, proof) = submit_once(&address, [9; 16], &spec).await;
    assert!(proof == expected_proof(&spec, 64));
    node.abort();
    let before = runs.lock().expect("whole").len();
    for _ in 0..2 {
        site.kill();
        site.start();
        let mut again = None;
        for _ in 0..100 {
            if connect(&address, None).await.is_ok() {
                again = Some(submit_once(&address, [9; 16], &spec).await);
                break;
            }
        }
        let (job, bytes) = again.expect("the coordinator is back");
        assert_eq!((job.job, job.proof, job.nodes), (done.job, done.proof, 1));
        assert!(bytes == proof);
    }
    assert_eq!(runs.lock().expect("whole").len(), before, "nobody worked for it");
}

/// A folder of the release before, with its authority in a file, goes on as the same cluster.
#[test]
fn authority_and_registry_of_files_are_taken_over() {
    let place = tempfile::tempdir().expect("folder");
    let old = Admissions::open(Arc::new(FileStorage::open(&place.path().join("old")).expect("opens"))).expect("opens");
    let token = old.add_token(TokenOrder { public_key: [3; 32], ttl_s: 60, uses: 2 }).expect("made");
    let cluster = old.cluster();
    drop(old);
    let files = FileStorage::open(&place.path().join("old")).expect("opens");
    let facts = Facts::in_memory();
    assert!(facts.storage().import(&files).expect("taken over"));
    files.set_aside().expect("renamed");
    let new = Admissions::open(Arc::new(facts.storage())).expect("opens");
    assert_eq!((new.cluster(), new.tokens_after(obelysk_node::identity::Id([0; 16]), 9)), (cluster, vec![token]));
    assert!(!place.path().join("old/authority.json").exists() && place.path().join("old/authority.json.moved").exists());
    assert!(!facts.storage().import(&files).expect("nothing left"));
}

/// Within one process the log is in memory, and a client that was cut off still finds its job.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_is_the_same_job() {
    let handle = start(toy(), None).await;
    let token = handle.invite(PATIENCE, 1).expect("made");
    let node = Node::run_until(NodeConfig::new("n"), (IdentityStore::Memory, Some(token)), toy(), std::future::pending());
    let node = tokio::spawn(node);
    joined(&handle, 1).await;
    let (address, spec) = (handle.address().parse().expect("own address"), spec(2, 302));
    let (first, proof) = submit_once(&address, [1; 16], &spec).await;
    let (again, bytes) = submit_once(&address, [1; 16], &spec).await;
    let (other, _) = submit_once(&address, [2; 16], &spec).await;
    assert!(first.job == again.job && first.job != other.job && proof == bytes);
    handle.shutdown().await;
    node.abort();
}

/// The file below a folder whose name begins with the digest.
fn file_of(folder: &Path, blob: BlobRef) -> Option<PathBuf> {
    let name: String = blob.digest.iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return file_of(&path, blob);
        }
        entry.file_name().to_string_lossy().starts_with(&name).then_some(path)
    })
}

/// While the coordinator is down its disk loses one accepted result and damages another: both are made again, and nothing else is.
#[tokio::test(flavor = "multi_thread")]
async fn results_gone_or_damaged_on_disk_are_made_again() {
    let mut site = Site::new();
    let (address, runs) = (site.address(), Runs::default());
    let nodes = [site.node("a", &runs), site.node("b", &runs)];
    let spec = spec(5, 303);
    let client = tokio::spawn({
        let spec = spec.clone();
        async move { submit_remote(&address, "laptop", &spec, MODEL, |_| ()).await }
    });
    let proving = || runs.lock().expect("whole").iter().filter(|work| work.kind == WorkKind::Prove).count();
    until("the last proof begins", || proving() >= 5).await;
    site.kill();
    let outputs = site.outputs();
    let gone = Work::new(WorkKind::Commit, 1);
    let damaged = *outputs.keys().find(|work| work.kind == WorkKind::Prove).expect("one of five is accepted");
    let file = |work: Work| file_of(&site.folder.path().join("state"), outputs[&work]).expect("on disk");
    std::fs::remove_file(file(gone)).expect("removed");
    let mut bytes = std::fs::read(file(damaged)).expect("read");
    bytes[7] ^= 1;
    std::fs::write(file(damaged), bytes).expect("written");
    let before = runs.lock().expect("whole").len();
    site.start();
    let result = tokio::time::timeout(PATIENCE, client).await.expect("ends").expect("no panic").expect("proved");
    assert!(result.proof == expected_proof(&spec, 64), "same bytes");
    let all = runs.lock().expect("whole").clone();
    let again: BTreeSet<Work> = all[before..].iter().filter(|work| outputs.contains_key(work)).copied().collect();
    assert!(again.contains(&gone) && again.contains(&damaged), "{again:?}");
    // What rests on a lost commit has to be accepted anew; what does not, stays.
    let rests = |work: &Work| matches!(work.kind, WorkKind::Prove | WorkKind::Open);
    assert!(again.iter().all(|work| *work == gone || rests(work)), "{again:?}");
    nodes.iter().for_each(tokio::task::JoinHandle::abort);
}
