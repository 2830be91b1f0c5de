//! Heads, one line each.

use super::*;

fn head(lines: &str) -> Vec<u8> {
    format!("{}\r\n\r\n", lines.trim().replace('\n', "\r\n")).into_bytes()
}

fn check(lines: &str, expected: Result<BodyLength, HeadError>) {
    assert_eq!(judge(&head(lines)).map(|framing| framing.body), expected, "{lines}");
}

#[test]
fn one_length_or_chunks_or_no_body_and_nothing_in_between() {
    let of = |lines: &str| format!("POST / HTTP/1.1\nHost: a\n{lines}");
    check(&of("A: b"), Ok(BodyLength::Bytes(0)));
    check(&of("content-LENGTH:  17 "), Ok(BodyLength::Bytes(17)));
    check(&of("Content-Length: 00017"), Ok(BodyLength::Bytes(17)));
    check(&of("Transfer-Encoding: Chunked"), Ok(BodyLength::Chunked));
    for lines in [
        "Content-Length: 17\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\nContent-Length: 17",
        "Content-Length: 17\nContent-Length: 17",
        "Content-Length: 17\nContent-Length: 18",
        "Content-Length: 17, 17",
        "Content-Length: +17",
        "Content-Length: -1",
        "Content-Length: 1_7",
        "Content-Length: 0x11",
        "Content-Length: 17 17",
        "Content-Length:",
        "Content-Length: 18446744073709551615",
        "Content-Length: 99999999999999999999999",
        "Transfer-Encoding: chunked\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: \u{b}chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked;a",
        "Transfer-Encoding:",
        "Transfer-Encoding : chunked",
        "A: b\n c",
        "A b",
        ": b",
        "A: b\rc",
        "A: b\0c",
    ] {
        check(&of(lines), Err(HeadError::Framing));
    }
    check("POST / HTTP/1.0\nHost: a", Ok(BodyLength::Bytes(0)));
    check("POST / HTTP/1.0\nContent-Length: 0", Ok(BodyLength::Bytes(0)));
    check("POST / HTTP/1.0\nContent-Length: 1", Err(HeadError::Framing));
    check("POST / HTTP/1.0\nTransfer-Encoding: chunked", Err(HeadError::Framing));
}

#[test]
fn a_request_names_one_host_and_its_target_no_other() {
    for host in ["a", "A.example.com:80", "127.0.0.1:8080", "[::1]", "[::1]:8080", "a_b", "a:"] {
        check(&format!("GET / HTTP/1.1\nHost: {host}"), Ok(BodyLength::Bytes(0)));
    }
    for host in [
        "", " ", "a/", "a/?", "x/#", "a#", "a?", "a b", "a,b", "u@a", "u:p@a", "a:b", "a:99999", "a:-1",
        ":80", "[::1", "[x]", "[]", "::1", "a\\b", "a\"", "ä", "http://a",
    ] {
        // A comma may stand in a name, though nobody's has one.
        let expected = if host == "a,b" { Ok(BodyLength::Bytes(0)) } else { Err(HeadError::Host) };
        check(&format!("GET / HTTP/1.1\nHost: {host}"), expected);
    }
    check("GET / HTTP/1.1\nA: b", Err(HeadError::Host));
    check("GET / HTTP/1.1\nHost: a\nhost: a", Err(HeadError::Host));
    check("GET / HTTP/1.0\nA: b", Ok(BodyLength::Bytes(0)));
    check("GET / HTTP/1.0\nHost: a\nHost: b", Err(HeadError::Host));
    for (target, host, expected) in [
        ("http://a/x", "a", Ok(BodyLength::Bytes(0))),
        ("http://a/x", "A:80", Ok(BodyLength::Bytes(0))),
        ("https://a:443/x", "a", Ok(BodyLength::Bytes(0))),
        ("http://a", "a", Ok(BodyLength::Bytes(0))),
        ("http://a/x", "b", Err(HeadError::Host)),
        ("http://a:81/x", "a", Err(HeadError::Host)),
        ("http://u@a/x", "a", Err(HeadError::Host)),
        ("ftp://a/x", "a", Err(HeadError::Framing)),
        ("a/x", "a", Err(HeadError::Framing)),
        ("a:80", "a", Err(HeadError::Framing)),
        ("*", "a", Err(HeadError::Framing)),
    ] {
        check(&format!("GET {target} HTTP/1.1\nHost: {host}"), expected);
    }
    check("OPTIONS * HTTP/1.1\nHost: a", Ok(BodyLength::Bytes(0)));
}

#[test]
fn a_head_has_a_size_and_its_lines_have_two_bytes_at_the_end() {
    let target = |length: usize| format!("GET /{} HTTP/1.1\nHost: a", "x".repeat(length - 1));
    check(&target(2048), Ok(BodyLength::Bytes(0)));
    check(&target(2049), Err(HeadError::UriTooLong));
    let lines = |count: usize| format!("GET / HTTP/1.1\nHost: a{}", "\nA: b".repeat(count - 1));
    check(&lines(64), Ok(BodyLength::Bytes(0)));
    check(&lines(65), Err(HeadError::TooLarge));
    check("CONNECT a:443 HTTP/1.1\nHost: a:443", Err(HeadError::Method));
    check("TRACE / HTTP/1.1\nHost: a", Err(HeadError::Method));
    for first in [
        "PRI * HTTP/2.0",
        "GET / HTTP/1.2",
        "GET / HTTP/0.9",
        "GET /",
        "GET / x HTTP/1.1",
        "GET",
        " GET / HTTP/1.1",
    ] {
        check(
            &format!("{first}\nHost: a"),
            if first.starts_with(' ') { Ok(BodyLength::Bytes(0)) } else { Err(HeadError::Framing) },
        );
    }

    let find = |bytes: &[u8], piece: usize| {
        let (mut end, mut seen) = (EndOfHead::default(), 0);
        loop {
            seen = (seen + piece).min(bytes.len());
            match end.find(&bytes[..seen]) {
                Ok(None) if seen < bytes.len() => {}
                found => return found,
            }
        }
    };
    let whole = head("GET / HTTP/1.1\nHost: a");
    let more = [&whole[..], b"GET"].concat();
    let padded = |length: usize| {
        let lines = format!("GET / HTTP/1.1\nA: {}", "x".repeat(length - 16 - 3 - 4));
        let head = head(&lines);
        assert_eq!(head.len(), length);
        head
    };
    for piece in [1, 2, 3, 1000, 100_000] {
        assert_eq!(find(&whole, piece), Ok(Some(whole.len())));
        assert_eq!(find(&more, piece), Ok(Some(whole.len())));
        assert_eq!(find(&whole[..whole.len() - 1], piece), Ok(None));
        assert_eq!(find(b"GET / HTTP/1.1\nHost: a\r\n\r\n", piece), Err(HeadError::Framing));
        assert_eq!(find(b"GET / HTTP/1.1\r\nHost: a\r\n\n", piece), Err(HeadError::Framing));
        assert_eq!(find(b"\n", piece), Err(HeadError::Framing));
        assert_eq!(find(&padded(MAX_HEAD), piece), Ok(Some(MAX_HEAD)));
        assert_eq!(find(&padded(MAX_HEAD + 1), piece), Err(HeadError::TooLarge));
        assert_eq!(find(&[b'x'; 100_000], piece), Err(HeadError::UriTooLong));
    }
}

#[test]
fn what_stands_in_for_a_refused_head_is_well_formed_and_keeps_method_and_origin_alone() {
    let check = |refused: &[u8], expected: &str| {
        let head = stand_in(refused);
        assert_eq!(String::from_utf8_lossy(&head), expected);
        assert_eq!(judge(&head).map(|framing| framing.body), Ok(BodyLength::Bytes(0)));
    };
    check(
        b"POST / HTTP/1.1\r\nA: b\r\norigin:  https://a.example \r\nContent-Length: 1",
        "POST /refused HTTP/1.1\r\nHost: refused\r\nOrigin: https://a.example\r\n\r\n",
    );
    check(b"HEAD / HTTP/1.1\nOrigin: a b\n", "HEAD /refused HTTP/1.1\r\nHost: refused\r\n\r\n");
    check(b"OPTIONS * HTTP/1.1\nOrigin:\n", "GET /refused HTTP/1.1\r\nHost: refused\r\n\r\n");
    check(b"\0\xff", "GET /refused HTTP/1.1\r\nHost: refused\r\n\r\n");
    check(b"", "GET /refused HTTP/1.1\r\nHost: refused\r\n\r\n");
}
