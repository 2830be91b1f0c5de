//! The boundary in a `Content-Type`, and the headers of a part (RFC 2046, RFC 7578, RFC 9110 section 5.6). Of a
//! part's headers only the field name is kept; the others are checked, so that no other program reads another form.
//! Stricter than the RFCs: a repeated parameter is refused. More lenient, because clients write it and the meaning is
//! clear: folded lines, and unescaped quotes in a file name.

use std::borrow::Cow;

use super::Broken;

/// The limit of RFC 2046.
const MAX_BOUNDARY_BYTES: usize = 70;

/// Without the dashes before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boundary(Vec<u8>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ContentTypeError {
    #[error("the request has no Content-Type; send image, width and height as multipart/form-data")]
    Absent,
    #[error("the request has more than one Content-Type header; send exactly one")]
    Repeated,
    #[error(
        "the Content-Type is not multipart/form-data; send image, width and height as the fields of such a form"
    )]
    NotFormData,
    #[error("the parameters of the Content-Type cannot be read; let the HTTP library set this header")]
    Malformed,
    #[error("the Content-Type has no boundary parameter; let the HTTP library set this header")]
    NoBoundary,
    #[error("the Content-Type has two boundary parameters; send exactly one")]
    TwoBoundaries,
    #[error(
        "the boundary in the Content-Type must have 1 to 70 letters, digits or punctuation marks and not end in a space"
    )]
    BadBoundary,
}

impl Boundary {
    pub fn parse(content_type: &[u8]) -> Result<Self, ContentTypeError> {
        let end = memchr::memchr(b';', content_type).unwrap_or(content_type.len());
        let (media_type, parameters) = content_type.split_at(end);
        if !trim(media_type).eq_ignore_ascii_case(b"multipart/form-data") {
            return Err(ContentTypeError::NotFormData);
        }
        let mut boundary = None;
        for parameter in Parameters(parameters) {
            let Parameter { name, value, quoted } =
                parameter.map_err(|Malformed| ContentTypeError::Malformed)?;
            if !name.eq_ignore_ascii_case(b"boundary") {
                continue;
            }
            // A proxy joined two headers with a comma.
            if !quoted && value.iter().copied().any(is_blank) {
                return Err(ContentTypeError::Malformed);
            }
            if boundary.replace(value).is_some() {
                return Err(ContentTypeError::TwoBoundaries);
            }
        }
        let boundary = boundary.ok_or(ContentTypeError::NoBoundary)?.into_owned();
        let fits = (1..=MAX_BOUNDARY_BYTES).contains(&boundary.len());
        if fits && boundary.last() != Some(&b' ') && boundary.iter().copied().all(is_boundary_byte) {
            Ok(Self(boundary))
        } else {
            Err(ContentTypeError::BadBoundary)
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The field name in the header lines of one part; `None` if it is no named field of a form.
pub(super) fn field_name(head: &[u8]) -> Result<Option<Vec<u8>>, Broken> {
    let mut disposition = None;
    for line in unfolded(head) {
        let line = &*line;
        let colon = memchr::memchr(b':', line).ok_or(Broken::HeaderLine)?;
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        let is_text = |byte: &u8| !byte.is_ascii_control() || *byte == b'\t';
        if name.is_empty() || !name.iter().copied().all(is_token_byte) || !value.iter().all(is_text) {
            return Err(Broken::HeaderLine);
        }
        if name.eq_ignore_ascii_case(b"Content-Disposition") {
            if disposition.replace(value.to_vec()).is_some() {
                return Err(Broken::Disposition);
            }
        } else if name.eq_ignore_ascii_case(b"Content-Type") {
            if value.get(..10).is_some_and(|start| start.eq_ignore_ascii_case(b"multipart/")) {
                return Err(Broken::Nested);
            }
        } else if name.eq_ignore_ascii_case(b"Content-Transfer-Encoding")
            && ![&b"7bit"[..], b"8bit", b"binary"].iter().any(|plain| value.eq_ignore_ascii_case(plain))
        {
            return Err(Broken::TransferEncoding);
        }
    }
    disposition.map_or(Ok(None), |disposition| name_parameter(&disposition))
}

/// The lines of a head, each with its continuation lines, which begin with a blank.
fn unfolded(head: &[u8]) -> Vec<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> = Vec::new();
    for line in head.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r\n").unwrap_or(line);
        match lines.last_mut() {
            Some(folded) if line.first().copied().is_some_and(is_blank) => folded.extend_from_slice(line),
            _ => lines.push(line.to_vec()),
        }
    }
    lines
}

/// The `name` of a `Content-Disposition`; all other parameters are ignored.
fn name_parameter(disposition: &[u8]) -> Result<Option<Vec<u8>>, Broken> {
    let end = memchr::memchr(b';', disposition).unwrap_or(disposition.len());
    let (kind, parameters) = disposition.split_at(end);
    let mut found = None;
    for parameter in Parameters(parameters) {
        let Parameter { name, value, .. } = parameter.map_err(|Malformed| Broken::Disposition)?;
        if name.eq_ignore_ascii_case(b"name") && found.replace(value).is_some() {
            return Err(Broken::Disposition);
        }
    }
    Ok(found.filter(|_| trim(kind).eq_ignore_ascii_case(b"form-data")).map(Cow::into_owned))
}

/// Parameters after a value: `; name=value; name="quoted \" value"`.
struct Parameters<'a>(&'a [u8]);

struct Parameter<'a> {
    name: &'a [u8],
    value: Cow<'a, [u8]>,
    quoted: bool,
}

struct Malformed;

impl<'a> Iterator for Parameters<'a> {
    type Item = Result<Parameter<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        // RFC 9110 allows empty parameters, such as a semicolon at the end.
        let mut rest = trim_start(self.0);
        while let Some(after) = rest.strip_prefix(b";") {
            rest = trim_start(after);
        }
        if rest.is_empty() {
            return None;
        }
        Some(self.parameter(rest).ok_or(Malformed))
    }
}

impl<'a> Parameters<'a> {
    fn parameter(&mut self, text: &'a [u8]) -> Option<Parameter<'a>> {
        let equals = text.iter().position(|byte| !is_token_byte(*byte))?;
        let (name, rest) = text.split_at(equals);
        let rest = rest.strip_prefix(b"=").filter(|_| !name.is_empty())?;
        let is_file_name = name.eq_ignore_ascii_case(b"filename");
        if let Some(quoted) = rest.strip_prefix(b"\"") {
            let (value, rest) = unquote(quoted, is_file_name)?;
            self.0 = trim_start(rest);
            return ends_value(rest).then_some(Parameter { name, value: Cow::Owned(value), quoted: true });
        }
        // Some clients quote neither a file name with spaces nor a boundary with slashes.
        let end = memchr::memchr(b';', rest).unwrap_or(rest.len());
        let (value, rest) = rest.split_at(end);
        self.0 = rest;
        let value = Cow::Borrowed(trim(value));
        (is_file_name || !value.contains(&b'"')).then_some(Parameter { name, value, quoted: false })
    }
}

/// Returns the value, and the text after its closing quote. In a file name, only one at the parameter's end closes.
fn unquote(text: &[u8], is_file_name: bool) -> Option<(Vec<u8>, &[u8])> {
    let mut value = Vec::new();
    let mut from = 0;
    loop {
        let at = from + memchr::memchr2(b'"', b'\\', &text[from..])?;
        value.extend_from_slice(&text[from..at]);
        let rest = &text[at + 1..];
        if text[at] == b'\\' {
            value.push(*rest.first()?);
            from = at + 2;
        } else if is_file_name && !ends_value(rest) {
            value.push(b'"');
            from = at + 1;
        } else {
            return Some((value, rest));
        }
    }
}

fn ends_value(rest: &[u8]) -> bool {
    matches!(trim_start(rest), [] | [b';', ..])
}

fn trim_start(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|byte| !is_blank(*byte)).unwrap_or(text.len());
    &text[start..]
}

/// Removes surrounding spaces and tabs.
pub(crate) fn trim(text: &[u8]) -> &[u8] {
    let end = text.iter().rposition(|byte| !is_blank(*byte)).map_or(0, |last| last + 1);
    trim_start(&text[..end])
}

pub(super) fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The characters of RFC 2046 and those of a token: `*****` is a boundary in wide use.
fn is_boundary_byte(byte: u8) -> bool {
    is_token_byte(byte) || b"(),/:=? ".contains(&byte)
}
