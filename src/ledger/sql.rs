//! The statements of both databases, in PostgreSQL's dialect; SQLite's [`Query`] translates them. Leases and
//! locks stay with each database.

pub(super) mod admin;
pub(super) mod archive;
pub(super) mod book;
pub(super) mod counters;
mod handles;
pub(super) mod reserve;
pub(super) mod spool;
pub(super) mod usage;

use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

pub(super) use self::handles::{sql_ledger, statements};
use super::admin::Settlement;
use super::budget::Windows;
use super::rules::Room;
use super::usage::Payer;
use super::{CallId, CallState, LedgerError};
use crate::base::archive::ArchiveId;
use crate::base::key::{CacheKey, Digest};
use crate::base::outcome::SavingCause;
use crate::base::record::Record;
use crate::base::secret::Secret;

pub(super) struct Keeper {
    /// The random name of this process; empty where there is only one.
    pub(super) owner: String,
    /// Bytes.
    pub(super) spool_max: u64,
    pub(super) zone: TimeZone,
    /// Bytes; 0 without `Calls::keep_room`.
    kept_for_each: AtomicU64,
}

impl Keeper {
    pub(super) fn new(owner: String, spool_max: u64, zone: TimeZone) -> Self {
        Self { owner, spool_max, zone, kept_for_each: AtomicU64::new(0) }
    }

    pub(super) fn keep_room(&self, each: Option<u64>) {
        self.kept_for_each.store(each.unwrap_or(0), Ordering::Relaxed);
    }

    fn room(&self) -> Option<Room> {
        let each = self.kept_for_each.load(Ordering::Relaxed);
        (each > 0).then_some(Room { each, max: self.spool_max })
    }
}

/// Locks where several processes write. They are taken in this order, so that no two transactions wait for each
/// other: `Freeze`, a key, the call's row, its place in the unique index, the counters, `Spool`, `Changes`, `Audit`.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lock {
    /// Shared by transactions that spend; exclusive for those that stop spending.
    Freeze,
    Spool,
    Changes,
    Layout,
    Audit,
}

/// A transaction, or a connection for single reads.
pub(super) trait Query {
    type Error: From<LedgerError>;
    /// No other process writes.
    const IS_ALONE: bool;
    /// Statements search for it, so it does not change.
    const OWNER_DIED: &'static str;
    /// Set with each change of a call's state or owner.
    const TOUCH: &'static str;
    /// Whether a call is ours; `$2` is our name.
    const IS_OURS: &'static str;
    /// Sets the owner of a call to `$6`.
    const OWN: &'static str;
    /// The owner's column, and `$12` as its value, of a new call.
    const OWNER: [&'static str; 2];
    /// Adds the key `$2` in `$1` to the feed of changes.
    const ADD_CHANGE: &'static str;
    /// The database's clock, in microseconds since 1970.
    const NOW: &'static str;

    fn conflict(what: &'static str) -> Self::Error;
    fn keeper(&self) -> &Keeper;
    /// The begin of the transaction.
    fn now(&self) -> Timestamp;
    /// The ledger's clock when the database shows `micros`.
    fn instant(&self, micros: i64) -> Timestamp;
    fn rows(&self, sql: &str, values: &[Value<'_>]) -> impl Future<Output = Result<Vec<Row>, Self::Error>>;
    fn execute(&self, sql: &str, values: &[Value<'_>]) -> impl Future<Output = Result<u64, Self::Error>>;
    /// Rolls the transaction back at its end.
    fn undo(&self) {}
    /// Until the end of the transaction.
    async fn lock(&self, _lock: Lock) -> Result<(), Self::Error> {
        Ok(())
    }
    async fn lock_key(&self, _key: &CacheKey) -> Result<(), Self::Error> {
        Ok(())
    }
    /// The text may contain a signed URL.
    fn keep_answer(&self, id: CallId, text: &Secret) -> impl Future<Output = Result<(), Self::Error>>;
    /// Called where a change of the row does not erase the text.
    async fn erase_answer(&self, _id: CallId) -> Result<(), Self::Error> {
        Ok(())
    }

    fn today(&self) -> Windows {
        Windows::at(self.now(), &self.keeper().zone)
    }

    async fn row(&self, sql: &str, values: &[Value<'_>]) -> Result<Option<Row>, Self::Error> {
        Ok(self.rows(sql, values).await?.into_iter().next())
    }

    async fn one(&self, sql: &str, values: &[Value<'_>]) -> Result<Row, Self::Error> {
        Ok(self.row(sql, values).await?.ok_or_else(|| damaged("a row that is always there"))?)
    }
}

pub(super) fn damaged(what: &str) -> LedgerError {
    LedgerError::Unavailable(format!("the database does not give {what} as it was written"))
}

pub(super) fn missing(id: CallId) -> LedgerError {
    LedgerError::Unavailable(format!("the ledger has no call {}", id.0))
}

pub(super) fn int(number: u64) -> Result<i64, LedgerError> {
    let too_large = |_| LedgerError::Unavailable(format!("{number} is more than a ledger can count"));
    i64::try_from(number).map_err(too_large)
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'v> {
    Int(i64),
    Flag(bool),
    Text(Option<&'v str>),
    Bytes(&'v [u8]),
}

macro_rules! value_from {
    ($($from:ty, $value:pat => $into:expr;)*) => { $(
        impl<'v> From<$from> for Value<'v> {
            fn from($value: $from) -> Self {
                $into
            }
        }
    )* };
}
value_from! {
    i64, number => Self::Int(number);
    u32, number => Self::Int(number.into());
    bool, flag => Self::Flag(flag);
    CallId, id => Self::Int(id.0);
    &'v str, text => Self::Text(Some(text));
    &'v String, text => Self::Text(Some(text));
    Option<&'v str>, text => Self::Text(text);
    CallState, state => Self::Text(Some(state.as_str()));
    &'v [u8], bytes => Self::Bytes(bytes);
    &'v CacheKey, key => Self::Bytes(key.as_bytes());
    &'v Digest, digest => Self::Bytes(digest.as_bytes());
}

macro_rules! values {
    ($($value:expr),* $(,)?) => { &[$($crate::ledger::sql::Value::from($value)),*] };
}
pub(super) use values;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Null,
    Int(i64),
    Text(String),
    Bytes(Vec<u8>),
}

pub(super) struct Row {
    pub(super) columns: Arc<[String]>,
    pub(super) cells: Vec<Cell>,
}

impl Row {
    /// Fails when there is no such column, or it has another type.
    pub(super) fn get<T: FromCell>(&self, column: &str) -> Result<T, LedgerError> {
        let cell = self.columns.iter().position(|name| name == column).and_then(|at| self.cells.get(at));
        cell.and_then(T::from_cell).ok_or_else(|| damaged(column))
    }
}

/// Makes a struct of the columns with its fields' names, and of other values.
macro_rules! read {
    ($row:expr => $into:ident { $($field:ident),* $(; $($other:ident: $value:expr),*)? $(,)? }) => {
        $into { $($field: $row.get(stringify!($field))?,)* $($($other: $value),*)? }
    };
}
use read;

pub(super) trait FromCell: Sized {
    fn from_cell(cell: &Cell) -> Option<Self>;
}

impl<T: FromCell> FromCell for Option<T> {
    fn from_cell(cell: &Cell) -> Option<Self> {
        if *cell == Cell::Null { Some(None) } else { T::from_cell(cell).map(Some) }
    }
}

fn number<T: TryFrom<i64>>(cell: &Cell) -> Option<T> {
    if let Cell::Int(number) = cell { T::try_from(*number).ok() } else { None }
}

fn bytes(cell: &Cell) -> Option<&[u8]> {
    if let Cell::Bytes(bytes) = cell { Some(bytes) } else { None }
}

fn parsed<T: FromStr>(cell: &Cell) -> Option<T> {
    if let Cell::Text(text) = cell { text.parse().ok() } else { None }
}

macro_rules! from_cell {
    ($($into:ty: $cell:ident => $value:expr;)*) => { $(
        impl FromCell for $into {
            fn from_cell($cell: &Cell) -> Option<Self> {
                $value
            }
        }
    )* };
}
from_cell! {
    i64: cell => number(cell);
    u64: cell => number(cell);
    u32: cell => number(cell);
    bool: cell => number::<i64>(cell).map(|flag| flag != 0);
    CallId: cell => number(cell).map(CallId);
    String: cell => parsed(cell);
    Timestamp: cell => parsed(cell);
    Date: cell => parsed(cell);
    ArchiveId: cell => parsed(cell);
    Vec<u8>: cell => bytes(cell).map(<[u8]>::to_vec);
    CacheKey: cell => bytes(cell)?.try_into().ok().map(CacheKey::from_bytes);
    Digest: cell => bytes(cell)?.try_into().ok().map(Digest::from_bytes);
    CallState: cell => parsed(cell);
    SavingCause: cell => parsed(cell);
    Payer: cell => parsed(cell);
    Settlement: cell => parsed(cell);
}

/// The columns [`record`] reads, of a row called `c`.
const RECORD: &str = "c.namespace, c.key, c.generation, c.answer, c.digest, c.extension, c.bytes, c.team, \
                      c.credits, c.ended_at, c.request_id, c.log_id, c.image, c.width, c.height";

fn record(row: &Row) -> Result<Record, LedgerError> {
    Ok(read!(row => Record {
        namespace, key, generation, answer, digest, extension, bytes, team, credits, image, width, height;
        version: Record::VERSION,
        stored_at: row.get("ended_at")?,
        upstream_request_id: row.get("request_id")?,
        upstream_log_id: row.get("log_id")?,
    }))
}

fn each<T>(rows: &[Row], read: impl Fn(&Row) -> Result<T, LedgerError>) -> Result<Vec<T>, LedgerError> {
    rows.iter().map(read).collect()
}

/// `$1, $2`: `number` places after `before` others.
fn places(before: usize, number: usize) -> String {
    let places: Vec<String> = (before + 1..=before + number).map(|place| format!("${place}")).collect();
    places.join(", ")
}

pub(super) async fn stored<Q: Query>(
    q: &Q,
    namespace: &str,
    key: CacheKey,
) -> Result<Option<Record>, Q::Error> {
    let sql = format!(
        "SELECT {RECORD} FROM granary.calls c WHERE namespace = $1 AND key = $2 AND state = 'stored' AND NOT late \
         AND generation > coalesce((SELECT p.generation FROM granary.purged p \
                                    WHERE p.namespace = $1 AND p.key = $2), -1) \
         ORDER BY generation DESC LIMIT 1"
    );
    let row = q.row(&sql, values![namespace, &key]).await?;
    Ok(row.as_ref().map(record).transpose()?)
}
