//! Requests that a page of another site may have made a browser send. With tokens such a page has none to
//! send. Without, any page could spend credits through the browser of someone on this machine.

use http::header::{HOST, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::Head;
use crate::error::GatewayError;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// On the public listener, while no teams are configured.
pub(super) fn check(head: &Head<'_>, public_root: &str) -> Result<(), GatewayError> {
    let Head { parts, policy, .. } = head;
    let refused = policy.teams().is_open().then(|| refusal(parts, policy.origins(), public_root)).flatten();
    refused.map_or(Ok(()), Err)
}

fn refusal(head: &Parts, origins: &[HeaderValue], public_root: &str) -> Option<GatewayError> {
    let headers = &head.headers;
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let public_host = public_root.split_once("://").map(|(_, host)| host);
    let is_public_host =
        text(HOST).zip(public_host).is_some_and(|(host, ours)| host.eq_ignore_ascii_case(ours));
    if !is_public_host && !is_local_name(headers) {
        return Some(GatewayError::ForeignName);
    }
    let origin = headers.get(ORIGIN);
    let is_allowed = origin.is_some_and(|origin| origins.contains(origin) || origin == public_root);
    let path = head.uri.path();
    // A link to the page at `/`.
    let is_visit = head.method == Method::GET
        && path == "/"
        && headers.get(SEC_FETCH_MODE).is_some_and(|mode| mode == "navigate");
    // Any page may show a result.
    let is_harmless = is_visit || path.starts_with("/results/");
    (is_cross_site(headers) && !is_allowed && !is_harmless).then_some(GatewayError::CrossSite)
}

/// Returns true for cross-site browser requests (`Sec-Fetch-Site`, `Origin`). Other clients send neither header.
pub(super) fn is_cross_site(headers: &HeaderMap) -> bool {
    let site = headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
    if site.is_some_and(|site| !matches!(site, b"same-origin" | b"none")) {
        return true;
    }
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let authority = origin.to_str().ok().and_then(|origin| Some(origin.split_once("://")?.1));
    authority.is_none() || authority != headers.get(HOST).and_then(|host| host.to_str().ok())
}

/// The Host is an address, or a name that always means this machine, which no other site can point here.
pub(super) fn is_local_name(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let Ok(url) = url::Url::parse(&format!("http://{host}/")) else { return false };
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(_) | url::Host::Ipv6(_)) => true,
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn cross_site_request_is_recognised_by_what_its_browser_says() {
        let host = ("host", "127.0.0.1:9090");
        for (said, is_foreign) in [
            (&[host][..], false),
            (&[host, ("sec-fetch-site", "none")], false),
            (&[host, ("sec-fetch-site", "same-origin"), ("origin", "http://127.0.0.1:9090")], false),
            (&[host, ("origin", "https://127.0.0.1:9090")], false),
            (&[host, ("sec-fetch-site", "cross-site")], true),
            (&[host, ("sec-fetch-site", "same-site")], true),
            (&[host, ("origin", "https://evil.example")], true),
            (&[host, ("origin", "http://127.0.0.1:8080")], true),
            (&[host, ("origin", "null")], true),
            (&[host, ("origin", "")], true),
            (&[("origin", "http://127.0.0.1:9090")], true),
        ] {
            assert_eq!(is_cross_site(&headers(said)), is_foreign, "{said:?}");
        }
    }

    #[test]
    fn name_that_another_site_can_point_here_is_not_local() {
        for (host, is_local) in [
            ("127.0.0.1:9090", true),
            ("[::1]:9090", true),
            ("10.1.2.3", true),
            ("localhost:9090", true),
            ("LocalHost", true),
            ("granary.localhost", true),
            ("granary.example:9090", false),
            ("localhost.evil.example", false),
            ("evil-localhost", false),
            ("localhost@evil.example", false),
            ("", false),
            ("a b", false),
        ] {
            assert_eq!(is_local_name(&headers(&[("host", host)])), is_local, "{host}");
        }
        assert!(is_local_name(&HeaderMap::new()), "no browser leaves it out");
    }

    #[test]
    fn without_teams_only_pages_of_ours_and_of_configured_origins_are_served() {
        let origins = [HeaderValue::from_static("https://shop.example")];
        let ask = |method: &str, path: &str, pairs: &[(&'static str, &str)]| {
            let mut request = Request::builder().method(method).uri(path).body(()).unwrap();
            *request.headers_mut() = headers(pairs);
            let refusal = refusal(&request.into_parts().0, &origins, "https://granary.example:8443");
            refusal.map(|error| error.response().reason.unwrap())
        };
        let (host, post) = (("host", "localhost:8080"), |pairs: &[_]| ask("POST", "/api", pairs));
        let cross_site = ("sec-fetch-site", "cross-site");
        for (said, refused) in [
            (&[host][..], None),
            (&[], None),
            (&[("host", "granary.example:8443")], None),
            (&[("host", "Granary.Example:8443"), ("origin", "https://granary.example:8443")], None),
            // Behind a proxy that names another host.
            (&[host, ("origin", "https://granary.example:8443"), ("sec-fetch-site", "same-origin")], None),
            (&[host, ("origin", "https://shop.example"), cross_site], None),
            (&[host, cross_site], Some("cross_site")),
            (&[host, ("sec-fetch-site", "same-site")], Some("cross_site")),
            (&[host, ("origin", "https://evil.example")], Some("cross_site")),
            (&[host, ("origin", "null")], Some("cross_site")),
            (
                &[host, ("origin", "http://localhost:3000"), ("sec-fetch-site", "same-site")],
                Some("cross_site"),
            ),
            (&[("host", "evil.example:8080")], Some("foreign_name")),
            (&[("host", "granary.example.evil.example")], Some("foreign_name")),
            (&[("host", "evil.example"), ("origin", "https://shop.example")], Some("foreign_name")),
            // Rebinding: to the browser it is the same site.
            (&[("host", "evil.example"), ("sec-fetch-site", "same-origin")], Some("foreign_name")),
        ] {
            assert_eq!(post(said), refused, "{said:?}");
        }
        let visit = [host, cross_site, ("sec-fetch-mode", "navigate")];
        assert_eq!(ask("GET", "/", &visit), None, "a link to the page");
        assert_eq!(ask("GET", "/", &[host, cross_site, ("sec-fetch-mode", "no-cors")]), Some("cross_site"));
        assert_eq!(ask("POST", "/", &visit), Some("cross_site"));
        assert_eq!(ask("GET", "/api", &visit), Some("cross_site"));
        assert_eq!(ask("GET", "/results/x.png", &[host, cross_site]), None, "any page may show a result");
        assert_eq!(ask("GET", "/results/x.png", &[("host", "evil.example")]), Some("foreign_name"));
    }
}
