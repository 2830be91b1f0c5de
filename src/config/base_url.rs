//! `scheme://host[:port][/path]`: where somebody else serves what we keep.

use std::fmt;

use toml::Value;
use url::Url;

use super::setting::Setting;

/// An `http` or `https` URL to which a path is appended: no password, query or fragment, and a path
/// that means what it says. Its one spelling has no trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl(String);

impl BaseUrl {
    /// Reads a base URL; `None` for anything that has more to it, or that a parser would repair.
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

    /// Without a trailing slash, so that `/` and a path can be appended.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Setting for BaseUrl {
    fn from_text(text: &str) -> Result<Self, String> {
        // Not repeated in the message: a URL may hold a password.
        Self::parse(text).ok_or_else(|| {
            "is not the beginning of a URL; write http:// or https://, a host, perhaps a port and a path, and \
             nothing after them, such as https://cdn.example.com/granary"
                .to_owned()
        })
    }

    fn to_toml(&self) -> Option<Value> {
        Some(Value::String(self.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
