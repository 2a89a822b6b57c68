//! A hub on loopback: lists and serves files with ranges, and fails when told to.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Commit of every repository here.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How a hub behaves; it can be changed while it serves.
#[derive(Default)]
pub struct Behaviour {
    /// Files by name.
    pub files: BTreeMap<String, Vec<u8>>,
    /// Digests in the list other than the right ones.
    pub stated: BTreeMap<String, String>,
    /// Sizes in the list other than the right ones.
    pub sizes: BTreeMap<String, u64>,
    /// Status of requests whose path contains the text, with an error code.
    pub refuse: Option<(&'static str, u16, &'static str)>,
    /// Requests for a file end after this many bytes.
    pub cut: Option<usize>,
    /// Whether ranges are ignored.
    pub no_ranges: bool,
    /// Files are served by another server, which has its own address.
    pub storage: Option<SocketAddr>,
    /// Requests that came: path, range, authorization.
    pub seen: Vec<(String, Option<String>, Option<String>)>,
}

/// A running hub.
pub struct Server {
    pub address: SocketAddr,
    pub behaviour: Arc<Mutex<Behaviour>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `files`.
    pub fn start(files: &[(&str, Vec<u8>)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
        let behaviour = Arc::new(Mutex::new(Behaviour { files, ..Behaviour::default() }));
        let shared = behaviour.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that leaves early is part of the tests.
                match stream.map(|stream| serve(&stream, &shared)) {
                    Ok(Ok(true)) => return,
                    Ok(_) => {}
                    Err(e) => panic!("{e}"),
                }
            }
        });
        Self { address, behaviour, thread: Some(thread) }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().expect("lock"));
    }

    /// Requests for files since the last call: path and range.
    pub fn requests(&self) -> Vec<(String, Option<String>)> {
        let seen = std::mem::take(&mut self.behaviour.lock().expect("lock").seen);
        let files = seen.into_iter().filter(|(path, ..)| !path.starts_with("/api/"));
        files.map(|(path, range, _)| (path.rsplit('/').next().unwrap_or_default().to_owned(), range)).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(mut stream) = TcpStream::connect(self.address) {
            drop(stream.write_all(b"STOP / HTTP/1.1\r\n\r\n"));
        }
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Answers one request; true when it was the last.
fn serve(stream: &TcpStream, behaviour: &Mutex<Behaviour>) -> std::io::Result<bool> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let (method, path) = first.split_once(' ').unwrap_or_default();
    let path = path.split(' ').next().unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let mut b = behaviour.lock().expect("lock");
    b.seen.push((path.clone(), headers.get("range").cloned(), headers.get("authorization").cloned()));
    let mut out = stream;
    if method == "STOP" {
        return Ok(true);
    }
    let refused = b.refuse.filter(|(part, ..)| path.contains(part));
    if let Some((_, status, code)) = refused {
        write!(out, "HTTP/1.1 {status} No\r\nx-error-code: {code}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
    } else if path.starts_with("/api/models/") {
        let text = list(&b);
        write!(out, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}", text.len())?;
    } else if let Some(storage) = b.storage.filter(|_| path.contains("/resolve/")) {
        let name = path.rsplit('/').next().unwrap_or_default();
        let tag = b.files.get(name).map(|bytes| sha256(bytes)).unwrap_or_default();
        let location = format!("http://{storage}/{name}");
        write!(
            out,
            "HTTP/1.1 302 Found\r\nlocation: {location}\r\nx-linked-etag: \"{tag}\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )?;
    } else {
        file(out, &b, path.rsplit('/').next().unwrap_or_default(), headers.get("range"))?;
    }
    Ok(false)
}

fn list(b: &Behaviour) -> String {
    let sibling = |(name, bytes): (&String, &Vec<u8>)| {
        let size = b.sizes.get(name).copied().unwrap_or(bytes.len() as u64);
        let mut entry = serde_json::json!({ "rfilename": name, "size": size, "blobId": "0" });
        if name.ends_with(".safetensors") {
            let stated = b.stated.get(name).cloned().unwrap_or_else(|| sha256(bytes));
            entry["lfs"] = serde_json::json!({ "sha256": stated, "size": size, "pointerSize": 135 });
        }
        entry
    };
    serde_json::json!({ "sha": COMMIT, "siblings": b.files.iter().map(sibling).collect::<Vec<_>>() }).to_string()
}

fn file(mut out: &TcpStream, b: &Behaviour, name: &str, range: Option<&String>) -> std::io::Result<()> {
    let Some(bytes) = b.files.get(name) else {
        return write!(out, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    };
    let start = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok()).filter(|_| !b.no_ranges);
    let rest = &bytes[start.unwrap_or(0).min(bytes.len())..];
    let head = match start {
        Some(start) if start >= bytes.len() => "416 Range Not Satisfiable".to_owned(),
        Some(start) => format!("206 Partial Content\r\ncontent-range: bytes {start}-{}/{}", bytes.len() - 1, bytes.len()),
        None => "200 OK".to_owned(),
    };
    write!(out, "HTTP/1.1 {head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", rest.len())?;
    out.write_all(&rest[..rest.len().min(b.cut.unwrap_or(usize::MAX))])
}
