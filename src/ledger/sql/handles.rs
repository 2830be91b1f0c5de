//! The traits of a ledger over the shared statements, one line per operation.

/// Each method has its operation, its argument and its statement; `own` ones are the database's.
macro_rules! statements {
    (impl $trait:ident for $ledger:ty {
        $(fn $method:ident($($argument:ident: $type:ty),*) -> $result:ty {
            $op:expr, $given:expr => |$q:ident, $taken:pat_param| $statement:expr
        })*
        $(own { $($own:tt)* })?
    }) => {
        #[async_trait::async_trait]
        impl $trait for $ledger {
            $(async fn $method(&self, $($argument: $type),*) -> Result<$result, LedgerError> {
                self.ask($op, $given, |$q, $taken| Box::pin($statement)).await
            })*
            $($($own)*)?
        }
    };
}
pub(crate) use statements;

/// For a type with `ask(op, argument, statement)`. In the braces: methods of `Calls` that differ.
macro_rules! sql_ledger {
    ($ledger:ty { $($own:tt)* }) => {
        const _: () = {
            use bytes::Bytes;
            use jiff::civil::Date;

            use $crate::base::archive::{ArchiveId, Import, Membership};
            use $crate::base::key::CacheKey;
            use $crate::base::picture::ObjectName;
            use $crate::base::record::Record;
            use $crate::ledger::LedgerOp::*;
            use $crate::ledger::admin::*;
            use $crate::ledger::budget::{Budget, Scope, Used};
            use $crate::ledger::sql::statements;
            use $crate::ledger::sql::{self, admin, archive, book, counters, reserve, spool, usage};
            use $crate::ledger::usage::*;
            use $crate::ledger::*;

            statements! { impl Calls for $ledger {
                fn look_up(namespace: &str, key: CacheKey) -> Option<Record> {
                    LookUp, (namespace.to_owned(), key) => |q, (of, key)| sql::stored(q, of, *key)
                }
                fn mark_sent(id: CallId) -> Permit { Send, id => |q, id| book::mark_sent(q, *id) }
                fn book(id: CallId, booking: Booking) -> () {
                    Book(booking.state()), (id, booking) => |q, (id, booking)| book::book(q, *id, booking)
                }
                own {
                    fn keep_room(&self, each: Option<u64>) {
                        self.keeper.keep_room(each);
                    }
                    $($own)*
                }
            } }

            statements! { impl SpoolTable for $ledger {
                fn spooled_object(name: ObjectName) -> Option<Bytes> {
                    Read, name => |q, name| spool::object(q, *name)
                }
                fn is_spooled(name: ObjectName) -> bool { Read, name => |q, name| spool::has(q, *name) }
                fn spooled(after: u64, limit: usize) -> Vec<Spooled> {
                    Read, (after, limit) => |q, (after, limit)| spool::list(q, *after, *limit)
                }
                fn unspool(id: CallId, standing: &Record) -> () {
                    Write, (id, standing.clone()) => |q, (id, record)| spool::remove(q, *id, record)
                }
                fn spool_usage() -> SpoolUsage { Read, () => |q, ()| spool::usage(q) }
            } }

            statements! { impl ArchiveIndex for $ledger {
                fn archive() -> Option<Membership> { Read, () => |q, ()| archive::membership(q) }
                fn begin_archive(id: ArchiveId) -> Membership { Write, id => |q, id| archive::begin(q, *id) }
                fn settle_archive(id: ArchiveId) -> () { Write, id => |q, id| archive::settle(q, *id) }
                fn note_import(id: ArchiveId, import: Import) -> () {
                    Write, (id, import) => |q, (id, import)| archive::note_import(q, *id, import)
                }
                fn import_record(record: &Record) -> () {
                    Write, record.clone() => |q, record| book::import_record(q, record)
                }
                fn lose(record: &Record) -> () { Write, record.clone() => |q, record| book::lose(q, record) }
                fn absence(namespace: &str, key: CacheKey) -> Absence {
                    Read, (namespace.to_owned(), key) => |q, (of, key)| archive::absence(q, of, *key)
                }
                fn orphans() -> Vec<Orphan> { Read, () => |q, ()| archive::orphans(q) }
            } }

            statements! { impl Queries for $ledger {
                fn changes(after: Option<u64>) -> Changes { Read, after => |q, after| counters::changes(q, *after) }
                fn purged(namespace: &str, key: CacheKey) -> Option<u64> {
                    Read, (namespace.to_owned(), key) => |q, (of, key)| admin::purged(q, of, *key)
                }
                fn totals() -> Vec<StateTotal> { Totals, () => |q, ()| admin::totals(q) }
                fn used(budgets: Vec<Budget>) -> Vec<Used> { Read, budgets => |q, budgets| counters::used(q, budgets) }
            } }

            statements! { impl LedgerAdmin for $ledger {
                fn purge(namespace: &str, key: CacheKey, by: &Actor) -> Purge {
                    Change, (namespace.to_owned(), key, by.clone()) => |q, (of, key, by)| admin::purge(q, of, *key, by)
                }
                fn freeze(scope: Scope, frozen: bool, by: &Actor) -> bool {
                    Change, (scope, frozen, by.clone()) => |q, (of, is, by)| admin::freeze(q, of, *is, by)
                }
                fn frozen() -> Vec<Scope> { Report, () => |q, ()| admin::frozen(q) }
                fn settle(id: CallId, settlement: Settlement, by: &Actor) -> Settled {
                    Change, (id, settlement, by.clone()) => |q, (id, is, by)| admin::settle(q, *id, *is, by)
                }
                fn unsettled() -> u64 { Report, () => |q, ()| admin::unsettled(q) }
                fn note_adoption(id: ArchiveId, found: &str, by: &Actor) -> () {
                    Change, (id.to_string(), found.to_owned(), by.clone()) =>
                        |q, (id, found, by)| admin::note(q, by, Action::Adopt, id, found)
                }
                fn audit(before: Option<u64>, limit: usize) -> Vec<AuditLine> {
                    Report, (before, limit) => |q, (before, limit)| admin::lines(q, *before, *limit)
                }
                fn calls(filter: CallFilter) -> CallPage { Report, filter => |q, filter| admin::calls(q, filter) }
            } }

            statements! { impl UsageBook for $ledger {
                fn book_served(batch: ServedBatch) -> () { Tally, batch => |q, batch| usage::book_served(q, batch) }
                fn usage(from: Date, to: Date) -> Vec<DayUsage> {
                    Report, (from, to) => |q, (from, to)| usage::usage(q, *from, *to)
                }
                fn month() -> Vec<TeamMonth> { Report, () => |q, ()| usage::month(q) }
            } }
        };
    };
}
pub(crate) use sql_ledger;
