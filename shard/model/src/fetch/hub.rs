//! The Hugging Face hub over HTTP: what a repository holds, and its files from any byte on.
//!
//! Redirects are followed here, because the access token must not leave the hub and the published digest stands in the first
//! answer only. `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE` and the proxy variables mean what they mean to the
//! publisher's own tools.

use super::cache::{is_commit, is_sha256};
use super::error::FetchError;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use ureq::http::{Response, Uri, header};
use ureq::{Agent, Body};

/// The hub unless `HF_ENDPOINT` names another.
const ENDPOINT: &str = "https://huggingface.co";
/// Largest list of files: repositories with 10,000 files stay below 4 MiB.
const MAX_LIST_BYTES: u64 = 32 << 20;
/// Redirects followed: to a renamed repository, then to the storage.
const MAX_REDIRECTS: usize = 6;
/// Connecting takes no longer: another source may be tried after this one.
const CONNECT: Duration = Duration::from_secs(15);
/// Each silence while data is due takes no longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Access to a hub.
#[derive(Clone, Debug)]
pub struct Hub {
    endpoint: String,
    token: Option<Token>,
    pub(super) cache: Option<PathBuf>,
    pub(super) pause: Duration,
    agent: Agent,
}

/// Never printed.
#[derive(Clone)]
struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Files of a repository at a commit.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Commit.
    pub commit: String,
    /// Files by name.
    pub files: BTreeMap<String, Published>,
}

/// What the hub says of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Bytes.
    pub size: Option<u64>,
    /// SHA-256; the hub states it of large files.
    pub sha256: Option<String>,
}

/// Why a request brought nothing.
#[derive(Debug)]
pub enum Refusal {
    /// Asking again can help.
    Passing(String),
    /// It cannot.
    Final(FetchError),
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Hub {
    /// As the environment says: `HF_ENDPOINT`; `HF_TOKEN` or the token file of the hub's tools; their cache.
    #[must_use]
    pub fn from_env() -> Self {
        let text = |name: &str| std::env::var(name).ok().map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let path = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let caches = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")));
        let home = path("HF_HOME").or_else(|| caches.map(|c| c.join("huggingface")));
        let file = path("HF_TOKEN_PATH").or_else(|| home.as_ref().map(|h| h.join("token")));
        let kept = || file.and_then(|f| std::fs::read_to_string(f).ok()).map(|t| t.trim().to_owned()).filter(|t| !t.is_empty());
        let token = text("HF_TOKEN").or_else(kept);
        let cache = path("HF_HUB_CACHE").or_else(|| home.map(|h| h.join("hub")));
        Self::new(&text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()), token, cache)
    }

    /// A hub at `endpoint`, with an access token, reusing what lies in `cache`.
    #[must_use]
    pub fn new(endpoint: &str, token: Option<String>, cache: Option<PathBuf>) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("obelysk/", env!("CARGO_PKG_VERSION")))
            // Compressed answers would not fit the sizes and ranges.
            .accept_encoding("identity")
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .build();
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.map(Token),
            cache,
            pause: Duration::from_secs(1),
            agent: config.new_agent(),
        }
    }

    /// The same, waiting `pause` before the first repetition of a request and twice as long before each further one.
    #[must_use]
    pub fn with_pause(self, pause: Duration) -> Self {
        Self { pause, ..self }
    }

    /// Files of a repository at a branch, tag or commit.
    pub(super) fn list(&self, model: &str, revision: &str) -> Result<Listing, FetchError> {
        let address = format!("{}/api/models/{model}/revision/{}?blobs=true", self.endpoint, revision.replace('/', "%2F"));
        let refused = |refusal| match refusal {
            Refusal::Final(error) => error,
            Refusal::Passing(reason) => FetchError::Network { endpoint: self.endpoint.clone(), reason },
        };
        let (mut response, _) = self.get(model, revision, &address, 0).map_err(refused)?;
        let body = response.body_mut().with_config().limit(MAX_LIST_BYTES).read_to_vec();
        let body = body.map_err(|e| refused(Refusal::Passing(e.to_string())))?;
        let wrong = |reason: String| FetchError::Hub { model: model.to_owned(), reason };
        let info: Info = serde_json::from_slice(&body).map_err(|e| wrong(format!("its list of files does not parse: {e}")))?;
        if !is_commit(&info.sha) {
            return Err(wrong(format!("`{}` is not a commit", info.sha)));
        }
        let published = |s: Sibling| {
            let (sha256, size) = s.lfs.map_or((None, None), |lfs| (lfs.sha256, lfs.size));
            let sha256 = sha256.map(|s| s.to_ascii_lowercase()).filter(|s| is_sha256(s));
            (s.rfilename, Published { size: size.or(s.size), sha256 })
        };
        Ok(Listing { commit: info.sha, files: info.siblings.into_iter().map(published).collect() })
    }

    /// The bytes of a file from `start` on, and the SHA-256 if the answer states one.
    pub(super) fn open(
        &self,
        model: &str,
        commit: &str,
        file: &str,
        start: u64,
    ) -> Result<(Response<Body>, Option<String>), Refusal> {
        self.get(model, commit, &format!("{}/{model}/resolve/{commit}/{file}", self.endpoint), start)
    }

    fn get(&self, model: &str, revision: &str, address: &str, start: u64) -> Result<(Response<Body>, Option<String>), Refusal> {
        let mut address: Uri = address.parse().map_err(|e| self.wrong(model, format!("{address}: {e}")))?;
        let home = address.authority().cloned();
        let mut sha256 = None;
        for _ in 0..MAX_REDIRECTS {
            let ours = address.authority() == home.as_ref();
            let mut request = self.agent.get(&address);
            if let Some(Token(token)) = self.token.as_ref().filter(|_| ours) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if start > 0 {
                request = request.header(header::RANGE, format!("bytes={start}-"));
            }
            let response = request.call().map_err(|e| Refusal::Passing(e.to_string()))?;
            if ours && sha256.is_none() {
                sha256 = stated(&response);
            }
            match (response.status().as_u16(), ours) {
                (200 | 206 | 416, _) => return Ok((response, sha256)),
                (301 | 302 | 303 | 307 | 308, _) => address = self.next(model, &address, &response)?,
                (408 | 429 | 500.., _) => return Err(Refusal::Passing(format!("HTTP {}", response.status()))),
                // A signed address of the storage runs out; the hub gives a new one.
                (status, false) => return Err(Refusal::Passing(format!("the storage answered HTTP {status}"))),
                (status, true) => return Err(Refusal::Final(self.refused(model, revision, &response, status))),
            }
        }
        Err(self.wrong(model, format!("more than {MAX_REDIRECTS} redirects")))
    }

    fn next(&self, model: &str, from: &Uri, response: &Response<Body>) -> Result<Uri, Refusal> {
        let location = response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let next = match (from.scheme_str(), from.authority()) {
            (Some(scheme), Some(authority)) if location.starts_with('/') && !location.starts_with("//") => {
                format!("{scheme}://{authority}{location}")
            }
            _ => location.to_owned(),
        };
        let parsed: Option<Uri> = next.parse().ok().filter(|uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")));
        match parsed {
            // Nothing that began encrypted goes on in the clear.
            Some(uri) if from.scheme_str() == Some("http") || uri.scheme_str() == Some("https") => Ok(uri),
            _ => Err(self.wrong(model, format!("a redirect to `{location}`"))),
        }
    }

    fn refused(&self, model: &str, revision: &str, response: &Response<Body>, status: u16) -> FetchError {
        let code = response.headers().get("x-error-code").and_then(|v| v.to_str().ok()).unwrap_or_default();
        let model = model.to_owned();
        match status {
            404 => FetchError::Unknown { model, revision: revision.to_owned() },
            // The hub answers so for names that do not exist, too, as long as nobody is logged in.
            401 if code == "RepoNotFound" && self.token.is_none() => FetchError::Unknown { model, revision: revision.to_owned() },
            401 | 403 => {
                let page = format!("{}/{model}", self.endpoint);
                FetchError::Gated { model, page, status, token: self.token.is_some() }
            }
            _ => FetchError::Hub { model, reason: format!("HTTP {status} {code}") },
        }
    }

    fn wrong(&self, model: &str, reason: String) -> Refusal {
        Refusal::Final(FetchError::Hub { model: model.to_owned(), reason })
    }
}

/// The SHA-256 in an answer's entity tag: that of the linked file, or its own.
fn stated(response: &Response<Body>) -> Option<String> {
    let tag = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
    let tag = tag("x-linked-etag").or_else(|| tag("etag"))?;
    let tag = tag.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
    is_sha256(&tag).then_some(tag)
}

/// Whether `name` can be part of a revision's name in an address.
pub(super) fn is_revision(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    !name.is_empty() && !name.contains("..") && !name.starts_with(['-', '.', '/']) && name.chars().all(plain)
}
