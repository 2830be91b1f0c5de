//! The problems of a configuration, each with its field.

use std::fmt::Display;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Problem {
    /// The field, such as `server.listen`, or the file.
    pub field: String,
    /// The problem and the remedy.
    pub message: String,
}

/// In the order in which they were found; one line each.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Problems(pub(super) Vec<Problem>);

impl Problems {
    pub fn one(field: impl Display, message: impl Into<String>) -> Self {
        let mut problems = Self::default();
        problems.add(field, message);
        problems
    }

    pub(super) fn add(&mut self, field: impl Display, message: impl Into<String>) {
        self.0.push(Problem { field: field.to_string(), message: message.into() });
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
