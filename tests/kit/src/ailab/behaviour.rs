//! What the fake does with a request instead of simply answering it: one script entry per request.

use std::time::Duration;

use super::mutation::Mutation;

/// What happens to one crop request that carries the right key.
///
/// A request is charged at the moment it has been received whole, before any waiting: a gateway that dies while the
/// answer is held has spent the money. [`Behaviour::charges`] says which entries charge.
#[derive(Clone, Debug, Default)]
pub enum Behaviour {
    /// A crop, at once.
    #[default]
    Success,
    /// A crop, after this long.
    Delay(Duration),
    /// A crop, but only once the test opens the gate: `FakeAilab::release` or `release_one`.
    Hold,
    /// A crop answered without `error_code`, `error_msg` and `status_code`, as the vendor's newer pages show it.
    NewEnvelope,
    /// A crop with fields nobody documented, in an unusual order, `retain_location` oddly spaced and negative.
    ExtraFields,
    /// A crop whose `data.url` is this instead of the result server's.
    UrlOverride(String),
    /// A crop, one byte of the answer per interval.
    Drip(Duration),
    /// The documented error envelope with this status and code, after the body has been read.
    Refuse {
        /// The HTTP status, which is also `error_code`.
        status: u16,
        /// A code of the vendor's table.
        code: String,
    },
    /// The same, sent after the head without reading the body; then the connection ends.
    RefuseEarly {
        /// The HTTP status, which is also `error_code`.
        status: u16,
        /// A code of the vendor's table.
        code: String,
    },
    /// The account is empty: 429 `ERROR_NOT_ENOUGH_CREDITS`.
    NoCredits,
    /// The key is refused although it is right: 401 `ERROR_USER_NOT_EXISTS`.
    KeyRefused,
    /// Flow control: 429 `EXCEEDING_LIMITS` or 503 `AI_SERVICE_FLOW_RESTRICTION`, with or without `Retry-After` seconds.
    FlowLimit {
        /// 429 or 503.
        status: u16,
        /// The value of `Retry-After`.
        retry_after: Option<u64>,
    },
    /// Any status and body: HTML, bare, truncated JSON, 200 with an error code, no URL, huge, deep, duplicate keys.
    Raw {
        /// The HTTP status.
        status: u16,
        /// The Content-Type; empty sends none.
        content_type: String,
        /// The body, with a Content-Length that fits it.
        body: Vec<u8>,
        /// Whether the vendor took its money all the same.
        charged: bool,
    },
    /// These bytes instead of an answer, head and all, then the connection ends: interim storms, 101, gzip, trailers, extra bytes. Charged.
    Bytes(Vec<u8>),
    /// A crop answered with this text, in which `{url}`, `{width}` and `{height}` stand for what was sold, and the
    /// response changed in this way.
    Mutated(String, Mutation),
    /// A redirect (307) to here, not charged.
    Redirect(String),
    /// The whole request is received, then the connection ends in order, without a byte.
    CutBeforeAnswer,
    /// The whole request is received and only this many bytes of the answer, head included, are sent.
    CutMidAnswer(usize),
    /// The same bytes of the answer are sent, and then nothing more; the connection stays open as long as the peer keeps it.
    StallMidAnswer(usize),
    /// The whole request is received and nothing is ever said; the connection stays open as long as the peer keeps it.
    NeverAnswer,
    /// The connection is reset once this many body bytes have arrived. If the body is shorter, the request counts as received.
    ResetDuringUpload(usize),
}

impl Behaviour {
    /// The error envelope with a code of the vendor's table.
    pub fn refuse(status: u16, code: &str) -> Behaviour {
        Behaviour::Refuse { status, code: code.to_owned() }
    }

    /// Any body with any status; a 2xx is charged, anything else is not.
    pub fn raw(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Behaviour {
        let charged = (200..300).contains(&status);
        Behaviour::Raw { status, content_type: content_type.to_owned(), body: body.into(), charged }
    }

    /// Whether a whole, valid request is paid for under this entry.
    pub fn charges(&self) -> bool {
        match self {
            Behaviour::Success
            | Behaviour::Delay(_)
            | Behaviour::Hold
            | Behaviour::NewEnvelope
            | Behaviour::ExtraFields
            | Behaviour::UrlOverride(_)
            | Behaviour::Drip(_)
            | Behaviour::Bytes(_)
            | Behaviour::Mutated(..)
            | Behaviour::CutBeforeAnswer
            | Behaviour::CutMidAnswer(_)
            | Behaviour::StallMidAnswer(_)
            | Behaviour::NeverAnswer
            | Behaviour::ResetDuringUpload(_) => true,
            Behaviour::Raw { charged, .. } => *charged,
            Behaviour::Refuse { .. }
            | Behaviour::RefuseEarly { .. }
            | Behaviour::NoCredits
            | Behaviour::KeyRefused
            | Behaviour::FlowLimit { .. }
            | Behaviour::Redirect(_) => false,
        }
    }
}

/// What the result server does with one request for a picture.
#[derive(Clone, Debug, Default)]
pub enum ResultBehaviour {
    /// The picture.
    #[default]
    Serve,
    /// 404 with the object store's XML.
    NotFound,
    /// 403 with the object store's XML, as for an expired signature.
    Forbidden,
    /// 200 and a web page.
    Html,
    /// The picture's length is declared, this many bytes are sent, the connection ends.
    Truncate(usize),
    /// The same, but the connection stays open in silence as long as the peer keeps it.
    Stall(usize),
    /// More bytes are sent than declared: the picture, then this many more.
    LongerThanDeclared(usize),
    /// Chunks for ever, beginning with the picture.
    Endless,
    /// A declared length of this many bytes, and zeros after the picture up to it.
    TooLarge(u64),
    /// The picture in pieces of so many bytes, one per interval.
    Drip {
        /// Bytes per piece.
        bytes: usize,
        /// Time between pieces.
        every: Duration,
    },
    /// A redirect (302) to here.
    Redirect(String),
    /// The picture in a response changed in this way.
    Mutated(Mutation),
    /// The head is read and nothing is ever said.
    Hang,
    /// The connection is reset after the request.
    Reset,
    /// The picture under this Content-Type; empty sends none.
    ContentType(String),
    /// A picture of another size than was paid for.
    WrongSize(u32, u32),
    /// Any answer at all.
    Raw {
        /// The HTTP status.
        status: u16,
        /// Header lines besides Content-Length.
        headers: Vec<(String, String)>,
        /// The body.
        body: Vec<u8>,
    },
}
