//! Token, identity, and who else has it.

use super::{Check, Outcome};
use obelysk_node::identity::{Credential, MAX_CREDENTIAL_BYTES, NodeKeyId, Token, read_private, unix_now};
use std::fs::{File, TryLockError};
use std::path::Path;

/// Folders of nodes looked at for copies of one identity.
const MAX_FOLDERS: usize = 256;

/// The identity kept in `state`, if there is one, and how long its certificate still serves.
pub fn identity(state: &Path, checks: &mut Vec<Check>) -> Option<Credential> {
    let path = state.join("identity.toml");
    let read = read_private(&path, MAX_CREDENTIAL_BYTES)
        .and_then(|bytes| bytes.map(|bytes| Credential::from_text(&String::from_utf8_lossy(&bytes))).transpose());
    match read {
        Ok(None) => None,
        Ok(Some(credential)) => {
            checks.push(certificate(&credential, unix_now()));
            Some(credential)
        }
        Err(error) => {
            let remedy =
                format!("make {} readable for this user alone, or remove it and join again with a new token", path.display());
            checks.push(Check::failed("identity", error, remedy));
            None
        }
    }
}

fn certificate(c: &Credential, now: u64) -> Check {
    let left = c.expires_unix_s.saturating_sub(now);
    let life = c.expires_unix_s.saturating_sub(c.issued_unix_s);
    if left == 0 {
        let detail = format!("node {}: the certificate has expired", c.id());
        return Check::failed("identity", detail, "join again with a new token; if the clock is wrong, set it first");
    }
    let detail = format!("node {}, certificate for {left} s more", c.id());
    if left < life / 4 {
        let remedy = "it is renewed at half life while the node is connected: start the node now, or it needs a new token";
        return Check::warned("identity", detail, remedy);
    }
    Check::passed("identity", detail)
}

/// Whether a token is still good by this machine's clock.
pub fn token(token: &Token) -> Check {
    let left = token.expires_unix_s.saturating_sub(unix_now());
    if left > 0 {
        Check::passed("token", format_args!("{}, for {left} s more by this machine's clock", token.id))
    } else {
        let remedy = "make a new one with `obelysk token create`, or set the clock";
        Check::failed("token", "it has expired by this machine's clock", remedy)
    }
}

/// Whether token and identity are of one cluster.
pub fn pins(credential: &Credential, token: Option<&Token>) -> Option<Check> {
    let token = token?;
    Some(if token.pin == credential.pin {
        Check::passed("pin", "token and identity name the same authority")
    } else {
        let detail = "the token is of another cluster than the identity kept here";
        Check::warned("pin", detail, "`node join` with this token leaves the old cluster; pass another --state to stay in both")
    })
}

/// Whether a process uses the identity now. Its lock is tried and let go of, nothing is created.
pub fn in_use(state: &Path) -> Option<Check> {
    let file = File::open(state.join("lock")).ok()?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            let detail = format!("a process runs with the identity in {}", state.display());
            Some(Check::warned("in use", detail, "do not start a second one; give it another --name or --state"))
        }
        Ok(()) | Err(TryLockError::Error(_)) => None,
    }
}

/// Other folders of this home that hold the same identity.
pub fn copies(root: &Path, state: &Path, id: NodeKeyId) -> Option<Check> {
    let folders = std::fs::read_dir(root.join("nodes")).into_iter().flatten().flatten().take(MAX_FOLDERS);
    let same = |path: &Path| {
        let bytes = read_private(&path.join("identity.toml"), MAX_CREDENTIAL_BYTES).ok().flatten();
        bytes.and_then(|b| Credential::from_text(&String::from_utf8_lossy(&b)).ok()).is_some_and(|c| c.id() == id)
    };
    let own = state.canonicalize().ok();
    let other = folders.map(|e| e.path()).find(|path| path.canonicalize().ok() != own && same(path))?;
    Some(Check {
        name: "copies".to_owned(),
        outcome: Outcome::Failed,
        detail: format!("{} holds the same identity", other.display()),
        remedy: Some(
            "two nodes with one identity throw each other out: remove it from one, which joins again with a token".to_owned(),
        ),
    })
}
