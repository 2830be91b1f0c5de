//! A response changed as vendors, and what stands between them and us, change theirs: [`Mutation`].

use std::io::Write as _;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

/// What is done to a response; by default nothing.
#[derive(Clone, Debug, Default)]
pub struct Mutation {
    /// Instead of 200.
    pub status: Option<u16>,
    /// Header lines as they go over the wire, each with its line end. `{url}` and `{path}` stand for the purchase's URL and what follows its host.
    pub headers: String,
    /// Instead of the body.
    pub body: Option<Vec<u8>>,
    /// Bytes of the body's end that the server has not got.
    pub missing: usize,
    /// Bytes before the body.
    pub before: Vec<u8>,
    /// Bytes after the body.
    pub after: Vec<u8>,
    /// The content coding.
    pub coding: Coding,
    /// How the peer learns where the response ends.
    pub framing: Framing,
    /// Bytes of the response's end that are never sent.
    pub unsent: usize,
}

/// A content coding, with the header that goes with it.
#[derive(Clone, Copy, Debug, Default)]
pub enum Coding {
    /// None, and no header.
    #[default]
    None,
    /// `gzip`.
    Gzip,
    /// `deflate` with its wrapper.
    Zlib,
    /// `deflate` without, as some servers send it.
    Deflate,
}

/// How the peer learns where a response ends.
#[derive(Clone, Copy, Debug, Default)]
pub enum Framing {
    /// `Content-Length`.
    #[default]
    Length,
    /// Chunks of so many bytes, with an extension and a trailer field.
    Chunks(usize),
    /// The connection ends.
    Close,
}

impl Mutation {
    /// What a client should have in the end, if the response is complete.
    pub fn content(&self, body: &[u8]) -> Vec<u8> {
        let body = self.body.as_deref().unwrap_or(body);
        [&self.before, &body[..body.len().saturating_sub(self.missing)], &self.after].concat()
    }

    /// The whole response as it goes over the wire.
    pub fn response(&self, body: &[u8], url: &str) -> Vec<u8> {
        let (coding, content) = self.coding.encode(self.content(body));
        let path = url.splitn(4, '/').nth(3).map_or(String::new(), |path| format!("/{path}"));
        let mut bytes = format!(
            "HTTP/1.1 {} Scripted\r\n{}{coding}",
            self.status.unwrap_or(200),
            self.headers.replace("{url}", url).replace("{path}", &path)
        )
        .into_bytes();
        match self.framing {
            Framing::Length => {
                bytes.extend(format!("Content-Length: {}\r\n\r\n", content.len()).into_bytes());
                bytes.extend(content);
            }
            Framing::Chunks(size) => {
                bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
                let extensions = std::iter::once(";part=1").chain(std::iter::repeat(""));
                for (chunk, extension) in content.chunks(size.max(1)).zip(extensions) {
                    bytes.extend(format!("{:x}{extension}\r\n", chunk.len()).into_bytes());
                    bytes.extend(chunk);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(b"0\r\nX-Checksum: 1\r\n\r\n");
            }
            Framing::Close => {
                bytes.extend(b"Connection: close\r\n\r\n");
                bytes.extend(content);
            }
        }
        bytes.truncate(bytes.len().saturating_sub(self.unsent));
        bytes
    }
}

impl Coding {
    fn encode(self, bytes: Vec<u8>) -> (&'static str, Vec<u8>) {
        let level = Compression::default();
        let in_memory = "memory takes all";
        match self {
            Coding::None => ("", bytes),
            Coding::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), level);
                encoder.write_all(&bytes).expect(in_memory);
                ("Content-Encoding: gzip\r\n", encoder.finish().expect(in_memory))
            }
            Coding::Zlib => {
                let mut encoder = ZlibEncoder::new(Vec::new(), level);
                encoder.write_all(&bytes).expect(in_memory);
                ("Content-Encoding: deflate\r\n", encoder.finish().expect(in_memory))
            }
            Coding::Deflate => {
                let mut encoder = DeflateEncoder::new(Vec::new(), level);
                encoder.write_all(&bytes).expect(in_memory);
                ("Content-Encoding: deflate\r\n", encoder.finish().expect(in_memory))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_is_framed_as_it_says() {
        let text = |mutation: &Mutation| String::from_utf8(mutation.response(b"body", "U")).unwrap();
        let plain = Mutation { headers: "Location: {url}\r\n".to_owned(), ..Mutation::default() };
        assert_eq!(text(&plain), "HTTP/1.1 200 Scripted\r\nLocation: U\r\nContent-Length: 4\r\n\r\nbody");
        let odd = Mutation {
            status: Some(302),
            framing: Framing::Chunks(4),
            missing: 1,
            before: b"<".to_vec(),
            after: b">".to_vec(),
            unsent: 2,
            ..Mutation::default()
        };
        assert_eq!(
            text(&odd),
            "HTTP/1.1 302 Scripted\r\nTransfer-Encoding: chunked\r\n\r\n4;part=1\r\n<bod\r\n1\r\n>\r\n0\r\nX-Checksum: 1\r\n"
        );
        assert_eq!(odd.content(b"body"), b"<bod>");
    }
}
