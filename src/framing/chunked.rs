//! Where a chunked body ends. What passes here ends there for hyper too, or is refused by it.

/// Digits of a chunk's size.
const MAX_DIGITS: u32 = 16;
/// Bytes of what may follow the size on its line.
const MAX_EXTENSION: u32 = 64;
/// Bytes of all trailers together.
const MAX_TRAILERS: u32 = 4096;

/// The bytes are not chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadChunk;

/// Follows the chunks of one body.
#[derive(Clone, Debug)]
pub struct Chunks {
    state: State,
    size: u64,
    trailers: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size { digits: u32 },
    Extension { bytes: u32 },
    SizeLf,
    Data { left: u64 },
    DataCr,
    DataLf,
    LineStart,
    Trailer,
    TrailerLf,
    LastLf,
    End,
}

impl Default for Chunks {
    fn default() -> Self {
        Self { state: State::Size { digits: 0 }, size: 0, trailers: 0 }
    }
}

impl Chunks {
    /// How many of `bytes`, which follow those of the calls before, belong to the body.
    ///
    /// # Errors
    /// [`BadChunk`] when one of them cannot.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, BadChunk> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::End {
            if let State::Data { left } = self.state {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
                at += here;
                let left = left - here as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data { left } };
            } else {
                self.state = self.step(bytes[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    /// Has the last byte been seen?
    pub fn is_at_end(&self) -> bool {
        self.state == State::End
    }

    fn step(&mut self, byte: u8) -> Result<State, BadChunk> {
        match (self.state, byte) {
            (State::Size { digits: MAX_DIGITS }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => Err(BadChunk),
            (State::Size { digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = (byte as char).to_digit(16).ok_or(BadChunk)?;
                self.size = self.size << 4 | u64::from(digit);
                Ok(State::Size { digits: digits + 1 })
            }
            (State::Size { digits: 1.. } | State::Extension { .. }, b'\r') => Ok(State::SizeLf),
            (State::Size { digits: 1.. }, b';' | b' ' | b'\t') => Ok(State::Extension { bytes: 1 }),
            (State::Extension { bytes: MAX_EXTENSION }, _) => Err(BadChunk),
            (State::Extension { bytes }, byte) if byte != b'\n' => Ok(State::Extension { bytes: bytes + 1 }),
            (State::SizeLf, b'\n') => match std::mem::take(&mut self.size) {
                0 => Ok(State::LineStart),
                left => Ok(State::Data { left }),
            },
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Size { digits: 0 }),
            (State::LineStart, b'\r') => Ok(State::LastLf),
            (State::Trailer, b'\r') => Ok(State::TrailerLf),
            (State::LineStart | State::Trailer, byte) if byte != b'\n' && self.trailers < MAX_TRAILERS => {
                self.trailers += 1;
                Ok(State::Trailer)
            }
            (State::TrailerLf, b'\n') => Ok(State::LineStart),
            (State::LastLf, b'\n') => Ok(State::End),
            _ => Err(BadChunk),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `bytes` come to when they arrive in pieces of this size.
    fn in_pieces(bytes: &[u8], piece: usize) -> Result<(usize, bool), BadChunk> {
        let (mut chunks, mut used) = (Chunks::default(), 0);
        for piece in bytes.chunks(piece) {
            let here = chunks.advance(piece)?;
            used += here;
            if here < piece.len() {
                break;
            }
        }
        Ok((used, chunks.is_at_end()))
    }

    fn check(bytes: &[u8], expected: Result<(usize, bool), BadChunk>) {
        for piece in [1, 2, 3, 7, 1000] {
            assert_eq!(in_pieces(bytes, piece), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_body_ends_after_its_last_chunk_and_what_follows_is_not_its_own() {
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
                check(&body[..cut], Ok((cut, false)));
            }
        }
    }

    #[test]
    fn whatever_two_readers_might_understand_differently_is_no_chunk() {
        let long = [&b"1;"[..], &[b'a'; 100], b"\r\nx\r\n0\r\n\r\n"].concat();
        let trailers = [&b"0\r\n"[..], &[b'a'; 5000], b"\r\n\r\n"].concat();
        for body in [
            &b"\r\n"[..],
            b"x\r\n",
            b"-1\r\n",
            b"+1\r\nx\r\n",
            b"0x1\r\nx\r\n",
            b";a\r\n",
            b" 1\r\nx\r\n",
            b"1\nx\n0\n\n",
            b"1\r\nxy\r\n",
            b"1\r\nx\n",
            b"1\r\rx\r\n",
            b"1;a\nb\r\nx",
            b"00000000000000001\r\nx\r\n",
            b"0\r\n\n",
            b"0\r\nA: b\n\r\n",
            &long,
            &trailers,
        ] {
            check(body, Err(BadChunk));
        }
    }
}
