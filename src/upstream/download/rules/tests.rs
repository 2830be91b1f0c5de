use proptest::prelude::{any, prop_assert, proptest};

use super::*;

fn rules(entries: &[&str]) -> Vec<HostRule> {
    entries.iter().map(|entry| entry.parse().expect("an entry")).collect()
}

/// What rules say of `scheme host port`: `no`, `public`, `https first` or `anywhere`.
fn verdict(rules: &[HostRule], place: &str) -> &'static str {
    let (scheme, rest) = place.split_once("://").expect("a scheme");
    let scheme = Scheme::parse(scheme).expect("http or https");
    let (host, port) = split_port(rest).expect("a port");
    let host = parse_host(host).expect("a host");
    match permission(rules, scheme, &host, port.unwrap_or(scheme.default_port())) {
        None => "no",
        Some(Permission { anywhere: true, https_first: false }) => "anywhere",
        Some(Permission { anywhere: false, https_first: true }) => "https first",
        Some(Permission { anywhere: false, https_first: false }) => "public",
        Some(Permission { anywhere: true, https_first: true }) => panic!("named, and yet guessed at"),
    }
}

fn check(rules: &[HostRule], places: &[(&str, &str)]) {
    for (place, expected) in places {
        assert_eq!(verdict(rules, place), *expected, "{place}");
    }
}

#[test]
fn by_default_https_goes_anywhere_public_and_http_to_the_vendor() {
    assert_eq!(
        HostRule::defaults(),
        rules(&["https://*", "http://*.ailabtools.com", "http://*.aliyuncs.com"])
    );
    check(
        &HostRule::defaults(),
        &[
            ("https://any.example", "public"),
            ("https://ANY.example:443", "public"),
            ("https://any.example:8443", "no"),
            ("http://any.example", "no"),
            ("http://ai-result-rapidapi.ailabtools.com", "https first"),
            ("http://b.oss-cn-shanghai.aliyuncs.com", "https first"),
            ("http://B.OSS.ALIYUNCS.COM", "https first"),
            ("http://b.oss.aliyuncs.com:8080", "no"),
            ("http://aliyuncs.com", "no"),
            ("http://evilaliyuncs.com", "no"),
            ("http://aliyuncs.com.evil.example", "no"),
            ("https://8.8.8.8", "no"),
            ("https://[2606:4700::1]", "no"),
            ("http://8.8.8.8", "no"),
        ],
    );
}

#[test]
fn an_entry_names_scheme_host_and_port() {
    let rules = rules(&["http://127.0.0.1:9000", "cdn.example", "https://*.b.example:8443", "[::1]:1"]);
    check(
        &rules,
        &[
            ("http://127.0.0.1:9000", "anywhere"),
            ("https://127.0.0.1:9000", "no"),
            ("http://127.0.0.1", "no"),
            ("http://127.0.0.2:9000", "no"),
            ("https://cdn.example", "anywhere"),
            ("https://CDN.example:443", "anywhere"),
            ("http://cdn.example", "no"),
            ("https://a.cdn.example", "no"),
            ("https://a.b.example:8443", "public"),
            ("https://x.a.b.example:8443", "public"),
            ("https://b.example:8443", "no"),
            ("https://a.b.example", "no"),
            ("https://[::1]:1", "anywhere"),
            ("https://[0:0::1]:1", "anywhere"),
            ("https://other.example", "no"),
        ],
    );
    check(&[], &[("https://any.example", "no")]);
}

#[test]
fn naming_a_host_counts_beside_a_wildcard_whatever_the_order() {
    for entries in [["http://*.example", "http://a.example"], ["http://a.example", "http://*.example"]] {
        check(&rules(&entries), &[("http://a.example", "anywhere"), ("http://b.example", "https first")]);
    }
}

#[test]
fn a_wrong_entry_is_quoted_with_the_reason() {
    for entry in [
        "",
        "://",
        "https://",
        "ftp://a.example",
        "a.example:",
        "a.example:0",
        "a.example:65536",
        "a.example:+1",
        "a.example/path",
        "https://a.example/",
        "u@a.example",
        "*a.example",
        "*.",
        "**",
        "*.1.2.3.4",
        "*.127.1",
        "a..example",
        ".example",
        "example.",
        "-a.example",
        "a-.example",
        "bücher.example",
        "127.1",
        "0x7f000001",
        "2130706433",
        "0177.0.0.1",
        "1.2.3.4.5",
        "[::1",
        "::1",
        "[1.2.3.4]",
        "[fe80::1%eth0]",
        "a b",
        "a\n",
        "https://a.example?x",
        "https://a.example#x",
    ] {
        let error = entry.parse::<HostRule>().expect_err(entry).to_string();
        assert!(error.starts_with(&format!("{entry:?} is not")), "{error}");
    }
    assert_eq!(
        "ftp://a.example".parse::<HostRule>().unwrap_err().to_string(),
        "\"ftp://a.example\" is not an entry for result_hosts: the scheme is not http or https; \
         write [scheme://]host[:port], such as \"https://*.example.com\""
    );
}

#[test]
fn an_entry_means_the_same_as_its_full_spelling() {
    for (entry, full) in [
        ("*", "https://*:443"),
        ("HTTP://*.Example", "http://*.example:80"),
        ("a.example:1", "https://a.example:1"),
        ("http://[0::1]:8080", "http://[::1]:8080"),
        ("http://127.0.0.1", "http://127.0.0.1:80"),
    ] {
        assert_eq!(entry.parse::<HostRule>(), full.parse());
    }
}

proptest! {
    #[test]
    fn no_entry_makes_a_panic(entry in any::<String>()) {
        let _ = entry.parse::<HostRule>();
    }

    #[test]
    fn a_name_is_never_an_address(host in "[0-9a-fx.]{1,20}") {
        if let Some(Host::Domain(name)) = parse_host(&host) {
            // The system's resolver reads numbers where the last label is one.
            let last = name.rsplit('.').next().unwrap();
            prop_assert!(!last.starts_with(|first: char| first.is_ascii_digit()));
        }
    }
}
