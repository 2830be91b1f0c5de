//! What operators ask and change: each change is one transaction, with its line in the audit.

use std::sync::Arc;

use async_trait::async_trait;
use tokio_postgres::types::Type;

use super::book::tell;
use super::pool::{self, Failure, Lock, Tx};
use super::rows::{int8, number};
use super::{PostgresLedger, audit, inspect};
use crate::base::archive::ArchiveId;
use crate::base::key::CacheKey;
use crate::ledger::admin::{
    Action, Actor, AuditLine, CallFilter, CallPage, LedgerAdmin, Purge, Settled, Settlement,
};
use crate::ledger::budget::Scope;
use crate::ledger::{CallId, LedgerError};

/// What is added to the calls. The audit can only grow, also by the hand of whoever has the tables,
/// and where they are replicated to.
pub(super) const SCHEMA: &str = "
CREATE TABLE granary.audit (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      text   NOT NULL,
    who     text   NOT NULL,
    action  text   NOT NULL,
    subject text   NOT NULL,
    detail  text   NOT NULL
);
CREATE FUNCTION granary.refuse_to_change_the_audit() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'the audit can only grow'; END $$;
CREATE TRIGGER audit_can_only_grow BEFORE UPDATE OR DELETE OR TRUNCATE ON granary.audit
    FOR EACH STATEMENT EXECUTE FUNCTION granary.refuse_to_change_the_audit();
ALTER TABLE granary.audit ENABLE ALWAYS TRIGGER audit_can_only_grow;
ALTER TABLE granary.calls ADD COLUMN settled text;  -- `charged` or `free`, by an operator's word
CREATE INDEX calls_unknown ON granary.calls (id) WHERE state = 'unknown';
";

#[async_trait]
impl LedgerAdmin for PostgresLedger {
    async fn purge(&self, namespace: &str, key: CacheKey, by: &Actor) -> Result<Purge, LedgerError> {
        let what = Arc::new((namespace.to_owned(), by.clone()));
        self.pool
            .write(&[pool::key_lock(&key)], move |tx| {
                let what = Arc::clone(&what);
                async move { audit::purge(&tx, &what.0, key, &what.1).await }
            })
            .await
    }

    async fn freeze(&self, scope: Scope, frozen: bool, by: &Actor) -> Result<bool, LedgerError> {
        let what = Arc::new((scope, by.clone()));
        self.pool
            .write(&[Lock::Freeze.exclusive()], move |tx| {
                let what = Arc::clone(&what);
                async move { audit::freeze(&tx, &what.0, frozen, &what.1).await }
            })
            .await
    }

    async fn frozen(&self) -> Result<Vec<Scope>, LedgerError> {
        self.reports.read(|tx| async move { audit::frozen(&tx).await }).await
    }

    async fn settle(&self, id: CallId, settlement: Settlement, by: &Actor) -> Result<Settled, LedgerError> {
        let what = Arc::new((by.clone(), self.booker.zone.clone()));
        self.pool
            .write(&[], move |tx| {
                let what = Arc::clone(&what);
                async move { audit::settle(&tx, id, settlement, &what.1, &what.0).await }
            })
            .await
    }

    async fn unsettled(&self) -> Result<u64, LedgerError> {
        self.reports.read(|tx| async move { audit::unsettled(&tx).await }).await
    }

    async fn note_adoption(&self, archive: ArchiveId, found: &str, by: &Actor) -> Result<(), LedgerError> {
        let what = Arc::new((archive.to_string(), found.to_owned(), by.clone()));
        self.pool
            .write(&[], move |tx| {
                let what = Arc::clone(&what);
                async move { audit::note(&tx, &what.2, Action::Adopt, &what.0, &what.1).await }
            })
            .await
    }

    async fn audit(&self, before: Option<u64>, limit: usize) -> Result<Vec<AuditLine>, LedgerError> {
        self.reports.read(move |tx| async move { audit::lines(&tx, before, limit).await }).await
    }

    async fn calls(&self, filter: CallFilter) -> Result<CallPage, LedgerError> {
        let filter = Arc::new(filter);
        self.reports
            .read(move |tx| {
                let filter = Arc::clone(&filter);
                async move { inspect::calls(&tx, &filter).await }
            })
            .await
    }
}

/// The lock on the key is held: nobody reserves it, or purges it too, in between.
pub(super) async fn purge(tx: &Tx, namespace: &str, key: CacheKey) -> Result<Purge, Failure> {
    let before = purged(tx, namespace, key).await?;
    // Of what was lost a record may be left in the store; it goes as well.
    let sql = "SELECT max(generation) AS newest, \
               coalesce(max(generation) FILTER (WHERE state = 'stored'), -1) > $3 AS is_stored \
               FROM granary.calls WHERE namespace = $1 AND key = $2 AND state IN ('stored', 'lost') AND NOT late";
    let least = before.map_or(Ok(-1), int8)?;
    let key_bytes = &key.as_bytes()[..];
    let row =
        tx.one(sql, &[(&namespace, Type::TEXT), (&key_bytes, Type::BYTEA), (&least, Type::INT8)]).await?;
    if !row.try_get::<_, bool>("is_stored")? {
        return Ok(before.map_or(Purge::Nothing, |generation| Purge::Repeated { generation }));
    }
    let generation: u64 = number(&row, "newest")?;
    let sql = "INSERT INTO granary.purged (namespace, key, generation) VALUES ($1, $2, $3) \
               ON CONFLICT (namespace, key) DO UPDATE SET generation = excluded.generation";
    let newest = int8(generation)?;
    tx.execute(sql, &[(&namespace, Type::TEXT), (&key_bytes, Type::BYTEA), (&newest, Type::INT8)]).await?;
    tell(tx, namespace, key).await?;
    Ok(Purge::Done { generation })
}

pub(super) async fn purged(tx: &Tx, namespace: &str, key: CacheKey) -> Result<Option<u64>, Failure> {
    let sql = "SELECT generation FROM granary.purged WHERE namespace = $1 AND key = $2";
    let row = tx.row(sql, &[(&namespace, Type::TEXT), (&&key.as_bytes()[..], Type::BYTEA)]).await?;
    row.map(|row| number(&row, "generation")).transpose()
}
