//! What the key of a token signs: this connection, this request, this token, this moment. A signature is good for nothing else.

use quinn::Connection;
use ring::signature::{ED25519, UnparsedPublicKey};

use super::{ClusterId, Token, TokenId};
use crate::error::TransportError;

/// Label of the keying material that both ends of one TLS connection, and nobody else, can compute (RFC 8446 §7.5).
const EXPORTER: &[u8] = b"EXPORTER-obelysk-join-1";
/// Begins every statement, so that a token's signature can never stand for anything else.
const DOMAIN: &[u8] = b"obelysk join statement 1\0";

/// The statement of one join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinStatement(Vec<u8>);

impl JoinStatement {
    /// The statement for a request on this connection. Fields: domain, exporter bound to the request (32 bytes), BLAKE3 of the
    /// request (32), cluster (16), token (16), the machine's clock (8, little-endian), BLAKE3 of its name (32).
    ///
    /// # Errors
    /// [`TransportError::Lost`] when the connection has no keys.
    pub fn new(
        connection: &Connection,
        csr: &[u8],
        (cluster, token): (ClusterId, TokenId),
        unix_s: u64,
        name: &str,
    ) -> Result<Self, TransportError> {
        let csr = blake3::hash(csr);
        let mut exporter = [0; 32];
        connection
            .export_keying_material(&mut exporter, EXPORTER, csr.as_bytes())
            .map_err(|_| TransportError::Lost("the connection has no keys to bind to".to_owned()))?;
        let name = blake3::hash(name.as_bytes());
        let parts: [&[u8]; 7] = [DOMAIN, &exporter, csr.as_bytes(), &cluster.0, &token.0, &unix_s.to_le_bytes(), name.as_bytes()];
        Ok(Self(parts.concat()))
    }

    /// Signs it with the token's key.
    ///
    /// # Errors
    /// [`super::TokenError`] when the token's seed makes no key, which no token of ours does.
    pub fn sign(&self, token: &Token) -> Result<Vec<u8>, super::TokenError> {
        Ok(token.key()?.sign(&self.0).as_ref().to_vec())
    }

    /// Whether this signature is of this statement and by this key.
    #[must_use]
    pub fn is_signed(&self, public_key: &[u8; 32], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, public_key).verify(&self.0, signature).is_ok()
    }
}
