//! Which bucket, of which server, and the key to it. The key comes from the environment or a file of mode 0600, is wiped when dropped, and
//! is never shown.

use std::fmt;
use std::path::Path;

use obelysk_node::identity::read_private;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::BlobError;

/// Longest file of credentials: three lines.
const MAX_FILE_BYTES: u64 = 8192;
/// Where S3 itself is when no region is said.
const REGION: &str = "us-east-1";
/// Longest name of a bucket.
const MAX_BUCKET: usize = 63;
/// Longest prefix: a name there may have 1024 bytes.
const MAX_PREFIX: usize = 512;

/// A bucket, and the prefix of all names in it: empty, or ending in `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) bucket: String,
    pub(super) prefix: String,
    /// Empty: Amazon's, by region.
    pub(super) endpoint: String,
    pub(super) region: String,
}

impl Place {
    /// Reads `s3://bucket/prefix`, an endpoint such as `https://minio.example:9000`, and a region; both may be empty.
    pub(super) fn parse(address: &str, endpoint: &str, region: &str) -> Result<Self, BlobError> {
        let wrong = |setting: &'static str, cause: &str| BlobError::Setting { setting, cause: cause.to_owned() };
        let rest = address
            .strip_prefix("s3://")
            .ok_or_else(|| wrong("store", "must be a folder, or s3://BUCKET/PREFIX; other kinds of stores are not known"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
        if bucket.len() < 3 || bucket.len() > MAX_BUCKET || !bucket.chars().all(plain) {
            return Err(wrong("store", "names no bucket: 3 to 63 of a-z, 0-9, - and . as in s3://BUCKET/PREFIX"));
        }
        let prefix = prefix.trim_matches('/');
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._/".contains(c);
        if prefix.len() > MAX_PREFIX || !prefix.chars().all(plain) || prefix.split('/').any(|part| part == "." || part == "..") {
            return Err(wrong("store", "has a prefix with other letters than a-z, A-Z, 0-9, -, ., _ and /"));
        }
        if prefix.contains("//") {
            return Err(wrong("store", "has a prefix with an empty part"));
        }
        if !endpoint.is_empty() && !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(wrong("store_endpoint", "must begin with https:// (or http://), or be empty for Amazon's own"));
        }
        if endpoint.contains('@') {
            return Err(wrong("store_endpoint", "must hold no key; see `store_credentials`"));
        }
        Ok(Self {
            bucket: bucket.to_owned(),
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            region: if region.is_empty() { REGION.to_owned() } else { region.to_owned() },
        })
    }

    /// The server, for people.
    pub(super) fn server(&self) -> String {
        if self.endpoint.is_empty() { format!("S3 in {}", self.region) } else { self.endpoint.clone() }
    }
}

/// A key to a bucket.
pub(super) struct Credentials {
    pub(super) id: Zeroizing<String>,
    pub(super) secret: Zeroizing<String>,
    pub(super) token: Option<Zeroizing<String>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InFile {
    access_key_id: Zeroizing<String>,
    secret_access_key: Zeroizing<String>,
    #[serde(default)]
    session_token: Option<Zeroizing<String>>,
}

impl Credentials {
    /// From a file of mode 0600, or, if none is named, from the environment.
    pub(super) fn find(file: &str) -> Result<Self, BlobError> {
        if file.is_empty() { Self::from(|name| std::env::var(name).ok()) } else { Self::read(Path::new(file)) }
    }

    fn from(get: impl Fn(&str) -> Option<String>) -> Result<Self, BlobError> {
        let named = |name: &str| get(name).filter(|value| !value.is_empty()).map(Zeroizing::new);
        match (named("AWS_ACCESS_KEY_ID"), named("AWS_SECRET_ACCESS_KEY")) {
            (Some(id), Some(secret)) => Ok(Self { id, secret, token: named("AWS_SESSION_TOKEN") }),
            _ => Err(BlobError::Setting {
                setting: "store",
                cause: "needs a key: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a file in `store_credentials`"
                    .to_owned(),
            }),
        }
    }

    fn read(path: &Path) -> Result<Self, BlobError> {
        let wrong = |cause: String| BlobError::Setting { setting: "store_credentials", cause };
        let bytes = read_private(path, MAX_FILE_BYTES).map_err(|e| wrong(format!("cannot be used: {e}")))?;
        let bytes = bytes.ok_or_else(|| wrong(format!("names no file: there is no {}", path.display())))?;
        // What a parser says may quote the line, and with it the key.
        let shape = || {
            wrong(format!(
                "cannot be read: {} must hold access_key_id = \"…\" and secret_access_key = \"…\", and may hold session_token = \"…\"",
                path.display()
            ))
        };
        let text = std::str::from_utf8(&bytes).map_err(|_| shape())?;
        let InFile { access_key_id: id, secret_access_key: secret, session_token: token } =
            toml::from_str(text).map_err(|_| shape())?;
        Ok(Self { id, secret, token })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn addresses_name_a_bucket_and_a_prefix() {
        let place = Place::parse("s3://models/a/b/", "http://127.0.0.1:9000/", "").expect("a place");
        assert_eq!((place.bucket.as_str(), place.prefix.as_str(), place.region.as_str()), ("models", "a/b/", REGION));
        assert_eq!(place.server(), "http://127.0.0.1:9000");
        assert_eq!(Place::parse("s3://models", "", "eu-west-1").expect("a place").prefix, "");
        for (address, endpoint, setting) in [
            ("gs://models/a", "", "store"),
            ("s3://", "", "store"),
            ("s3://UPPER/a", "", "store"),
            ("s3://models/a//b", "", "store"),
            ("s3://models/../b", "", "store"),
            ("s3://models/a?b", "", "store"),
            ("s3://models/a", "127.0.0.1:9000", "store_endpoint"),
            ("s3://models/a", "https://id:secret@host", "store_endpoint"),
        ] {
            let error = Place::parse(address, endpoint, "").expect_err(address).to_string();
            assert!(error.contains(&format!("`{setting}`")) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn keys_are_read_from_private_files_and_never_shown() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("key");
        let write = |text: &str, mode: u32| {
            std::fs::write(&file, text).expect("written");
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("set");
            Credentials::find(file.to_str().expect("text"))
        };
        let right = write("access_key_id = \"id\"\nsecret_access_key = \"hush\"\n", 0o600).expect("usable");
        assert_eq!((right.id.as_str(), right.secret.as_str(), right.token.is_none()), ("id", "hush", true));
        assert!(!format!("{right:?}").contains("hush"));
        for (text, mode) in
            [("access_key_id = \"id\"\nsecret_access_key = \"hush\"\n", 0o644), ("hush", 0o600), ("hush = \"hush\"", 0o600)]
        {
            let error = write(text, mode).expect_err("not usable").to_string();
            assert!(error.contains("`store_credentials`") && !error.contains("hush"), "{error}");
        }
        std::fs::remove_file(&file).expect("there");
        assert!(Credentials::find(file.to_str().expect("text")).is_err());
        let half = |name: &str| (name == "AWS_ACCESS_KEY_ID").then(|| "id".to_owned());
        assert!(Credentials::from(half).expect_err("half a key").to_string().contains("AWS_SECRET_ACCESS_KEY"));
        assert!(Credentials::from(|_| Some("x".to_owned())).is_ok());
    }
}
