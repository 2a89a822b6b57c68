//! Every field of every proof struct has a tampering here: the fields are read from the verifier's source, so a new one
//! without an entry fails. Tampered proofs are refused as values and as bytes.

use crate::harness::{honest_proof, toy, verdict};
use obelysk_protocol::circuit::Sequence;
use obelysk_protocol::field::{M31, ONE, QM31};
use obelysk_protocol::transcript::Blake2s;
use obelysk_protocol::verifier::aggregate::{verify, verify_reduced};
use obelysk_protocol::verifier::opening::CombinedProof;
use obelysk_protocol::verifier::proof::Proof;

/// Where the structs of a proof are declared.
const SOURCES: &[(&str, &str)] = &[
    ("proof.rs", include_str!("../../protocol/src/verifier/proof.rs")),
    ("circuit/input.rs", include_str!("../../protocol/src/circuit/input.rs")),
    ("segment.rs", include_str!("../../protocol/src/verifier/segment.rs")),
    ("product.rs", include_str!("../../protocol/src/verifier/product.rs")),
    ("logup.rs", include_str!("../../protocol/src/verifier/logup.rs")),
    ("final_sumcheck.rs", include_str!("../../protocol/src/verifier/final_sumcheck.rs")),
    ("opening/proof.rs", include_str!("../../protocol/src/verifier/opening/proof.rs")),
];

/// Structs whose fields are proof bytes.
const STRUCTS: &[&str] = &[
    "Header",
    "Sequence",
    "SegmentProof",
    "Proof",
    "ClaimsProof",
    "GkrLayer",
    "ProductProof",
    "FinalProof",
    "OpeningProof",
    "CombinedProof",
    "GroundRound",
    "TreeOpening",
];

type Tamper = fn(&mut Proof);
type List = fn(&mut Proof) -> &mut Vec<QM31>;

fn bump(v: &mut QM31) {
    *v += ONE;
}

/// The combined opening of segment 1.
fn opened(p: &mut Proof) -> &mut CombinedProof {
    p.segments[1].opening.combined.as_mut().unwrap()
}

/// `(struct, field, tamper)`. Segment 1 is a layer: it has every part.
const TAMPERED: &[(&str, &str, Tamper)] = &[
    ("Header", "version", |p| p.header.version ^= 1),
    ("Header", "suite", |p| p.header.suite ^= 3),
    ("Header", "mode", |p| p.header.mode = 0),
    ("Header", "model_id", |p| p.header.model_id[31] ^= 1),
    ("Header", "ids", |p| p.header.ids[0] += 1),
    ("Header", "sequences", |p| p.header.sequences.push(Sequence { prompt: 1, completion: 1 })),
    ("Sequence", "prompt", |p| p.header.sequences.push(Sequence { prompt: 2, completion: 1 })),
    ("Sequence", "completion", |p| p.header.sequences.push(Sequence { prompt: 1, completion: 2 })),
    ("Header", "output", |p| p.header.output[0] += 1),
    ("Header", "roots", |p| p.header.roots[3][0] ^= 1),
    ("Header", "seed_nonce", |p| p.header.seed_nonce ^= 1 << 40),
    ("Header", "boundaries", |p| bump(&mut p.header.boundaries[2])),
    ("Proof", "header", |p| p.header.ids.swap(0, 1)),
    ("Proof", "segments", |p| p.segments.swap(1, 2)),
    ("SegmentProof", "claims", |p| p.segments[1].claims = p.segments[2].claims.clone()),
    ("SegmentProof", "opening", |p| p.segments[1].opening = p.segments[2].opening.clone()),
    ("ClaimsProof", "logup", |p| p.segments[1].claims.logup[0].mask.swap(0, 1)),
    ("ClaimsProof", "product", |p| p.segments[1].claims.product = p.segments[2].claims.product.clone()),
    ("ClaimsProof", "last", |p| p.segments[1].claims.last = p.segments[2].claims.last.clone()),
    ("GkrLayer", "rounds", |p| bump(&mut p.segments[1].claims.logup[5].rounds[4].0[2])),
    ("GkrLayer", "mask", |p| p.segments[1].claims.logup.last_mut().into_iter().for_each(|l| bump(&mut l.mask[3]))),
    ("ProductProof", "accumulators", |p| bump(&mut p.segments[1].claims.product.accumulators[0])),
    ("ProductProof", "rounds", |p| bump(&mut p.segments[1].claims.product.rounds[0].0[0])),
    ("ProductProof", "claims", |p| bump(&mut p.segments[1].claims.product.claims[1])),
    ("ProductProof", "weights", |p| bump(&mut p.segments[1].claims.product.weights[5])),
    ("FinalProof", "rounds", |p| p.segments[1].claims.last.rounds.last_mut().into_iter().for_each(|r| bump(&mut r.0[3]))),
    ("FinalProof", "columns", |p| bump(&mut p.segments[1].claims.last.columns[0])),
    ("FinalProof", "nonces", |p| p.segments[1].claims.last.nonces[0] ^= 1 << 50),
    ("Proof", "opening", |p| p.opening = p.segments[1].opening.combined.clone()),
    ("OpeningProof", "combined", |p| p.segments[1].opening.combined = p.segments[2].opening.combined.clone()),
    ("OpeningProof", "rows", |p| bump(&mut p.segments[1].opening.rows[0][0].poly.0[0])),
    ("CombinedProof", "joint", |p| bump(&mut opened(p).joint[0].0[1])),
    ("CombinedProof", "values", |p| bump(&mut opened(p).values[1])),
    ("CombinedProof", "theta_nonces", |p| opened(p).theta_nonces[0] ^= 1 << 33),
    ("CombinedProof", "roots", |p| opened(p).roots[0][5] ^= 1),
    ("CombinedProof", "folds", |p| opened(p).folds.swap(0, 1)),
    ("CombinedProof", "message", |p| bump(&mut opened(p).message[0])),
    ("CombinedProof", "query_nonce", |p| opened(p).query_nonce ^= 1 << 33),
    ("CombinedProof", "oracles", |p| opened(p).oracles[0].symbols.reverse()),
    ("CombinedProof", "layers", |p| bump(&mut opened(p).layers[0].symbols[0])),
    ("GroundRound", "poly", |p| bump(&mut opened(p).folds[2].poly.0[1])),
    ("GroundRound", "nonce", |p| opened(p).folds[0].nonce ^= 1 << 20),
    ("TreeOpening", "symbols", |p| opened(p).oracles[1].symbols[0] += M31::from_u32_unchecked(1)),
    ("TreeOpening", "nodes", |p| opened(p).oracles[1].nodes[0][0] ^= 1),
];

/// `(struct, field)` of every proof struct, by reading `pub struct` blocks.
fn fields() -> Vec<(String, String)> {
    let mut out = Vec::new();
    for (_, source) in SOURCES {
        let mut current = None;
        for line in source.lines() {
            let name = line.strip_prefix("pub struct ").map(|l| l.split(['<', ' ', '(']).next().unwrap_or(""));
            if let Some(name) = name {
                current = STRUCTS.contains(&name).then(|| name.to_owned());
            } else if line == "}" {
                current = None;
            } else if let (Some(s), Some(field)) = (&current, line.trim().strip_prefix("pub "))
                && let Some((field, _)) = field.split_once(':')
            {
                out.push((s.clone(), field.to_owned()));
            }
        }
    }
    out
}

#[test]
fn every_field_of_a_proof_is_tampered_with() {
    let declared = fields();
    for s in STRUCTS {
        assert!(declared.iter().any(|f| f.0 == *s), "no struct {s} found: it moved, tell SOURCES where");
    }
    for (s, f) in &declared {
        assert!(TAMPERED.iter().any(|t| t.0 == s && t.1 == f), "{s}.{f} has no tampering");
    }
    for (s, f, _) in TAMPERED {
        assert!(declared.contains(&((*s).to_owned(), (*f).to_owned())), "{s}.{f} does not exist any more");
    }
}

#[test]
fn every_struct_inside_a_proof_is_known() {
    // What derives the proof's own traits and is reachable from its fields must be in STRUCTS.
    let known = |t: &str| STRUCTS.contains(&t) || !t.ends_with("Proof") && !t.ends_with("Layer") && !t.ends_with("Opening");
    for (_, source) in SOURCES {
        for line in source.lines() {
            if let Some(name) = line.strip_prefix("pub struct ").and_then(|l| l.split(['<', ' ', '(']).next()) {
                assert!(known(name), "{name} looks like a part of a proof");
            }
        }
    }
}

#[test]
fn tampered_proofs_are_refused() {
    let registered = &toy().registered;
    for (s, f, tamper) in TAMPERED {
        let mut proof = honest_proof().clone();
        tamper(&mut proof);
        assert_ne!(&proof, honest_proof(), "{s}.{f} was not changed");
        assert!(verify::<Blake2s>(registered, &proof).is_err(), "{s}.{f} accepted as a value");
        assert!(verify_reduced::<Blake2s>(registered, &proof.write()).is_err(), "{s}.{f} accepted as bytes");
    }
}

#[test]
fn every_column_and_every_claim_is_checked() {
    // One value at a time, of a whole layer: nothing is sent that nothing reads.
    let lists: [(&str, List); 4] = [
        ("accumulators", |p| &mut p.segments[1].claims.product.accumulators),
        ("claims", |p| &mut p.segments[1].claims.product.claims),
        ("weights", |p| &mut p.segments[1].claims.product.weights),
        ("values", |p| &mut opened(p).values),
    ];
    for (name, list) in lists {
        for i in 0..list(&mut honest_proof().clone()).len() {
            let mut proof = honest_proof().clone();
            bump(&mut list(&mut proof)[i]);
            assert!(verdict(&proof).is_err(), "{name} {i}");
        }
    }
}
