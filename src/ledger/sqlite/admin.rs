//! What operators change, and the feed by which every process learns what is out of date.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, params};

use super::audit::{self, Change};
use super::{SqliteLedger, inspect};
use crate::base::archive::ArchiveId;
use crate::base::key::CacheKey;
use crate::ledger::admin::{
    Action, Actor, AuditLine, CallFilter, CallPage, LedgerAdmin, Purge, Settled, Settlement,
};
use crate::ledger::budget::{Scope, Windows};
use crate::ledger::{CallId, Changes, LedgerError};

/// Layout 4.
pub(super) const SCHEMA: &str = "
CREATE TABLE purged (
    namespace  TEXT    NOT NULL,
    key        BLOB    NOT NULL,
    generation INTEGER NOT NULL,              -- what is stored up to here counts as absent
    PRIMARY KEY (namespace, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE changes (
    position  INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT    NOT NULL,
    key       BLOB    NOT NULL
) STRICT;
CREATE TABLE audit (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    at      TEXT    NOT NULL,
    who     TEXT    NOT NULL,
    action  TEXT    NOT NULL,
    subject TEXT    NOT NULL,
    detail  TEXT    NOT NULL
) STRICT;
CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit can only grow'); END;
CREATE TRIGGER audit_is_never_shortened BEFORE DELETE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit can only grow'); END;
ALTER TABLE calls ADD COLUMN settled TEXT;    -- `charged` or `free`, by an operator's word
CREATE INDEX calls_unknown ON calls (id) WHERE state = 'unknown';
";

/// Changes told at once.
const PAGE: u32 = 1000;

pub(super) fn purge(db: &Connection, namespace: &str, key: CacheKey) -> Result<Purge, LedgerError> {
    let before = purged(db, namespace, key)?;
    let is_stored = db
        .prepare_cached(
            "SELECT 1 FROM calls WHERE namespace = ?1 AND key = ?2 AND state = 'stored' AND late = 0 \
             AND (?3 IS NULL OR generation > ?3)",
        )?
        .exists(params![namespace, key.as_bytes(), before])?;
    if !is_stored {
        return Ok(before.map_or(Purge::Nothing, |generation| Purge::Repeated { generation }));
    }
    // Of what was lost a record may be left in the store; it goes as well.
    let generation: u64 = db
        .prepare_cached(
            "SELECT max(generation) FROM calls \
             WHERE namespace = ?1 AND key = ?2 AND state IN ('stored', 'lost') AND late = 0",
        )?
        .query_row(params![namespace, key.as_bytes()], |row| row.get(0))?;
    db.prepare_cached(
        "INSERT INTO purged (namespace, key, generation) VALUES (?1, ?2, ?3) \
         ON CONFLICT (namespace, key) DO UPDATE SET generation = excluded.generation",
    )?
    .execute(params![namespace, key.as_bytes(), generation])?;
    tell(db, namespace, key)?;
    Ok(Purge::Done { generation })
}

pub(super) fn purged(db: &Connection, namespace: &str, key: CacheKey) -> Result<Option<u64>, LedgerError> {
    let generation = db
        .prepare_cached("SELECT generation FROM purged WHERE namespace = ?1 AND key = ?2")?
        .query_row(params![namespace, key.as_bytes()], |row| row.get(0))
        .optional()?;
    Ok(generation)
}

/// What was read under a key before is out of date.
pub(super) fn tell(db: &Connection, namespace: &str, key: CacheKey) -> Result<(), LedgerError> {
    db.prepare_cached("INSERT INTO changes (namespace, key) VALUES (?1, ?2)")?
        .execute(params![namespace, key.as_bytes()])?;
    Ok(())
}

pub(super) fn changes(db: &Connection, after: Option<u64>) -> Result<Changes, LedgerError> {
    let Some(after) = after else {
        let position = db
            .prepare_cached("SELECT coalesce(max(position), 0) FROM changes")?
            .query_row([], |row| row.get(0))?;
        return Ok(Changes { position, keys: Vec::new() });
    };
    let mut found = db.prepare_cached(
        "SELECT position, namespace, key FROM changes WHERE position > ?1 ORDER BY position LIMIT ?2",
    )?;
    let mut found = found.query(params![after, PAGE])?;
    let mut changes = Changes { position: after, keys: Vec::new() };
    while let Some(row) = found.next()? {
        changes.position = row.get(0)?;
        changes.keys.push((row.get(1)?, CacheKey::from_bytes(row.get(2)?)));
    }
    Ok(changes)
}

impl SqliteLedger {
    fn change(&self, by: &Actor) -> Change {
        Change { by: by.clone(), at: self.clock.now() }
    }

    /// Asks behind whose back look-ups go on.
    async fn inspect<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        self.health.learn(self.reporter.run(false, query).await)
    }
}

#[async_trait]
impl LedgerAdmin for SqliteLedger {
    async fn purge(&self, namespace: &str, key: CacheKey, by: &Actor) -> Result<Purge, LedgerError> {
        let (namespace, change) = (namespace.to_owned(), self.change(by));
        self.write(move |db| audit::purge(db, &namespace, key, &change)).await
    }

    async fn freeze(&self, scope: Scope, frozen: bool, by: &Actor) -> Result<bool, LedgerError> {
        let change = self.change(by);
        self.write(move |db| audit::freeze(db, &scope, frozen, &change)).await
    }

    async fn frozen(&self) -> Result<Vec<Scope>, LedgerError> {
        self.inspect(audit::frozen).await
    }

    async fn settle(&self, id: CallId, settlement: Settlement, by: &Actor) -> Result<Settled, LedgerError> {
        let change = self.change(by);
        let windows = Windows::at(change.at, &self.zone);
        self.write(move |db| audit::settle(db, id, settlement, &windows, &change)).await
    }

    async fn unsettled(&self) -> Result<u64, LedgerError> {
        self.inspect(audit::unsettled).await
    }

    async fn note_adoption(&self, archive: ArchiveId, found: &str, by: &Actor) -> Result<(), LedgerError> {
        let (change, found) = (self.change(by), found.to_owned());
        let subject = archive.to_string();
        self.write(move |db| audit::note(db, &change, Action::Adopt, &subject, &found)).await
    }

    async fn audit(&self, before: Option<u64>, limit: usize) -> Result<Vec<AuditLine>, LedgerError> {
        self.inspect(move |db| audit::lines(db, before, limit)).await
    }

    async fn calls(&self, filter: CallFilter) -> Result<CallPage, LedgerError> {
        self.inspect(move |db| inspect::calls(db, &filter)).await
    }
}
