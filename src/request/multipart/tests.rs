//! The parser against tables, against a naive parser that has the whole body before it, against
//! another crate's, and against itself with the body cut differently.

mod naive;

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body_util::{BodyDataStream, Full};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

/// A part's name and data.
type Part = (Option<Vec<u8>>, Vec<u8>);

fn boundary(text: &str) -> Boundary {
    Boundary::parse(format!("multipart/form-data; boundary=\"{text}\"").as_bytes())
        .expect("a boundary of a test")
}

fn parse_pieces<'a>(
    boundary: &Boundary,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Vec<Part>, Broken> {
    let mut parts: Vec<Part> = Vec::new();
    let mut open = false;
    let mut sink = |event: Event<'_>| {
        match event {
            Event::PartStart { name } => {
                assert!(!std::mem::replace(&mut open, true), "a part begins inside a part");
                parts.push((name.map(<[u8]>::to_vec), Vec::new()));
            }
            Event::Data(data) => {
                assert!(open && !data.is_empty());
                parts.last_mut().expect("an open part").1.extend_from_slice(data);
            }
            Event::PartEnd => assert!(std::mem::replace(&mut open, false), "a part ends outside a part"),
        }
        Ok::<(), Broken>(())
    };
    let mut parser = Parser::new(boundary);
    for piece in pieces {
        parser.feed(piece, &mut sink)?;
        assert!(parser.held.len() <= boundary.as_bytes().len() + 4 + LOOK_AHEAD);
        assert!(parser.head.len() <= MAX_HEADER_BYTES);
    }
    parser.finish(&mut sink)?;
    assert!(!open, "a part was left open");
    Ok(parts)
}

fn parse(boundary: &Boundary, body: &[u8]) -> Result<Vec<Part>, Broken> {
    parse_pieces(boundary, [body])
}

/// Cuts a body at these places.
fn cut<'a>(body: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
    at.extend([0, body.len()]);
    at.sort_unstable();
    at.windows(2).map(|ends| &body[ends[0]..ends[1]]).collect()
}

/// As many cases as asked for, or more where the environment wants a longer run.
fn cases(cases: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig { cases: cases.max(config.cases), ..config }
}

/// Runs a future that never has to wait.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..1000 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
    panic!("a future that was to be ready waits");
}

#[test]
fn a_boundary_is_read_as_rfc_2046_and_its_clients_write_it() {
    use ContentTypeError::*;
    let longest = "b".repeat(70);
    let too_long = "b".repeat(71);
    let check = |content_type: &str, expected: Result<&str, ContentTypeError>| {
        let read = Boundary::parse(content_type.as_bytes());
        assert_eq!(
            read.as_ref().map(Boundary::as_bytes).map_err(|error| *error),
            expected.map(str::as_bytes),
            "{content_type}"
        );
    };
    for (parameters, expected) in [
        ("; boundary=x", Ok("x")),
        (";boundary=x", Ok("x")),
        (" ;  boundary=x", Ok("x")),
        ("\t;\tboundary=x \t", Ok("x")),
        ("; BOUNDARY=x", Ok("x")),
        ("; Boundary=\"x\"", Ok("x")),
        ("; boundary=\"x y\"", Ok("x y")),
        ("; boundary=\" x\"", Ok(" x")),
        ("; boundary=\"x\\y\\\\\"", Err(BadBoundary)),
        ("; boundary=\"x\\y\"", Ok("xy")),
        ("; boundary=\"a;boundary=b\"", Err(BadBoundary)),
        ("; boundary=*****", Ok("*****")),
        ("; boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW", Ok("----WebKitFormBoundary7MA4YWxkTrZu0gW")),
        (
            "; boundary=--------------------------974767299852498929531610",
            Ok("--------------------------974767299852498929531610"),
        ),
        ("; boundary=----AILabTools-0b0a9f2e-5a4e-4d3c", Ok("----AILabTools-0b0a9f2e-5a4e-4d3c")),
        ("; boundary==_Part:1/2", Ok("=_Part:1/2")),
        ("; boundary=\"'()+_,-./:=?\"", Ok("'()+_,-./:=?")),
        ("; charset=utf-8; boundary=x", Ok("x")),
        ("; boundary=x; charset=utf-8", Ok("x")),
        ("; boundary=x; charset=\"a;boundary=y\"", Ok("x")),
        ("; boundary=x;", Ok("x")),
        (";; boundary=x ; ;", Ok("x")),
        ("; boundary*=utf-8''y; boundary=x", Ok("x")),
        ("", Err(NoBoundary)),
        (";", Err(NoBoundary)),
        ("; boundary*=utf-8''y", Err(NoBoundary)),
        ("; xboundary=x", Err(NoBoundary)),
        ("; boundary=", Err(BadBoundary)),
        ("; boundary=\"\"", Err(BadBoundary)),
        ("; boundary=\"x \"", Err(BadBoundary)),
        ("; boundary=\" \"", Err(BadBoundary)),
        ("; boundary=\"x\ty\"", Err(BadBoundary)),
        ("; boundary=\"x<y\"", Err(BadBoundary)),
        ("; boundary=gränze", Err(BadBoundary)),
        ("; boundary", Err(Malformed)),
        ("; boundary =x", Err(Malformed)),
        ("; =x", Err(Malformed)),
        ("; boundary=x y", Err(Malformed)),
        ("; boundary=x, multipart/form-data", Err(Malformed)),
        ("; boundary=\"x", Err(Malformed)),
        ("; boundary=\"x\\", Err(Malformed)),
        ("; boundary=\"x\"y", Err(Malformed)),
        ("; boundary=x\"y\"", Err(Malformed)),
        ("; boundary=\"x\"charset=y", Err(Malformed)),
        ("; boundary=x; nonsense", Err(Malformed)),
        ("; boundary=x; boundary=x", Err(TwoBoundaries)),
        ("; boundary=x; boundary=y", Err(TwoBoundaries)),
        ("; boundary=x; charset=a; Boundary=\"y\"", Err(TwoBoundaries)),
        ("; boundary=x,multipart/form-data; boundary=y", Err(TwoBoundaries)),
    ] {
        check(&format!("multipart/form-data{parameters}"), expected);
    }
    check(&format!("multipart/form-data; boundary={longest}"), Ok(&longest));
    check(&format!("multipart/form-data; boundary={too_long}"), Err(BadBoundary));
    check("Multipart/Form-DATA; boundary=x", Ok("x"));
    for other in [
        "",
        "; boundary=x",
        "multipart/mixed; boundary=x",
        "multipart/form-data2; boundary=x",
        "multipart/form-data, multipart/form-data; boundary=x",
        "multipart/form-data boundary=x",
        "application/x-www-form-urlencoded",
        "application/json",
        "image/jpeg",
    ] {
        check(other, Err(NotFormData));
    }
}

#[test]
fn a_field_name_is_read_from_its_header_and_nothing_else() {
    use Broken::*;
    for (head, expected) in [
        ("Content-Disposition: form-data; name=\"image\"", Ok(Some("image"))),
        ("Content-Disposition: form-data; name=image", Ok(Some("image"))),
        ("Content-Disposition:form-data;name=image", Ok(Some("image"))),
        ("content-disposition:\tFORM-DATA ;\tNAME=\"image\" ", Ok(Some("image"))),
        ("Content-Disposition: form-data; name=\"im\\age\"", Ok(Some("image"))),
        ("Content-Disposition: form-data; name=\"a\\\"b\"", Ok(Some("a\"b"))),
        ("Content-Disposition: form-data; name=\"a%22b\"", Ok(Some("a%22b"))),
        ("Content-Disposition: form-data; name=\"\"", Ok(Some(""))),
        ("Content-Disposition: form-data; name=", Ok(Some(""))),
        ("Content-Disposition: form-data; name=\"Bild ä\"", Ok(Some("Bild ä"))),
        ("Content-Disposition: form-data; filename=\"a.jpg\"; name=\"image\"", Ok(Some("image"))),
        ("Content-Disposition: form-data; name=\"image\"; filename=\"\"", Ok(Some("image"))),
        ("Content-Disposition: form-data; name=\"image\"; filename=my cat.jpg", Ok(Some("image"))),
        ("Content-Disposition: form-data; name=image; filename=\"x; name=width\"", Ok(Some("image"))),
        ("Content-Disposition: form-data; name=image; filename=\"C:\\dir\\a.jpg\"", Ok(Some("image"))),
        ("Content-Disposition: form-data; name=image; filename=a.jpg; filename=b.jpg", Ok(Some("image"))),
        (
            "Content-Disposition: form-data; name=image; filename=a.jpg; filename*=utf-8''a.jpg",
            Ok(Some("image")),
        ),
        (
            "Content-Disposition: form-data; name=image; filename*=utf-8''%22%3B%20name=width",
            Ok(Some("image")),
        ),
        ("Content-Disposition: form-data; name*=utf-8''width; name=image", Ok(Some("image"))),
        ("Content-Disposition: form-data; name=image;", Ok(Some("image"))),
        ("Content-Type: image/png\r\nContent-Disposition: form-data; name=image", Ok(Some("image"))),
        (
            "Content-Disposition: form-data; name=image\r\nContent-Type: text/plain; charset=utf-8",
            Ok(Some("image")),
        ),
        ("Content-Disposition: form-data; name=image\r\nContent-Type: a, multipart/mixed", Ok(Some("image"))),
        (
            "Content-Disposition: form-data; name=image\r\nContent-Transfer-Encoding: binary",
            Ok(Some("image")),
        ),
        ("Content-Disposition: form-data; name=image\r\nContent-Transfer-Encoding: 7BIT", Ok(Some("image"))),
        ("Content-Disposition: form-data; name=image\r\ncontent-transfer-encoding:8bit ", Ok(Some("image"))),
        ("Content-Disposition: form-data; name=image\r\nContent-Length: 999", Ok(Some("image"))),
        ("Content-Disposition: form-data; name=image\r\nX-Empty:", Ok(Some("image"))),
        ("Content-Disposition: form-data;\r\n name=image", Ok(Some("image"))),
        ("Content-Disposition: form-data;\r\n\tname=image", Ok(Some("image"))),
        ("Content-Disposition:\r\n form-data; name=\"im\r\n age\"\r\nX: y", Ok(Some("im age"))),
        ("X: y\r\n z\r\n \r\nContent-Disposition: form-data; name=image", Ok(Some("image"))),
        ("Content-Disposition: form-data; name=image; filename=\"my \"best\" photo.jpg\"", Ok(Some("image"))),
        ("Content-Disposition: form-data; FileName=\"a \"b;c\" d\" ; name=image", Ok(Some("image"))),
        ("Content-Disposition: form-data; filename=\"\"a\"\"; name=image", Ok(Some("image"))),
        ("Content-Disposition: form-data; name=image; filename=5\" disk.jpg", Ok(Some("image"))),
        ("Content-Disposition: form-data", Ok(None)),
        ("Content-Disposition: form-data; name*=utf-8''image", Ok(None)),
        ("Content-Disposition: form-data; filename=\"image\"", Ok(None)),
        ("Content-Disposition: form-data; xname=image", Ok(None)),
        ("Content-Disposition: attachment; name=image", Ok(None)),
        ("Content-Disposition: name=image", Ok(None)),
        ("Content-Disposition:", Ok(None)),
        ("Content-Type: image/png", Ok(None)),
        ("", Ok(None)),
        ("Content-Disposition: form-data; name=image; name=width", Err(Disposition)),
        ("Content-Disposition: form-data; name=image; NAME=\"image\"", Err(Disposition)),
        ("Content-Disposition: form-data; name=\"image", Err(Disposition)),
        ("Content-Disposition: form-data; name=\"image\\\"", Err(Disposition)),
        ("Content-Disposition: form-data; name=\"image\"width", Err(Disposition)),
        ("Content-Disposition: form-data; name=\"image\"filename=a", Err(Disposition)),
        ("Content-Disposition: form-data; name=im\"age", Err(Disposition)),
        ("Content-Disposition: form-data; name=image; filename=\"a\";b.jpg\"", Err(Disposition)),
        ("Content-Disposition: form-data; filename=\"a\"; name=\"image\"; name=\"b\"", Err(Disposition)),
        ("Content-Disposition: form-data; name=image; filename=\"a\"b", Err(Disposition)),
        ("Content-Disposition: form-data; name", Err(Disposition)),
        ("Content-Disposition: form-data; name =image", Err(Disposition)),
        (
            "Content-Disposition: form-data; name=image\r\nContent-Disposition: form-data; name=image",
            Err(Disposition),
        ),
        (
            "Content-Disposition: form-data; name=image\r\nContent-Type: multipart/mixed; boundary=y",
            Err(Nested),
        ),
        ("Content-Type: Multipart/Form-Data\r\nContent-Type: text/plain", Err(Nested)),
        (
            "Content-Disposition: form-data; name=image\r\nContent-Transfer-Encoding: base64",
            Err(TransferEncoding),
        ),
        ("Content-Transfer-Encoding: quoted-printable", Err(TransferEncoding)),
        ("Content-Transfer-Encoding: binary\r\nContent-Transfer-Encoding: base64", Err(TransferEncoding)),
        ("Content-Transfer-Encoding:", Err(TransferEncoding)),
        ("Content-Disposition : form-data; name=image", Err(HeaderLine)),
        (" name=image\r\nContent-Disposition: form-data", Err(HeaderLine)),
        ("Content-Disposition", Err(HeaderLine)),
        (": form-data; name=image", Err(HeaderLine)),
        ("X: \0", Err(HeaderLine)),
        ("X: \x1b[31m", Err(HeaderLine)),
        ("X: a\x7fb", Err(HeaderLine)),
        ("X(y): z", Err(HeaderLine)),
        (" ", Err(HeaderLine)),
        ("X: a\nY: b", Err(LineEnd)),
        ("X: a\rY: b", Err(LineEnd)),
        ("X: a\r\r\nY: b", Err(LineEnd)),
        ("\rX: a", Err(LineEnd)),
        ("\nX: a", Err(LineEnd)),
    ] {
        let lines = if head.is_empty() { String::new() } else { format!("{head}\r\n") };
        let body = format!("--b\r\n{lines}\r\ndata\r\n--b--\r\n");
        let expected =
            expected.map(|name| vec![(name.map(|name| name.as_bytes().to_vec()), b"data".to_vec())]);
        assert_eq!(parse(&boundary("b"), body.as_bytes()), expected, "{head:?}");
        assert_eq!(naive::parse(b"b", body.as_bytes()), expected, "the naive parser on {head:?}");
    }
}

type DataOrBroken = Result<&'static [&'static [u8]], Broken>;

/// Bodies with the boundary `b`: where the data of each part lies, or why there are no parts.
const BODIES: &[(&[u8], DataOrBroken)] = &[
    (b"--b\r\n\r\nx\r\n--b--\r\n", Ok(&[b"x"])),
    (b"--b\r\n\r\nx\r\n--b--", Ok(&[b"x"])),
    (b"--b\r\n\r\nx\r\n--b\r\n\r\ny\r\n--b--", Ok(&[b"x", b"y"])),
    (b"--b\r\n\r\n\r\n--b--", Ok(&[b""])),
    (b"--b\r\n\r\n--b--", Ok(&[b""])),
    (b"--b\r\n\r\n--b\r\n\r\n--b--", Ok(&[b"", b""])),
    (b"--b--", Ok(&[])),
    (b"--b--\r\n", Ok(&[])),
    // What is left of a line end after the closing boundary.
    (b"--b--\r", Ok(&[])),
    (b"--b--\n", Ok(&[])),
    (b"--b\r\n\r\nx\r\n--b-- \n", Ok(&[b"x"])),
    (b"--b\r\n\r\nx\r\n--b--\nepi", Ok(&[b"x"])),
    (b"\r\n--b--", Ok(&[])),
    (b"pre\r\n--b\r\n\r\nx\r\n--b--epi", Err(Broken::Truncated)),
    (b"pre\r\n--b\r\n\r\nx\r\n--b--\r\nepi", Ok(&[b"x"])),
    (b"--b--\r\n--b\r\n\r\nx\r\n--b--\r\n", Ok(&[])),
    (b"--c\r\n--b\r\n\r\nx\r\n--b--", Ok(&[b"x"])),
    (b"x--b\r\n--b\r\n\r\nx\r\n--b--", Ok(&[b"x"])),
    // Blanks between a boundary and its line's end.
    (b"--b \t\r\n\r\nx\r\n--b \r\n\r\ny\r\n--b-- \t \r\n", Ok(&[b"x", b"y"])),
    (b"--b\r\n\r\nx\r\n--b-- \t", Ok(&[b"x"])),
    // Data that looks like a boundary.
    (b"--b\r\n\r\nx--b\r\n--b--", Ok(&[b"x--b"])),
    (b"--b\r\n\r\nx\n--b\r\n\r\n--b--", Ok(&[b"x\n--b\r\n"])),
    (b"--b\r\n\r\nx\r--b\r\n--b--", Ok(&[b"x\r--b"])),
    (b"--b\r\n\r\nx\r\n-b\r\n--b--", Ok(&[b"x\r\n-b"])),
    (b"--b\r\n\r\nx\r\n --b\r\n--b--", Ok(&[b"x\r\n --b"])),
    (b"--b\r\n\r\n\r\n\r\n\r\n--b--", Ok(&[b"\r\n\r\n"])),
    (b"--b\r\n\r\n\r\r\n--b--", Ok(&[b"\r"])),
    (b"--b\r\n\r\n\r\n-\r\n--\r\n--B\r\n--b--", Ok(&[b"\r\n-\r\n--\r\n--B"])),
    // A longer boundary, of which this one is the beginning.
    (b"--b\r\n\r\nx\r\n--bb\r\n--b--", Ok(&[b"x\r\n--bb"])),
    (b"--b\r\n\r\nx\r\n--b-\r\n--b--", Ok(&[b"x\r\n--b-"])),
    (b"--b\r\n\r\nx\r\n--b-- -\r\n--b--", Err(Broken::BoundaryLine)),
    (b"--b\r\n\r\nx\r\n--b---\r\n--b--", Ok(&[b"x\r\n--b---"])),
    (b"--b\r\n\r\nx\r\n--b--b--\r\n--b--", Ok(&[b"x\r\n--b--b--"])),
    (b"--bb\r\n\r\nx\r\n--b--", Ok(&[])),
    (b"--b\r\n\r\n--bx\r\n--b--", Ok(&[b"--bx"])),
    // Broken.
    (b"", Err(Broken::NoFirstBoundary)),
    (b"\r\n", Err(Broken::NoFirstBoundary)),
    (b"x", Err(Broken::NoFirstBoundary)),
    (b"--", Err(Broken::NoFirstBoundary)),
    (b"--b", Err(Broken::NoFirstBoundary)),
    (b"--b-", Err(Broken::NoFirstBoundary)),
    (b"--a\r\n\r\nx\r\n--a--", Err(Broken::NoFirstBoundary)),
    (b"x--b--", Err(Broken::NoFirstBoundary)),
    (b"--b\r\n", Err(Broken::Truncated)),
    (b"--b\r\n\r\n", Err(Broken::Truncated)),
    (b"--b\r\n\r\nx", Err(Broken::Truncated)),
    (b"--b\r\n\r\nx\r\n--b", Err(Broken::Truncated)),
    (b"--b\r\n\r\nx\r\n--b-", Err(Broken::Truncated)),
    (b"--b\r\n\r\nx\r\n--b\r\n", Err(Broken::Truncated)),
    (b"--b\r\n\r\nx\r\n--B--\r\n", Err(Broken::Truncated)),
    (b"--b\r\n\r\nx\n--b--\r\n", Err(Broken::Truncated)),
    (b"--b\r\n\r\nx--b--\r\n", Err(Broken::Truncated)),
    (b"--b\n\nx\n--b--\n", Err(Broken::BoundaryLine)),
    (b"--b\rx", Err(Broken::Truncated)),
    (b"--b\rx\n", Err(Broken::BoundaryLine)),
    (b"--b x\r\n\r\nx\r\n--b--", Err(Broken::BoundaryLine)),
    (b"--b\r\r\n\r\nx\r\n--b--", Err(Broken::BoundaryLine)),
    (b"--b--\r\r\n", Err(Broken::BoundaryLine)),
    (b"--b-- x\r\n", Err(Broken::BoundaryLine)),
    (b"--b\r\nx\r\n\r\n--b--", Err(Broken::HeaderLine)),
    (b"--b\r\nX: a\n\nx\r\n--b--", Err(Broken::LineEnd)),
    (b"--b\r\nX: a\r\n--b--", Err(Broken::Truncated)),
];

#[test]
fn boundaries_are_found_where_the_grammar_has_them() {
    for (body, expected) in BODIES {
        let shown = String::from_utf8_lossy(body);
        let data = parse(&boundary("b"), body).map(|parts| parts.into_iter().map(|(_, data)| data).collect());
        let expected = expected.map(|data| data.iter().map(|data| data.to_vec()).collect::<Vec<_>>());
        assert_eq!(data, expected, "{shown:?}");
        assert_eq!(naive::parse(b"b", body), parse(&boundary("b"), body), "the naive parser on {shown:?}");
    }
}

#[test]
fn no_way_of_cutting_a_small_body_in_two_or_three_changes_the_result() {
    let form =
        b"--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--b\r\n\r\n\r\n--bx\r\n--b--\r\n";
    for body in BODIES.iter().map(|(body, _)| *body).chain([&form[..]]) {
        let whole = parse(&boundary("b"), body);
        let shown = String::from_utf8_lossy(body);
        assert_eq!(parse_pieces(&boundary("b"), body.chunks(1)), whole, "{shown:?}");
        for first in 0..=body.len() {
            for second in first..=body.len() {
                let pieces = [&body[..first], &body[first..second], &body[second..]];
                assert_eq!(parse_pieces(&boundary("b"), pieces), whole, "{shown:?} at {first} and {second}");
            }
        }
    }
}

/// A body with `count` parts, each with these header lines.
fn form_of(count: usize, head: &str) -> Vec<u8> {
    format!("{}--b--", format!("--b\r\n{head}\r\nx\r\n").repeat(count)).into_bytes()
}

#[test]
fn every_limit_is_exact_however_the_body_arrives() {
    let blanks = |count: usize| " ".repeat(count);
    // The line of the boundary, the name, and the empty line have 2, 4 and 4 bytes besides.
    let long = |count: usize| format!("X: {}\r\n", "y".repeat(count - 2 - 5 - 2));
    let accepted = [
        form_of(MAX_PARTS, ""),
        form_of(2, &"X: y\r\n".repeat(MAX_HEADER_LINES)),
        form_of(2, &long(MAX_HEADER_BYTES)),
        format!("--b{}\r\n\r\nx\r\n--b--", blanks(MAX_HEADER_BYTES - 4)).into_bytes(),
        format!("{}\r\n--b--", "p".repeat(MAX_PREAMBLE_BYTES)).into_bytes(),
        format!("--b--\r\n{}", "e".repeat(MAX_EPILOGUE_BYTES - 2)).into_bytes(),
        format!("--b--{}\r\n", blanks(MAX_EPILOGUE_BYTES - 2)).into_bytes(),
        format!("--b--{}\n", blanks(MAX_EPILOGUE_BYTES - 1)).into_bytes(),
    ];
    let refused = [
        (form_of(MAX_PARTS + 1, ""), Broken::TooManyParts),
        (form_of(2, &"X: y\r\n".repeat(MAX_HEADER_LINES + 1)), Broken::TooManyHeaders),
        (form_of(2, &long(MAX_HEADER_BYTES + 1)), Broken::HeadersTooLong),
        (format!("--b\r\n{}", "x".repeat(1 << 20)).into_bytes(), Broken::HeadersTooLong),
        (format!("--b\r\n{}", "X: y\r\n".repeat(1 << 16)).into_bytes(), Broken::TooManyHeaders),
        (
            format!("--b{}\r\n\r\nx\r\n--b--", blanks(MAX_HEADER_BYTES - 3)).into_bytes(),
            Broken::HeadersTooLong,
        ),
        (format!("--b{}", blanks(1 << 20)).into_bytes(), Broken::HeadersTooLong),
        (format!("{}\r\n--b--", "p".repeat(MAX_PREAMBLE_BYTES + 1)).into_bytes(), Broken::NoFirstBoundary),
        ("p\r\n".repeat(1 << 16).into_bytes(), Broken::NoFirstBoundary),
        (format!("--b--\r\n{}", "e".repeat(MAX_EPILOGUE_BYTES - 1)).into_bytes(), Broken::EpilogueTooLong),
        (format!("--b--{}\r\n", blanks(MAX_EPILOGUE_BYTES - 1)).into_bytes(), Broken::EpilogueTooLong),
        (format!("--b--{}", blanks(1 << 16)).into_bytes(), Broken::EpilogueTooLong),
        (form_of(1 << 12, ""), Broken::TooManyParts),
    ];
    for piece in [usize::MAX, 4096, 1000, 7, 1] {
        for body in &accepted {
            let parts = parse_pieces(&boundary("b"), body.chunks(piece.min(body.len())));
            assert!(parts.is_ok(), "{parts:?} of {} bytes", body.len());
            assert_eq!(naive::parse(b"b", body), parts);
        }
        for (body, broken) in &refused {
            let parts = parse_pieces(&boundary("b"), body.chunks(piece.min(body.len())));
            assert_eq!(parts, Err(*broken), "{} bytes", body.len());
            assert_eq!(naive::parse(b"b", body), parts);
        }
    }
}

#[test]
fn data_is_handed_on_where_it_lies_and_in_one_piece() {
    let image: Vec<u8> = (0..200_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let body = [&b"--b\r\n\r\n"[..], &image, b"\r\n--b--\r\n"].concat();
    let mut pieces = Vec::new();
    let mut parser = Parser::new(&boundary("b"));
    let mut sink = |event: Event<'_>| {
        if let Event::Data(data) = event {
            pieces.push((data.as_ptr() as usize - body.as_ptr() as usize, data.len()));
        }
        Ok::<(), Broken>(())
    };
    parser.feed(&body, &mut sink).expect("a form");
    assert_eq!(pieces, [(7, image.len())]);
    assert!(parser.held.capacity() < 100 && parser.head.capacity() < 100);
}

#[test]
fn small_pieces_cost_no_memory_either() {
    let near = "\r\n--near miss-and more".repeat(2000);
    let body = format!("--near miss\r\nX: y\r\n\r\n{near}\r\n--near miss--");
    for size in [1, 100] {
        let mut parser = Parser::new(&boundary("near miss"));
        let held = parser.held.capacity();
        let mut length = 0;
        for piece in body.as_bytes().chunks(size) {
            let mut sink = |event: Event<'_>| {
                length += if let Event::Data(data) = event { data.len() } else { 0 };
                Ok::<(), Broken>(())
            };
            parser.feed(piece, &mut sink).expect("a form");
            assert_eq!(parser.held.capacity(), held, "pieces of {size}");
        }
        assert_eq!(length, near.len());
        assert!(parser.head.capacity() <= 2 * MAX_HEADER_BYTES);
    }
}

#[test]
fn the_error_of_whoever_takes_the_data_ends_the_reading() {
    #[derive(Debug, PartialEq)]
    enum Stop {
        Full,
        Broken(Broken),
    }
    impl From<Broken> for Stop {
        fn from(broken: Broken) -> Self {
            Self::Broken(broken)
        }
    }
    let mut events = 0;
    let mut parser = Parser::new(&boundary("b"));
    let stopped = parser.feed(b"--b\r\n\r\nx\r\n--b--", &mut |event| {
        events += 1;
        if matches!(event, Event::Data(_)) { Err(Stop::Full) } else { Ok(()) }
    });
    assert_eq!((stopped, events), (Err(Stop::Full), 2));
    let broken = Parser::new(&boundary("b")).finish(&mut |_| Ok(()));
    assert_eq!(broken, Err(Stop::Broken(Broken::NoFirstBoundary)));
}

/// What multer makes of a body.
fn parse_with_multer(boundary: &str, body: Vec<u8>) -> Vec<Part> {
    now(async {
        let stream = BodyDataStream::new(Full::new(Bytes::from(body)));
        let mut form = multer::Multipart::new(stream, boundary);
        let mut parts = Vec::new();
        while let Some(field) = form.next_field().await.expect("a form by multer") {
            let name = field.name().map(|name| name.as_bytes().to_vec());
            parts.push((name, field.bytes().await.expect("a part by multer").to_vec()));
        }
        parts
    })
}

/// Bytes with more line ends and dashes than chance would have.
fn data() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        vec(any::<u8>(), 0..40),
        select(vec![&b"\r\n"[..], b"\r", b"\n", b"--", b"-", b"\r\n--", b"\r\n\r\n", b" "])
            .prop_map(<[u8]>::to_vec),
    ];
    vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// A token a boundary or a delimiter's neighbourhood is made of, `\u{1}` standing for the boundary.
fn shard() -> impl Strategy<Value = &'static str> {
    let disposition = "Content-Disposition: form-data; name=";
    let line = "\r\n--\u{1}\r\n";
    select(vec![
        "\r\n",
        "\r\n",
        "\r\n",
        "--",
        "--",
        "\u{1}",
        "\u{1}",
        line,
        line,
        line,
        "\r\n\r\n",
        "\r\n--\u{1}--",
        "\r",
        "\n",
        " ",
        "\t",
        "-",
        "x",
        "é",
        ":",
        ";",
        "\"",
        "\\",
        "=",
        "\0",
        disposition,
        disposition,
        "name=",
        "\"a\"",
        "a",
        "Content-Type: ",
        "multipart/",
        "text/plain",
        "Content-Transfer-Encoding: ",
        "binary",
        "base64",
        "X: y\r\n",
    ])
}

proptest! {
    #![proptest_config(cases(4000))]

    #[test]
    fn shards_of_forms_mean_what_a_naive_parser_says(
        boundary_text in "[-a-z'()+_,./:=?]{1,4}",
        is_opened in any::<bool>(),
        shards in vec(shard(), 0..40),
        cuts in vec(any::<Index>(), 0..6),
    ) {
        let start = if is_opened { "--\u{1}\r\n" } else { "" };
        let body = format!("{start}{}", shards.concat()).replace('\u{1}', &boundary_text);
        let expected = naive::parse(boundary_text.as_bytes(), body.as_bytes());
        let boundary = boundary(&boundary_text);
        prop_assert_eq!(parse_pieces(&boundary, cut(body.as_bytes(), &cuts)), expected.clone());
        prop_assert_eq!(parse_pieces(&boundary, body.as_bytes().chunks(1)), expected);
    }

    #[test]
    fn a_damaged_form_means_what_a_naive_parser_says(
        parts in vec(("[a-z]{0,3}", data()), 0..4),
        damage in vec((any::<Index>(), 0..4_usize, select(b"\r\n-b :;\"x\0".to_vec())), 0..6),
        cuts in vec(any::<Index>(), 0..6),
    ) {
        let mut body = Vec::new();
        for (name, data) in &parts {
            body.extend_from_slice(format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n").as_bytes());
            body.extend_from_slice(data);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"--b--\r\n");
        for (at, how, byte) in damage {
            let at = at.index(body.len() + 1);
            match how {
                0 if at < body.len() => body[at] = byte,
                1 if at < body.len() => drop(body.remove(at)),
                2 => body.truncate(at.max(1)),
                _ => body.insert(at, byte),
            }
        }
        let expected = naive::parse(b"b", &body);
        prop_assert_eq!(parse_pieces(&boundary("b"), cut(&body, &cuts)), expected);
    }

    #[test]
    fn arbitrary_bytes_mean_what_a_naive_parser_says(body in vec(any::<u8>(), 0..300), cuts in vec(any::<Index>(), 0..4)) {
        prop_assert_eq!(parse_pieces(&boundary("b"), cut(&body, &cuts)), naive::parse(b"b", &body));
    }

    #[test]
    fn arbitrary_content_types_never_panic(text in vec(prop_oneof![any::<u8>(), select(b"multipart/form-data;=\" \\boundary".to_vec())], 0..80)) {
        let _ = Boundary::parse(&text);
        let _ = Boundary::parse(&[b"multipart/form-data;boundary=", &text[..]].concat());
    }
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn a_well_formed_form_means_what_multer_says(
        boundary_text in "[a-zA-Z0-9-]{16,40}",
        parts in vec(("[a-z]{1,8}", prop::option::of("[a-zA-Z ;=.]{0,12}"), any::<bool>(), data()), 1..6),
        cuts in vec(any::<Index>(), 0..10),
        is_terminated in any::<bool>(),
    ) {
        let mut body = Vec::new();
        for (name, file_name, is_quoted, data) in &parts {
            let quote = if *is_quoted { "\"" } else { "" };
            body.extend_from_slice(format!("--{boundary_text}\r\nContent-Disposition: form-data; name={quote}{name}{quote}").as_bytes());
            if let Some(file_name) = file_name {
                body.extend_from_slice(format!("; filename=\"{file_name}\"\r\nContent-Type: image/png").as_bytes());
            }
            body.extend_from_slice(b"\r\n\r\n");
            body.extend_from_slice(data);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(format!("--{boundary_text}--{}", if is_terminated { "\r\n" } else { "" }).as_bytes());
        let expected: Vec<Part> = parts.into_iter().map(|(name, _, _, data)| (Some(name.into_bytes()), data)).collect();
        prop_assert_eq!(parse_with_multer(&boundary_text, body.clone()), expected.clone());
        prop_assert_eq!(parse_pieces(&boundary(&boundary_text), cut(&body, &cuts)), Ok(expected));
    }
}
