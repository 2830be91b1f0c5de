//! The price of credits, in millionths of any currency. Sums are exact: there are no floats.

use std::fmt;
use std::str::FromStr;

const DIGITS: usize = 6;
const UNIT: i128 = 1_000_000;

/// The price of one credit, such as 0.003.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a price is a number of at most 1000000 with at most 6 digits behind the point, such as 0.003")]
pub struct NoPrice;

impl Price {
    /// A decimal number with at least two digits behind the point.
    pub fn of(self, credits: i64) -> String {
        show(i128::from(credits) * i128::from(self.0), 2)
    }
}

impl FromStr for Price {
    type Err = NoPrice;

    fn from_str(text: &str) -> Result<Self, NoPrice> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(whole) || !is_number(fraction) || whole.len() > 7 || fraction.len() > DIGITS {
            return Err(NoPrice);
        }
        let number: u64 = format!("{whole}{fraction:0<DIGITS$}").parse().map_err(|_| NoPrice)?;
        let is_small = i128::from(number) <= 1_000_000 * UNIT;
        if is_small { Ok(Self(number)) } else { Err(NoPrice) }
    }
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show(i128::from(self.0), 0))
    }
}

fn show(millionths: i128, least: usize) -> String {
    let sign = if millionths < 0 { "-" } else { "" };
    let (whole, rest) = (millionths.abs() / UNIT, millionths.abs() % UNIT);
    let digits = format!("{rest:0DIGITS$}");
    let needed = digits.trim_end_matches('0').len().max(least);
    if needed == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{}", &digits[..needed]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_read_and_printed_exactly() {
        for (text, printed) in [
            ("0.003", "0.003"),
            ("0.0025", "0.0025"),
            ("1", "1"),
            ("007.10", "7.1"),
            ("0.000001", "0.000001"),
            ("1000000", "1000000"),
            ("0", "0"),
        ] {
            assert_eq!(
                text.parse::<Price>().map(|price| price.to_string()).as_deref(),
                Ok(printed),
                "{text}"
            );
        }
        for wrong in
            ["", ".", "1.", ".5", "-1", "+1", "1e3", "0.0000001", "1000000.000001", "1,5", " 1", "NaN"]
        {
            assert_eq!(wrong.parse::<Price>(), Err(NoPrice), "{wrong}");
        }
    }

    #[test]
    fn money_is_credits_times_price_to_the_last_digit() {
        let price: Price = "0.003".parse().unwrap();
        for (credits, expected) in
            [(0, "0.00"), (3, "0.009"), (1000, "3.00"), (-3, "-0.009"), (i64::MAX, "27670116110564327.421")]
        {
            assert_eq!(price.of(credits), expected);
        }
        // A tenth cannot be written as a float; ten of them are one all the same.
        let tenth: Price = "0.1".parse().unwrap();
        assert_eq!((tenth.of(3).as_str(), tenth.of(10).as_str()), ("0.30", "1.00"));
    }
}
