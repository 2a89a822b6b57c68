//! The side that stands where a coordinator does: gives its blob to whoever fetches it, takes one that is offered, copies over TCP.

use super::super::super::args::TransferArgs;
use super::super::super::exit::{Code, Coded as _, Failure};
use super::{Place, orphaned, payload};
use anyhow::anyhow;
use obelysk_coordinator::Admissions;
use obelysk_node::identity::unix_now;
use obelysk_node::transport::quinn::{Connection, Incoming, RecvStream, SendStream};
use obelysk_node::transport::rustls::sign::SingleCertAndKey;
use obelysk_node::transport::{
    Fingerprint, InMemory, Parts, ServerTls, accept_offer, answer_fetch, listen, open_up, read_message, write_message,
};
use obelysk_protocol::wire::{BlobRef, BlobStored, Message};
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// As nodes and coordinators have it.
const IDLE_MS: u32 = 30_000;
/// First byte of a copy: whoever connects wants the bytes.
pub(super) const GET: u8 = 1;
/// First byte of a copy: whoever connects sends them.
pub(super) const PUT: u8 = 2;

/// Serves until the process that started this one is gone.
pub(super) async fn serve(args: &TransferArgs) -> Result<(), Failure> {
    let bytes = Arc::new(payload(args.mib));
    let source = InMemory { blob: BlobRef::of(&bytes), bytes };
    let host: SocketAddr = format!("{}:0", args.host).parse()?;
    let admissions = Admissions::in_memory()?;
    let authority = admissions.authority();
    let (certificate, key) = authority.certify_server(unix_now())?;
    let certified = ServerTls::certified(vec![certificate, authority.certificate().clone()], &key)?;
    let tls = ServerTls { certificates: Arc::new(SingleCertAndKey::from(certified)), authority: authority.certificate().clone() };
    let endpoint = listen(host, &tls, IDLE_MS).code(Code::Cluster)?;
    let copies = TcpListener::bind(host).await?;
    let pin = Fingerprint::of_certificate(authority.certificate())?;
    let place = Place { address: format!("{}#{pin}", endpoint.local_addr()?), tcp: copies.local_addr()? };
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&place).code(Code::Internal)?)?;
    let copied = source.bytes.clone();
    let blobs = async {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(connection(incoming, source.clone()));
        }
    };
    let plain = async {
        while let Ok((stream, _)) = copies.accept().await {
            tokio::spawn(copy(stream, copied.clone()));
        }
    };
    tokio::select! {
        () = blobs => Err(anyhow!("the endpoint ended")).code(Code::Internal),
        () = plain => Err(anyhow!("the listener ended")).code(Code::Internal),
        () = orphaned() => Ok(()),
    }
}

async fn connection(incoming: Incoming, source: InMemory) -> Result<(), Failure> {
    let connection: Connection = incoming.accept()?.await?;
    let _windows = open_up(&connection);
    let parts = Arc::new(Parts::in_memory());
    while let Ok(streams) = connection.accept_bi().await {
        let (source, parts) = (source.clone(), parts.clone());
        tokio::spawn(async move { transfer(streams, &source, &parts).await });
    }
    Ok(())
}

async fn transfer((mut send, mut recv): (SendStream, RecvStream), source: &InMemory, parts: &Arc<Parts>) -> Result<(), Failure> {
    match read_message(&mut recv).await? {
        Some(Message::BlobFetch(fetch)) => answer_fetch(&mut send, source, &fetch).await?,
        Some(Message::BlobOffer(offer)) => {
            drop(accept_offer((&mut send, &mut recv), parts, offer.blob, |_| Ok(())).await?);
            write_message(&mut send, &Message::BlobStored(BlobStored { blob: offer.blob })).await?;
        }
        _ => return Err(Failure::input("neither a fetch nor an offer")),
    }
    let _ = send.finish();
    Ok(())
}

async fn copy(mut stream: TcpStream, bytes: Arc<Vec<u8>>) -> std::io::Result<()> {
    match stream.read_u8().await? {
        PUT => {
            receive(&mut stream, bytes.len()).await?;
            stream.write_u8(PUT).await
        }
        _ => stream.write_all(&bytes).await,
    }
}

/// Reads so many bytes into memory.
pub(super) async fn receive(stream: &mut TcpStream, length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(bytes)
}
