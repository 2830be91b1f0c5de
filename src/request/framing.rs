//! Finds the end of each request, and refuses heads before routing. Pure. Stricter than HTTP: refuses a head that two
//! readers might understand differently (a length and chunks, two lengths, two hosts, LF alone at a line end).

pub mod chunked;

use http::header::HOST;
use http::uri::Authority;
use http::{Method, Request, Version};
use thiserror::Error;

use self::chunked::Chunks;

/// Bytes of a head, with its last empty line.
pub const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
/// Bytes of a path with its query.
const MAX_TARGET: usize = 2048;

/// Replaces a refused head, which hyper must not see.
pub const PLACEHOLDER_HEAD: &[u8] = b"GET /refused HTTP/1.1\r\nHost: refused\r\n\r\n";

/// The connection ends with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeadError {
    #[error(
        "the head does not name one host; send one Host line with a host and perhaps a port, the same as in an \
         absolute target"
    )]
    Host,
    #[error(
        "the head is not well-formed, or does not say in one way how long its body is; send HTTP/1.1 lines that \
         end in CR LF, with one Content-Length or Transfer-Encoding: chunked"
    )]
    Framing,
    #[error("the head has more than 16 KiB or 64 lines; send fewer or shorter headers")]
    TooLarge,
    #[error("the request's target is longer than 2048 bytes; nothing that Granary serves needs one")]
    UriTooLong,
    #[error("this is no proxy for other hosts")]
    Method,
    #[error("the head of the request did not come in time; send it at once")]
    Slow,
}

impl HeadError {
    pub const ALL: [Self; 6] =
        [Self::Host, Self::Framing, Self::TooLarge, Self::UriTooLong, Self::Method, Self::Slow];
}

#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Head,
    /// Bytes of a body.
    Bytes(u64),
    Chunks(Chunks),
    Nothing,
}

/// Length of the head at the beginning of `bytes`; `None` before its end has come.
pub fn head_end(bytes: &[u8]) -> Result<Option<usize>, HeadError> {
    let within = &bytes[..bytes.len().min(MAX_HEAD)];
    let end = memchr::memchr_iter(b'\n', within).find_map(|at| match &within[at + 1..] {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    });
    match end {
        None if bytes.len() < MAX_HEAD => Ok(None),
        None if memchr::memchr(b'\n', within).is_none() => Err(HeadError::UriTooLong),
        None => Err(HeadError::TooLarge),
        end => Ok(end),
    }
}

/// Refuses a complete head that hyper accepts with more than one meaning. Returns what follows.
pub fn check_head(head: &[u8]) -> Result<Next, HeadError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
        _ => return Err(HeadError::Framing),
    }
    if memchr::memchr_iter(b'\n', head).any(|at| at == 0 || head[at - 1] != b'\r') {
        return Err(HeadError::Framing);
    }
    if matches!(request.method, Some("CONNECT" | "TRACE")) {
        return Err(HeadError::Method);
    }
    let values = |name: &'static str| {
        let named = request.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value)
    };
    let mut lengths = values("content-length");
    let mut codings = values("transfer-encoding");
    match (lengths.next(), lengths.next(), codings.next(), codings.next()) {
        (None, None, None, None) => Ok(Next::Bytes(0)),
        (Some(length), None, None, None) if length.iter().all(u8::is_ascii_digit) => {
            let bytes = std::str::from_utf8(length).ok().and_then(|digits| digits.parse().ok());
            // hyper reserves the highest lengths.
            bytes.filter(|bytes| *bytes < u64::MAX - 2).map(Next::Bytes).ok_or(HeadError::Framing)
        }
        // Not in HTTP/1.0.
        (None, None, Some(coding), None)
            if coding.eq_ignore_ascii_case(b"chunked") && request.version == Some(1) =>
        {
            Ok(Next::Chunks(Chunks::default()))
        }
        _ => Err(HeadError::Framing),
    }
}

/// Expects a head that passed [`check_head`].
pub fn is_http_10(head: &[u8]) -> bool {
    head.split(|byte| *byte == b'\r').next().is_some_and(|line| line.ends_with(b" HTTP/1.0"))
}

/// Renames `Upgrade` lines in a head that passed [`check_head`].
pub fn hide_upgrade(head: &mut [u8]) {
    for line in head.split_mut(|byte| *byte == b'\n') {
        if let Some((name, [b':', ..])) = line.split_at_mut_checked(7)
            && name.eq_ignore_ascii_case(b"upgrade")
        {
            name.copy_from_slice(b"ignored");
        }
    }
}

/// Requires one host (in HTTP/1.0 at most one), and the same in an absolute target.
pub fn check_target<B>(request: &Request<B>) -> Result<(), HeadError> {
    let uri = request.uri();
    if uri.path_and_query().is_some_and(|target| target.as_str().len() > MAX_TARGET) {
        return Err(HeadError::UriTooLong);
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(value), None) => Some(authority(value.as_bytes()).ok_or(HeadError::Host)?),
        (None, _) if request.version() == Version::HTTP_10 => None,
        _ => return Err(HeadError::Host),
    };
    match (uri.scheme_str(), uri.authority().map(Authority::as_str)) {
        (None, None) if uri.path().starts_with('/') => Ok(()),
        (None, None) if uri.path() == "*" && request.method() == Method::OPTIONS => Ok(()),
        (Some("http" | "https"), Some(named)) => match host {
            None if authority(named.as_bytes()).is_some() => Ok(()),
            Some(host) if host.as_str().eq_ignore_ascii_case(named) => Ok(()),
            _ => Err(HeadError::Host),
        },
        _ => Err(HeadError::Framing),
    }
}

/// `host` or `host:port`, without a user.
fn authority(value: &[u8]) -> Option<Authority> {
    let authority = Authority::try_from(value).ok().filter(|authority| !authority.as_str().contains('@'))?;
    let port = &authority.as_str()[authority.host().len()..];
    let is_good = matches!(port, "" | ":") || authority.port_u16().is_some();
    (is_good && !authority.host().is_empty()).then_some(authority)
}

#[cfg(test)]
mod tests;
