//! The shared statements in SQLite: translated, on the thread that owns the connection.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use jiff::Timestamp;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, Rows, ToSql};

use super::PAGE_SIZE;
use crate::base::secret::Secret;
use crate::ledger::sql::{Cell, Keeper, Query, Row, Value, damaged};
use crate::ledger::{CallId, LedgerError};

/// A transaction, which has the file to itself.
pub(super) struct Db<'c> {
    pub(super) connection: &'c Connection,
    pub(super) keeper: &'c Keeper,
    pub(super) now: Timestamp,
}

pub(super) type Work<A, T> =
    for<'a> fn(&'a Db<'a>, &'a A) -> Pin<Box<dyn Future<Output = Result<T, LedgerError>> + 'a>>;

/// A future of a [`Db`] is never pending.
pub(super) fn run<T>(work: impl Future<Output = Result<T, LedgerError>>) -> Result<T, LedgerError> {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => Err(LedgerError::Unavailable("a statement waited".to_owned())),
    }
}

/// PostgreSQL's dialect and SQLite's. Conditions must match those of the partial indexes.
const WORDS: [(&str, &str); 10] = [
    ("granary.", ""),
    ("$", "?"),
    ("::bigint", ""),
    ("NOT late", "late = 0"),
    ("NOT adopted", "adopted = 0"),
    ("first.is_first", "first.is_first = 1"),
    ("SELECT FROM", "SELECT 1 FROM"),
    (" COLLATE \"C\"", ""),
    (" FOR UPDATE SKIP LOCKED", ""),
    (" FOR UPDATE", ""),
];

thread_local! {
    /// Some dozens, by their original.
    static TRANSLATED: RefCell<HashMap<String, Rc<str>>> = RefCell::default();
}

pub(super) fn translated(sql: &str) -> Rc<str> {
    TRANSLATED.with_borrow_mut(|known| {
        if let Some(known) = known.get(sql) {
            return Rc::clone(known);
        }
        let text = WORDS.iter().fold(sql.to_owned(), |text, (theirs, ours)| text.replace(theirs, ours));
        let text: Rc<str> = text.into();
        known.insert(sql.to_owned(), Rc::clone(&text));
        text
    })
}

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match *self {
            Value::Int(number) => ValueRef::Integer(number),
            Value::Flag(flag) => ValueRef::Integer(flag.into()),
            Value::Text(text) => text.map_or(ValueRef::Null, |text| ValueRef::Text(text.as_bytes())),
            Value::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

impl<'c> Db<'c> {
    /// The last values may be for PostgreSQL only.
    fn prepare(&self, sql: &str, values: &[Value<'_>]) -> rusqlite::Result<CachedStatement<'c>> {
        let mut statement = self.connection.prepare_cached(&translated(sql))?;
        let places = statement.parameter_count();
        for (place, value) in values.iter().take(places).enumerate() {
            statement.raw_bind_parameter(place + 1, value)?;
        }
        Ok(statement)
    }
}

fn collect(columns: &Arc<[String]>, mut rows: Rows<'_>) -> rusqlite::Result<Vec<Row>> {
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let cell = |column| {
            Ok(match row.get_ref(column)? {
                ValueRef::Integer(number) => Cell::Int(number),
                ValueRef::Text(text) => Cell::Text(String::from_utf8_lossy(text).into_owned()),
                ValueRef::Blob(bytes) => Cell::Bytes(bytes.to_vec()),
                ValueRef::Null | ValueRef::Real(_) => Cell::Null,
            })
        };
        let cells = (0..columns.len()).map(cell).collect::<rusqlite::Result<_>>()?;
        found.push(Row { columns: Arc::clone(columns), cells });
    }
    Ok(found)
}

impl Query for Db<'_> {
    type Error = LedgerError;
    const IS_ALONE: bool = true;
    const OWNER_DIED: &'static str = "the process that owned it died";
    const TOUCH: &'static str = "";
    const IS_OURS: &'static str = "true";
    const OWN: &'static str = "";
    const OWNER: [&'static str; 2] = ["", ""];
    const ADD_CHANGE: &'static str = "INSERT INTO granary.changes (namespace, key) VALUES ($1, $2)";
    const NOW: &'static str = "0";

    fn conflict(what: &'static str) -> LedgerError {
        damaged(what)
    }

    fn keeper(&self) -> &Keeper {
        self.keeper
    }

    fn now(&self) -> Timestamp {
        self.now
    }

    fn instant(&self, _: i64) -> Timestamp {
        self.now
    }

    async fn rows(&self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, LedgerError> {
        let mut statement = self.prepare(sql, values)?;
        let columns: Arc<[String]> = statement.column_names().map(str::to_owned).collect();
        Ok(collect(&columns, statement.raw_query())?)
    }

    async fn execute(&self, sql: &str, values: &[Value<'_>]) -> Result<u64, LedgerError> {
        Ok(self.prepare(sql, values)?.raw_execute()? as u64)
    }

    async fn keep_answer(&self, id: CallId, text: &Secret) -> Result<(), LedgerError> {
        let sql = "UPDATE calls SET answer = printf('%*s', ?2, '') || ?3 WHERE id = ?1";
        self.connection.prepare_cached(sql)?.execute(rusqlite::params![id.0, PAGE_SIZE, text.expose()])?;
        Ok(())
    }
}
