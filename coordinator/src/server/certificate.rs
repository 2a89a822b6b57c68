//! The coordinator's own certificate: asked for at every handshake, made anew when half of its life is over.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use obelysk_node::identity::unix_now;
use obelysk_node::transport::ServerTls;
use obelysk_node::transport::rustls::server::{ClientHello, ResolvesServerCert};
use obelysk_node::transport::rustls::sign::CertifiedKey;

use crate::identity::{AdmissionError, Admissions, SERVER_LIFE_S};

/// Makes and renews it.
pub(super) struct OwnCertificate {
    admissions: Arc<Admissions>,
    current: Mutex<(u64, Arc<CertifiedKey>)>,
}

impl OwnCertificate {
    pub(super) fn new(admissions: Arc<Admissions>) -> Result<Self, AdmissionError> {
        let now = unix_now();
        let current = Mutex::new((now, make(&admissions, now)?));
        Ok(Self { admissions, current })
    }

    /// When it ends, seconds since 1970.
    pub(super) fn expires_unix_s(&self) -> u64 {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).0 + SERVER_LIFE_S
    }

    fn at(&self, now: u64) -> Arc<CertifiedKey> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // A clock that was set back makes the certificate look too new; that is as good a reason.
        if now.abs_diff(current.0) > SERVER_LIFE_S / 2 {
            match make(&self.admissions, now) {
                Ok(fresh) => *current = (now, fresh),
                Err(error) => tracing::error!(%error, "the coordinator's own certificate was not renewed"),
            }
        }
        current.1.clone()
    }
}

fn make(admissions: &Admissions, now: u64) -> Result<Arc<CertifiedKey>, AdmissionError> {
    let authority = admissions.authority();
    let (certificate, key) = authority.certify_server(now)?;
    let chain = vec![certificate, authority.certificate().clone()];
    ServerTls::certified(chain, &key).map_err(|e| AdmissionError::Authority(e.to_string()))
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.at(unix_now()))
    }
}

impl fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnCertificate")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_until_half_of_its_life_and_then_another() {
        let own = OwnCertificate::new(Arc::new(Admissions::in_memory().expect("made"))).expect("made");
        let now = unix_now();
        let first = own.at(now).cert.clone();
        assert_eq!(first.len(), 2, "with the authority's");
        assert!(own.at(now + SERVER_LIFE_S / 2 - 60).cert == first);
        let later = own.at(now + SERVER_LIFE_S / 2 + 60).cert.clone();
        assert!(later != first && later[1] == first[1]);
        assert!(own.at(now).cert != later, "the clock was set back");
    }
}
