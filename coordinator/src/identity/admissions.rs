//! The authority with its registry on a storage: every change is decided on a copy, made safe, and only then true.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use obelysk_node::identity::{ClusterId, Credential, Id, JoinStatement, NodeKeyId, Token, TokenId, TokenSeed, unix_now};
use obelysk_node::transport::Fingerprint;
use obelysk_node::transport::rustls::pki_types::CertificateDer;
use obelysk_protocol::wire::Enrol;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::{AdmissionError, Authority, Document, Member, MemoryStorage, Registry, Storage, TokenRecord};

/// Life of a node's certificate: a stolen one is worth a day at most.
const NODE_LIFE: Duration = Duration::from_secs(86_400);

/// Who may join, who is a member: decided, certified and kept.
#[derive(Debug)]
pub struct Admissions {
    authority: Authority,
    storage: Arc<dyn Storage>,
    registry: Mutex<Registry>,
    /// Held over a whole change, which waits for the log; the registry itself is held for moments only, as sockets are served beside.
    changing: Mutex<u64>,
    life: Duration,
}

/// What a new token shall be.
#[derive(Debug, Clone, Copy)]
pub struct TokenOrder {
    /// Ed25519 public key.
    pub public_key: [u8; 32],
    /// Seconds it is valid.
    pub ttl_s: u64,
    /// Machines it lets in.
    pub uses: u32,
}

impl Admissions {
    /// Opens what the storage holds; on an empty one, begins a new cluster.
    ///
    /// # Errors
    /// [`AdmissionError`]: unreadable or damaged state, or none can be written.
    pub fn open(storage: Arc<dyn Storage>) -> Result<Self, AdmissionError> {
        let registry = match storage.read(Document::Registry)? {
            Some(bytes) => Registry::from_bytes(&bytes)?,
            None => Registry::default(),
        };
        let authority = match storage.read(Document::Authority)? {
            Some(bytes) => Authority::from_bytes(&bytes)?,
            None => {
                let made = Authority::generate()?;
                storage.write(Document::Authority, &made.to_bytes()?)?;
                tracing::info!(cluster = %made.cluster(), "a new cluster");
                made
            }
        };
        let (registry, changing) = (Mutex::new(registry), Mutex::new(storage.term()));
        Ok(Self { authority, storage, registry, changing, life: NODE_LIFE })
    }

    /// Takes the registry from the storage again, where another coordinator may have written it.
    ///
    /// # Errors
    /// [`AdmissionError`]: unreadable or damaged; what was known before still counts.
    pub fn reload(&self) -> Result<(), AdmissionError> {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.take_over()
    }

    fn take_over(&self) -> Result<(), AdmissionError> {
        if let Some(bytes) = self.storage.read(Document::Registry)? {
            let written = Registry::from_bytes(&bytes)?;
            *self.lock() = written;
        }
        Ok(())
    }

    /// A cluster that ends with this process.
    ///
    /// # Errors
    /// [`AdmissionError::Authority`] when the system gives no random bytes.
    pub fn in_memory() -> Result<Self, AdmissionError> {
        Self::open(Arc::new(MemoryStorage::default()))
    }

    /// With another life of nodes' certificates; whole seconds.
    #[must_use]
    pub const fn with_life(mut self, life: Duration) -> Self {
        self.life = life;
        self
    }

    /// The authority.
    #[must_use]
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The cluster.
    #[must_use]
    pub const fn cluster(&self) -> ClusterId {
        self.authority.cluster()
    }

    /// What everybody pins.
    #[must_use]
    pub const fn pin(&self) -> Fingerprint {
        self.authority.pin()
    }

    /// Seconds a new certificate lives.
    #[must_use]
    pub const fn life_s(&self) -> u64 {
        self.life.as_secs()
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides on a copy, writes it, and only then lets it be true. Waits for the disk: not for a thread that serves sockets.
    fn change<T>(&self, change: impl FnOnce(&mut Registry) -> Result<T, AdmissionError>) -> Result<T, AdmissionError> {
        let mut changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let term = self.storage.term();
        if *changing != term {
            // Somebody else may have led in between.
            self.take_over()?;
            *changing = term;
        }
        let mut next = self.lock().clone();
        let outcome = change(&mut next)?;
        if next != *self.lock() {
            self.storage.write_in(term, Document::Registry, &next.to_bytes()?)?;
            *self.lock() = next;
        }
        Ok(outcome)
    }

    /// Takes a token in whose secret half is elsewhere.
    ///
    /// # Errors
    /// [`AdmissionError`]: too long a life, too many tokens, or state that cannot be kept.
    pub fn add_token(&self, order: TokenOrder) -> Result<TokenRecord, AdmissionError> {
        let mut id = [0; 16];
        SystemRandom::new()
            .fill(&mut id)
            .map_err(|_| AdmissionError::Authority("the system gives no random bytes".to_owned()))?;
        let TokenOrder { public_key, ttl_s, uses } = order;
        self.change(|r| r.add_token(unix_now(), Id(id), public_key, ttl_s, uses).cloned())
    }

    /// Makes a whole token, for nodes that this process starts itself.
    ///
    /// # Errors
    /// As [`Admissions::add_token`].
    pub fn invite(&self, ttl_s: u64, uses: u32, addresses: Vec<String>) -> Result<Token, AdmissionError> {
        let failed = |e: obelysk_node::identity::TokenError| AdmissionError::Authority(e.to_string());
        let seed = TokenSeed::generate().map_err(failed)?;
        let record = self.add_token(TokenOrder { public_key: seed.public_key().map_err(failed)?, ttl_s, uses })?;
        Ok(seed.into_token((self.cluster(), self.pin()), record.id, record.expires_unix_s, addresses))
    }

    /// Lets nobody in by this token any more.
    ///
    /// # Errors
    /// [`AdmissionError::NoSuch`], [`AdmissionError::Storage`].
    pub fn revoke_token(&self, id: TokenId) -> Result<(), AdmissionError> {
        self.change(|r| r.revoke_token(id))
    }

    /// Answers a request to join: the signature must be by the token's key over what `statement` makes of the request. Total on any request.
    ///
    /// # Errors
    /// [`AdmissionError`] with cause and remedy.
    pub fn enrol(
        &self,
        request: &Enrol,
        statement: impl FnOnce() -> Result<JoinStatement, AdmissionError>,
    ) -> Result<(NodeKeyId, CertificateDer<'static>), AdmissionError> {
        if request.cluster != self.cluster().0 {
            return Err(AdmissionError::OtherCluster(Id(request.cluster)));
        }
        let token = Id(request.token);
        // The signature comes first: who cannot sign learns nothing of the token, and costs one check.
        let public_key = self.lock().token_key(token)?;
        if !statement()?.is_signed(&public_key, &request.signature) {
            return Err(AdmissionError::Signature);
        }
        let now = unix_now();
        let (node, _) = Authority::read_request(&request.csr)?;
        let certificate = self.authority.certify_node(&request.csr, now, self.life)?;
        self.change(|r| r.admit((now, request.unix_s), token, node, &request.name, self.life_s()))?;
        tracing::info!(%node, name = request.name, %token, "admitted");
        Ok((node, certificate))
    }

    /// A new certificate for a member's same key.
    ///
    /// # Errors
    /// [`AdmissionError`]: another key, or a node that is no member any more.
    pub fn renew(&self, node: NodeKeyId, csr: &[u8]) -> Result<CertificateDer<'static>, AdmissionError> {
        let (key, _) = Authority::read_request(csr)?;
        if key != node {
            return Err(AdmissionError::Request("it is for another key than the connection's".to_owned()));
        }
        let now = unix_now();
        let certificate = self.authority.certify_node(csr, now, self.life)?;
        self.change(|r| r.renew(now, node, self.life_s()))?;
        Ok(certificate)
    }

    /// Whether a node is a member now.
    ///
    /// # Errors
    /// [`AdmissionError::NotMember`], [`AdmissionError::Evicted`].
    pub fn member(&self, node: NodeKeyId) -> Result<Member, AdmissionError> {
        self.lock().member(node).cloned()
    }

    /// Puts a node out, for good.
    ///
    /// # Errors
    /// [`AdmissionError::NoSuch`], [`AdmissionError::Storage`].
    pub fn evict(&self, node: NodeKeyId, reason: &str) -> Result<(), AdmissionError> {
        self.change(|r| r.evict(node, reason))
    }

    /// A new administrator of coordinators at these addresses.
    ///
    /// # Errors
    /// [`AdmissionError`].
    pub fn new_admin(&self, addresses: Vec<String>) -> Result<Credential, AdmissionError> {
        let admin = self.authority.certify_admin(addresses)?;
        self.change(|r| {
            r.add_admin(admin.id());
            Ok(())
        })?;
        Ok(admin)
    }

    /// Whether this key is an administrator's.
    #[must_use]
    pub fn is_admin(&self, key: NodeKeyId) -> bool {
        self.lock().is_admin(key)
    }

    /// At most `most` tokens with an id above this one.
    #[must_use]
    pub fn tokens_after(&self, id: TokenId, most: usize) -> Vec<TokenRecord> {
        self.lock().tokens_after(id).take(most).cloned().collect()
    }

    /// At most `most` members with an id above this one, those put out included.
    #[must_use]
    pub fn members_after(&self, id: NodeKeyId, most: usize) -> Vec<Member> {
        self.lock().members_after(id).take(most).cloned().collect()
    }
}
