//! Labels of HTTP requests on the public listener.

use http::{Method, StatusCode};
use prometheus::{IntCounter, IntCounterVec};

use super::family::{Family, Spec};
use super::labels::labels;

labels! {
    /// The matched route. Paths never become labels.
    pub enum Route {
        Crop = "crop", LookUp = "lookup", Result = "result", Credits = "credits", Page = "page",
        Unmatched = "unmatched",
    }
}

impl Route {
    /// The statuses of requests with the route's own methods.
    fn statuses(self) -> &'static [u16] {
        match self {
            Self::Crop => &[200, 400, 401, 403, 408, 413, 415, 417, 422, 429, 500, 502, 503, 504],
            Self::LookUp => &[200, 400, 401, 403, 404, 500, 503],
            Self::Result => &[200, 206, 304, 403, 404, 416, 500, 503],
            Self::Credits => &[200, 400, 401, 403, 500, 503],
            Self::Page => &[200, 403, 500],
            // Requests refused for their heads, before routing, too.
            Self::Unmatched => &[400, 403, 404, 405, 408, 414, 431, 500, 503],
        }
    }

    fn methods(self) -> &'static [&'static str] {
        match self {
            Self::Crop => &["POST"],
            Self::LookUp | Self::Result | Self::Credits | Self::Page => &["GET", "HEAD"],
            Self::Unmatched => &METHODS,
        }
    }
}

/// Statuses with series; any other is `other`, because the upstream's pass through.
const STATUSES: [u16; 31] = [
    200, 204, 206, 304, 400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 413, 414, 415, 416, 417, 418, 421,
    422, 429, 431, 500, 501, 502, 503, 504, 505, 529,
];

const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH", OTHER_METHOD];
const OTHER_METHOD: &str = "other";

/// A closed set: clients may write anything there, even a token.
pub fn method_label(method: &Method) -> &'static str {
    METHODS.into_iter().find(|known| *known == method.as_str()).unwrap_or(OTHER_METHOD)
}

pub(crate) struct HttpRequests(IntCounterVec);

impl HttpRequests {
    pub(crate) fn of(&self, route: Route, method: &Method, status: StatusCode) -> IntCounter {
        let is_known = STATUSES.contains(&status.as_u16());
        let status = if is_known { status.as_str() } else { "other" };
        self.0.with_label_values(&[route.as_str(), method_label(method), status])
    }
}

impl Family for HttpRequests {
    /// The zero values are the expected answers of each route, and those to any method.
    fn declare(spec: &Spec<'_>) -> Self {
        let all = IntCounterVec::declare(spec);
        let expect = |route: Route, method: &str, status: &str| {
            all.with_label_values(&[route.as_str(), method, status]);
        };
        for route in Route::ALL {
            for method in route.methods() {
                route.statuses().iter().for_each(|status| expect(route, method, &status.to_string()));
            }
            expect(route, "OPTIONS", "204");
            for method in METHODS.iter().filter(|method| !route.methods().contains(method)) {
                if *method != "OPTIONS" {
                    expect(route, method, "405");
                }
            }
        }
        Self(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn an_unheard_of_method_makes_no_series_of_its_own() {
        let metrics = Metrics::new(["local"].into_iter());
        for method in ["BREW", "PROPFIND", "X"] {
            let method = Method::from_bytes(method.as_bytes()).expect("a token");
            metrics.http_requests_total.of(Route::Unmatched, &method, StatusCode::NOT_FOUND).inc();
        }
        let text = String::from_utf8(metrics.render()).expect("the exposition is UTF-8");
        assert!(
            text.contains(r#"granary_http_requests_total{code="404",method="other",route="unmatched"} 3"#)
        );
    }
}
