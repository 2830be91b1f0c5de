//! `scheme://host[:port]`: where we are reached, where the upstream is, and whose pages may call.

use std::fmt;
use std::net::SocketAddr;

use toml::Value;
use url::{Host, Url};

use super::setting::Setting;

/// An `http` or `https` origin, in the one spelling browsers use: lower-case host, no default
/// port, no trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(Url);

impl Origin {
    /// Reads an origin; `None` for anything that has more to it, such as a path or a password.
    pub fn parse(text: &str) -> Option<Self> {
        // The parser of URLs forgives what a person would not: blanks, tabs and backslashes.
        if text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\\') {
            return None;
        }
        let url = Url::parse(text).ok()?;
        let rest = &url[url::Position::AfterPort..];
        let plain = matches!(rest, "" | "/") && url.username().is_empty() && url.password().is_none();
        // `https:host` and `https:///host` are repaired by the parser too; we want it written out.
        let explicit = text.split_once("://").is_some_and(|(_, rest)| !rest.starts_with('/'));
        (matches!(url.scheme(), "http" | "https") && url.has_host() && plain && explicit).then_some(Self(url))
    }

    /// `http://` and an address one listens on.
    pub fn of_address(address: SocketAddr) -> Self {
        let url = Url::parse(&format!("http://{address}")).expect("an address is a host and a port");
        Self(url)
    }

    /// The origin as a URL whose path is `/`.
    pub fn as_url(&self) -> &Url {
        &self.0
    }

    /// `scheme://host[:port]`, without a trailing slash.
    pub fn as_str(&self) -> &str {
        self.0.as_str().trim_end_matches('/')
    }

    /// Is the host this very machine?
    pub fn is_loopback(&self) -> bool {
        match self.0.host() {
            Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
            None => false,
        }
    }

    /// Is it `https`?
    pub fn is_encrypted(&self) -> bool {
        self.0.scheme() == "https"
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Setting for Origin {
    fn from_text(text: &str) -> Result<Self, String> {
        // Not repeated in the message: a URL may hold a password.
        Self::parse(text).ok_or_else(|| {
            "is not an origin; write http:// or https://, a host and perhaps a port, and nothing after them, \
             such as https://granary.example.com"
                .to_owned()
        })
    }

    fn to_toml(&self) -> Option<Value> {
        Some(Value::String(self.to_string()))
    }
}
