//! Registrations and whole proofs: what a verifier reads from anybody.

use obelysk_protocol::PROTOCOL_VERSION;
use obelysk_protocol::circuit::descriptor::{Descriptor, EmbedSpec, Encoder, NormSpec, OutputSpec};
use obelysk_protocol::circuit::encode::{decode, encode};
use obelysk_protocol::field::QM31;
use obelysk_protocol::transcript::{Blake2s, HashSuite as _};
use obelysk_protocol::verifier::aggregate::{verify_bytes, verify_reduced};
use obelysk_protocol::verifier::proof::{Header, MODE_FORKED};
use obelysk_protocol::verifier::registered::{Registered, SecurityParams};
use std::sync::LazyLock;

const WIDTH: usize = 6;

/// Embedding and head only, without grinding: nothing stands between the bytes and the checks. Its roots are of no weights, so that no
/// proof of it can be right.
static MODEL: LazyLock<Registered> = LazyLock::new(|| {
    let encoder = Encoder {
        name: "fuzz".into(),
        vocab: 10,
        positions: 8,
        types: 1,
        width: WIDTH as u32,
        heads: 3,
        head_dim: 2,
        ffn: 4,
        tile_k_log: 1,
        tile_n_log: 1,
        row_log: 6,
        blowup_log: 2,
        embed: EmbedSpec { scale: vec![1000; WIDTH], shift: 5, norm: NormSpec { eps: 1 << 14 } },
        layers: Vec::new(),
        output: OutputSpec { gain_bits: vec![0; WIDTH], bias_bits: vec![0; WIDTH] },
    };
    let security = SecurityParams { queries: 40, g_seed: 0, g_fold: 0, g_query: 0 };
    Registered { descriptor: Descriptor::Encoder(encoder), roots: vec![Some([1; 32]), None], security, manifest: [2; 32] }
});

/// The head of a proof of this model, as a prover writes it.
pub fn honest_header(tokens: usize) -> Vec<u8> {
    let header = Header {
        version: PROTOCOL_VERSION,
        suite: Blake2s::ID,
        mode: MODE_FORKED,
        model_id: MODEL.model_id::<Blake2s>(),
        ids: (0..tokens as u32).collect(),
        sequences: Vec::new(),
        output: vec![0; WIDTH],
        roots: vec![[3; 32], [4; 32]],
        seed_nonce: 0,
        boundaries: vec![QM31::default()],
    };
    let mut out = Vec::new();
    header.write(&mut out);
    out
}

/// The bytes as a proof, and behind an honest header, so that the segments are reached. Never taken.
pub fn proof(data: &[u8]) -> bool {
    assert!(verify_bytes::<Blake2s>(&MODEL, data).is_err());
    if let Some((first, rest)) = data.split_first() {
        let bytes = [honest_header(1 + usize::from(first % 8)), rest.to_vec()].concat();
        // Without the floor on security, which would refuse this model's proofs whatever they hold.
        assert!(verify_reduced::<Blake2s>(&MODEL, &bytes).is_err());
    }
    false
}

/// The bytes as a registration and as a descriptor: what is read is what would be written.
pub fn registered(data: &[u8]) -> bool {
    let registered = Registered::read(data);
    if let Ok(registered) = &registered {
        assert_eq!(registered.write(), data);
    }
    let descriptor = decode(data);
    if let Ok(descriptor) = &descriptor {
        assert_eq!(encode(descriptor), data);
    }
    registered.is_ok() || descriptor.is_ok()
}
