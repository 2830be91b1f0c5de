//! The families about the book, which see each operation of a ledger.

use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntGauge};

use super::Metrics;
use super::families::{Each, Families, gauge_value};
use super::labels::{Label, labels};
use crate::ledger::{CallState, LedgerError, LedgerObserver, LedgerOp, StateTotal};

/// Times the ledger takes, in seconds.
const LEDGER_BUCKETS: [f64; 15] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

labels! {
    /// What is asked of a ledger, as far as it is told apart.
    enum OpLabel {
        LookUp = "look_up",
        Reserve = "reserve",
        Send = "send",
        Answer = "answer",
        Store = "store",
        Other = "other",
    }
}

impl OpLabel {
    fn of(op: LedgerOp) -> Option<Self> {
        Some(match op {
            LedgerOp::LookUp => Self::LookUp,
            LedgerOp::Reserve => Self::Reserve,
            LedgerOp::Send => Self::Send,
            LedgerOp::Book(CallState::Answered) => Self::Answer,
            LedgerOp::Book(CallState::Stored) => Self::Store,
            LedgerOp::Book(_) | LedgerOp::Read | LedgerOp::Write | LedgerOp::Totals => Self::Other,
            LedgerOp::Report | LedgerOp::Change | LedgerOp::Tally => return None,
        })
    }
}

impl Label for CallState {
    const ALL: &'static [Self] = &Self::ALL;

    fn as_str(self) -> &'static str {
        self.as_str()
    }

    fn position(self) -> usize {
        self as usize
    }
}

/// See the module.
pub(super) struct LedgerFamilies {
    credits: Each<CallState, IntGauge>,
    up: IntGauge,
    sound: IntGauge,
    duration: Each<OpLabel, Histogram>,
    write_failures: IntCounter,
}

impl LedgerFamilies {
    pub(super) fn new(families: &Families<'_>) -> Self {
        Self {
            credits: families.gauges(
                "granary_ledger_credits",
                "Credits of this ledger's rows by state (grain: credits)",
                "state",
            ),
            up: families.plain("granary_ledger_up", "1 when the ledger answered the last time it was asked"),
            sound: families.plain(
                "granary_ledger_sound",
                "1 when the ledger's file was read whole since the start and found undamaged; else nothing is bought",
            ),
            duration: families.histograms(
                "granary_ledger_duration_seconds",
                "Time the ledger took, by what was asked of it",
                "op",
                &LEDGER_BUCKETS,
            ),
            write_failures: families.count(
                "granary_ledger_write_failures_total",
                "Changes that the ledger could not take because it could not be reached or written, or is damaged",
            ),
        }
    }

    /// Sets what is read at scrape time.
    pub(super) fn observe(&self, is_up: bool, totals: Option<&[StateTotal]>, is_sound: bool) {
        self.up.set(i64::from(is_up));
        self.sound.set(i64::from(is_sound));
        for total in totals.into_iter().flatten() {
            self.credits[total.state].set(gauge_value(total.credits));
        }
    }
}

impl LedgerObserver for Metrics {
    fn observe(&self, op: LedgerOp, took: Duration, error: Option<&LedgerError>) {
        let Some(label) = OpLabel::of(op) else { return };
        self.ledger.duration[label].observe(took.as_secs_f64());
        if op.is_write() && matches!(error, Some(LedgerError::Unavailable(_) | LedgerError::Damaged(_))) {
            self.ledger.write_failures.inc();
        }
    }
}
