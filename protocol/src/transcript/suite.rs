//! Hash suites: one trait, Blake2s for speed, Poseidon252 for what a contract will re-compute.

use crate::field::M31;
use blake2s_simd::many::{self, HashManyJob};

/// A 32-byte digest. Poseidon252 digests are big-endian field elements below 2^252.
pub type Digest = [u8; 32];

/// What the transcript and the Merkle trees need from a hash.
pub trait HashSuite: Clone + Copy + Default + std::fmt::Debug + Send + Sync + 'static {
    /// Identifier absorbed into every statement.
    const ID: u8;
    /// Name for people.
    const NAME: &'static str;
    /// Bytes of [`Self::uniform`] that are as good as uniform; a multiple of 4, at least 8.
    const UNIFORM_BYTES: usize = 32;
    /// The bytes of a digest that challenges, positions and grinding are read from, the uniform ones first. A suite whose digests are
    /// elements of a field has bytes that are not: read as they stand, they would cost bits of every query and of every grinding.
    fn uniform(digest: &Digest) -> Digest {
        *digest
    }
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
    /// As [`Self::leaf`] of each; suites that hash several messages at once do so.
    fn leaves(symbols: &[&[M31]]) -> Vec<Digest> {
        symbols.iter().map(|s| Self::leaf(s)).collect()
    }
    /// As [`Self::node`] of each pair, likewise.
    fn nodes(children: &[[Digest; 2]]) -> Vec<Digest> {
        children.iter().map(|[left, right]| Self::node(left, right)).collect()
    }
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

    fn leaves(symbols: &[&[M31]]) -> Vec<Digest> {
        let bytes = |s: &&[M31]| s.iter().flat_map(|s| s.0.to_le_bytes()).collect::<Vec<u8>>();
        hash_many(&LEAF_PERSONAL, &symbols.iter().map(bytes).collect::<Vec<_>>())
    }

    fn nodes(children: &[[Digest; 2]]) -> Vec<Digest> {
        hash_many(&NODE_PERSONAL, children.iter().map(|pair| pair.as_flattened()).collect::<Vec<_>>().as_slice())
    }
}

/// Blake2s of several messages under one personalisation, side by side in the lanes of a vector.
fn hash_many<T: AsRef<[u8]>>(personal: &[u8; 8], messages: &[T]) -> Vec<Digest> {
    let mut params = blake2s_simd::Params::new();
    params.personal(personal);
    let mut jobs: Vec<_> = messages.iter().map(|m| HashManyJob::new(&params, m.as_ref())).collect();
    many::hash_many(&mut jobs);
    jobs.iter().map(|job| *job.to_hash().as_array()).collect()
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
    /// The field's modulus is 2^251 + 17 2^192 + 1: the low 224 bits of an element are within 2^-55 of uniform, the high ones are not.
    const UNIFORM_BYTES: usize = 28;

    fn uniform(digest: &Digest) -> Digest {
        let mut bytes = *digest;
        bytes.reverse();
        bytes
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    fn equal<S: HashSuite>() {
        // Below, at and above the lanes of any vector; empty, short, whole-block and long leaves.
        for n in [0u32, 1, 7, 8, 9, 33] {
            let symbols: Vec<Vec<M31>> = (0..n).map(|i| (0..i * 16 % 70).map(M31::from_u32_unchecked).collect()).collect();
            let each: Vec<Digest> = symbols.iter().map(|s| S::leaf(s)).collect();
            assert_eq!(S::leaves(&symbols.iter().map(Vec::as_slice).collect::<Vec<_>>()), each);
            let pairs: Vec<[Digest; 2]> = each.iter().zip(each.iter().rev()).map(|(a, b)| [*a, *b]).collect();
            assert_eq!(S::nodes(&pairs), pairs.iter().map(|[a, b]| S::node(a, b)).collect::<Vec<_>>());
        }
        for (head, tail) in [(&b""[..], &b""[..]), (b"a", b""), (b"", b"b"), (&[7; 48], &[9; 200])] {
            assert_eq!(S::hash_joined(3, head, tail), S::hash(3, &[head, tail].concat()));
        }
    }

    #[test]
    fn many_at_once_are_the_same_as_one_by_one() {
        equal::<Blake2s>();
        equal::<Poseidon252>();
    }
}
