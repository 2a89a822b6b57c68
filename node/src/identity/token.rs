//! One-time tokens: one line of text that lets a new machine in. Reading one is total on any text.
//!
//! `obelysk1` and base32 of: version (1 byte), cluster (16), SHA-256 of the authority's public key (32), token id (16), Ed25519 seed
//! (32), end of validity (8, little-endian, seconds since 1970), number of addresses (1), each with its length (2), and the first
//! 4 bytes of BLAKE3 of all that. The seed is the secret; it signs and never travels.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use obelysk_protocol::wire::{MAX_ADDRESS_BYTES, MAX_ADDRESSES};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use zeroize::Zeroizing;

use super::{ClusterId, Id, TokenId};
use crate::address::CoordinatorAddress;
use crate::transport::Fingerprint;

/// Every token starts with this; no letter of base32 is a `1`.
const PREFIX: &str = "obelysk1";
/// Version of the bytes inside.
const VERSION: u8 = 1;
/// Separates the checksum from other digests of the same bytes.
const CHECKSUM_DOMAIN: &[u8] = b"obelysk token checksum\0";
const CHECKSUM_BYTES: usize = 4;
/// Longest token: all addresses at their longest, in base32, with room for a later version's fields.
pub const MAX_TOKEN_BYTES: usize = 8192;

/// Why a text is not a token that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not look like one.
    #[error("this is not a token (a token starts with `{PREFIX}`); copy the whole line that `obelysk token create` printed")]
    NotAToken,
    /// Its checksum is wrong.
    #[error("this token is cut off or mistyped; copy it again, whole, from `obelysk token create`")]
    Damaged,
    /// It was made by another release.
    #[error("this token has version {theirs}, this program reads version {VERSION}; install the same release on both machines")]
    Version {
        /// Its version.
        theirs: u8,
    },
    /// It is whole and makes no sense.
    #[error("this token is not usable: {0}; make a new one with `obelysk token create`")]
    Senseless(&'static str),
    /// The system gives no random bytes.
    #[error("cannot make a token: the system gives no random bytes")]
    NoRandom,
}

/// A token, secret included.
#[derive(Clone)]
pub struct Token {
    /// The cluster it is for.
    pub cluster: ClusterId,
    /// SHA-256 of the authority's public key: all the trust a new machine starts with.
    pub pin: Fingerprint,
    /// Its id, which is no secret.
    pub id: TokenId,
    /// End of its validity, seconds since 1970 by the coordinator's clock.
    pub expires_unix_s: u64,
    /// Coordinators, `host:port`.
    pub addresses: Vec<String>,
    seed: Zeroizing<[u8; 32]>,
}

/// The secret half of a token that the cluster has not answered for yet.
pub struct TokenSeed(Zeroizing<[u8; 32]>);

impl TokenSeed {
    /// A new secret.
    ///
    /// # Errors
    /// [`TokenError::NoRandom`].
    pub fn generate() -> Result<Self, TokenError> {
        let mut seed = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(seed.as_mut_slice()).map_err(|_| TokenError::NoRandom)?;
        Ok(Self(seed))
    }

    /// The half that the cluster keeps.
    ///
    /// # Errors
    /// [`TokenError::Senseless`] when the seed makes no key.
    pub fn public_key(&self) -> Result<[u8; 32], TokenError> {
        let key = key_of(&self.0)?;
        key.public_key().as_ref().try_into().map_err(|_| TokenError::Senseless("its key has another length"))
    }

    /// The token, when the cluster has answered with the rest of it.
    #[must_use]
    pub fn into_token(
        self,
        (cluster, pin): (ClusterId, Fingerprint),
        id: TokenId,
        expires_unix_s: u64,
        addresses: Vec<String>,
    ) -> Token {
        Token { cluster, pin, id, expires_unix_s, addresses, seed: self.0 }
    }
}

fn key_of(seed: &[u8; 32]) -> Result<Ed25519KeyPair, TokenError> {
    Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| TokenError::Senseless("its seed makes no key"))
}

impl Token {
    /// The key that signs joins.
    pub(super) fn key(&self) -> Result<Ed25519KeyPair, TokenError> {
        key_of(&self.seed)
    }

    /// Where coordinators are, each with the pinned key.
    ///
    /// # Errors
    /// [`TokenError::Senseless`] for an address that is none.
    pub fn places(&self) -> Result<Vec<CoordinatorAddress>, TokenError> {
        let read =
            |a: &String| CoordinatorAddress::at(a, self.pin).map_err(|_| TokenError::Senseless("an address in it is none"));
        self.addresses.iter().map(read).collect()
    }

    /// The one line to give to the new machine: secret.
    #[must_use]
    pub fn to_line(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(vec![VERSION]);
        let pin = self.pin.bytes();
        let expires = self.expires_unix_s.to_le_bytes();
        for part in [&self.cluster.0[..], &pin, &self.id.0, self.seed.as_slice(), &expires] {
            bytes.extend_from_slice(part);
        }
        bytes.push(u8::try_from(self.addresses.len()).unwrap_or(u8::MAX));
        for address in &self.addresses {
            bytes.extend_from_slice(&u16::try_from(address.len()).unwrap_or(u16::MAX).to_le_bytes());
            bytes.extend_from_slice(address.as_bytes());
        }
        let check = checksum(&bytes);
        bytes.extend_from_slice(&check);
        let text = Zeroizing::new(BASE32_NOPAD.encode(&bytes));
        Zeroizing::new(format!("{PREFIX}{}", text.to_ascii_lowercase()))
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let digest = blake3::Hasher::new().update(CHECKSUM_DOMAIN).update(bytes).finalize();
    let [a, b, c, d, ..] = *digest.as_bytes();
    [a, b, c, d]
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::NotAToken);
        }
        let head = text.get(..PREFIX.len()).filter(|head| head.eq_ignore_ascii_case(PREFIX)).ok_or(TokenError::NotAToken)?;
        let body = Zeroizing::new(text[head.len()..].to_ascii_uppercase());
        let bytes = Zeroizing::new(BASE32_NOPAD.decode(body.as_bytes()).map_err(|_| TokenError::Damaged)?);
        let (payload, check) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(TokenError::Damaged)?;
        if *check != checksum(payload) {
            return Err(TokenError::Damaged);
        }
        let mut reader = Reader(payload);
        match reader.take::<1>()? {
            [VERSION] => reader.token(),
            [theirs] => Err(TokenError::Version { theirs }),
        }
    }
}

/// What is left of a payload.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], TokenError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(TokenError::Senseless("it ends early"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn token(mut self) -> Result<Token, TokenError> {
        let cluster = Id(self.take()?);
        let pin = Fingerprint::from_bytes(self.take()?);
        let id = Id(self.take()?);
        let seed = Zeroizing::new(self.take()?);
        let expires_unix_s = u64::from_le_bytes(self.take()?);
        let [count] = self.take()?;
        if count == 0 || usize::from(count) > MAX_ADDRESSES {
            return Err(TokenError::Senseless("it names no coordinator, or too many"));
        }
        let addresses = (0..count).map(|_| self.address()).collect::<Result<_, _>>()?;
        if !self.0.is_empty() {
            return Err(TokenError::Senseless("something follows its end"));
        }
        let token = Token { cluster, pin, id, expires_unix_s, addresses, seed };
        token.places()?;
        Ok(token)
    }

    fn address(&mut self) -> Result<String, TokenError> {
        let length = usize::from(u16::from_le_bytes(self.take()?));
        let (text, rest) = self.0.split_at_checked(length).ok_or(TokenError::Senseless("it ends early"))?;
        self.0 = rest;
        let plain = length <= MAX_ADDRESS_BYTES && text.iter().all(u8::is_ascii_graphic);
        let text = if plain { String::from_utf8(text.to_vec()).ok() } else { None };
        text.ok_or(TokenError::Senseless("an address in it is none"))
    }
}

impl fmt::Debug for Token {
    /// Never prints the seed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl fmt::Debug for TokenSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSeed(…)")
    }
}
