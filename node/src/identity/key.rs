//! A machine's key pair (ECDSA P-256): made here, never leaves this machine, names it by the digest of its public half.

use std::fmt;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData as _};
use rustls::pki_types::PrivatePkcs8KeyDer;
use zeroize::Zeroizing;

use super::{Id, IdentityError, NodeKeyId};

/// A key pair of a node or an administrator.
pub struct NodeKey(KeyPair);

impl NodeKey {
    /// A new key.
    ///
    /// # Errors
    /// [`IdentityError::Key`] when the system gives no random bytes.
    pub fn generate() -> Result<Self, IdentityError> {
        KeyPair::generate().map(Self).map_err(|e| IdentityError::Key(e.to_string()))
    }

    /// A key from its PKCS #8 form.
    ///
    /// # Errors
    /// [`IdentityError::Key`] when it is none of ours.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, IdentityError> {
        let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(der)).map_err(|e| IdentityError::Key(e.to_string()))?;
        if key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(IdentityError::Key("it is not of the curve P-256".to_owned()));
        }
        Ok(Self(key))
    }

    /// PKCS #8 form: secret.
    #[must_use]
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialize_der())
    }

    /// The id of whoever has this key.
    #[must_use]
    pub fn id(&self) -> NodeKeyId {
        Id(*blake3::hash(&self.0.subject_public_key_info()).as_bytes())
    }

    /// A certificate request: nothing in it counts but the public key, and that it is signed with the private one.
    ///
    /// # Errors
    /// [`IdentityError::Key`].
    pub fn request(&self) -> Result<Vec<u8>, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, self.id().to_string());
        let request = params.serialize_request(&self.0).map_err(|e| IdentityError::Key(e.to_string()))?;
        Ok(request.der().to_vec())
    }
}

impl fmt::Debug for NodeKey {
    /// Never prints the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_bytes_and_prints_none_of_them() {
        let key = NodeKey::generate().expect("random");
        let bytes = key.to_pkcs8();
        assert_eq!(NodeKey::from_pkcs8(&bytes).expect("reads").id(), key.id());
        assert_eq!(format!("{key:?}"), format!("NodeKey({})", key.id()));
        assert!(NodeKey::from_pkcs8(&bytes[1..]).is_err());
        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("random");
        let error = NodeKey::from_pkcs8(&other.serialize_der()).expect_err("another curve");
        assert!(error.to_string().contains("P-256"), "{error}");
    }
}
