//! Reads `multipart/form-data` (RFC 2046, RFC 7578) as it arrives, in pieces of any size.
//!
//! The caller pushes bytes in and gets [`Event`]s out; how the bytes were cut never changes what
//! comes out. The data of a part is handed on where it lies, uncopied; kept between two pieces are
//! at most the beginning of a boundary and the header lines of one part. Everything a client could
//! make long is limited, and what two programs might read differently is refused: this module
//! decides what a form is, `request` what its fields mean.
//!
//! This module never performs I/O and never looks into a part's data.

mod header;
#[cfg(test)]
mod tests;

use memchr::memmem::Finder;

pub(crate) use header::trim;
pub use header::{Boundary, ContentTypeError};

/// The most parts a form may have.
pub const MAX_PARTS: usize = 128;
/// The most header lines a part may have.
pub const MAX_HEADER_LINES: usize = 8;
/// The most bytes between a part's boundary and its data: padding, header lines and all line ends.
pub const MAX_HEADER_BYTES: usize = 4096;
/// The most bytes before the first boundary.
pub const MAX_PREAMBLE_BYTES: usize = 1024;
/// The most bytes after the closing boundary, line ends included.
pub const MAX_EPILOGUE_BYTES: usize = 1024;

/// What a boundary at the start of a line may be followed by before its meaning is known: `--` and
/// one byte more.
const LOOK_AHEAD: usize = 3;

/// What was found in a form, in the order of its bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The headers of a part are read.
    PartStart {
        /// The field's name, unquoted; `None` when the part names no field of a form.
        name: Option<&'a [u8]>,
    },
    /// The next bytes of the part's data, never empty.
    Data(&'a [u8]),
    PartEnd,
}

/// Takes the events; its first error ends the reading.
pub type Sink<'a, E> = &'a mut dyn FnMut(Event<'_>) -> Result<(), E>;

/// Why a body is not a well-formed form. Completes the sentence "the multipart body cannot be read: ".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// No boundary where there should be the first one.
    #[error("the boundary named in the Content-Type does not start a line in its first {max} bytes", max = MAX_PREAMBLE_BYTES)]
    NoFirstBoundary,
    /// The body is over before the closing boundary.
    #[error("it ends before its closing boundary")]
    Truncated,
    /// A boundary and blanks, and then neither a line end nor the end of the body.
    #[error("a boundary is followed by something else on its line")]
    BoundaryLine,
    #[error("it has more than {max} parts", max = MAX_PARTS)]
    TooManyParts,
    /// Too many header lines in a part.
    #[error("a part has more than {max} header lines", max = MAX_HEADER_LINES)]
    TooManyHeaders,
    /// Too many bytes of headers in a part.
    #[error("the headers of a part have more than {max} bytes", max = MAX_HEADER_BYTES)]
    HeadersTooLong,
    /// A line feed or a carriage return of its own.
    #[error("a header line of a part does not end in CRLF")]
    LineEnd,
    /// A header line that is not `name: value`, or has control characters.
    #[error("a header line of a part is not of the form \"name: value\"")]
    HeaderLine,
    /// A `Content-Disposition` that cannot be read, or given twice, or with two names.
    #[error("the Content-Disposition of a part is ambiguous or not of the form form-data; name=\"...\"")]
    Disposition,
    #[error("a part is itself of a multipart type")]
    Nested,
    /// A part in base64 or the like.
    #[error("a part has a Content-Transfer-Encoding other than 7bit, 8bit or binary")]
    TransferEncoding,
    /// Too much after the closing boundary.
    #[error("more than {max} bytes follow its closing boundary", max = MAX_EPILOGUE_BYTES)]
    EpilogueTooLong,
}

/// Where in the form the next byte belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Preamble,
    Head,
    Data,
    /// Behind the closing boundary, on its line.
    Tail,
    /// Between that line's carriage return and its line feed.
    TailEnd,
    Epilogue,
}

/// A form being read. After an error there is nothing more to be had from it.
pub struct Parser {
    place: Place,
    /// Finds CRLF, two dashes and the boundary.
    delimiter: Finder<'static>,
    /// What may be the beginning of a delimiter, at most its length and [`LOOK_AHEAD`].
    held: Vec<u8>,
    /// How much at the start of `held` is a line end that belongs to what came before. The first
    /// boundary needs no line end of its own, nor does one right after the headers.
    borrowed: usize,
    /// The complete lines after a boundary, and then the incomplete one.
    head: Vec<u8>,
    /// Where in `head` the incomplete line begins.
    line: usize,
    /// How many complete lines `head` has, that of the boundary included.
    lines: usize,
    parts: usize,
    preamble: usize,
    epilogue: usize,
}

/// What a window on the bytes contains.
enum Scan {
    /// A delimiter at `at`; what follows it begins at `end`.
    Found { at: usize, end: usize, closing: bool },
    /// None, but after `clear` bytes one may be beginning.
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

    /// Reads the next bytes and hands on what they complete.
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

    /// Says that there are no more bytes. Success means that the form was complete.
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

    /// Looks for a delimiter in bytes that nothing held precedes.
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

    /// Looks for a delimiter that begins where what is held does, with as many bytes more as that
    /// can take. It cannot begin later: a delimiter has one carriage return, its first byte.
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
            // What was added is searched where it lies.
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

    /// Looks for the first delimiter. A boundary at the start of a line is one when a line end, a
    /// blank or `--` follows it, the latter again before a line end, a blank or the end of the body.
    /// Else it is the beginning of a longer line, and data.
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
        // With one carriage return in a delimiter, only the last one in the window can begin a cut one.
        let tail = window.len().saturating_sub(length - 1);
        let clear = memchr::memrchr(b'\r', &window[tail..])
            .map(|found| tail + found)
            .filter(|at| self.delimiter.needle().starts_with(&window[*at..]));
        Scan::Not { clear: clear.unwrap_or(window.len()) }
    }

    /// Hands on bytes that are no delimiter.
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
        self.line = 0;
        self.lines = 0;
        self.borrowed = 0;
        self.place = if closing { Place::Tail } else { Place::Head };
        if !closing {
            self.parts += 1;
            if self.parts > MAX_PARTS {
                return Err(Broken::TooManyParts.into());
            }
        }
        Ok(())
    }

    /// Reads up to the next line end: first what is left of the boundary's line, then the headers,
    /// then the empty line after them.
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

    /// Reads one byte of what is left of the closing boundary's line.
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
