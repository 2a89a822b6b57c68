//! A server that speaks S3, over a folder, on loopback: it checks signatures, and can be killed and started again where it was.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// The key that the server knows.
pub const KEY_ID: &str = "a-key-for-tests";
/// Its secret.
pub const SECRET: &str = "a-secret-that-nobody-sees";
/// The bucket that there is.
pub const BUCKET: &str = "blobs-of-tests";

/// The server. Dropped, it is gone with all its connections, as if killed.
pub struct BucketServer {
    address: SocketAddr,
    accepting: tokio::task::JoinHandle<()>,
    serving: Arc<Mutex<JoinSet<()>>>,
}

impl BucketServer {
    /// Serves the folder; at this address if one is given.
    pub async fn start(folder: &Path, address: Option<SocketAddr>) -> Self {
        std::fs::create_dir_all(folder.join(BUCKET)).expect("a bucket is a folder");
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder).expect("a folder"));
        builder.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        let service = builder.build();
        let address = address.unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
        let listener = TcpListener::bind(address).await.expect("a free address");
        let address = listener.local_addr().expect("bound");
        let serving: Arc<Mutex<JoinSet<()>>> = Arc::default();
        let connections = serving.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                let serve = async move {
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
                };
                connections.lock().unwrap_or_else(PoisonError::into_inner).spawn(serve);
            }
        });
        Self { address, accepting, serving }
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// As the setting `store_endpoint` has it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for BucketServer {
    fn drop(&mut self) {
        self.accepting.abort();
        self.serving.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

/// A file with a key, as the setting `store_credentials` names it.
pub fn key_file(folder: &Path, id: &str, secret: &str) -> String {
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = folder.join(format!("key-{id}-{}", secret.len()));
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).expect("made");
    let text = format!("access_key_id = \"{id}\"\nsecret_access_key = \"{secret}\"\n");
    std::io::Write::write_all(&mut file, text.as_bytes()).expect("written");
    path.to_str().expect("text").to_owned()
}
