//! What operators ask of a ledger in memory, and do to it.

use async_trait::async_trait;

use super::{Book, MemoryLedger, Row};
use crate::base::archive::ArchiveId;
use crate::base::key::CacheKey;
use crate::ledger::admin::{
    Action, Actor, AuditLine, CallDetail, CallFilter, CallPage, LedgerAdmin, Purge, Settled, Settlement,
};
use crate::ledger::budget::Scope;
use crate::ledger::{CallId, CallState, LedgerError, rules};

impl Book {
    fn note(&mut self, at: jiff::Timestamp, by: &Actor, action: Action, subject: String, detail: String) {
        let id = self.audit.len() as u64 + 1;
        let (who, action) = (by.as_str().to_owned(), action.as_str().to_owned());
        self.audit.push(AuditLine { id, at, who, action, subject, detail });
    }
}

fn detail(row: &Row) -> CallDetail {
    let ids = row.ids.clone().unzip();
    CallDetail {
        id: row.id,
        namespace: row.bought.namespace.clone(),
        key: row.bought.key,
        generation: row.generation,
        state: row.state,
        late: row.late,
        adopted: row.adopted,
        team: row.bought.team.clone(),
        credits: row.bought.credits,
        day: row.day.clone(),
        image: row.bought.image,
        width: row.bought.width,
        height: row.bought.height,
        reserved_at: row.reserved_at,
        sent_at: row.sent_at,
        answered_at: row.answered_at,
        ended_at: row.ended_at,
        reason: row.reason.clone(),
        request_id: ids.0,
        log_id: ids.1,
        digest: row.record.as_ref().map(|record| record.digest),
        extension: row.record.as_ref().map(|record| record.extension.clone()),
        bytes: row.record.as_ref().map(|record| record.bytes),
        settled: row.settled,
    }
}

#[async_trait]
impl LedgerAdmin for MemoryLedger {
    async fn purge(&self, namespace: &str, key: CacheKey, by: &Actor) -> Result<Purge, LedgerError> {
        self.pass("purge").await?;
        let (now, _) = self.now();
        let mut book = self.change();
        let purge = book.purge(namespace, key);
        if let Purge::Done { generation } = purge {
            let detail = format!("{namespace}, up to generation {generation}");
            book.note(now, by, Action::Purge, key.to_string(), detail);
        }
        Ok(purge)
    }

    async fn freeze(&self, scope: Scope, frozen: bool, by: &Actor) -> Result<bool, LedgerError> {
        let (now, _) = self.now();
        let scope = scope.to_string();
        let mut book = self.change();
        let has_changed = if frozen { book.frozen.insert(scope.clone()) } else { book.frozen.remove(&scope) };
        if has_changed {
            let action = if frozen { Action::Freeze } else { Action::Thaw };
            book.note(now, by, action, scope, String::new());
        }
        Ok(has_changed)
    }

    async fn frozen(&self) -> Result<Vec<Scope>, LedgerError> {
        let scope = |text: &String| {
            text.strip_prefix("team:").map_or(Scope::Global, |team| Scope::Team(team.to_owned()))
        };
        Ok(self.book().frozen.iter().map(scope).collect())
    }

    async fn settle(&self, id: CallId, settlement: Settlement, by: &Actor) -> Result<Settled, LedgerError> {
        let (now, windows) = self.now();
        let mut book = self.change();
        let Some(row) = book.row(id).cloned() else { return Ok(Settled::NoSuchCall) };
        let settling = match rules::settle((row.state, row.settled), settlement, &row.month, &windows) {
            Ok(settling) => settling,
            Err(settled) => return Ok(settled),
        };
        book.count(&row, settling.counted);
        let changed = book.row_mut(id)?;
        (changed.settled, changed.state) = (Some(settlement), settling.to);
        book.note(now, by, Action::Settle, id.0.to_string(), settlement.as_str().to_owned());
        Ok(Settled::Done { given_back: settling.given_back })
    }

    async fn unsettled(&self) -> Result<u64, LedgerError> {
        let is_open = |row: &&Row| row.state == CallState::Unknown && row.settled.is_none();
        Ok(self.book().rows.iter().filter(is_open).map(|row| row.bought.credits).sum())
    }

    async fn note_adoption(&self, archive: ArchiveId, found: &str, by: &Actor) -> Result<(), LedgerError> {
        let (now, _) = self.now();
        self.change().note(now, by, Action::Adopt, archive.to_string(), found.to_owned());
        Ok(())
    }

    async fn audit(&self, before: Option<u64>, limit: usize) -> Result<Vec<AuditLine>, LedgerError> {
        let book = self.book();
        let lines = book.audit.iter().rev().filter(|line| before.is_none_or(|before| line.id < before));
        Ok(lines.take(limit).cloned().collect())
    }

    async fn calls(&self, filter: CallFilter) -> Result<CallPage, LedgerError> {
        self.pass("calls").await?;
        let book = self.book();
        let is_wanted = |row: &&Row| {
            filter.before.is_none_or(|before| row.id < before)
                && filter.state.is_none_or(|state| row.state == state)
                && filter.team.as_ref().is_none_or(|team| row.bought.team == *team)
                && filter.key.as_ref().is_none_or(|(namespace, key)| row.is_of(namespace, *key))
        };
        let wanted = book.rows.iter().rev().filter(is_wanted);
        let calls: Vec<CallDetail> = wanted.take(filter.limit).map(detail).collect();
        let next = calls.last().filter(|_| calls.len() >= filter.limit).map(|call| call.id);
        Ok(CallPage { calls, next })
    }
}
