//! Secret files: mode 0600 from the first byte on, whole or not at all, on disk before anybody is told.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use zeroize::Zeroizing;

use super::IdentityError;

const LOCK_FILE: &str = "lock";

fn wrong(path: &Path, cause: impl std::fmt::Display) -> IdentityError {
    IdentityError::File { path: path.display().to_string(), cause: cause.to_string() }
}

/// Creates a folder that only its owner may enter, and what leads to it. An existing one is left as it is.
///
/// # Errors
/// [`IdentityError::File`].
pub fn private_folder(path: &Path) -> Result<(), IdentityError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| wrong(path, format_args!("cannot be created: {e}")))
}

/// Writes a secret file: a new file of mode 0600, synced, renamed over the old one, folder synced.
///
/// # Errors
/// [`IdentityError::File`]; the old content is then still there.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let stem = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    // Unique in this process; another process with the same id left it behind when it died.
    let name = format!(".{stem}.{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let fresh = parent.join(name);
    let attempt = || -> std::io::Result<()> {
        match std::fs::remove_file(&fresh) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        File::open(parent)?.sync_all()
    };
    attempt().map_err(|e| {
        let _ = std::fs::remove_file(&fresh);
        wrong(path, format_args!("cannot be written: {e}; check the folder's owner and the free space"))
    })
}

/// Reads a secret file of at most `limit` bytes; `None` when there is none.
///
/// # Errors
/// [`IdentityError::File`]: unreadable, too long, or open to other users.
pub fn read_private(path: &Path, limit: u64) -> Result<Option<Zeroizing<Vec<u8>>>, IdentityError> {
    let unreadable = |e: std::io::Error| wrong(path, format_args!("cannot be read: {e}; check its owner"));
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(e)),
    };
    let facts = file.metadata().map_err(unreadable)?;
    if !facts.is_file() {
        return Err(wrong(path, "is not a file; remove it"));
    }
    let mode = facts.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let path_text = path.display();
        return Err(wrong(path, format_args!("holds a secret and has mode {mode:04o}; run `chmod 600 {path_text}`")));
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(limit + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > limit {
        return Err(wrong(path, format_args!("has more than {limit} bytes, which no such file has; remove it and join again")));
    }
    Ok(Some(bytes))
}

/// Holds a folder for this process; the system lets go of it however the process ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
    path: PathBuf,
}

impl FolderLock {
    /// Takes the folder, creating it if need be.
    ///
    /// # Errors
    /// [`IdentityError::InUse`] when another process has it, [`IdentityError::File`] when it cannot be made.
    pub fn take(folder: &Path) -> Result<Self, IdentityError> {
        private_folder(folder)?;
        let path = folder.join(LOCK_FILE);
        let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = open.map_err(|e| wrong(&path, format_args!("cannot be opened: {e}; check the folder's owner")))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file, path: folder.to_owned() }),
            Err(std::fs::TryLockError::WouldBlock) => Err(IdentityError::InUse { path: folder.display().to_string() }),
            Err(std::fs::TryLockError::Error(e)) => Err(wrong(&path, format_args!("cannot be locked: {e}"))),
        }
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_files_are_private_whole_and_bounded() {
        let place = tempfile::tempdir().expect("folder");
        let folder = place.path().join("a/b");
        private_folder(&folder).expect("made");
        assert_eq!(std::fs::metadata(&folder).expect("there").permissions().mode() & 0o777, 0o700);
        let path = folder.join("secret");
        assert!(read_private(&path, 10).expect("nothing there").is_none());
        write_private(&path, b"first").expect("written");
        write_private(&path, b"second").expect("replaced");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(read_private(&path, 6).expect("read").expect("there").as_slice(), b"second");
        assert!(read_private(&path, 5).expect_err("too long").to_string().contains("more than 5 bytes"));
        let left: Vec<_> = std::fs::read_dir(&folder).expect("lists").map(|e| e.expect("entry").file_name()).collect();
        assert_eq!(left, ["secret"], "no temporary file stays");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("set");
        assert!(read_private(&path, 10).expect_err("open to others").to_string().contains("chmod 600"));
        assert!(write_private(&place.path().join("none/secret"), b"x").expect_err("no folder").to_string().contains("written"));
    }

    #[test]
    fn a_folder_has_one_holder() {
        let place = tempfile::tempdir().expect("folder");
        let held = FolderLock::take(place.path()).expect("free");
        assert!(matches!(FolderLock::take(place.path()), Err(IdentityError::InUse { .. })));
        drop(held);
        FolderLock::take(place.path()).expect("free again");
    }
}
