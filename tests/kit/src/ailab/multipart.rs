//! A strict multipart reader for a body that is already whole: what a careful server would accept, and nothing else.
//!
//! Written here rather than taken from a crate so that a body the gateway builds is judged by different code
//! than the code that reads its clients' bodies.

use bytes::Bytes;

/// One part of a form, as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenPart {
    /// The `name` parameter of its Content-Disposition.
    pub name: String,
    /// The `filename` parameter, if there was one.
    pub filename: Option<String>,
    /// Its Content-Type, if it had one.
    pub content_type: Option<String>,
    /// Every header line of the part, in order.
    pub headers: Vec<(String, String)>,
    /// Its content.
    pub bytes: Bytes,
}

/// Reads the parts of `body`, up to and with the closing boundary and nothing but a line end after it.
///
/// # Errors
///
/// A sentence that says what is wrong with the body.
pub fn parse(content_type: &str, body: &Bytes) -> Result<Vec<SeenPart>, String> {
    let boundary = boundary(content_type)?;
    let delimiter = format!("--{boundary}");
    if !body.starts_with(delimiter.as_bytes()) {
        return Err("the body does not begin with the boundary".to_owned());
    }
    let mut at = delimiter.len();
    let mut parts = Vec::new();
    let separator = format!("\r\n{delimiter}");
    loop {
        let rest = &body[at..];
        if let Some(after) = rest.strip_prefix(b"--") {
            return match after {
                b"" | b"\r\n" => Ok(parts),
                _ => Err("there are bytes after the closing boundary".to_owned()),
            };
        }
        if !rest.starts_with(b"\r\n") {
            return Err("the boundary is not followed by a line end".to_owned());
        }
        // The search starts at the line end itself, because a part may have no headers at all.
        let head_end = memchr::memmem::find(rest, b"\r\n\r\n").ok_or("a part's headers do not end")?;
        let content = at + head_end + 4;
        let length = memchr::memmem::find(&body[content..], separator.as_bytes())
            .ok_or("the closing boundary is missing")?;
        parts.push(part(&rest[2..head_end.max(2)], body.slice(content..content + length))?);
        at = content + length + separator.len();
    }
}

fn boundary(content_type: &str) -> Result<&str, String> {
    let mut pieces = content_type.split(';').map(str::trim);
    if !pieces.next().is_some_and(|kind| kind.eq_ignore_ascii_case("multipart/form-data")) {
        return Err(format!("not a form: {content_type:?}"));
    }
    let mut found = pieces.filter_map(|p| {
        let (name, value) = p.split_once('=')?;
        name.eq_ignore_ascii_case("boundary").then(|| value.trim_matches('"'))
    });
    match (found.next(), found.next()) {
        (Some(one), None) if (1..=70).contains(&one.len()) => Ok(one),
        _ => Err(format!("not exactly one usable boundary: {content_type:?}")),
    }
}

fn part(head: &[u8], bytes: Bytes) -> Result<SeenPart, String> {
    let head = std::str::from_utf8(head).map_err(|_| "a part's headers are not UTF-8")?;
    let headers = head
        .split("\r\n")
        .map(|line| match line.split_once(':') {
            Some((name, value)) => Ok((name.to_owned(), value.trim().to_owned())),
            None => Err(format!("not a part header: {line:?}")),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let find = |wanted: &str| {
        headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.clone())
    };
    let disposition = find("content-disposition").ok_or("a part has no Content-Disposition")?;
    Ok(SeenPart {
        name: parameter(&disposition, "name").ok_or("a part has no name")?,
        filename: parameter(&disposition, "filename"),
        content_type: find("content-type"),
        headers,
        bytes,
    })
}

fn parameter(disposition: &str, wanted: &str) -> Option<String> {
    disposition.split(';').skip(1).find_map(|piece| {
        let (name, value) = piece.trim().split_once('=')?;
        name.eq_ignore_ascii_case(wanted).then(|| value.trim_matches('"').to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: &str = "multipart/form-data; boundary=b";

    fn check(body: &'static str, expected: Result<Vec<(&str, &str)>, &str>) {
        let parsed = parse(FORM, &Bytes::from_static(body.as_bytes()));
        match (&parsed, expected) {
            (Ok(parts), Ok(wanted)) => {
                let got: Vec<_> =
                    parts.iter().map(|p| (p.name.as_str(), std::str::from_utf8(&p.bytes).unwrap())).collect();
                assert_eq!(got, wanted, "{body:?}");
            }
            (Err(why), Err(word)) => assert!(why.contains(word), "{body:?}: {why}"),
            _ => panic!("{body:?}: {parsed:?}"),
        }
    }

    #[test]
    fn a_form_is_read_to_its_closing_boundary_and_no_further() {
        check(
            "--b\r\nContent-Disposition: form-data; name=\"width\"\r\n\r\n4\r\n--b--\r\n",
            Ok(vec![("width", "4")]),
        );
        check("--b\r\nContent-Disposition: form-data; name=width\r\n\r\n\r\n--b--", Ok(vec![("width", "")]));
        check("--b\r\nContent-Disposition: form-data; name=w\r\n\r\n4\r\n--b", Err("line end"));
        check("--b\r\nContent-Disposition: form-data; name=w\r\n\r\n4\r\n--b-", Err("line end"));
        check("--b\r\nContent-Disposition: form-data; name=w\r\n\r\n4\r\n", Err("closing boundary"));
        check("--b\r\nContent-Disposition: form-data; name=w\r\n\r\n4\r\n--b--x", Err("after"));
        check("--b\r\nContent-Disposition: form-data\r\n\r\n4\r\n--b--", Err("no name"));
        check("x--b\r\n", Err("begin"));
        check("", Err("begin"));
    }

    #[test]
    fn one_boundary_is_wanted() {
        let body = Bytes::from_static(b"--b--");
        assert!(parse("multipart/form-data; boundary=\"b\"", &body).is_ok());
        assert!(parse("multipart/form-data; boundary=b; boundary=c", &body).is_err());
        assert!(parse("multipart/form-data", &body).is_err());
        assert!(parse("application/json; boundary=b", &body).is_err());
    }
}
