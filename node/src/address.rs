//! Where the coordinator is and which authority must answer for it: `host:port#fingerprint`.

use std::fmt;
use std::str::FromStr;

use crate::error::NodeError;
use crate::transport::Fingerprint;

/// A coordinator's address with its pinned key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoordinatorAddress {
    /// Host name or IP address; an IPv6 address stands in brackets.
    pub host: String,
    /// UDP port.
    pub port: u16,
    /// SHA-256 of the public key of the cluster's authority.
    pub fingerprint: Fingerprint,
}

impl CoordinatorAddress {
    /// Reads `host:port`, with a pin known from elsewhere.
    ///
    /// # Errors
    /// [`NodeError::Address`] naming what is wrong.
    pub fn at(place: &str, fingerprint: Fingerprint) -> Result<Self, NodeError> {
        let bad = |cause: &str| NodeError::Address { address: place.to_owned(), cause: cause.to_owned() };
        let (host, port) = place.rsplit_once(':').ok_or_else(|| bad("no port"))?;
        if host.is_empty() {
            return Err(bad("no host"));
        }
        let port = port.parse().ok().filter(|p| *p != 0).ok_or_else(|| bad("the port is not a number from 1 to 65535"))?;
        Ok(Self { host: host.to_owned(), port, fingerprint })
    }
}

impl FromStr for CoordinatorAddress {
    type Err = NodeError;

    fn from_str(text: &str) -> Result<Self, NodeError> {
        let bad = |cause: &str| NodeError::Address { address: text.to_owned(), cause: cause.to_owned() };
        let (place, pin) = text.split_once('#').ok_or_else(|| bad("no `#fingerprint` at the end"))?;
        let fingerprint = Fingerprint::from_hex(pin).ok_or_else(|| bad("the fingerprint is not 64 hexadecimal digits"));
        Self::at(place, fingerprint?)
    }
}

impl fmt::Display for CoordinatorAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}#{}", self.host, self.port, self.fingerprint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let text = format!("[::1]:4433#{}", "0a".repeat(32));
        let address: CoordinatorAddress = text.parse().expect("valid");
        assert_eq!((address.host.as_str(), address.port), ("[::1]", 4433));
        assert_eq!(address.to_string(), text);
    }

    #[test]
    fn names_what_is_missing() {
        let pin = "0a".repeat(32);
        let cases = [
            ("host:1".to_owned(), "#fingerprint"),
            (format!("host#{pin}"), "no port"),
            (format!(":1#{pin}"), "no host"),
            (format!("host:0#{pin}"), "port"),
            (format!("host:70000#{pin}"), "port"),
            ("host:1#0a".to_owned(), "64 hexadecimal"),
            (format!("host:1#{}", "é".repeat(32)), "64 hexadecimal"),
        ];
        for (text, hint) in cases {
            let error = text.parse::<CoordinatorAddress>().expect_err("invalid").to_string();
            assert!(error.contains(hint), "{error}");
        }
    }
}
