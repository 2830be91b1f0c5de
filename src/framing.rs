//! Where one request ends and the next begins, and what of a head is refused before anyone acts on it.
//!
//! Pure. Stricter than HTTP allows: whatever two readers might understand differently (two lengths, a
//! length and chunks, two hosts, a line that ends in one byte) is refused, so that what is let through
//! has one meaning, to us, to hyper and to whatever stands before us.

pub mod chunked;
mod host;

use thiserror::Error;

use self::host::{Host, same_place};

/// Bytes of a head, its last empty line included.
pub const MAX_HEAD: usize = 16 * 1024;
/// Header lines in a head.
pub const MAX_HEADERS: usize = 64;
/// Bytes of a request's target.
const MAX_TARGET: usize = 2048;

/// Why a head is refused. The connection ends with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeadError {
    /// None, two, not one, or not that of the target.
    #[error(
        "the head does not name one host; send one Host line with a host and perhaps a port, the same as in an \
         absolute target"
    )]
    Host,
    /// Its lines, or how long its body is, could be understood in two ways.
    #[error(
        "the head is not well-formed, or does not say in one way how long its body is; send HTTP/1.1 lines that \
         end in CR LF, with one Content-Length or Transfer-Encoding: chunked"
    )]
    Framing,
    /// More than [`MAX_HEAD`] or [`MAX_HEADERS`].
    #[error("the head has more than 16 KiB or 64 lines; send fewer or shorter headers")]
    TooLarge,
    /// More than `MAX_TARGET`.
    #[error("the request's target is longer than 2048 bytes; nothing that Granary serves needs one")]
    UriTooLong,
    /// `CONNECT` or `TRACE`.
    #[error("this is no proxy for other hosts")]
    Method,
    /// It was not complete in time.
    #[error("the head of the request did not come in time; send it at once")]
    Slow,
}

impl HeadError {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Host, Self::Framing, Self::TooLarge, Self::UriTooLong, Self::Method, Self::Slow];
}

/// How long the body is that follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// So many bytes, often none.
    Bytes(u64),
    /// Until the last chunk.
    Chunked,
}

/// What a head says of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framing {
    /// How long its body is.
    pub body: BodyLength,
    /// May it be answered by interim answers first? Not in HTTP/1.0.
    pub takes_interim: bool,
}

/// Looks for the end of a head in bytes that arrive in pieces, each looked at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct EndOfHead {
    scanned: usize,
    line: usize,
}

impl EndOfHead {
    /// The length of the head at the beginning of `bytes`, once it is whole. Called again with more
    /// bytes after the same ones. Empty lines before a head are to be taken away first.
    ///
    /// # Errors
    /// [`HeadError::Framing`] for a line that does not end in CR LF; [`HeadError::TooLarge`] and
    /// [`HeadError::UriTooLong`] when there is no end within [`MAX_HEAD`].
    pub fn find(&mut self, bytes: &[u8]) -> Result<Option<usize>, HeadError> {
        while let Some(found) = memchr::memchr(b'\n', &bytes[self.scanned..]) {
            let at = self.scanned + found;
            if at == self.line || bytes[at - 1] != b'\r' {
                return Err(HeadError::Framing);
            }
            let is_empty = at == self.line + 1;
            (self.scanned, self.line) = (at + 1, at + 1);
            if is_empty {
                return if at < MAX_HEAD { Ok(Some(at + 1)) } else { Err(HeadError::TooLarge) };
            }
        }
        self.scanned = bytes.len();
        match bytes.len() {
            0..MAX_HEAD => Ok(None),
            _ if self.line == 0 => Err(HeadError::UriTooLong),
            _ => Err(HeadError::TooLarge),
        }
    }

    /// Has a whole first line been seen?
    pub fn has_request_line(&self) -> bool {
        self.line > 0
    }
}

/// What `head`, which is whole, says; or why it is refused.
///
/// # Errors
/// The first reason found, [`HeadError::Slow`] never.
pub fn judge(head: &[u8]) -> Result<Framing, HeadError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(HeadError::Framing),
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
        Err(_) => return Err(HeadError::Framing),
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(HeadError::Framing);
    };
    if target.len() > MAX_TARGET {
        return Err(HeadError::UriTooLong);
    }
    if matches!(method, "CONNECT" | "TRACE") {
        return Err(HeadError::Method);
    }
    let is_http_11 = version == 1;
    host(request.headers, method, target, is_http_11)?;
    let body = body_length(request.headers)?;
    if !is_http_11 && body != BodyLength::Bytes(0) {
        return Err(HeadError::Framing);
    }
    Ok(Framing { body, takes_interim: is_http_11 })
}

fn values<'a>(headers: &'a [httparse::Header<'a>], name: &'static str) -> impl Iterator<Item = &'a [u8]> {
    headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

/// One host (in HTTP/1.0 perhaps none), and no other in the target.
fn host(
    headers: &[httparse::Header<'_>],
    method: &str,
    target: &str,
    is_http_11: bool,
) -> Result<(), HeadError> {
    let mut hosts = values(headers, "host");
    let host = match (hosts.next(), hosts.next()) {
        (Some(value), None) => Some(Host::parse(value).ok_or(HeadError::Host)?),
        (None, _) if !is_http_11 => None,
        _ => return Err(HeadError::Host),
    };
    let uri = target.parse::<http::Uri>().map_err(|_| HeadError::Framing)?;
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok(());
    }
    let (Some(scheme @ ("http" | "https")), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(HeadError::Framing);
    };
    let named = Host::parse(authority.as_str().as_bytes()).ok_or(HeadError::Host)?;
    match host {
        Some(host) if !same_place(&host, &named, scheme) => Err(HeadError::Host),
        _ => Ok(()),
    }
}

/// One `Content-Length` of digits alone, or one `Transfer-Encoding` that is `chunked`, or neither.
fn body_length(headers: &[httparse::Header<'_>]) -> Result<BodyLength, HeadError> {
    let mut lengths = values(headers, "content-length");
    let mut codings = values(headers, "transfer-encoding");
    match (lengths.next(), lengths.next(), codings.next(), codings.next()) {
        (None, None, None, None) => Ok(BodyLength::Bytes(0)),
        (Some(length), None, None, None) => {
            let digits = std::str::from_utf8(length).ok();
            let digits = digits.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            // hyper keeps the last few numbers for itself.
            let bytes = digits.and_then(|text| text.parse().ok()).filter(|bytes| *bytes < u64::MAX - 2);
            bytes.map(BodyLength::Bytes).ok_or(HeadError::Framing)
        }
        (None, None, Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => {
            Ok(BodyLength::Chunked)
        }
        _ => Err(HeadError::Framing),
    }
}

/// A head that may stand for one that was refused: its method and its origin, so that it is answered
/// as it could have been, and nothing else of it.
pub fn stand_in(refused: &[u8]) -> Vec<u8> {
    let mut lines = refused.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let word = first.split(|byte| *byte == b' ').next().unwrap_or_default();
    let known = ["HEAD", "POST", "PUT", "DELETE", "PATCH"].into_iter().find(|name| name.as_bytes() == word);
    let origin = lines.find_map(|line| {
        let (name, value) = line.split_at(memchr::memchr(b':', line)?);
        let value = std::str::from_utf8(&value[1..]).ok()?.trim();
        let is_plain = value.len() < 256 && value.bytes().all(|byte| byte.is_ascii_graphic());
        (name.eq_ignore_ascii_case(b"origin") && is_plain && !value.is_empty()).then_some(value)
    });
    let origin = origin.map(|origin| format!("Origin: {origin}\r\n")).unwrap_or_default();
    format!("{} /refused HTTP/1.1\r\nHost: refused\r\n{origin}\r\n", known.unwrap_or("GET")).into_bytes()
}

#[cfg(test)]
mod tests;
