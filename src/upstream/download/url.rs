//! A result's URL, split strictly and almost unchanged ([`ResultUrl`]). Signed URLs must be requested byte
//! for byte, and the usual parser normalises them. After the host, only characters that are not allowed in a
//! request line are escaped, as in browsers.

use std::borrow::Cow;

use http::uri::PathAndQuery;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use url::Host;

use super::rules::{Scheme, parse_host, split_port};

const MAX_URL_BYTES: usize = 8 * 1024;

/// The ASCII characters that browsers escape. Existing escapes stay.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'`');

/// No `Debug`, because it may be signed.
pub(super) struct ResultUrl {
    pub(super) scheme: Scheme,
    pub(super) host: Host,
    pub(super) port: u16,
    pub(super) path_and_query: PathAndQuery,
}

impl ResultUrl {
    /// The error contains no part of the URL.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let text = clean(text)?;
        let (scheme, rest) = text.split_once("://").ok_or("it has no scheme")?;
        let scheme = Scheme::parse(scheme).ok_or("its scheme is not http or https")?;
        let (authority, target) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err("it carries a user name");
        }
        let (host, port) = split_port(authority)?;
        let host = parse_host(host).ok_or("its host is neither a name nor a plain address")?;
        let path_and_query = request_target(target)?;
        Ok(Self { scheme, host, port: port.unwrap_or(scheme.default_port()), path_and_query })
    }

    /// Resolves a redirect (RFC 3986, section 5.2).
    pub(super) fn join(&self, location: &str) -> Result<Self, &'static str> {
        let location = clean(location)?;
        let is_absolute = location.split_once("://").is_some_and(|(scheme, _)| {
            scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
        });
        if is_absolute {
            return Self::parse(&location);
        }
        if location.starts_with("//") {
            return Self::parse(&format!("{}:{location}", self.scheme.as_str()));
        }
        let path = self.path_and_query.path();
        let target = match location.as_bytes().first() {
            None | Some(b'#') => self.path_and_query.to_string(),
            Some(b'/') => location.into_owned(),
            Some(b'?') => format!("{path}{location}"),
            Some(_) => {
                let (mut folder, mut rest) = (parent(path), &*location);
                loop {
                    if let Some(below) = rest.strip_prefix("./") {
                        rest = below;
                    } else if let Some(above) = rest.strip_prefix("../") {
                        (folder, rest) = (parent(folder), above);
                    } else {
                        break format!("{folder}/{rest}");
                    }
                }
            }
        };
        let path_and_query = request_target(&target)?;
        Ok(Self { scheme: self.scheme, host: self.host.clone(), port: self.port, path_and_query })
    }
}

fn parent(path: &str) -> &str {
    path.rfind('/').map_or("", |slash| &path[..slash])
}

/// Removes what browsers remove: surrounding blanks, and line breaks and tabs anywhere.
fn clean(text: &str) -> Result<Cow<'_, str>, &'static str> {
    if text.len() > MAX_URL_BYTES {
        return Err("it is too long");
    }
    let text = text.trim_matches(|c: char| c == ' ' || c.is_ascii_control());
    let is_dropped = |c: char| matches!(c, '\t' | '\r' | '\n');
    let text = match text.contains(is_dropped) {
        true => Cow::Owned(text.replace(is_dropped, "")),
        false => Cow::Borrowed(text),
    };
    if text.bytes().any(|byte| byte.is_ascii_control() || byte == b'\\') {
        return Err("it contains a backslash or a control character");
    }
    Ok(text)
}

/// Escapes the part after the host. An empty path means the root.
fn request_target(text: &str) -> Result<PathAndQuery, &'static str> {
    let text = text.split('#').next().unwrap_or_default();
    let slash = if text.starts_with('/') { "" } else { "/" };
    let target = format!("{slash}{}", utf8_percent_encode(text, ESCAPED));
    PathAndQuery::try_from(target.as_str())
        .ok()
        .filter(|parsed| parsed.as_str() == target)
        .ok_or("it contains a character no URL may contain")
}

#[cfg(test)]
mod tests;
