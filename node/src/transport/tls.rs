//! TLS under a pinned authority: no system roots, no host names; the SHA-256 of the authority's public key is the whole trust.
//!
//! A server shows a certificate that the pinned authority issued, with the authority's own. A client may show one too; without it, it
//! reaches nothing that asks for one.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use zeroize::Zeroizing;

use crate::error::TransportError;

/// Name in the handshake and in every server's certificate. Fixed: the authority is pinned, and the real host name need not be told to
/// the network.
pub const SERVER_NAME: &str = "obelysk";

/// SHA-256 of a public key (SubjectPublicKeyInfo, DER).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of the key in a certificate.
    ///
    /// # Errors
    /// [`TransportError::Setup`] when it is not a certificate.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, TransportError> {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, &public_key(certificate)?).as_ref());
        Ok(Self(bytes))
    }

    /// The digest itself.
    #[must_use]
    pub const fn bytes(&self) -> [u8; 32] {
        self.0
    }

    /// From the digest.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads 64 hexadecimal digits.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?;
        bytes.try_into().ok().map(Self)
    }
}

/// The public key in a certificate (SubjectPublicKeyInfo, DER).
///
/// # Errors
/// [`TransportError::Setup`] when it is not a certificate.
pub fn public_key(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, TransportError> {
    let parsed = ParsedCertificate::try_from(certificate).map_err(|e| TransportError::Setup(e.to_string()))?;
    Ok(parsed.subject_public_key_info().as_ref().to_vec())
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

/// Certificate and key a member shows.
pub struct ClientIdentity {
    /// X.509 certificate, DER.
    pub certificate: Vec<u8>,
    /// PKCS #8 private key, DER.
    pub key: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for ClientIdentity {
    /// Never prints the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIdentity").finish_non_exhaustive()
    }
}

/// What a coordinator's endpoint shows and accepts.
#[derive(Debug)]
pub struct ServerTls {
    /// Gives the certificate to show; asked at every handshake, so that it can be renewed while serving.
    pub certificates: Arc<dyn ResolvesServerCert>,
    /// Certificate of the authority whose clients are members, DER.
    pub authority: CertificateDer<'static>,
}

impl ServerTls {
    /// A chain with its key, in the form that handshakes take.
    ///
    /// # Errors
    /// [`TransportError::Setup`] when they do not belong together.
    pub fn certified(chain: Vec<CertificateDer<'static>>, key_pkcs8: &[u8]) -> Result<Arc<CertifiedKey>, TransportError> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key_pkcs8));
        let made = CertifiedKey::from_der(chain, key.clone_key(), &provider::default_provider());
        made.map(Arc::new).map_err(|e| TransportError::Setup(e.to_string()))
    }
}

/// Why a server's certificate was not accepted, kept so that it can be told from other handshake failures.
#[derive(Debug, Clone, Default)]
pub(super) struct Verdict(Arc<Mutex<Option<TransportError>>>);

impl Verdict {
    pub(super) fn error(&self) -> Option<TransportError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn refuse(&self, error: TransportError) -> rustls::Error {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        CertificateError::ApplicationVerificationFailure.into()
    }
}

#[derive(Debug)]
struct PinnedAuthority {
    pin: Fingerprint,
    verdict: Verdict,
    provider: Arc<CryptoProvider>,
}

impl PinnedAuthority {
    /// The certificate with the pinned key among those shown; it becomes the only root.
    fn root(&self, shown: &[CertificateDer<'_>]) -> Option<RootCertStore> {
        let authority = shown.iter().find(|c| Fingerprint::of_certificate(c).is_ok_and(|got| got == self.pin))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned()).ok()?;
        Some(roots)
    }
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(roots) = self.root(intermediates) else {
            let last = intermediates.last().unwrap_or(end_entity);
            let got = Fingerprint::of_certificate(last).map_or_else(|_| "none".to_owned(), |got| got.to_string());
            return Err(self.verdict.refuse(TransportError::WrongKey { expected: self.pin.to_string(), got }));
        };
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        inner.verify_server_cert(end_entity, &[], server_name, ocsp_response, now).map_err(|error| {
            let out_of_time = matches!(
                error,
                rustls::Error::InvalidCertificate(
                    CertificateError::Expired
                        | CertificateError::ExpiredContext { .. }
                        | CertificateError::NotValidYet
                        | CertificateError::NotValidYetContext { .. }
                )
            );
            let cause = error.to_string();
            self.verdict.refuse(if out_of_time { TransportError::Clock(cause) } else { TransportError::ServerCertificate(cause) })
        })
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

pub(super) fn client_config(
    pin: Fingerprint,
    alpn: &[&[u8]],
    identity: Option<&ClientIdentity>,
) -> Result<(QuicClientConfig, Verdict), TransportError> {
    let setup = |e: rustls::Error| TransportError::Setup(e.to_string());
    let provider = Arc::new(provider::default_provider());
    let verdict = Verdict::default();
    let verifier = PinnedAuthority { pin, verdict: verdict.clone(), provider: provider.clone() };
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(setup)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let chain = vec![CertificateDer::from(identity.certificate.clone())];
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key.to_vec()));
            builder.with_client_auth_cert(chain, key).map_err(setup)?
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    // A resumed session would carry a certificate past its end.
    config.resumption = rustls::client::Resumption::disabled();
    let quic = QuicClientConfig::try_from(config).map_err(|e| TransportError::Setup(e.to_string()))?;
    Ok((quic, verdict))
}

/// Who may open a connection at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// Nodes, clients, and machines that want to join; whoever shows a certificate shows a good one, and who needs one is decided by what
    /// it asks for.
    Anyone,
    /// Coordinators: nobody without a certificate.
    Coordinators,
}

pub(super) fn server_config(tls: &ServerTls, audience: Audience) -> Result<QuicServerConfig, TransportError> {
    let setup = |e: String| TransportError::Setup(e);
    let provider = Arc::new(provider::default_provider());
    let mut members = RootCertStore::empty();
    members.add(tls.authority.clone()).map_err(|e| setup(e.to_string()))?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(members), provider.clone());
    let (clients, alpn): (_, &[&[u8]]) = match audience {
        Audience::Anyone => (clients.allow_unauthenticated(), &[obelysk_protocol::wire::ALPN, obelysk_protocol::wire::ALPN_JOIN]),
        Audience::Coordinators => (clients, &[obelysk_protocol::wire::ALPN_PEER]),
    };
    let clients = clients.build().map_err(|e| setup(e.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| setup(e.to_string()))?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(tls.certificates.clone());
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    // As on the client's side: every connection shows its certificate anew.
    config.send_tls13_tickets = 0;
    QuicServerConfig::try_from(config).map_err(|e| setup(e.to_string()))
}
