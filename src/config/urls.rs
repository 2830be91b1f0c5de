//! URLs as settings: where we and others are reached.

use std::fmt;
use std::net::SocketAddr;

use toml::Value;
use url::{Host, Url};

use super::setting::Setting;

/// In the one spelling browsers use: lower-case host, no default port, no trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(Url);

impl Origin {
    /// `None` for a URL with more parts, such as a path or a password.
    pub fn parse(text: &str) -> Option<Self> {
        let url = Url::parse(BaseUrl::parse(text)?.as_str()).ok()?;
        (url.path() == "/").then_some(Self(url))
    }

    pub fn of_address(address: SocketAddr, is_encrypted: bool) -> Self {
        let scheme = if is_encrypted { "https" } else { "http" };
        let url = Url::parse(&format!("{scheme}://{address}")).expect("an address is a host and a port");
        Self(url)
    }

    /// With the path `/`.
    pub fn as_url(&self) -> &Url {
        &self.0
    }

    /// Without a trailing slash.
    pub fn as_str(&self) -> &str {
        self.0.as_str().trim_end_matches('/')
    }

    pub fn is_loopback(&self) -> bool {
        match self.0.host() {
            Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
            None => false,
        }
    }

    pub fn is_encrypted(&self) -> bool {
        self.0.scheme() == "https"
    }
}

/// An `http` or `https` URL to which a path is appended, with nothing that a parser would change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl(String);

impl BaseUrl {
    /// `None` for a URL with more parts, or that a parser would change.
    pub fn parse(text: &str) -> Option<Self> {
        if text.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '\\' | '?' | '#' | '@'))
        {
            return None;
        }
        let (_, rest) = text.split_once("://")?;
        let path = rest.find('/').map_or("", |at| &rest[at..]);
        let path = path.strip_suffix('/').unwrap_or(path);
        let url = Url::parse(text).ok()?;
        // The parser of URLs would walk `a/..` back, and encode what has to be.
        let is_plain =
            !path.contains("//") && !path.ends_with('/') && url.path().trim_end_matches('/') == path;
        let has_host = url.host_str().is_some_and(|host| !host.contains('*'));
        let is_base = matches!(url.scheme(), "http" | "https") && has_host && is_plain;
        is_base.then(|| Self(url.as_str().trim_end_matches('/').to_owned()))
    }

    /// Without a trailing slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `None` if the URL has credentials, a query or a fragment.
pub fn parse_service_url(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let is_plain = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    is_plain.then_some(url)
}

/// Errors do not repeat the value: a URL may have a password.
macro_rules! url_settings {
    ($($name:ty: $wrong:literal;)+) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Setting for $name {
            fn from_text(text: &str) -> Result<Self, String> {
                Self::parse(text).ok_or_else(|| $wrong.to_owned())
            }

            fn to_toml(&self) -> Option<Value> {
                Some(Value::String(self.to_string()))
            }
        }
    )+};
}

url_settings! {
    Origin: "is not an origin; write http:// or https://, a host and perhaps a port, and nothing after them, \
             such as https://granary.example.com";
    BaseUrl: "is not the beginning of a URL; write http:// or https://, a host, perhaps a port and a path, and \
              nothing after them, such as https://cdn.example.com/granary";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_one_spelling_and_nothing_after_it() {
        let check = |text, expected: Option<&str>| {
            assert_eq!(Origin::parse(text).map(|origin| origin.to_string()).as_deref(), expected, "{text:?}");
        };
        check("https://granary.example.com", Some("https://granary.example.com"));
        check("https://Granary.Example.COM:443/", Some("https://granary.example.com"));
        check("http://127.0.0.1:8080", Some("http://127.0.0.1:8080"));
        check("http://[::1]:80", Some("http://[::1]"));
        for wrong in [
            "",
            "*",
            "null",
            "granary.example.com",
            "localhost:8080",
            "https:granary.example.com",
            "https:/granary.example.com",
            "https:///granary.example.com",
            "https://",
            "https://granary.example.com/api",
            "https://granary.example.com/a/..",
            "https://granary.example.com//",
            "https://granary.example.com?a",
            "https://granary.example.com#a",
            "https://user@granary.example.com",
            "https://user:word@granary.example.com",
            "https://@granary.example.com",
            "https://granary.example.com:99999",
            "https://*.example.com",
            " https://granary.example.com",
            "https://granary.\texample.com",
            "https:\\\\granary.example.com",
            "ftp://granary.example.com",
            "file:///etc/passwd",
            "data:text/plain,x",
        ] {
            check(wrong, None);
        }
    }

    #[test]
    fn loopback_is_this_machine_only() {
        let check = |text, expected| {
            assert_eq!(Origin::parse(text).map(|origin| origin.is_loopback()), Some(expected), "{text}");
        };
        check("http://127.0.0.1", true);
        check("http://127.9.9.9:1", true);
        check("http://2130706433", true);
        check("http://[::1]:8080", true);
        check("http://[::ffff:127.0.0.1]", true);
        check("http://localhost", true);
        check("http://api.localhost", true);
        check("http://0.0.0.0", false);
        check("http://10.0.0.1", false);
        check("http://localhost.example.com", false);
        check("http://notlocalhost", false);
    }

    #[test]
    fn an_address_becomes_an_origin() {
        let check = |address: &str, is_encrypted, expected| {
            assert_eq!(Origin::of_address(address.parse().unwrap(), is_encrypted).as_str(), expected);
        };
        check("127.0.0.1:8080", false, "http://127.0.0.1:8080");
        check("[::1]:8080", false, "http://[::1]:8080");
        check("127.0.0.1:80", false, "http://127.0.0.1");
        check("127.0.0.1:8443", true, "https://127.0.0.1:8443");
        check("127.0.0.1:443", true, "https://127.0.0.1");
    }

    #[test]
    fn a_base_url_is_a_place_to_append_to_and_nothing_more() {
        let check = |text, expected: Option<&str>| {
            assert_eq!(BaseUrl::parse(text).map(|url| url.to_string()).as_deref(), expected, "{text:?}");
        };
        check("https://cdn.example.com", Some("https://cdn.example.com"));
        check("https://CDN.Example.COM:443/", Some("https://cdn.example.com"));
        check("http://127.0.0.1:8080/Granary/prod", Some("http://127.0.0.1:8080/Granary/prod"));
        check("https://cdn.example.com/granary/", Some("https://cdn.example.com/granary"));
        check("http://[::1]:80/a%20b", Some("http://[::1]/a%20b"));
        for wrong in [
            "",
            "*",
            "cdn.example.com",
            "/results",
            "//cdn.example.com",
            "localhost:8080",
            "https:cdn.example.com",
            "https:///cdn.example.com",
            "https://",
            "https://cdn.example.com//",
            "https://cdn.example.com/a//b",
            "https://cdn.example.com/a//",
            "https://cdn.example.com/a/../b",
            "https://cdn.example.com/a/%2E%2e/b",
            "https://cdn.example.com/./a",
            "https://cdn.example.com/a\"b",
            "https://cdn.example.com/a?b",
            "https://cdn.example.com?",
            "https://cdn.example.com/a#b",
            "https://user@cdn.example.com",
            "https://user:word@cdn.example.com/a",
            "https://cdn.example.com:99999",
            "https://*.example.com",
            " https://cdn.example.com",
            "https://cdn.\texample.com",
            "https:\\\\cdn.example.com",
            "ftp://cdn.example.com",
            "s3://bucket/prefix",
            "file:///srv/store",
        ] {
            check(wrong, None);
        }
    }
}
