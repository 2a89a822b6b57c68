//! TLS with a pinned key: no certificate authority, no clock, no names; the fingerprint in the address is the whole trust.
//!
//! Seam for later: join tokens bring client certificates, checked where `with_no_client_auth` stands.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{DigitallySignedStruct, SignatureScheme};

use crate::error::TransportError;

/// Name in the handshake. Fixed: the key is pinned, and the real host name need not be told to the network.
pub(super) const SERVER_NAME: &str = "obelysk";

/// SHA-256 of a public key (SubjectPublicKeyInfo, DER).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of the key in a certificate.
    ///
    /// # Errors
    /// [`TransportError::Setup`] when it is not a certificate.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, TransportError> {
        let parsed = ParsedCertificate::try_from(certificate).map_err(|e| TransportError::Setup(e.to_string()))?;
        let spki = parsed.subject_public_key_info();
        let mut bytes = [0; 32];
        bytes.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, spki.as_ref()).as_ref());
        Ok(Self(bytes))
    }

    /// Reads 64 hexadecimal digits.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<_>>()?;
        let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        (digits.len() == 64).then(|| bytes.try_into().ok().map(Self)).flatten()
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// Certificate and key a coordinator shows.
pub struct ServerIdentity {
    /// X.509 certificate, DER.
    pub certificate: CertificateDer<'static>,
    /// PKCS #8 private key, DER.
    pub key: Vec<u8>,
}

impl fmt::Debug for ServerIdentity {
    /// Never prints the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerIdentity").finish_non_exhaustive()
    }
}

/// The key a server showed, kept so that a mismatch can be told from other handshake failures.
#[derive(Debug, Clone, Default)]
pub(super) struct SeenKey(Arc<Mutex<Option<Fingerprint>>>);

impl SeenKey {
    pub(super) fn mismatch(&self, expected: Fingerprint) -> Option<TransportError> {
        let seen = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        (seen != expected).then(|| TransportError::WrongKey { expected: expected.to_string(), got: seen.to_string() })
    }
}

#[derive(Debug)]
struct PinnedKey {
    pin: Fingerprint,
    seen: SeenKey,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let got = Fingerprint::of_certificate(end_entity).map_err(|e| rustls::Error::General(e.to_string()))?;
        *self.seen.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(got);
        if got == self.pin {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("QUIC uses TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

pub(super) fn client_config(pin: Fingerprint, alpn: &[&[u8]]) -> Result<(QuicClientConfig, SeenKey), TransportError> {
    let setup = |e: String| TransportError::Setup(e);
    let provider = Arc::new(provider::default_provider());
    let seen = SeenKey::default();
    let verifier = PinnedKey { pin, seen: seen.clone(), provider: provider.clone() };
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| setup(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let quic = QuicClientConfig::try_from(config).map_err(|e| setup(e.to_string()))?;
    Ok((quic, seen))
}

pub(super) fn server_config(identity: &ServerIdentity) -> Result<QuicServerConfig, TransportError> {
    let setup = |e: String| TransportError::Setup(e);
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key.clone()));
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| setup(e.to_string()))?
        .with_no_client_auth()
        .with_single_cert(vec![identity.certificate.clone()], key)
        .map_err(|e| setup(e.to_string()))?;
    config.alpn_protocols = vec![obelysk_protocol::wire::ALPN.to_vec()];
    QuicServerConfig::try_from(config).map_err(|e| setup(e.to_string()))
}
