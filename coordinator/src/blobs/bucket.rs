//! Objects in a bucket of a server that speaks S3. A write appears whole or not at all, and is safe when the server has answered.
//!
//! Several coordinators use one bucket, so only one of them deletes: whoever took that over last. Refuses a place that another cluster uses.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use obelysk_protocol::wire::Outline;
use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::list::{PaginatedListOptions, PaginatedListStore as _};
use object_store::path::Path as Key;
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetRange, ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions, PutPayload,
    RetryConfig, UpdateVersion,
};
use ring::rand::{SecureRandom as _, SystemRandom};

use super::bucket_place::{Credentials, Place};
use super::locked;
use super::objects::{Fault, Later, Listed, Objects, Reading};
use super::refusal::{code_of, explained};
use super::upload::{Source, UPLOADS, WHOLE_BYTES};

/// A request to be answered within this, at 2 Mbit/s for the largest piece.
const REQUEST: Duration = Duration::from_secs(60);
/// A server that does not even take the connection within this is not there.
const CONNECT: Duration = Duration::from_secs(5);
/// Attempts after the first, and the time in which they begin: a server that restarts is waited for, one that is gone is said.
const RETRIES: usize = 4;
const RETRY: Duration = Duration::from_secs(45);
/// Bytes asked for at once.
const RANGE_BYTES: u64 = 32 << 20;
/// The cluster that this place belongs to.
const CLUSTER: &str = "cluster";
/// The process that may delete, and the term in which it leads.
const HOLDER: &str = "holder";
/// Looks at the holder when others write it at the same time: each of them had a later term than the one before.
const HOLDER_TRIES: usize = 8;
/// Folder of those that are removing now, each under its own name.
const REMOVING: &str = "removing";
/// What a process left there that died meanwhile is forgotten after this.
const LONG_OVER: Duration = Duration::from_secs(60);
/// Having looked who the holder is counts for this long, ...
const LOOKED: Duration = Duration::from_secs(1);
/// ... a request to delete is given up after this, ...
const DELETE: Duration = Duration::from_secs(4);
/// ... and after this nothing is on its way any more of a process that was the holder: the rest is for a slow line.
const SETTLED: Duration = Duration::from_secs(10);
/// Pages of a list: a thousand objects each; a hundred million are nobody's models and jobs.
const MAX_PAGES: usize = 100_000;

/// The bucket, and the prefix of all names.
#[derive(Clone)]
pub(super) struct Bucket {
    pub(super) store: AmazonS3,
    place: Arc<Place>,
    /// This process, among those who may hold the bucket.
    own: String,
    /// What it wrote as the holder.
    held: Arc<Mutex<Option<String>>>,
    /// When it was last seen to be the holder.
    seen: Arc<Mutex<Option<Instant>>>,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client holds the key.
        f.debug_struct("Bucket").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Bucket {
    /// Connects nowhere yet.
    pub(super) fn new(place: Place, credentials: &Credentials) -> Result<Self, Fault> {
        // Whoever installed one before has the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let plain = place.endpoint.starts_with("http://");
        let backoff = BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(5), base: 2.0 };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&place.bucket)
            .with_region(&place.region)
            .with_access_key_id(credentials.id.as_str())
            .with_secret_access_key(credentials.secret.as_str())
            .with_client_options(
                ClientOptions::new().with_timeout(REQUEST).with_connect_timeout(CONNECT).with_allow_http(plain).with_http1_only(),
            )
            .with_retry(RetryConfig { backoff, max_retries: RETRIES, retry_timeout: RETRY })
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_disable_bulk_delete(true);
        if let Some(token) = &credentials.token {
            builder = builder.with_token(token.as_str());
        }
        if !place.endpoint.is_empty() {
            builder = builder.with_endpoint(&place.endpoint);
        }
        let refused = |e: object_store::Error| Fault::Refused(format!("the settings cannot be used: {e}; correct them"));
        let store = builder.build().map_err(refused)?;
        let mut own = [0; 16];
        let no_random = |_| Fault::Failed("the system gives no random bytes".to_owned());
        SystemRandom::new().fill(&mut own).map_err(no_random)?;
        let own = own.iter().map(|b| format!("{b:02x}")).collect();
        Ok(Self { store, place: Arc::new(place), own, held: Arc::default(), seen: Arc::default() })
    }

    /// Whether the server is there, knows the key and has the bucket.
    pub(super) async fn check(&self) -> Result<(), Fault> {
        self.page(&self.full(CLUSTER), None, Some(1)).await.map(|_| ())
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.place.prefix)
    }

    pub(super) fn key(&self, key: &str) -> Result<Key, Fault> {
        Key::parse(self.full(key)).map_err(|e| Fault::Refused(format!("`{key}` can be no name there: {e}")))
    }

    pub(super) fn fault(&self, error: &object_store::Error) -> Fault {
        let text = error.to_string();
        let code = code_of(&text);
        match error {
            object_store::Error::NotFound { .. } if code != Some("NoSuchBucket") => Fault::Missing,
            _ => explained(code, &text, &self.place),
        }
    }

    pub(super) async fn put_whole(&self, key: &str, bytes: Vec<u8>) -> Result<(), Fault> {
        self.store.put(&self.key(key)?, PutPayload::from(bytes)).await.map(|_| ()).map_err(|e| self.fault(&e))
    }

    /// Writes an object unless there is one, or unless it is another one by now; whether it was written.
    async fn put_if(&self, key: &str, bytes: Vec<u8>, mode: PutMode) -> Result<bool, Fault> {
        let options = PutOptions { mode, ..PutOptions::default() };
        match self.store.put_opts(&self.key(key)?, PutPayload::from(bytes), options).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(self.fault(&error)),
        }
    }

    /// Some bytes of an object, and its length.
    async fn range(&self, key: &str, range: std::ops::Range<u64>) -> Result<(Vec<u8>, u64), Fault> {
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        let path = self.key(key)?;
        match self.store.get_opts(&path, options).await {
            Ok(found) => {
                let length = found.meta.size;
                found.bytes().await.map(|bytes| (bytes.to_vec(), length)).map_err(|e| self.fault(&e))
            }
            // Nothing of it lies in that range.
            Err(error) if code_of(&error.to_string()) == Some("InvalidRange") => Ok((Vec::new(), 0)),
            Err(error) => Err(self.fault(&error)),
        }
    }

    async fn whole(&self, key: &str) -> Result<Vec<u8>, Fault> {
        let (mut bytes, length) = self.range(key, 0..RANGE_BYTES).await?;
        while (bytes.len() as u64) < length {
            let at = bytes.len() as u64;
            let (more, _) = self.range(key, at..(at + RANGE_BYTES).min(length)).await?;
            if more.is_empty() {
                break;
            }
            bytes.extend_from_slice(&more);
        }
        Ok(bytes)
    }

    async fn page(
        &self,
        prefix: &str,
        page_token: Option<String>,
        max_keys: Option<usize>,
    ) -> Result<(Vec<object_store::ObjectMeta>, Option<String>), Fault> {
        let options = PaginatedListOptions { page_token, max_keys, ..PaginatedListOptions::default() };
        let page = self.store.list_paginated(Some(prefix), options).await.map_err(|e| match self.fault(&e) {
            // There is always a list, if there is a bucket.
            Fault::Missing => explained(Some("NoSuchBucket"), "", &self.place),
            fault => fault,
        })?;
        Ok((page.result.objects, page.page_token))
    }

    pub(super) async fn listed(&self, folder: &str) -> Result<Vec<Listed>, Fault> {
        let (prefix, mut token, mut found) = (self.full(&format!("{folder}/")), None, Vec::new());
        for _ in 0..MAX_PAGES {
            let (objects, next) = self.page(&prefix, token, None).await?;
            for object in objects {
                let Some(key) = object.location.as_ref().strip_prefix(&self.place.prefix) else { continue };
                found.push(Listed { key: key.to_owned(), length: object.size, modified: SystemTime::from(object.last_modified) });
            }
            token = next;
            if token.is_none() {
                return Ok(found);
            }
        }
        Err(Fault::Failed(format!("{prefix} has more objects than can be listed; give the cluster a place of its own")))
    }

    async fn removed(&self, key: &str) -> Result<(), Fault> {
        match self.store.delete(&self.key(key)?).await.map_err(|e| self.fault(&e)) {
            Err(Fault::Missing) => Ok(()),
            outcome => outcome,
        }
    }

    async fn claimed(&self, cluster: &str, founds: bool) -> Result<(), Fault> {
        let known = match self.whole(CLUSTER).await {
            Err(Fault::Missing) if !founds => {
                return Err(Fault::Refused(format!(
                    "it belongs to no cluster, and this coordinator's has a store already, with blobs that are not here; correct `store` to \
                     what the other coordinators have. Or, if all of them move here: copy the objects, or write the object `{CLUSTER}` with \
                     the text {cluster}"
                )));
            }
            // What is there was agreed between two who came at once.
            Err(Fault::Missing) => match self.put_if(CLUSTER, cluster.as_bytes().to_vec(), PutMode::Create).await? {
                true => return Ok(()),
                false => self.whole(CLUSTER).await?,
            },
            known => known?,
        };
        if known == cluster.as_bytes() {
            return Ok(());
        }
        Err(Fault::Refused(format!(
            "it belongs to the cluster {}, and this is {cluster}; give each cluster a prefix of its own (`store`), or remove all objects there",
            String::from_utf8_lossy(&known).chars().take(80).collect::<String>()
        )))
    }

    /// Whoever removes says so first, and then looks who the holder is; here it is the other way round. So one of the two sees the other.
    async fn taken_over(&self, term: u64) -> Result<Duration, Fault> {
        self.become_holder(term).await?;
        let own = self.removing();
        let others = self.listed(REMOVING).await?.iter().any(|listed| listed.key != own);
        Ok(if others { SETTLED } else { Duration::ZERO })
    }

    /// Writes itself as the holder, over what it read and nothing else: so a write that comes late, of a leader that is none any more,
    /// does nothing.
    async fn become_holder(&self, term: u64) -> Result<(), Fault> {
        let own = format!("{term} {}", self.own);
        for _ in 0..HOLDER_TRIES {
            let begun = Instant::now();
            let mode = match self.tagged(HOLDER).await {
                Err(Fault::Missing) => PutMode::Create,
                Err(fault) => return Err(fault),
                // Also when the answer to an earlier attempt was lost.
                Ok((known, _)) if known == own => {
                    *locked(&self.held) = Some(own);
                    *locked(&self.seen) = Some(begun);
                    return Ok(());
                }
                Ok((known, _)) if term_of(&known) >= term => {
                    return Err(Fault::Refused(format!(
                        "a coordinator that leads in term {} removes there, and this one began term {term}: it does not lead any more. If \
                         its folder is an older copy that was restored, remove the object `{HOLDER}`",
                        term_of(&known)
                    )));
                }
                Ok((_, e_tag)) => PutMode::Update(UpdateVersion { e_tag, version: None }),
            };
            // Whoever was first is seen in the next look.
            self.put_if(HOLDER, own.as_bytes().to_vec(), mode).await?;
        }
        Err(Fault::Unreached(format!("`{HOLDER}` changes again and again")))
    }

    /// A short text and the tag by which it is replaced.
    async fn tagged(&self, key: &str) -> Result<(String, Option<String>), Fault> {
        let found = self.store.get_opts(&self.key(key)?, GetOptions::default()).await.map_err(|e| self.fault(&e))?;
        let e_tag = found.meta.e_tag.clone();
        let bytes = found.bytes().await.map_err(|e| self.fault(&e))?;
        Ok((String::from_utf8_lossy(&bytes).into_owned(), e_tag))
    }

    fn removing(&self) -> String {
        format!("{REMOVING}/{}", self.own)
    }

    async fn removal_begun(&self) -> Result<bool, Fault> {
        if !self.is_holder().await? {
            return Ok(false);
        }
        self.put_whole(&self.removing(), Vec::new()).await?;
        *locked(&self.seen) = None;
        self.is_holder().await
    }

    async fn removal_ended(&self) -> Result<(), Fault> {
        self.removed(&self.removing()).await?;
        if self.is_holder().await? {
            let over = |listed: &&Listed| listed.modified.elapsed().is_ok_and(|age| age > LONG_OVER);
            for left in self.listed(REMOVING).await?.iter().filter(over) {
                self.removed(&left.key).await?;
            }
        }
        Ok(())
    }

    async fn is_holder(&self) -> Result<bool, Fault> {
        if locked(&self.seen).is_some_and(|at| at.elapsed() < LOOKED) {
            return Ok(true);
        }
        let Some(own) = locked(&self.held).clone() else { return Ok(false) };
        // Counted from before the question.
        let asked = Instant::now();
        let holds = match self.whole(HOLDER).await {
            Err(Fault::Missing) => false,
            known => known? == own.as_bytes(),
        };
        *locked(&self.seen) = holds.then_some(asked);
        Ok(holds)
    }
}

/// The term in a holder's words; one that says none is of no term.
fn term_of(holder: &str) -> u64 {
    holder.split_once(' ').and_then(|(term, _)| term.parse().ok()).unwrap_or(0)
}

impl Objects for Bucket {
    fn put(&self, key: String, bytes: Arc<Vec<u8>>) -> Later<'_, ()> {
        Box::pin(async move {
            if bytes.len() as u64 <= WHOLE_BYTES {
                return self.put_whole(&key, bytes.to_vec()).await;
            }
            let length = bytes.len() as u64;
            self.upload(&key, Source::memory(bytes), length).await.map(|_| ())
        })
    }

    fn put_file(&self, key: String, source: Reading) -> Later<'_, Arc<Outline>> {
        Box::pin(async move {
            let length = source.length();
            if length > WHOLE_BYTES {
                return self.upload(&key, Source::File(source), length).await?.outline();
            }
            let (bytes, outline) = Source::File(source).all().await?;
            self.put_whole(&key, bytes).await?;
            Ok(outline)
        })
    }

    fn get(&self, key: String) -> Later<'_, Vec<u8>> {
        Box::pin(async move { self.whole(&key).await })
    }

    fn get_range(&self, key: String, range: std::ops::Range<u64>) -> Later<'_, Vec<u8>> {
        Box::pin(async move {
            let wanted = range.end.saturating_sub(range.start);
            if wanted == 0 {
                return self.length(key).await.map(|_| Vec::new());
            }
            let (bytes, _) = self.range(&key, range).await?;
            // Shorter than it was: the range was within the blob.
            if bytes.len() as u64 == wanted { Ok(bytes) } else { Err(Fault::Missing) }
        })
    }

    fn length(&self, key: String) -> Later<'_, u64> {
        Box::pin(async move { self.store.head(&self.key(&key)?).await.map(|about| about.size).map_err(|e| self.fault(&e)) })
    }

    fn list(&self, folder: String) -> Later<'_, Vec<Listed>> {
        Box::pin(async move { self.listed(&folder).await })
    }

    fn delete(&self, key: String) -> Later<'_, ()> {
        Box::pin(async move {
            let late = || Fault::Unreached("a request to delete was not answered in time; it is tried again later".to_owned());
            tokio::time::timeout(DELETE, self.removed(&key)).await.unwrap_or_else(|_| Err(late()))
        })
    }

    fn set_aside(&self, from: String, to: String) -> Later<'_, ()> {
        Box::pin(async move { self.store.copy(&self.key(&from)?, &self.key(&to)?).await.map_err(|e| self.fault(&e)) })
    }

    fn sweep(&self, before: SystemTime) -> Later<'_, u64> {
        Box::pin(async move {
            let mut swept = 0;
            for mark in self.listed(UPLOADS).await? {
                if mark.modified <= before {
                    self.end_upload(&mark.key).await?;
                    swept += 1;
                }
            }
            Ok(swept)
        })
    }

    fn claim(&self, cluster: String, founds: bool) -> Later<'_, ()> {
        Box::pin(async move { self.claimed(&cluster, founds).await })
    }

    fn take_over(&self, term: u64) -> Later<'_, Duration> {
        Box::pin(self.taken_over(term))
    }

    fn begin_removing(&self) -> Later<'_, bool> {
        Box::pin(self.removal_begun())
    }

    fn holds(&self) -> Later<'_, bool> {
        Box::pin(self.is_holder())
    }

    fn end_removing(&self) -> Later<'_, ()> {
        Box::pin(self.removal_ended())
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn folder(&self) -> Option<std::path::PathBuf> {
        None
    }

    fn free(&self) -> Option<u64> {
        None
    }
}
