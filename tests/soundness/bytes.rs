//! Bytes: flips anywhere, truncation anywhere, additions, non-canonical elements, and noise. Refused always, never a panic.

use crate::harness::{honest_proof, toy};
use obelysk_model::toy::Prng;
use obelysk_protocol::circuit::encode;
use obelysk_protocol::field::{M31, P};
use obelysk_protocol::transcript::{Blake2s, Digest, HashSuite, Poseidon252};
use obelysk_protocol::verifier::VerifyError;
use obelysk_protocol::verifier::aggregate::verify_reduced;
use obelysk_protocol::verifier::merkle;
use obelysk_protocol::verifier::registered::Registered;
use std::sync::OnceLock;

fn bytes() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| honest_proof().write())
}

fn verdict(bytes: &[u8]) -> Result<(), VerifyError> {
    verify_reduced::<Blake2s>(&toy().registered, bytes).map(|_| ())
}

#[test]
fn the_honest_bytes_are_accepted() {
    assert_eq!(verdict(bytes()), Ok(()));
}

#[test]
fn no_flipped_byte_is_accepted() {
    let mut rng = Prng::new(17);
    let last = bytes().len() as i32 - 1;
    // The whole header, then samples all over; one bit or a whole byte.
    let header = (0..180).step_by(3);
    let body = (0..90).map(|_| rng.range(0, last) as usize).collect::<Vec<_>>();
    for (k, at) in header.chain(body).enumerate() {
        let mut forged = bytes().to_vec();
        forged[at] ^= if k % 3 == 0 { 0xff } else { 1 << (k % 8) };
        assert!(verdict(&forged).is_err(), "byte {at}");
    }
}

#[test]
fn no_prefix_and_no_extension_is_accepted() {
    let n = bytes().len();
    let mut cuts: Vec<usize> = (0..200).chain((200..n).step_by(n / 60)).collect();
    cuts.extend(n - 40..n);
    for cut in cuts {
        assert!(matches!(verdict(&bytes()[..cut]), Err(VerifyError::Malformed(_))), "cut at {cut}");
    }
    for tail in [&[0u8][..], &[0; 16], bytes()] {
        let long = [bytes(), tail].concat();
        assert!(matches!(verdict(&long), Err(VerifyError::Malformed(_))));
    }
}

#[test]
fn non_canonical_elements_are_refused() {
    // Every coordinate that is zero has a second encoding, p; here the boundary values' coordinates are overwritten.
    let at = bytes().len() - toy_tail();
    for k in 0..4 {
        let mut forged = bytes().to_vec();
        forged[at + 4 * k..at + 4 * k + 4].copy_from_slice(&P.to_le_bytes());
        assert!(matches!(verdict(&forged), Err(VerifyError::Malformed(m)) if m.contains("canonical")));
    }
}

/// Bytes from the first boundary value to the end.
fn toy_tail() -> usize {
    let mut header = Vec::new();
    honest_proof().header.write(&mut header);
    bytes().len() - (header.len() - 16 * honest_proof().header.boundaries.len())
}

#[test]
fn noise_is_refused_and_never_panics() {
    let mut rng = Prng::new(23);
    let registered = toy().registered.write();
    for round in 0..400 {
        let len = rng.range(0, 300) as usize;
        let noise: Vec<u8> = (0..len).map(|_| rng.next_u64() as u8).collect();
        assert!(verdict(&noise).is_err());
        assert!(Registered::read(&noise).is_err());
        assert!(encode::decode(&noise).is_err());
        // A true beginning and noise after it reaches deeper.
        let keep = rng.range(4, 400) as usize;
        let proof = [&bytes()[..keep], &noise].concat();
        assert!(verdict(&proof).is_err(), "round {round}");
        let model = [&registered[..keep], &noise].concat();
        assert!(Registered::read(&model).is_err());
        let descriptor = encode::encode(&toy().registered.descriptor);
        assert!(encode::decode(&[&descriptor[..keep], &noise].concat()).is_err());
    }
}

#[test]
fn what_registration_bytes_are_read_is_canonical() {
    let bytes = toy().registered.write();
    let mut rng = Prng::new(29);
    for k in 0..300 {
        let at = if k < 120 { k } else { rng.range(0, bytes.len() as i32 - 1) as usize };
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (k % 8);
        if let Ok(r) = Registered::read(&changed) {
            assert_eq!(r.write(), changed, "byte {at}");
            assert_ne!(r.model_id::<Blake2s>(), toy().registered.model_id::<Blake2s>());
        }
    }
}

#[test]
fn a_poseidon_node_has_one_encoding() {
    let leaves = [5u32, 6].map(|v| Poseidon252::leaf(&[M31::from_u32_unchecked(v)]));
    let root = Poseidon252::node(&leaves[0], &leaves[1]);
    let open = |node: Digest| merkle::verify::<Poseidon252>(&root, 1, &[(0, leaves[0])], &[node]);
    assert_eq!(open(leaves[1]), Ok(()));
    // 2^251 + 17 2^192 + 1, added with carries.
    let mut modulus = [0u8; 32];
    (modulus[0], modulus[7], modulus[31]) = (8, 17, 1);
    let (mut other, mut carry) = (leaves[1], 0u16);
    for (byte, m) in other.iter_mut().zip(modulus).rev() {
        carry += u16::from(*byte) + u16::from(m);
        *byte = carry as u8;
        carry >>= 8;
    }
    assert!(open(other).is_err());
}
