//! The machine's side of joining, renewing and probing: short conversations on one stream each.

use std::time::Duration;

use obelysk_protocol::wire::{ALPN_JOIN, Coordinators, CoordinatorsGet, Enrol, Enrolled, Message, Probe, Probed, Renew};
use quinn::Connection;
use rustls::pki_types::CertificateDer;

use super::{ClusterId, Credential, Id, IdentityError, JoinStatement, NodeKey, Token, unix_now};
use crate::address::CoordinatorAddress;
use crate::error::{NodeError, TransportError};
use crate::transport::{CLOSE_DONE, Fingerprint, connect_alpn, ended, lost, public_key, read_message_within, write_message};

/// How long the coordinator may take to answer, its disk included.
const ANSWER: Duration = Duration::from_secs(20);
/// Longest answer: two certificates and eight addresses.
const MAX_ANSWER_BYTES: u32 = 64 << 10;

/// Lets this machine in: proves to hold the token's key on this very connection, and gets a certificate for its own key. Asking again with
/// the same key and token is answered again, so a lost answer costs nothing.
///
/// # Errors
/// [`NodeError::Transport`] as for any connection, with [`TransportError::Refused`] for a token that is spent, revoked, expired or of
/// another cluster; [`NodeError::Identity`] for a key that cannot sign.
pub async fn enrol(address: &CoordinatorAddress, token: &Token, key: &NodeKey, name: &str) -> Result<Credential, NodeError> {
    let (endpoint, connection) = connect_alpn(address, None, &[ALPN_JOIN]).await?;
    let csr = key.request()?;
    let unix_s = unix_now();
    let statement = JoinStatement::new(&connection, &csr, (token.cluster, token.id), unix_s, name)?;
    let signature = statement.sign(token).map_err(IdentityError::from)?;
    let (cluster, token_id) = (token.cluster.0, token.id.0);
    let request = Enrol { cluster, token: token_id, unix_s, name: name.to_owned(), csr, signature };
    let answer = ask(&connection, &Message::Enrol(request)).await;
    connection.close(CLOSE_DONE, b"done");
    // Without this the peer would wait for its idle timeout.
    let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
    let enrolled = expect_certificate(answer?)?;
    Ok(credential(enrolled, token.cluster, token.pin, NodeKey::from_pkcs8(&key.to_pkcs8())?, &token.addresses)?)
}

/// Renews a certificate over the connection that the old one opened.
///
/// # Errors
/// [`NodeError::Transport`], with [`TransportError::Refused`] for a node that was evicted; [`NodeError::Identity`].
pub async fn renew(connection: &Connection, old: &Credential) -> Result<Credential, NodeError> {
    let key = NodeKey::from_pkcs8(&old.key.to_pkcs8())?;
    let answer = ask(connection, &Message::Renew(Renew { csr: key.request()? })).await?;
    Ok(credential(expect_certificate(answer)?, old.cluster, old.pin, key, &old.addresses)?)
}

/// Asks a coordinator for its clock, cluster and release, showing nothing.
///
/// # Errors
/// [`TransportError`] as for any connection.
pub async fn probe(address: &CoordinatorAddress) -> Result<Probed, TransportError> {
    let (endpoint, connection) = connect_alpn(address, None, &[ALPN_JOIN]).await?;
    let answer = ask(&connection, &Message::Probe(Probe { unix_s: unix_now() })).await;
    connection.close(CLOSE_DONE, b"done");
    let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
    match answer? {
        Message::Probed(probed) => Ok(probed),
        other => Err(TransportError::Unexpected { expected: "an answer to a probe", got: other.id() }),
    }
}

/// Asks a coordinator who leads and where all of them are, before anything else is said on the connection.
///
/// # Errors
/// [`TransportError`] as for any connection.
pub async fn coordinators(connection: &Connection) -> Result<Coordinators, TransportError> {
    match ask(connection, &Message::CoordinatorsGet(CoordinatorsGet { unix_s: unix_now() })).await? {
        Message::Coordinators(known) => Ok(known),
        other => Err(TransportError::Unexpected { expected: "the coordinators", got: other.id() }),
    }
}

/// Puts one question on a stream of its own. A refusal is an error.
///
/// # Errors
/// [`TransportError`].
pub async fn ask(connection: &Connection, question: &Message) -> Result<Message, TransportError> {
    ask_within(connection, question, MAX_ANSWER_BYTES).await
}

/// As [`ask`], for answers of up to `limit` bytes: pages of lists.
///
/// # Errors
/// As [`ask`].
pub async fn ask_within(connection: &Connection, question: &Message, limit: u32) -> Result<Message, TransportError> {
    let exchange = async {
        let (mut send, mut recv) = connection.open_bi().await.map_err(|e| lost(&e))?;
        // A refusal may stop our sending; the reason is in the answer, so that is read in either case.
        let sent = write_message(&mut send, question).await;
        let _ = send.finish();
        match read_message_within(&mut recv, limit).await {
            Ok(answer) => sent.map(|()| answer),
            Err(error) => Err(error),
        }
    };
    let answer = tokio::time::timeout(ANSWER, exchange).await.unwrap_or(Err(TransportError::Timeout(ANSWER.as_secs())));
    match answer.map_err(|e| ended(connection, e))? {
        Some(Message::Refused(no)) => Err(TransportError::Refused { reason: no.reason, retry: no.retry }),
        Some(Message::Coordinators(known)) if !matches!(question, Message::CoordinatorsGet(_)) => {
            Err(TransportError::Elsewhere { leader: known.leader, all: known.all })
        }
        Some(message) => Ok(message),
        None => Err(ended(connection, TransportError::Truncated("before an answer"))),
    }
}

fn expect_certificate(answer: Message) -> Result<Enrolled, TransportError> {
    match answer {
        Message::Enrolled(enrolled) => Ok(enrolled),
        other => Err(TransportError::Unexpected { expected: "a certificate", got: other.id() }),
    }
}

/// Holds an answer against what was asked for: our key, and the authority that is pinned.
fn credential(
    enrolled: Enrolled,
    cluster: ClusterId,
    pin: Fingerprint,
    key: NodeKey,
    addresses: &[String],
) -> Result<Credential, TransportError> {
    let certificate = CertificateDer::from(enrolled.certificate);
    let authority = CertificateDer::from(enrolled.authority);
    let got = Fingerprint::of_certificate(&authority)?;
    if got != pin {
        return Err(TransportError::WrongKey { expected: pin.to_string(), got: got.to_string() });
    }
    let id = Id(*blake3::hash(&public_key(&certificate)?).as_bytes());
    if id != key.id() || enrolled.node != id.0 {
        return Err(TransportError::ServerCertificate("it certified another key than ours".to_owned()));
    }
    let usable = |a: &String| CoordinatorAddress::at(a, pin).is_ok();
    let known: Vec<String> = enrolled.addresses.into_iter().filter(usable).collect();
    let issued_unix_s = unix_now();
    Ok(Credential {
        cluster,
        pin,
        // The address that was dialled works; what the coordinator calls itself may not from here.
        addresses: merged(addresses, known),
        key,
        certificate: certificate.to_vec(),
        authority: authority.to_vec(),
        issued_unix_s,
        expires_unix_s: issued_unix_s.saturating_add(enrolled.life_s),
    })
}

/// Addresses in their order, then those that are new, as far as one identity holds.
pub(crate) fn merged(old: &[String], new: Vec<String>) -> Vec<String> {
    let mut all = old.to_vec();
    all.extend(new.into_iter().filter(|a| !old.contains(a)));
    all.truncate(obelysk_protocol::wire::MAX_ADDRESSES);
    all
}
