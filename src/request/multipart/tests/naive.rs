//! The grammar once more, with the whole body before it, no thought of speed, and no code shared
//! with the parser: what both agree on is either right or misunderstood twice.

use super::{
    Broken, MAX_EPILOGUE_BYTES, MAX_HEADER_BYTES, MAX_HEADER_LINES, MAX_PARTS, MAX_PREAMBLE_BYTES, Part,
};

/// What stands at one place of the text.
enum Mark {
    /// A boundary; its line goes on at the offset.
    Next(usize),
    /// The closing boundary; its line goes on at the offset.
    Close(usize),
}

pub(super) fn parse(boundary: &[u8], body: &[u8]) -> Result<Vec<Part>, Broken> {
    // With a line end before it, the body's first boundary is like any other.
    let text = [b"\r\n", body].concat();
    let (start, mut mark) = first_mark(&text, 0, boundary).ok_or(Broken::NoFirstBoundary)?;
    if start > MAX_PREAMBLE_BYTES + 2 {
        return Err(Broken::NoFirstBoundary);
    }
    let mut parts = Vec::new();
    loop {
        let at = match mark {
            Mark::Close(at) => return tail(&text[at..]).map(|()| parts),
            Mark::Next(at) => at,
        };
        if parts.len() == MAX_PARTS {
            return Err(Broken::TooManyParts);
        }
        let (name, data) = head(&text, at)?;
        // The empty line's own end may be a boundary's.
        let (end, next) = first_mark(&text, data - 2, boundary).ok_or(Broken::Truncated)?;
        parts.push((name, text[data..end.max(data)].to_vec()));
        mark = next;
    }
}

fn first_mark(text: &[u8], from: usize, boundary: &[u8]) -> Option<(usize, Mark)> {
    (from..text.len()).find_map(|at| mark_at(text, at, boundary).map(|mark| (at, mark)))
}

fn mark_at(text: &[u8], at: usize, boundary: &[u8]) -> Option<Mark> {
    let end = at + 4 + boundary.len();
    let rest = text[at..].strip_prefix(b"\r\n--")?.strip_prefix(boundary)?;
    let ends = |byte: Option<&u8>| byte.is_some_and(|byte| b" \t\r\n".contains(byte));
    if let Some(after) = rest.strip_prefix(b"--") {
        return (after.is_empty() || ends(after.first())).then_some(Mark::Close(end + 2));
    }
    ends(rest.first()).then_some(Mark::Next(end))
}

/// The name of the part and where its data begins.
fn head(text: &[u8], from: usize) -> Result<(Option<Vec<u8>>, usize), Broken> {
    let mut lines: Vec<&[u8]> = Vec::new();
    let mut at = from;
    loop {
        let line = text[at..].split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
        at += line.len();
        if at - from > MAX_HEADER_BYTES {
            return Err(Broken::HeadersTooLong);
        }
        if !line.ends_with(b"\n") {
            return Err(Broken::Truncated);
        }
        let bare = line.strip_suffix(b"\r\n").filter(|line| !line.contains(&b'\r'));
        if at - line.len() == from {
            if !bare.is_some_and(|line| line.iter().all(|byte| b" \t".contains(byte))) {
                return Err(Broken::BoundaryLine);
            }
            continue;
        }
        let bare = bare.ok_or(Broken::LineEnd)?;
        if bare.is_empty() {
            return name(&lines).map(|name| (name, at));
        }
        lines.push(bare);
        if lines.len() > MAX_HEADER_LINES {
            return Err(Broken::TooManyHeaders);
        }
    }
}

fn name(lines: &[&[u8]]) -> Result<Option<Vec<u8>>, Broken> {
    let mut disposition: Option<Vec<u8>> = None;
    // A line that begins with a blank goes on with the one before.
    let mut whole: Vec<Vec<u8>> = Vec::new();
    for line in lines {
        if (line.starts_with(b" ") || line.starts_with(b"\t")) && !whole.is_empty() {
            let before = whole.pop().unwrap_or_default();
            whole.push([&before, *line].concat());
        } else {
            whole.push(line.to_vec());
        }
    }
    for line in &whole {
        let line: Vec<char> = line.iter().map(|byte| char::from(*byte)).collect();
        let colon = line.iter().position(|letter| *letter == ':').ok_or(Broken::HeaderLine)?;
        let header: String = line[..colon].iter().collect();
        let value: String = line[colon + 1..].iter().collect();
        let value = value.trim_matches([' ', '\t']);
        let separators = "()<>@,;:\\\"/[]?={} \t";
        let is_word = |letter: char| letter.is_ascii_graphic() && !separators.contains(letter);
        let is_odd = |letter: char| (letter.is_ascii_control() && letter != '\t') || letter == '\u{7f}';
        if header.is_empty() || !header.chars().all(is_word) || value.chars().any(is_odd) {
            return Err(Broken::HeaderLine);
        }
        let small = value.to_ascii_lowercase();
        match header.to_ascii_lowercase().as_str() {
            "content-disposition" if disposition.is_some() => return Err(Broken::Disposition),
            "content-disposition" => disposition = Some(value.chars().map(|letter| letter as u8).collect()),
            "content-type" if small.starts_with("multipart/") => return Err(Broken::Nested),
            "content-transfer-encoding" if !["7bit", "8bit", "binary"].contains(&small.as_str()) => {
                return Err(Broken::TransferEncoding);
            }
            _ => {}
        }
    }
    let Some(disposition) = disposition else { return Ok(None) };
    let mut names = Vec::new();
    let pieces = split_unquoted(&disposition).ok_or(Broken::Disposition)?;
    for piece in &pieces[1..] {
        let piece = blank_trimmed(piece);
        if piece.is_empty() {
            continue;
        }
        let equals = piece.iter().position(|byte| *byte == b'=').ok_or(Broken::Disposition)?;
        let (key, value) = (&piece[..equals], &piece[equals + 1..]);
        let is_word = |byte: &u8| byte.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(byte);
        if key.is_empty() || !key.iter().all(is_word) {
            return Err(Broken::Disposition);
        }
        let value = plain(value, is_file_name(key)).ok_or(Broken::Disposition)?;
        if key.eq_ignore_ascii_case(b"name") {
            names.push(value);
        }
    }
    if names.len() > 1 {
        return Err(Broken::Disposition);
    }
    let is_form_data = blank_trimmed(&pieces[0]).eq_ignore_ascii_case(b"form-data");
    Ok(names.pop().filter(|_| is_form_data))
}

/// Pieces between the semicolons that are in no quotes. Quotes begin only right after `=`.
fn split_unquoted(text: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut pieces = vec![Vec::new()];
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        let piece = pieces.last_mut()?;
        // Before the first semicolon there is no parameter to have a value.
        if byte == b';' {
            pieces.push(Vec::new());
            continue;
        }
        piece.push(byte);
        let opens = byte == b'"'
            && piece.iter().filter(|byte| **byte == b'=').count() == 1
            && piece.ends_with(b"=\"");
        if opens && pieces.len() > 1 {
            let piece = pieces.last_mut()?;
            loop {
                let inner = bytes.next()?;
                piece.push(inner);
                let rest: Vec<u8> = bytes.clone().collect();
                match inner {
                    b'"' if is_file_name(&piece[..piece.iter().position(|byte| *byte == b'=')?])
                        && !is_over(&rest) => {}
                    b'"' => break,
                    b'\\' => piece.push(bytes.next()?),
                    _ => {}
                }
            }
        }
    }
    Some(pieces)
}

fn is_file_name(key: &[u8]) -> bool {
    blank_trimmed(key).eq_ignore_ascii_case(b"filename")
}

/// Is there nothing more of a parameter?
fn is_over(rest: &[u8]) -> bool {
    blank_trimmed(rest).first().is_none_or(|byte| *byte == b';')
}

/// A value without its quotes, if it has any; `None` when it has some elsewhere, but for a file name.
fn plain(value: &[u8], is_file_name: bool) -> Option<Vec<u8>> {
    if !value.starts_with(b"\"") {
        return (is_file_name || !value.contains(&b'"')).then(|| blank_trimmed(value).to_vec());
    }
    let mut out = Vec::new();
    let mut at = 1;
    while value[at] != b'"' || (is_file_name && !is_over(&value[at + 1..])) {
        at += usize::from(value[at] == b'\\');
        out.push(value[at]);
        at += 1;
    }
    blank_trimmed(&value[at + 1..]).is_empty().then_some(out)
}

fn blank_trimmed(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

fn tail(text: &[u8]) -> Result<(), Broken> {
    let blanks = text.iter().take_while(|byte| b" \t".contains(byte)).count();
    let rest = &text[blanks..];
    if blanks + usize::from(rest.starts_with(b"\r")) > MAX_EPILOGUE_BYTES {
        return Err(Broken::EpilogueTooLong);
    }
    match rest {
        [] | [b'\r'] => Ok(()),
        [b'\r', b'\n', ..] | [b'\n', ..] if text.len() > MAX_EPILOGUE_BYTES => Err(Broken::EpilogueTooLong),
        [b'\r', b'\n', ..] | [b'\n', ..] => Ok(()),
        _ => Err(Broken::BoundaryLine),
    }
}
