//! All that is known of one key, and where: why it was bought, or was not.
//!
//! Nothing of it is an error: what cannot be asked is said to be so.

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

/// Rows that are shown; more than a key has in years.
const MOST_CALLS: usize = 100;

#[derive(Debug, Default)]
pub struct Explained {
    /// The result that requests are answered with.
    pub answer: Option<Held>,
    /// The generation this process has in memory, and whether it is served unasked.
    pub memory: Option<(u64, bool)>,
    /// What the store has under the key.
    pub record: Option<Held>,
    /// Everything up to this generation was purged.
    pub purged_up_to: Option<u64>,
    /// After doubtful outcomes it is not bought again before this.
    pub rests_until: Option<Timestamp>,
    /// The ledger's rows, newest first.
    pub calls: Vec<CallDetail>,
    /// What could not be asked, in sentences.
    pub problems: Vec<String>,
}

/// A result, and where its bytes are.
#[derive(Debug)]
pub struct Held {
    pub record: Record,
    /// Does the store or the spool have the object? `None`: that could not be asked.
    pub is_there: Option<bool>,
    /// Does it wait in the spool? `None`: that could not be asked.
    pub is_spooled: Option<bool>,
}

impl KeyAdmin {
    /// Tells all that is known of a key.
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
            answer: match answer {
                Some(answer) => Some(self.held(answer, &mut problems).await),
                None => None,
            },
            memory: in_memory.map(|record| (record.generation, freshness.is_current())),
            record: match record {
                Some(record) => Some(self.held(record, &mut problems).await),
                None => None,
            },
            purged_up_to,
            rests_until: budget::rests_until(&ends, clock.now()),
            calls,
            problems: problems.0,
        }
    }

    async fn held(&self, record: Record, problems: &mut Problems) -> Held {
        let Some(object) = record.object() else {
            return Held { record, is_there: Some(false), is_spooled: Some(false) };
        };
        let is_there = problems.learn("its object", self.core.store.has_object(object).await);
        let is_spooled = problems.learn("the spool", self.core.ledger.is_spooled(object).await);
        Held { record, is_there, is_spooled }
    }
}

#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    /// What was answered; why not is noted, once.
    fn learn<T>(&mut self, what: &str, answer: Result<T, impl Display>) -> Option<T> {
        match answer {
            Ok(answer) => Some(answer),
            Err(error) => {
                let problem = format!("{what} cannot be asked: {error}");
                if !self.0.contains(&problem) {
                    self.0.push(problem);
                }
                None
            }
        }
    }
}
