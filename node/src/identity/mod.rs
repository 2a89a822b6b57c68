//! Who a machine is: ids, keys, one-time tokens, the statement a new machine signs, and where its identity is kept.
//!
//! Both sides of a join use this; what only the authority does is in the coordinator. Private keys and token seeds are
//! wiped when dropped, never printed, and written to files of mode 0600 only.

mod credential;
mod files;
mod id;
mod join;
mod key;
mod statement;
mod store;
mod survey;
mod token;

use std::time::{SystemTime, UNIX_EPOCH};

pub use credential::{Credential, MAX_CREDENTIAL_BYTES};
pub use files::{FolderLock, private_folder, read_private, write_private};
pub use id::{ClusterId, Id, NodeKeyId, TokenId};
pub(crate) use join::merged;
pub use join::{ask, ask_within, coordinators, enrol, probe, renew};
pub use key::NodeKey;
pub use statement::JoinStatement;
pub use store::{Identity, IdentityStore};
pub use survey::{LEAST_MTU, Survey, survey};
pub use token::{MAX_TOKEN_BYTES, Token, TokenError, TokenSeed};

#[cfg(test)]
mod tests;

/// Why an identity cannot be used, made or kept.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IdentityError {
    /// A file or folder does not serve.
    #[error("{path}: {cause}")]
    File {
        /// Which.
        path: String,
        /// What is wrong with it, and what to do.
        cause: String,
    },
    /// Another process uses the folder.
    #[error("{path} is in use by another process; give this one a folder of its own (another --name or --state)")]
    InUse {
        /// The folder.
        path: String,
    },
    /// Nothing is known of any cluster.
    #[error(
        "this machine belongs to no cluster ({path} holds no identity) and no token was given; run `obelysk token create` where \
         the coordinator is, and give its line to `obelysk node join`"
    )]
    None {
        /// Where an identity was looked for.
        path: String,
    },
    /// A key could not be made or used.
    #[error("key: {0}; check that the system gives random bytes, or remove the identity and join again with a new token")]
    Key(String),
    /// The token cannot be used.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// Seconds since 1970 by this machine's clock; 0 for a clock before that.
#[must_use]
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
