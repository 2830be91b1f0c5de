//! One field of the configuration: how it is read from the file and from a variable, and printed.
//!
//! The [`section!`] macro declares a struct once and yields all that is said about its fields: the
//! doc comments in this source are also the comments `granary config` prints.

use toml::Value;

/// Something wrong inside a field's value: where below the field (often nowhere), and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Such as `[2].expires`; empty when the field itself is meant.
    pub at: String,
    pub why: String,
}

/// A type that a field of the configuration may have.
pub(super) trait Setting: Sized {
    /// Reads what a variable holds. The error says what was wrong and what to write; for values
    /// that may be secrets it does not repeat them.
    fn from_text(text: &str) -> Result<Self, String>;

    /// Reads what the file holds: by default a text in quotes.
    fn from_toml(value: Value) -> Result<Self, Vec<Fault>> {
        match value {
            Value::String(text) => Self::from_text(&text).map_err(one),
            other => Err(one(format!("is {}; write a text in quotes", kind(&other)))),
        }
    }

    /// What the file would hold; `None` when nothing is set.
    fn to_toml(&self) -> Option<Value>;
}

/// Names and docs of one field, as declared.
pub(super) struct FieldDoc {
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

    /// The names of the fields whose values differ from those of `other`.
    fn changed(&self, other: &Self) -> Vec<&'static str>;
}

/// What is done with every field of a section.
pub(super) trait FieldVisitor {
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

            fn changed(&self, other: &Self) -> Vec<&'static str> {
                let mut changed = Vec::new();
                $( if self.$field != other.$field { changed.push(stringify!($field)); } )*
                changed
            }
        }
    };
}
pub(super) use section;

/// A value as it may stand in a message: quoted and escaped. Not a long one: nothing that we read
/// is long, but for keys and tokens in the wrong place.
pub(super) fn shown(text: &str) -> String {
    match text.chars().count() {
        0..=40 => format!("{text:?}"),
        count => format!("a text of {count} characters"),
    }
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
    vec![Fault { at: String::new(), why }]
}
