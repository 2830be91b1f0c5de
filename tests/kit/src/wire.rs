//! HTTP/1.1 as bytes on a socket, for both sides of the kit: heads kept exactly as they arrived, bodies that may stop anywhere.
//!
//! hyper is deliberately absent. It lower-cases and regroups headers, and will not send a length that lies;
//! a test double for a faulty upstream has to do both. Framing is read strictly: what is not plain HTTP/1.1 is an error.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const MAX_HEAD: usize = 256 * 1024;

/// One message head: its first line and its headers, in order, in the case they were sent.
#[derive(Clone, Debug)]
pub struct Head {
    /// The three parts of the first line: method, target, version; or version, status, reason.
    pub start: [String; 3],
    /// Every header line as it came.
    pub headers: Vec<(String, String)>,
    /// The bytes on the wire, up to and with the blank line.
    pub raw: Bytes,
}

impl Head {
    /// The first value of a header, whatever the case of its name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    /// Every value of a header, in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    pub(crate) fn asks_to_close(&self) -> bool {
        self.all("connection").iter().any(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// How much of a body is still to come.
#[derive(Debug)]
pub(crate) enum Framing {
    Length(u64),
    Chunked { left: u64, first: bool },
    UntilClose,
    Done,
}

impl Framing {
    pub(crate) fn of_request(head: &Head) -> io::Result<Framing> {
        let framing = Framing::of(head)?;
        Ok(if matches!(framing, Framing::UntilClose) { Framing::Done } else { framing })
    }

    pub(crate) fn of_answer(head: &Head, to_head: bool) -> io::Result<Framing> {
        if to_head || matches!(head.start[1].as_str(), "204" | "304") {
            return Ok(Framing::Done);
        }
        Framing::of(head)
    }

    fn of(head: &Head) -> io::Result<Framing> {
        let (codings, lengths) = (head.all("transfer-encoding"), head.all("content-length"));
        match (codings.as_slice(), lengths.as_slice()) {
            ([], []) => Ok(Framing::UntilClose),
            ([], [length]) if !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) => {
                Ok(Framing::Length(length.parse().map_err(|_| bad("content-length overflows"))?))
            }
            ([coding], []) if coding.eq_ignore_ascii_case("chunked") => {
                Ok(Framing::Chunked { left: 0, first: true })
            }
            _ => Err(bad("ambiguous framing")),
        }
    }
}

/// A socket with what has been read from it and not been used.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Wire {
        // Without it the last short segment of an upload waits for an acknowledgement, and every timing in a test is 40 ms off.
        stream.set_nodelay(true).ok();
        Wire { stream, buffer: BytesMut::with_capacity(16 * 1024) }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Sends until all is sent or there is something to read; says whether all was sent.
    pub(crate) async fn send_until_readable(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let (read, mut write) = self.stream.split();
        tokio::select! {
            biased;
            readable = read.readable() => readable.map(|()| false),
            sent = write.write_all(bytes) => sent.map(|()| true),
        }
    }

    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    /// Closes so that the peer gets a reset instead of an orderly end.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().ok();
    }

    /// `None` is an orderly end before the first byte of a message.
    pub(crate) async fn request_head(&mut self) -> io::Result<Option<Head>> {
        let Some(raw) = self.raw_head().await? else {
            return Ok(None);
        };
        let mut slots = [httparse::EMPTY_HEADER; 256];
        let mut parsed = httparse::Request::new(&mut slots);
        parsed.parse(&raw).map_err(bad)?;
        let start =
            [parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default(), version(parsed.version)];
        Ok(Some(head(&raw, start, parsed.headers)))
    }

    /// Reads one answer's head; an interim answer is a head too.
    pub(crate) async fn answer_head(&mut self) -> io::Result<Option<Head>> {
        let Some(raw) = self.raw_head().await? else {
            return Ok(None);
        };
        let mut slots = [httparse::EMPTY_HEADER; 256];
        let mut parsed = httparse::Response::new(&mut slots);
        parsed.parse(&raw).map_err(bad)?;
        let code = parsed.code.unwrap_or_default().to_string();
        let start = [version(parsed.version), &code, parsed.reason.unwrap_or_default()];
        Ok(Some(head(&raw, start, parsed.headers)))
    }

    async fn raw_head(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                return Ok(Some(self.buffer.split_to(end + 4).freeze()));
            }
            if self.buffer.len() > MAX_HEAD {
                return Err(bad("head too long"));
            }
            if self.fill().await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(cut("inside a head")) };
            }
        }
    }

    /// The next piece of a body, at most `most` bytes, or `None` when it is complete. An end before that is an error.
    pub(crate) async fn piece(&mut self, framing: &mut Framing, most: usize) -> io::Result<Option<Bytes>> {
        loop {
            match framing {
                Framing::Done | Framing::Length(0) => return Ok(None),
                Framing::UntilClose => {
                    let ended = self.buffer.is_empty() && self.fill().await? == 0;
                    let take = self.buffer.len().min(most);
                    return Ok((!ended).then(|| self.buffer.split_to(take).freeze()));
                }
                Framing::Chunked { left: 0, first } => {
                    if !std::mem::replace(first, false) && !self.line().await?.is_empty() {
                        return Err(bad("chunk longer than its size"));
                    }
                    let line = self.line().await?;
                    let size = line.split(';').next().unwrap_or_default().trim();
                    let size = u64::from_str_radix(size, 16).map_err(|_| bad("chunk size"))?;
                    if size == 0 {
                        while !self.line().await?.is_empty() {}
                        *framing = Framing::Done;
                    } else {
                        *framing = Framing::Chunked { left: size, first: false };
                    }
                }
                Framing::Length(left) | Framing::Chunked { left, .. } => {
                    if self.buffer.is_empty() && self.fill().await? == 0 {
                        return Err(cut("inside a body"));
                    }
                    let take = usize::try_from(*left).unwrap_or(usize::MAX).min(self.buffer.len()).min(most);
                    *left -= take as u64;
                    return Ok(Some(self.buffer.split_to(take).freeze()));
                }
            }
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n") {
                let line = self.buffer.split_to(end + 2);
                return String::from_utf8(line[..end].to_vec()).map_err(bad);
            }
            if self.buffer.len() > MAX_HEAD {
                return Err(bad("line too long"));
            }
            if self.fill().await? == 0 {
                return Err(cut("inside a chunk header"));
            }
        }
    }

    /// Returns when the peer has closed or reset, throwing away what it still sends.
    pub(crate) async fn gone(&mut self) {
        while !matches!(self.fill().await, Ok(0) | Err(_)) {
            self.buffer.clear();
        }
    }

    /// Ends our half and reads the other to its end, so that the peer can read our last answer before a reset destroys it.
    pub(crate) async fn linger(mut self) {
        self.shutdown().await.ok();
        tokio::time::timeout(Duration::from_secs(5), self.gone()).await.ok();
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(64 * 1024);
        self.stream.read_buf(&mut self.buffer).await
    }
}

fn head(raw: &Bytes, start: [&str; 3], headers: &[httparse::Header<'_>]) -> Head {
    let text = |bytes: &[u8]| bytes.iter().map(|&b| char::from(b)).collect::<String>();
    Head {
        start: start.map(str::to_owned),
        headers: headers.iter().map(|h| (h.name.to_owned(), text(h.value))).collect(),
        raw: raw.clone(),
    }
}

fn version(minor: Option<u8>) -> &'static str {
    if minor == Some(0) { "HTTP/1.0" } else { "HTTP/1.1" }
}

fn bad(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn cut(place: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the peer ended {place}"))
}
