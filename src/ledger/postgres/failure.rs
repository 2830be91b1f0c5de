//! Why a transaction did not come to its end.

use std::fmt;

use tokio_postgres::error::SqlState;

use crate::ledger::LedgerError;

/// A transaction that met another one is made again so often.
pub(super) const TRIES: u32 = 8;

/// Why a database is not one in which the ledger may be kept; a person has to act.
#[derive(Clone, Debug)]
pub(super) enum Unfit {
    /// A commit may be lost that was confirmed.
    CommitsAreLost,
    /// The tables are those of a newer program: their layout, and the one this program knows.
    Newer(i64, usize),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommitsAreLost => f.write_str(
                "the database confirms what it may lose (synchronous_commit = off), and what is lost is bought \
                 again; set synchronous_commit to on for this database or user",
            ),
            Self::Newer(layout, known) => {
                write!(f, "the tables have layout {layout}, and this program knows {known}: run the newer program")
            }
        }
    }
}

/// Why a transaction did not come to its end.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was decided so; nothing is changed.
    Ledger(LedgerError),
    /// The database is not one for us.
    Unfit(Unfit),
    /// Another one came in between: once more. In a word, what that was.
    Again(&'static str),
    /// What the database said, or that it says nothing any more.
    Database(tokio_postgres::Error),
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        Self::Ledger(error)
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.code() {
            Some(&SqlState::UNIQUE_VIOLATION) => Self::Again("a unique row"),
            Some(&SqlState::DUPLICATE_SCHEMA | &SqlState::DUPLICATE_TABLE) => Self::Again("a new table"),
            Some(&SqlState::T_R_DEADLOCK_DETECTED) => Self::Again("a deadlock"),
            Some(&SqlState::T_R_SERIALIZATION_FAILURE) => Self::Again("a serialization failure"),
            _ => Self::Database(error),
        }
    }
}

impl Failure {
    /// Is it the connection that failed, or who is behind it, and not what was asked?
    pub(super) fn is_of_connection(&self) -> bool {
        let Self::Database(error) = self else { return false };
        let Some(code) = error.code() else { return true };
        // Connection, authorization, no such database, resources, shutting down; a primary that is none any more.
        let class = &code.code()[..2];
        matches!(class, "08" | "28" | "3D" | "53") || code.code().starts_with("57P") || code.code() == "25006"
    }

    pub(super) fn into_ledger_error(self) -> LedgerError {
        LedgerError::Unavailable(match self {
            Self::Ledger(error) => return error,
            Self::Unfit(unfit) => unfit.to_string(),
            Self::Again(what) => format!("other transactions came in between again and again: {what}"),
            Self::Database(error) => told(&error),
        })
    }
}

/// An error without what the server adds to it, which may be contents of rows.
fn told(error: &tokio_postgres::Error) -> String {
    if let Some(said) = error.as_db_error() {
        let message: String = said.message().chars().filter(|c| !c.is_control()).take(200).collect();
        return format!("the database says: {message} ({})", said.code().code());
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(deeper) = cause {
        text = format!("{text}: {deeper}");
        cause = deeper.source();
    }
    text
}
