//! What a peer without a certificate may do: ask who is there, or be let in by a token. One short message, one answer, no more.

use std::sync::Arc;

use obelysk_node::error::TransportError;
use obelysk_node::identity::{Id, JoinStatement, unix_now};
use obelysk_node::transport::quinn::{Connection, SendStream};
use obelysk_node::transport::{lost, read_message_within, write_message};
use obelysk_protocol::wire::{Enrol, Enrolled, MAX_ENROL_BYTES, Message, Probed};

use super::Shared;
use super::guard::Arrival;
use super::session::{HANDSHAKE, point, refuse};
use crate::identity::AdmissionError;

/// Answers the peer's one message. `arrival` is kept until the peer is known, or to the end.
pub(super) async fn serve(shared: &Arc<Shared>, connection: &Connection, arrival: Arrival) -> Result<(), TransportError> {
    let first = async {
        let (send, mut recv) = connection.accept_bi().await.map_err(|e| lost(&e))?;
        Ok::<_, TransportError>((send, read_message_within(&mut recv, MAX_ENROL_BYTES).await?))
    };
    let first = tokio::time::timeout(HANDSHAKE, first);
    let (mut send, message) = tokio::select! {
        first = first => first.unwrap_or(Err(TransportError::Timeout(HANDSHAKE.as_secs())))?,
        () = arrival.pushed_out() => return Err(TransportError::Lost("too many at the door; try again".to_owned())),
    };
    match message {
        Some(Message::Enrol(request)) => {
            // Only who leads knows every token, and can keep that it was used.
            if let Some(known) = shared.elsewhere().await {
                return point(&mut send, known).await;
            }
            let remote = connection.remote_address();
            match enrol(shared, connection, request).await? {
                Ok(answer) => {
                    arrival.known();
                    write_message(&mut send, &Message::Enrolled(answer)).await?;
                }
                Err(error) => {
                    tracing::warn!(%remote, %error, "not admitted");
                    return refuse(&mut send, error.may_pass(), &error.to_string()).await;
                }
            }
        }
        Some(Message::Probe(_)) => probed(shared, &mut send).await?,
        Some(other) => return Err(TransportError::Unexpected { expected: "a request to join", got: other.id() }),
        None => return Err(TransportError::Truncated("before a request to join")),
    }
    let _ = send.finish();
    Ok(())
}

async fn probed(shared: &Shared, send: &mut SendStream) -> Result<(), TransportError> {
    let (unix_s, cluster) = (unix_now(), shared.admissions.cluster().0);
    let release = env!("CARGO_PKG_VERSION").to_owned();
    write_message(send, &Message::Probed(Probed { unix_s, cluster, release })).await
}

async fn enrol(
    shared: &Arc<Shared>,
    connection: &Connection,
    request: Enrol,
) -> Result<Result<Enrolled, AdmissionError>, TransportError> {
    let (shared, connection) = (shared.clone(), connection.clone());
    // Waits for the disk.
    let decided = tokio::task::spawn_blocking(move || {
        let made = shared.admissions.enrol(&request, || {
            let about = (Id(request.cluster), Id(request.token));
            JoinStatement::new(&connection, &request.csr, about, request.unix_s, &request.name)
                .map_err(|_| AdmissionError::Signature)
        });
        made.map(|(node, certificate)| answer(&shared, node.0, certificate.to_vec()))
    });
    decided.await.map_err(|_| TransportError::Lost("the coordinator failed; see its log".to_owned()))
}

/// A new certificate as it is sent.
pub(super) fn answer(shared: &Shared, node: [u8; 32], certificate: Vec<u8>) -> Enrolled {
    Enrolled {
        node,
        certificate,
        authority: shared.admissions.authority().certificate().to_vec(),
        life_s: shared.admissions.life_s(),
        addresses: shared.places(),
    }
}
