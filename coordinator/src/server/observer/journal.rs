//! What happened to each job, one JSON line per event, in a file of its own; and what is remembered of jobs that ended.
//!
//! Writing happens on a thread of its own and never holds a job up: a full queue, a full disk or a folder that cannot be written
//! costs lines, which shows as a gap in their numbers, and one warning.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use obelysk_node::engine::WorkKind;
use obelysk_node::trace::hex;
use obelysk_protocol::wire::BlobRef;
use serde::{Deserialize, Serialize};

use crate::core::JobId;

/// Bytes of one file; one older file is kept beside it. A job of 100 segments on good nodes writes a tenth of it.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// Jobs whose files are kept; beyond, the oldest go.
pub const MAX_JOBS_KEPT: usize = 1000;
/// Lines waiting for the disk: some seconds of a busy cluster.
const MAX_WAITING: usize = 8192;
/// Longest line that is read back: all texts at their bounds, escaped.
const MAX_LINE_BYTES: u64 = 64 << 10;
/// How far back from the end of a file its last line is looked for.
const TAIL_BYTES: u64 = MAX_LINE_BYTES;

/// One event as it is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// From 1 on, rising; a gap is events that were dropped.
    pub number: u64,
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    /// What happened, in one word; see [`Entry::is_last`] for those that end a job.
    pub event: String,
    /// The item, `kind/segment`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub work: String,
    /// The lease.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub epoch: u64,
    /// Name and number of the node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// Its id, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// BLAKE3 of the result, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub digest: String,
    /// Its bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes: u64,
    /// The rest, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// The job, on its first and last line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobFacts>,
}

/// A job in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobFacts {
    /// The model.
    pub model: Id,
    /// Segments.
    pub segments: u32,
    /// When it was submitted, seconds since 1970.
    pub submitted_unix_s: u64,
    /// Accepted items by kind.
    pub accepted: [u32; 4],
    /// Core-microseconds by kind.
    pub core_us: [u64; 4],
}

/// 32 bytes, written in hexadecimal digits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Id(pub [u8; 32]);

impl From<Id> for String {
    fn from(id: Id) -> Self {
        hex(&id.0)
    }
}

impl TryFrom<String> for Id {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        bytes(&text).map(Self).ok_or_else(|| "not 64 hexadecimal digits".to_owned())
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn bytes(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    let good = text.len() == 64 && text.is_ascii();
    for (byte, at) in out.iter_mut().zip((0..64).step_by(2)).take_while(|_| good) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    good.then_some(out)
}

impl Entry {
    /// Whether nothing can follow.
    #[must_use]
    pub fn is_last(&self) -> bool {
        matches!(self.event.as_str(), DONE | FAILED)
    }

    /// The result.
    #[must_use]
    pub fn result(&self) -> BlobRef {
        BlobRef { digest: bytes(&self.digest).unwrap_or_default(), length: self.bytes }
    }

    /// The node's id.
    #[must_use]
    pub fn node_id(&self) -> [u8; 32] {
        bytes(&self.id).unwrap_or_default()
    }
}

/// The event of a job that was proved.
pub const DONE: &str = "done";
/// The event of a job that was not.
pub const FAILED: &str = "failed";

/// The event of a joint step that begins. At the first one, parts of an earlier attempt do not stand any more.
pub const JOINING: &str = "joining";

/// The text of [`JOINING`].
#[must_use]
pub fn joint_step(number: u32) -> String {
    format!("joint step {number}")
}

/// Whether an item's name is that of a joint step.
#[must_use]
pub fn is_joint(work: &str) -> bool {
    work.strip_prefix(WorkKind::Joint.name()).is_some_and(|rest| rest.starts_with('/'))
}

/// What the lines of a job say of its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replay {
    /// Pieces that stand, in the order in which they were accepted: item, node, digest.
    pub pieces: Vec<(String, String, String)>,
    /// The last line, if it ended.
    pub end: Option<Entry>,
}

/// Goes through a job's events and says what they leave: which pieces stand, from whom, in which order.
pub fn replay<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Replay {
    let mut replay = Replay::default();
    for entry in entries {
        match entry.event.as_str() {
            "accepted" => replay.pieces.push((entry.work.clone(), entry.node.clone(), entry.digest.clone())),
            "redo" => replay.pieces.retain(|(work, ..)| *work != entry.work),
            JOINING if entry.text == joint_step(0) => replay.pieces.retain(|(work, ..)| !is_joint(work)),
            DONE | FAILED => replay.end = Some(entry.clone()),
            _ => {}
        }
    }
    replay
}

/// The logs of all jobs.
#[derive(Debug, Clone, Default)]
pub struct Journal(Option<Arc<Disk>>);

#[derive(Debug)]
struct Disk {
    folder: PathBuf,
    lines: mpsc::SyncSender<(JobId, Entry)>,
    dropped: AtomicU64,
}

/// The first and last line of a job's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ends {
    /// The job in numbers, as the last line that has them says.
    pub facts: JobFacts,
    /// The last line.
    pub last: Entry,
}

impl Journal {
    /// Opens a folder, creating it if need be, and reads how the jobs in it ended.
    ///
    /// # Errors
    /// What the system says: the folder cannot be made or read.
    pub fn open(folder: &Path) -> io::Result<(Self, BTreeMap<JobId, Ends>)> {
        fs::create_dir_all(folder)?;
        let mut found: Vec<(std::time::SystemTime, JobId)> = Vec::new();
        for file in fs::read_dir(folder)?.flatten() {
            let name = file.file_name();
            let job = name.to_str().and_then(|n| n.strip_suffix(".jsonl")).and_then(bytes);
            if let (Some(job), Ok(data)) = (job, file.metadata()) {
                found.push((data.modified().unwrap_or(std::time::UNIX_EPOCH), JobId(job)));
            }
        }
        found.sort();
        let ends = found.iter().filter_map(|(_, job)| Some((*job, ends(&current(folder, *job))?))).collect();
        let (lines, inbox) = mpsc::sync_channel(MAX_WAITING);
        let disk = Arc::new(Disk { folder: folder.to_owned(), lines, dropped: AtomicU64::new(0) });
        let jobs = found.into_iter().map(|(_, job)| job).collect();
        let writer = Writer { folder: folder.to_owned(), jobs, complained: false };
        std::thread::Builder::new().name("job logs".to_owned()).spawn(move || writer.run(&inbox))?;
        Ok((Self(Some(disk)), ends))
    }

    /// Keeps an event; waits for nothing.
    pub fn write(&self, job: JobId, entry: Entry) {
        let Some(disk) = &self.0 else { return };
        if disk.lines.try_send((job, entry)).is_err() {
            disk.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Events lost to a full queue.
    pub fn dropped(&self) -> u64 {
        self.0.as_ref().map_or(0, |disk| disk.dropped.load(Ordering::Relaxed))
    }

    /// At most `most` events of a job after this number, oldest first; `None` when logs are not kept, or not of this job. Waits for the disk.
    pub fn read(&self, job: JobId, after: u64, most: usize) -> Option<Vec<Entry>> {
        let disk = self.0.as_ref()?;
        let files = [older(&disk.folder, job), current(&disk.folder, job)].map(|path| File::open(path).ok());
        if files.iter().all(Option::is_none) {
            return None;
        }
        let entries = files.into_iter().flatten().flat_map(entries);
        Some(entries.filter(|entry| entry.number > after).take(most).collect())
    }
}

fn current(folder: &Path, job: JobId) -> PathBuf {
    folder.join(format!("{}.jsonl", hex(&job.0)))
}

fn older(folder: &Path, job: JobId) -> PathBuf {
    folder.join(format!("{}.1.jsonl", hex(&job.0)))
}

/// The lines of a file that are whole; what is damaged is passed over.
fn entries(file: File) -> impl Iterator<Item = Entry> {
    let mut reader = BufReader::new(file);
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        let read = reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line).ok()?;
        (read > 0).then_some(line)
    })
    .filter_map(|line| serde_json::from_slice(&line).ok())
}

fn ends(path: &Path) -> Option<Ends> {
    let first = entries(File::open(path).ok()?).find_map(|entry| entry.job);
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES))).ok()?;
    let last = entries(file).last()?;
    Some(Ends { facts: last.job.or(first)?, last })
}

/// Owns the files.
struct Writer {
    folder: PathBuf,
    /// Jobs with files, oldest first.
    jobs: VecDeque<JobId>,
    complained: bool,
}

impl Writer {
    fn run(mut self, inbox: &mpsc::Receiver<(JobId, Entry)>) {
        while let Ok((job, entry)) = inbox.recv() {
            match self.append(job, &entry) {
                Ok(()) => self.complained = false,
                Err(error) if !self.complained => {
                    tracing::warn!(%error, folder = %self.folder.display(), "events of jobs are not kept; jobs go on");
                    self.complained = true;
                }
                Err(_) => {}
            }
        }
    }

    fn append(&mut self, job: JobId, entry: &Entry) -> io::Result<()> {
        let path = current(&self.folder, job);
        let mut file = OpenOptions::new().create(true).append(true).read(true).open(&path)?;
        let length = file.metadata()?.len();
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        if length + line.len() as u64 > MAX_FILE_BYTES {
            fs::rename(&path, older(&self.folder, job))?;
            file = OpenOptions::new().create(true).append(true).open(&path)?;
        } else if length > 0 && !ends_a_line(&mut file, length)? {
            // A line that was cut off by a crash must not swallow this one.
            line.insert(0, b'\n');
        }
        // In one call, so that a line is either there or cut off, never mixed.
        file.write_all(&line)?;
        if !self.jobs.contains(&job) {
            self.jobs.push_back(job);
            while self.jobs.len() > MAX_JOBS_KEPT {
                let Some(old) = self.jobs.pop_front() else { break };
                let _ = fs::remove_file(older(&self.folder, old));
                let _ = fs::remove_file(current(&self.folder, old));
            }
        }
        Ok(())
    }
}

fn ends_a_line(file: &mut File, length: u64) -> io::Result<bool> {
    let mut last = [0];
    file.seek(SeekFrom::Start(length - 1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: JobId = JobId([3; 32]);

    fn entry(number: u64, event: &str, work: &str) -> Entry {
        Entry { number, event: event.to_owned(), work: work.to_owned(), node: "n (node 1)".to_owned(), ..Entry::default() }
    }

    fn writer(folder: &Path) -> Writer {
        Writer { folder: folder.to_owned(), jobs: VecDeque::new(), complained: false }
    }

    fn reader(folder: &Path) -> Journal {
        Journal::open(folder).expect("opens").0
    }

    #[test]
    fn parts_stand_from_the_last_time_that_the_opening_of_all_began() {
        let step = |number, at| Entry { text: joint_step(at), ..entry(number, JOINING, "") };
        let accepted = |number, work| entry(number, "accepted", work);
        let log = [accepted(1, "open/0"), step(2, 0), accepted(3, "joint/0"), step(4, 1), accepted(5, "joint/0")];
        let works = |log: &[Entry]| replay(log).pieces.iter().map(|(work, ..)| work.clone()).collect::<Vec<_>>();
        assert_eq!(works(&log), ["open/0", "joint/0", "joint/0"], "a part of each step");
        let again = [&log[..], &[step(6, 0), accepted(7, "joint/0")]].concat();
        assert_eq!(works(&again), ["open/0", "joint/0"]);
    }

    #[test]
    fn lines_come_back_after_a_torn_one() {
        let folder = tempfile::tempdir().expect("folder");
        let mut writer = writer(folder.path());
        let facts = JobFacts { model: Id([5; 32]), segments: 6, ..JobFacts::default() };
        writer.append(JOB, &Entry { job: Some(facts), ..entry(1, "submitted", "") }).expect("written");
        writer.append(JOB, &entry(2, "accepted", "forward/0")).expect("written");
        let path = current(folder.path(), JOB);
        OpenOptions::new().append(true).open(&path).expect("opens").write_all(b"{\"number\":3,\"ev").expect("torn");
        writer.append(JOB, &entry(4, "accepted", "forward/1")).expect("written");
        let journal = reader(folder.path());
        let read = |after, most| journal.read(JOB, after, most).expect("kept").iter().map(|e| e.number).collect::<Vec<_>>();
        assert_eq!((read(0, 9), read(1, 1), read(4, 9)), (vec![1, 2, 4], vec![2], vec![]));
        assert_eq!(journal.read(JobId([4; 32]), 0, 9), None);
        let ends = Journal::open(folder.path()).expect("opens").1;
        assert_eq!(ends[&JOB], Ends { facts, last: entry(4, "accepted", "forward/1") });
    }

    #[test]
    fn files_rotate_and_the_oldest_jobs_go() {
        let folder = tempfile::tempdir().expect("folder");
        let mut writer = writer(folder.path());
        let long = "x".repeat(60_000);
        for number in 1..=300 {
            writer.append(JOB, &Entry { text: long.clone(), ..entry(number, "lost", "open/1") }).expect("written");
        }
        let size = |path: PathBuf| fs::metadata(path).expect("there").len();
        assert!(size(current(folder.path(), JOB)) <= MAX_FILE_BYTES && size(older(folder.path(), JOB)) <= MAX_FILE_BYTES);
        let kept = reader(folder.path()).read(JOB, 0, 1000).expect("kept");
        assert!(kept.len() > 60 && kept.last().is_some_and(|e| e.number == 300));
        assert!(kept.windows(2).all(|w| w[0].number + 1 == w[1].number), "no gap in what is left");
        for i in 0..MAX_JOBS_KEPT as u64 {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&i.to_le_bytes());
            writer.append(JobId(id), &entry(1, "submitted", "")).expect("written");
        }
        assert!(!current(folder.path(), JOB).exists() && !older(folder.path(), JOB).exists());
        assert_eq!(fs::read_dir(folder.path()).expect("folder").count(), MAX_JOBS_KEPT);
    }

    #[test]
    fn an_unwritable_folder_costs_lines_and_nothing_else() {
        let folder = tempfile::tempdir().expect("folder");
        let (journal, _) = Journal::open(&folder.path().join("jobs")).expect("opens");
        fs::remove_dir_all(folder.path().join("jobs")).expect("gone");
        (0..20_000).for_each(|number| journal.write(JOB, entry(number, "lost", "")));
        assert_eq!(journal.read(JOB, 0, 9), None);
        assert!(Journal::open(Path::new("/dev/null/jobs")).is_err());
    }

    #[test]
    fn replay_keeps_what_stands_in_the_order_it_came() {
        let log = [
            entry(1, "accepted", "forward/0"),
            entry(2, "accepted", "forward/1"),
            entry(3, "accepted", "commit/0"),
            entry(4, "redo", "forward/0"),
            entry(5, "quarantined", ""),
            entry(6, "accepted", "forward/0"),
            entry(7, DONE, ""),
        ];
        let replay = replay(&log);
        let works: Vec<&str> = replay.pieces.iter().map(|(work, ..)| work.as_str()).collect();
        assert_eq!(works, ["forward/1", "commit/0", "forward/0"]);
        assert_eq!(replay.end.map(|e| e.number), Some(7));
    }
}
