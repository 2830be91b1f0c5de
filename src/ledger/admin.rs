//! What operators ask of the ledger and change in it: trait [`LedgerAdmin`], beside the money path.
//!
//! Every change is one durable transaction, and a line about it in the [`audit`](AuditLine), which can
//! only grow, is part of that transaction. What changes nothing leaves no line.

use std::fmt;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::Serialize;

use super::budget::Scope;
use super::{CallId, CallState, LedgerError};
use crate::base::archive::ArchiveId;
use crate::base::key::{CacheKey, Digest};
use crate::base::words::words;

/// Who changes something: `loopback`, the id of an admin token, or the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor(String);

impl Actor {
    /// Somebody on this machine, whom nobody asked for a token.
    pub fn loopback() -> Self {
        Self("loopback".to_owned())
    }

    /// Whoever runs a verb where nothing serves.
    pub fn command_line() -> Self {
        Self("command line".to_owned())
    }

    /// Who has the token of this id.
    pub fn token(id: impl fmt::Display) -> Self {
        Self(format!("token {id}"))
    }

    /// The words in the audit.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

words! {
    pub enum Action {
        Freeze = "freeze",
        Thaw = "thaw",
        /// Made what is stored under a key count as absent.
        Purge = "purge",
        /// Said what became of an `unknown` call.
        Settle = "settle",
        /// Made ledger and store one archive.
        Adopt = "adopt",
    }
}

words! {
    /// What became of a call whose outcome was unknown, as an operator found out.
    pub enum Settlement {
        /// The upstream charged it: its credits stay counted.
        Charged = "charged",
        /// It did not: the call counts as failed, and its credits are given back.
        Free = "free",
    }
}

/// What came of [`LedgerAdmin::settle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    Done {
        /// Where the credits were given back, if they were.
        given_back: Option<GivenBack>,
    },
    /// It had been settled in the same way before.
    Repeated,
    /// It had been settled in the other way before.
    Otherwise(Settlement),
    /// Its outcome is known, or still to come.
    NotUnknown(CallState),
    NoSuchCall,
}

/// Where the credits of a call that was not charged went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenBack {
    /// To the day and the month in which it was reserved, which is not over.
    Budgets,
    /// Its month is closed and stays as it is; an adjustment stands on the day of settling.
    Adjustment,
}

/// What came of [`LedgerAdmin::purge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purge {
    /// Everything up to this generation counts as absent from now on.
    Done { generation: u64 },
    /// So it did before, and nothing has been stored since.
    Repeated { generation: u64 },
    /// Nothing is stored under the key, and nothing was ever purged there.
    Nothing,
}

impl Purge {
    /// Up to where everything counts as absent; `None` when nothing is purged.
    pub fn generation(self) -> Option<u64> {
        match self {
            Self::Done { generation } | Self::Repeated { generation } => Some(generation),
            Self::Nothing => None,
        }
    }
}

/// One change, as it is remembered for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditLine {
    /// Grows from one to the next.
    pub id: u64,
    pub at: Timestamp,
    pub who: String,
    pub action: String,
    /// A scope (`global`, `team:NAME`), a key, the number of a call, or an archive.
    pub subject: String,
    pub detail: String,
}

/// A row, but for the text of an answer, which may name a signed URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallDetail {
    pub id: CallId,
    pub namespace: String,
    pub key: CacheKey,
    pub generation: u64,
    pub state: CallState,
    /// Another row keeps the key.
    pub late: bool,
    /// It was paid through another ledger.
    pub adopted: bool,
    pub team: String,
    /// What it cost, or would have.
    pub credits: u64,
    /// The day it was reserved on, which it counts to.
    pub day: String,
    pub image: Digest,
    pub width: u32,
    pub height: u32,
    pub reserved_at: Timestamp,
    pub sent_at: Option<Timestamp>,
    pub answered_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub reason: Option<String>,
    pub request_id: Option<String>,
    pub log_id: Option<String>,
    pub digest: Option<Digest>,
    pub extension: Option<String>,
    /// Its result's length in bytes.
    pub bytes: Option<u64>,
    /// What an operator said became of it.
    pub settled: Option<Settlement>,
}

/// Which calls are asked for.
#[derive(Clone, Debug, Default)]
pub struct CallFilter {
    pub state: Option<CallState>,
    pub team: Option<String>,
    pub key: Option<(String, CacheKey)>,
    /// Only those of lower numbers.
    pub before: Option<CallId>,
    pub limit: usize,
}

/// Some calls, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallPage {
    /// The calls; may be fewer than there are, and none although there are some.
    pub calls: Vec<CallDetail>,
    /// Where to go on, when there may be more.
    pub next: Option<CallId>,
}

/// Lets an operator look and change. All methods may be called concurrently.
#[async_trait]
pub trait LedgerAdmin: Send + Sync {
    /// Makes everything that is stored under a key by now count as absent, for everyone
    /// ([`Queries::changes`](super::Queries::changes) tells of it). Rows, credits and objects stay as
    /// they are. A call under way is not touched: its result will be the new one.
    async fn purge(&self, namespace: &str, key: CacheKey, by: &Actor) -> Result<Purge, LedgerError>;

    /// Stops (`true`) or resumes spending; exact from its return. Says whether it was otherwise before.
    async fn freeze(&self, scope: Scope, frozen: bool, by: &Actor) -> Result<bool, LedgerError>;

    /// What stands frozen: `global` first, then teams by name.
    async fn frozen(&self) -> Result<Vec<Scope>, LedgerError>;

    /// Says what became of an `unknown` call.
    async fn settle(&self, id: CallId, settlement: Settlement, by: &Actor) -> Result<Settled, LedgerError>;

    /// Credits of `unknown` calls that nobody has settled.
    async fn unsettled(&self) -> Result<u64, LedgerError>;

    /// Adds the line about an adoption, which is done by then.
    async fn note_adoption(&self, archive: ArchiveId, found: &str, by: &Actor) -> Result<(), LedgerError>;

    /// Lines of the audit of lower ids than `before`, newest first, at most `limit`.
    async fn audit(&self, before: Option<u64>, limit: usize) -> Result<Vec<AuditLine>, LedgerError>;

    /// Calls, newest first.
    async fn calls(&self, filter: CallFilter) -> Result<CallPage, LedgerError>;
}
