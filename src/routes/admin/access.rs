//! Who may ask and change: whoever has an admin token, or, where none is configured, whoever is on
//! this machine. Health and metrics are for everyone who reaches the listener.
//!
//! A page in an operator's browser reaches what the browser reaches. So a change that another site's
//! page asked for is refused; and where no token is asked for, so is every request by a name that is
//! not this machine's own, since a page may have its site's name point here.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, CACHE_CONTROL, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::AdminState;
use super::HEALTH_PATHS;
use super::failure::AdminFailure;
use crate::ledger::admin::Actor;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Lets those in who may, and says who they are.
pub(super) async fn layer(State(state): State<AdminState>, mut request: Request, next: Next) -> Response {
    if HEALTH_PATHS.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let mut response = match actor(&state, &request) {
        Ok(actor) => {
            request.extensions_mut().insert(actor);
            next.run(request).await
        }
        Err(failure) => failure.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn actor(state: &AdminState, request: &Request) -> Result<Actor, AdminFailure> {
    let headers = request.headers();
    let tokens = state.tokens.load();
    let actor = match &**tokens {
        Some(tokens) => {
            let id = tokens.authenticate(headers.get_all(AUTHORIZATION).iter());
            Actor::token(id.ok_or_else(AdminFailure::unauthorized)?)
        }
        None if is_local_name(headers) => Actor::loopback(),
        None => return Err(AdminFailure::foreign_name()),
    };
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    if changes && is_cross_site(headers) {
        return Err(AdminFailure::cross_site());
    }
    Ok(actor)
}

/// Does a page of another site ask? Browsers say so; who is none says nothing.
fn is_cross_site(headers: &HeaderMap) -> bool {
    let site = headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
    if site.is_some_and(|site| !matches!(site, b"same-origin" | b"none")) {
        return true;
    }
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let authority = origin.to_str().ok().and_then(|origin| Some(origin.split_once("://")?.1));
    authority.is_none() || authority != headers.get(HOST).and_then(|host| host.to_str().ok())
}

/// Is the listener called by an address, or as this machine is called by itself? A name that is in
/// nobody's DNS but ours cannot be a trap.
fn is_local_name(headers: &HeaderMap) -> bool {
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
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_page_of_another_site_is_known_by_what_its_browser_says() {
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
    fn a_name_that_others_can_point_here_is_not_this_machines() {
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
}
