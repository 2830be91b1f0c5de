use proptest::prelude::{any, prop_assert, proptest};

use super::*;

fn parsed(text: &str) -> ResultUrl {
    ResultUrl::parse(text).unwrap_or_else(|reason| panic!("{text}: {reason}"))
}

#[test]
fn path_and_query_stay_byte_for_byte_but_for_what_browsers_escape() {
    for (url, target) in [
        ("https://h.example/a.png", "/a.png"),
        (
            "http://b.oss-cn-shanghai.aliyuncs.com/x/y.png?Expires=1&OSSAccessKeyId=k&Signature=a%2Fb%2B%3D",
            "/x/y.png?Expires=1&OSSAccessKeyId=k&Signature=a%2Fb%2B%3D",
        ),
        ("https://h.example/%7e/%2E%2e/../b//c/./%c3%A9", "/%7e/%2E%2e/../b//c/./%c3%A9"),
        ("https://h.example/a'(b)*!;:@&=+$,|{}[]^~?/?x=%zz&&=", "/a'(b)*!;:@&=+$,|{}[]^~?/?x=%zz&&="),
        ("https://h.example/é?ü", "/%C3%A9?%C3%BC"),
        ("https://h.example/a b.png?Signature=x y%2F", "/a%20b.png?Signature=x%20y%2F"),
        ("https://h.example/a%20b", "/a%20b"),
        ("https://h.example/<a>\"`", "/%3Ca%3E%22%60"),
        (" https://h.example/a \n", "/a"),
        ("https://h.example/a\tb\r\nc", "/abc"),
        ("https://h.example/a?b#c?d", "/a?b"),
        ("https://h.example/#x", "/"),
        ("https://h.example", "/"),
        ("https://h.example?x=1", "/?x=1"),
        ("https://h.example/a:b@c", "/a:b@c"),
    ] {
        let url = parsed(url);
        assert_eq!(url.path_and_query.as_str(), target);
        assert_eq!(url.path_and_query.to_string(), target);
    }
}

#[test]
fn the_place_is_read_strictly() {
    let place = |text| {
        let url = parsed(text);
        (url.scheme, url.host.to_string(), url.port)
    };
    assert_eq!(place("HTTPS://H.Example/"), (Scheme::Https, "h.example".to_owned(), 443));
    assert_eq!(place("http://h.example:8080/"), (Scheme::Http, "h.example".to_owned(), 8080));
    // What comes after the fragment's sign is no place, whatever it looks like.
    assert_eq!(place("https://h.example#@evil.example:1/"), (Scheme::Https, "h.example".to_owned(), 443));
    assert_eq!(place("https://h.example?@evil.example:1/"), (Scheme::Https, "h.example".to_owned(), 443));
    assert_eq!(place("http://[::1]:1/"), (Scheme::Http, "[::1]".to_owned(), 1));
    assert_eq!(
        place("https://xn--bcher-kva.example/"),
        (Scheme::Https, "xn--bcher-kva.example".to_owned(), 443)
    );
    for wrong in [
        "",
        "/",
        "//h.example/",
        "h.example/a",
        "https:/h.example",
        "https:h.example",
        "ftp://h.example/",
        "file:///etc/passwd",
        "gopher://h.example/",
        "data:image/png;base64,x",
        "https://",
        "https:///a",
        "https://h.example/\0a",
        "https:// h.example/",
        "https://h.example /",
        "https://h.example/\x7fa",
        "https://h.example\\@evil.example/",
        "https://u@h.example/",
        "https://u:p@h.example/",
        "https://h.example:443@evil.example/",
        "https://h.example:/",
        "https://h.example:0/",
        "https://h.example:99999/",
        "https://h.example:80:80/",
        "https://.h.example/",
        "https://h..example/",
        "https://h.example./",
        "https://localhost%2eexample/",
        "https://h%00.example/",
        "https://bücher.example/",
        "https://ⓔxample.com/",
        "https://127.1/",
        "https://0x7f.0.0.1/",
        "https://0177.0.0.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://1.2.3.4.5/",
        "https://1.2.3.4./",
        "https://[::1/",
        "https://::1/",
        "https://[v1.x]/",
        "https://[fe80::1%25eth0]/",
    ] {
        let reason = match ResultUrl::parse(wrong) {
            Ok(_) => panic!("{wrong:?} was read"),
            Err(reason) => reason,
        };
        assert!(!reason.contains("example"), "{reason}");
    }
    assert!(ResultUrl::parse(&format!("https://h.example/{}", "a".repeat(MAX_URL_BYTES))).is_err());
}

#[test]
fn redirect_leads_where_browsers_go() {
    let base = parsed("http://h.example:81/a/b/c.png?Signature=x%2Fy");
    for (location, expected) in [
        ("https://other.example/d?e=%2F", "https other.example 443 /d?e=%2F"),
        ("//other.example/d", "http other.example 80 /d"),
        ("/d%2Fe?f", "http h.example 81 /d%2Fe?f"),
        ("?g=1", "http h.example 81 /a/b/c.png?g=1"),
        ("d.png?u=https://h.example/x", "http h.example 81 /a/b/d.png?u=https://h.example/x"),
        ("./d.png", "http h.example 81 /a/b/d.png"),
        ("../d.png", "http h.example 81 /a/d.png"),
        ("../../../d.png", "http h.example 81 /d.png"),
        ("#top", "http h.example 81 /a/b/c.png?Signature=x%2Fy"),
        ("/with a blank", "http h.example 81 /with%20a%20blank"),
    ] {
        let next = base.join(location).unwrap_or_else(|reason| panic!("{location}: {reason}"));
        let place = format!("{} {} {} {}", next.scheme.as_str(), next.host, next.port, next.path_and_query);
        assert_eq!(place, expected, "{location}");
    }
    for location in
        ["ftp://h.example/", "file:///etc/passwd", "//u@h.example/", "/\\h.example", "https://127.1/"]
    {
        assert!(base.join(location).is_err(), "{location}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_a_panic(text in any::<String>()) {
        let _ = ResultUrl::parse(&text);
        let _ = ResultUrl::parse(&format!("https://{text}"));
        let _ = ResultUrl::parse(&format!("http://h.example/{text}"));
        let _ = parsed("http://h.example/a/b").join(&text);
    }

    #[test]
    fn what_is_read_is_what_was_written(tail in r#"[!#-;=?-_a-~]{0,80}"#) {
        if let Ok(url) = ResultUrl::parse(&format!("https://h.example/{tail}")) {
            let expected = tail.split('#').next().unwrap();
            prop_assert!(url.path_and_query.as_str().strip_prefix('/') == Some(expected));
        }
    }
}
