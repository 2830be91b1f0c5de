//! The shared statements in PostgreSQL.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use tokio_postgres::types::{ToSql, Type};

use super::failure::Failure;
use super::pool::{NOW, Tx};
use crate::base::clock;
use crate::base::key::CacheKey;
use crate::base::secret::Secret;
use crate::ledger::CallId;
use crate::ledger::sql::{Cell, Keeper, Lock, Query, Row, Value, values};

/// May run several times.
pub(super) type Work<A, T> =
    for<'a> fn(&'a Tx, &'a A) -> Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'a>>;

/// With types, which saves a round trip.
fn typed<'v>(values: &'v [Value<'_>]) -> Vec<(&'v (dyn ToSql + Sync), Type)> {
    let typed = |value: &'v Value<'_>| -> (&'v (dyn ToSql + Sync), Type) {
        match value {
            Value::Int(number) => (number, Type::INT8),
            Value::Flag(flag) => (flag, Type::BOOL),
            Value::Text(text) => (text, Type::TEXT),
            Value::Bytes(bytes) => (bytes, Type::BYTEA),
        }
    };
    values.iter().map(typed).collect()
}

fn cells(row: &tokio_postgres::Row) -> Result<Vec<Cell>, tokio_postgres::Error> {
    let cell = |(at, column): (usize, &tokio_postgres::Column)| {
        let cell = match *column.type_() {
            Type::INT8 => row.try_get::<_, Option<i64>>(at)?.map(Cell::Int),
            Type::BOOL => row.try_get::<_, Option<bool>>(at)?.map(|flag| Cell::Int(flag.into())),
            Type::BYTEA => row.try_get::<_, Option<Vec<u8>>>(at)?.map(Cell::Bytes),
            _ => row.try_get::<_, Option<String>>(at)?.map(Cell::Text),
        };
        Ok(cell.unwrap_or(Cell::Null))
    };
    row.columns().iter().enumerate().map(cell).collect()
}

impl Lock {
    /// "gran" in ASCII, so that these locks differ from those of other programs in the same database.
    const CLASS: i32 = 0x6772_616e;

    pub(super) fn exclusive(self) -> String {
        format!("SELECT pg_advisory_xact_lock({}, {})", Self::CLASS, self as i32)
    }

    pub(super) fn shared(self) -> String {
        format!("SELECT pg_advisory_xact_lock_shared({}, {})", Self::CLASS, self as i32)
    }
}

/// Keys may share a lock.
pub(super) fn key_lock(key: &CacheKey) -> String {
    let [a, b, c, d, e, f, g, h, ..] = *key.as_bytes();
    format!("SELECT pg_advisory_xact_lock({})", i64::from_le_bytes([a, b, c, d, e, f, g, h]))
}

impl Query for Tx {
    type Error = Failure;
    const IS_ALONE: bool = false;
    const OWNER_DIED: &'static str = "its owner was silent for a full lease";
    const TOUCH: &'static str = ", beat = beat + 1";
    const IS_OURS: &'static str = "owner = $2";
    const OWN: &'static str = ", owner = $6";
    const OWNER: [&'static str; 2] = [", owner", ", $12"];
    const ADD_CHANGE: &'static str = "INSERT INTO granary.changes (namespace, key, position) \
                                VALUES ($1, $2, nextval('granary.change_positions')) \
                                ON CONFLICT (namespace, key) DO UPDATE SET position = excluded.position";
    const NOW: &'static str = NOW;

    fn conflict(what: &'static str) -> Failure {
        Failure::Again(what)
    }

    fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    fn now(&self) -> Timestamp {
        self.now
    }

    fn instant(&self, micros: i64) -> Timestamp {
        match &self.clock {
            Some(clock) => clock.now(),
            None => clock::shifted(Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX)),
        }
    }

    // Without a prepared statement: a pooler may give each transaction another connection.
    async fn rows(&self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, Failure> {
        let rows = self.client.query_typed(sql, &typed(values)).await?;
        let names = rows.first().into_iter().flat_map(|row| row.columns());
        let columns: Arc<[String]> = names.map(|column| column.name().to_owned()).collect();
        rows.iter().map(|row| Ok(Row { columns: Arc::clone(&columns), cells: cells(row)? })).collect()
    }

    async fn execute(&self, sql: &str, values: &[Value<'_>]) -> Result<u64, Failure> {
        Ok(self.client.execute_typed(sql, &typed(values)).await?)
    }

    fn undo(&self) {
        self.is_undone.store(true, Ordering::Relaxed);
    }

    async fn lock(&self, lock: Lock) -> Result<(), Failure> {
        Ok(self.client.batch_execute(&lock.exclusive()).await?)
    }

    async fn lock_key(&self, key: &CacheKey) -> Result<(), Failure> {
        Ok(self.client.batch_execute(&key_lock(key)).await?)
    }

    async fn keep_answer(&self, id: CallId, text: &Secret) -> Result<(), Failure> {
        let sql = "INSERT INTO granary.answers (call, text) VALUES ($1, $2)";
        self.execute(sql, values![id, text.expose()]).await?;
        Ok(())
    }

    async fn erase_answer(&self, id: CallId) -> Result<(), Failure> {
        self.execute("DELETE FROM granary.answers WHERE call = $1", values![id]).await?;
        Ok(())
    }
}
