//! Where registered models and downloads live: `models/NAME/` and `cache/` below one folder.

use super::exit::Failure;
use super::output::hex;
use obelysk_node::NodeSuite;
use obelysk_node::model_folder::{ModelFolder, REGISTERED_FILE};
use std::path::{Path, PathBuf};

/// Longest name of a registered model.
const MAX_NAME: usize = 64;

/// The folder that holds everything.
#[derive(Clone, Debug)]
pub struct Home(PathBuf);

impl Home {
    /// The folder given, else `$OBELYSK_HOME`, else the platform's data folder. Nothing is created.
    pub fn find(given: Option<PathBuf>) -> Result<Self, Failure> {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let user = || {
            set("HOME")
                .map(|home| home.join(if cfg!(target_os = "macos") { "Library/Application Support" } else { ".local/share" }))
        };
        let data = || set("XDG_DATA_HOME").or_else(user).map(|data| data.join("obelysk"));
        let found = given.or_else(|| set("OBELYSK_HOME")).or_else(data);
        let found = found.ok_or_else(|| Failure::input("no home folder is known; set OBELYSK_HOME or pass --home DIR"))?;
        Ok(Self(std::path::absolute(&found)?))
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// Downloads and copies of sources.
    pub fn cache(&self) -> PathBuf {
        self.0.join("cache")
    }

    /// The model that this program calibrates nodes with.
    pub fn calibration(&self) -> PathBuf {
        self.cache().join("calibration")
    }

    /// Folder of the registered models.
    pub fn models(&self) -> PathBuf {
        self.0.join("models")
    }

    /// Folder of the registered model `name`, whether or not it exists.
    pub fn model(&self, name: &str) -> Result<PathBuf, Failure> {
        let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > MAX_NAME || name.starts_with('.') || !name.chars().all(good) {
            let text = format!("`{name}` is no model name; use up to {MAX_NAME} letters, digits, `-`, `_`, `.`");
            return Err(Failure::input(text));
        }
        Ok(self.models().join(name))
    }

    /// Names of registered models in order.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.models()).into_iter().flatten().flatten();
        let names = entries.filter(|e| e.path().join(REGISTERED_FILE).is_file()).filter_map(|e| e.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|n| !n.starts_with('.')).collect();
        names.sort();
        names
    }

    /// A registered model by name, or by its folder or `registered.obr`.
    pub fn open(&self, model: &str) -> Result<ModelFolder, Failure> {
        let named = self.model(model).ok().filter(|folder| folder.join(REGISTERED_FILE).is_file());
        if let Some(folder) = named {
            return Ok(ModelFolder::open::<NodeSuite>(&folder)?);
        }
        if !Path::new(model).exists() {
            let names = self.names();
            let known =
                if names.is_empty() { "none is registered yet".into() } else { format!("registered: {}", names.join(", ")) };
            let text = format!(
                "no model `{model}` ({known}); run `obelysk demo` for `minilm`, `obelysk model register` for others, \
                 or give a registered model's folder"
            );
            return Err(Failure::input(text));
        }
        Ok(ModelFolder::open::<NodeSuite>(&std::path::absolute(model)?)?)
    }

    /// The models named, or all registered ones.
    pub fn open_all(&self, models: &[String]) -> Result<Vec<ModelFolder>, Failure> {
        let names = if models.is_empty() { self.names() } else { models.to_vec() };
        if names.is_empty() {
            return Err(Failure::input("no model is registered; run `obelysk model register` or pass --model FOLDER"));
        }
        names.iter().map(|name| self.open(name)).collect()
    }

    /// The registered model with this id, if there is one.
    pub fn by_id(&self, id: &[u8; 32]) -> Option<ModelFolder> {
        self.names().iter().filter_map(|name| self.open(name).ok()).find(|folder| &folder.id == id)
    }

    /// Builds a model in a temporary folder and puts it under `name` in one step. Whatever fails, what was there stays.
    pub fn install(
        &self,
        name: &str,
        replace: bool,
        build: impl FnOnce(&Path) -> Result<(), Failure>,
    ) -> Result<ModelFolder, Failure> {
        let target = self.model(name)?;
        std::fs::create_dir_all(self.models())?;
        let staging = tempfile::Builder::new().prefix(".new-").tempdir_in(self.models())?;
        let fresh = staging.path().join("model");
        std::fs::create_dir(&fresh)?;
        build(&fresh)?;
        let id = ModelFolder::open::<NodeSuite>(&fresh)?.id;
        if let Ok(old) = ModelFolder::open::<NodeSuite>(&target)
            && old.id != id
            && !replace
        {
            let text =
                format!("`{name}` is registered as another model (id {}); pass --replace, or choose another name", hex(&old.id));
            return Err(Failure::input(text));
        }
        if target.exists() {
            // A folder cannot replace a full one in one call; the old one leaves with the temporary folder.
            std::fs::rename(&target, staging.path().join("old"))?;
        }
        std::fs::rename(&fresh, &target)?;
        Ok(ModelFolder::open::<NodeSuite>(&target)?)
    }
}

/// Writes a file whole or not at all.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    use std::io::Write as _;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let wrong = |e: std::io::Error| Failure::input(format!("cannot write {}: {e}", path.display()));
    // As any new file: the umask decides who may read it.
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    let mut file = tempfile::Builder::new().permissions(readable).tempfile_in(parent).map_err(wrong)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(wrong)?;
    file.persist(path).map_err(|e| wrong(e.error))?;
    Ok(())
}

/// Reads a file of at most `limit` bytes.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    let wrong = |e: std::io::Error| Failure::input(format!("cannot read {}: {e}", path.display()));
    let found = std::fs::metadata(path).map_err(wrong)?.len();
    if found > limit {
        return Err(Failure::input(format!("{} has {found} bytes, more than any proof ({limit})", path.display())));
    }
    std::fs::read(path).map_err(wrong)
}
