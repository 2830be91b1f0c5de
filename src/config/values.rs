//! How words, texts, numbers and lists are read and printed as settings.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use toml::Value;

use super::setting::{Fault, Setting, kind, one, wrong};
use super::{LogFormat, LogLevel, StoreKind, UpstreamKind};
use crate::base::secret::Secret;
use crate::billing::money::Price;
use crate::teams::BudgetMode;

fn text(text: impl ToString) -> Option<Value> {
    Some(Value::String(text.to_string()))
}

/// Makes settings of enums that have `ALL` and `as_str`.
macro_rules! word_settings {
    ($($name:ty),+) => {$(
        impl Setting for $name {
            fn from_text(text: &str) -> Result<Self, String> {
                let words = || Self::ALL.map(Self::as_str).join(", ");
                text.parse().map_err(|()| wrong(text, format_args!("write one of {}", words())))
            }

            fn to_toml(&self) -> Option<Value> {
                text(self.as_str())
            }
        }
    )+};
}

word_settings!(BudgetMode, LogFormat, LogLevel, StoreKind, UpstreamKind);

impl Setting for String {
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn to_toml(&self) -> Option<Value> {
        text(self)
    }
}

impl Setting for PathBuf {
    fn from_text(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains('\0') {
            return Err("is not a path; write the name of a file or folder".to_owned());
        }
        Ok(Self::from(text))
    }

    fn to_toml(&self) -> Option<Value> {
        text(self.display())
    }
}

impl Setting for SocketAddr {
    fn from_text(text: &str) -> Result<Self, String> {
        let why = "write an IP address and a port, such as 127.0.0.1:8080 or [::]:8080";
        text.parse().map_err(|_| wrong(text, why))
    }

    fn to_toml(&self) -> Option<Value> {
        text(self)
    }
}

impl Setting for IpNet {
    fn from_text(text: &str) -> Result<Self, String> {
        let address = || text.parse::<IpAddr>().map(Self::from);
        let why = "write an IP address or a network, such as 10.0.0.1 or 10.0.0.0/8";
        text.parse().or_else(|_| address()).map_err(|_| wrong(text, why))
    }

    fn to_toml(&self) -> Option<Value> {
        text(self)
    }
}

impl Setting for Secret {
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(Self::new(text))
    }

    fn to_toml(&self) -> Option<Value> {
        text("***")
    }
}

impl Setting for bool {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| wrong(text, "write true or false"))
    }

    fn from_toml(value: Value) -> Result<Self, Vec<Fault>> {
        let why = || one(format!("is {}; write true or false, without quotes", kind(&value)));
        value.as_bool().ok_or_else(why)
    }

    fn to_toml(&self) -> Option<Value> {
        Some(Value::Boolean(*self))
    }
}

/// At most what a signed 64-bit number holds, as in TOML and databases.
impl Setting for u64 {
    fn from_text(text: &str) -> Result<Self, String> {
        let number = text.parse::<i64>().ok().and_then(|number| u64::try_from(number).ok());
        number.ok_or_else(|| wrong(text, "write a whole number, 0 or more"))
    }

    fn from_toml(value: Value) -> Result<Self, Vec<Fault>> {
        match value {
            Value::Integer(number) => u64::try_from(number)
                .map_err(|_| one(format!("is {number}; write a whole number, 0 or more"))),
            other => Err(one(format!("is {}; write a whole number, without quotes", kind(&other)))),
        }
    }

    fn to_toml(&self) -> Option<Value> {
        Some(Value::Integer(i64::try_from(*self).unwrap_or(i64::MAX)))
    }
}

impl Setting for usize {
    fn from_text(text: &str) -> Result<Self, String> {
        u64::from_text(text)?.try_into().map_err(|_| "is too large for this machine".to_owned())
    }

    fn from_toml(value: Value) -> Result<Self, Vec<Fault>> {
        u64::from_toml(value)?.try_into().map_err(|_| one("is too large for this machine".to_owned()))
    }

    fn to_toml(&self) -> Option<Value> {
        (*self as u64).to_toml()
    }
}

/// Exact, although TOML reads it as a float: the shortest text of that float is what was written.
impl Setting for Price {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|why| wrong(text, why))
    }

    fn from_toml(value: Value) -> Result<Self, Vec<Fault>> {
        let text = match value {
            Value::String(text) => text,
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            other => return Err(one(format!("is {}; write a price such as 0.003", kind(&other)))),
        };
        Self::from_text(&text).map_err(one)
    }

    fn to_toml(&self) -> Option<Value> {
        text(self)
    }
}

impl Setting for f64 {
    fn from_text(text: &str) -> Result<Self, String> {
        let number = text.parse().ok().filter(|number: &f64| number.is_finite());
        number.ok_or_else(|| wrong(text, "write a number such as 2 or 0.5"))
    }

    fn from_toml(value: Value) -> Result<Self, Vec<Fault>> {
        match value {
            Value::Float(number) if number.is_finite() => Ok(number),
            Value::Integer(number) => Ok(number as f64),
            other => Err(one(format!("is {}; write a number such as 2 or 0.5", kind(&other)))),
        }
    }

    fn to_toml(&self) -> Option<Value> {
        Some(Value::Float(*self))
    }
}

impl<T: Setting> Setting for Option<T> {
    fn from_text(text: &str) -> Result<Self, String> {
        T::from_text(text).map(Some)
    }

    fn from_toml(value: Value) -> Result<Self, Vec<Fault>> {
        T::from_toml(value).map(Some)
    }

    fn to_toml(&self) -> Option<Value> {
        self.as_ref().and_then(T::to_toml)
    }
}

/// Lists: separated by commas in a variable.
impl<T: Setting> Setting for Vec<T> {
    fn from_text(text: &str) -> Result<Self, String> {
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(T::from_text).collect()
    }

    fn from_toml(value: Value) -> Result<Self, Vec<Fault>> {
        let Value::Array(items) = value else {
            return Err(one(format!("is {}; write a list in square brackets", kind(&value))));
        };
        let (mut read, mut faults) = (Vec::new(), Vec::new());
        for (index, item) in items.into_iter().enumerate() {
            match T::from_toml(item) {
                Ok(item) => read.push(item),
                Err(wrong) => {
                    let at_item = |Fault { at, why }| Fault { at: format!("[{index}]{at}"), why };
                    faults.extend(wrong.into_iter().map(at_item));
                }
            }
        }
        if faults.is_empty() { Ok(read) } else { Err(faults) }
    }

    fn to_toml(&self) -> Option<Value> {
        Some(Value::Array(self.iter().filter_map(T::to_toml).collect()))
    }
}
