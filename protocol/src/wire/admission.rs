//! Messages of joining, renewing and administering a cluster: tokens, certificates, members.
//!
//! Secrets do not travel: a token's key signs, a private key stays where it was made.

use rkyv::{Archive, Deserialize, Serialize};

/// Only message of a new machine: lets it in if its token's key signed this connection and this request.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Enrol {
    /// The cluster the token is for.
    pub cluster: [u8; 16],
    /// The token.
    pub token: [u8; 16],
    /// The machine's clock, seconds since 1970.
    pub unix_s: u64,
    /// Name for people.
    pub name: String,
    /// PKCS #10 request, DER; its key names the node.
    pub csr: Vec<u8>,
    /// Ed25519 signature by the token's key over what `obelysk-node` calls the join statement.
    pub signature: Vec<u8>,
}

/// Answer to [`Enrol`] and [`Renew`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// BLAKE3 of the public key: the node's id.
    pub node: [u8; 32],
    /// X.509 certificate, DER.
    pub certificate: Vec<u8>,
    /// The authority's certificate, DER.
    pub authority: Vec<u8>,
    /// Seconds the certificate is valid from now.
    pub life_s: u64,
    /// Coordinators of the cluster, `host:port`.
    pub addresses: Vec<String>,
}

/// On an authenticated connection: a new certificate for the same key.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Renew {
    /// PKCS #10 request, DER.
    pub csr: Vec<u8>,
}

/// Asks an unauthenticated peer nothing but whether it is there.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The sender's clock, seconds since 1970.
    pub unix_s: u64,
}

/// Answer to [`Probe`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// The coordinator's clock, seconds since 1970.
    pub unix_s: u64,
    /// The cluster.
    pub cluster: [u8; 16],
    /// The coordinator's release.
    pub release: String,
}

/// Administrator: admit whoever holds the private half of this key.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct TokenNew {
    /// Ed25519 public key; its private half stays with the administrator.
    pub public_key: [u8; 32],
    /// Seconds it is valid.
    pub ttl_s: u64,
    /// Machines it lets in.
    pub uses: u32,
}

/// Answer to [`TokenNew`].
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct TokenMade {
    /// The token's id.
    pub token: [u8; 16],
    /// The cluster.
    pub cluster: [u8; 16],
    /// End of its validity, seconds since 1970 by the coordinator's clock.
    pub expires_unix_s: u64,
    /// Coordinators of the cluster, `host:port`.
    pub addresses: Vec<String>,
}

/// Administrator: tokens with an id above this one.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct TokensAfter {
    /// Where the last page ended; zeros for the first.
    pub token: [u8; 16],
}

/// One page of tokens in order of their ids; an empty one is the end.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// The page.
    pub tokens: Vec<TokenEntry>,
}

/// A token, without anything that would let somebody in.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct TokenEntry {
    /// Its id.
    pub token: [u8; 16],
    /// When it was made, seconds since 1970.
    pub created_unix_s: u64,
    /// End of its validity.
    pub expires_unix_s: u64,
    /// Machines it may let in altogether.
    pub uses: u32,
    /// Machines it may still let in.
    pub uses_left: u32,
    /// Taken back by an administrator.
    pub revoked: bool,
}

/// Administrator: this token lets nobody in from now on.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct TokenRevoke {
    /// Its id.
    pub token: [u8; 16],
}

/// Administrator: nodes with an id above this one.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct NodesAfter {
    /// Where the last page ended; zeros for the first.
    pub node: [u8; 32],
}

/// One page of nodes in order of their ids; an empty one is the end.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Nodes {
    /// The page.
    pub nodes: Vec<NodeEntry>,
}

/// What the cluster knows of a node.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct NodeEntry {
    /// Its id.
    pub node: [u8; 32],
    /// Name for people.
    pub name: String,
    /// A [`NodeState`] code.
    pub state: u8,
    /// When it was let in, seconds since 1970.
    pub joined_unix_s: u64,
    /// End of its newest certificate.
    pub expires_unix_s: u64,
    /// Why it was evicted or quarantined; else empty.
    pub reason: String,
}

/// How a node stands with its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum NodeState {
    /// Admitted and not connected.
    Away = 0,
    /// Connected.
    Here = 1,
    /// Connected, and takes no more work.
    Draining = 2,
    /// Found wrong; it takes no part until the coordinator restarts.
    Quarantined = 3,
    /// Its certificate counts no more.
    Evicted = 4,
}

impl NodeState {
    /// All states.
    pub const ALL: [Self; 5] = [Self::Away, Self::Here, Self::Draining, Self::Quarantined, Self::Evicted];

    /// The state with this code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as u8 == code)
    }

    /// Name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Away => "away",
            Self::Here => "here",
            Self::Draining => "draining",
            Self::Quarantined => "quarantined",
            Self::Evicted => "evicted",
        }
    }
}

/// Administrator: this node shall finish what it runs and leave.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct NodeDrain {
    /// Its id.
    pub node: [u8; 32],
}

/// Administrator: this node is out, now and for good.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct NodeEvict {
    /// Its id.
    pub node: [u8; 32],
    /// Why, for people.
    pub reason: String,
}

/// Answer to an administrator's order that was carried out.
#[derive(Archive, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct AdminDone {
    /// What was done.
    pub text: String,
}
