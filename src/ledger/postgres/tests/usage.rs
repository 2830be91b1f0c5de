//! What the usage book promises on PostgreSQL beyond its contract: it is in nobody's way, its reports
//! are of one instant, and they read no more than they must.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::civil::Date;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::super::connect::{self, Connection, Tls};
use super::super::pool::REPORT;
use super::super::schema;
use super::*;
use crate::base::outcome::SavingCause;
use crate::ledger::sql::{Query as _, admin, usage};
use crate::ledger::usage::{Count, Payer, Served, ServedBatch, UsageBook};
use crate::ledger::{CallId, CallState};
use crate::testing::ledger_contract::{Bench, failed, picture};

/// What may take long on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn two(server: &Postgres) -> (Arc<PostgresLedger>, Bench) {
    let clock = TurnableClock::at("2026-11-22T09:00:00Z");
    let config = config(&server.socket_url("postgres"), clock.clock(), zone());
    let ledger = Arc::new(PostgresLedger::new(config));
    (ledger.clone(), Bench { ledger, clock })
}

fn date(text: &str) -> Date {
    text.parse().unwrap()
}

/// A person with a connection of his own, who is in the middle of something.
async fn person(server: &Postgres, statement: &str) -> Connection {
    let address = DatabaseAddress::parse(&Secret::new(server.socket_url("postgres"))).unwrap();
    let person = connect::connect(&address, &Tls::new(None).unwrap()).await.unwrap();
    person.client.batch_execute(statement).await.unwrap();
    person
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_reports_are_waiting_purchases_go_on() {
    let server = Postgres::start();
    let (ledger, bench) = two(&server);
    bench.store(picture(1)).await;
    let holds = person(&server, "BEGIN; LOCK TABLE granary.served IN ACCESS EXCLUSIVE MODE").await;
    let mut reports = JoinSet::new();
    for _ in 0..20 {
        let ledger = Arc::clone(&ledger);
        reports.spawn(async move { ledger.usage(date("2026-11-01"), date("2026-11-30")).await });
    }
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'granary' \
                   AND wait_event_type = 'Lock'";
    let begun = std::time::Instant::now();
    while server.sql("postgres", waiting) != "2" {
        assert!(begun.elapsed() < PATIENCE, "the reports wait on two connections");
    }
    bench.store(picture(2)).await;
    drop(holds);
    for report in reports.join_all().await {
        report.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_statements_of_a_report_see_the_same_instant_and_change_nothing() {
    let server = Postgres::start();
    let (ledger, bench) = two(&server);
    bench.store(picture(1)).await;
    let (first_is_read, first) = tokio::sync::mpsc::channel::<()>(1);
    let (second_may_be, may) = tokio::sync::mpsc::channel::<()>(1);
    let may = Arc::new(tokio::sync::Mutex::new(may));
    let reports = ledger.reports.clone();
    let report = tokio::spawn(async move {
        let report = reports.run(Some(REPORT), &[], move |tx| {
            let (first_is_read, may) = (first_is_read.clone(), Arc::clone(&may));
            async move {
                let mut counted = Vec::new();
                for _ in 0..2 {
                    let rows = tx.rows("SELECT count(*) FROM granary.calls", &[]).await?;
                    counted.push(rows[0].get::<i64>("count")?);
                    let _ = first_is_read.try_send(());
                    let _ = may.lock().await.recv().await;
                }
                assert!(tx.execute("DELETE FROM granary.calls", &[]).await.is_err());
                Ok(counted)
            }
        });
        report.await
    });
    let mut first = first;
    first.recv().await.unwrap();
    bench.store(picture(2)).await;
    drop(second_may_be);
    assert_eq!(report.await.unwrap().unwrap(), [1, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_book_the_same_days_in_any_order_wait_for_each_other_and_never_both() {
    let server = Postgres::start();
    let mut booking = JoinSet::new();
    for process in 0..4_usize {
        let (ledger, _) = two(&server);
        booking.spawn(async move {
            let id = Uuid::new_v4();
            for number in 1..=25_u64 {
                let mut served: Vec<_> = (0..40_usize)
                    .map(|place| Served {
                        day: date("2026-11-22"),
                        team: format!("team {}", place / 10),
                        cause: SavingCause::ALL[place / 2 % 5],
                        payer: Payer::ALL[place % 2],
                        count: Count { number: 1, credits: 3 },
                    })
                    .collect();
                served.rotate_left(10 * process);
                if process % 2 == 1 {
                    served.reverse();
                }
                ledger.book_served(ServedBatch { process: id, number, served }).await.unwrap();
            }
        });
    }
    booking.join_all().await;
    let sums = "SELECT count(*), min(requests), max(requests), sum(credits) FROM granary.served";
    assert_eq!(server.sql("postgres", sums), "40|100|100|12000");
    assert!(!server.log().contains("deadlock detected"));
}

/// A batch has them side by side when a process could not book over the end of a month.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_served_on_two_days_may_be_booked_on_one() {
    let server = Postgres::start();
    let (ledger, bench) = two(&server);
    bench.clock.set("2026-12-05T09:00:00Z".parse().unwrap());
    let count = Count { number: 1, credits: 3 };
    let served = ["2026-11-29", "2026-11-30", "2026-12-05"].map(|day| Served {
        day: date(day),
        team: "web".to_owned(),
        cause: SavingCause::HitMemory,
        payer: Payer::Own,
        count,
    });
    let batch = ServedBatch { process: Uuid::new_v4(), number: 1, served: served.to_vec() };
    ledger.book_served(batch).await.unwrap();
    let usage = ledger.usage(date("2026-11-01"), date("2026-12-31")).await.unwrap();
    let saved: Vec<_> =
        usage.iter().map(|day| (day.day.to_string(), day.figures.saved(Payer::Own).number)).collect();
    assert_eq!(saved, [("2026-12-05".to_owned(), 3)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_gone_is_forgotten_unless_somebody_has_its_row() {
    let server = Postgres::start();
    let (ledger, bench) = two(&server);
    let begin =
        async || ledger.book_served(ServedBatch { process: Uuid::new_v4(), number: 1, served: vec![] }).await;
    begin().await.unwrap();
    begin().await.unwrap();
    bench.clock.set("2026-12-23T09:00:00Z".parse().unwrap());
    // One that was stopped for a month is about to book.
    let holds =
        person(&server, "BEGIN; SELECT FROM granary.served_batches ORDER BY process LIMIT 1 FOR UPDATE")
            .await;
    begin().await.unwrap();
    assert_eq!(server.sql("postgres", "SELECT count(*) FROM granary.served_batches"), "2");
    holds.client.batch_execute("COMMIT").await.unwrap();
    begin().await.unwrap();
    assert_eq!(server.sql("postgres", "SELECT min(day) FROM granary.served_batches"), "2026-12-23");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_the_first_layout_get_what_is_new_and_keep_their_book() {
    let server = Postgres::start();
    server.sql(
        "postgres",
        &format!(
            "CREATE SCHEMA granary; CREATE TABLE granary.layout (version bigint NOT NULL);
             INSERT INTO granary.layout VALUES (1); {}
             INSERT INTO granary.calls (namespace, key, generation, state, team, credits, day, month, image, width,
                                        height, reserved_at, sent_at, ended_at)
             VALUES ('ailab-v1', sha256('key'), 0, 'unknown', 'press', 3, '2026-11-22', '2026-11', sha256('image'), 640, 427,
                     '2026-11-22T09:00:00Z', '2026-11-22T09:00:00Z', '2026-11-22T09:00:00Z');
             INSERT INTO granary.spent SELECT * FROM unnest(
                 ARRAY['global', 'global', 'team:press', 'team:press'],
                 ARRAY['2026-11-22', '2026-11', '2026-11-22', '2026-11'], ARRAY[3, 3, 3, 3])",
            schema::MIGRATIONS[0]
        ),
    );
    let id = CallId(1);
    // As many calls as make the new indexes take longer than anybody waits for an operation.
    server.sql(
        "postgres",
        "CREATE FUNCTION public.dawdle() RETURNS event_trigger LANGUAGE plpgsql
         AS $$ BEGIN PERFORM pg_sleep(1.5); END $$;
         CREATE EVENT TRIGGER dawdle ON ddl_command_start WHEN TAG IN ('CREATE INDEX')
         EXECUTE FUNCTION public.dawdle()",
    );
    let (ledger, bench) = two(&server);
    ledger.prove().await.expect_err("it takes longer than a caller waits");
    bench.clock.set("2026-12-24T12:00:00Z".parse().unwrap());
    let settled = tokio::time::timeout(PATIENCE, async {
        while ledger.book(id, failed()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    settled.await.expect("the tables are made at last");
    let layout = server.sql("postgres", "SELECT count(*), max(version) FROM granary.layout");
    assert_eq!(layout, format!("1|{}", schema::LAYOUT));
    let usage = ledger.usage(date("2026-11-01"), date("2026-12-31")).await.unwrap();
    let spent: BTreeMap<_, _> = usage.iter().map(|day| (day.day.to_string(), day.figures.spent())).collect();
    assert_eq!(spent, BTreeMap::from([("2026-11-22".to_owned(), 3), ("2026-12-24".to_owned(), -3)]));
    assert_eq!(usage[0].figures.calls(CallState::Unknown).number, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_read_an_index_and_no_call() {
    let server = Postgres::start();
    let (ledger, bench) = two(&server);
    bench.store(picture(1)).await;
    server.sql(
        "postgres",
        "INSERT INTO granary.calls (namespace, key, generation, state, team, credits, day, month, image, width, \
                                    height, reserved_at, ended_at, answer, request_id, log_id, extension) \
         SELECT 'ailab-v1', sha256(n::text::bytea), 0, 'stored', 'team ' || n % 7, 3, \
                to_char(date '2026-01-01' + n / 100, 'YYYY-MM-DD'), \
                to_char(date '2026-01-01' + n / 100, 'YYYY-MM'), sha256(n::text::bytea), 640, 427, \
                '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z', repeat('x', 200), 'request', 'log', 'png' \
         FROM generate_series(1, 30000) n",
    );
    server.sql("postgres", "VACUUM ANALYZE granary.calls");
    for (sql, [one, other]) in [
        (usage::PAID, ["'2026-03-01'", "'2026-03-31'"]),
        (usage::PAID, ["'2026-01-01'", "'2026-12-31'"]),
        (admin::TOTALS, ["", ""]),
    ] {
        let sql = sql.replace("$1", one).replace("$2", other);
        let plan = server.sql("postgres", &format!("EXPLAIN (COSTS OFF) {sql}"));
        assert!(plan.contains("Index Only Scan"), "{sql}\n{plan}");
    }
    let totals = ledger.totals().await.unwrap();
    assert_eq!(totals.iter().map(|total| total.calls).sum::<u64>(), 30_001);
}
