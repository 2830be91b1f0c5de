//! What a database's ledger hands to the shared statements, written once for all of them.

/// Implements the traits of a ledger for a type that has `ask`, which takes the operation, what is
/// asked, and a function of a [`Query`](super::Query) and that. What the databases do differently are its
/// own methods: `reserve_call`, `recover_calls`, `set_room`, `file_soundness`.
macro_rules! sql_ledger {
    ($ledger:ty) => {
        const _: () = {
            use async_trait::async_trait;
            use bytes::Bytes;
            use jiff::civil::Date;

            use $crate::base::archive::{ArchiveId, Import, Membership};
            use $crate::base::key::CacheKey;
            use $crate::base::picture::ObjectName;
            use $crate::base::record::Record;
            use $crate::ledger::LedgerOp::*;
            use $crate::ledger::admin::*;
            use $crate::ledger::budget::{Budget, Scope, Used};
            use $crate::ledger::spool::{SpoolUsage, Spooled};
            use $crate::ledger::sql::{self, admin, archive, book, counters, import, spool, usage};
            use $crate::ledger::usage::*;
            use $crate::ledger::*;

            type Answer<T> = Result<T, LedgerError>;

            #[async_trait]
            impl Calls for $ledger {
                async fn look_up(&self, namespace: &str, key: CacheKey) -> Answer<Option<Record>> {
                    self.ask(LookUp, (namespace.to_owned(), key), |q, (of, key)| {
                        Box::pin(sql::stored(q, of, *key))
                    })
                    .await
                }
                async fn reserve(&self, reservation: Reservation) -> Answer<Reserved> {
                    self.reserve_call(reservation).await
                }
                async fn mark_sent(&self, id: CallId) -> Answer<Permit> {
                    self.ask(Send, id, |q, id| Box::pin(book::mark_sent(q, *id))).await
                }
                async fn book(&self, id: CallId, booking: Booking) -> Answer<()> {
                    self.ask(Book(booking.state()), (id, booking), |q, (id, booking)| {
                        Box::pin(book::book(q, *id, booking))
                    })
                    .await
                }
                async fn recover(&self) -> Answer<Recovery> {
                    self.recover_calls().await
                }
                fn keep_room(&self, each: Option<u64>) {
                    self.set_room(each);
                }
                fn soundness(&self) -> Soundness {
                    self.file_soundness()
                }
            }

            #[async_trait]
            impl SpoolTable for $ledger {
                async fn spooled_object(&self, name: ObjectName) -> Answer<Option<Bytes>> {
                    self.ask(Read, name, |q, name| Box::pin(spool::object(q, *name))).await
                }
                async fn is_spooled(&self, name: ObjectName) -> Answer<bool> {
                    self.ask(Read, name, |q, name| Box::pin(spool::has(q, *name))).await
                }
                async fn spooled(&self, after: u64, limit: usize) -> Answer<Vec<Spooled>> {
                    self.ask(Read, (after, limit), |q, (after, limit)| {
                        Box::pin(spool::list(q, *after, *limit))
                    })
                    .await
                }
                async fn unspool(&self, id: CallId, standing: &Record) -> Answer<()> {
                    self.ask(Write, (id, standing.clone()), |q, (id, record)| {
                        Box::pin(spool::remove(q, *id, record))
                    })
                    .await
                }
                async fn spool_usage(&self) -> Answer<SpoolUsage> {
                    self.ask(Read, (), |q, ()| Box::pin(spool::usage(q))).await
                }
            }

            #[async_trait]
            impl ArchiveIndex for $ledger {
                async fn archive(&self) -> Answer<Option<Membership>> {
                    self.ask(Read, (), |q, ()| Box::pin(archive::read(q))).await
                }
                async fn begin_archive(&self, id: ArchiveId) -> Answer<Membership> {
                    self.ask(Write, id, |q, id| Box::pin(archive::begin(q, *id))).await
                }
                async fn settle_archive(&self, id: ArchiveId) -> Answer<()> {
                    self.ask(Write, id, |q, id| Box::pin(archive::settle(q, *id))).await
                }
                async fn note_import(&self, id: ArchiveId, import: Import) -> Answer<()> {
                    self.ask(Write, (id, import), |q, (id, far)| Box::pin(archive::note_import(q, *id, far)))
                        .await
                }
                async fn import_record(&self, record: &Record) -> Answer<()> {
                    self.ask(Write, record.clone(), |q, record| Box::pin(book::import_record(q, record)))
                        .await
                }
                async fn lose(&self, record: &Record) -> Answer<()> {
                    self.ask(Write, record.clone(), |q, record| Box::pin(book::lose(q, record))).await
                }
                async fn knows_all_of(&self, namespace: &str, key: CacheKey) -> Answer<bool> {
                    self.ask(Read, (namespace.to_owned(), key), |q, (of, key)| {
                        Box::pin(import::knows_all_of(q, of, *key))
                    })
                    .await
                }
                async fn orphans(&self) -> Answer<Vec<Orphan>> {
                    self.ask(Read, (), |q, ()| Box::pin(import::orphans(q))).await
                }
            }

            #[async_trait]
            impl Queries for $ledger {
                async fn changes(&self, after: Option<u64>) -> Answer<Changes> {
                    self.ask(Read, after, |q, after| Box::pin(counters::changes(q, *after))).await
                }
                async fn purged(&self, namespace: &str, key: CacheKey) -> Answer<Option<u64>> {
                    self.ask(Read, (namespace.to_owned(), key), |q, (of, key)| {
                        Box::pin(admin::purged(q, of, *key))
                    })
                    .await
                }
                async fn totals(&self) -> Answer<Vec<StateTotal>> {
                    self.ask(Totals, (), |q, ()| Box::pin(admin::totals(q))).await
                }
                async fn used(&self, budgets: Vec<Budget>) -> Answer<Vec<Used>> {
                    self.ask(Read, budgets, |q, budgets| Box::pin(counters::used(q, budgets))).await
                }
            }

            #[async_trait]
            impl LedgerAdmin for $ledger {
                async fn purge(&self, namespace: &str, key: CacheKey, by: &Actor) -> Answer<Purge> {
                    self.ask(Change, (namespace.to_owned(), key, by.clone()), |q, (of, key, by)| {
                        Box::pin(admin::purge(q, of, *key, by))
                    })
                    .await
                }
                async fn freeze(&self, scope: Scope, frozen: bool, by: &Actor) -> Answer<bool> {
                    self.ask(Change, (scope, frozen, by.clone()), |q, (of, is, by)| {
                        Box::pin(admin::freeze(q, of, *is, by))
                    })
                    .await
                }
                async fn frozen(&self) -> Answer<Vec<Scope>> {
                    self.ask(Report, (), |q, ()| Box::pin(admin::frozen(q))).await
                }
                async fn settle(&self, id: CallId, word: Settlement, by: &Actor) -> Answer<Settled> {
                    self.ask(Change, (id, word, by.clone()), |q, (id, is, by)| {
                        Box::pin(admin::settle(q, *id, *is, by))
                    })
                    .await
                }
                async fn unsettled(&self) -> Answer<u64> {
                    self.ask(Report, (), |q, ()| Box::pin(admin::unsettled(q))).await
                }
                async fn note_adoption(&self, id: ArchiveId, found: &str, by: &Actor) -> Answer<()> {
                    self.ask(Change, (id.to_string(), found.to_owned(), by.clone()), |q, (id, found, by)| {
                        Box::pin(admin::note(q, by, Action::Adopt, id, found))
                    })
                    .await
                }
                async fn audit(&self, before: Option<u64>, limit: usize) -> Answer<Vec<AuditLine>> {
                    self.ask(Report, (before, limit), |q, (before, most)| {
                        Box::pin(admin::lines(q, *before, *most))
                    })
                    .await
                }
                async fn calls(&self, filter: CallFilter) -> Answer<CallPage> {
                    self.ask(Report, filter, |q, filter| Box::pin(admin::calls(q, filter))).await
                }
            }

            #[async_trait]
            impl UsageBook for $ledger {
                async fn book_served(&self, batch: ServedBatch) -> Answer<()> {
                    self.ask(Tally, batch, |q, batch| Box::pin(usage::book_served(q, batch))).await
                }
                async fn usage(&self, from: Date, to: Date) -> Answer<Vec<DayUsage>> {
                    self.ask(Report, (from, to), |q, (a, b)| Box::pin(usage::usage(q, *a, *b))).await
                }
                async fn month(&self) -> Answer<Vec<TeamMonth>> {
                    self.ask(Report, (), |q, ()| Box::pin(usage::month(q))).await
                }
                async fn adjustments(&self, from: Date, to: Date) -> Answer<Vec<Adjustment>> {
                    self.ask(Report, (from, to), |q, (a, b)| Box::pin(usage::adjustments(q, *a, *b))).await
                }
                async fn charged(&self, namespace: &str) -> Answer<Charged> {
                    self.ask(Report, namespace.to_owned(), |q, of| Box::pin(usage::charged(q, of))).await
                }
                async fn account(&self, namespace: &str) -> Answer<Option<AccountRow>> {
                    self.ask(Report, namespace.to_owned(), |q, of| Box::pin(usage::account(q, of))).await
                }
                async fn keep_account(&self, namespace: &str, account: &AccountRow) -> Answer<bool> {
                    self.ask(Tally, (namespace.to_owned(), account.clone()), |q, (of, account)| {
                        Box::pin(usage::keep_account(q, of, account))
                    })
                    .await
                }
            }
        };
    };
}
pub(crate) use sql_ledger;
