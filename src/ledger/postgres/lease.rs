//! Leases: renewal, and takeover of the calls of silent owners.

use async_trait::async_trait;

use super::PostgresLedger;
use super::failure::Failure;
use super::pool::Tx;
use crate::base::crash::crash_point;
use crate::ledger::rules::{self, Abandoned};
use crate::ledger::sql::{Query, book, values};
use crate::ledger::{CallId, ForeignOpenCall, Leases, LedgerError, LedgerOp, Recovery};

#[async_trait]
impl Leases for PostgresLedger {
    fn has_leases(&self) -> bool {
        true
    }

    async fn renew(&self, calls: Vec<CallId>) -> Result<Vec<CallId>, LedgerError> {
        if calls.is_empty() {
            return Ok(Vec::new());
        }
        self.ask(LedgerOp::Write, calls, |tx, calls| Box::pin(renew(tx, calls))).await
    }

    async fn foreign_calls(&self, in_hand: Vec<CallId>) -> Result<Vec<ForeignOpenCall>, LedgerError> {
        self.ask(LedgerOp::Read, in_hand, |tx, in_hand| Box::pin(foreign(tx, in_hand))).await
    }

    /// One transaction per call: counters are locked last, so no two wait for each other.
    async fn take_over(&self, silent: Vec<ForeignOpenCall>) -> Result<Recovery, LedgerError> {
        let mut recovery = Recovery::default();
        for call in silent {
            let taken = self.ask(LedgerOp::Write, call, |tx, call| Box::pin(take_over(tx, call))).await?;
            recovery.released += taken.released;
            recovery.unknown += taken.unknown;
            recovery.unfinished.extend(taken.unfinished);
        }
        Ok(recovery)
    }
}

fn listed(calls: &[CallId]) -> String {
    let ids: Vec<String> = calls.iter().map(|call| call.0.to_string()).collect();
    format!("'{{{}}}'::bigint[]", ids.join(","))
}

async fn renew(tx: &Tx, calls: &[CallId]) -> Result<Vec<CallId>, Failure> {
    let sql = format!(
        "UPDATE granary.calls SET beat = beat + 1 WHERE id = ANY({}) AND owner = $1 \
         AND state IN ('reserved', 'sent', 'answered') RETURNING id",
        listed(calls)
    );
    let rows = tx.rows(&sql, values![&tx.keeper().owner]).await?;
    rows.iter().map(|row| Ok(row.get("id")?)).collect()
}

async fn foreign(tx: &Tx, in_hand: &[CallId]) -> Result<Vec<ForeignOpenCall>, Failure> {
    let sql = format!(
        "SELECT id, state, beat FROM granary.calls WHERE state IN ('reserved', 'sent', 'answered') \
         AND NOT id = ANY({}) ORDER BY id",
        listed(in_hand)
    );
    let rows = tx.rows(&sql, &[]).await?;
    let call = |row: &crate::ledger::sql::Row| {
        Ok(ForeignOpenCall { id: row.get("id")?, state: row.get("state")?, heartbeat: row.get("beat")? })
    };
    rows.iter().map(call).collect()
}

/// Does nothing when the call has changed since it was read.
async fn take_over(tx: &Tx, silent: &ForeignOpenCall) -> Result<Recovery, Failure> {
    let sql = "SELECT c.id, c.namespace, c.key, c.generation, c.team, c.credits, c.image, c.width, c.height, \
               c.answered_at, c.state, c.beat, a.text \
               FROM granary.calls c LEFT JOIN granary.answers a ON a.call = c.id WHERE c.id = $1 FOR UPDATE OF c";
    let mut recovery = Recovery::default();
    let id = silent.id;
    let Some(row) = tx.row(sql, values![id]).await? else { return Ok(recovery) };
    let state = row.get("state")?;
    if !rules::is_silent(silent, state, row.get("beat")?) {
        return Ok(recovery);
    }
    match rules::abandon(state, Tx::OWNER_DIED) {
        Abandoned::Book(booking) => {
            book::book(tx, id, &booking).await?;
            recovery.add(state);
        }
        Abandoned::Finish => {
            let sql = "UPDATE granary.calls SET owner = $2, beat = beat + 1 WHERE id = $1";
            tx.execute(sql, values![id, &tx.keeper().owner]).await?;
            crash_point("CP34");
            recovery.unfinished.push(book::unfinished(&row)?);
        }
        Abandoned::Nothing => {}
    }
    Ok(recovery)
}
