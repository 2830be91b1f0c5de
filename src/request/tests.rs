//! Requests as clients send them, and as nobody should: what each means, and that neither the cut
//! of the bytes, nor the order of the fields, nor anything but the picture and two numbers matters.

mod bodies;
mod room;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use http::HeaderValue;
use http_body::Frame;
use http_body_util::{Full, Limited};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;
use crate::base::operation::IMAGE_CROPPING;
use crate::base::picture::ImageFormat;
use bodies::{Part, bmp, form, jpeg, part, png, webp};

/// A body that arrives in these pieces, and counts how many were asked for.
#[derive(Default)]
struct Pieces<'a> {
    frames: VecDeque<Result<Frame<Bytes>, BoxError>>,
    asked: Option<&'a AtomicUsize>,
}

impl Body for Pieces<'_> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(asked) = self.asked {
            asked.fetch_add(1, Ordering::Relaxed);
        }
        Poll::Ready(self.frames.pop_front())
    }
}

fn pieces<'a>(body: &[u8], size: usize) -> Pieces<'a> {
    let frames = body.chunks(size).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
    Pieces { frames, asked: None }
}

fn pieces_cut<'a>(body: &[u8], cuts: &[Index]) -> Pieces<'a> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
    at.extend([0, body.len()]);
    at.sort_unstable();
    let frames =
        at.windows(2).map(|ends| Ok(Frame::data(Bytes::copy_from_slice(&body[ends[0]..ends[1]])))).collect();
    Pieces { frames, asked: None }
}

fn head_of(boundary: &str, declared: Option<usize>, limits: RequestLimits) -> FormHead {
    let mut headers = HeaderMap::new();
    let content_type = format!("multipart/form-data; boundary=\"{boundary}\"");
    headers.insert(CONTENT_TYPE, HeaderValue::try_from(content_type).expect("a header of a test"));
    if let Some(declared) = declared {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(declared));
    }
    check_head(&IMAGE_CROPPING, &headers, &limits).expect("a head of a test")
}

fn head() -> FormHead {
    head_of("b", None, RequestLimits::default())
}

/// Reads with room for everything in memory.
async fn read<B>(head: FormHead, body: B) -> Result<CropRequest, RequestError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    super::read(head, body, &UploadRoom::in_memory(u64::MAX)).await
}

/// Runs a future that never has to wait.
fn now<T>(future: impl Future<Output = T>) -> T {
    let Poll::Ready(value) = pin!(future).poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("reading waits although the body does not");
    };
    value
}

/// All of a result that can be compared; an error as its variant and fields.
#[derive(Debug, PartialEq, Clone)]
struct Seen {
    key: CacheKey,
    digest: Digest,
    image: Bytes,
    format: ImageFormat,
    size: (u32, u32),
    ignored: Vec<String>,
}

fn seen(result: Result<CropRequest, RequestError>) -> Result<Seen, String> {
    let request = result.map_err(|error| {
        let shown = error.to_string();
        assert!(shown.chars().all(|letter| letter == ' ' || letter.is_ascii_graphic()), "{shown:?}");
        assert!(
            shown.starts_with(|first: char| first.is_ascii_lowercase()) && !shown.ends_with('.'),
            "{shown}"
        );
        assert!(shown.len() < 200, "{shown}");
        format!("{error:?}")
    })?;
    let CropRequest { order, key, image_digest: digest, ignored } = request;
    let image = order.image.whole().expect("it can be read");
    assert_eq!(key, CacheKey::of(&image, order.width, order.height), "what is keyed is what is forwarded");
    assert_eq!(digest, Digest::of(&image));
    Ok(Seen { key, digest, format: order.format, size: (order.width, order.height), image, ignored })
}

fn ask(parts: &[Part]) -> Result<Seen, String> {
    seen(now(read(head(), pieces(&form("b", parts), usize::MAX))))
}

fn number(field: &'static str, value: &str) -> Part {
    part(field, value.as_bytes())
}

fn good() -> [Part; 3] {
    [part("image", &png(640, 427)), number("width", "400"), number("height", "300")]
}

/// What the good form with `change` made to it means.
fn changed(change: impl FnOnce(&mut Vec<Part>)) -> Result<Seen, String> {
    let mut parts = good().to_vec();
    change(&mut parts);
    ask(&parts)
}

#[test]
fn forms_of_every_known_client_are_the_same_request() {
    let expected = ask(&good()).expect("a crop request");
    assert_eq!(expected.size, (400, 300));
    assert_eq!((expected.format, &expected.image[..]), (ImageFormat::Png, &png(640, 427)[..]));
    for [image, width, height] in [
        // Java, PHP, Ruby, Go: a file name and a type.
        [
            "Content-Disposition: form-data; name=\"image\"; filename=\"image.bin\"\r\nContent-Type: image/jpeg",
            "Content-Disposition: form-data; name=\"width\"",
            "Content-Disposition: form-data; name=\"height\"",
        ],
        // C#: unquoted names, a type on text, and the file name twice.
        [
            "Content-Type: image/png\r\nContent-Disposition: form-data; name=image; filename=a.png; filename*=utf-8''a.png",
            "Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name=width",
            "Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name=height",
        ],
        // Python in a function service: an empty file name on text.
        [
            "Content-Disposition: form-data; name=\"image\"; filename=\"bild ä.png\"",
            "Content-Disposition: form-data; name=\"width\"; filename=\"\"",
            "Content-Disposition: form-data; name=\"height\"; filename=\"\"",
        ],
        // Kotlin: lengths; older ones: an encoding.
        [
            "Content-Disposition: form-data; name=\"image\"\r\nContent-Type: application/octet-stream\r\nContent-Length: 24",
            "content-disposition: form-data; name=\"width\"\r\nContent-Length: 3",
            "Content-Disposition: form-data; name=\"height\"\r\nContent-Transfer-Encoding: binary",
        ],
    ] {
        let mut parts = good().to_vec();
        for (part, head) in parts.iter_mut().zip([image, width, height]) {
            part.head = head.to_owned();
        }
        assert_eq!(ask(&parts), Ok(expected.clone()), "{image}");
        // Swift sorts by name, others put the text first.
        parts.rotate_left(1);
        assert_eq!(ask(&parts), Ok(expected.clone()), "{image}");
        parts.swap(0, 1);
        assert_eq!(ask(&parts), Ok(expected.clone()), "{image}");
    }
}

#[test]
fn fields_are_told_apart_by_three_exact_names() {
    let extra = |name: &'static str| changed(|parts| parts.push(part(name, b"1"))).map(|seen| seen.ignored);
    for name in
        ["Image", "IMAGE", "image ", "image[]", "images", "widt", "width2", "Height", "type", "task_type"]
    {
        assert_eq!(extra(name), Ok(vec![name.replace(' ', "?")]), "{name}");
    }
    assert_eq!(extra("__proto__[x]"), Ok(vec!["__proto__[x]".to_owned()]));
    assert_eq!(extra(""), Ok(vec!["?".to_owned()]));
    assert_eq!(extra("größe"), Ok(vec!["gr??e".to_owned()]));
    assert_eq!(extra("image"), Err("DuplicateField { field: \"image\" }".to_owned()));
}

#[test]
fn ignored_fields_are_listed_once_each_in_bounded_visible_ascii() {
    let long = "n".repeat(3000);
    let result = changed(|parts| {
        parts.insert(0, Part::with_head("Content-Type: text/plain", b"no name"));
        parts.insert(2, Part::with_head("Content-Disposition: attachment; name=\"width\"", b"7"));
        parts.insert(2, Part::with_head(&format!("Content-Disposition: form-data; name=\"{long}\""), b""));
        parts.push(number("a", "1"));
        parts.push(number("a", "2"));
        parts.push(number("a,\\\"b", "2"));
        parts.extend((0..7).map(|_| Part::with_head("X: y", b"no name")));
    });
    assert_eq!(
        result.map(|seen| seen.ignored),
        Ok(vec!["?".to_owned(), "n".repeat(40), "a".to_owned(), "a?\"b".to_owned()])
    );
}

#[test]
fn a_form_that_lacks_or_repeats_a_field_is_refused_in_a_fixed_order() {
    let no = |names: &[&str]| changed(|parts| parts.retain(|part| !names.contains(&part.name))).map(|_| ());
    let again = |names: &[&str]| {
        let repeated = good().into_iter().filter(|part| names.contains(&part.name));
        changed(|parts| parts.splice(1..1, repeated).for_each(drop)).map(|_| ())
    };
    let empty = |names: &[&str]| {
        let is_emptied = |part: &&mut Part| names.contains(&part.name);
        changed(|parts| parts.iter_mut().filter(is_emptied).for_each(|part| part.data.clear())).map(|_| ())
    };
    for (names, first) in [
        (&["image"][..], "image"),
        (&["width"], "width"),
        (&["height"], "height"),
        (&["height", "width"], "width"),
        (&["width", "image"], "image"),
        (&["height", "image"], "image"),
        (&["image", "width", "height"], "image"),
    ] {
        assert_eq!(no(names), Err(format!("MissingField {{ field: {first:?} }}")));
        assert_eq!(again(names), Err(format!("DuplicateField {{ field: {first:?} }}")));
        assert_eq!(empty(names), Err(format!("EmptyField {{ field: {first:?} }}")));
    }
    assert_eq!(ask(&[]), Err("MissingField { field: \"image\" }".to_owned()));
}

#[test]
fn of_several_faults_the_graver_is_reported_wherever_it_stands() {
    // From the gravest to the lightest; each form has one fault and all lighter ones.
    let mut parts = good().to_vec();
    parts[0].data = b"GIF89a".to_vec();
    let check = |parts: &[Part], expected: &str| {
        for turn in 0..parts.len() {
            let mut turned = parts.to_vec();
            turned.rotate_left(turn);
            assert_eq!(ask(&turned), Err(expected.to_owned()));
            turned.reverse();
            assert_eq!(ask(&turned), Err(expected.to_owned()));
        }
    };
    check(&parts, "UnsupportedFile");
    parts[2].data = b"0".to_vec();
    check(&parts, "NumberOutOfRange { field: \"height\", shown: \"0\" }");
    parts[1].data = b"x".to_vec();
    check(&parts, "NumberOutOfRange { field: \"width\", shown: \"x\" }");
    parts[2].data = b" \t".to_vec();
    check(&parts, "EmptyField { field: \"height\" }");
    parts[0].data = Vec::new();
    check(&parts, "EmptyField { field: \"image\" }");
    let height = parts.pop().expect("the height");
    check(&parts, "MissingField { field: \"height\" }");
    parts.push(parts[1].clone());
    check(&parts, "DuplicateField { field: \"width\" }");
    parts.push(height);
    check(&parts, "DuplicateField { field: \"width\" }");
    parts[1].head.push_str("\r\nContent-Type: multipart/mixed");
    check(&parts, "BrokenMultipart(Nested)");
}

#[test]
fn a_size_is_a_decimal_integer_from_1_to_65535() {
    let size = |value: &str| changed(|parts| parts[1] = number("width", value)).map(|seen| seen.size.0);
    let zeros = |count: usize, digits: &str| format!("{}{digits}", "0".repeat(count));
    for (value, expected) in [
        ("1", 1),
        ("9", 9),
        ("10", 10),
        ("2000", 2000),
        ("2001", 2001),
        ("65535", 65_535),
        (" 400", 400),
        ("400 ", 400),
        ("\t 400 \t", 400),
        ("0400", 400),
        (" 000065535 ", 65_535),
        (&zeros(61, "400"), 400),
    ] {
        assert_eq!(size(value), Ok(expected), "{value:?}");
    }
    for (value, shown) in [
        ("0", "0"),
        ("00", "00"),
        ("65536", "65536"),
        ("99999", "99999"),
        ("4294967295", "4294967295"),
        ("4294967296", "4294967296"),
        ("4294967696", "4294967696"),
        ("18446744073709552016", "1844674407370955"),
        ("-1", "-1"),
        ("-0", "-0"),
        ("+5", "+5"),
        ("5.0", "5.0"),
        ("5.", "5."),
        ("5,0", "5,0"),
        ("1e3", "1e3"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("4 00", "4?00"),
        ("400px", "400px"),
        ("400%", "400%"),
        ("\"400\"", "\"400\""),
        ("NaN", "NaN"),
        ("null", "null"),
        ("undefined", "undefined"),
        ("[object Object]", "[object?Object]"),
        ("400\n", "400?"),
        ("400\r\n", "400??"),
        ("\n400", "?400"),
        ("400\0", "400?"),
        ("\u{a0}400", "?400"),
        ("\u{feff}400", "?400"),
        ("４００", "???"),
        ("٤٠٠", "???"),
        ("४००", "???"),
        ("²", "?"),
        ("\x1b[31m400", "?[31m400"),
        ("400\r\nSet-Cookie: a=b", "400??Set-Cookie:"),
        (&zeros(62, "400"), "0000000000000000"),
        (&" ".repeat(100), ""),
        (&"9".repeat(1 << 13), "9999999999999999"),
    ] {
        let expected = format!("NumberOutOfRange {{ field: \"width\", shown: {shown:?} }}");
        assert_eq!(size(value), Err(expected), "{value:?}");
    }
    let latin = changed(|parts| parts[2].data = b"\xB2\xFF\xFE1".to_vec());
    assert_eq!(latin, Err("NumberOutOfRange { field: \"height\", shown: \"???1\" }".to_owned()));
    assert_eq!(size(" "), Err("EmptyField { field: \"width\" }".to_owned()));
}

#[test]
fn a_picture_is_judged_by_its_bytes_alone() {
    let image = |bytes: &[u8]| changed(|parts| parts[0].data = bytes.to_vec()).map(|seen| seen.format);
    type Make = fn(u32, u32) -> Vec<u8>;
    let formats: [(ImageFormat, Make); 4] = [
        (ImageFormat::Jpeg, jpeg),
        (ImageFormat::Png, png),
        (ImageFormat::Webp, webp),
        (ImageFormat::Bmp, bmp),
    ];
    for (format, make) in formats {
        for (width, height) in [(1, 1), (10, 2000), (2000, 2000), (2000, 1)] {
            assert_eq!(image(&make(width, height)), Ok(format), "{format:?} {width} x {height}");
        }
        for (width, height) in [(2001, 1), (1, 2001), (60_000, 60_000)] {
            let expected = format!("ResolutionTooHigh {{ width: {width}, height: {height} }}");
            assert_eq!(image(&make(width, height)), Err(expected), "{format:?}");
        }
        // What follows the header, and what the part claims to be, change nothing.
        let tailed = [&make(20, 30)[..], b"<script>alert(1)</script>%PDF-1.7 GIF89a"].concat();
        assert_eq!(image(&tailed), Ok(format));
        let lying =
            "Content-Disposition: form-data; name=image; filename=a.svg\r\nContent-Type: image/svg+xml";
        let lied =
            changed(|parts| parts[0] = Part { name: "image", head: lying.to_owned(), data: make(20, 30) });
        assert_eq!(lied.map(|seen| seen.format), Ok(format));
        // Cut within the header: at first not even the format is known.
        for cut in 1..make(20, 30).len().min(24) {
            let result = image(&make(20, 30)[..cut]);
            let known = ImageFormat::sniff(&make(20, 30)[..cut]).is_some();
            assert!(
                result == Err(if known { "UnreadableHeader" } else { "UnsupportedFile" }.to_owned()),
                "{format:?} {cut}"
            );
        }
    }
    assert_eq!(image(&png(0, 5)), Err("UnreadableHeader".to_owned()));
    assert_eq!(image(&jpeg(5, 0)), Err("UnreadableHeader".to_owned()));
    assert_eq!(image(b"\xFF\xD8\xFF\xE0\0\0\0\0\0\0\0\0"), Err("UnreadableHeader".to_owned()));
    for other in [
        &b"GIF89a\x01\0\x01\0"[..],
        b"GIF87a\x01\0\x01\0",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<!DOCTYPE html><img>",
        b"%PDF-1.7\n",
        b"\0\0\0\x1cftypavif",
        b"\0\0\0\x18ftypheic",
        b"II*\0\x08\0\0\0",
        b"MM\0*\0\0\0\x08",
        b"\0\0\x01\0\x01\0",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"RIFF\0\0\0\0AVI ",
        b"\x89PNG\n\n\x1a\n",
        b"\xFF\xD8",
        b"qoif",
        b"{\"image\":1}",
        b"data:image/png;base64,iVBORw0KGgo=",
        b"iVBORw0KGgo=",
        b"https://example.com/a.png",
        b" \xFF\xD8\xFF",
        b"\0",
    ] {
        assert_eq!(image(other), Err("UnsupportedFile".to_owned()), "{:?}", String::from_utf8_lossy(other));
    }
}

#[test]
fn a_head_that_announces_no_acceptable_form_is_refused_without_a_body() {
    let limits = RequestLimits::default();
    let check = |lines: &[(&'static str, &'static str)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        check_head(&IMAGE_CROPPING, &headers, &limits).map(|_| ()).map_err(|error| format!("{error:?}"))
    };
    let form = ("content-type", "multipart/form-data; boundary=b");
    for (lines, expected) in [
        (&[form][..], Ok(())),
        (&[form, ("content-length", "0")], Ok(())),
        (&[form, ("content-length", "3686400")], Ok(())),
        (
            &[form, ("content-length", "3686401")],
            Err("DeclaredTooLarge { declared: 3686401, max_image: 3670016 }"),
        ),
        (
            &[form, ("content-length", "18446744073709551615")],
            Err("DeclaredTooLarge { declared: 18446744073709551615, max_image: 3670016 }"),
        ),
        (&[form, ("content-length", "18446744073709551616")], Ok(())),
        (&[form, ("content-length", "1, 1")], Ok(())),
        (&[], Err("NotMultipart(Absent)")),
        (&[("content-length", "5")], Err("NotMultipart(Absent)")),
        (&[form, form], Err("NotMultipart(Repeated)")),
        (&[("content-type", "application/json")], Err("NotMultipart(NotFormData)")),
        (&[("content-type", "multipart/form-data")], Err("NotMultipart(NoBoundary)")),
        (&[("content-type", "multipart/form-data; boundary=")], Err("NotMultipart(BadBoundary)")),
        (
            &[("content-type", "application/json"), ("content-length", "9999999")],
            Err("NotMultipart(NotFormData)"),
        ),
    ] {
        assert_eq!(check(lines), expected.map_err(str::to_owned), "{lines:?}");
    }
}

#[test]
fn the_limit_of_the_image_is_exact_and_stops_the_reading() {
    let max = RequestLimits::default().max_image_bytes;
    assert_eq!(max, 3_670_016);
    for (over, is_accepted) in [(-1, true), (0, true), (1, false)] {
        let mut image = png(640, 427);
        image.resize(max.checked_add_signed(over).expect("a length"), 7);
        for is_first in [true, false] {
            let mut parts = good().to_vec();
            parts[0].data = image.clone();
            if !is_first {
                parts.rotate_left(1);
            }
            let body = form("b", &parts);
            for (size, declared) in [(usize::MAX, Some(body.len())), (65_536, None), (1_000, Some(10))] {
                let head = head_of("b", declared, RequestLimits::default());
                let result = seen(now(read(head, pieces(&body, size)))).map(|seen| seen.image.len());
                let expected = if is_accepted {
                    Ok(image.len())
                } else {
                    Err(format!("ImageTooLarge {{ max: {max} }}"))
                };
                assert_eq!(result, expected);
            }
        }
    }
    // Nothing is asked for behind the piece with the first byte too many.
    let endless = form("b", &[part("image", &vec![0; 2 * max])]);
    let asked = AtomicUsize::new(0);
    let body = Pieces { asked: Some(&asked), ..pieces(&endless, 4096) };
    assert_eq!(seen(now(read(head(), body))), Err(format!("ImageTooLarge {{ max: {max} }}")));
    assert_eq!(asked.load(Ordering::Relaxed), max / 4096 + 1);
}

#[test]
fn the_limit_of_the_body_is_exact_and_stops_the_reading() {
    let limits = RequestLimits { max_image_bytes: 100 };
    let max = limits.max_body_bytes();
    assert_eq!(max, 100 + 16_384);
    for over in [-1, 0, 1] {
        for at in 0..4 {
            let mut parts = good().to_vec();
            parts.insert(at, number("note", ""));
            let length = form("b", &parts).len();
            parts[at].data = vec![b'x'; (max - length).checked_add_signed(over).expect("a length")];
            let body = form("b", &parts);
            for size in [usize::MAX, 4096, 1] {
                let result =
                    seen(now(read(head_of("b", None, limits), pieces(&body, size)))).map(|seen| seen.ignored);
                let expected = if over <= 0 {
                    Ok(vec!["note".to_owned()])
                } else {
                    Err(format!("BodyTooLarge {{ max: {max} }}"))
                };
                assert_eq!(result, expected, "{over} at {at} by {size}");
            }
        }
    }
    let asked = AtomicUsize::new(0);
    let endless = form("b", &[part("note", &vec![0; 10 * max])]);
    let body = Pieces { asked: Some(&asked), ..pieces(&endless, 64) };
    assert_eq!(
        seen(now(read(head_of("b", None, limits), body))),
        Err(format!("BodyTooLarge {{ max: {max} }}"))
    );
    assert_eq!(asked.load(Ordering::Relaxed), max / 64 + 1);
}

#[test]
fn a_body_is_read_to_its_very_end_so_that_the_connection_can_be_used_again() {
    let asked = AtomicUsize::new(0);
    let mut body = Pieces { asked: Some(&asked), ..pieces(&form("b", &good()), usize::MAX) };
    body.frames.push_back(Ok(Frame::data(Bytes::from_static(b"\r\nepilogue"))));
    body.frames.push_back(Ok(Frame::data(Bytes::new())));
    body.frames.push_back(Ok(Frame::trailers(HeaderMap::new())));
    assert_eq!(seen(now(read(head(), body))), ask(&good()));
    assert_eq!(asked.load(Ordering::Relaxed), 5);
}

#[test]
fn a_body_that_fails_says_whether_it_was_slow_or_long_or_broke_off() {
    #[derive(Debug, thiserror::Error)]
    #[error("a layer")]
    struct Wrapped(#[source] BoxError);
    let fails = |error: BoxError, after: usize| {
        let mut body = pieces(&form("b", &good())[..after], 10);
        body.frames.push_back(Err(error));
        seen(now(read(head(), body))).expect_err("a body that fails")
    };
    for after in [0, 5, 50] {
        assert_eq!(fails(BodyTooSlow.into(), after), "BodyTimeout");
        assert_eq!(fails(Wrapped(Wrapped(BodyTooSlow.into()).into()).into(), after), "BodyTimeout");
        assert_eq!(fails(std::io::Error::other(BodyTooSlow).into(), after), "BodyTimeout");
        assert_eq!(fails("reset".into(), after), "Body(\"reset\")");
    }
    let limited = Limited::new(Full::new(Bytes::from(form("b", &good()))), 20);
    assert_eq!(seen(now(read(head(), limited))), Err("BodyTooLarge { max: 3686400 }".to_owned()));
}

#[test]
fn reading_can_be_moved_between_threads() {
    fn is_send<T: Send>(_: &T) {}
    is_send(&read(head(), Full::new(Bytes::new())));
}

#[test]
fn no_way_of_cutting_a_form_in_two_or_three_changes_what_it_means() {
    let mut twice = good().to_vec();
    twice.push(twice[1].clone());
    let mut tiny = good().to_vec();
    tiny[1].data = b"-1".to_vec();
    for parts in [&good()[..], &twice, &tiny] {
        let body = form("b", parts);
        let whole = ask(parts);
        for first in (0..=body.len()).step_by(2) {
            for second in (first..=body.len()).step_by(3) {
                let cuts = [&body[..first], &body[first..second], &body[second..]];
                let frames = cuts.map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).into();
                let result = seen(now(read(head(), Pieces { frames, asked: None })));
                assert_eq!(result, whole, "at {first} and {second}");
            }
        }
    }
}

/// A part of this name as some client might write it.
fn dressed(name: &'static str, data: Vec<u8>) -> impl Strategy<Value = Part> {
    let file = prop::option::of(
        "(; filename=\"[a-zA-Z0-9 .;=]{0,20}\"|; filename=[a-z.]{1,9}|; filename\\*=utf-8''[a-z%]{1,9})",
    );
    let headers = prop::option::of(select(vec![
        "Content-Type: image/png",
        "Content-Type: text/plain; charset=utf-8",
        "content-type:application/octet-stream\r\nContent-Length: 1",
        "Content-Transfer-Encoding: binary",
        "X-Anything: \"; name=width",
    ]));
    (any::<bool>(), any::<bool>(), file, headers).prop_map(move |(is_quoted, is_first, file, headers)| {
        let quote = if is_quoted { "\"" } else { "" };
        let file = file.unwrap_or_default();
        let disposition = if is_first {
            format!("Content-Disposition: form-data; name={quote}{name}{quote}{file}")
        } else {
            format!("CONTENT-DISPOSITION:form-data{file};Name={quote}{name}{quote}")
        };
        let head =
            headers.map_or_else(|| disposition.clone(), |headers| format!("{headers}\r\n{disposition}"));
        Part { name, head, data: data.clone() }
    })
}

/// A picture of any bytes behind its header, up to a few pieces of what is hashed at once.
fn picture() -> impl Strategy<Value = Vec<u8>> {
    let header = prop_oneof![Just(png(9, 8)), Just(jpeg(9, 8)), Just(webp(9, 8)), Just(bmp(9, 8))];
    let length = prop_oneof![4 => 0..300_usize, 1 => 0..300_000_usize];
    (header, length, any::<u64>()).prop_map(|(header, length, seed)| {
        let noise = (0..length as u64).map(|n| ((seed ^ n).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8);
        header.into_iter().chain(noise).collect()
    })
}

fn cases(cases: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig { cases: cases.max(config.cases), ..config }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn nothing_but_the_picture_and_two_numbers_matters(
        (image, parts) in picture().prop_flat_map(|image| (
            Just(image.clone()),
            (dressed("image", image), dressed("width", b"17".to_vec()), dressed("height", b" 018".to_vec()))
                .prop_flat_map(|(image, width, height)| Just(vec![image, width, height]).prop_shuffle()),
        )),
        boundary in "[a-zA-Z0-9'()+_,./:=?-]{8,70}",
        cuts in vec(any::<Index>(), 0..8),
        declared in prop::option::of(0..400_000_usize),
    ) {
        let body = form(&boundary, &parts);
        let result = seen(now(read(head_of(&boundary, declared, RequestLimits::default()), pieces_cut(&body, &cuts))));
        let result = result.expect("a crop request");
        prop_assert_eq!(result.key, CacheKey::of(&image, 17, 18));
        prop_assert_eq!(result.image, image);
        prop_assert!(result.ignored.is_empty());
    }

    #[test]
    fn any_other_byte_or_number_is_another_request(
        image in picture(), at in any::<Index>(), bit in 0..8_u8,
        width in 1..=65_535_u32, height in 1..=65_535_u32, other in 1..=65_535_u32,
    ) {
        let key = |image: &[u8], width: u32, height: u32| {
            let parts = [part("image", image), number("width", &width.to_string()), number("height", &height.to_string())];
            ask(&parts).map(|seen| seen.key)
        };
        let first = key(&image, width, height).expect("a crop request");
        let mut flipped = image.clone();
        flipped[at.index(image.len())] ^= 1 << bit;
        prop_assert_ne!(key(&flipped, width, height), Ok(first));
        prop_assert_ne!(key(&image[..image.len() - 1], width, height), Ok(first));
        prop_assert_ne!(key(&[&image[..], b"\0"].concat(), width, height), Ok(first));
        prop_assert_eq!(key(&image, other, height) == Ok(first), other == width);
        prop_assert_eq!(key(&image, width, other) == Ok(first), other == height);
        prop_assert_eq!(key(&image, height, width) == Ok(first), height == width);
    }
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn the_order_of_the_fields_does_not_change_what_is_wrong(
        image in select(vec![png(9, 8), png(9, 2001), b"GIF89a".to_vec(), png(9, 8)[..20].to_vec(), Vec::new()]),
        width in select(vec!["5", "", " ", "0", "x", "65536"]),
        height in select(vec!["5", "", " ", "0", "x", "65536"]),
        left_out in vec(select(vec!["image", "width", "height"]), 0..2),
        repeated in vec(select(vec!["image", "width", "height"]), 0..3),
        turns in vec(any::<Index>(), 6),
    ) {
        let all = [part("image", &image), number("width", width), number("height", height)];
        let mut parts: Vec<Part> = all.iter().filter(|part| !left_out.contains(&part.name)).cloned().collect();
        parts.extend(all.iter().filter(|part| repeated.contains(&part.name)).cloned());
        let first = ask(&parts);
        for turn in turns {
            let count = parts.len().max(1);
            if !parts.is_empty() {
                parts.swap(0, turn.index(count));
                parts.rotate_left(1);
            }
            prop_assert_eq!(ask(&parts), first.clone());
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(body in vec(any::<u8>(), 0..400), cuts in vec(any::<Index>(), 0..4)) {
        let whole = seen(now(read(head(), pieces(&body, usize::MAX))));
        prop_assert_eq!(&seen(now(read(head(), pieces_cut(&body, &cuts)))), &whole);
    }

    #[test]
    fn a_damaged_form_never_panics_and_means_the_same_however_it_is_cut(
        image in select(vec![png(9, 8), jpeg(9, 8), webp(9, 8), bmp(9, 8)]),
        damage in vec((any::<Index>(), 0..5_usize, any::<u8>(), any::<Index>()), 1..8),
        cuts in vec(any::<Index>(), 0..6),
    ) {
        let mut body = form("b", &[part("image", &image), number("width", "5"), number("height", "7")]);
        for (at, how, byte, other) in damage {
            let at = at.index(body.len() + 1);
            let other = other.index(body.len() + 1);
            match how {
                0 if at < body.len() => body[at] = byte,
                1 if at < body.len() => drop(body.remove(at)),
                2 if at < body.len() => body[at] ^= 1 << (byte % 8),
                3 => {
                    let copy = body[at.min(other)..at.max(other).min(at.min(other) + 60)].to_vec();
                    body.splice(at..at, copy);
                }
                _ => body.insert(at, byte),
            }
        }
        let whole = seen(now(read(head(), pieces(&body, usize::MAX))));
        prop_assert_eq!(&seen(now(read(head(), pieces_cut(&body, &cuts)))), &whole);
        prop_assert_eq!(&seen(now(read(head(), pieces(&body, 1)))), &whole);
    }

    #[test]
    fn a_damaged_picture_never_panics(
        image in select(vec![png(9, 8), jpeg(9, 8), webp(9, 8), bmp(9, 8)]),
        damage in vec((any::<Index>(), any::<u8>()), 1..12),
        tail in vec(any::<u8>(), 0..40),
    ) {
        let mut image = image;
        for (at, byte) in damage {
            let at = at.index(image.len());
            image[at] = byte;
        }
        image.extend(tail);
        let _ = changed(|parts| parts[0].data = image);
    }

    #[test]
    fn a_size_means_the_number_its_digits_spell_or_nothing(text in "[ \t]{0,2}[-+]?[0-9 .e]{0,7}[ \t]{0,2}") {
        let digits = text.trim_matches([' ', '\t']);
        let plain = digits.chars().all(|letter| letter.is_ascii_digit()).then(|| digits.parse::<u64>().ok()).flatten();
        let expected = plain.filter(|number| (1..=65_535).contains(number));
        let size = changed(|parts| parts[2] = number("height", &text)).ok().map(|seen| u64::from(seen.size.1));
        prop_assert_eq!(size, expected);
    }
}
