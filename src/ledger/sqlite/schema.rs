//! The tables of the file, as a list of migrations.

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use crate::ledger::LedgerError;

/// The number of applied [`MIGRATIONS`]. A file with a higher one is refused untouched.
const VERSION: i64 = MIGRATIONS.len() as i64;

pub(super) const MIGRATIONS: [&str; 6] = [CALLS, SPOOL, ARCHIVE, ADMIN, USAGE, IMPORT];

const CALLS: &str = "
CREATE TABLE calls (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace    TEXT    NOT NULL,
    key          BLOB    NOT NULL,
    generation   INTEGER NOT NULL,
    state        TEXT    NOT NULL,
    late         INTEGER NOT NULL DEFAULT 0,  -- 1: another row keeps the key
    adopted      INTEGER NOT NULL DEFAULT 0,  -- 1: paid through another ledger
    team         TEXT    NOT NULL,
    credits      INTEGER NOT NULL,
    day          TEXT    NOT NULL,            -- the windows it was reserved in
    month        TEXT    NOT NULL,
    image        BLOB    NOT NULL,
    width        INTEGER NOT NULL,
    height       INTEGER NOT NULL,
    reserved_at  TEXT    NOT NULL,
    sent_at      TEXT,
    answered_at  TEXT,
    ended_at     TEXT,
    reason       TEXT,
    answer       TEXT,                        -- `answered`: padding, then a signed URL; `stored`: the record's
    request_id   TEXT,
    log_id       TEXT,
    digest       BLOB,
    extension    TEXT,
    bytes        INTEGER
) STRICT;
CREATE UNIQUE INDEX calls_holding_a_key ON calls (namespace, key, generation)
    WHERE late = 0 AND state IN ('reserved', 'sent', 'answered', 'stored');
CREATE INDEX calls_by_key ON calls (namespace, key, state);
CREATE INDEX calls_open ON calls (state) WHERE state IN ('reserved', 'sent', 'answered');
CREATE INDEX calls_totals ON calls (state, credits) WHERE adopted = 0;
CREATE TABLE spent (
    scope   TEXT NOT NULL,
    period  TEXT NOT NULL,
    credits INTEGER NOT NULL,
    PRIMARY KEY (scope, period)
) STRICT, WITHOUT ROWID;
CREATE TABLE frozen (scope TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
";

const SPOOL: &str = "
CREATE TABLE spool (
    position   INTEGER PRIMARY KEY AUTOINCREMENT,  -- oldest first
    call       INTEGER NOT NULL UNIQUE,
    digest     BLOB    NOT NULL,
    extension  TEXT    NOT NULL,
    spooled_at TEXT    NOT NULL,
    bytes      INTEGER NOT NULL,
    data       BLOB    NOT NULL
) STRICT;
CREATE INDEX spool_by_object ON spool (digest, extension);
CREATE INDEX spool_sizes ON spool (bytes);
";

const ARCHIVE: &str = "
CREATE TABLE archive (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    id      TEXT    NOT NULL,
    settled INTEGER NOT NULL                  -- 1: the store has been seen to carry the same id
) STRICT;
";

const ADMIN: &str = "
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

const USAGE: &str = "
CREATE TABLE served (
    day      TEXT    NOT NULL,
    team     TEXT    NOT NULL,
    cause    TEXT    NOT NULL,
    payer    TEXT    NOT NULL,                -- 'own': the team had paid itself; 'other'
    requests INTEGER NOT NULL,
    credits  INTEGER NOT NULL,                -- what they would have cost
    PRIMARY KEY (day, team, cause, payer)
) STRICT, WITHOUT ROWID;
CREATE TABLE served_batches (
    process  TEXT    PRIMARY KEY,
    number   INTEGER NOT NULL,                -- its last batch that is booked
    day      TEXT    NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE adjustments (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    call       INTEGER NOT NULL,              -- changed when its month was closed
    call_day   TEXT    NOT NULL,
    is_first   INTEGER NOT NULL,              -- 1: of this call
    team       TEXT    NOT NULL,
    from_state TEXT    NOT NULL,
    to_state   TEXT    NOT NULL,
    credits    INTEGER NOT NULL,              -- 0, or less when its credits count no more
    day        TEXT    NOT NULL,              -- when it changed
    month      TEXT    NOT NULL
) STRICT;
CREATE INDEX adjustments_by_call ON adjustments (call);
CREATE INDEX adjustments_by_day ON adjustments (day);
CREATE INDEX adjustments_by_call_day ON adjustments (call_day) WHERE is_first = 1;
CREATE TABLE accounts (
    namespace        TEXT    PRIMARY KEY,
    version          INTEGER NOT NULL,
    balance          INTEGER NOT NULL,
    seen_at          TEXT    NOT NULL,
    baseline_balance INTEGER NOT NULL,
    baseline_least   INTEGER NOT NULL,
    baseline_most    INTEGER NOT NULL,
    baseline_at      TEXT    NOT NULL,
    outside          INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX calls_by_day ON calls (day, team, namespace, state, credits, adopted) WHERE adopted = 0;
CREATE INDEX spent_by_period ON spent (period);
";

/// An earlier program has booked every record of its archive, unless the audit has an adoption.
const IMPORT: &str = "
ALTER TABLE archive ADD COLUMN complete INTEGER NOT NULL DEFAULT 0;  -- 1: every record of the store is known
ALTER TABLE archive ADD COLUMN imported TEXT;                        -- up to this position of the store's list
UPDATE archive SET complete = 1 WHERE settled = 1 AND NOT EXISTS (SELECT 1 FROM audit WHERE action = 'adopt');
";

fn version(connection: &Connection) -> Result<i64, LedgerError> {
    Ok(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

/// Runs before anything that may write, such as a change of the journal mode or the checkpoint on close.
pub(super) fn refuse_newer(connection: &Connection) -> Result<(), LedgerError> {
    let version = version(connection)?;
    if version <= VERSION {
        return Ok(());
    }
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Err(LedgerError::Unavailable(format!(
        "the file has layout {version}, and this program knows {VERSION}: run the newer program"
    )))
}

pub(super) fn migrate(connection: &Connection) -> Result<(), LedgerError> {
    let done = usize::try_from(version(connection)?).unwrap_or(0);
    for (migration, layout) in MIGRATIONS.iter().zip(1..).skip(done) {
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE; {migration} PRAGMA user_version = {layout}; COMMIT;"
        ))?;
    }
    Ok(())
}
