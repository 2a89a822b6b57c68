//! Where a node keeps who it is, and what it starts with: an identity from before, or a token and a new key.

use std::path::Path;

use super::{Credential, FolderLock, IdentityError, MAX_CREDENTIAL_BYTES, NodeKey, Token, read_private, write_private};

const FILE: &str = "identity.toml";

/// Where an identity outlives the process, or that it does not.
#[derive(Debug)]
pub enum IdentityStore {
    /// Gone with the process: for nodes that a parent starts for one job.
    Memory,
    /// A folder of this process alone.
    Folder(FolderLock),
}

impl IdentityStore {
    /// Takes a folder, creating it if need be.
    ///
    /// # Errors
    /// [`IdentityError`]: in use by another process, or not to be had.
    pub fn folder(path: &Path) -> Result<Self, IdentityError> {
        FolderLock::take(path).map(Self::Folder)
    }

    /// The identity kept, if there is one.
    ///
    /// # Errors
    /// [`IdentityError`]: unreadable, damaged, or open to other users.
    pub fn load(&self) -> Result<Option<Credential>, IdentityError> {
        let Self::Folder(lock) = self else { return Ok(None) };
        let path = lock.folder().join(FILE);
        let Some(bytes) = read_private(&path, MAX_CREDENTIAL_BYTES)? else { return Ok(None) };
        let named = |cause: String| IdentityError::File { path: path.display().to_string(), cause };
        let text = std::str::from_utf8(&bytes).map_err(|_| named("is damaged; remove it and join again with a token".into()))?;
        Credential::from_text(text).map(Some).map_err(|e| named(format!("cannot be used: {e}")))
    }

    /// Keeps an identity.
    ///
    /// # Errors
    /// [`IdentityError::File`].
    pub fn save(&self, credential: &Credential) -> Result<(), IdentityError> {
        let Self::Folder(lock) = self else { return Ok(()) };
        write_private(&lock.folder().join(FILE), credential.to_text()?.as_bytes())
    }

    /// A folder beside the identity for what this process keeps; `None` when it keeps nothing.
    #[must_use]
    pub fn beside(&self, name: &str) -> Option<std::path::PathBuf> {
        match self {
            Self::Memory => None,
            Self::Folder(lock) => Some(lock.folder().join(name)),
        }
    }

    fn place(&self) -> String {
        match self {
            Self::Memory => "memory".to_owned(),
            Self::Folder(lock) => lock.folder().display().to_string(),
        }
    }
}

/// Who a node is when it dials.
#[derive(Debug)]
pub enum Identity {
    /// Let in before.
    Member(Credential),
    /// Not yet: has a token and a key of its own.
    New {
        /// The token.
        token: Box<Token>,
        /// The key that will be certified; the same at every attempt, so that an answer lost on the way costs no second use.
        key: NodeKey,
    },
}

impl Identity {
    /// What to start with. An identity that still serves goes before a token for the same cluster, so that a service restarted with a
    /// spent token comes back; an identity of another cluster, or one that has expired, gives way to a token.
    ///
    /// # Errors
    /// [`IdentityError::None`] when there is neither, and what reading the identity gave.
    pub fn start(store: &IdentityStore, token: Option<Token>) -> Result<Self, IdentityError> {
        match (store.load()?, token) {
            (None, None) => Err(IdentityError::None { path: store.place() }),
            (Some(credential), None) => Ok(Self::Member(credential)),
            (Some(credential), Some(token)) if credential.pin == token.pin && !credential.is_expired() => {
                tracing::info!(node = %credential.id(), "this machine is a member already; the token is not used");
                Ok(Self::Member(credential))
            }
            (_, Some(token)) => Ok(Self::New { token: Box::new(token), key: NodeKey::generate()? }),
        }
    }
}
