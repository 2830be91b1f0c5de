//! Durations, sizes and moments, written as people write them.
//!
//! Durations are plain [`Duration`]s in the configuration, at most a year, so that a deadline made
//! of one never overflows a clock. Sizes are [`ByteSize`]s.

use std::fmt;
use std::time::Duration;

use jiff::fmt::friendly::{Spacing, SpanPrinter};
use jiff::{SignedDuration, Timestamp};
use toml::Value;

use super::setting::{Fault, Setting, kind, one, shown};

/// The longest duration a setting may have.
const LONGEST: Duration = Duration::from_hours(366 * 24);

impl Setting for Duration {
    fn from_text(text: &str) -> Result<Self, String> {
        let wrong = |why| format!("is {}; {why}", shown(text));
        let read: SignedDuration = text
            .parse()
            .map_err(|_| wrong("write a duration with its unit, such as 500ms, 30s or 23h30m"))?;
        let read = Duration::try_from(read).map_err(|_| wrong("a duration cannot be negative"))?;
        if read > LONGEST { Err(wrong("write at most a year (8784h)")) } else { Ok(read) }
    }

    fn to_toml(&self) -> Option<Value> {
        let printer = SpanPrinter::new().spacing(Spacing::None);
        Some(Value::String(printer.unsigned_duration_to_string(self)))
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// The units a size may be written with; when one is printed, the first that divides it.
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
    /// So many times 1024 bytes.
    pub const fn kib(count: u64) -> Self {
        Self(count << 10)
    }

    /// So many times 1024 × 1024 bytes.
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
        Self::parse(text).ok_or_else(|| {
            format!("is {}; write a whole number of bytes with its unit, such as 8KiB or 256MiB", shown(text))
        })
    }

    fn from_toml(value: Value) -> Result<Self, Vec<Fault>> {
        match value {
            Value::String(text) => Self::from_text(&text).map_err(|why| vec![why.into()]),
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
    date.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

impl Setting for Timestamp {
    fn from_text(text: &str) -> Result<Self, String> {
        parse_moment(text).ok_or_else(|| {
            format!(
                "is {}; write a date such as 2027-01-31, or a moment such as 2027-01-31T12:00:00Z",
                shown(text)
            )
        })
    }

    fn from_toml(value: Value) -> Result<Self, Vec<Fault>> {
        match value {
            Value::String(text) => Self::from_text(&text).map_err(|why| vec![why.into()]),
            Value::Datetime(moment) => Self::from_text(&moment.to_string()).map_err(|why| vec![why.into()]),
            other => Err(one(format!("is {}; write a date such as \"2027-01-31\"", kind(&other)))),
        }
    }

    fn to_toml(&self) -> Option<Value> {
        Some(Value::String(self.to_string()))
    }
}
