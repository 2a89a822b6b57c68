//! The cluster's certificate authority: one key, made once, that certifies coordinators, nodes and administrators.
//!
//! It copies nothing from a request but its public key: names, times and usages are its own.

use std::fmt;
use std::time::Duration;

use obelysk_node::identity::{ClusterId, Credential, Id, NodeKey, NodeKeyId, unix_now};
use obelysk_node::transport::rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use obelysk_node::transport::{Fingerprint, SERVER_NAME};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber, date_time_ymd,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::registry::AdmissionError;

/// Certificates begin this long ago, for clocks that are behind: the most a machine that joins may be off, twice.
const BACKDATED_S: u64 = 600;
/// A coordinator's own certificate begins earlier, so that a machine whose clock is hours behind hears that from the coordinator.
const SERVER_BACKDATED_S: u64 = 7 * 86_400;
/// A coordinator's own certificate; a new one is made long before.
pub(crate) const SERVER_LIFE_S: u64 = 30 * 86_400;
/// An administrator's certificate; every start of the coordinator writes a new one.
const ADMIN_LIFE_S: u64 = 365 * 86_400;
/// Version of the document.
const VERSION: u32 = 1;

/// Key and certificate of the authority.
pub struct Authority {
    cluster: ClusterId,
    certificate: CertificateDer<'static>,
    pin: Fingerprint,
    issuer: Issuer<'static, KeyPair>,
}

/// As it is kept.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    version: u32,
    cluster: ClusterId,
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

fn subject(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "obelysk");
    subject.push(DnType::CommonName, name);
    subject
}

fn authority_params(cluster: ClusterId) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(&format!("cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    // RFC 5280, 4.1.2.5: no end is known. Its key is pinned; who has it is the cluster.
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(9999, 12, 31);
    params
}

fn failed(error: impl fmt::Display) -> AdmissionError {
    AdmissionError::Authority(error.to_string())
}

impl Authority {
    /// A new authority of a new cluster.
    ///
    /// # Errors
    /// [`AdmissionError::Authority`] when the system gives no random bytes.
    pub fn generate() -> Result<Self, AdmissionError> {
        let mut cluster = [0; 16];
        SystemRandom::new().fill(&mut cluster).map_err(|_| failed("the system gives no random bytes"))?;
        let key = KeyPair::generate().map_err(failed)?;
        let params = authority_params(Id(cluster));
        let certificate = params.self_signed(&key).map_err(failed)?.der().clone();
        Self::assemble(Id(cluster), certificate, key)
    }

    fn assemble(cluster: ClusterId, certificate: CertificateDer<'static>, key: KeyPair) -> Result<Self, AdmissionError> {
        let pin = Fingerprint::of_certificate(&certificate).map_err(failed)?;
        let of_key = ring::digest::digest(&ring::digest::SHA256, &key.subject_public_key_info());
        if of_key.as_ref() != pin.bytes() {
            return Err(failed("the authority's key and certificate do not belong together; restore both from a backup"));
        }
        Ok(Self { cluster, certificate, pin, issuer: Issuer::new(authority_params(cluster), key) })
    }

    /// The document to keep: secret.
    ///
    /// # Errors
    /// [`AdmissionError::Authority`].
    pub fn to_bytes(&self) -> Result<Zeroizing<Vec<u8>>, AdmissionError> {
        let key = Zeroizing::new(self.issuer.key().serialize_der());
        let form = Form { version: VERSION, cluster: self.cluster, certificate: self.certificate.to_vec(), key };
        serde_json::to_vec(&form).map(Zeroizing::new).map_err(failed)
    }

    /// Reads the document; what is wrong is said without quoting it.
    ///
    /// # Errors
    /// [`AdmissionError::Authority`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, AdmissionError> {
        let damaged =
            || failed("the authority's file is damaged; restore it from a backup, or remove the folder to begin a new cluster");
        let form: Form = serde_json::from_slice(bytes).map_err(|_| damaged())?;
        if form.version != VERSION {
            return Err(failed(format!(
                "the authority's file has version {}, not {VERSION}; install the release that wrote it",
                form.version
            )));
        }
        let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(form.key.as_slice())).map_err(|_| damaged())?;
        let certificate = CertificateDer::from(form.certificate);
        Fingerprint::of_certificate(&certificate).map_err(|_| damaged())?;
        Self::assemble(form.cluster, certificate, key)
    }

    /// The cluster.
    #[must_use]
    pub const fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// SHA-256 of the authority's public key, which everybody pins.
    #[must_use]
    pub const fn pin(&self) -> Fingerprint {
        self.pin
    }

    /// The authority's own certificate.
    #[must_use]
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A certificate for a coordinator's endpoint, with its key (PKCS #8, secret).
    ///
    /// # Errors
    /// [`AdmissionError::Authority`].
    pub fn certify_server(&self, now: u64) -> Result<(CertificateDer<'static>, Zeroizing<Vec<u8>>), AdmissionError> {
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()]).map_err(failed)?;
        params.distinguished_name = subject("coordinator");
        let span = (now.saturating_sub(SERVER_BACKDATED_S), now + SERVER_LIFE_S);
        let certificate = self.sign(params, &key, vec![ExtendedKeyUsagePurpose::ServerAuth], span)?;
        Ok((certificate, Zeroizing::new(key.serialize_der())))
    }

    /// A certificate for a coordinator that keeps its key: to serve with, and to show to other coordinators.
    ///
    /// # Errors
    /// [`AdmissionError::Request`], [`AdmissionError::Authority`].
    pub fn certify_coordinator(&self, csr: &[u8], now: u64) -> Result<CertificateDer<'static>, AdmissionError> {
        let (id, key) = Self::read_request(csr)?;
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()]).map_err(failed)?;
        params.distinguished_name = subject(&format!("coordinator {id}"));
        let span = (now.saturating_sub(SERVER_BACKDATED_S), now + SERVER_LIFE_S);
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, &key, usages, span)
    }

    /// Reads a request: total on any bytes, and the signature in it is checked. Returns the id of its key.
    ///
    /// # Errors
    /// [`AdmissionError::Request`]: no request, wrongly signed, or a key of a kind we do not take.
    pub fn read_request(csr: &[u8]) -> Result<(NodeKeyId, impl PublicKeyData + use<>), AdmissionError> {
        let bad = |e: &dyn fmt::Display| AdmissionError::Request(e.to_string());
        let read = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr)).map_err(|e| bad(&e))?;
        if read.public_key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(bad(&"its key is not of the curve P-256"));
        }
        let id = Id(*blake3::hash(&read.public_key.subject_public_key_info()).as_bytes());
        Ok((id, read.public_key))
    }

    /// A client certificate for the key of a request, from now for this long.
    ///
    /// # Errors
    /// [`AdmissionError::Request`], [`AdmissionError::Authority`].
    pub fn certify_node(&self, csr: &[u8], now: u64, life: Duration) -> Result<CertificateDer<'static>, AdmissionError> {
        let (id, key) = Self::read_request(csr)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&format!("node {id}"));
        let span = (now.saturating_sub(BACKDATED_S), now + life.as_secs());
        self.sign(params, &key, vec![ExtendedKeyUsagePurpose::ClientAuth], span)
    }

    /// A new key and certificate for an administrator of coordinators at these addresses.
    ///
    /// # Errors
    /// [`AdmissionError::Authority`].
    pub fn certify_admin(&self, addresses: Vec<String>) -> Result<Credential, AdmissionError> {
        let key = NodeKey::generate().map_err(failed)?;
        let now = unix_now();
        let request = key.request().map_err(failed)?;
        let (_, public_key) = Self::read_request(&request)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject("administrator");
        let span = (now.saturating_sub(BACKDATED_S), now + ADMIN_LIFE_S);
        let certificate = self.sign(params, &public_key, vec![ExtendedKeyUsagePurpose::ClientAuth], span)?;
        Ok(Credential {
            cluster: self.cluster,
            pin: self.pin,
            addresses,
            key,
            certificate: certificate.to_vec(),
            authority: self.certificate.to_vec(),
            issued_unix_s: now,
            expires_unix_s: now + ADMIN_LIFE_S,
        })
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        usages: Vec<ExtendedKeyUsagePurpose>,
        (from, to): (u64, u64),
    ) -> Result<CertificateDer<'static>, AdmissionError> {
        let mut serial = [0; 16];
        SystemRandom::new().fill(&mut serial).map_err(|_| failed("the system gives no random bytes"))?;
        // Positive, as RFC 5280 demands.
        serial[0] &= 0x7f;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        let moment = |unix_s: u64| date_time_ymd(1970, 1, 1) + Duration::from_secs(unix_s);
        (params.not_before, params.not_after) = (moment(from), moment(to));
        Ok(params.signed_by(key, &self.issuer).map_err(failed)?.der().clone())
    }
}

impl fmt::Debug for Authority {
    /// Never prints the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({}, {})", self.cluster, self.pin)
    }
}
