//! What lies in a coordinator's folder, and what that says of it.

use std::fs;
use std::path::{Path, PathBuf};

use obelysk_node::identity::{
    Credential, Id, IdentityError, MAX_CREDENTIAL_BYTES, NodeKey, private_folder, read_private, write_private,
};

use super::ReplicaError;
use crate::consensus::raft::member::Member;

/// Key and certificate among coordinators.
const PEER: &str = "peer.toml";
/// The key alone, until there is a certificate.
const KEY: &str = "peer.key";
/// The replicated log.
const LOG: &str = "raft";
/// Beside the log since before it was begun: a log that is lost must not be taken for one that never was.
const BEGUN: &str = "raft.begun";
/// Whom to listen to until there is a log.
const SEEDS: &str = "peer.seeds";
/// The log of a coordinator that is alone.
const ALONE: &str = "ledger";
/// Where it is put when another log has taken its place; it holds the authority's key, and may be removed.
const ASIDE: &str = "ledger.moved";
/// Longest key: PKCS #8 of an elliptic key has under 200 bytes.
const MAX_KEY_BYTES: u64 = 4096;

/// Whether the folder is that of one of several coordinators, or was, or is to be.
#[must_use]
pub fn is_one(state: &Path) -> bool {
    [PEER, KEY, LOG, BEGUN].iter().any(|name| state.join(name).exists())
}

/// Whether it holds the log of a coordinator that is alone, or nothing of a coordinator at all.
pub(super) fn alone(state: &Path) -> bool {
    state.join(ALONE).exists() || !is_one(state)
}

pub(super) fn has_log(state: &Path) -> bool {
    fs::read_dir(state.join(LOG)).is_ok_and(|mut files| files.next().is_some())
}

/// Whom a newcomer was told to listen to, until the log says it.
pub(super) fn seeds(state: &Path) -> Vec<Member> {
    let text = fs::read_to_string(state.join(SEEDS)).unwrap_or_default();
    let member = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        let key: Id<32> = words.next()?.parse().ok()?;
        Some(Member { key: key.0, peer: words.next()?, service: words.next()? }).filter(|member| member.check().is_ok())
    };
    text.lines().filter_map(member).collect()
}

pub(super) fn save_seeds(state: &Path, seeds: &[Member]) -> Result<(), ReplicaError> {
    let line = |m: &Member| format!("{} {} {}\n", Id(m.key), m.peer, m.service);
    Ok(write_private(&state.join(SEEDS), seeds.iter().map(line).collect::<String>().as_bytes())?)
}

/// Whether there ever was a log. Without it this key has promised nothing to anybody.
pub(super) fn had_log(state: &Path) -> bool {
    state.join(BEGUN).exists()
}

/// The folder of the log; from now on there was one.
pub(super) fn log_folder(state: &Path) -> Result<PathBuf, ReplicaError> {
    let path = state.join(LOG);
    private_folder(&path)?;
    if !had_log(state) {
        write_private(&state.join(BEGUN), b"")?;
    }
    Ok(path)
}

/// The log of the coordinator that was alone counts no more.
pub(super) fn set_alone_aside(state: &Path) -> Result<(), ReplicaError> {
    let (from, to) = (state.join(ALONE), state.join(ASIDE));
    let disk = |e: std::io::Error| ReplicaError::Disk { path: from.display().to_string(), cause: e.to_string() };
    if to.exists() {
        fs::remove_dir_all(&to).map_err(disk)?;
    }
    if from.exists() { fs::rename(&from, &to).map_err(disk) } else { Ok(()) }
}

pub(super) fn load(state: &Path) -> Result<Option<Credential>, ReplicaError> {
    let path = state.join(PEER);
    let Some(bytes) = read_private(&path, MAX_CREDENTIAL_BYTES)? else { return Ok(None) };
    let named = |cause: String| IdentityError::File { path: path.display().to_string(), cause };
    let damaged = "is damaged; restore it, or have the others remove this coordinator and join anew with an empty folder";
    let text = std::str::from_utf8(&bytes).map_err(|_| named(damaged.to_owned()))?;
    Ok(Some(Credential::from_text(text).map_err(|e| named(format!("cannot be used: {e}")))?))
}

pub(super) fn save(state: &Path, credential: &Credential) -> Result<(), ReplicaError> {
    private_folder(state)?;
    write_private(&state.join(PEER), credential.to_text()?.as_bytes())?;
    // In there now.
    let _ = fs::remove_file(state.join(KEY));
    Ok(())
}

/// The key this folder has, or a new one, kept before anybody hears of it: an answer that is lost on the way costs nothing.
pub(super) fn key(state: &Path) -> Result<NodeKey, ReplicaError> {
    if let Some(credential) = load(state)? {
        return Ok(credential.key);
    }
    private_folder(state)?;
    let path = state.join(KEY);
    if let Some(bytes) = read_private(&path, MAX_KEY_BYTES)? {
        return Ok(NodeKey::from_pkcs8(&bytes)?);
    }
    let key = NodeKey::generate()?;
    write_private(&path, &key.to_pkcs8())?;
    Ok(key)
}
