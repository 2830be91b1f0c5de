use super::*;
use crate::base::operation::IMAGE_CROPPING;

const LEGACY: &str = r#"{"data":{"url":"https:\/\/h.example\/a.jpg?Signature=x%2Fy&n=1","retain_location":{"width": 298,"height":224,"y":0,"x":-0}},"error_code":0,"error_detail":{"status_code":200,"code":"","code_message":"","message":""},"log_id":"77496025","request_id":"A669","future":[1.50,{"z":null}]}"#;
const NEWER: &str = r#"{"request_id":"R","log_id":"L","error_detail":{"code":"","code_message":"","message":""},"data":{"url":"https://h.example/a.png"}}"#;

fn object() -> ObjectName {
    ObjectName::of(b"\x89PNG\r\n\x1a\n").expect("a PNG by its first bytes")
}

fn success(text: &str) -> Answer {
    Answer::read(text, &IMAGE_CROPPING).expect("a success")
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
    let text = r#"{"data":{"url":"https://h.example/s?a=1&b","copy":"https:\/\/h.example\/s?a=1\u0026b","near":"see https://h.example/s?a=1&b."},"q\"https://h.example/s?a=1&b":1}"#;
    let kept = success(text).keep(&object());
    let path = object().path();
    assert_eq!(
        kept,
        format!(
            r#"{{"data":{{"url":"{path}","copy":"{path}","near":"see [address removed]"}},"q\"[address removed]":1}}"#
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
        match Envelope::read(text.as_bytes(), &IMAGE_CROPPING) {
            Ok(Envelope::Error { code: named, .. }) => assert_eq!(named, code, "{text}"),
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
        assert!(matches!(Envelope::read(text.as_bytes(), &IMAGE_CROPPING), Ok(Envelope::NoResult)), "{text}");
    }
}

#[test]
fn whatever_is_not_an_envelope_is_refused() {
    let deep = format!(r#"{{"data":{}1{}}}"#, "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
    let endless = "[".repeat(200_000);
    for body in [
        &b""[..],
        b"<html></html>",
        b"[]",
        b"7",
        br#"{"message":"You are not subscribed to this API."}"#,
        br#"{"error_code":0} x"#,
        br#"{"error_code":0"#,
        b"{\"error_code\":0,\"x\":\"\0\"}",
        b"{\"error_code\":0}\0",
        deep.as_bytes(),
        endless.as_bytes(),
    ] {
        assert_eq!(
            Envelope::read(body, &IMAGE_CROPPING).err(),
            Some(NotAnEnvelope),
            "{:.80}",
            String::from_utf8_lossy(body)
        );
    }
}

#[test]
fn body_is_read_as_clients_in_wide_use_read_it() {
    let plain = r#"{"error_code":0,"data":{"url":"https://h/a"}}"#;
    let utf16: Vec<u8> =
        std::iter::once(0xFEFF).chain(plain.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    for body in [
        format!("\u{feff}{plain}").into_bytes(),
        format!("\r\n {plain}\n").into_bytes(),
        utf16,
        [b"{\"m\":\"caf\xe9\",", &plain.as_bytes()[1..]].concat(),
        br#"{"error_code":7,"error_code":0,"data":{"url":"https://h/old","url":"https://h/a"}}"#.to_vec(),
        br#"{"error_code":0.0,"data":{"url":"https://h/a"}}"#.to_vec(),
        br#"{"error_code":"0","data":{"url":"https://h/a"},"error_detail":null}"#.to_vec(),
        br#"{"error_code":0,"error_detail":{"code":"SUCCESS"},"data":{"url":"https://h/a"}}"#.to_vec(),
    ] {
        let text = String::from_utf8_lossy(&body).into_owned();
        let Ok(Envelope::Success(answer)) = Envelope::read(&body, &IMAGE_CROPPING) else { panic!("{text}") };
        assert_eq!(answer.url().expose(), "https://h/a", "{text}");
        // From the ledger it is read again.
        assert_eq!(success(answer.text().expose()).url().expose(), "https://h/a");
    }
}

#[test]
fn ids_are_cut_and_never_addresses() {
    let long = "é".repeat(100);
    let text =
        format!(r#"{{"request_id":"{long}","log_id":77496025,"data":{{"url":"https://h.example/a"}}}}"#);
    let answer = success(&text);
    assert_eq!((answer.request_id.as_str(), answer.log_id.as_str()), (&long[..128], "77496025"));
    let answer =
        success(r#"{"request_id":"https://x.example/?Signature=s","data":{"url":"https://h.example/a"}}"#);
    assert_eq!(answer.request_id, "");
}

#[test]
fn second_address_is_in_neither_the_kept_nor_the_passed_on_text() {
    let text = r#"{"data":{"url":"https://h.example/a?Signature=one","source":"http://o.example/b?Signature=two"},"error_msg":"stored at http://o.example/c?Signature=three ok"}"#;
    let answer = success(text);
    for text in [answer.text().expose().to_owned(), answer.keep(&object())] {
        assert!(!text.contains("two") && !text.contains("three") && !text.contains("o.example"), "{text}");
        assert!(text.contains(" ok"), "{text}");
    }
    let error =
        br#"{"error_code":500,"error_msg":"cannot read http://o.example/c?Signature=three","log_id":"1"}"#;
    let Ok(Envelope::Error { text, .. }) = Envelope::read(error, &IMAGE_CROPPING) else { panic!("no error") };
    assert_eq!(text, r#"{"error_code":500,"error_msg":"cannot read [address removed]","log_id":"1"}"#);
}

#[test]
fn shown_answer_names_no_more_than_the_results_host() {
    for (url, shown) in [
        ("http://h.example/p/q.png?Signature=s", "http://h.example/…"),
        ("https://u:p@h.example:81?p", "https://h.example:81/…"),
        ("data:image/png;base64,AAAA", "data:image/png;base64,…"),
        ("nonsense", "…"),
    ] {
        let answer = success(&serde_json::json!({"data": {"url": url}}).to_string());
        assert_eq!(answer.shown(), format!(r#"{{"data":{{"url":"{shown}"}}}}"#));
    }
}

proptest::proptest! {
    #[test]
    fn reading_never_panics(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let _ = Envelope::read(&body, &IMAGE_CROPPING);
        let _ = complete(&String::from_utf8_lossy(&body));
    }

    #[test]
    fn whatever_surrounds_the_url_is_kept(noise in "[^/%\\\\=.]*", more in "[^/%\\\\=.]*") {
        let text = serde_json::json!({"a": noise, "data": {"url": "https://h/x", "b": more}, "c": 1.0}).to_string();
        let kept = success(&text).keep(&object());
        let mut expected: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        expected["data"]["url"] = object().path().into();
        proptest::prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&kept).expect("JSON"), expected);
    }
}
