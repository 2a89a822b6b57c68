//! What joining reads: tokens that people paste, certificates and requests that strangers show, files that a disk may have damaged.

use obelysk_coordinator::identity::{Authority, Registry};
use obelysk_node::CoordinatorAddress;
use obelysk_node::identity::{Credential, Token};
use obelysk_node::transport::rustls::pki_types::CertificateDer;
use obelysk_node::transport::{Fingerprint, public_key};
use std::sync::LazyLock;
use std::time::Duration;

/// What stands before a token's base32.
const PREFIX: &str = "obelysk1";
/// RFC 4648.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// The bytes as a token, as an address, and as the payload of a token with a right checksum, which no search would find by itself.
pub fn tokens(data: &[u8]) -> bool {
    let mut taken = token(&sealed(data));
    if let Ok(text) = std::str::from_utf8(data) {
        taken |= token(text);
        if let Ok(address) = text.parse::<CoordinatorAddress>() {
            let again = address.to_string().parse::<CoordinatorAddress>();
            assert!(again.is_ok_and(|again| again == address), "{address}");
            taken = true;
        }
    }
    taken
}

fn token(text: &str) -> bool {
    let Ok(token) = text.parse::<Token>() else { return false };
    assert_eq!(*token.to_line(), text.trim().to_ascii_lowercase());
    token.places().expect("a token that was read has usable addresses");
    true
}

fn sealed(payload: &[u8]) -> String {
    let check = *blake3::Hasher::new().update(b"obelysk token checksum\0").update(payload).finalize().as_bytes();
    let (mut text, mut held, mut bits) = (PREFIX.to_owned(), 0_u32, 0);
    for byte in payload.iter().chain(&check[..4]) {
        (held, bits) = (held << 8 | u32::from(*byte), bits + 8);
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(BASE32[(held >> bits & 31) as usize]));
        }
        held &= (1 << bits) - 1;
    }
    if bits > 0 {
        text.push(char::from(BASE32[(held << (5 - bits) & 31) as usize]));
    }
    text
}

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| Authority::generate().expect("random bytes"));

/// The bytes as the certificate that a peer shows, and as the request of a machine that wants one: what is certified is the key that asked.
pub fn certificates(data: &[u8]) -> bool {
    let shown = CertificateDer::from(data);
    let pinned = Fingerprint::of_certificate(&shown).is_ok();
    assert_eq!(pinned, public_key(&shown).is_ok());
    let Ok((id, _)) = Authority::read_request(data) else { return pinned };
    let made = AUTHORITY.certify_node(data, 1_800_000_000, Duration::from_secs(86_400)).expect("a request that was read");
    let key = public_key(&made).expect("a certificate of ours");
    assert_eq!(id.0, *blake3::hash(&key).as_bytes());
    true
}

/// The bytes as the files that coordinator, administrator and node keep.
pub fn state(data: &[u8]) -> bool {
    let authority = Authority::from_bytes(data);
    if let Ok(authority) = &authority {
        let kept = authority.to_bytes().expect("writes");
        assert_eq!(Authority::from_bytes(&kept).expect("reads").pin(), authority.pin());
    }
    let registry = Registry::from_bytes(data);
    if let Ok(registry) = &registry {
        let kept = registry.to_bytes().expect("writes");
        assert_eq!(Registry::from_bytes(&kept).expect("reads"), *registry);
    }
    let credential = std::str::from_utf8(data).ok().and_then(|text| Credential::from_text(text).ok());
    if let Some(credential) = &credential {
        let kept = credential.to_text().expect("writes");
        assert_eq!(Credential::from_text(&kept).expect("reads").id(), credential.id());
    }
    authority.is_ok() || registry.is_ok() || credential.is_some()
}
