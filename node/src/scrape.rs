//! A read-only HTTP endpoint for metrics: `GET /metrics` and nothing else. No query, body or header changes what is answered.
//!
//! It knows no credentials, so it must only be reachable by those who may see sizes and counts: loopback, or a network of one's own.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::error::NodeError;

/// Connections served at once: a few collectors and a person; others wait in the system's queue.
const MAX_CONNECTIONS: usize = 16;
/// Longest request head: a collector's has under 1 KiB; 8 KiB is the least that hyper takes.
const MAX_HEAD_BYTES: usize = 8 << 10;
/// Time for a request's head to arrive.
const HEAD_PATIENCE: Duration = Duration::from_secs(5);
/// A connection's longest life, so that slow readers do not hold places.
const CONNECTION_LIFE: Duration = Duration::from_secs(300);
/// Pause after an accept that failed, which is a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What makes the text, in the OpenMetrics format; called once for each request.
pub type Encode = Arc<dyn Fn() -> String + Send + Sync>;

/// Serves until the runtime ends; returns the address bound. Must be called within a tokio runtime.
///
/// # Errors
/// [`NodeError::Metrics`] when the address cannot be bound.
pub async fn serve(listen: SocketAddr, encode: Encode) -> Result<SocketAddr, NodeError> {
    let failed = |e: std::io::Error| NodeError::Metrics { listen, cause: e.to_string() };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    tokio::spawn(accept(listener, encode));
    Ok(local)
}

async fn accept(listener: TcpListener, encode: Encode) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let encode = encode.clone();
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(CONNECTION_LIFE, one(stream, encode)).await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// What goes wrong here is the collector's loss, and it asks again.
async fn one(stream: TcpStream, encode: Encode) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), &encode);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_PATIENCE).max_buf_size(MAX_HEAD_BYTES);
    let _ = server.serve_connection(TokioIo::new(stream), answer).await;
}

fn answer(method: &Method, path: &str, encode: &Encode) -> Response<Full<Bytes>> {
    let plain = |status, text: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        response
    };
    if method != Method::GET && method != Method::HEAD {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "metrics are read with GET\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    if path != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n");
    }
    let mut response = Response::new(Full::new(Bytes::from(encode())));
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn exchange(place: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(place).await.expect("connects");
        stream.write_all(request).await.expect("writes");
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let _ = tokio::time::timeout(Duration::from_secs(30), read).await.expect("the server ends the connection");
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn it_answers_one_question_and_refuses_the_rest() {
        let place = serve(([127, 0, 0, 1], 0).into(), Arc::new(|| "# EOF\n".to_owned())).await.expect("binds");
        let ask = |line: &str| format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").into_bytes();
        let got = exchange(place, &ask("GET /metrics")).await;
        assert!(
            got.starts_with("HTTP/1.1 200") && got.contains("application/openmetrics-text") && got.ends_with("# EOF\n"),
            "{got}"
        );
        assert!(exchange(place, &ask("GET /")).await.starts_with("HTTP/1.1 404"));
        assert!(exchange(place, &ask("GET /../metrics/x")).await.starts_with("HTTP/1.1 404"));
        assert!(exchange(place, &ask("POST /metrics")).await.starts_with("HTTP/1.1 405"));
        assert!(exchange(place, b"\x16\x03\x01 nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400"));
        let long = [b"GET /metrics HTTP/1.1\r\nX: ".as_slice(), &vec![b'a'; 64 << 10], b"\r\n\r\n"].concat();
        assert!(!exchange(place, &long).await.contains("# EOF"), "a head above the bound is refused");
    }

    #[tokio::test]
    async fn an_address_in_use_is_an_error_that_names_it() {
        let place = serve(([127, 0, 0, 1], 0).into(), Arc::new(String::new)).await.expect("binds");
        let error = serve(place, Arc::new(String::new)).await.expect_err("in use");
        assert!(error.to_string().contains(&place.to_string()), "{error}");
    }
}
