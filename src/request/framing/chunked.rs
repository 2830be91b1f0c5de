//! Finds the end of a chunked body ([`Chunks`]). hyper finds the same end, or refuses the body.

use thiserror::Error;

/// Bytes of a line with the length of a chunk.
const MAX_SIZE_LINE: usize = 80;
/// Bytes of all trailers together.
const MAX_TRAILERS: usize = 4096;
/// With more chunks, their average length has a minimum.
const FREE_CHUNKS: u64 = 1024;
const MIN_AVERAGE: u64 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChunkError {
    #[error("the chunks of the body are malformed")]
    Malformed,
    /// Each chunk costs as much time as some kilobytes.
    #[error("the body has more than 1024 chunks of less than 64 bytes on average")]
    TooSmall,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chunks {
    part: Part,
    chunks: u64,
    bytes: u64,
    trailers: usize,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Size,
    /// Bytes left of a chunk and its CR LF, which hyper checks.
    Data(u64),
    Trailers,
    End,
}

impl Chunks {
    /// Returns how many of `bytes` belong to the body so far. The rest must be passed again, with more.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, ChunkError> {
        let mut at = 0;
        while at < bytes.len() && self.part != Part::End {
            let rest = &bytes[at..];
            if let Part::Data(left) = self.part {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                let left = left - here as u64;
                self.part = if left == 0 { Part::Size } else { Part::Data(left) };
                at += here;
                continue;
            }
            let is_size = self.part == Part::Size;
            let max = if is_size { MAX_SIZE_LINE } else { MAX_TRAILERS - self.trailers };
            let Some(line) = line(rest, max)? else { break };
            if is_size {
                self.begin_chunk(line)?;
            } else {
                self.trailers += line.len();
                self.part = if line.is_empty() { Part::End } else { Part::Trailers };
            }
            at += line.len() + 2;
        }
        Ok(at)
    }

    pub fn is_at_end(&self) -> bool {
        self.part == Part::End
    }

    fn begin_chunk(&mut self, line: &[u8]) -> Result<(), ChunkError> {
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (size, extension) = line.split_at(digits);
        let size = std::str::from_utf8(size).ok().filter(|size| size.len() <= 15);
        let size = size.and_then(|size| u64::from_str_radix(size, 16).ok()).ok_or(ChunkError::Malformed)?;
        if !matches!(extension, [] | [b';' | b' ' | b'\t', ..]) {
            return Err(ChunkError::Malformed);
        }
        self.chunks += 1;
        self.bytes = self.bytes.saturating_add(size);
        if self.chunks > FREE_CHUNKS && self.bytes / self.chunks < MIN_AVERAGE {
            return Err(ChunkError::TooSmall);
        }
        self.part = if size == 0 { Part::Trailers } else { Part::Data(size + 2) };
        Ok(())
    }
}

/// The first line of `bytes` without its CR LF; `None` before its end has come.
fn line(bytes: &[u8], max: usize) -> Result<Option<&[u8]>, ChunkError> {
    let end = memchr::memchr2(b'\r', b'\n', bytes).unwrap_or(bytes.len());
    match &bytes[end..] {
        _ if end > max => Err(ChunkError::Malformed),
        [b'\r', b'\n', ..] => Ok(Some(&bytes[..end])),
        [] | [b'\r'] => Ok(None),
        _ => Err(ChunkError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `bytes` belong to the body when they arrive in pieces of this size, and whether it ends.
    fn in_pieces(bytes: &[u8], piece: usize) -> Result<(usize, bool), ChunkError> {
        let (mut chunks, mut used, mut seen) = (Chunks::default(), 0, 0);
        while seen < bytes.len() && !chunks.is_at_end() {
            seen = (seen + piece).min(bytes.len());
            used += chunks.advance(&bytes[used..seen])?;
        }
        Ok((used, chunks.is_at_end()))
    }

    fn check(bytes: &[u8], expected: Result<(usize, bool), ChunkError>) {
        for piece in [1, 2, 3, 7, 100_000] {
            assert_eq!(in_pieces(bytes, piece), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_body_ends_after_its_last_chunk_and_following_bytes_are_left() {
        for body in [
            &b"0\r\n\r\n"[..],
            b"5\r\nhello\r\n0\r\n\r\n",
            b"A\r\n0\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n",
            b"1;a=b\r\nx\r\n000\r\n\r\n",
            b"1 \r\nx\r\n0\r\n\r\n",
            b"1\r\nx\r\n0\r\nA: b\r\nC: d\r\n\r\n",
        ] {
            check(body, Ok((body.len(), true)));
            check(&[body, b"GET / HTTP/1.1\r\n\r\n"].concat(), Ok((body.len(), true)));
            for cut in 0..body.len() {
                let (used, is_at_end) = in_pieces(&body[..cut], 1).unwrap();
                assert!(used <= cut && !is_at_end, "{cut}");
            }
        }
    }

    #[test]
    fn ambiguous_chunks_are_refused() {
        let long = [&b"1;"[..], &[b'a'; 100], b"\r\nx\r\n0\r\n\r\n"].concat();
        let trailers = [&b"0\r\n"[..], &[b'a'; 5000], b"\r\n\r\n"].concat();
        let many_trailers = [&b"0\r\n"[..], &b"abcdefgh\r\n".repeat(600), b"\r\n"].concat();
        for body in [
            &b"\r\n"[..],
            b"x\r\n",
            b"-1\r\n",
            b"+1\r\nx\r\n",
            b"0x1\r\nx\r\n",
            b";a\r\n",
            b" 1\r\nx\r\n",
            b"1\nx\n0\n\n",
            b"1\r\rx\r\n",
            b"1;a\nb\r\nx",
            b"1;a\rb\r\nx",
            b"0000000000000001\r\nx\r\n",
            b"ffffffffffffffff\r\nx\r\n",
            b"0\r\n\n",
            b"0\r\nA: b\n\r\n",
            &long,
            &trailers,
            &many_trailers,
        ] {
            check(body, Err(ChunkError::Malformed));
        }
        // What follows a chunk's data is counted here, and checked by hyper.
        check(b"1\r\nxy\r\n", Err(ChunkError::Malformed));
    }

    #[test]
    fn many_chunks_need_a_minimum_average_length() {
        let body = |count: usize, length: usize| {
            let chunk = format!("{length:x}\r\n{}\r\n", "x".repeat(length));
            [chunk.repeat(count).as_bytes(), b"0\r\n\r\n"].concat()
        };
        for good in [body(1000, 1), body(5000, 65)] {
            check(&good, Ok((good.len(), true)));
        }
        check(&body(1025, 1), Err(ChunkError::TooSmall));
        check(&body(5000, 63), Err(ChunkError::TooSmall));
    }
}
