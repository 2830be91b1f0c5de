//! One field of the configuration: how it is read from file and variable, and printed. [`section!`] declares
//! a struct with its fields' defaults and docs, which `granary config` prints.

use std::fmt::Display;

use toml::Value;

/// A problem inside a field's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Such as `[2].expires`; empty when the field itself is meant.
    pub at: String,
    pub why: String,
}

/// A type that a field of the configuration may have.
pub(super) trait Setting: Sized {
    /// The error names the problem and the remedy; for secrets it does not repeat the value.
    fn from_text(text: &str) -> Result<Self, String>;

    /// By default a text in quotes.
    fn from_toml(value: Value) -> Result<Self, Vec<Fault>> {
        match value {
            Value::String(text) => Self::from_text(&text).map_err(one),
            other => Err(one(format!("is {}; write a text in quotes", kind(&other)))),
        }
    }

    /// `None` when nothing is set.
    fn to_toml(&self) -> Option<Value>;
}

pub(super) trait AnySetting {
    fn read_text(&mut self, text: &str) -> Result<(), Vec<Fault>>;
    fn read_toml(&mut self, value: Value) -> Result<(), Vec<Fault>>;
    fn shown(&self) -> Option<Value>;
}

impl<T: Setting> AnySetting for T {
    fn read_text(&mut self, text: &str) -> Result<(), Vec<Fault>> {
        T::from_text(text).map(|value| *self = value).map_err(one)
    }

    fn read_toml(&mut self, value: Value) -> Result<(), Vec<Fault>> {
        T::from_toml(value).map(|value| *self = value)
    }

    fn shown(&self) -> Option<Value> {
        self.to_toml()
    }
}

/// A field of a section.
pub(super) struct Field<'a> {
    pub name: &'static str,
    /// The lines of its doc comment.
    pub doc: &'static [&'static str],
    pub value: &'a mut dyn AnySetting,
}

pub(super) struct Section<'a> {
    pub name: &'static str,
    /// The lines of the struct's doc comment.
    pub doc: &'static [&'static str],
    pub fields: Vec<Field<'a>>,
}

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

        impl $name {
            pub(super) fn section(&mut self, name: &'static str) -> $crate::config::setting::Section<'_> {
                use $crate::config::setting::{Field, Section};
                let fields = vec![
                    $( Field { name: stringify!($field), doc: &[$($doc),*], value: &mut self.$field }, )*
                ];
                Section { name, doc: &[$($about),*], fields }
            }

            /// Names of the fields that differ.
            pub(super) fn changed(&self, other: &Self) -> Vec<&'static str> {
                let mut changed = Vec::new();
                $( if self.$field != other.$field { changed.push(stringify!($field)); } )*
                changed
            }
        }
    };
}
pub(super) use section;

/// For messages: quoted and escaped, unless it is long, as keys and tokens in the wrong place are.
pub(super) fn shown(text: &str) -> String {
    match text.chars().count() {
        0..=40 => format!("{text:?}"),
        count => format!("a text of {count} characters"),
    }
}

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

/// The problem of a value that was read as a text.
pub(super) fn wrong(text: &str, why: impl Display) -> String {
    format!("is {}; {why}", shown(text))
}

pub(super) fn one(why: String) -> Vec<Fault> {
    vec![Fault { at: String::new(), why }]
}
