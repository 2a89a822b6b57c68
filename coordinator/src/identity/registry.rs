//! Tokens and members as a pure state: time comes in, a decision goes out. No clock, no chance, no I/O, so that a replicated log can carry
//! its changes.

use std::collections::BTreeMap;
use std::fmt;

use obelysk_node::identity::{ClusterId, Id, NodeKeyId, TokenId};
use serde::{Deserialize, Serialize};

use super::storage::StorageError;

/// How far a machine's clock may be off: certificates of a day need no more, and NTP keeps within a second.
pub const MAX_SKEW_S: u64 = 300;
/// Tokens known at once: more than anybody hands out; spent ones make room.
const MAX_TOKENS: usize = 1024;
/// Members known at once, as the brain's bound.
const MAX_MEMBERS: usize = 10_000;
/// What ended is remembered this long, so that who comes late hears why: a week.
const REMEMBERED_S: u64 = 7 * 86_400;
/// Longest life of a token: a month. A leaked one is worth as much as a key.
const MAX_TTL_S: u64 = 31 * 86_400;

/// Why somebody is not let in or not listened to.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AdmissionError {
    /// For another cluster.
    #[error("this token is for cluster {0}, which this is not; use a token that `obelysk token create` made here")]
    OtherCluster(ClusterId),
    /// Not made here, or long gone.
    #[error("this token is not known here; make a new one with `obelysk token create`")]
    UnknownToken,
    /// The signature is not by the token's key over this connection and request.
    #[error(
        "the token's signature does not fit this connection; join directly, without a proxy that opens the connection, and with the whole token"
    )]
    Signature,
    /// Past its end.
    #[error("this token expired {0} s ago by the coordinator's clock; make a new one with `obelysk token create`")]
    TokenExpired(u64),
    /// All uses are used.
    #[error("this token has been used {0} times, which is all it was made for; make a new one with `obelysk token create`")]
    TokenSpent(u32),
    /// Taken back.
    #[error("this token was revoked; ask for a new one")]
    TokenRevoked,
    /// The machine's clock is wrong.
    #[error(
        "this machine's clock is {seconds} s {direction} the coordinator's, at most {MAX_SKEW_S} are allowed; set it, for example by NTP"
    )]
    Skew {
        /// How far.
        seconds: u64,
        /// Which way.
        direction: &'static str,
    },
    /// The request for a certificate is none.
    #[error("the certificate request is not acceptable ({0}); install the same release on both machines")]
    Request(String),
    /// No certificate, where one is needed.
    #[error("this needs a certificate of the cluster; join with `obelysk node join TOKEN`, or pass the administrator's file")]
    NoCertificate,
    /// A certificate of this cluster's authority, of somebody it does not know.
    #[error("node {0} is not a member of this cluster; make a token with `obelysk token create` and join again")]
    NotMember(NodeKeyId),
    /// Put out.
    #[error("node {node} was evicted: {reason}; to let this machine in again, remove its identity and use a new token")]
    Evicted {
        /// Which.
        node: NodeKeyId,
        /// Why.
        reason: String,
    },
    /// A node where an administrator is due.
    #[error("this is for administrators; pass the file that the coordinator wrote (`admin.toml` in its folder)")]
    NotAdmin,
    /// An id that nothing has.
    #[error("there is no {0} here; list what there is")]
    NoSuch(String),
    /// A bound is reached.
    #[error("this cluster has {bound} {what}, the most it takes; revoke or evict what is not needed")]
    Full {
        /// What.
        what: &'static str,
        /// How many.
        bound: usize,
    },
    /// A token that lives too long.
    #[error("a token may live {MAX_TTL_S} s at most, not {0}; choose a shorter --ttl")]
    TooLong(u64),
    /// The authority cannot do its work.
    #[error("certificate authority: {0}")]
    Authority(String),
    /// State cannot be kept.
    #[error("the coordinator cannot keep its state: {0}")]
    Storage(#[from] StorageError),
}

impl AdmissionError {
    /// Whether the same request may succeed later.
    #[must_use]
    pub const fn may_pass(&self) -> bool {
        matches!(self, Self::Storage(_) | Self::Authority(_) | Self::Full { .. })
    }
}

/// A token as the cluster knows it: without the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// Its id.
    pub id: TokenId,
    /// Ed25519 public key.
    pub public_key: Id<32>,
    /// When it was made.
    pub created_unix_s: u64,
    /// End of its validity.
    pub expires_unix_s: u64,
    /// Machines it may let in.
    pub uses: u32,
    /// Machines it let in, so that one whose answer was lost is answered again.
    pub used_by: Vec<NodeKeyId>,
    /// Taken back.
    pub revoked: bool,
}

impl fmt::Debug for TokenRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenRecord({})", self.id)
    }
}

impl TokenRecord {
    /// Machines it may still let in.
    #[must_use]
    pub fn uses_left(&self) -> u32 {
        self.uses.saturating_sub(u32::try_from(self.used_by.len()).unwrap_or(u32::MAX))
    }
}

/// A machine that was let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// BLAKE3 of its public key.
    pub id: NodeKeyId,
    /// Name for people.
    pub name: String,
    /// Token that let it in.
    pub token: TokenId,
    /// When.
    pub joined_unix_s: u64,
    /// End of its newest certificate.
    pub expires_unix_s: u64,
    /// Why it was put out, if it was.
    pub evicted: Option<String>,
}

/// All tokens and members.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registry {
    tokens: BTreeMap<TokenId, TokenRecord>,
    members: BTreeMap<NodeKeyId, Member>,
    admins: Vec<NodeKeyId>,
}

/// Version of the document.
const VERSION: u32 = 1;
/// Administrators' keys known: the file is written anew at each start, and older copies serve for a while.
const MAX_ADMINS: usize = 16;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    version: u32,
    tokens: Vec<TokenRecord>,
    members: Vec<Member>,
    admins: Vec<NodeKeyId>,
}

impl Registry {
    /// The document to keep.
    ///
    /// # Errors
    /// [`AdmissionError::Authority`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, AdmissionError> {
        let (tokens, members) = (self.tokens.values().cloned().collect(), self.members.values().cloned().collect());
        let form = Form { version: VERSION, tokens, members, admins: self.admins.clone() };
        serde_json::to_vec(&form).map_err(|e| AdmissionError::Authority(e.to_string()))
    }

    /// Reads the document.
    ///
    /// # Errors
    /// [`AdmissionError::Authority`]: damaged, or of another release.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, AdmissionError> {
        let failed =
            |e: String| AdmissionError::Authority(format!("the registry's file is damaged ({e}); restore it from a backup"));
        let form: Form = serde_json::from_slice(bytes).map_err(|e| failed(e.to_string()))?;
        if form.version != VERSION {
            return Err(failed(format!("version {} instead of {VERSION}", form.version)));
        }
        let tokens = form.tokens.into_iter().map(|t| (t.id, t)).collect();
        let members = form.members.into_iter().map(|m| (m.id, m)).collect();
        Ok(Self { tokens, members, admins: form.admins })
    }

    /// Forgets what ended long ago.
    fn prune(&mut self, now: u64) {
        self.tokens.retain(|_, t| t.expires_unix_s.saturating_add(REMEMBERED_S) > now);
        self.members.retain(|_, m| m.expires_unix_s.saturating_add(REMEMBERED_S) > now);
    }

    /// Takes a token in.
    ///
    /// # Errors
    /// [`AdmissionError::TooLong`], [`AdmissionError::Full`].
    pub fn add_token(
        &mut self,
        now: u64,
        id: TokenId,
        public_key: [u8; 32],
        ttl_s: u64,
        uses: u32,
    ) -> Result<&TokenRecord, AdmissionError> {
        if ttl_s > MAX_TTL_S {
            return Err(AdmissionError::TooLong(ttl_s));
        }
        self.prune(now);
        if self.tokens.len() >= MAX_TOKENS {
            self.tokens.retain(|_, t| t.expires_unix_s > now && !t.revoked && t.uses_left() > 0);
        }
        if self.tokens.len() >= MAX_TOKENS {
            return Err(AdmissionError::Full { what: "tokens", bound: MAX_TOKENS });
        }
        let record = TokenRecord {
            id,
            public_key: Id(public_key),
            created_unix_s: now,
            expires_unix_s: now + ttl_s,
            uses,
            used_by: Vec::new(),
            revoked: false,
        };
        Ok(self.tokens.entry(id).or_insert(record))
    }

    /// Lets nobody in by this token any more.
    ///
    /// # Errors
    /// [`AdmissionError::NoSuch`].
    pub fn revoke_token(&mut self, id: TokenId) -> Result<(), AdmissionError> {
        let token = self.tokens.get_mut(&id).ok_or_else(|| AdmissionError::NoSuch(format!("token {id}")))?;
        token.revoked = true;
        Ok(())
    }

    /// The key that a token's machines sign with.
    ///
    /// # Errors
    /// [`AdmissionError::UnknownToken`].
    pub fn token_key(&self, id: TokenId) -> Result<[u8; 32], AdmissionError> {
        self.tokens.get(&id).map(|t| t.public_key.0).ok_or(AdmissionError::UnknownToken)
    }

    /// Lets a machine in by a token whose signature has been checked, and uses the token up once for it; the same machine again costs no
    /// second use. `their_clock` is what the machine says the time is.
    ///
    /// # Errors
    /// [`AdmissionError`]: the token does not serve, the clock is off, the machine was put out, or the cluster is full.
    pub fn admit(
        &mut self,
        (now, their_clock): (u64, u64),
        token: TokenId,
        node: NodeKeyId,
        name: &str,
        life_s: u64,
    ) -> Result<(), AdmissionError> {
        self.prune(now);
        let record = self.tokens.get_mut(&token).ok_or(AdmissionError::UnknownToken)?;
        if record.revoked {
            return Err(AdmissionError::TokenRevoked);
        }
        let seconds = now.abs_diff(their_clock);
        if seconds > MAX_SKEW_S {
            let direction = if their_clock < now { "behind" } else { "ahead of" };
            return Err(AdmissionError::Skew { seconds, direction });
        }
        if now >= record.expires_unix_s {
            return Err(AdmissionError::TokenExpired(now - record.expires_unix_s));
        }
        let again = record.used_by.contains(&node);
        if !again && record.uses_left() == 0 {
            return Err(AdmissionError::TokenSpent(record.uses));
        }
        let known = self.members.get(&node);
        if let Some(reason) = known.and_then(|m| m.evicted.clone()) {
            return Err(AdmissionError::Evicted { node, reason });
        }
        if known.is_none() && self.members.len() >= MAX_MEMBERS {
            return Err(AdmissionError::Full { what: "members", bound: MAX_MEMBERS });
        }
        if !again {
            record.used_by.push(node);
        }
        let joined_unix_s = known.map_or(now, |m| m.joined_unix_s);
        let (name, expires_unix_s) = (name.to_owned(), now + life_s);
        self.members.insert(node, Member { id: node, name, token, joined_unix_s, expires_unix_s, evicted: None });
        Ok(())
    }

    /// Whether a node is a member now; to be asked at every connection, and again at every renewal.
    ///
    /// # Errors
    /// [`AdmissionError::NotMember`], [`AdmissionError::Evicted`].
    pub fn member(&self, node: NodeKeyId) -> Result<&Member, AdmissionError> {
        let member = self.members.get(&node).ok_or(AdmissionError::NotMember(node))?;
        match &member.evicted {
            Some(reason) => Err(AdmissionError::Evicted { node, reason: reason.clone() }),
            None => Ok(member),
        }
    }

    /// Gives a member more time.
    ///
    /// # Errors
    /// As [`Registry::member`].
    pub fn renew(&mut self, now: u64, node: NodeKeyId, life_s: u64) -> Result<(), AdmissionError> {
        self.member(node)?;
        if let Some(member) = self.members.get_mut(&node) {
            member.expires_unix_s = now + life_s;
        }
        Ok(())
    }

    /// Puts a node out.
    ///
    /// # Errors
    /// [`AdmissionError::NoSuch`].
    pub fn evict(&mut self, node: NodeKeyId, reason: &str) -> Result<(), AdmissionError> {
        let member = self.members.get_mut(&node).ok_or_else(|| AdmissionError::NoSuch(format!("node {node}")))?;
        member.evicted = Some(reason.to_owned());
        Ok(())
    }

    /// Takes an administrator's key in; the oldest makes room.
    pub fn add_admin(&mut self, key: NodeKeyId) {
        if self.admins.len() >= MAX_ADMINS {
            self.admins.remove(0);
        }
        self.admins.push(key);
    }

    /// Whether this key is an administrator's.
    #[must_use]
    pub fn is_admin(&self, key: NodeKeyId) -> bool {
        self.admins.contains(&key)
    }

    /// Tokens with an id above this one, in order.
    pub fn tokens_after(&self, id: TokenId) -> impl Iterator<Item = &TokenRecord> {
        self.tokens.range((std::ops::Bound::Excluded(id), std::ops::Bound::Unbounded)).map(|(_, t)| t)
    }

    /// Members with an id above this one, in order.
    pub fn members_after(&self, id: NodeKeyId) -> impl Iterator<Item = &Member> {
        self.members.range((std::ops::Bound::Excluded(id), std::ops::Bound::Unbounded)).map(|(_, m)| m)
    }
}
