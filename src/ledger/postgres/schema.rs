//! The tables, as a list of migrations, and the requirements on the database.

use tokio_postgres::{Client, SimpleQueryMessage};

use super::failure::{COMMITS_ARE_LOST, Failure, TRIES};
use crate::ledger::sql::Lock;

/// The number of applied [`MIGRATIONS`]. A database with a higher one is refused untouched.
pub(super) const LAYOUT: usize = MIGRATIONS.len();

/// A migration only adds, because replicas of the last version go on beside the first one of the next.
pub(super) const MIGRATIONS: [&str; 4] = [FIRST, USAGE, ADMIN, IMPORT];

/// Times are texts as in the store's records, to the nanosecond. `answers` is vacuumed at once: it has signed URLs.
const FIRST: &str = "
CREATE TABLE granary.calls (
    id           bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace    text    NOT NULL,
    key          bytea   NOT NULL,
    generation   bigint  NOT NULL,
    state        text    NOT NULL,
    late         boolean NOT NULL DEFAULT false,  -- another row keeps the key
    adopted      boolean NOT NULL DEFAULT false,  -- paid through another ledger
    team         text    NOT NULL,
    credits      bigint  NOT NULL,
    day          text    NOT NULL,                -- the windows it was reserved in
    month        text    NOT NULL,
    image        bytea   NOT NULL,
    width        bigint  NOT NULL,
    height       bigint  NOT NULL,
    reserved_at  text    NOT NULL,
    sent_at      text,
    answered_at  text,
    ended_at     text,
    reason       text,
    answer       text,                            -- the record's
    request_id   text,
    log_id       text,
    digest       bytea,
    extension    text,
    bytes        bigint,
    owner        text,                            -- the process that acts for it
    beat         bigint  NOT NULL DEFAULT 0       -- another one whenever the owner has shown that it lives
);
CREATE UNIQUE INDEX calls_holding_a_key ON granary.calls (namespace, key, generation)
    WHERE NOT late AND state IN ('reserved', 'sent', 'answered', 'stored');
CREATE INDEX calls_by_key ON granary.calls (namespace, key, state);
CREATE INDEX calls_open ON granary.calls (id) WHERE state IN ('reserved', 'sent', 'answered');
CREATE INDEX calls_totals ON granary.calls (state, credits) WHERE NOT adopted;
CREATE TABLE granary.answers (
    call bigint PRIMARY KEY,
    text text   NOT NULL
) WITH (autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 0,
        toast.autovacuum_vacuum_threshold = 0, toast.autovacuum_vacuum_scale_factor = 0,
        toast.autovacuum_vacuum_cost_delay = 0);
CREATE TABLE granary.spent (
    scope   text   NOT NULL,
    period  text   NOT NULL,
    credits bigint NOT NULL,
    PRIMARY KEY (scope, period)
) WITH (fillfactor = 50);
CREATE TABLE granary.frozen (scope text PRIMARY KEY);
CREATE TABLE granary.archive (
    one     boolean PRIMARY KEY CHECK (one),
    id      text    NOT NULL,
    settled boolean NOT NULL                      -- the store has been seen to carry the same id
);
CREATE TABLE granary.spool (
    position   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,  -- oldest first
    call       bigint NOT NULL UNIQUE,
    digest     bytea  NOT NULL,
    extension  text   NOT NULL,
    spooled_at text   NOT NULL,
    bytes      bigint NOT NULL,
    data       bytea  NOT NULL
);
ALTER TABLE granary.spool ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE INDEX spool_by_object ON granary.spool (digest, extension);
CREATE TABLE granary.purged (
    namespace  text   NOT NULL,
    key        bytea  NOT NULL,
    generation bigint NOT NULL,                   -- what is stored up to here counts as absent
    PRIMARY KEY (namespace, key)
);
CREATE SEQUENCE granary.change_positions;
CREATE TABLE granary.changes (
    namespace text   NOT NULL,
    key       bytea  NOT NULL,
    position  bigint NOT NULL,                    -- of its last change
    PRIMARY KEY (namespace, key)
);
CREATE UNIQUE INDEX changes_in_order ON granary.changes (position);
";

const USAGE: &str = "
CREATE TABLE granary.served (
    day      text   NOT NULL,
    team     text   NOT NULL,
    cause    text   NOT NULL,
    payer    text   NOT NULL,                     -- 'own': the team had paid itself; 'other'
    requests bigint NOT NULL,
    credits  bigint NOT NULL,                     -- what they would have cost
    PRIMARY KEY (day, team, cause, payer)
) WITH (fillfactor = 50);
CREATE TABLE granary.served_batches (
    process  text   PRIMARY KEY,
    number   bigint NOT NULL,                     -- its last batch that is booked
    day      text   NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE granary.adjustments (
    id         bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    call       bigint  NOT NULL,                  -- changed when its month was closed
    call_day   text    NOT NULL,
    is_first   boolean NOT NULL,                  -- of this call
    team       text    NOT NULL,
    from_state text    NOT NULL,
    to_state   text    NOT NULL,
    credits    bigint  NOT NULL,                  -- 0, or less when its credits count no more
    day        text    NOT NULL,                  -- when it changed
    month      text    NOT NULL
);
CREATE INDEX adjustments_by_call ON granary.adjustments (call);
CREATE INDEX adjustments_by_day ON granary.adjustments (day);
CREATE INDEX adjustments_by_call_day ON granary.adjustments (call_day) WHERE is_first;
CREATE TABLE granary.accounts (
    namespace        text   PRIMARY KEY,
    version          bigint NOT NULL,
    balance          bigint NOT NULL,
    seen_at          text   NOT NULL,
    baseline_balance bigint NOT NULL,
    baseline_least   bigint NOT NULL,
    baseline_most    bigint NOT NULL,
    baseline_at      text   NOT NULL,
    outside          bigint NOT NULL
);
CREATE INDEX calls_by_day ON granary.calls (day, team, namespace, state, credits) WHERE NOT adopted;
CREATE INDEX spent_by_period ON granary.spent (period);
";

/// The audit can only grow, even for the owner of the tables and where they are replicated to.
const ADMIN: &str = "
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

/// An earlier program has booked every record of its archive, unless the audit has an adoption.
const IMPORT: &str = "
ALTER TABLE granary.archive
    ADD COLUMN complete boolean NOT NULL DEFAULT false,  -- every record of the store is known
    ADD COLUMN imported text;                            -- up to this position of the store's list
UPDATE granary.archive SET complete = settled
    WHERE NOT EXISTS (SELECT FROM granary.audit WHERE action = 'adopt');
";

/// Refuses an unfit database untouched ([`Failure::Unfit`]); creates or migrates the tables of a fit one.
pub(super) async fn prepare(client: &Client) -> Result<(), Failure> {
    if setting(client, "synchronous_commit").await?.as_deref() == Some("off") {
        return Err(Failure::Unfit(COMMITS_ARE_LOST.to_owned()));
    }
    for name in ["fsync", "full_page_writes"] {
        if setting(client, name).await?.as_deref() == Some("off") {
            tracing::warn!(
                setting = name,
                "the database loses what it confirmed when its machine loses power"
            );
        }
    }
    // After waiting for another process that creates the schema, a server may still use its cached names,
    // miss the schema, and fail to create it.
    let mut outcome = Ok(());
    for _ in 0..TRIES {
        if is_current(client).await? {
            return Ok(());
        }
        outcome = migrate(client).await;
        let end = if outcome.is_ok() { "COMMIT" } else { "ROLLBACK" };
        client.batch_execute(end).await?;
        if !matches!(outcome, Err(Failure::Again(_))) {
            break;
        }
    }
    outcome
}

/// Runs without a lock, because the user may not be allowed to create tables.
async fn is_current(client: &Client) -> Result<bool, Failure> {
    match layout(client).await? {
        Some(layout) if layout > LAYOUT as i64 => Err(Failure::Unfit(format!(
            "the tables have layout {layout}, and this program knows {LAYOUT}: run the newer program"
        ))),
        found => Ok(found == Some(LAYOUT as i64)),
    }
}

async fn migrate(client: &Client) -> Result<(), Failure> {
    let begin = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '4s'; {}; \
         CREATE SCHEMA IF NOT EXISTS granary; CREATE TABLE IF NOT EXISTS granary.layout (version bigint NOT NULL)",
        Lock::Layout.exclusive()
    );
    client.batch_execute(&begin).await?;
    // Another process may have been first.
    if is_current(client).await? {
        return Ok(());
    }
    let done = usize::try_from(layout(client).await?.unwrap_or(0)).unwrap_or(0);
    for migration in MIGRATIONS.iter().skip(done) {
        client.batch_execute(migration).await?;
    }
    let noted = format!("DELETE FROM granary.layout; INSERT INTO granary.layout VALUES ({LAYOUT})");
    client.batch_execute(&noted).await?;
    tracing::info!(layout = LAYOUT, "the ledger's tables are made");
    Ok(())
}

async fn layout(client: &Client) -> Result<Option<i64>, Failure> {
    if value(client, "SELECT to_regclass('granary.layout')").await?.is_none() {
        return Ok(None);
    }
    let version = value(client, "SELECT max(version) FROM granary.layout").await?;
    Ok(version.and_then(|version| version.parse().ok()))
}

async fn setting(client: &Client, name: &str) -> Result<Option<String>, Failure> {
    value(client, &format!("SELECT current_setting('{name}')")).await
}

async fn value(client: &Client, sql: &str) -> Result<Option<String>, Failure> {
    let said = client.simple_query(sql).await?;
    Ok(last_row(&said).and_then(|row| row.get(0)).map(str::to_owned))
}

pub(super) fn last_row(said: &[SimpleQueryMessage]) -> Option<&tokio_postgres::SimpleQueryRow> {
    said.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}
