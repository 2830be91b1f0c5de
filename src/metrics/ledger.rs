//! Records the operations of the ledger.

use std::time::Duration;

use super::Metrics;
use super::labels::labels;
use crate::ledger::{CallState, LedgerError, LedgerObserver, LedgerOp};

labels! {
    pub(crate) enum OpLabel {
        LookUp = "look_up", Reserve = "reserve", Send = "send", Answer = "answer", Store = "store",
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

impl LedgerObserver for Metrics {
    fn observe(&self, op: LedgerOp, took: Duration, error: Option<&LedgerError>) {
        let Some(label) = OpLabel::of(op) else { return };
        self.ledger_duration_seconds[label].observe(took.as_secs_f64());
        if op.is_write() && matches!(error, Some(LedgerError::Unavailable(_) | LedgerError::Damaged(_))) {
            self.ledger_write_failures_total.inc();
        }
    }
}
