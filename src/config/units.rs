//! Durations, sizes and moments. Durations are at most a year, so that no deadline overflows a clock.

use std::fmt;
use std::time::Duration;

use jiff::fmt::friendly::{Spacing, SpanPrinter};
use jiff::{SignedDuration, Timestamp};
use toml::Value;

use super::setting::{Fault, Setting, kind, one, wrong};

const LONGEST: Duration = Duration::from_hours(366 * 24);

impl Setting for Duration {
    fn from_text(text: &str) -> Result<Self, String> {
        let wrong = |why| wrong(text, why);
        let unit = "write a duration with its unit, such as 500ms, 30s or 23h30m";
        let read: SignedDuration = text.parse().map_err(|_| wrong(unit))?;
        let read = Duration::try_from(read).map_err(|_| wrong("a duration cannot be negative"))?;
        if read > LONGEST { Err(wrong("write at most a year (8784h)")) } else { Ok(read) }
    }

    fn to_toml(&self) -> Option<Value> {
        let printer = SpanPrinter::new().spacing(Spacing::None);
        Some(Value::String(printer.unsigned_duration_to_string(self)))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Printed with the first that divides the size.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

impl ByteSize {
    pub const fn kib(count: u64) -> Self {
        Self(count << 10)
    }

    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().ok()?;
        let unit = unit.trim_start();
        let factor = match unit {
            "" => 1,
            unit => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
        };
        number.checked_mul(factor).filter(|bytes| i64::try_from(*bytes).is_ok()).map(Self)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = UNITS
            .into_iter()
            .find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor))
            .unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

impl Setting for ByteSize {
    fn from_text(text: &str) -> Result<Self, String> {
        let why = "write a whole number of bytes with its unit, such as 8KiB or 256MiB";
        Self::parse(text).ok_or_else(|| wrong(text, why))
    }

    fn from_toml(value: Value) -> Result<Self, Vec<Fault>> {
        match value {
            Value::String(text) => Self::from_text(&text).map_err(one),
            Value::Integer(bytes) if bytes >= 0 => Ok(Self(bytes.unsigned_abs())),
            other => Err(one(format!("is {}; write a size such as \"256MiB\"", kind(&other)))),
        }
    }

    fn to_toml(&self) -> Option<Value> {
        Some(Value::String(self.to_string()))
    }
}

/// A moment: RFC 3339, or a date alone for its beginning in UTC.
pub fn parse_moment(text: &str) -> Option<Timestamp> {
    if let Ok(moment) = text.parse() {
        return Some(moment);
    }
    let date: jiff::civil::Date = text.parse().ok().filter(|_| text.len() == "2027-01-31".len())?;
    date.to_zoned_datetime(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

impl Setting for Timestamp {
    fn from_text(text: &str) -> Result<Self, String> {
        let why = "write a date such as 2027-01-31, or a moment such as 2027-01-31T12:00:00Z";
        parse_moment(text).ok_or_else(|| wrong(text, why))
    }

    fn from_toml(value: Value) -> Result<Self, Vec<Fault>> {
        match value {
            Value::String(text) => Self::from_text(&text).map_err(one),
            Value::Datetime(moment) => Self::from_text(&moment.to_string()).map_err(one),
            other => Err(one(format!("is {}; write a date such as \"2027-01-31\"", kind(&other)))),
        }
    }

    fn to_toml(&self) -> Option<Value> {
        Some(Value::String(self.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        let check = |text, expected| assert_eq!(Duration::from_text(text).ok(), expected, "{text:?}");
        check("30s", Some(Duration::from_secs(30)));
        check("23h30m", Some(Duration::from_secs(84_600)));
        check("23h 30m", Some(Duration::from_secs(84_600)));
        check("500ms", Some(Duration::from_millis(500)));
        check("1.5s", Some(Duration::from_millis(1500)));
        check("2 minutes", Some(Duration::from_secs(120)));
        check("0s", Some(Duration::ZERO));
        check("8784h", Some(LONGEST));
        for wrong in
            ["", "30", "s", "-1s", "1s ago", "8785h", "99999999999999h", "30s30s", "30 parsecs", "NaN"]
        {
            check(wrong, None);
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let check = |text, expected| assert_eq!(ByteSize::from_text(text).ok(), expected, "{text:?}");
        check("256MiB", Some(ByteSize::mib(256)));
        check("8KiB", Some(ByteSize::kib(8)));
        check("8 kib", Some(ByteSize::kib(8)));
        check("2GiB", Some(ByteSize(2 << 30)));
        check("1TiB", Some(ByteSize(1 << 40)));
        check("3MB", Some(ByteSize(3_000_000)));
        check("3670016", Some(ByteSize(3_670_016)));
        check("7B", Some(ByteSize(7)));
        check("0", Some(ByteSize(0)));
        for wrong in
            ["", "MiB", "-1B", "+1B", "1.5GiB", "1M", "1 2", "8EiB", "8388608TiB", "9223372036854775808"]
        {
            check(wrong, None);
        }
    }

    #[test]
    fn moments_have_an_offset_or_are_a_day_in_utc() {
        let check = |text, expected: Option<&str>| {
            assert_eq!(parse_moment(text).map(|moment| moment.to_string()).as_deref(), expected, "{text:?}");
        };
        check("2027-01-31", Some("2027-01-31T00:00:00Z"));
        check("2027-01-31T12:00:00Z", Some("2027-01-31T12:00:00Z"));
        check("2027-01-31 12:00:00+02:00", Some("2027-01-31T10:00:00Z"));
        for wrong in ["", "2027", "2027-02-30", "2027-01-31T12:00:00", "31.01.2027", "tomorrow"] {
            check(wrong, None);
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(nanoseconds in 0..=LONGEST.as_nanos() as u64, bytes in 0..=i64::MAX as u64) {
            let duration = Duration::from_nanos(nanoseconds);
            prop_assert_eq!(Duration::from_toml(duration.to_toml().unwrap()).unwrap(), duration);
            let size = ByteSize(bytes);
            prop_assert_eq!(ByteSize::from_toml(size.to_toml().unwrap()).unwrap(), size);
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = (Duration::from_text(&text), ByteSize::from_text(&text), parse_moment(&text));
        }
    }
}
