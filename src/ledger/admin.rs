//! Reads and changes of operators: trait [`LedgerAdmin`]. Every change is one durable transaction with a line
//! in the append-only [audit](AuditLine).

use std::fmt;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::Serialize;

use super::budget::Scope;
use super::{CallId, CallState, LedgerError};
use crate::base::archive::ArchiveId;
use crate::base::key::{CacheKey, Digest};
use crate::base::words::words;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor(String);

impl Actor {
    /// A local client without a token.
    pub fn loopback() -> Self {
        Self("loopback".to_owned())
    }

    pub fn command_line() -> Self {
        Self("command line".to_owned())
    }

    pub fn token(id: impl fmt::Display) -> Self {
        Self(format!("token {id}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

words! {
    pub enum Action {
        Freeze = "freeze",
        Thaw = "thaw",
        Purge = "purge",
        Settle = "settle",
        Adopt = "adopt",
    }
}

words! {
    /// The outcome of an `unknown` call, as an operator found out.
    pub enum Settlement {
        /// Its credits stay counted.
        Charged = "charged",
        /// The call counts as failed, and its credits are given back.
        Free = "free",
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    Done { given_back: Option<GivenBack> },
    Repeated,
    Otherwise(Settlement),
    NotUnknown(CallState),
    NoSuchCall,
}

words! {
    /// Where the credits of a call that was not charged are given back.
    pub enum GivenBack {
        /// On the day and in the month in which it was reserved.
        Budgets = "budgets",
        /// By an adjustment on the day of settling, because its month is closed.
        Adjustment = "adjustment",
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purge {
    /// Everything up to this generation counts as absent from now on.
    Done { generation: u64 },
    /// It was purged before, and nothing has been stored since.
    Repeated { generation: u64 },
    /// Nothing was ever stored or purged under the key.
    Nothing,
}

impl Purge {
    pub fn generation(self) -> Option<u64> {
        match self {
            Self::Done { generation } | Self::Repeated { generation } => Some(generation),
            Self::Nothing => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditLine {
    pub id: u64,
    pub at: Timestamp,
    pub who: String,
    pub action: String,
    /// A scope (`global`, `team:NAME`), a key, the number of a call, or an archive.
    pub subject: String,
    pub detail: String,
}

/// A row without the text of its answer, which may contain a signed URL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CallDetail {
    pub id: CallId,
    pub namespace: String,
    pub key: CacheKey,
    pub generation: u64,
    pub state: CallState,
    /// Another row keeps the key.
    pub late: bool,
    /// Paid through another ledger.
    pub adopted: bool,
    pub team: String,
    pub credits: u64,
    /// Of its reservation.
    pub day: String,
    pub image: Digest,
    pub width: u32,
    pub height: u32,
    pub reserved_at: Timestamp,
    pub sent_at: Option<Timestamp>,
    pub answered_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub reason: Option<String>,
    #[serde(rename = "upstream_request_id")]
    pub request_id: Option<String>,
    #[serde(rename = "upstream_log_id")]
    pub log_id: Option<String>,
    pub digest: Option<Digest>,
    pub extension: Option<String>,
    pub bytes: Option<u64>,
    pub settled: Option<Settlement>,
}

#[derive(Clone, Debug, Default)]
pub struct CallFilter {
    pub state: Option<CallState>,
    pub team: Option<String>,
    pub key: Option<(String, CacheKey)>,
    /// Only calls with lower numbers.
    pub before: Option<CallId>,
    pub limit: usize,
}

/// Newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CallPage {
    /// May be empty although more calls follow.
    pub calls: Vec<CallDetail>,
    /// The next [`before`](CallFilter::before), when there may be more.
    pub next: Option<CallId>,
}

#[async_trait]
pub trait LedgerAdmin: Send + Sync {
    /// Makes everything stored under a key absent on every replica ([changes](super::Queries::changes)).
    /// Rows, credits and objects stay. The result of an open call will be the new one.
    async fn purge(&self, namespace: &str, key: CacheKey, by: &Actor) -> Result<Purge, LedgerError>;

    /// Exact from its return. Returns false when nothing changed.
    async fn freeze(&self, scope: Scope, frozen: bool, by: &Actor) -> Result<bool, LedgerError>;

    /// The frozen scopes: `global` first, then teams by name.
    async fn frozen(&self) -> Result<Vec<Scope>, LedgerError>;

    async fn settle(&self, id: CallId, settlement: Settlement, by: &Actor) -> Result<Settled, LedgerError>;

    /// Credits of `unknown` calls that are not settled.
    async fn unsettled(&self) -> Result<u64, LedgerError>;

    async fn note_adoption(&self, archive: ArchiveId, found: &str, by: &Actor) -> Result<(), LedgerError>;

    /// At most `limit` lines with lower ids than `before`, newest first.
    async fn audit(&self, before: Option<u64>, limit: usize) -> Result<Vec<AuditLine>, LedgerError>;

    async fn calls(&self, filter: CallFilter) -> Result<CallPage, LedgerError>;
}
