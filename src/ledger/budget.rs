//! Budgets, their calendar windows, and the rest after an unknown outcome. Pure: reads no clock.

use std::fmt;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Unit};

use crate::base::words::words;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    Global,
    Team(String),
    /// The calls of one team that the upstream refused for their picture or numbers.
    Refused(String),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Global => f.write_str("global"),
            Self::Team(name) => write!(f, "team:{name}"),
            Self::Refused(name) => write!(f, "refused:{name}"),
        }
    }
}

words! {
    /// In the configured time zone.
    #[derive(Hash)]
    pub enum Window {
        Day = "daily",
        Month = "monthly",
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    pub scope: Scope,
    pub window: Window,
    /// Credits.
    pub limit: u64,
    /// `false` only counts (shadow mode).
    pub enforced: bool,
}

/// In the current window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    pub budget: Budget,
    /// Credits.
    pub used: u64,
}

impl Used {
    /// 0 when a lowered budget is overdrawn.
    pub fn left(&self) -> u64 {
        self.budget.limit.saturating_sub(self.used)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetRefusal {
    pub budget: Budget,
    pub resets_at: Timestamp,
    pub resets_in: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// `2026-11-22`.
    pub day: String,
    /// `2026-11`.
    pub month: String,
    pub day_ends: Timestamp,
    pub month_ends: Timestamp,
}

impl Windows {
    /// With daylight saving: a day may have 23 hours.
    pub fn at(now: Timestamp, zone: &TimeZone) -> Self {
        let local = now.to_zoned_datetime(zone.clone());
        let start_of = |date: jiff::civil::Date| {
            date.to_zoned_datetime(zone.clone()).map_or(Timestamp::MAX, |start| start.timestamp())
        };
        Self {
            day: local.strftime("%Y-%m-%d").to_string(),
            month: local.strftime("%Y-%m").to_string(),
            day_ends: local.date().tomorrow().map_or(Timestamp::MAX, start_of),
            month_ends: local.date().last_of_month().tomorrow().map_or(Timestamp::MAX, start_of),
        }
    }

    /// The name of a window, and when it ends.
    pub fn of(&self, window: Window) -> (&str, Timestamp) {
        match window {
            Window::Day => (&self.day, self.day_ends),
            Window::Month => (&self.month, self.month_ends),
        }
    }
}

/// When a key may be bought again (`None`: now), from the ends of its `unknown` and `unfetchable` calls,
/// oldest first: a minute after the first of the last 24 hours, ten minutes after the second, and after the
/// third not before the first is a day old.
pub fn rests_until(doubtful: &[Timestamp], now: Timestamp) -> Option<Timestamp> {
    let day = jiff::SignedDuration::from_hours(24);
    let recent: Vec<Timestamp> = doubtful.iter().copied().filter(|&at| at + day > now).collect();
    let until = match recent.as_slice() {
        [] => return None,
        [only] => *only + jiff::SignedDuration::from_secs(60),
        [_, last] => *last + jiff::SignedDuration::from_mins(10),
        [.., third_last, _, _] => *third_last + day,
    };
    (until > now).then_some(until)
}

pub fn until(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or(Duration::ZERO)
}

pub fn show(instant: Timestamp) -> String {
    instant.round(Unit::Second).unwrap_or(instant).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a timestamp in the test")
    }

    #[test]
    fn windows_follow_the_calendar_of_the_zone() {
        let berlin = TimeZone::get("Europe/Berlin").expect("a known zone");
        for (now, day, month, day_ends, month_ends) in [
            ("2026-11-22T23:30:00Z", "2026-11-23", "2026-11", "2026-11-23T23:00:00Z", "2026-11-30T23:00:00Z"),
            // The night the clocks go forward: the day has 23 hours.
            ("2026-03-29T00:59:59Z", "2026-03-29", "2026-03", "2026-03-29T22:00:00Z", "2026-03-31T22:00:00Z"),
            // And back: 25 hours.
            ("2026-10-25T00:30:00Z", "2026-10-25", "2026-10", "2026-10-25T23:00:00Z", "2026-10-31T23:00:00Z"),
            ("2026-12-31T23:00:00Z", "2027-01-01", "2027-01", "2027-01-01T23:00:00Z", "2027-01-31T23:00:00Z"),
        ] {
            let windows = Windows::at(at(now), &berlin);
            assert_eq!(
                windows,
                Windows {
                    day: day.into(),
                    month: month.into(),
                    day_ends: at(day_ends),
                    month_ends: at(month_ends)
                },
                "{now}"
            );
        }
    }

    #[test]
    fn overdrawn_budget_has_nothing_left() {
        let budget = Budget { scope: Scope::Global, window: Window::Day, limit: 10, enforced: true };
        for (used, left) in [(0, 10), (7, 3), (10, 0), (11, 0)] {
            assert_eq!(Used { budget: budget.clone(), used }.left(), left, "{used}");
        }
    }

    #[test]
    fn instant_is_shown_in_whole_seconds() {
        assert_eq!(show(at("2026-11-22T12:00:00.6Z")), "2026-11-22T12:00:01Z");
    }

    #[test]
    fn a_key_rests_longer_after_each_doubtful_outcome() {
        let now = at("2026-11-22T12:00:00Z");
        let ago = |seconds: i64| now - jiff::SignedDuration::from_secs(seconds);
        for (ended, rests_for) in [
            (vec![], None),
            (vec![ago(59)], Some(1)),
            (vec![ago(60)], None),
            (vec![ago(700), ago(599)], Some(1)),
            (vec![ago(700), ago(600)], None),
            (vec![ago(86_400), ago(60)], None),
            (vec![ago(86_399), ago(4000), ago(3000)], Some(1)),
            (vec![ago(86_400), ago(4000), ago(3000)], None),
            (vec![ago(9000), ago(8000), ago(4000), ago(3000)], Some(86_400 - 8000)),
        ] {
            let expected = rests_for.map(|seconds| now + jiff::SignedDuration::from_secs(seconds));
            assert_eq!(rests_until(&ended, now), expected, "{ended:?}");
        }
    }
}
