//! What a member keeps: key, certificate, whom it trusts and where they are. As a file it is TOML, mode 0600.

use std::fmt;

use data_encoding::HEXLOWER_PERMISSIVE;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{ClusterId, Id, IdentityError, NodeKey, NodeKeyId, unix_now};
use crate::address::CoordinatorAddress;
use crate::transport::{ClientIdentity, Fingerprint};

/// Longest file: two certificates of 3 KiB and a key in hexadecimal, and eight addresses.
pub const MAX_CREDENTIAL_BYTES: u64 = 64 << 10;
/// Version of the file.
const VERSION: u32 = 1;

/// A certificate with its key and surroundings: of a node, or of an administrator.
pub struct Credential {
    /// The cluster.
    pub cluster: ClusterId,
    /// SHA-256 of the authority's public key.
    pub pin: Fingerprint,
    /// Coordinators, `host:port`.
    pub addresses: Vec<String>,
    /// The key.
    pub key: NodeKey,
    /// Certificate of that key, DER.
    pub certificate: Vec<u8>,
    /// The authority's certificate, DER.
    pub authority: Vec<u8>,
    /// When it came, seconds since 1970 by this machine's clock.
    pub issued_unix_s: u64,
    /// Until when it is good, by this machine's clock.
    pub expires_unix_s: u64,
}

/// As it stands in a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    version: u32,
    cluster: ClusterId,
    node: NodeKeyId,
    pin: String,
    addresses: Vec<String>,
    issued_unix_s: u64,
    expires_unix_s: u64,
    certificate: String,
    authority: String,
    key: Zeroizing<String>,
}

impl Credential {
    /// The id of its holder.
    #[must_use]
    pub fn id(&self) -> NodeKeyId {
        self.key.id()
    }

    /// Where coordinators are.
    ///
    /// # Errors
    /// [`IdentityError::Key`] for an address that is none.
    pub fn places(&self) -> Result<Vec<CoordinatorAddress>, IdentityError> {
        let read = |a: &String| CoordinatorAddress::at(a, self.pin).map_err(|e| IdentityError::Key(e.to_string()));
        self.addresses.iter().map(read).collect()
    }

    /// What it shows in a handshake.
    #[must_use]
    pub fn client(&self) -> ClientIdentity {
        ClientIdentity { certificate: self.certificate.clone(), key: self.key.to_pkcs8() }
    }

    /// Whether this machine's clock is past its end.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        unix_now() >= self.expires_unix_s
    }

    /// The file's text: secret.
    ///
    /// # Errors
    /// [`IdentityError::Key`] when it cannot be written as TOML.
    pub fn to_text(&self) -> Result<Zeroizing<String>, IdentityError> {
        let form = Form {
            version: VERSION,
            cluster: self.cluster,
            node: self.id(),
            pin: self.pin.to_string(),
            addresses: self.addresses.clone(),
            issued_unix_s: self.issued_unix_s,
            expires_unix_s: self.expires_unix_s,
            certificate: HEXLOWER_PERMISSIVE.encode(&self.certificate),
            authority: HEXLOWER_PERMISSIVE.encode(&self.authority),
            key: Zeroizing::new(HEXLOWER_PERMISSIVE.encode(&self.key.to_pkcs8())),
        };
        toml::to_string(&form).map(Zeroizing::new).map_err(|e| IdentityError::Key(e.to_string()))
    }

    /// Reads the file's text. Total on any text; what is wrong is said without quoting it.
    ///
    /// # Errors
    /// [`IdentityError::Key`].
    pub fn from_text(text: &str) -> Result<Self, IdentityError> {
        let bad = |what: &str| IdentityError::Key(format!("the identity file has no usable {what}"));
        // The parser's own message would quote the file, and the file holds a key.
        let form: Form = toml::from_str(text).map_err(|_| bad("form"))?;
        if form.version != VERSION {
            return Err(IdentityError::Key(format!("the identity file has version {}, not {VERSION}", form.version)));
        }
        let hex = |text: &str, what| HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| bad(what));
        let credential = Self {
            cluster: form.cluster,
            pin: Fingerprint::from_hex(&form.pin).ok_or_else(|| bad("pin"))?,
            addresses: form.addresses,
            key: NodeKey::from_pkcs8(&Zeroizing::new(hex(&form.key, "key")?))?,
            certificate: hex(&form.certificate, "certificate")?,
            authority: hex(&form.authority, "authority")?,
            issued_unix_s: form.issued_unix_s,
            expires_unix_s: form.expires_unix_s,
        };
        if credential.id() != form.node {
            return Err(bad("key: it is of another node"));
        }
        if credential.addresses.is_empty() || credential.places().is_err() {
            return Err(bad("address"));
        }
        Ok(credential)
    }

    /// A second holder of the same.
    ///
    /// # Errors
    /// [`IdentityError::Key`].
    pub fn duplicate(&self) -> Result<Self, IdentityError> {
        Ok(Self {
            cluster: Id(self.cluster.0),
            pin: self.pin,
            addresses: self.addresses.clone(),
            key: NodeKey::from_pkcs8(&self.key.to_pkcs8())?,
            certificate: self.certificate.clone(),
            authority: self.authority.clone(),
            issued_unix_s: self.issued_unix_s,
            expires_unix_s: self.expires_unix_s,
        })
    }
}

impl fmt::Debug for Credential {
    /// Never prints the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("id", &self.id()).field("addresses", &self.addresses).finish_non_exhaustive()
    }
}
