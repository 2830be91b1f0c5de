use super::*;

const LEGACY: &str = r#"{"data":{"url":"https:\/\/h.example\/a.jpg?Signature=x%2Fy&n=1","retain_location":{"width": 298,"height":224,"y":0,"x":-0}},"error_code":0,"error_detail":{"status_code":200,"code":"","code_message":"","message":""},"log_id":"77496025","request_id":"A669","future":[1.50,{"z":null}]}"#;
const NEWER: &str = r#"{"request_id":"R","log_id":"L","error_detail":{"code":"","code_message":"","message":""},"data":{"url":"https://h.example/a.png"}}"#;

fn object() -> ObjectName {
    ObjectName::of(b"\x89PNG\r\n\x1a\n").expect("a PNG by its first bytes")
}

fn success(text: &str) -> Answer {
    Answer::read(text).expect("a success")
}

#[test]
fn both_documented_generations_are_successes() {
    let legacy = success(LEGACY);
    assert_eq!(legacy.url().expose(), "https://h.example/a.jpg?Signature=x%2Fy&n=1");
    assert_eq!((legacy.request_id.as_str(), legacy.log_id.as_str()), ("A669", "77496025"));
    assert_eq!(success(NEWER).url().expose(), "https://h.example/a.png");
}

#[test]
fn keeping_replaces_the_url_and_not_one_other_byte() {
    let path = object().path();
    let kept = success(LEGACY).keep(&object());
    assert_eq!(kept, LEGACY.replace(r"https:\/\/h.example\/a.jpg?Signature=x%2Fy&n=1", &path));
}

#[test]
fn a_second_copy_of_the_url_goes_too_however_it_is_escaped() {
    let text = r#"{"data":{"url":"https://h.example/s?a=1&b","copy":"https:\/\/h.example\/s?a=1\u0026b","near":"https://h.example/s?a=1&b."},"q\"https://h.example/s?a=1&b":1}"#;
    let kept = success(text).keep(&object());
    let path = object().path();
    assert_eq!(
        kept,
        format!(
            r#"{{"data":{{"url":"{path}","copy":"{path}","near":"https://h.example/s?a=1&b."}},"q\"https://h.example/s?a=1&b":1}}"#
        )
    );
}

#[test]
fn completing_adds_only_what_is_missing() {
    assert_eq!(complete(LEGACY), format!(r#"{},"error_msg":""}}"#, &LEGACY[..LEGACY.len() - 1]));
    assert_eq!(
        complete(NEWER),
        r#"{"request_id":"R","log_id":"L","error_detail":{"status_code":200,"code":"","code_message":"","message":""},"data":{"url":"https://h.example/a.png"},"error_code":0,"error_msg":""}"#
    );
    let complete_already =
        "{ \"error_code\" : 0,\n\"error_msg\":\"\", \"error_detail\":{\"status_code\":200} }\n";
    assert_eq!(complete(complete_already), complete_already, "blanks and all");
    for (odd, fixed) in [(r#""0""#, "0"), ("null", "0"), ("0", "0")] {
        let text = format!(r#"{{"error_code":{odd},"error_msg":"","error_detail":{{"status_code":200}}}}"#);
        assert_eq!(complete(&text), text.replace(odd, fixed));
    }
}

#[test]
fn errors_are_told_from_successes() {
    for (text, code) in [
        (r#"{"error_code":422,"error_detail":{"status_code":422,"code":"ERROR_X"}}"#, "ERROR_X"),
        (r#"{"error_code":400,"error_code_str":"OLD"}"#, "OLD"),
        (r#"{"request_id":"r","error_detail":{"code":"NEW"}}"#, "NEW"),
        (r#"{"error_code":"429","data":{"url":"https://h/x"}}"#, ""),
        (r#"{"error_code":-1}"#, ""),
    ] {
        match Envelope::read(text.as_bytes()) {
            Ok(Envelope::Error { code: named }) => assert_eq!(named, code, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    for text in [
        r#"{"error_code":0}"#,
        r#"{"error_code":0,"data":{}}"#,
        r#"{"error_code":0,"data":{"url":""}}"#,
        r#"{"error_code":0,"data":{"url":7}}"#,
        r#"{"error_code":0,"data":["url"]}"#,
    ] {
        assert!(matches!(Envelope::read(text.as_bytes()), Ok(Envelope::NoResult)), "{text}");
    }
}

#[test]
fn whatever_is_not_an_envelope_is_refused() {
    let deep = format!(r#"{{"data":{}1{}}}"#, "[".repeat(16), "]".repeat(16));
    let endless = "[".repeat(200_000);
    for body in [
        &b""[..],
        b"<html></html>",
        b"[]",
        b"7",
        br#"{"message":"You are not subscribed to this API."}"#,
        br#"{"error_code":0,"error_code":0}"#,
        br#"{"data":{"url":"https://h/a","url":"https://h/b"}}"#,
        br#"{"error_code":0} x"#,
        br#"{"error_code":0"#,
        b"{\"error_code\":0,\"x\":\"\xff\"}",
        b"{\"error_code\":0,\"x\":\"\0\"}",
        b"{\"error_code\":0}\0",
        b"\xef\xbb\xbf{\"error_code\":0}",
        b"\xff\xfe{\0\"\0d\0a\0t\0a\0\"\0:\0{\0}\0}\0",
        deep.as_bytes(),
        endless.as_bytes(),
    ] {
        assert_eq!(Envelope::read(body).err(), Some(NotAnEnvelope), "{:.80}", String::from_utf8_lossy(body));
    }
}

proptest::proptest! {
    #[test]
    fn reading_never_panics(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let _ = Envelope::read(&body);
        let _ = complete(&String::from_utf8_lossy(&body));
    }

    #[test]
    fn whatever_surrounds_the_url_is_kept(noise in ".*", more in ".*") {
        let text = serde_json::json!({"a": noise, "data": {"url": "https://h/x", "b": more}, "c": 1.0}).to_string();
        let kept = success(&text).keep(&object());
        let mut expected: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        expected["data"]["url"] = object().path().into();
        proptest::prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&kept).expect("JSON"), expected);
    }
}
