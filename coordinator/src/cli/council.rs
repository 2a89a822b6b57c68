//! `obelysk coordinator members|remove|transfer`: the coordinators of a cluster.

use super::admin::{Desk, one, unexpected};
use super::args::AdminArgs;
use super::cluster::runtime;
use super::exit::Failure;
use super::home::Home;
use super::output::{Out, hex};
use obelysk_node::identity::unix_now;
use obelysk_protocol::wire::{KeptGet, Message, PeerLead, PeerRemove, Peers, PeersGet};
use std::collections::BTreeMap;

/// Runs `coordinator members`.
pub fn members(out: &Out, home: &Home, admin: &AdminArgs) -> Result<(), Failure> {
    runtime()?.block_on(async {
        // Also where there is no majority: then above all.
        let desk = Desk::open_any(home, admin).await?;
        let known = peers(&desk).await?;
        let mut lacks = BTreeMap::new();
        for m in known.members.iter().filter(|m| !m.votes) {
            // One that does not answer yet says nothing.
            if let Ok(Message::Kept(kept)) = desk.order(Message::KeptGet(KeptGet { id: m.id })).await {
                lacks.insert(m.id, kept);
            }
        }
        desk.close();
        let shown = known.members.iter().map(|m| {
            let lacks = lacks.get(&m.id).map(|kept| {
                serde_json::json!({
                    "blobs": kept.blobs, "bytes": kept.bytes, "lacking": kept.lacking, "lacking_bytes": kept.lacking_bytes,
                })
            });
            serde_json::json!({
                "id": format!("{:016x}", m.id), "key": hex(&m.entry.key), "peer": m.entry.peer, "service": m.entry.service,
                "leads": m.id == known.leader, "votes": m.votes, "live": m.live, "answers": m.id == known.own,
                "lacks": lacks,
            })
        });
        out.json(&serde_json::json!({ "applied": known.applied, "members": shown.collect::<Vec<_>>() }));
        // The leader alone hears of all.
        let hears = known.leader == known.own;
        for m in &known.members {
            let state = match (m.id == known.leader, m.votes, m.live || !hears) {
                (true, ..) => "leads",
                (_, _, false) => "away",
                (_, true, true) => "votes",
                (_, false, true) => "learns",
            };
            let lacks = lacks.get(&m.id).filter(|kept| kept.lacking > 0).map_or_else(String::new, |kept| {
                let mib = |bytes: u64| bytes.div_ceil(1 << 20);
                format!(
                    ", lacks {} of {} blobs, {} of {} MiB",
                    kept.lacking,
                    kept.blobs,
                    mib(kept.lacking_bytes),
                    mib(kept.bytes)
                )
            });
            out.line(format_args!("{:016x}  {state:6} {} (coordinators: {}){lacks}", m.id, m.entry.service, m.entry.peer));
        }
        if known.leader == 0 {
            out.note("nobody leads: a majority of the coordinators must be up and reach each other");
        }
        Ok(())
    })
}

/// Runs `coordinator remove`.
pub fn remove(out: &Out, home: &Home, id: &str, admin: &AdminArgs) -> Result<(), Failure> {
    ordered(out, home, (id, admin), |id| Message::PeerRemove(PeerRemove { id }))
}

/// Runs `coordinator transfer`.
pub fn transfer(out: &Out, home: &Home, id: &str, admin: &AdminArgs) -> Result<(), Failure> {
    ordered(out, home, (id, admin), |id| Message::PeerLead(PeerLead { id }))
}

fn ordered(out: &Out, home: &Home, (id, admin): (&str, &AdminArgs), order: impl Fn(u64) -> Message) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let desk = Desk::open(home, admin).await?;
        let known = peers(&desk).await?;
        let id = one("coordinator", id, known.members.iter().map(|m| (m.id, format!("{:016x}", m.id))))?;
        desk.done(out, order(id)).await?;
        desk.close();
        Ok(())
    })
}

async fn peers(desk: &Desk) -> Result<Peers, Failure> {
    match desk.order(Message::PeersGet(PeersGet { unix_s: unix_now() })).await? {
        Message::Peers(known) => Ok(known),
        other => Err(unexpected(&other)),
    }
}
