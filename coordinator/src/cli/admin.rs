//! `obelysk token …` and `obelysk node list|drain|evict`: orders to a running coordinator, by the administrator's file.

use super::args::{AdminArgs, TokenArgs, TokenCommand};
use super::cluster::runtime;
use super::exit::{Code, Coded as _, Failure};
use super::home::Home;
use super::output::Out;
use obelysk_node::CoordinatorAddress;
use obelysk_node::ModelFolder;
use obelysk_node::error::TransportError;
use obelysk_node::identity::{Credential, Id, MAX_CREDENTIAL_BYTES, TokenSeed, ask_within, coordinators, read_private, unix_now};
use obelysk_node::models::ModelManifest;
use obelysk_node::transport::quinn::{Connection, Endpoint};
use obelysk_node::transport::{CLOSE_DONE, InMemory, connect, offer};
use obelysk_protocol::wire::{
    BlobRef, MAX_CONTROL_BYTES, Message, ModelEntry, ModelPublish, ModelWithdraw, ModelsAfter, NodeDrain, NodeEntry, NodeEvict,
    NodeState, NodesAfter, TokenEntry, TokenNew, TokenRevoke, TokensAfter,
};
use std::path::PathBuf;

/// The administrator's file in a coordinator's folder.
pub const ADMIN_FILE: &str = "admin.toml";

/// Rounds over all coordinators while they elect a leader, and the pause between two: an election takes one to two seconds.
const MAX_ROUNDS: u32 = 8;
const ELECTION: std::time::Duration = std::time::Duration::from_millis(500);

/// How long one that may be gone is waited for, where there are others, and where there is none.
const SHORT: std::time::Duration = std::time::Duration::from_secs(3);
const LONG: std::time::Duration = std::time::Duration::from_secs(30);

/// A connection on which orders are given.
pub struct Desk {
    credential: Credential,
    connection: Connection,
    _endpoint: Endpoint,
}

impl Desk {
    /// Connects by the administrator's file to whoever leads.
    pub async fn open(home: &Home, args: &AdminArgs) -> Result<Self, Failure> {
        Self::connect(home, args, true).await
    }

    /// As [`Desk::open`]; where nobody leads, to whoever answers.
    pub async fn open_any(home: &Home, args: &AdminArgs) -> Result<Self, Failure> {
        Self::connect(home, args, false).await
    }

    async fn connect(home: &Home, args: &AdminArgs, leader: bool) -> Result<Self, Failure> {
        let path = args.admin.clone().unwrap_or_else(|| home.root().join("coordinator").join(ADMIN_FILE));
        let credential = read_admin(&path)?.ok_or_else(|| none(&path))?;
        let (mut places, mut tried, mut last) = (credential.places()?, Vec::new(), None);
        let (mut any, mut rounds) = (None, 0);
        loop {
            let Some(place) = places.iter().find(|place| !tried.contains(*place)).cloned() else {
                rounds += 1;
                // They answer, and are about to agree on who leads.
                let electing = matches!(last, Some(TransportError::Elsewhere { .. })) && rounds < MAX_ROUNDS;
                match any.take() {
                    Some((connection, endpoint)) if !leader => {
                        return Ok(Self { credential, connection, _endpoint: endpoint });
                    }
                    _ if electing => {
                        tokio::time::sleep(ELECTION).await;
                        tried.clear();
                        continue;
                    }
                    _ => break,
                }
            };
            tried.push(place.clone());
            let known = async {
                let (endpoint, connection) = connect(&place, Some(&credential.client())).await?;
                let known = coordinators(&connection).await?;
                Ok::<_, TransportError>((endpoint, connection, known))
            };
            // One of several that is gone shall not hold up the others.
            let patience = if places.len() > 1 { SHORT } else { LONG };
            let known = tokio::time::timeout(patience, known).await;
            match known.unwrap_or(Err(TransportError::Timeout(patience.as_secs()))) {
                Ok((endpoint, connection, known)) if known.leads => {
                    return Ok(Self { credential, connection, _endpoint: endpoint });
                }
                Ok((endpoint, connection, known)) => {
                    any = Some((connection, endpoint));
                    let at = |place: &String| CoordinatorAddress::at(place, credential.pin).ok();
                    // The leader before the rest.
                    let hint = at(&known.leader).filter(|hint| !places.contains(hint));
                    places.splice(..0, hint);
                    let more: Vec<_> = known.all.iter().filter_map(at).filter(|place| !places.contains(place)).collect();
                    places.extend(more);
                    last = Some(TransportError::Elsewhere { leader: known.leader, all: known.all });
                }
                Err(error) => last = last.or(Some(error)),
            }
        }
        let last = last.unwrap_or_else(|| TransportError::Lost("the file names no coordinator".to_owned()));
        if tried.len() < 2 {
            return Err(last).code(Code::Cluster);
        }
        let all: Vec<String> = tried.iter().map(|place| format!("{}:{}", place.host, place.port)).collect();
        let error = anyhow::anyhow!("no coordinator takes orders now ({}): {last}", all.join(", "));
        Err(Failure { code: Code::Cluster, error })
    }

    /// Whose orders these are.
    pub const fn credential(&self) -> &Credential {
        &self.credential
    }

    /// Sends one order or question and waits for its answer.
    pub async fn order(&self, order: Message) -> Result<Message, Failure> {
        ask_within(&self.connection, &order, MAX_CONTROL_BYTES).await.code(Code::Cluster)
    }

    async fn tokens(&self) -> Result<Vec<TokenEntry>, Failure> {
        let mut all: Vec<TokenEntry> = Vec::new();
        loop {
            let token = all.last().map_or([0; 16], |t| t.token);
            match self.order(Message::TokensAfter(TokensAfter { token })).await? {
                Message::Tokens(page) if page.tokens.is_empty() => return Ok(all),
                Message::Tokens(page) => all.extend(page.tokens),
                other => return Err(unexpected(&other)),
            }
        }
    }

    async fn nodes(&self) -> Result<Vec<NodeEntry>, Failure> {
        let mut all: Vec<NodeEntry> = Vec::new();
        loop {
            let node = all.last().map_or([0; 32], |n| n.node);
            match self.order(Message::NodesAfter(NodesAfter { node })).await? {
                Message::Nodes(page) if page.nodes.is_empty() => return Ok(all),
                Message::Nodes(page) => all.extend(page.nodes),
                other => return Err(unexpected(&other)),
            }
        }
    }

    async fn models(&self) -> Result<Vec<ModelEntry>, Failure> {
        let mut all: Vec<ModelEntry> = Vec::new();
        loop {
            let model = all.last().map_or([0; 32], |m| m.model);
            match self.order(Message::ModelsAfter(ModelsAfter { model })).await? {
                Message::Models(page) if page.models.is_empty() => return Ok(all),
                Message::Models(page) => all.extend(page.models),
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// The id of the one node whose id begins so, or whose name is this.
    async fn node(&self, named: &str) -> Result<[u8; 32], Failure> {
        let nodes = self.nodes().await?;
        let ids = nodes.iter().map(|n| (n.node, Id(n.node).to_string()));
        one("node", named, ids)
    }

    /// Sends an order and prints what was done.
    pub async fn done(&self, out: &Out, order: Message) -> Result<(), Failure> {
        match self.order(order).await? {
            Message::AdminDone(done) => {
                out.json(&serde_json::json!({ "done": done.text }));
                out.line(done.text);
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Says that nothing follows.
    pub fn close(self) {
        self.connection.close(CLOSE_DONE, b"done");
    }
}

/// Reads an administrator's file, if there is one.
pub fn read_admin(path: &std::path::Path) -> Result<Option<Credential>, Failure> {
    let Some(bytes) = read_private(path, MAX_CREDENTIAL_BYTES)? else { return Ok(None) };
    let text = std::str::from_utf8(&bytes).map_err(|_| Failure::input(format!("{} is damaged", path.display())))?;
    Ok(Some(Credential::from_text(text)?))
}

fn none(path: &std::path::Path) -> Failure {
    let text = format!(
        "there is no administrator's file {}; run this on the coordinator's machine as its user, or pass a copy with --admin FILE \
         (`obelysk coordinator serve` writes it)",
        path.display()
    );
    Failure::input(text)
}

/// The error of an answer to something else.
pub fn unexpected(message: &Message) -> Failure {
    let error = TransportError::Unexpected { expected: "an answer to an order", got: message.id() };
    Failure { code: Code::Cluster, error: error.into() }
}

/// The one id that begins so.
pub fn one<T: Copy>(what: &str, begin: &str, ids: impl Iterator<Item = (T, String)>) -> Result<T, Failure> {
    let begin = begin.to_ascii_lowercase();
    let found: Vec<(T, String)> = ids.filter(|(_, text)| !begin.is_empty() && text.starts_with(&begin)).collect();
    match found.as_slice() {
        [(id, _)] => Ok(*id),
        [] => Err(Failure::input(format!("no {what} has an id that begins with `{begin}`{}", listed(what)))),
        more => Err(Failure::input(format!("{} {what}s have ids that begin with `{begin}`; give more of it", more.len()))),
    }
}

/// Where to see what there is.
fn listed(what: &str) -> String {
    match what {
        "token" | "node" | "job" => format!("; see `obelysk {what} list`"),
        "coordinator" => "; see `obelysk coordinator members`".to_owned(),
        _ => String::new(),
    }
}

/// Runs `token …`.
pub fn token(out: &Out, home: &Home, command: TokenCommand) -> Result<(), Failure> {
    runtime()?.block_on(async {
        match command {
            TokenCommand::Create(args) => create(out, home, args).await,
            TokenCommand::List { admin } => list_tokens(out, home, &admin).await,
            TokenCommand::Revoke { id, admin } => {
                let desk = Desk::open(home, &admin).await?;
                let tokens = desk.tokens().await?;
                let token = one("token", &id, tokens.iter().map(|t| (t.token, Id(t.token).to_string())))?;
                desk.done(out, Message::TokenRevoke(TokenRevoke { token })).await?;
                desk.close();
                Ok(())
            }
        }
    })
}

async fn create(out: &Out, home: &Home, args: TokenArgs) -> Result<(), Failure> {
    let desk = Desk::open(home, &args.admin).await?;
    let pin = desk.credential.pin;
    for address in &args.address {
        CoordinatorAddress::at(address, pin)?;
    }
    if args.address.len() > obelysk_protocol::wire::MAX_ADDRESSES {
        return Err(Failure::input("a token takes up to 8 addresses"));
    }
    // The secret half is made here and leaves this process only as the line that is printed.
    let seed = TokenSeed::generate().code(Code::Internal)?;
    let order = TokenNew { public_key: seed.public_key().code(Code::Internal)?, ttl_s: args.ttl, uses: args.uses };
    let made = match desk.order(Message::TokenNew(order)).await? {
        Message::TokenMade(made) => made,
        other => return Err(unexpected(&other)),
    };
    desk.close();
    let addresses = if args.address.is_empty() { made.addresses } else { args.address };
    if let Some(address) = addresses.iter().find(|a| a.starts_with("0.0.0.0:") || a.starts_with("[::]:")) {
        out.note(&format!("{address} leads nowhere from another machine: pass --address HOST:PORT, or set `advertise`"));
    }
    let token = seed.into_token((Id(made.cluster), pin), Id(made.token), made.expires_unix_s, addresses);
    let line = token.to_line();
    out.json(&serde_json::json!({
        "token": line.as_str(), "id": token.id, "expires_unix_s": token.expires_unix_s, "uses": args.uses,
        "addresses": token.addresses, "command": format!("obelysk node join {}", line.as_str()),
    }));
    // Alone on its line, to be copied or piped whole.
    out.line(format_args!("obelysk node join {}", line.as_str()));
    Ok(())
}

async fn list_tokens(out: &Out, home: &Home, admin: &AdminArgs) -> Result<(), Failure> {
    let desk = Desk::open(home, admin).await?;
    let tokens = desk.tokens().await?;
    desk.close();
    let now = unix_now();
    let state = |t: &TokenEntry| match t {
        t if t.revoked => "revoked",
        t if t.expires_unix_s <= now => "expired",
        t if t.uses_left == 0 => "spent",
        _ => "open",
    };
    let shown = |t: &TokenEntry| {
        serde_json::json!({
            "id": Id(t.token), "state": state(t), "uses": t.uses, "uses_left": t.uses_left,
            "created_unix_s": t.created_unix_s, "expires_unix_s": t.expires_unix_s,
        })
    };
    out.json(&tokens.iter().map(shown).collect::<Vec<_>>());
    for t in &tokens {
        let left = t.expires_unix_s.saturating_sub(now);
        out.line(format_args!("{}  {:8} {} of {} uses left, {left} s", Id(t.token), state(t), t.uses_left, t.uses));
    }
    Ok(())
}

/// Runs `node list`.
pub fn nodes(out: &Out, home: &Home, admin: &AdminArgs) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let desk = Desk::open(home, admin).await?;
        let nodes = desk.nodes().await?;
        desk.close();
        let state = |n: &NodeEntry| NodeState::from_code(n.state).map_or("unknown", NodeState::name);
        let shown = |n: &NodeEntry| {
            serde_json::json!({
                "id": Id(n.node), "name": n.name, "state": state(n), "reason": n.reason,
                "joined_unix_s": n.joined_unix_s, "expires_unix_s": n.expires_unix_s,
            })
        };
        out.json(&nodes.iter().map(shown).collect::<Vec<_>>());
        for n in &nodes {
            out.line(format_args!("{}  {:11} {} {}", Id(n.node), state(n), n.name, n.reason));
        }
        Ok(())
    })
}

/// Runs `node drain`, or `node evict` with a reason.
pub fn part(out: &Out, home: &Home, id: &str, reason: Option<String>, admin: &AdminArgs) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let desk = Desk::open(home, admin).await?;
        let node = desk.node(id).await?;
        let order = match reason {
            Some(reason) => Message::NodeEvict(NodeEvict { node, reason }),
            None => Message::NodeDrain(NodeDrain { node }),
        };
        desk.done(out, order).await?;
        desk.close();
        Ok(())
    })
}

/// Runs `model push`.
pub fn push(out: &Out, home: &Home, model: &ModelFolder, admin: &AdminArgs) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let desk = Desk::open(home, admin).await?;
        // The first word on a connection is an order; this one also shows whether anything is to be done.
        let known = desk.models().await?.iter().any(|entry| entry.model == model.id);
        let spinner = out.spinner("reading the model's files");
        let listed = ModelManifest::of(model);
        spinner.finish_and_clear();
        let (manifest, files) = listed.code(Code::Input)?;
        let text = manifest.encode();
        let list = InMemory { blob: BlobRef::of(&text), bytes: std::sync::Arc::new(text) };
        let bar = out.bar(files.len() + 1, "sending");
        for file in &files {
            bar.set_message(manifest.files.get(bar.position() as usize).map_or_else(String::new, |file| file.name.clone()));
            offer(&desk.connection, 0, file).await.code(Code::Cluster)?;
            bar.inc(1);
        }
        offer(&desk.connection, 0, &list).await.code(Code::Cluster)?;
        bar.finish_and_clear();
        if known {
            out.note("this model was published before; its files are now as they are here");
        }
        desk.done(out, Message::ModelPublish(ModelPublish { model: model.id, manifest: list.blob })).await?;
        desk.close();
        Ok(())
    })
}

/// Runs `model withdraw`.
pub fn withdraw(out: &Out, home: &Home, id: &str, admin: &AdminArgs) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let desk = Desk::open(home, admin).await?;
        let models = desk.models().await?;
        let model = one("published model", id, models.iter().map(|entry| (entry.model, Id(entry.model).to_string())))?;
        desk.done(out, Message::ModelWithdraw(ModelWithdraw { model })).await?;
        desk.close();
        Ok(())
    })
}

/// Where the administrator's file of a coordinator's folder lies.
pub fn admin_file(state: &std::path::Path) -> PathBuf {
    state.join(ADMIN_FILE)
}
