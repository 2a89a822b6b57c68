//! Free disk, asked before anything large is written.

use super::error::{FetchError, at};
use std::path::Path;

/// Left free on any disk we fill: whatever else runs there needs some.
pub const RESERVE_BYTES: u64 = 256 << 20;

/// Bytes that may be written to the disk of an existing folder.
///
/// # Errors
/// What the system says.
pub fn free(folder: &Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Checks that `bytes` fit on the disk of `folder`, with a reserve.
///
/// # Errors
/// [`FetchError::DiskFull`].
pub fn ensure(folder: &Path, bytes: u64) -> Result<(), FetchError> {
    let free = free(folder).map_err(at(folder))?;
    let needed = bytes.saturating_add(RESERVE_BYTES);
    if bytes > 0 && needed > free {
        return Err(FetchError::DiskFull { path: folder.to_owned(), needed, free });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_fit_is_refused_with_numbers() {
        let folder = tempfile::tempdir().unwrap();
        ensure(folder.path(), 1).unwrap();
        let free = free(folder.path()).unwrap();
        let error = ensure(folder.path(), u64::MAX - RESERVE_BYTES).unwrap_err();
        let FetchError::DiskFull { needed, free: said, .. } = &error else { panic!("{error}") };
        assert!(*needed == u64::MAX && said.abs_diff(free) < 1 << 33, "{error}");
    }
}
