//! The contract, held against a real server, and through a pooler; and what this ledger promises beyond
//! it: [`faults`] of the server, which database it takes ([`places`]), how it tells the [`usage`], and
//! [`operators`] beside each other.

mod faults;
mod operators;
mod places;
mod usage;

use std::sync::Arc;

use granary_kit::postgres::{Pooler, Postgres};
use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::{PostgresConfig, PostgresLedger};
use crate::base::clock::Clock;
use crate::base::secret::Secret;
use crate::ledger::address::DatabaseAddress;
use crate::ledger::admin::LedgerAdmin;
use crate::ledger::{ArchiveIndex, Calls, Queries};
use crate::testing::ledger_contract::admin::admin_contract;
use crate::testing::ledger_contract::{
    SPOOL_MAX, TurnableClock, WholeLedger, lease_contract, ledger_contract, model, zone,
};
use crate::testing::usage_contract::{self as usage_model, UsageBench, usage_contract};

fn config(url: &str, clock: Clock, zone: TimeZone) -> PostgresConfig {
    let address = DatabaseAddress::parse(&Secret::new(url)).unwrap();
    PostgresConfig {
        address: Arc::new(move || Ok(address.clone())),
        roots: None,
        zone,
        spool_max: SPOOL_MAX,
        clock: Some(clock),
    }
}

/// The ledger's tables, gone.
fn empty(server: &Postgres) -> String {
    server.sql("postgres", "DROP SCHEMA IF EXISTS granary CASCADE");
    server.socket_url("postgres")
}

async fn open(server: &Postgres, clock: Clock, zone: TimeZone) -> PostgresLedger {
    PostgresLedger::new(config(&empty(server), clock, zone))
}

async fn open_two(server: &Postgres, clock: Clock, zone: TimeZone) -> [PostgresLedger; 2] {
    let config = config(&empty(server), clock, zone);
    [PostgresLedger::new(config.clone()), PostgresLedger::new(config)]
}

ledger_contract!(the_contract_holds, Postgres::start, open);
admin_contract!(the_contract_of_operators_holds, Postgres::start, open);
lease_contract!(the_contract_of_leases_holds, Postgres::start, open_two);
usage_contract!(the_contract_of_usage_holds, Postgres::start, open);

/// A server, and a pooler with fewer connections to it than a ledger has to the pooler.
fn pooled() -> (Pooler, Postgres) {
    let server = Postgres::start();
    (server.pooler(4), server)
}

async fn open_two_pooled(
    (pooler, server): &(Pooler, Postgres),
    clock: Clock,
    zone: TimeZone,
) -> [PostgresLedger; 2] {
    empty(server);
    let config = config(&pooler.url("postgres"), clock, zone);
    [PostgresLedger::new(config.clone()), PostgresLedger::new(config)]
}

lease_contract!(the_contract_of_leases_holds_through_a_pooler, pooled, open_two_pooled);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A case is some hundred transactions; PROPTEST_CASES asks for more of them.
fn cases() -> ProptestConfig {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    ProptestConfig::with_cases(if asked { ProptestConfig::default().cases } else { 24 })
}

#[test]
fn a_random_life_with_crashes_agrees_with_the_model() {
    let server = Postgres::start();
    let runtime = runtime();
    proptest!(cases(), |(life in model::lives())| {
        let url = empty(&server);
        let clock = TurnableClock::at("2026-03-27T20:00:00Z");
        let config = config(&url, clock.clock(), zone());
        let open = || async { Arc::new(PostgresLedger::new(config.clone())) as Arc<dyn WholeLedger> };
        runtime.block_on(model::live(life, clock.clone(), open));
        assert_counters_are_the_sum_of_the_rows(&server);
    });
}

#[test]
fn the_usage_of_a_random_life_agrees_with_the_model() {
    let server = Postgres::start();
    let runtime = runtime();
    proptest!(cases(), |(life in usage_model::lives())| {
        // A day before a month is closed.
        let clock = TurnableClock::at("2026-12-01T05:00:00Z");
        let ledger = Arc::new(PostgresLedger::new(config(&empty(&server), clock.clock(), zone())));
        runtime.block_on(usage_model::live(life, &UsageBench::new(ledger, clock)));
        assert_counters_are_the_sum_of_the_rows(&server);
    });
}

/// The counters once more, from the rows, by SQL instead of by the code under test.
fn assert_counters_are_the_sum_of_the_rows(server: &Postgres) {
    let wrong = server.sql(
        "postgres",
        "WITH counted AS (SELECT * FROM granary.calls
                          WHERE NOT adopted AND state NOT IN ('released', 'refused', 'failed')),
              expected AS (SELECT 'global' AS scope, day AS period, credits FROM counted
                           UNION ALL SELECT 'global', month, credits FROM counted
                           UNION ALL SELECT 'team:' || team, day, credits FROM counted
                           UNION ALL SELECT 'team:' || team, month, credits FROM counted
                           UNION ALL SELECT 'refused:' || team, day, credits FROM granary.calls
                           WHERE state = 'refused' AND reason LIKE '400 %'),
              sums AS (SELECT scope, period, sum(credits)::bigint AS credits FROM expected GROUP BY 1, 2)
         SELECT (SELECT count(*) FROM (SELECT * FROM sums EXCEPT SELECT * FROM granary.spent) a)
              + (SELECT count(*) FROM (SELECT * FROM granary.spent WHERE credits <> 0
                                       EXCEPT SELECT * FROM sums) b)",
    );
    assert_eq!(wrong, "0", "a counter is not the sum of its rows");
}
