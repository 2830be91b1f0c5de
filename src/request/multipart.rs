//! Reads `multipart/form-data` (RFC 2046, RFC 7578) from pieces of any size into [`Event`]s. Performs no I/O. The
//! events do not depend on how the bytes were cut. The data of a part is not copied; at most the beginning of a
//! boundary and the header lines of one part are kept between two pieces. All lengths are limited, and a form that
//! two programs might read differently is refused.

mod header;
#[cfg(test)]
mod tests;

use memchr::memmem::Finder;

pub(crate) use header::trim;
pub use header::{Boundary, ContentTypeError};

pub const MAX_PARTS: usize = 128;
/// In one part.
pub const MAX_HEADER_LINES: usize = 8;
/// Between a part's boundary and its data, with all line ends.
pub const MAX_HEADER_BYTES: usize = 4096;
/// Before the first boundary.
pub const MAX_PREAMBLE_BYTES: usize = 1024;
/// After the closing boundary, with its line end.
pub const MAX_EPILOGUE_BYTES: usize = 1024;

/// Bytes after a boundary that decide its meaning: `--` and one more.
const LOOK_AHEAD: usize = 3;

#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// `name` is unquoted; `None` if the part names no field of a form.
    PartStart {
        name: Option<&'a [u8]>,
    },
    /// Never empty.
    Data(&'a [u8]),
    PartEnd,
}

/// Takes the events. Its first error ends the reading.
pub type Sink<'a, E> = &'a mut dyn FnMut(Event<'_>) -> Result<(), E>;

/// Completes the sentence "the multipart body cannot be read: ".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("the boundary named in the Content-Type does not start a line in its first {max} bytes", max = MAX_PREAMBLE_BYTES)]
    NoFirstBoundary,
    #[error("it ends before its closing boundary")]
    Truncated,
    #[error("a boundary is followed by something else on its line")]
    BoundaryLine,
    #[error("it has more than {max} parts", max = MAX_PARTS)]
    TooManyParts,
    #[error("a part has more than {max} header lines", max = MAX_HEADER_LINES)]
    TooManyHeaders,
    #[error("the headers of a part have more than {max} bytes", max = MAX_HEADER_BYTES)]
    HeadersTooLong,
    #[error("a header line of a part does not end in CRLF")]
    LineEnd,
    /// Also a line with control characters.
    #[error("a header line of a part is not of the form \"name: value\"")]
    HeaderLine,
    #[error("the Content-Disposition of a part is ambiguous or not of the form form-data; name=\"...\"")]
    Disposition,
    #[error("a part is itself of a multipart type")]
    Nested,
    #[error("a part has a Content-Transfer-Encoding other than 7bit, 8bit or binary")]
    TransferEncoding,
    #[error("more than {max} bytes follow its closing boundary", max = MAX_EPILOGUE_BYTES)]
    EpilogueTooLong,
}

/// The place of the next byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Preamble,
    Head,
    Data,
    /// After the closing boundary, on its line.
    Tail,
    /// Between that line's carriage return and line feed.
    TailEnd,
    Epilogue,
}

/// Not usable after an error.
pub struct Parser {
    place: Place,
    /// CRLF, two dashes and the boundary.
    delimiter: Finder<'static>,
    /// The possible beginning of a delimiter, at most its length and [`LOOK_AHEAD`].
    held: Vec<u8>,
    /// Length of the line end at the start of `held` that is not data: the first boundary needs no line end
    /// of its own, nor does one right after the headers.
    borrowed: usize,
    /// The lines after a boundary.
    head: Vec<u8>,
    /// Start of the incomplete line in `head`.
    line: usize,
    /// Number of complete lines in `head`, with the boundary's.
    lines: usize,
    parts: usize,
    preamble: usize,
    epilogue: usize,
}

enum Scan {
    /// A delimiter from `at` to `end`.
    Found { at: usize, end: usize, closing: bool },
    /// None within `clear` bytes; after them one may begin.
    Not { clear: usize },
}

impl Parser {
    pub fn new(boundary: &Boundary) -> Self {
        let delimiter = [b"\r\n--", boundary.as_bytes()].concat();
        let mut held = Vec::with_capacity(delimiter.len() + LOOK_AHEAD);
        held.extend_from_slice(b"\r\n");
        Self {
            place: Place::Preamble,
            delimiter: Finder::new(&delimiter).into_owned(),
            held,
            borrowed: 2,
            head: Vec::new(),
            line: 0,
            lines: 0,
            parts: 0,
            preamble: 0,
            epilogue: 0,
        }
    }

    pub fn feed<E: From<Broken>>(&mut self, mut bytes: &[u8], sink: Sink<'_, E>) -> Result<(), E> {
        while !bytes.is_empty() {
            let read = match self.place {
                Place::Preamble | Place::Data if self.held.is_empty() => self.search(bytes, sink)?,
                Place::Preamble | Place::Data => self.search_held(bytes, sink)?,
                Place::Head => self.read_head(bytes, sink)?,
                Place::Tail | Place::TailEnd => self.read_tail(bytes[0])?,
                Place::Epilogue => self.count_epilogue(bytes.len())?,
            };
            bytes = &bytes[read..];
        }
        Ok(())
    }

    /// Ends the body. Success means that the form was complete.
    pub fn finish<E: From<Broken>>(mut self, sink: Sink<'_, E>) -> Result<(), E> {
        if let Place::Preamble | Place::Data = self.place
            && let Scan::Found { at: 0, closing: true, .. } = self.scan(&self.held, true)
        {
            self.delimiter_found(true, sink)?;
        }
        match self.place {
            Place::Tail | Place::TailEnd | Place::Epilogue => Ok(()),
            Place::Preamble => Err(Broken::NoFirstBoundary.into()),
            Place::Head | Place::Data => Err(Broken::Truncated.into()),
        }
    }

    /// Looks for a delimiter while nothing is held.
    fn search<E: From<Broken>>(&mut self, bytes: &[u8], sink: Sink<'_, E>) -> Result<usize, E> {
        match self.scan(bytes, false) {
            Scan::Found { at, end, closing } => {
                self.pass_on(&bytes[..at], sink)?;
                self.delimiter_found(closing, sink)?;
                Ok(end)
            }
            Scan::Not { clear } => {
                self.pass_on(&bytes[..clear], sink)?;
                self.held.extend_from_slice(&bytes[clear..]);
                Ok(bytes.len())
            }
        }
    }

    /// Looks for a delimiter that begins with the held bytes, not later: its only carriage return is its first byte.
    fn search_held<E: From<Broken>>(&mut self, bytes: &[u8], sink: Sink<'_, E>) -> Result<usize, E> {
        let before = self.held.len();
        let most = self.delimiter.needle().len() + LOOK_AHEAD;
        let taken = bytes.len().min(most - before);
        self.held.extend_from_slice(&bytes[..taken]);
        let mut held = std::mem::take(&mut self.held);
        let read = match self.scan(&held, false) {
            Scan::Not { clear: 0 } => {
                self.held = held;
                return Ok(taken);
            }
            Scan::Found { at: 0, end, closing } => {
                self.delimiter_found(closing, sink)?;
                end - before
            }
            // The added bytes are searched in `bytes`.
            Scan::Found { .. } | Scan::Not { .. } => {
                self.pass_on(&held[self.borrowed..before], sink)?;
                self.borrowed = 0;
                0
            }
        };
        held.clear();
        self.held = held;
        Ok(read)
    }

    /// Looks for the first delimiter: a boundary at the start of a line, before a line end, a blank, or a
    /// `--` that ends the body or stands before a line end or a blank. Otherwise it is data.
    fn scan(&self, window: &[u8], is_last: bool) -> Scan {
        let length = self.delimiter.needle().len();
        let ends_word = |byte: u8| matches!(byte, b'\r' | b'\n' | b' ' | b'\t');
        let mut from = 0;
        while let Some(found) = self.delimiter.find(&window[from..]) {
            let at = from + found;
            let end = at + length;
            match window[end..] {
                [b'-', b'-', next, ..] if ends_word(next) => {
                    return Scan::Found { at, end: end + 2, closing: true };
                }
                [b'-', b'-'] if is_last => return Scan::Found { at, end: end + 2, closing: true },
                [next, ..] if ends_word(next) => return Scan::Found { at, end, closing: false },
                [] | [b'-'] | [b'-', b'-'] => return Scan::Not { clear: at },
                _ => from = end,
            }
        }
        // Only the last carriage return can begin a cut delimiter, which has one.
        let tail = window.len().saturating_sub(length - 1);
        let clear = memchr::memrchr(b'\r', &window[tail..])
            .map(|found| tail + found)
            .filter(|at| self.delimiter.needle().starts_with(&window[*at..]));
        Scan::Not { clear: clear.unwrap_or(window.len()) }
    }

    /// Passes on bytes outside delimiters.
    fn pass_on<E: From<Broken>>(&mut self, bytes: &[u8], sink: Sink<'_, E>) -> Result<(), E> {
        if self.place == Place::Preamble {
            self.preamble += bytes.len();
            return if self.preamble > MAX_PREAMBLE_BYTES {
                Err(Broken::NoFirstBoundary.into())
            } else {
                Ok(())
            };
        }
        if bytes.is_empty() { Ok(()) } else { sink(Event::Data(bytes)) }
    }

    fn delimiter_found<E: From<Broken>>(&mut self, closing: bool, sink: Sink<'_, E>) -> Result<(), E> {
        if self.place == Place::Data {
            sink(Event::PartEnd)?;
        }
        self.head.clear();
        (self.line, self.lines, self.borrowed) = (0, 0, 0);
        self.place = if closing { Place::Tail } else { Place::Head };
        if !closing {
            self.parts += 1;
            if self.parts > MAX_PARTS {
                return Err(Broken::TooManyParts.into());
            }
        }
        Ok(())
    }

    /// Reads up to the next line end: the rest of the boundary's line, the headers, or the empty line after them.
    fn read_head<E: From<Broken>>(&mut self, bytes: &[u8], sink: Sink<'_, E>) -> Result<usize, E> {
        let read = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |end| end + 1);
        if self.head.len() + read > MAX_HEADER_BYTES {
            return Err(Broken::HeadersTooLong.into());
        }
        self.head.extend_from_slice(&bytes[..read]);
        let Some(line) = self.head[self.line..].strip_suffix(b"\n") else { return Ok(read) };
        let line = line.strip_suffix(b"\r").filter(|line| memchr::memchr(b'\r', line).is_none());
        if self.lines == 0 {
            line.filter(|line| line.iter().copied().all(header::is_blank)).ok_or(Broken::BoundaryLine)?;
        } else if line.ok_or(Broken::LineEnd)?.is_empty() {
            self.head_read(sink)?;
            return Ok(read);
        }
        self.lines += 1;
        self.line = self.head.len();
        if self.lines > 1 + MAX_HEADER_LINES { Err(Broken::TooManyHeaders.into()) } else { Ok(read) }
    }

    fn head_read<E: From<Broken>>(&mut self, sink: Sink<'_, E>) -> Result<(), E> {
        let first = memchr::memchr(b'\n', &self.head).map_or(0, |end| end + 1);
        let name = header::field_name(&self.head[first..self.line])?;
        sink(Event::PartStart { name: name.as_deref() })?;
        self.place = Place::Data;
        self.held.extend_from_slice(b"\r\n");
        self.borrowed = 2;
        Ok(())
    }

    fn read_tail(&mut self, byte: u8) -> Result<usize, Broken> {
        self.place = match (self.place, byte) {
            (Place::Tail, b' ' | b'\t') => Place::Tail,
            (Place::Tail, b'\r') => Place::TailEnd,
            (Place::Tail | Place::TailEnd, b'\n') => Place::Epilogue,
            _ => return Err(Broken::BoundaryLine),
        };
        self.count_epilogue(1)
    }

    fn count_epilogue(&mut self, more: usize) -> Result<usize, Broken> {
        self.epilogue += more;
        if self.epilogue > MAX_EPILOGUE_BYTES { Err(Broken::EpilogueTooLong) } else { Ok(more) }
    }
}
