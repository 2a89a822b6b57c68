//! `obelysk coordinator members|remove|transfer`: the coordinators of a cluster.

use super::admin::{Desk, one, unexpected};
use super::args::AdminArgs;
use super::cluster::runtime;
use super::exit::Failure;
use super::home::Home;
use super::output::{Out, hex};
use obelysk_node::identity::unix_now;
use obelysk_protocol::wire::{Message, PeerLead, PeerRemove, Peers, PeersGet};

/// Runs `coordinator members`.
pub fn members(out: &Out, home: &Home, admin: &AdminArgs) -> Result<(), Failure> {
    runtime()?.block_on(async {
        // Also where there is no majority: then above all.
        let desk = Desk::open_any(home, admin).await?;
        let known = peers(&desk).await?;
        desk.close();
        let shown = known.members.iter().map(|m| {
            serde_json::json!({
                "id": format!("{:016x}", m.id), "key": hex(&m.entry.key), "peer": m.entry.peer, "service": m.entry.service,
                "leads": m.id == known.leader, "votes": m.votes, "live": m.live, "answers": m.id == known.own,
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
            out.line(format_args!("{:016x}  {state:6} {} (coordinators: {})", m.id, m.entry.service, m.entry.peer));
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
