//! The end of a certificate's time, read out of its DER (RFC 5280, section 4.1).
//!
//! Only as much of it is walked as stands before that time; whether the rest is right, rustls says.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// When this certificate expires; `None` when it is none.
pub(super) fn of(certificate: &[u8]) -> Option<Timestamp> {
    let mut certificate = Der(certificate).element(SEQUENCE)?;
    let mut signed = certificate.element(SEQUENCE)?;
    if signed.0.first() == Some(&VERSION) {
        signed.any()?;
    }
    let _serial_number = signed.any()?;
    let _signature = signed.any()?;
    let _issuer = signed.any()?;
    let mut validity = signed.element(SEQUENCE)?;
    let _not_before = validity.any()?;
    let (tag, not_after) = validity.any()?;
    time(tag, not_after.0)
}

/// What is left of a run of elements.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element: its tag and its content.
    fn any(&mut self) -> Option<(u8, Der<'a>)> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            // So many bytes of length follow.
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, Der(content)))
    }

    fn element(&mut self, expected: u8) -> Option<Der<'a>> {
        self.any().filter(|(tag, _)| *tag == expected).map(|(_, content)| content)
    }
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`.
fn time(tag: u8, text: &[u8]) -> Option<Timestamp> {
    let digits = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = digits.split_at_checked(2)?;
            let year: i16 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = digits.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    if rest.len() != 10 {
        return None;
    }
    let part = |at: usize| rest[at..at + 2].parse::<i8>().ok();
    let moment = DateTime::new(year, part(0)?, part(2)?, part(4)?, part(6)?, part(8)?, 0).ok()?;
    moment.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_the_maker_wrote_is_read() {
        for (year, month, day, expected) in [
            (2027, 2, 28, "2027-02-28T00:00:00Z"),
            (2049, 12, 31, "2049-12-31T00:00:00Z"),
            (2050, 1, 1, "2050-01-01T00:00:00Z"),
            (4096, 1, 1, "4096-01-01T00:00:00Z"),
            (1999, 6, 5, "1999-06-05T00:00:00Z"),
        ] {
            let mut parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
            parameters.not_before = rcgen::date_time_ymd(1990, 1, 1);
            parameters.not_after = rcgen::date_time_ymd(year, month, day);
            let made = parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            let der = made.der();
            assert_eq!(of(der).map(|expires| expires.to_string()).as_deref(), Some(expected));
            // No part of it is one, and none makes it panic.
            for cut in 0..150 {
                assert_eq!(of(&der[..cut]), None, "{cut}");
            }
        }
    }

    #[test]
    fn other_texts_are_no_times() {
        let check = |tag, text: &str, expected: Option<&str>| {
            let seen = time(tag, text.as_bytes()).map(|expires| expires.to_string());
            assert_eq!(seen.as_deref(), expected, "{text}");
        };
        check(UTC_TIME, "270228235959Z", Some("2027-02-28T23:59:59Z"));
        check(GENERALIZED_TIME, "20500228235959Z", Some("2050-02-28T23:59:59Z"));
        for text in [
            "270228235959",
            "2702282359Z",
            "270228235959+0100",
            "271328235959Z",
            "270230000000Z",
            "Z",
            "",
            "2x0228235959Z",
        ] {
            check(UTC_TIME, text, None);
        }
        check(GENERALIZED_TIME, "270228235959Z", None);
        check(0x16, "270228235959Z", None);
    }
}
