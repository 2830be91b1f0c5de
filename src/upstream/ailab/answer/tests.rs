use http::HeaderValue;

use super::*;
use crate::base::operation::IMAGE_CROPPING;

const KEY: &str = "server-held-secret-key-0123456789";

fn classified(status: u16, headers: &[(header::HeaderName, &str)], body: &str) -> Reply {
    let headers: HeaderMap =
        headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect();
    let body = Bytes::copy_from_slice(body.as_bytes());
    classify(StatusCode::from_u16(status).unwrap(), &headers, &body, &IMAGE_CROPPING, &Secret::new(KEY))
}

fn envelope(status: u16, code: &str) -> String {
    format!(r#"{{"error_code":{status},"error_detail":{{"status_code":{status},"code":"{code}"}}}}"#)
}

/// A reply in a word or two.
fn summary(reply: &Reply) -> String {
    let error = |reply: &ErrorReply| {
        let body = if reply.body.is_some() { "its body" } else { "no body" };
        format!("{} {:?} {body}", reply.status.as_u16(), reply.code)
    };
    match reply {
        Reply::Answered(_) => "answered".to_owned(),
        Reply::Refused(refusal) => format!("{:?}: {}", refusal.kind, error(&refusal.reply)),
        Reply::Failed(reply) => format!("failed: {}", error(reply)),
        Reply::NotSent(error) => format!("not sent: {error}"),
        Reply::Unknown(cause) => format!("unknown: {cause:?}"),
    }
}

#[test]
fn each_documented_answer_has_its_class() {
    let check = |status, code: &str, expected: &str| {
        let reply = classified(status, &[], &envelope(status, code));
        assert_eq!(summary(&reply), format!("{expected}: {status} {code:?} its body"));
    };
    for (status, code) in [
        (400, "ERROR_PARAMETERS"),
        (400, "UNSUPPORTED_PARAMETER_VALUES"),
        (413, "FILE_SIZE_EXCEEDS_LIMIT"),
        (415, "ERROR_UNSUPPORTED_GRAYSCALE_IMAGE"),
        (422, "FILE_DECODING_FAILURE"),
    ] {
        check(status, code, "Order");
    }
    for (status, code) in [
        (401, "ERROR_USER_NOT_EXISTS"),
        (401, "ERROR_APPLICATIONS_NOT_EXISTS"),
        (403, "ERROR_USER_LOCKED"),
        (403, "ERROR_ILLEGAL_OPERATION"),
    ] {
        check(status, code, "Key");
    }
    for (status, code) in [
        (402, "X"),
        (403, "ERROR_ILLEGAL_FILE"),
        (404, "ERROR_AI_NOT_EXISTS"),
        (405, "ERROR_ILLEGAL_OPERATION"),
        (406, "ERROR_INVALID_RESPONSE_FORMAT"),
        (409, "ERROR_TASK_CONFLICT"),
    ] {
        check(status, code, "Other");
    }
    check(429, "ERROR_NOT_ENOUGH_CREDITS", "Credits");
    check(429, "EXCEEDING_LIMITS", "Flow { retry_after: None }");
    check(503, "AI_SERVICE_FLOW_RESTRICTION", "Flow { retry_after: None }");
    for (status, code) in [
        (500, "PROCESSING_FAILURE"),
        (502, "AI_SERVICE_ERROR"),
        (503, "ERROR_RESOURCE_UNAVAILABLE"),
        (503, "ERROR_NOT_ENOUGH_CREDITS"),
        (504, "AI_SERVICE_TIMEOUT"),
    ] {
        check(status, code, "failed");
    }
}

#[test]
fn the_newer_envelope_without_numbers_is_understood() {
    let newer = r#"{"request_id":"r","log_id":"1","error_detail":{"code":"EXCEEDING_LIMITS"}}"#;
    let flow = "Flow { retry_after: Some(12s) }: 429 \"EXCEEDING_LIMITS\" its body";
    assert_eq!(summary(&classified(429, &[(header::RETRY_AFTER, " 12")], newer)), flow);
}

#[test]
fn retry_after_is_taken_in_seconds_only() {
    for (value, expected) in [
        ("0", Some(0)),
        ("120", Some(120)),
        ("-1", None),
        ("1.5", None),
        ("", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT", None),
        // Nobody waits for longer than an hour, and no sum with it may overflow.
        ("3600", Some(3600)),
        ("3601", Some(3600)),
        ("18446744073709551615", Some(3600)),
        ("99999999999999999999", Some(3600)),
        ("+7", None),
        ("1e3", None),
    ] {
        let headers = [(header::RETRY_AFTER, value)].map(|(name, value)| (name, value.parse().unwrap()));
        let wait = retry_after(&headers.into_iter().collect());
        assert_eq!(wait, expected.map(Duration::from_secs), "{value}");
    }
}

#[test]
fn a_bare_refusal_is_one_by_its_status_and_its_body_stays_here() {
    for (status, expected) in [(400, "Order"), (401, "Key"), (403, "Key"), (404, "Other"), (413, "Order")] {
        for body in ["", "<html>", r#"{"message":"You are not subscribed to this API."}"#, "{\"data\":{}}"] {
            let reply = classified(status, &[], body);
            assert_eq!(summary(&reply), format!("{expected}: {status} \"\" no body"));
        }
    }
    let bare = classified(429, &[(header::RETRY_AFTER, "3")], "slow down");
    assert_eq!(summary(&bare), "Flow { retry_after: Some(3s) }: 429 \"\" no body");
    let coded = [(header::CONTENT_ENCODING, "gzip")];
    let compressed = classified(401, &coded, &envelope(401, "ERROR_USER_NOT_EXISTS"));
    assert_eq!(summary(&compressed), "Key: 401 \"\" no body");
}

#[test]
fn a_200_is_what_its_body_says() {
    let success = r#"{"error_code":0,"data":{"url":"https://h.example/a.png"}}"#;
    let identity = [(header::CONTENT_ENCODING, "identity")];
    for (headers, body, expected) in [
        (&[][..], success.to_owned(), "answered"),
        (&identity, success.to_owned(), "answered"),
        (&[(header::CONTENT_ENCODING, "")], success.to_owned(), "answered"),
        (&[], format!("\u{feff}{success}"), "answered"),
        (&[(header::CONTENT_ENCODING, "br")], success.to_owned(), "unknown: Garbage"),
        (&[], r#"{"error_code":0,"data":{"url":""}}"#.to_owned(), "unknown: NoResult"),
        (&[], r#"{"request_id":"r","data":null}"#.to_owned(), "unknown: NoResult"),
        (&[], envelope(422, "ERROR_X"), "failed: 200 \"ERROR_X\" its body"),
        (&[], envelope(200, "ERROR_X"), "failed: 200 \"ERROR_X\" its body"),
        (&[], envelope(9999, "ERROR_X"), "failed: 200 \"ERROR_X\" its body"),
        (&[], r#"{"error_code":-1}"#.to_owned(), "failed: 200 \"\" its body"),
        (&[], "{}".to_owned(), "unknown: Garbage"),
        (&[], "<html>".to_owned(), "unknown: Garbage"),
        (&[], success[..success.len() - 1].to_owned(), "unknown: Garbage"),
        (&[], format!("{success}{success}"), "unknown: Garbage"),
    ] {
        assert_eq!(summary(&classified(200, headers, &body)), expected, "{body}");
    }
}

#[test]
fn error_that_quotes_the_key_goes_on_without_its_text() {
    let escaped: String = KEY.bytes().map(|byte| format!("\\u{byte:04x}")).collect();
    for quoted in [KEY.to_owned(), KEY.to_uppercase(), KEY[..17].to_owned(), escaped] {
        for status in [400, 422, 429, 500] {
            let body = format!(
                r#"{{"error_code":{status},"error_msg":"bad {quoted}","error_detail":{{"code":"ERROR_X"}},"x":"other text"}}"#
            );
            let reply = match classified(status, &[], &body) {
                Reply::Refused(refusal) => refusal.reply,
                Reply::Failed(reply) => reply,
                other => panic!("{other:?}"),
            };
            assert_eq!(reply.code, "ERROR_X");
            let text = String::from_utf8(reply.body.expect("an envelope").to_vec()).unwrap();
            assert!(!quotes(&Secret::new(KEY), &text) && !text.contains("other text"), "{text}");
            assert!(
                matches!(Envelope::read(text.as_bytes(), &IMAGE_CROPPING), Ok(Envelope::Error { .. })),
                "{text}"
            );
        }
    }
    let as_code = envelope(400, &KEY.replace('-', "_"));
    let reply = format!("{:?}", classified(400, &[], &as_code));
    assert!(!quotes(&Secret::new(KEY), &reply), "{reply}");
}

#[test]
fn success_that_quotes_the_key_keeps_its_result_and_its_place() {
    let body = format!(
        r#"{{"request_id":"{KEY}","m":"other text","data":{{"url":"https://h.example/a","retain_location":{{"x":-1,"y":2.5,"k":"{KEY}"}}}}}}"#
    );
    let Reply::Answered(answer) = classified(200, &[], &body) else { panic!("not answered") };
    assert_eq!((answer.url().expose(), answer.request_id.as_str()), ("https://h.example/a", ""));
    let text = answer.text().expose();
    assert!(
        text.contains(r#""retain_location":{"y":2.5,"x":-1}"#)
            || text.contains(r#""retain_location":{"x":-1,"y":2.5}"#),
        "{text}"
    );
    assert!(!quotes(&Secret::new(KEY), text) && !text.contains("other text"), "{text}");
    let in_the_url = format!(r#"{{"error_code":0,"data":{{"url":"https://h.example/{KEY}/a"}}}}"#);
    assert_eq!(summary(&classified(200, &[], &in_the_url)), "unknown: NoResult");
}

#[test]
fn everything_else_is_unknown() {
    let success = r#"{"error_code":0,"data":{"url":"https://h.example/a.png"}}"#;
    for status in [201, 202, 204, 206, 300, 302, 304, 500, 502, 503, 599, 600, 999] {
        for body in ["", "<html>", success] {
            assert_eq!(summary(&classified(status, &[], body)), "unknown: Garbage", "{status} {body}");
        }
    }
    for status in [204, 302, 600] {
        assert_eq!(summary(&classified(status, &[], &envelope(500, "X"))), "unknown: Garbage", "{status}");
    }
}

#[test]
fn a_code_that_is_none_is_dropped() {
    for code in ["a b", "X\u{1b}[31m", &"A".repeat(65), "<script>"] {
        let body = serde_json::json!({"error_code": 400, "error_detail": {"code": code}}).to_string();
        assert_eq!(summary(&classified(400, &[], &body)), "Order: 400 \"\" its body");
    }
}
