//! Registrations and whole proofs: what a verifier reads from anybody.

use super::jobs::{DECODER, ENCODER, Site};
use obelysk_node::{NodeBackend, NodeSuite};
use obelysk_protocol::PROTOCOL_VERSION;
use obelysk_protocol::circuit::descriptor::{Descriptor, EmbedSpec, Encoder, NormSpec, OutputSpec};
use obelysk_protocol::circuit::encode::{decode, encode};
use obelysk_protocol::field::QM31;
use obelysk_protocol::transcript::{Blake2s, HashSuite as _};
use obelysk_protocol::verifier::aggregate::{verify_bytes, verify_reduced};
use obelysk_protocol::verifier::mode::Mode;
use obelysk_protocol::verifier::proof::Header;
use obelysk_protocol::verifier::registered::{Registered, SecurityParams};
use obelysk_protocol::verifier::soundness::enough;
use obelysk_shard::job::LoadedModel;
use obelysk_shard::local::prove_in;
use obelysk_shard::registration::register;
use std::sync::LazyLock;

const WIDTH: usize = 6;
/// Every weight-binding mode.
pub const MODES: [Mode; 3] = [Mode::Sequential, Mode::Forked, Mode::Aggregated];

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
pub fn honest_header(mode: Mode, tokens: usize) -> Vec<u8> {
    let header = Header {
        version: PROTOCOL_VERSION,
        suite: Blake2s::ID,
        mode: mode as u8,
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

/// A right proof of a toy in every mode.
fn proofs_of(site: &Site) -> [Vec<u8>; 3] {
    let (folder, backend) = (tempfile::tempdir().expect("a folder"), NodeBackend::default());
    let security = site.registered.security;
    let registered =
        register::<NodeSuite, _>(&backend, &site.model, security, [7; 32], folder.path(), &|_| ()).expect("registers");
    let model = LoadedModel::<NodeSuite, _>::new(registered, site.model.clone(), folder.path().to_owned());
    MODES.map(|mode| prove_in(&backend, &model, (&site.spec.input(), mode), &|_, _, _| ()).expect("proves").0.write())
}

static PROOFS: LazyLock<[[Vec<u8>; 3]; 2]> = LazyLock::new(|| [proofs_of(&ENCODER), proofs_of(&DECODER)]);

/// Bytes that a mode and a place begin: bit 0 of the first byte chooses a toy, the others a mode; then two bytes say from where on the
/// rest takes the place of a right proof's bytes. So every step of every mode is reached, and goes wrong there. Taken when it does not.
fn altered(data: &[u8]) -> bool {
    let Some(([choice, low, high], patch)) = data.split_first_chunk::<3>() else { return false };
    let (toy, mode) = (usize::from(choice % 2), usize::from(choice / 2) % MODES.len());
    let (site, honest) = ([&*ENCODER, &*DECODER][toy], &PROOFS[toy][mode]);
    let at = usize::from(u16::from_le_bytes([*low, *high])) % honest.len();
    let mut bytes = honest.clone();
    bytes.splice(at..(at + patch.len()).min(honest.len()), patch.iter().copied());
    let accepted = verify_reduced::<NodeSuite>(&site.registered, &bytes);
    assert!(accepted.is_ok() || bytes != *honest, "a right proof is refused");
    // With two queries a few of a million false ones may pass, so that other bytes are no finding; the floor refuses all of them.
    assert!(!accepted.as_ref().is_ok_and(|a| enough(a.security_bits)));
    accepted.is_ok()
}

/// The bytes as a proof; behind an honest header of each mode, so that the segments are reached; and in the place of bytes of a right
/// proof. Taken only if that is a right one still.
pub fn proof(data: &[u8]) -> bool {
    assert!(verify_bytes::<Blake2s>(&MODEL, data).is_err());
    if let Some((first, rest)) = data.split_first() {
        let mode = MODES[usize::from(first / 8) % MODES.len()];
        let bytes = [honest_header(mode, 1 + usize::from(first % 8)), rest.to_vec()].concat();
        // Without the floor on security, which would refuse this model's proofs whatever they hold.
        assert!(verify_reduced::<Blake2s>(&MODEL, &bytes).is_err());
    }
    altered(data)
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
