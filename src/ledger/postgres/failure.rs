//! Why a transaction failed.

use tokio_postgres::error::SqlState;

use crate::ledger::LedgerError;

pub(super) const TRIES: u32 = 8;

pub(super) const COMMITS_ARE_LOST: &str = "the database confirms what it may lose (synchronous_commit = off), and what is lost is bought again; set \
     synchronous_commit to on for this database or user";

#[derive(Debug)]
pub(super) enum Failure {
    /// The ledger's own decision; nothing changed.
    Ledger(LedgerError),
    /// The database is not fit; a sentence says what a person must do.
    Unfit(String),
    /// A conflict with another transaction; it is tried again.
    Again(&'static str),
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
    /// Returns true when the connection or the server failed, and not the statement.
    pub(super) fn is_of_connection(&self) -> bool {
        let Self::Database(error) = self else { return false };
        let Some(code) = error.code() else { return true };
        // Connection, authorization, no such database, resources, shutting down; no longer the primary.
        let class = &code.code()[..2];
        matches!(class, "08" | "28" | "3D" | "53") || code.code().starts_with("57P") || code.code() == "25006"
    }

    pub(super) fn into_ledger_error(self) -> LedgerError {
        LedgerError::Unavailable(match self {
            Self::Ledger(error) => return error,
            Self::Unfit(why) => why,
            Self::Again(what) => format!("other transactions came in between again and again: {what}"),
            Self::Database(error) => describe(&error),
        })
    }
}

/// Leaves out details, which may quote rows.
fn describe(error: &tokio_postgres::Error) -> String {
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
