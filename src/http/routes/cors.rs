//! CORS. An origin is allowed when it is configured, or when every one is; no other is ever repeated. There
//! is no credentials mode: a script sets the token's header itself. Errors carry the headers too.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, AGE, AUTHORIZATION,
    CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE, ORIGIN, PRAGMA, RANGE, RETRY_AFTER, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::{Head, respond};
use crate::teams::API_KEY_HEADER;

/// Of a preflight, in seconds; the most that browsers accept.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");
/// Chrome asks before a public page may call a private address.
const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");
/// Lets a page with `Cross-Origin-Embedder-Policy: require-corp` show an image.
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// Pages of the configured origins may call the API; any page may read results.
pub(super) struct CorsRules {
    api: Rules,
    results: Rules,
}

struct Rules {
    allows_any: bool,
    methods: &'static str,
    headers: HeaderValue,
    exposed: HeaderValue,
}

impl CorsRules {
    pub(super) fn new() -> Self {
        // Libraries add all but the first to every call of a page.
        let names =
            [API_KEY_HEADER, "traceparent", "tracestate", "baggage", "x-requested-with", "x-request-id"];
        let ours = [CONTENT_TYPE, AUTHORIZATION, CACHE_CONTROL, respond::REFRESH, IF_NONE_MATCH, PRAGMA];
        let asked = [&names.map(HeaderName::from_static)[..], &ours].concat();
        Self {
            api: Rules::new(false, "GET, HEAD, POST", &asked),
            results: Rules::new(true, "GET, HEAD", &[RANGE, IF_RANGE, IF_NONE_MATCH]),
        }
    }

    /// Adds the headers to the answer.
    pub(super) fn add_to(&self, head: &Head<'_>, headers: &mut HeaderMap) {
        let rules = if head.parts.uri.path().starts_with("/results/") { &self.results } else { &self.api };
        let (allowed, varies) = rules.allowed(head);
        if rules.allows_any {
            headers.insert(RESOURCE_POLICY, HeaderValue::from_static("cross-origin"));
        }
        if varies {
            headers.append(VARY, HeaderValue::from_name(ORIGIN));
        }
        let Some(allowed) = allowed else { return };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        if is_preflight(head) {
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(rules.methods));
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, rules.headers.clone());
            headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
            if head.headers().contains_key(REQUEST_PRIVATE_NETWORK) {
                headers.insert(ALLOW_PRIVATE_NETWORK, HeaderValue::from_static("true"));
            }
        } else {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, rules.exposed.clone());
        }
    }
}

/// It is answered on any path without a handler, so that a page can read the 404 of the call that follows.
pub(super) fn is_preflight(head: &Head<'_>) -> bool {
    let asked = head.headers();
    head.parts.method == Method::OPTIONS
        && asked.contains_key(ORIGIN)
        && asked.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

impl Rules {
    fn new(allows_any: bool, methods: &'static str, headers: &[HeaderName]) -> Self {
        use respond::{
            CACHE_STATUS, CHARGED, IGNORED, KEY, REASON, REQUEST_ID, SAVED, SERVER_TIMING, UPSTREAM,
        };
        let ours = [CACHE_STATUS, REASON, KEY, CHARGED, SAVED, IGNORED, UPSTREAM, REQUEST_ID, SERVER_TIMING];
        let exposed = [&[RETRY_AFTER, AGE, ETAG][..], &ours].concat();
        let list = |names: &[HeaderName]| {
            let names: Vec<_> = names.iter().map(HeaderName::as_str).collect();
            respond::header(&names.join(", "))
        };
        Self { allows_any, methods, headers: list(headers), exposed: list(&exposed) }
    }

    /// The value of `Access-Control-Allow-Origin`, and whether it depends on the request.
    fn allowed(&self, head: &Head<'_>) -> (Option<HeaderValue>, bool) {
        if self.allows_any {
            return (Some(HeaderValue::from_static("*")), false);
        }
        let origins = head.policy.origins();
        let asking = head.headers().get(ORIGIN);
        (asking.filter(|origin| origins.contains(origin)).cloned(), !origins.is_empty())
    }
}
