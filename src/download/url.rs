//! A result's URL, taken apart without being changed: [`ResultUrl`].
//!
//! Signed URLs must be asked for byte for byte, and the usual parser normalises what it reads. So
//! the text is cut by hand, strictly, and what follows the host is never touched.

use http::Uri;
use http::uri::PathAndQuery;
use url::Host;

use super::rules::{Scheme, parse_host, split_port};

/// The longest URL that is looked at, in bytes.
const MAX_URL_BYTES: usize = 8 * 1024;

/// Where a result is. No `Debug`: it may be signed.
pub(super) struct ResultUrl {
    pub(super) scheme: Scheme,
    pub(super) host: Host,
    pub(super) port: u16,
    /// Path and query as given, without the fragment, which is not for servers.
    pub(super) path_and_query: PathAndQuery,
}

impl ResultUrl {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// Why it is not one we read, in words that contain no part of it.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > MAX_URL_BYTES {
            return Err("it is too long");
        }
        if text.bytes().any(|byte| byte.is_ascii_control() || matches!(byte, b' ' | b'\\')) {
            return Err("it contains a blank, a backslash or a control character");
        }
        let (scheme, rest) = text.split_once("://").ok_or("it has no scheme")?;
        let scheme = Scheme::parse(scheme).ok_or("its scheme is not http or https")?;
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err("it carries a user name");
        }
        let (host, port) = split_port(authority)?;
        let host = parse_host(host).ok_or("its host is neither a name nor a plain address")?;
        // A URL that ends with its host, or goes on with a query, means the root.
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        let path_and_query = PathAndQuery::try_from(target.as_str())
            .ok()
            .filter(|parsed| parsed.as_str() == target)
            .ok_or("it contains a character no URL may contain")?;
        Ok(Self { scheme, host, port: port.unwrap_or(scheme.default_port()), path_and_query })
    }

    /// What stands in the request line.
    pub(super) fn request_target(&self) -> Uri {
        Uri::from(self.path_and_query.clone())
    }
}

#[cfg(test)]
mod tests;
