//! Everything known about one key, with the questions that could not be answered.

use std::fmt::Display;

use jiff::Timestamp;

use super::KeyAdmin;
use crate::base::identity::Identity;
use crate::base::key::CacheKey;
use crate::base::record::Record;
use crate::fill::Core;
use crate::ledger::CallState;
use crate::ledger::admin::{CallDetail, CallFilter};
use crate::ledger::budget;

/// More rows than a key has in years.
const MOST_CALLS: usize = 100;

#[derive(Debug, Default)]
pub struct Explained {
    pub answer: Option<Held>,
    /// The generation in this process's memory, and whether it is fresh.
    pub memory: Option<(u64, bool)>,
    pub record: Option<Held>,
    pub purged_up_to: Option<u64>,
    /// No purchase before this, after unknown outcomes.
    pub rests_until: Option<Timestamp>,
    /// Newest first.
    pub calls: Vec<CallDetail>,
    pub problems: Vec<String>,
}

/// A result, and where its bytes are; `None` where that could not be asked.
#[derive(Debug)]
pub struct Held {
    pub record: Record,
    /// In the store or the spool.
    pub is_there: Option<bool>,
    pub is_spooled: Option<bool>,
}

impl KeyAdmin {
    pub async fn explain(&self, key: CacheKey) -> Explained {
        let Self { core, admin, freshness, namespace } = self;
        let Core { ledger, store, cache, clock, .. } = &**core;
        let mut problems = Problems::default();
        let in_memory = cache.answer(&Identity::new(namespace, key));
        let filter =
            CallFilter { key: Some((namespace.clone(), key)), limit: MOST_CALLS, ..CallFilter::default() };
        let (answer, purged_up_to, page, record) = tokio::join!(
            ledger.look_up(namespace, key),
            ledger.purged(namespace, key),
            admin.calls(filter),
            store.record(namespace, key),
        );
        let answer = problems.learn("the ledger", answer).flatten();
        let calls = problems.learn("the ledger's rows", page).unwrap_or_default().calls;
        let purged_up_to = problems.learn("the ledger's purges", purged_up_to).flatten();
        let record = problems.learn("the store", record).flatten();
        let mut ends: Vec<Timestamp> = calls
            .iter()
            .filter(|call| matches!(call.state, CallState::Unknown | CallState::Unfetchable))
            .filter_map(|call| call.ended_at)
            .collect();
        ends.sort_unstable();
        Explained {
            answer: self.held(answer, &mut problems).await,
            memory: in_memory.map(|record| (record.generation, freshness.is_current())),
            record: self.held(record, &mut problems).await,
            purged_up_to,
            rests_until: budget::rests_until(&ends, clock.now()),
            calls,
            problems: problems.0,
        }
    }

    async fn held(&self, record: Option<Record>, problems: &mut Problems) -> Option<Held> {
        let record = record?;
        let Some(object) = record.object() else {
            return Some(Held { record, is_there: Some(false), is_spooled: Some(false) });
        };
        let is_there = problems.learn("its object", self.core.store.has_object(object).await);
        let is_spooled = problems.learn("the spool", self.core.ledger.is_spooled(object).await);
        Some(Held { record, is_there, is_spooled })
    }
}

#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn learn<T>(&mut self, what: &str, answer: Result<T, impl Display>) -> Option<T> {
        let note = |error| {
            let problem = format!("{what} cannot be asked: {error}");
            if !self.0.contains(&problem) {
                self.0.push(problem);
            }
        };
        answer.map_err(note).ok()
    }
}
