//! Where one request ends and the next begins, and which heads are refused before routing.
//!
//! Pure, and stricter than HTTP: a head that two readers might understand differently (a length and
//! chunks, two lengths, two hosts, a line that ends in LF alone) is refused, so that what passes has one
//! meaning to us, to hyper and to the proxy before us.

pub mod chunked;

use http::header::HOST;
use http::uri::Authority;
use http::{Method, Request, Version};
use thiserror::Error;

/// Maximum bytes of a head, its last empty line included.
pub const MAX_HEAD: usize = 16 * 1024;
/// Maximum header lines in a head.
const MAX_HEADERS: usize = 64;
/// Maximum bytes of a path with its query.
const MAX_TARGET: usize = 2048;

/// Goes to hyper in the place of a head that it must not see.
pub const PLACEHOLDER_HEAD: &[u8] = b"GET /refused HTTP/1.1\r\nHost: refused\r\n\r\n";

/// Why a head is refused. The connection ends with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeadError {
    /// No host, two, a malformed one, or not that of the target.
    #[error(
        "the head does not name one host; send one Host line with a host and perhaps a port, the same as in an \
         absolute target"
    )]
    Host,
    /// Malformed, or its body's length could be understood in two ways.
    #[error(
        "the head is not well-formed, or does not say in one way how long its body is; send HTTP/1.1 lines that \
         end in CR LF, with one Content-Length or Transfer-Encoding: chunked"
    )]
    Framing,
    /// More than [`MAX_HEAD`] or `MAX_HEADERS`.
    #[error("the head has more than 16 KiB or 64 lines; send fewer or shorter headers")]
    TooLarge,
    /// More than `MAX_TARGET`.
    #[error("the request's target is longer than 2048 bytes; nothing that Granary serves needs one")]
    UriTooLong,
    /// `CONNECT` or `TRACE`.
    #[error("this is no proxy for other hosts")]
    Method,
    /// Not complete in time.
    #[error("the head of the request did not come in time; send it at once")]
    Slow,
}

impl HeadError {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Host, Self::Framing, Self::TooLarge, Self::UriTooLong, Self::Method, Self::Slow];
}

/// Length of the body that follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// Exactly so many bytes, often none.
    Bytes(u64),
    /// Until the last chunk.
    Chunked,
}

/// What a head says of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framing {
    /// Length of its body.
    pub body: BodyLength,
    /// HTTP/1.0 otherwise.
    pub is_http_11: bool,
}

/// Finds the length of the head at the beginning of `bytes`; `None` if its end is still to come.
///
/// # Errors
/// [`HeadError::TooLarge`] or [`HeadError::UriTooLong`] if there is no end within [`MAX_HEAD`].
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

/// Checks a whole head for everything that hyper accepts in more than one meaning, or hides.
///
/// # Errors
/// The first reason found.
pub fn check_head(head: &[u8]) -> Result<Framing, HeadError> {
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
    let framing = Framing { body: body_length(request.headers)?, is_http_11: request.version == Some(1) };
    match framing.body {
        BodyLength::Chunked if !framing.is_http_11 => Err(HeadError::Framing),
        _ => Ok(framing),
    }
}

/// One `Content-Length` of digits alone, or one `Transfer-Encoding` that is `chunked`, or neither.
fn body_length(headers: &[httparse::Header<'_>]) -> Result<BodyLength, HeadError> {
    let values = |name: &'static str| {
        headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    };
    let mut lengths = values("content-length");
    let mut codings = values("transfer-encoding");
    match (lengths.next(), lengths.next(), codings.next(), codings.next()) {
        (None, None, None, None) => Ok(BodyLength::Bytes(0)),
        (Some(length), None, None, None) => {
            let digits = std::str::from_utf8(length).ok();
            let digits = digits.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            // hyper reserves the highest numbers.
            let bytes = digits.and_then(|text| text.parse().ok()).filter(|bytes| *bytes < u64::MAX - 2);
            bytes.map(BodyLength::Bytes).ok_or(HeadError::Framing)
        }
        (None, None, Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => {
            Ok(BodyLength::Chunked)
        }
        _ => Err(HeadError::Framing),
    }
}

/// Renames `Upgrade` lines in a head that was found good; nothing else is ever spoken on a connection.
pub fn hide_upgrade(head: &mut [u8]) {
    for line in head.split_mut(|byte| *byte == b'\n') {
        if let Some((name, [b':', ..])) = line.split_at_mut_checked(7)
            && name.eq_ignore_ascii_case(b"upgrade")
        {
            name.copy_from_slice(b"ignored");
        }
    }
}

/// Checks the target and its host: one host (in HTTP/1.0 perhaps none), and no other in the target.
///
/// # Errors
/// The first reason found.
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
    match (uri.scheme_str(), uri.authority()) {
        (None, None) if uri.path().starts_with('/') => Ok(()),
        (None, None) if uri.path() == "*" && request.method() == Method::OPTIONS => Ok(()),
        (Some(scheme @ ("http" | "https")), Some(named)) => {
            let named = authority(named.as_str().as_bytes()).ok_or(HeadError::Host)?;
            let default = if scheme == "https" { 443 } else { 80 };
            let place =
                |one: &Authority| (one.host().to_ascii_lowercase(), one.port_u16().unwrap_or(default));
            match host {
                Some(host) if place(&host) != place(&named) => Err(HeadError::Host),
                _ => Ok(()),
            }
        }
        _ => Err(HeadError::Framing),
    }
}

/// `host` or `host:port`, without a user.
fn authority(value: &[u8]) -> Option<Authority> {
    let authority = Authority::try_from(value).ok().filter(|authority| !authority.as_str().contains('@'))?;
    let port = &authority.as_str()[authority.host().len()..];
    let is_good =
        !authority.host().is_empty() && (matches!(port, "" | ":") || authority.port_u16().is_some());
    is_good.then_some(authority)
}

#[cfg(test)]
mod tests;
