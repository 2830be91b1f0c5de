//! Heads, one line each.

use http::HeaderValue;

use super::*;

fn head(lines: &str) -> Vec<u8> {
    format!("{}\r\n\r\n", lines.replace('\n', "\r\n")).into_bytes()
}

fn check(lines: &str, expected: Result<Next, HeadError>) {
    assert_eq!(check_head(&head(lines)), expected, "{lines}");
}

#[test]
fn a_body_has_one_length_or_chunks_and_anything_else_is_refused() {
    let of = |lines: &str| format!("POST / HTTP/1.1\nHost: a\n{lines}");
    check(&of("A: b"), Ok(Next::Bytes(0)));
    check(&of("content-LENGTH:  17 "), Ok(Next::Bytes(17)));
    check(&of("Content-Length: 00017"), Ok(Next::Bytes(17)));
    check(&of("Transfer-Encoding: Chunked"), Ok(Next::Chunks(Chunks::default())));
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
}

#[test]
fn http_1_0_has_a_content_length_and_no_chunks() {
    check("POST / HTTP/1.0\nHost: a", Ok(Next::Bytes(0)));
    check("POST / HTTP/1.0\nContent-Length: 0", Ok(Next::Bytes(0)));
    check("POST / HTTP/1.0\nContent-Length: 17", Ok(Next::Bytes(17)));
    for lines in ["Transfer-Encoding: chunked", "Content-Length: 17\nTransfer-Encoding: chunked"] {
        check(&format!("POST / HTTP/1.0\n{lines}"), Err(HeadError::Framing));
    }
}

fn check_uri(method: &str, target: &str, version: Version, hosts: &[&str]) -> Result<(), HeadError> {
    let mut request = Request::builder().method(method).uri(target).version(version);
    for host in hosts {
        request = request.header(HOST, HeaderValue::from_bytes(host.as_bytes()).unwrap());
    }
    check_target(&request.body(()).unwrap())
}

#[test]
fn a_request_names_one_host_and_its_target_no_other() {
    let get = |target: &str, hosts: &[&str]| check_uri("GET", target, Version::HTTP_11, hosts);
    for host in ["a", "A.example.com:80", "127.0.0.1:8080", "[::1]", "[::1]:8080", "a_b", "a:"] {
        assert_eq!(get("/", &[host]), Ok(()), "{host}");
    }
    for host in [
        "", " ", "a/", "a/?", "x/#", "a#", "a?", "a b", "u@a", "u:p@a", "a:b", "a:99999", "a:-1", ":80",
        "[::1", "::1", "a\\b", "a\"", "ä", "http://a",
    ] {
        assert_eq!(get("/", &[host]), Err(HeadError::Host), "{host}");
    }
    assert_eq!(get("/", &[]), Err(HeadError::Host));
    assert_eq!(get("/", &["a", "a"]), Err(HeadError::Host));
    assert_eq!(check_uri("GET", "/", Version::HTTP_10, &[]), Ok(()));
    assert_eq!(check_uri("GET", "/", Version::HTTP_10, &["a", "b"]), Err(HeadError::Host));
    for (target, host, expected) in [
        ("http://a/x", "a", Ok(())),
        ("http://a:80/x", "A:80", Ok(())),
        ("https://a/x", "A", Ok(())),
        ("http://a/x", "a:80", Err(HeadError::Host)),
        ("http://a", "a", Ok(())),
        ("http://a/x", "b", Err(HeadError::Host)),
        ("http://a:81/x", "a", Err(HeadError::Host)),
        ("http://u@a/x", "a", Err(HeadError::Host)),
        ("ftp://a/x", "a", Err(HeadError::Framing)),
        ("a:80", "a", Err(HeadError::Framing)),
        ("a", "a", Err(HeadError::Framing)),
        ("*", "a", Err(HeadError::Framing)),
    ] {
        assert_eq!(get(target, &[host]), expected, "{target}");
    }
    assert_eq!(check_uri("OPTIONS", "*", Version::HTTP_11, &["a"]), Ok(()));
    let long = |length: usize| format!("/{}", "x".repeat(length - 1));
    assert_eq!(get(&long(2048), &["a"]), Ok(()));
    assert_eq!(get(&long(2049), &["a"]), Err(HeadError::UriTooLong));
}

#[test]
fn a_head_has_a_maximum_size_and_lines_that_end_in_cr_lf() {
    let lines = |count: usize| format!("GET / HTTP/1.1\nHost: a{}", "\nA: b".repeat(count - 1));
    check(&lines(64), Ok(Next::Bytes(0)));
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
        check(&format!("{first}\nHost: a"), Err(HeadError::Framing));
    }
    for bytes in
        ["GET / HTTP/1.1\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n\n", "\nGET / HTTP/1.1\r\n\r\n"]
    {
        assert_eq!(check_head(bytes.as_bytes()), Err(HeadError::Framing), "{bytes:?}");
    }

    let whole = head("GET / HTTP/1.1\nHost: a");
    assert_eq!(head_end(&whole), Ok(Some(whole.len())));
    assert_eq!(head_end(&[&whole[..], b"GET"].concat()), Ok(Some(whole.len())));
    for cut in 0..whole.len() {
        assert_eq!(head_end(&whole[..cut]), Ok(None));
    }
    // Such an end is found, so that the head can be refused at once.
    assert_eq!(head_end(b"GET / HTTP/1.1\nHost: a\n\nrest"), Ok(Some(24)));
    let padded = |length: usize| head(&format!("GET / HTTP/1.1\nA: {}", "x".repeat(length - 16 - 3 - 4)));
    assert_eq!(head_end(&padded(MAX_HEAD)), Ok(Some(MAX_HEAD)));
    assert_eq!(head_end(&padded(MAX_HEAD + 1)), Err(HeadError::TooLarge));
    assert_eq!(head_end(&[b'x'; 100_000]), Err(HeadError::UriTooLong));
}

#[test]
fn upgrade_lines_are_hidden_and_others_are_not() {
    let of =
        |name: &str| head(&format!("GET /upgrade:x HTTP/1.1\nHost: a\nX-Upgrade: b\n{name}: h2c\nup: c"));
    for name in ["Upgrade", "upgrade", "UPGRADE"] {
        let mut bytes = of(name);
        hide_upgrade(&mut bytes);
        assert_eq!(String::from_utf8(bytes), String::from_utf8(of("ignored")));
    }
}

#[test]
fn the_placeholder_is_a_good_head() {
    assert_eq!(check_head(PLACEHOLDER_HEAD), Ok(Next::Bytes(0)));
    assert_eq!(head_end(PLACEHOLDER_HEAD), Ok(Some(PLACEHOLDER_HEAD.len())));
}
