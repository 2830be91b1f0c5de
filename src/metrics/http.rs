//! The families about requests on the public listener, whatever they ask for.

use std::time::Duration;

use http::{Method, StatusCode};
use prometheus::{Histogram, IntCounterVec, IntGauge};

use super::Metrics;
use super::families::{Each, Families};
use super::labels::{Label, labels};

/// Request durations, in seconds.
pub(super) const REQUEST_BUCKETS: [f64; 15] =
    [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0];
/// Bytes of a body: 16 KiB to 64 MiB.
const BODY_BUCKETS: [f64; 13] = [
    16_384.0,
    32_768.0,
    65_536.0,
    131_072.0,
    262_144.0,
    524_288.0,
    1_048_576.0,
    2_097_152.0,
    4_194_304.0,
    8_388_608.0,
    16_777_216.0,
    33_554_432.0,
    67_108_864.0,
];

labels! {
    /// What was asked for. Paths themselves never become labels.
    pub enum Route {
        /// The drop-in endpoint.
        Crop = "crop",
        /// Its hash-first look-up.
        LookUp = "lookup",
        /// A result.
        Result = "result",
        /// What a team may still spend.
        Credits = "credits",
        /// The page for whoever calls.
        Page = "page",
        /// Anything else.
        Unmatched = "unmatched",
    }
}

impl Route {
    /// The word in labels and in the log.
    pub fn as_str(self) -> &'static str {
        Label::as_str(self)
    }

    /// The statuses a request by the route's own methods is answered with.
    fn statuses(self) -> &'static [u16] {
        match self {
            Self::Crop => &[200, 400, 401, 403, 408, 413, 415, 417, 422, 429, 500, 502, 503, 504],
            Self::LookUp => &[200, 400, 401, 403, 404, 500, 503],
            Self::Result => &[200, 206, 304, 403, 404, 416, 500, 503],
            Self::Credits => &[200, 400, 401, 403, 500, 503],
            Self::Page => &[200, 403, 500],
            // Refused for their heads, too: nobody has looked where they were to go.
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

labels! {
    /// Whose a bad answer is.
    enum StatusClass {
        Ok = "ok",
        ClientError = "client_error",
        ServerError = "server_error",
    }
}

impl StatusClass {
    fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            0..=399 => Self::Ok,
            400..=499 => Self::ClientError,
            _ => Self::ServerError,
        }
    }
}

/// Statuses that have series; any other is `other`, since the upstream may answer what it likes.
const STATUSES: [u16; 31] = [
    200, 204, 206, 304, 400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 413, 414, 415, 416, 417, 418, 421,
    422, 429, 431, 500, 501, 502, 503, 504, 505, 529,
];

/// A status as a word of a closed set.
fn status_label(status: &StatusCode) -> &str {
    if STATUSES.contains(&status.as_u16()) { status.as_str() } else { "other" }
}

const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH", OTHER_METHOD];
const OTHER_METHOD: &str = "other";

/// A method as a word of a closed set: clients may write anything there, a token too.
pub fn method_label(method: &Method) -> &'static str {
    METHODS.into_iter().find(|known| *known == method.as_str()).unwrap_or(OTHER_METHOD)
}

/// See the module.
pub(super) struct HttpFamilies {
    requests: IntCounterVec,
    duration: Each<Route, Each<StatusClass, Histogram>>,
    in_flight: Each<Route, IntGauge>,
    request_bytes: Each<Route, Histogram>,
    response_bytes: Each<Route, Histogram>,
}

impl HttpFamilies {
    pub(super) fn new(families: &Families<'_>) -> Self {
        let duration = families.histogram(
            "granary_http_request_duration_seconds",
            "Time from a request's head to its answer (grain: requests)",
            &["route", "outcome"],
            &REQUEST_BUCKETS,
        );
        let all = Self {
            requests: families.counter(
                "granary_http_requests_total",
                "HTTP requests on the public listener by route, method and status (grain: requests)",
                &["route", "method", "code"],
            ),
            duration: Each::new(|route: Route| {
                Each::new(|class: StatusClass| duration.with_label_values(&[route.as_str(), class.as_str()]))
            }),
            in_flight: families.gauges(
                "granary_http_requests_in_flight",
                "Requests whose head was read and whose answer is not there yet (grain: requests)",
                "route",
            ),
            request_bytes: families.histograms(
                "granary_http_request_body_bytes",
                "Bytes that were read of a request's body (grain: requests)",
                "route",
                &BODY_BUCKETS,
            ),
            response_bytes: families.histograms(
                "granary_http_response_body_bytes",
                "Bytes of an answer's body (grain: requests)",
                "route",
                &BODY_BUCKETS,
            ),
        };
        all.zero();
        all
    }

    /// What there may be: the answers of each route, and what any method may hear there.
    fn zero(&self) {
        let expect = |route: Route, method: &str, status: &str| {
            self.requests.with_label_values(&[route.as_str(), method, status]);
        };
        for route in Route::ALL {
            for method in route.methods() {
                for status in route.statuses() {
                    expect(*route, method, &status.to_string());
                }
            }
            // Preflights, and the question which methods there are.
            expect(*route, "OPTIONS", "204");
            for method in METHODS.iter().filter(|method| !route.methods().contains(method)) {
                if *method != "OPTIONS" {
                    expect(*route, method, "405");
                }
            }
        }
    }
}

/// A request under way; it counts as such until this is dropped, also when its client hangs up.
pub struct InFlight(IntGauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A request that was answered.
pub struct ServedRequest<'a> {
    /// What was asked for.
    pub route: Route,
    /// How.
    pub method: &'a Method,
    /// How it was answered.
    pub status: StatusCode,
    /// How long that took.
    pub took: Duration,
    /// Bytes read of its body.
    pub bytes_in: u64,
    /// Bytes of its answer's.
    pub bytes_out: u64,
}

impl Metrics {
    /// A request's head was read.
    pub fn begun(&self, route: Route) -> InFlight {
        let gauge = self.http.in_flight[route].clone();
        gauge.inc();
        InFlight(gauge)
    }

    /// A request on the public listener was answered.
    pub fn served(&self, request: &ServedRequest<'_>) {
        let ServedRequest { route, method, status, took, bytes_in, bytes_out } = *request;
        let labels = [route.as_str(), method_label(method), status_label(&status)];
        self.http.requests.with_label_values(&labels).inc();
        self.http.duration[route][StatusClass::of(status)].observe(took.as_secs_f64());
        self.http.request_bytes[route].observe(bytes_in as f64);
        self.http.response_bytes[route].observe(bytes_out as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(metrics: &Metrics, method: &str, status: u16) {
        let method = Method::from_bytes(method.as_bytes()).expect("a token");
        metrics.served(&ServedRequest {
            route: Route::Unmatched,
            method: &method,
            status: StatusCode::from_u16(status).expect("a status"),
            took: Duration::ZERO,
            bytes_in: 0,
            bytes_out: 0,
        });
    }

    #[test]
    fn an_unheard_of_method_makes_no_series_of_its_own() {
        let metrics = Metrics::new(["local"].into_iter(), 7);
        for method in ["BREW", "PROPFIND", "X"] {
            served(&metrics, method, 404);
        }
        let text = String::from_utf8(metrics.render()).expect("the exposition is UTF-8");
        assert!(
            text.contains(r#"granary_http_requests_total{code="404",method="other",route="unmatched"} 3"#)
        );
    }

    #[test]
    fn a_request_is_in_flight_until_it_is_answered_or_given_up() {
        let metrics = Metrics::new(["local"].into_iter(), 7);
        let in_flight = || metrics.http.in_flight[Route::Crop].get();
        let (one, other) = (metrics.begun(Route::Crop), metrics.begun(Route::Crop));
        assert_eq!(in_flight(), 2);
        drop(one);
        assert_eq!(in_flight(), 1);
        drop(other);
        assert_eq!(in_flight(), 0);
    }
}
