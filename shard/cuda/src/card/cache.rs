//! Compiled kernels on disk. A file is named by all that decides its content, and begins with a digest of it: what a crash or
//! a failing disk leaves is compiled again, never loaded. A folder that cannot be written costs time, not the work.

use crate::device::DeviceError;
use obelysk_protocol::transcript::{Blake2s, Digest, HashSuite as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Bytes of the digest before an image.
const HEADER: usize = 32;

/// What an image depends on.
#[derive(Clone, Copy, Debug)]
pub struct Key<'a> {
    /// The kernels.
    pub text: &'a str,
    /// Options of the compiler, architecture included.
    pub options: &'a [String],
    /// Version of the compiler.
    pub compiler: (u32, u32),
    /// Version of the driver.
    pub driver: u32,
}

impl Key<'_> {
    fn file(&self) -> String {
        let text = format!("{:?} {:?} {}\n{}", self.options, self.compiler, self.driver, self.text);
        let name: String = Blake2s::hash(0, text.as_bytes()).iter().take(16).map(|b| format!("{b:02x}")).collect();
        format!("kernels-{name}.bin")
    }
}

fn digest(bytes: &[u8]) -> Digest {
    Blake2s::hash(1, bytes)
}

/// Loads what is kept for `key` in `folder`, or what `make` gives, which is kept then. A whole file that cannot be loaded, such as one that
/// another driver of the same version wrote, is made again once.
///
/// # Errors
/// Those of `make`, and those of `load` for what was just made.
pub fn loaded<T>(
    folder: &Path,
    key: &Key<'_>,
    make: impl FnOnce() -> Result<Vec<u8>, DeviceError>,
    load: impl Fn(&[u8]) -> Result<T, DeviceError>,
) -> Result<T, DeviceError> {
    let path = folder.join(key.file());
    if let Some(bytes) = read(&path) {
        match load(&bytes) {
            Ok(found) => return Ok(found),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the compiled kernels kept here do not load: they are compiled again");
                // What cannot be removed is written over.
                let _ = std::fs::remove_file(&path);
            }
        }
    }
    let bytes = make()?;
    let made = load(&bytes)?;
    if let Err(error) = write(folder, &path, &bytes) {
        tracing::warn!(folder = %folder.display(), %error, "compiled kernels cannot be kept: they are compiled at every start");
    }
    Ok(made)
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let file = std::fs::read(path).ok()?;
    let (head, body) = file.split_at_checked(HEADER)?;
    if head == digest(body) {
        return Some(body.to_vec());
    }
    tracing::warn!(path = %path.display(), "the compiled kernels kept here are damaged: they are compiled again");
    None
}

/// Written beside its place and moved there whole. The folder is its owner's alone: what lies there is run.
fn write(folder: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
    let own = path.with_extension(format!("{}.new", std::process::id()));
    std::fs::write(&own, [digest(bytes).as_slice(), bytes].concat())?;
    std::fs::rename(&own, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn what_is_kept_is_used_and_what_is_damaged_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let options = ["--gpu-architecture=sm_90".to_owned()];
        let key = Key { text: "kernels", options: &options, compiler: (12, 9), driver: 12080 };
        let made = Cell::new(0);
        let make = || {
            made.set(made.get() + 1);
            Ok(vec![1, 2, 3])
        };
        let place = folder.path().join("cache");
        let get = |key: &Key<'_>| loaded(&place, key, make, |bytes| Ok(bytes.to_vec())).unwrap();
        assert_eq!((get(&key), get(&key), made.get()), (vec![1, 2, 3], vec![1, 2, 3], 1));
        assert_eq!(std::fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o700);
        let path = folder.path().join("cache").join(key.file());
        let whole = std::fs::read(&path).unwrap();
        for damaged in [whole[..whole.len() - 1].to_vec(), Vec::new(), [&whole[..HEADER], &[1, 2, 4]].concat()] {
            let before = made.get();
            std::fs::write(&path, damaged).unwrap();
            assert_eq!((get(&key), made.get()), (vec![1, 2, 3], before + 1));
        }
        // All that decides the content decides the name.
        let before = made.get();
        get(&Key { driver: 12090, ..key });
        get(&Key { compiler: (13, 0), ..key });
        get(&Key { text: "others", ..key });
        get(&Key { options: &[], ..key });
        assert_eq!(made.get(), before + 4);
    }

    #[test]
    fn a_folder_that_cannot_be_written_costs_only_time() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, []).unwrap();
        let key = Key { text: "", options: &[], compiler: (12, 9), driver: 0 };
        let made = loaded(&file, &key, || Ok(vec![7]), |bytes| Ok(bytes.to_vec())).unwrap();
        assert_eq!(made, [7]);
    }

    #[test]
    fn what_does_not_load_is_made_again_once() {
        let folder = tempfile::tempdir().unwrap();
        let key = Key { text: "kernels", options: &[], compiler: (12, 9), driver: 12080 };
        let load = |good: u8| move |bytes: &[u8]| if bytes == [good] { Ok(good) } else { Err(DeviceError::NoDriver) };
        assert_eq!(loaded(folder.path(), &key, || Ok(vec![1]), load(1)), Ok(1));
        assert_eq!(loaded(folder.path(), &key, || Ok(vec![2]), load(2)), Ok(2), "the first one is refused now");
        assert_eq!(loaded(folder.path(), &key, || panic!("the second one is kept"), load(2)), Ok(2));
        assert_eq!(loaded(folder.path(), &key, || Ok(vec![4]), load(3)), Err(DeviceError::NoDriver));
    }
}
