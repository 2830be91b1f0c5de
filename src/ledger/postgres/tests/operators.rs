//! What operators do: several of them at once, beside who spends; an audit that nobody can shorten,
//! and no change without its line.

use super::super::query::key_lock;
use super::super::schema::MIGRATIONS;
use super::faults::waits_for;
use super::*;
use crate::base::archive::{ArchiveId, Import};
use crate::ledger::admin::{Actor, CallFilter, GivenBack, Purge, Settled, Settlement};
use crate::ledger::budget::Scope;
use crate::ledger::sql::Lock;
use crate::ledger::{CallId, CallState, LedgerError};
use crate::testing::ledger_contract::{Bench, all_at_once, answer, picture};

/// A ledger from both sides.
struct Rig {
    ledger: Arc<PostgresLedger>,
    bench: Bench,
}

fn rig(server: &Postgres) -> Rig {
    let clock = TurnableClock::at("2026-11-22T09:00:00Z");
    let ledger = Arc::new(PostgresLedger::new(config(&server.socket_url("postgres"), clock.clock(), zone())));
    Rig { bench: Bench { ledger: ledger.clone(), clock }, ledger }
}

impl Rig {
    /// A call of which nobody knows what became.
    async fn unknown(&self, n: u32) -> CallId {
        self.bench.bring(n, CallState::Unknown).await.id
    }

    /// Who did what, oldest first.
    async fn told(&self) -> Vec<String> {
        let lines = self.ledger.audit(None, 1000).await.unwrap();
        lines.iter().rev().map(|line| format!("{} {} {}", line.id, line.action, line.subject)).collect()
    }
}

fn by() -> Actor {
    Actor::loopback()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_lets_no_line_of_the_audit_be_changed_or_removed() {
    let server = Postgres::start();
    let rig = rig(&server);
    assert!(rig.ledger.freeze(Scope::Global, true, &by()).await.unwrap());
    for before in ["", "SET session_replication_role = replica;"] {
        for change in [
            "UPDATE granary.audit SET who = 'nobody'",
            "DELETE FROM granary.audit",
            "TRUNCATE granary.audit",
            "INSERT INTO granary.audit OVERRIDING SYSTEM VALUE SELECT id, at, 'nobody', action, subject, detail \
             FROM granary.audit ON CONFLICT (id) DO UPDATE SET who = excluded.who",
        ] {
            server.sql(
                "postgres",
                &format!(
                    "{before} DO $$ BEGIN
                         BEGIN {change}; EXCEPTION WHEN raise_exception THEN
                             IF SQLERRM = 'the audit can only grow' THEN RETURN; END IF;
                             RAISE;
                         END;
                         RAISE EXCEPTION 'nobody objected';
                     END $$"
                ),
            );
        }
    }
    let lines = rig.ledger.audit(None, 10).await.unwrap();
    assert_eq!((lines.len(), lines[0].who.as_str()), (1, "loopback"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_whose_line_cannot_be_written_is_not_made() {
    let server = Postgres::start();
    let rig = rig(&server);
    let kept = rig.bench.store(picture(1)).await;
    let doubtful = rig.unknown(2).await;
    let changes = rig.ledger.changes(None).await.unwrap();
    server.sql("postgres", "ALTER TABLE granary.audit ADD CONSTRAINT no_more CHECK (false)");
    assert!(rig.ledger.purge("ailab-v1", picture(1).key, &by()).await.is_err());
    assert!(rig.ledger.freeze(Scope::Global, true, &by()).await.is_err());
    for settlement in [Settlement::Free, Settlement::Charged] {
        assert!(rig.ledger.settle(doubtful, settlement, &by()).await.is_err());
    }
    assert_eq!(rig.bench.look_up(&picture(1)).await, Some(kept));
    assert_eq!(rig.ledger.purged("ailab-v1", picture(1).key).await.unwrap(), None);
    assert_eq!(rig.ledger.changes(Some(changes.position)).await.unwrap(), changes);
    assert_eq!(rig.ledger.frozen().await.unwrap(), []);
    assert_eq!(rig.ledger.unsettled().await.unwrap(), 3);
    assert_counters_are_the_sum_of_the_rows(&server);
    // And what it refused can be done when it is mended.
    server.sql("postgres", "ALTER TABLE granary.audit DROP CONSTRAINT no_more");
    let purge = rig.ledger.purge("ailab-v1", picture(1).key, &by()).await.unwrap();
    assert_eq!(purge, Purge::Done { generation: 0 });
    let settled = rig.ledger.settle(doubtful, Settlement::Free, &by()).await.unwrap();
    assert_eq!(settled, Settled::Done { given_back: Some(GivenBack::Budgets) });
    assert_counters_are_the_sum_of_the_rows(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_wait_for_who_spends_and_for_each_other() {
    let server = Postgres::start();
    let rig = rig(&server);
    rig.bench.store(picture(1)).await;
    let doubtful = rig.unknown(2).await;
    let freezing = |frozen: bool| {
        let ledger = rig.ledger.clone();
        async move { ledger.freeze(Scope::Global, frozen, &by()).await.unwrap() }
    };
    // Whoever spends has ended before a freeze is told.
    assert!(waits_for("a freeze", &server, Lock::Freeze.shared(), freezing(true)).await);
    assert!(waits_for("a thaw", &server, Lock::Freeze.shared(), freezing(false)).await);
    let purging = || {
        let ledger = rig.ledger.clone();
        async move { ledger.purge("ailab-v1", picture(1).key, &by()).await.unwrap() }
    };
    let purge = waits_for("a purge", &server, key_lock(&picture(1).key), purging()).await;
    assert_eq!(purge, Purge::Done { generation: 0 });
    // Lines appear in their order, or whoever reads on from the last one would miss some.
    let settling = {
        let ledger = rig.ledger.clone();
        async move { ledger.settle(doubtful, Settlement::Charged, &by()).await.unwrap() }
    };
    let settled = waits_for("a settlement", &server, Lock::Audit.exclusive(), settling).await;
    assert_eq!(settled, Settled::Done { given_back: None });
    assert!(waits_for("a freeze", &server, Lock::Audit.exclusive(), freezing(true)).await);
    let subject = picture(1).key;
    let expected = [
        "1 freeze global".to_owned(),
        "2 thaw global".to_owned(),
        format!("3 purge {subject}"),
        format!("4 settle {}", doubtful.0),
        "5 freeze global".to_owned(),
    ];
    assert_eq!(rig.told().await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_operators_at_once_one_changes_something() {
    let server = Postgres::start();
    let rigs = [rig(&server), rig(&server)];
    let ledger = |n: u32| rigs[n as usize % 2].ledger.clone();
    let mut lines = 0;
    for round in 0..8 {
        // One says so, the other says otherwise, and the answer comes after all.
        let doubtful = rigs[0].unknown(round).await;
        let settling = (0..8_u32).map(|n| {
            let ledger = ledger(n);
            let settlement = if n < 4 { Settlement::Free } else { Settlement::Charged };
            async move { ledger.settle(doubtful, settlement, &by()).await.unwrap() }
        });
        let answering = {
            let ledger = ledger(round);
            async move { ledger.book(doubtful, answer(doubtful)).await }
        };
        let answering = tokio::spawn(answering);
        let outcomes = all_at_once(settling).await;
        let answered = answering.await.unwrap();
        let done: Vec<_> =
            outcomes.iter().filter(|settled| matches!(settled, Settled::Done { .. })).collect();
        let key = Some(("ailab-v1".to_owned(), picture(round).key));
        let filter = CallFilter { state: None, team: None, key, before: None, limit: 1 };
        let state = rigs[1].ledger.calls(filter).await.unwrap().calls[0].state;
        match (done.as_slice(), &answered) {
            ([Settled::Done { given_back: Some(_) }], Err(LedgerError::Contradiction { .. })) => {
                assert_eq!(state, CallState::Failed);
            }
            ([Settled::Done { given_back: None }] | [], Ok(())) => assert_eq!(state, CallState::Answered),
            _ => panic!("{outcomes:?}, {answered:?}, {state:?}"),
        }
        for frozen in [true, false] {
            let freezing = (0..8).map(|n| {
                let ledger = ledger(n);
                async move { ledger.freeze(Scope::Global, frozen, &by()).await.unwrap() }
            });
            let changed = all_at_once(freezing).await;
            assert_eq!(changed.iter().filter(|changed| **changed).count(), 1, "{changed:?}");
        }
        lines += done.len() + 2;
    }
    assert_eq!(rigs[0].told().await.len(), lines);
    assert_counters_are_the_sum_of_the_rows(&server);
}

/// Long enough that a page looks at a part of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_a_long_book_looks_at_a_part_of_it_and_says_where_to_go_on() {
    let server = Postgres::start();
    let rig = rig(&server);
    rig.ledger.prove().await.unwrap();
    server.sql(
        "postgres",
        "INSERT INTO granary.calls (namespace, key, generation, state, team, credits, day, month, image, width, height,
                                    reserved_at)
         SELECT 'ailab-v1', sha256(n::text::bytea), 0, CASE n WHEN 7 THEN 'unknown' ELSE 'released' END,
                CASE n WHEN 5 THEN 'rare' ELSE 'web' END, 3, '2026-11-22', '2026-11', sha256('x'), 1, 1,
                '2026-11-22T09:00:00Z' FROM generate_series(1, 50000) n;
         ANALYZE granary.calls",
    );
    let rare = CallFilter { team: Some("rare".to_owned()), limit: 10, ..CallFilter::default() };
    let (mut filter, mut pages, mut found) = (rare, 0, Vec::new());
    loop {
        let page = rig.ledger.calls(filter.clone()).await.unwrap();
        pages += 1;
        found.extend(page.calls.iter().map(|call| call.id.0));
        filter.before = page.next;
        if page.next.is_none() {
            break;
        }
    }
    assert_eq!((pages, found), (3, vec![5]));
    // Where an index leads there, all of it is seen at once.
    let unknown = CallFilter { state: Some(CallState::Unknown), limit: 10, ..CallFilter::default() };
    let page = rig.ledger.calls(unknown).await.unwrap();
    assert_eq!((page.calls[0].id.0, page.next), (7, None));
    assert_eq!(rig.ledger.unsettled().await.unwrap(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_an_earlier_layout_get_what_is_new_and_keep_their_book() {
    for done in 1..MIGRATIONS.len() {
        let server = Postgres::start();
        let made = MIGRATIONS[..done].concat();
        let archive = ArchiveId::random();
        server.sql(
            "postgres",
            &format!(
                "CREATE SCHEMA granary; CREATE TABLE granary.layout (version bigint NOT NULL);
                 INSERT INTO granary.layout VALUES ({done}); {made}
                 INSERT INTO granary.calls (namespace, key, generation, state, team, credits, day, month, image, width,
                                            height, reserved_at, sent_at, ended_at, reason)
                 SELECT 'ailab-v1', sha256('k'), 0, 'unknown', 'press', 3, '2026-11-22', '2026-11', sha256('i'), 640,
                        427, now, now, now, 'cut' FROM (SELECT '2026-11-22T09:00:00Z' AS now) AS at;
                 INSERT INTO granary.spent VALUES ('global', '2026-11-22', 3), ('global', '2026-11', 3),
                                                  ('team:press', '2026-11-22', 3), ('team:press', '2026-11', 3);
                 INSERT INTO granary.archive VALUES (true, '{archive}', true)"
            ),
        );
        let rig = rig(&server);
        assert_eq!(rig.ledger.unsettled().await.unwrap(), 3, "layout {done}");
        let membership = rig.ledger.archive().await.unwrap().unwrap();
        assert_eq!(
            (membership.archive, membership.import),
            (archive, Import::Complete),
            "it was created here"
        );
        let settled = rig.ledger.settle(CallId(1), Settlement::Free, &by()).await.unwrap();
        assert_eq!(settled, Settled::Done { given_back: Some(GivenBack::Budgets) });
        assert_eq!(rig.told().await, ["1 settle 1"]);
        assert_counters_are_the_sum_of_the_rows(&server);
        assert_eq!(
            server.sql("postgres", "SELECT version FROM granary.layout"),
            MIGRATIONS.len().to_string()
        );
    }
}
