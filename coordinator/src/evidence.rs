//! Evidence against nodes: a result that was not accepted with everything it was judged by, so that anybody with the model's registration can
//! judge it again. One folder per case, whole or not there. Never read by the coordinator: it decides by its own log.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use obelysk_model::fetch::space;
use obelysk_node::engine::{Checker, Verdict, WorkKind};
use obelysk_protocol::wire::BlobRef;
use serde::{Deserialize, Serialize};

/// Cases kept: far more than a fleet has liars. Beyond, new ones are left out and the log says so: a flood shall not wash away the first.
const MAX_CASES: usize = 1024;
/// Memory on disk of all cases: a few results of the largest segments, hidden states included.
const MAX_BYTES: u64 = 4 << 30;
/// Largest file of a case that is read again: no blob of a job is larger.
const MAX_FILE_BYTES: u64 = 1 << 32;
/// What a case is described by.
const DESCRIPTION: &str = "case.json";
/// Free bytes below which nothing is kept: what the coordinator's log needs for a long time.
const RESERVE_BYTES: u64 = 1 << 30;
/// While a case is being written.
const UNFINISHED: &str = ".unfinished-";

/// Why a case cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// A file is missing or cannot be read.
    #[error("{path}: {source}; give the folder of one case, as `obelysk coordinator evidence` lists them")]
    File {
        /// Which.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// A file is not what the case says.
    #[error("{path} is damaged: {cause}; take an undamaged copy of the case")]
    Damaged {
        /// Which.
        path: String,
        /// What is wrong.
        cause: String,
    },
}

/// Who delivered what, and what was said to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Charge {
    /// The node's key, in hexadecimal.
    pub node: String,
    /// Its name when it delivered.
    pub name: String,
    /// The job.
    pub job: String,
    /// `forward`, `commit`, `prove`, `open`, `joint`.
    pub kind: String,
    /// Segment.
    pub segment: u32,
    /// The lease.
    pub epoch: u64,
    /// When it was judged.
    pub unix_s: u64,
    /// Whether somebody else may be to blame: it does not fit an accepted result that it was made from. Else it is wrong in itself.
    pub disputed: bool,
    /// What the checker said.
    pub reason: String,
}

/// What a result was judged by, and the result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exhibits {
    /// Specification of the job.
    pub spec: Vec<u8>,
    /// Public bytes of the item.
    pub extra: Vec<u8>,
    /// Inputs in order.
    pub inputs: Vec<Vec<u8>>,
    /// The result.
    pub output: Vec<u8>,
}

/// The description as it lies there.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Described {
    version: u32,
    charge: Charge,
    files: Vec<Exhibit>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exhibit {
    name: String,
    blake3: String,
    bytes: u64,
}

/// A case that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The charge.
    pub charge: Charge,
    /// All it was judged by.
    pub exhibits: Exhibits,
}

/// A folder of cases. Clones are the same folder.
#[derive(Debug, Clone)]
pub struct Evidence {
    folder: PathBuf,
    writing: Arc<Mutex<()>>,
}

impl Evidence {
    /// The cases in a folder, which need not exist yet.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), writing: Arc::default() }
    }

    /// The cases of a coordinator with this folder.
    #[must_use]
    pub fn of_coordinator(state: &Path) -> Self {
        Self::new(&state.join("evidence"))
    }

    /// Keeps a case, safe from a loss of power when it returns; `None` where there is no more room. Waits for the disk.
    ///
    /// # Errors
    /// What the system says; nothing was kept.
    pub fn keep(&self, charge: &Charge, exhibits: &Exhibits) -> io::Result<Option<PathBuf>> {
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        fs::create_dir_all(&self.folder)?;
        let files = named(exhibits);
        let wanted: u64 = files.iter().map(|(_, blob)| blob.len() as u64).sum();
        let (cases, held) = self.held()?;
        if cases >= MAX_CASES || held.saturating_add(wanted) > MAX_BYTES {
            return Ok(None);
        }
        let Charge { unix_s, kind, segment, epoch, .. } = charge;
        let name = format!("{unix_s}-{}-{kind}-{segment}-{epoch}", charge.job.get(..12).unwrap_or(&charge.job));
        let (place, staging) = (self.folder.join(&name), self.folder.join(format!("{UNFINISHED}{name}")));
        if place.exists() {
            return Ok(Some(place));
        }
        // The coordinator's log lies on the same disk, most likely, and must go on.
        let free = space::free(&self.folder)?;
        if free < wanted.saturating_add(RESERVE_BYTES) {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("{free} bytes are free, and {RESERVE_BYTES} stay so"),
            ));
        }
        let written = write(&staging, charge, &files).and_then(|()| fs::rename(&staging, &place));
        if let Err(e) = written {
            let _ = fs::remove_dir_all(&staging);
            return Err(e);
        }
        fs::File::open(&self.folder)?.sync_all()?;
        Ok(Some(place))
    }

    /// Number of cases and their bytes; leftovers of a crash go.
    fn held(&self) -> io::Result<(usize, u64)> {
        let (mut cases, mut bytes) = (0, 0);
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(UNFINISHED)) {
                fs::remove_dir_all(&path)?;
                continue;
            }
            if !path.is_dir() {
                continue;
            }
            cases += 1;
            for file in fs::read_dir(&path)? {
                bytes += file?.metadata()?.len();
            }
        }
        Ok((cases, bytes))
    }

    /// Folders of all cases, oldest first.
    ///
    /// # Errors
    /// What the system says.
    pub fn list(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut cases: Vec<PathBuf> = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
        cases.retain(|path| {
            path.join(DESCRIPTION).is_file() && path.file_name().is_some_and(|n| !n.to_string_lossy().starts_with('.'))
        });
        cases.sort();
        Ok(cases)
    }
}

fn write(staging: &Path, charge: &Charge, files: &[(String, &[u8])]) -> io::Result<()> {
    let _ = fs::remove_dir_all(staging);
    fs::create_dir(staging)?;
    let list = files.iter().map(|(name, blob)| Exhibit { name: name.clone(), blake3: hex(blob), bytes: blob.len() as u64 });
    let text = serde_json::to_vec_pretty(&Described { version: 1, charge: charge.clone(), files: list.collect() })?;
    for (name, bytes) in files.iter().map(|(name, blob)| (name.as_str(), *blob)).chain([(DESCRIPTION, &text[..])]) {
        let path = staging.join(name);
        fs::write(&path, bytes)?;
        fs::File::open(path)?.sync_all()?;
    }
    fs::File::open(staging)?.sync_all()
}

/// Reads the charge of a case, not what it rests on.
///
/// # Errors
/// [`EvidenceError`].
pub fn charge(folder: &Path) -> Result<Charge, EvidenceError> {
    described(folder).map(|d| d.charge)
}

impl Case {
    /// Reads a case, all its files checked against its description.
    ///
    /// # Errors
    /// [`EvidenceError`].
    pub fn read(folder: &Path) -> Result<Self, EvidenceError> {
        let described = described(folder)?;
        let mut exhibits = Exhibits::default();
        for (number, file) in described.files.iter().enumerate() {
            let expected = match number {
                0 => "spec".to_owned(),
                1 => "extra".to_owned(),
                2 => "output".to_owned(),
                n => format!("input-{}", n - 3),
            };
            let path = folder.join(&expected);
            let damaged = |cause: &str| EvidenceError::Damaged { path: path.display().to_string(), cause: cause.to_owned() };
            if file.name != expected {
                return Err(damaged("the description lists other files"));
            }
            let blob = read(&path)?;
            if hex(&blob) != file.blake3 || blob.len() as u64 != file.bytes {
                return Err(damaged("its digest is not that of the description"));
            }
            match number {
                0 => exhibits.spec = blob,
                1 => exhibits.extra = blob,
                2 => exhibits.output = blob,
                _ => exhibits.inputs.push(blob),
            }
        }
        Ok(Self { charge: described.charge, exhibits })
    }

    /// Judges it again; `None` when the description names no kind of work.
    #[must_use]
    pub fn judge(&self, checker: &dyn Checker) -> Option<Verdict> {
        let kind = WorkKind::ALL.into_iter().chain([WorkKind::Joint]).find(|kind| kind.name() == self.charge.kind)?;
        let Exhibits { spec, extra, inputs, output } = &self.exhibits;
        let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
        Some(checker.check(spec, kind, self.charge.segment, &inputs, extra, output))
    }
}

fn described(folder: &Path) -> Result<Described, EvidenceError> {
    let path = folder.join(DESCRIPTION);
    let bytes = read(&path)?;
    serde_json::from_slice(&bytes).map_err(|e| EvidenceError::Damaged { path: path.display().to_string(), cause: e.to_string() })
}

fn read(path: &Path) -> Result<Vec<u8>, EvidenceError> {
    let failed = |source| EvidenceError::File { path: path.display().to_string(), source };
    if fs::metadata(path).map_err(failed)?.len() > MAX_FILE_BYTES {
        return Err(EvidenceError::Damaged {
            path: path.display().to_string(),
            cause: "it is longer than any result".to_owned(),
        });
    }
    fs::read(path).map_err(failed)
}

fn named(exhibits: &Exhibits) -> Vec<(String, &[u8])> {
    let Exhibits { spec, extra, inputs, output } = exhibits;
    let fixed = [("spec", spec), ("extra", extra), ("output", output)].map(|(name, blob)| (name.to_owned(), blob.as_slice()));
    let inputs = inputs.iter().enumerate().map(|(i, blob)| (format!("input-{i}"), blob.as_slice()));
    fixed.into_iter().chain(inputs).collect()
}

fn hex(blob: &[u8]) -> String {
    BlobRef::of(blob).digest.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn charge_of(epoch: u64) -> Charge {
        let (node, name, job) = ("ab".repeat(32), "rack-3".to_owned(), "cd".repeat(32));
        let (kind, reason) = ("prove".to_owned(), "round 3".to_owned());
        Charge { node, name, job, kind, segment: 2, epoch, unix_s: 1_800_000_000, disputed: false, reason }
    }

    fn exhibits() -> Exhibits {
        Exhibits { spec: vec![1], extra: vec![], inputs: vec![vec![2; 9], vec![3]], output: vec![4; 100] }
    }

    #[test]
    fn a_case_is_there_again_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let evidence = Evidence::new(&dir.path().join("evidence"));
        assert_eq!(evidence.list().unwrap(), Vec::<PathBuf>::new());
        let place = evidence.keep(&charge_of(7), &exhibits()).unwrap().unwrap();
        // The same once more, as after a restart: one case.
        assert_eq!(evidence.keep(&charge_of(7), &exhibits()).unwrap(), Some(place.clone()));
        let other = evidence.keep(&charge_of(8), &exhibits()).unwrap().unwrap();
        assert_eq!(evidence.list().unwrap(), vec![place.clone(), other]);
        let case = Case::read(&place).unwrap();
        assert_eq!((case.charge, case.exhibits), (charge_of(7), exhibits()));
        fs::write(place.join("input-1"), [9]).unwrap();
        assert!(matches!(Case::read(&place), Err(EvidenceError::Damaged { .. })));
        fs::remove_file(place.join("output")).unwrap();
        assert!(matches!(Case::read(&place), Err(EvidenceError::File { .. })));
        fs::write(place.join(DESCRIPTION), "{}").unwrap();
        assert!(matches!(charge(&place), Err(EvidenceError::Damaged { .. })));
    }

    #[test]
    fn what_a_crash_left_behind_is_no_case_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let evidence = Evidence::new(dir.path());
        fs::create_dir(dir.path().join(format!("{UNFINISHED}x"))).unwrap();
        assert_eq!(evidence.list().unwrap(), Vec::<PathBuf>::new());
        evidence.keep(&charge_of(1), &exhibits()).unwrap().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_flood_does_not_wash_away_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let evidence = Evidence::new(dir.path());
        for i in 0..MAX_CASES {
            fs::create_dir(dir.path().join(format!("{i}"))).unwrap();
        }
        assert_eq!(evidence.keep(&charge_of(1), &exhibits()).unwrap(), None);
    }
}
