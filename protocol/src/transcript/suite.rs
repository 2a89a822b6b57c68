//! Hash suites: one trait, Blake2s for speed, Poseidon252 for what a contract will re-compute.

use crate::field::M31;

/// A 32-byte digest. Poseidon252 digests are big-endian field elements below 2^252.
pub type Digest = [u8; 32];

/// What the transcript and the Merkle trees need from a hash.
pub trait HashSuite: Clone + Copy + Default + std::fmt::Debug + Send + Sync + 'static {
    /// Identifier absorbed into every statement.
    const ID: u8;
    /// Name for people.
    const NAME: &'static str;
    /// Hash of `bytes` under a one-byte domain.
    fn hash(domain: u8, bytes: &[u8]) -> Digest;
    /// As [`Self::hash`], of the concatenation of two parts; the second may be large.
    fn hash_joined(domain: u8, head: &[u8], tail: &[u8]) -> Digest {
        Self::hash(domain, &[head, tail].concat())
    }
    /// Merkle leaf over one position's symbols.
    fn leaf(symbols: &[M31]) -> Digest;
    /// Merkle inner node.
    fn node(left: &Digest, right: &Digest) -> Digest;
    /// Whether bytes are the one encoding of a digest; others are rejected so that a proof has one encoding.
    fn is_canonical(_digest: &Digest) -> bool {
        true
    }
}

/// Blake2s-256 with the domain in the personalisation field, so a leaf can never be read as a node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Blake2s;

/// Personalisation of Merkle leaves.
pub const LEAF_PERSONAL: [u8; 8] = *b"obk:leaf";
/// Personalisation of Merkle inner nodes.
pub const NODE_PERSONAL: [u8; 8] = *b"obk:node";

impl HashSuite for Blake2s {
    const ID: u8 = 1;
    const NAME: &'static str = "blake2s";

    fn hash(domain: u8, bytes: &[u8]) -> Digest {
        Self::hash_joined(domain, bytes, &[])
    }

    fn hash_joined(domain: u8, head: &[u8], tail: &[u8]) -> Digest {
        let mut personal = *b"obk:t\0\0\0";
        personal[7] = domain;
        *blake2s_simd::Params::new().personal(&personal).to_state().update(head).update(tail).finalize().as_array()
    }

    fn leaf(symbols: &[M31]) -> Digest {
        let bytes: Vec<u8> = symbols.iter().flat_map(|s| s.0.to_le_bytes()).collect();
        *blake2s_simd::Params::new().personal(&LEAF_PERSONAL).hash(&bytes).as_array()
    }

    fn node(left: &Digest, right: &Digest) -> Digest {
        let mut bytes = [0u8; 64];
        bytes[..32].copy_from_slice(left);
        bytes[32..].copy_from_slice(right);
        *blake2s_simd::Params::new().personal(&NODE_PERSONAL).hash(&bytes).as_array()
    }
}

/// Starknet's Poseidon over its 252-bit field; about 800 times slower than Blake2s on a CPU, cheap in a contract.
#[derive(Clone, Copy, Debug, Default)]
pub struct Poseidon252;

mod felt {
    use starknet_types_core::felt::Felt;
    use starknet_types_core::hash::{Poseidon, StarkHash as _};

    /// 31-byte chunks, most significant byte first, are below the field's modulus.
    const CHUNK: usize = 31;

    pub fn hash_bytes(domain: u8, bytes: &[u8]) -> [u8; 32] {
        let mut felts = vec![Felt::from(domain), Felt::from(bytes.len() as u64)];
        felts.extend(bytes.chunks(CHUNK).map(Felt::from_bytes_be_slice));
        Poseidon::hash_array(&felts).to_bytes_be()
    }

    pub fn is_canonical(bytes: &[u8; 32]) -> bool {
        Felt::from_bytes_be(bytes).to_bytes_be() == *bytes
    }

    pub fn hash_pair(domain: u8, a: &[u8; 32], b: &[u8; 32]) -> [u8; 32] {
        let felts = [Felt::from(domain), Felt::from_bytes_be(a), Felt::from_bytes_be(b)];
        Poseidon::hash_array(&felts).to_bytes_be()
    }
}

/// Domain of a Merkle leaf in suites that have no personalisation field.
const LEAF: u8 = 16;
/// Domain of a Merkle inner node, likewise.
const NODE: u8 = 17;

impl HashSuite for Poseidon252 {
    const ID: u8 = 2;
    const NAME: &'static str = "poseidon252";

    fn hash(domain: u8, bytes: &[u8]) -> Digest {
        felt::hash_bytes(domain, bytes)
    }

    fn leaf(symbols: &[M31]) -> Digest {
        let bytes: Vec<u8> = symbols.iter().flat_map(|s| s.0.to_le_bytes()).collect();
        felt::hash_bytes(LEAF, &bytes)
    }

    fn node(left: &Digest, right: &Digest) -> Digest {
        felt::hash_pair(NODE, left, right)
    }

    fn is_canonical(digest: &Digest) -> bool {
        felt::is_canonical(digest)
    }
}
