//! One field of the configuration: how it is read from the file and from a variable, and printed.
//!
//! The [`section!`] macro declares a struct once and yields all that is said about its fields: the
//! doc comments in this source are also the comments `granary config` prints.

use std::net::SocketAddr;
use std::path::PathBuf;

use toml::Value;

use crate::secret::Secret;

/// Something wrong inside a field's value: where below the field (often nowhere), and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Such as `[2].expires`; empty when the field itself is meant.
    pub at: String,
    /// What is wrong and what to do.
    pub why: String,
}

impl From<String> for Fault {
    fn from(why: String) -> Self {
        Self { at: String::new(), why }
    }
}

/// A type that a field of the configuration may have.
pub(super) trait Setting: Sized {
    /// Reads what a variable holds. The error says what was wrong and what to write; for values
    /// that may be secrets it does not repeat them.
    ///
    /// # Errors
    /// Why the text is not such a value.
    fn from_text(text: &str) -> Result<Self, String>;

    /// Reads what the file holds: by default a text in quotes.
    ///
    /// # Errors
    /// All that is wrong with the value.
    fn from_toml(value: Value) -> Result<Self, Vec<Fault>> {
        match value {
            Value::String(text) => Self::from_text(&text).map_err(|why| vec![why.into()]),
            other => Err(one(format!("is {}; write a text in quotes", kind(&other)))),
        }
    }

    /// What the file would hold; `None` when nothing is set.
    fn to_toml(&self) -> Option<Value>;
}

/// Names and docs of one field, as declared.
pub(super) struct FieldDoc {
    /// Its name in the file.
    pub name: &'static str,
    /// The lines of its doc comment.
    pub doc: &'static [&'static str],
}

/// A table of the file: a struct declared with [`section!`].
pub(super) trait Section: Default + Clone {
    /// The lines of the struct's doc comment.
    const ABOUT: &'static [&'static str];

    /// Shows every field to `visitor`, in the order of declaration.
    fn visit(&mut self, visitor: &mut impl FieldVisitor);
}

/// What is done with every field of a section.
pub(super) trait FieldVisitor {
    /// Reads, overlays or prints one field.
    fn field<T: Setting>(&mut self, field: FieldDoc, value: &mut T);
}

/// Declares a section: a struct with public fields, their docs and their defaults.
macro_rules! section {
    (
        $(#[doc = $about:literal])*
        pub struct $name:ident {
            $( $(#[doc = $doc:literal])* pub $field:ident: $type:ty = $default:expr, )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $( $(#[doc = $doc])* pub $field: $type, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $crate::config::setting::Section for $name {
            const ABOUT: &'static [&'static str] = &[$($about),*];

            fn visit(&mut self, visitor: &mut impl $crate::config::setting::FieldVisitor) {
                use $crate::config::setting::FieldDoc;
                $( visitor.field(FieldDoc { name: stringify!($field), doc: &[$($doc),*] }, &mut self.$field); )*
            }
        }
    };
}
pub(super) use section;

/// Makes an enum of words a setting.
macro_rules! words {
    ($name:ident { $($word:literal => $variant:ident),* $(,)? }) => {
        impl $name {
            /// The word that stands for this in the file.
            pub fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $word, )* }
            }
        }

        impl $crate::config::setting::Setting for $name {
            fn from_text(text: &str) -> Result<Self, String> {
                match text {
                    $( $word => Ok(Self::$variant), )*
                    _ => Err(format!(
                        "is {}; write one of {}",
                        $crate::config::setting::shown(text),
                        [$($word),*].join(", "),
                    )),
                }
            }

            fn to_toml(&self) -> Option<toml::Value> {
                Some(toml::Value::String(self.as_str().to_owned()))
            }
        }
    };
}
pub(super) use words;

/// A value as it may stand in a message: quoted, escaped and short.
pub(super) fn shown(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    if short.len() < text.len() { format!("{short:?}…") } else { format!("{short:?}") }
}

/// What a value of the wrong kind is, in the words of the file.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a text in quotes",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a fraction",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

/// One fault, of the field itself.
pub(super) fn one(why: String) -> Vec<Fault> {
    vec![why.into()]
}

/// A text that is printed as it is.
fn text(text: impl ToString) -> Option<Value> {
    Some(Value::String(text.to_string()))
}

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
        text.parse().map_err(|_| {
            format!("is {}; write an IP address and a port, such as 127.0.0.1:8080 or [::]:8080", shown(text))
        })
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
        text.parse().map_err(|_| format!("is {}; write true or false", shown(text)))
    }

    fn from_toml(value: Value) -> Result<Self, Vec<Fault>> {
        value
            .as_bool()
            .ok_or_else(|| one(format!("is {}; write true or false, without quotes", kind(&value))))
    }

    fn to_toml(&self) -> Option<Value> {
        Some(Value::Boolean(*self))
    }
}

/// Counts: at most what a signed 64-bit number holds, which is what TOML and databases have.
impl Setting for u64 {
    fn from_text(text: &str) -> Result<Self, String> {
        let number: Option<i64> = text.parse().ok();
        number
            .and_then(|number| u64::try_from(number).ok())
            .ok_or_else(|| format!("is {}; write a whole number, 0 or more", shown(text)))
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

/// Rates.
impl Setting for f64 {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse()
            .ok()
            .filter(|number: &f64| number.is_finite())
            .ok_or_else(|| format!("is {}; write a number such as 2 or 0.5", shown(text)))
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

/// What may be left out.
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
                Err(wrong) => faults.extend(
                    wrong.into_iter().map(|Fault { at, why }| Fault { at: format!("[{index}]{at}"), why }),
                ),
            }
        }
        if faults.is_empty() { Ok(read) } else { Err(faults) }
    }

    fn to_toml(&self) -> Option<Value> {
        Some(Value::Array(self.iter().filter_map(T::to_toml).collect()))
    }
}
