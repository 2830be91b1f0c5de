//! One log line per request on the public listener. Its fields are stable; the README has their table. No
//! text of a client is written verbatim: values are of closed sets, of the configuration, or digits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::base::outcome::CacheStatus;
use crate::error::GatewayError;
use crate::gateway::RequestTiming;
use crate::metrics::{Route, method_label};
use crate::teams::Team;

#[derive(Clone, Debug, Default)]
pub(super) struct LogContext {
    pub(super) team: Option<Arc<Team>>,
    pub(super) cache: Option<CacheStatus>,
    /// Charged, and saved.
    pub(super) credits: Option<(u64, u64)>,
    pub(super) timing: RequestTiming,
}

pub(super) struct Line<'a> {
    pub(super) id: &'a str,
    pub(super) caller: Option<&'a TraceParent>,
    pub(super) route: Route,
    pub(super) method: &'a Method,
    pub(super) status: StatusCode,
    pub(super) error: Option<&'a GatewayError>,
    pub(super) took: Duration,
    pub(super) bytes_out: u64,
    pub(super) context: &'a LogContext,
}

impl Line<'_> {
    /// Leaves out empty fields.
    pub(super) fn write(&self) {
        let LogContext { team, cache, credits, timing } = self.context;
        let response = self.error.map(GatewayError::response);
        let upstream_status = timing.upstream.and_then(|(_, status)| status);
        tracing::info!(
            request_id = self.id,
            trace_id = self.caller.map(|caller| &*caller.trace_id),
            parent_id = self.caller.map(|caller| &*caller.parent_id),
            method = method_label(self.method),
            route = self.route.as_str(),
            status = self.status.as_u16(),
            team = team.as_ref().map(|team| &*team.name),
            cache = cache.map(CacheStatus::as_str),
            key = timing.key.map(tracing::field::display),
            code = response.as_ref().map(|response| response.code.name),
            reason = response.as_ref().and_then(|response| response.reason),
            credits_charged = credits.map(|(charged, _)| charged),
            credits_saved = credits.map(|(_, saved)| saved),
            bytes_in = timing.body_bytes,
            bytes_out = self.bytes_out,
            upstream_status = upstream_status.map(|status| status.as_u16()),
            upstream_ms = timing.upstream.map(|(took, _)| milliseconds(took)),
            waited_ms = milliseconds(timing.waited()),
            duration_ms = milliseconds(self.took),
            "request"
        );
    }
}

fn milliseconds(time: Duration) -> f64 {
    // To the microsecond: more digits are noise.
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// W3C Trace Context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TraceParent {
    trace_id: Box<str>,
    parent_id: Box<str>,
}

impl TraceParent {
    /// `None` unless there is exactly one valid header.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all("traceparent").iter();
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        Self::parse(value.to_str().ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('-');
        let (version, trace_id, parent_id) = (fields.next()?, fields.next()?, fields.next()?);
        let flags = fields.next()?;
        let is_hex = |field: &str, digits: usize| {
            field.len() == digits && field.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let is_id = |field: &str, digits| is_hex(field, digits) && field.bytes().any(|byte| byte != b'0');
        // Later versions may have further fields.
        let is_whole = version != "00" || fields.next().is_none();
        let is_valid = is_hex(version, 2)
            && version != "ff"
            && is_id(trace_id, 32)
            && is_id(parent_id, 16)
            && is_hex(flags, 2)
            && is_whole;
        is_valid.then(|| Self { trace_id: trace_id.into(), parent_id: parent_id.into() })
    }
}

const LINES_A_SECOND: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);

/// Limits the log lines about refusals that anyone can cause, by status, and logs how many were left out.
#[derive(Clone, Default)]
pub(super) struct Sampler(Arc<Mutex<BTreeMap<u16, Sampled>>>);

struct Sampled {
    since: Instant,
    lines: u32,
    left_out: u64,
}

impl Sampler {
    /// Needs a runtime: a task reports the lines that are left out.
    pub(super) fn admits(&self, status: StatusCode) -> bool {
        let now = Instant::now();
        let mut all = self.0.lock();
        let none = Sampled { since: now, lines: 0, left_out: 0 };
        let sampled = all.entry(status.as_u16()).or_insert(none);
        if now - sampled.since >= SECOND {
            (sampled.since, sampled.lines) = (now, 0);
        }
        sampled.lines += 1;
        if sampled.lines <= LINES_A_SECOND {
            return true;
        }
        sampled.left_out += 1;
        if sampled.left_out == 1 {
            let (sampler, ends) = (self.clone(), sampled.since + SECOND);
            tokio::spawn(async move {
                tokio::time::sleep_until(ends).await;
                sampler.report(status);
            });
        }
        false
    }

    fn report(&self, status: StatusCode) {
        let left_out =
            self.0.lock().get_mut(&status.as_u16()).map(|sampled| std::mem::take(&mut sampled.left_out));
        tracing::info!(status = status.as_u16(), left_out, "refused requests without a line of their own");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";

    #[test]
    fn a_traceparent_is_read_as_the_standard_says_or_not_at_all() {
        let seen = |text: &str| {
            let found = TraceParent::parse(text)?;
            assert_eq!((&*found.trace_id, &*found.parent_id), (TRACE, PARENT), "{text}");
            Some(())
        };
        for good in [
            format!("00-{TRACE}-{PARENT}-01"),
            format!("00-{TRACE}-{PARENT}-00"),
            format!("01-{TRACE}-{PARENT}-01"),
            format!("cc-{TRACE}-{PARENT}-01-what-is-still-to-come"),
        ] {
            assert!(seen(&good).is_some(), "{good}");
        }
        for bad in [
            String::new(),
            "00".to_owned(),
            format!("ff-{TRACE}-{PARENT}-01"),
            format!("00-{TRACE}-{PARENT}-01-more"),
            format!("00-{TRACE}-{PARENT}"),
            format!("00-{TRACE}-{PARENT}-1"),
            format!("00-{TRACE}-{PARENT}-0g"),
            format!("00-{}-{PARENT}-01", TRACE.to_uppercase()),
            format!("00-{}-{PARENT}-01", &TRACE[1..]),
            format!("00-{}-{PARENT}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{TRACE}-{}\n-01", &PARENT[1..]),
            format!(" 00-{TRACE}-{PARENT}-01"),
        ] {
            assert!(seen(&bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn two_of_them_are_none() {
        let value: http::HeaderValue = format!("00-{TRACE}-{PARENT}-01").parse().expect("a value");
        let mut headers = HeaderMap::new();
        headers.append("traceparent", value.clone());
        assert!(TraceParent::of(&headers).is_some());
        headers.append("traceparent", value);
        assert_eq!(TraceParent::of(&headers), None);
    }

    #[tokio::test(start_paused = true)]
    async fn flood_of_refusals_writes_ten_lines_a_second_and_the_rest_is_counted() {
        let sampler = Sampler::default();
        let ask = |status, times| (0..times).filter(|_| sampler.admits(status)).count();
        assert_eq!(ask(StatusCode::UNAUTHORIZED, 23_000), 10);
        assert_eq!(ask(StatusCode::NOT_FOUND, 3), 3, "each status has lines of its own");
        let left_out = |status: StatusCode| sampler.0.lock()[&status.as_u16()].left_out;
        assert_eq!((left_out(StatusCode::UNAUTHORIZED), left_out(StatusCode::NOT_FOUND)), (22_990, 0));
        tokio::time::sleep(SECOND * 2).await;
        assert_eq!(left_out(StatusCode::UNAUTHORIZED), 0, "it was context");
        assert_eq!(ask(StatusCode::UNAUTHORIZED, 11), 10);
    }
}
