//! Orders of administrators: tokens and nodes. Only for holders of a key that the registry knows as one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use obelysk_node::error::TransportError;
use obelysk_node::identity::{Id, NodeKeyId};
use obelysk_node::transport::quinn::Connection;
use obelysk_node::transport::{read_message, write_message};
use obelysk_protocol::wire::{
    AdminDone, MAX_PAGE, MAX_TEXT_BYTES, Message, Models, NodeEntry, NodeState, Nodes, Refused, TokenEntry, TokenMade, Tokens,
};
use tokio::sync::oneshot;

use super::brain::Command;
use super::models::PublishError;
use super::session::{HANDSHAKE, point};
use super::{Shared, bulk, clip, council, questions};
use crate::identity::{AdmissionError, Member, TokenOrder, TokenRecord};

/// How long an administrator may be silent between orders: a large file is on its way meanwhile, or read before it is offered.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Whether a message is for administrators.
pub(super) const fn is_order(message: &Message) -> bool {
    matches!(
        message,
        Message::TokenNew(_)
            | Message::TokensAfter(_)
            | Message::TokenRevoke(_)
            | Message::NodesAfter(_)
            | Message::NodeDrain(_)
            | Message::NodeEvict(_)
            | Message::ModelPublish(_)
            | Message::ModelWithdraw(_)
            | Message::ModelsAfter(_)
    ) || questions::is_question(message)
        || council::is_about(message)
}

/// Serves what follows the first order, each on a stream of its own, until the administrator goes or is silent.
pub(super) async fn serve_rest(shared: &Arc<Shared>, connection: &Connection) -> Result<(), TransportError> {
    while let Ok(Ok((mut send, mut recv))) = tokio::time::timeout(PATIENCE, connection.accept_bi()).await {
        let order = tokio::time::timeout(HANDSHAKE, read_message(&mut recv)).await;
        match order.unwrap_or(Err(TransportError::Timeout(HANDSHAKE.as_secs())))? {
            // Beside the orders: a file takes its time, and a broken one ends no other.
            Some(Message::BlobOffer(offer)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    if let Err(error) = bulk::pushed(&shared, offer.blob, (send, recv)).await {
                        tracing::warn!(%error, "a file of a model did not arrive");
                    }
                });
                continue;
            }
            Some(Message::CoordinatorsGet(_)) => point(&mut send, shared.coordinators()).await?,
            Some(order) => {
                let elsewhere = if council::is_for_all(&order) { None } else { shared.elsewhere().await };
                let answer = match elsewhere {
                    Some(known) => Message::Coordinators(known),
                    None => answer(shared, order).await,
                };
                write_message(&mut send, &answer).await?;
            }
            None => return Ok(()),
        }
        let _ = send.finish();
    }
    Ok(())
}

/// Carries an order out.
pub(super) async fn answer(shared: &Arc<Shared>, order: Message) -> Message {
    carry_out(shared, order).await.unwrap_or_else(|error| {
        let reason = clip(error.to_string(), MAX_TEXT_BYTES);
        Message::Refused(Refused { retry: error.may_pass(), reason })
    })
}

async fn carry_out(shared: &Arc<Shared>, order: Message) -> Result<Message, AdmissionError> {
    match order {
        Message::TokenNew(new) => {
            let order = TokenOrder { public_key: new.public_key, ttl_s: new.ttl_s, uses: new.uses };
            let made = on_disk(shared, move |s| s.admissions.add_token(order)).await?;
            tracing::info!(token = %made.id, uses = made.uses, expires_unix_s = made.expires_unix_s, "token made");
            Ok(Message::TokenMade(TokenMade {
                token: made.id.0,
                cluster: shared.admissions.cluster().0,
                expires_unix_s: made.expires_unix_s,
                addresses: shared.places(),
            }))
        }
        Message::TokensAfter(page) => {
            let tokens = shared.admissions.tokens_after(Id(page.token), MAX_PAGE);
            Ok(Message::Tokens(Tokens { tokens: tokens.iter().map(token_entry).collect() }))
        }
        Message::TokenRevoke(which) => {
            let id = Id(which.token);
            on_disk(shared, move |s| s.admissions.revoke_token(id)).await?;
            tracing::info!(token = %id, "token revoked");
            Ok(done(format!("token {id} lets nobody in any more")))
        }
        Message::NodesAfter(page) => {
            let members = shared.admissions.members_after(Id(page.node), MAX_PAGE);
            let (answer, states) = oneshot::channel();
            shared.command(Command::Census { answer }).await.map_err(|()| stopped())?;
            let states = states.await.map_err(|_| stopped())?;
            Ok(Message::Nodes(Nodes { nodes: members.iter().map(|m| node_entry(m, &states)).collect() }))
        }
        Message::NodeDrain(which) => {
            let node = Id(which.node);
            shared.admissions.member(node)?;
            let (answer, told) = oneshot::channel();
            shared.command(Command::Drain { key: node, answer }).await.map_err(|()| stopped())?;
            match told.await {
                Ok(true) => Ok(done(format!("node {node} finishes what it runs and leaves"))),
                _ => Err(AdmissionError::NoSuch(format!("connected node {node}"))),
            }
        }
        Message::NodeEvict(which) => {
            let (node, reason) = (Id(which.node), which.reason);
            let why = reason.clone();
            on_disk(shared, move |s| s.admissions.evict(node, &why)).await?;
            tracing::warn!(%node, reason, "evicted");
            shared.command(Command::Evict { key: node, reason }).await.map_err(|()| stopped())?;
            // Nobody listening means that it is not connected.
            let _ = shared.evictions.send(node);
            Ok(done(format!("node {node} is out; its certificate counts no more")))
        }
        Message::ModelsAfter(page) => Ok(Message::Models(Models { models: shared.models.after(page.model).await })),
        Message::ModelPublish(order) => Ok(match shared.models.publish(order.model, order.manifest).await {
            Ok(bytes) => {
                tracing::info!(model = %Id(order.model), bytes, "model published");
                done(format!("nodes may have model {} ({bytes} bytes)", Id(order.model)))
            }
            Err(error) => refused(&error),
        }),
        Message::ModelWithdraw(order) => Ok(match shared.models.withdraw(order.model).await {
            Ok(true) => done(format!("model {} is offered no more; nodes that have it keep it", Id(order.model))),
            Ok(false) => return Err(AdmissionError::NoSuch(format!("published model {}", Id(order.model)))),
            Err(error) => refused(&error),
        }),
        order if council::is_about(&order) => council::answer(shared, order).await,
        question => questions::answer(shared, question).await,
    }
}

async fn on_disk<T: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Shared) -> Result<T, AdmissionError> + Send + 'static,
) -> Result<T, AdmissionError> {
    let shared = shared.clone();
    tokio::task::spawn_blocking(move || work(&shared)).await.unwrap_or_else(|_| Err(stopped()))
}

fn refused(error: &PublishError) -> Message {
    Message::Refused(Refused { retry: true, reason: clip(error.to_string(), MAX_TEXT_BYTES) })
}

fn stopped() -> AdmissionError {
    AdmissionError::Authority("the coordinator stops; start it again".to_owned())
}

const fn done(text: String) -> Message {
    Message::AdminDone(AdminDone { text })
}

fn token_entry(token: &TokenRecord) -> TokenEntry {
    let (created_unix_s, expires_unix_s) = (token.created_unix_s, token.expires_unix_s);
    let (uses, uses_left, revoked) = (token.uses, token.uses_left(), token.revoked);
    TokenEntry { token: token.id.0, created_unix_s, expires_unix_s, uses, uses_left, revoked }
}

fn node_entry(member: &Member, states: &BTreeMap<NodeKeyId, (NodeState, String)>) -> NodeEntry {
    let seen = states.get(&member.id).cloned().unwrap_or((NodeState::Away, String::new()));
    let (state, reason) = member.evicted.clone().map_or(seen, |reason| (NodeState::Evicted, reason));
    NodeEntry {
        node: member.id.0,
        name: member.name.clone(),
        state: state as u8,
        joined_unix_s: member.joined_unix_s,
        expires_unix_s: member.expires_unix_s,
        reason: clip(reason, MAX_TEXT_BYTES),
    }
}
