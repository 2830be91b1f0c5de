//! The shared statements as PostgreSQL runs them.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::BytesMut;
use jiff::Timestamp;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use super::failure::Failure;
use super::lock::key_lock;
use super::pool::{self, NOW, Tx};
use crate::base::key::CacheKey;
use crate::base::secret::Secret;
use crate::ledger::CallId;
use crate::ledger::sql::{Cell, Keeper, Lock, Query, Row, Value, values};

/// What is done in a transaction with what is asked. It may be done several times.
pub(super) type Work<A, T> =
    for<'a> fn(&'a Tx, &'a A) -> Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'a>>;

impl Value<'_> {
    fn postgres_type(&self) -> Type {
        match self {
            Self::Int(_) => Type::INT8,
            Self::Flag(_) => Type::BOOL,
            Self::Text(_) => Type::TEXT,
            Self::Bytes(_) => Type::BYTEA,
        }
    }
}

impl ToSql for Value<'_> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self {
            Self::Int(number) => number.to_sql(ty, out),
            Self::Flag(flag) => flag.to_sql(ty, out),
            Self::Text(text) => text.to_sql(ty, out),
            Self::Bytes(bytes) => bytes.to_sql(ty, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

fn typed<'v>(values: &'v [Value<'_>]) -> Vec<pool::Value<'v>> {
    values.iter().map(|value| (value as &(dyn ToSql + Sync), value.postgres_type())).collect()
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

impl Query for Tx {
    type Error = Failure;
    const OWNER_DIED: &'static str = "its owner was silent for a full lease";
    const TOUCH: &'static str = ", beat = beat + 1";
    const IS_OURS: &'static str = "owner = $2";
    const OWN: &'static str = ", owner = $6";
    const OWNER: [&'static str; 2] = [", owner", ", $12"];
    const TELL: &'static str = "INSERT INTO granary.changes (namespace, key, position) \
                                VALUES ($1, $2, nextval('granary.change_positions')) \
                                ON CONFLICT (namespace, key) DO UPDATE SET position = excluded.position";
    const NOW: &'static str = NOW;

    fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    fn now(&self) -> Timestamp {
        self.now
    }

    fn instant(&self, micros: i64) -> Timestamp {
        self.shown(micros)
    }

    async fn rows(&self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, Failure> {
        let rows = self.query(sql, &typed(values)).await?;
        let names = rows.first().into_iter().flat_map(|row| row.columns());
        let columns: Arc<[String]> = names.map(|column| column.name().to_owned()).collect();
        rows.iter().map(|row| Ok(Row { columns: Arc::clone(&columns), cells: cells(row)? })).collect()
    }

    async fn execute(&self, sql: &str, values: &[Value<'_>]) -> Result<u64, Failure> {
        self.change(sql, &typed(values)).await
    }

    async fn lock(&self, lock: Lock) -> Result<(), Failure> {
        self.batch(&lock.exclusive()).await
    }

    async fn lock_key(&self, key: &CacheKey) -> Result<(), Failure> {
        self.batch(&key_lock(key)).await
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
