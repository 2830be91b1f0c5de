//! Every metric family, declared once. Three grains, never mixed: *requests* (of clients), *attempts* (calls
//! to the upstream) and *credits*. Each family is on a board, in a rule or in the runbook.

use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec, IntGauge};

use super::family::{ByTeam, Each, Rows, Total, families};
use super::http::HttpRequests;
use super::labels::{
    ActionResult, AttemptOutcome, AuthFailure, BlockCause, CacheTier, CloseReason, CoalesceScope, Decision,
    EndState, Eviction, LimitKind, LimitMode, ListenerName, Look, OpLabel, Outcome, Rejection, ReloadedFile,
    RetryReason, ShedReason, SizedTier, Space, Success, Suspicion,
};
use super::stages::Stage;
use super::store::{StoreOp, StoreResult};
use super::teams::Overflow;
use crate::base::outcome::{CacheStatus, SavingCause};
use crate::ledger::CallState;
use crate::ledger::admin::Action;
use crate::upstream::CallPhase;

/// Seconds of a crop request: a hit takes about 0.1 ms.
const REQUEST: [f64; 20] = [
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 20.0, 30.0, 60.0,
];
/// Seconds of a stage: from a lookup in memory to an upstream's hard stop.
const STAGE: [f64; 17] = [
    0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0,
    180.0,
];
/// Seconds of overhead.
const OVERHEAD: [f64; 12] =
    [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25];
/// Seconds of a paid call, up to its hard stop.
const CALL: [f64; 14] = [0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 30.0, 60.0, 180.0];
/// Seconds of an operation of the ledger.
const LEDGER: [f64; 15] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// Seconds of an operation of the store.
const STORE: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

families! {
    pub struct Families {
        /// HTTP requests on the public listener, by route, method and status (grain: requests)
        http_requests_total: HttpRequests ["route", "method", "code"],
        /// Crop requests, by team and outcome (grain: requests)
        requests_total: ByTeam<Outcome> ["team", "outcome"],
        /// Requests answered with an error, by whose fault it was and error code (grain: requests)
        request_errors_total: IntCounterVec ["class", "code"],
        /// Time from an answered crop request's head to its answer, without the wait for its body, by outcome
        /// (grain: requests)
        request_duration_seconds: Each<CacheStatus, Histogram> ["outcome"] = REQUEST,
        /// Time of an answered crop request without the waits for its client, the upstream, the result, ledger,
        /// store or other fills (grain: requests)
        overhead_seconds: Each<CacheStatus, Histogram> ["outcome"] = OVERHEAD,
        /// Time spent in a stage, once for each request or fill that passed through it
        stage_duration_seconds: Each<Stage, Histogram> ["stage"] = STAGE,

        /// Cache lookups, by tier and result (grain: requests)
        cache_lookups_total: Each<(CacheTier, Look), IntCounter> ["tier", "result"],
        /// Entries that left a cache tier, by cause
        cache_evictions_total: Each<(SizedTier, Eviction), IntCounter> ["tier", "cause"],
        /// Failed downloads of a paid result, by reason; each is retried (grain: attempts)
        cache_store_rejected_total: Each<Rejection, IntCounter> ["reason"],
        /// Memory and disk in use: cache entries, uploads, their spill files, results in transit (reserved), and
        /// results in the ledger that wait for the store
        space_used_bytes: Each<Space, IntGauge> ["space"],
        /// Limits of granary_space_used_bytes
        space_limit_bytes: Each<Space, IntGauge> ["space"],
        /// Uploads refused because memory and spill were full (grain: requests)
        uploads_refused_total: Total,

        /// Keys that are being filled
        coalesce_groups_in_flight: IntGauge,
        /// Requests that wait for a fill
        coalesce_followers: IntGauge,
        /// Requests that joined a fill of this process (local), and fills that waited for another process's
        /// (cluster)
        coalesce_followers_total: Each<CoalesceScope, IntCounter> ["scope"],
        /// Followers that gave up before there was a result
        coalesce_timeouts_total: Each<CoalesceScope, IntCounter> ["scope"],

        /// Attempts to buy a crop, by outcome (grain: attempts)
        upstream_attempts_total: Each<AttemptOutcome, IntCounter> ["outcome"],
        /// Time of a paid call: connecting, from its last byte to the answer's first, and in total without the
        /// wait for the ledger (grain: attempts)
        upstream_duration_seconds: Each<CallPhase, Histogram> ["phase"] = CALL,
        /// Paid calls in flight
        upstream_in_flight: IntGauge,
        /// Paid calls that may be in flight at once, adapted to the upstream's flow control
        upstream_concurrency_limit: IntGauge,
        /// Fills waiting for an upstream slot, by team
        upstream_queue_depth: Rows ["team"],
        /// Fills given up before anything was reserved, by reason
        upstream_shed_total: Each<ShedReason, IntCounter> ["reason"],
        /// Attempts repeated after one that cost nothing, by reason (grain: attempts)
        upstream_retries_total: Each<RetryReason, IntCounter> ["reason"],
        /// Last known balance of the upstream's account; NaN when unknown (grain: credits)
        upstream_balance_credits: Gauge,
        /// 1 while nothing is bought for this cause
        purchases_blocked: Each<BlockCause, IntGauge> ["cause"],
        /// Results that differ from the order and were kept, by reason (grain: attempts)
        results_suspect_total: Each<Suspicion, IntCounter> ["reason"],

        /// Calls that ended, by state (grain: attempts)
        fills_total: Each<EndState, IntCounter> ["state"],
        /// Credits of calls whose answer was booked, by the team that paid (grain: credits)
        credits_spent_total: ByTeam<()> ["team"],
        /// Credits not spent because the result was stored or being made, by team and cause (grain: credits)
        credits_saved_total: ByTeam<SavingCause> ["team", "cause"],
        /// Credits spent in this month, by team, from the ledger (grain: credits)
        month_credits: Rows ["team"],
        /// Credits saved in this month, by the team served, from the ledger (grain: credits)
        month_saved_credits: Rows ["team"],
        /// Credits of a budget, by owner and window (grain: credits)
        budget_limit_credits: Rows ["scope", "id", "window"],
        /// Credits of a budget that are spent or reserved in its current window (grain: credits)
        budget_used_credits: Rows ["scope", "id", "window"],
        /// End of a budget's current window, in Unix time
        budget_reset_timestamp_seconds: Rows ["scope", "id", "window"],
        /// Decisions about fills, by limit (grain: attempts)
        limit_decisions_total: Each<(LimitKind, (Decision, LimitMode)), IntCounter> ["kind", "decision", "mode"],
        /// Hits and coalesced requests that are not booked in the ledger yet (grain: requests)
        usage_unbooked_requests: IntGauge,

        /// Credits of all calls in the ledger, by state (grain: credits)
        ledger_credits: Each<CallState, IntGauge> ["state"],
        /// Credits of unknown calls that nobody has settled (grain: credits)
        unknown_credits: IntGauge,
        /// 1 when the ledger answered the last question
        ledger_up: IntGauge,
        /// Time of a ledger operation
        ledger_duration_seconds: Each<OpLabel, Histogram> ["op"] = LEDGER,
        /// Writes that failed because the ledger is unavailable or damaged
        ledger_write_failures_total: IntCounter,
        /// Operations on the store, by result; conflict: another record keeps the place
        store_operations_total: Each<(StoreOp, StoreResult), IntCounter> ["op", "result"],
        /// Time of a store operation, with its retries
        store_duration_seconds: Each<StoreOp, Histogram> ["op"] = STORE,
        /// 1 unless the store was unavailable for the last operation, or its breaker is open
        store_up: IntGauge,
        /// Age of the oldest paid result that is not stored or spooled; its URL lives a day
        unstored_results_oldest_age_seconds: IntGauge,
        /// Age of the oldest result that waits for the store; 0 when none does
        spool_oldest_age_seconds: IntGauge,

        /// 1, with the running version and its commit
        build_info: Rows ["version", "commit"],
        /// 1, with the digest of the effective configuration without secrets; replicas should agree
        config_info: Rows ["hash"],
        /// 1 for each configured team, with what happens when its budget is used up
        team_info: Rows ["team", "mode"],
        /// Changed files that were read again, by result
        reloads_total: Each<(ReloadedFile, Success), IntCounter> ["file", "result"],
        /// 1 unless the file, as it was read last, cannot be used and its former content stays in use
        reload_ok: Each<ReloadedFile, IntGauge> ["file"],
        /// Expiry of the certificate in use, in Unix time; 0 without TLS
        tls_certificate_expiry_timestamp_seconds: IntGauge,
        /// Open connections
        connections_open: Each<ListenerName, IntGauge> ["listener"],
        /// Connections refused (limit, handshake) or closed after a timeout
        connections_closed_total: Each<(ListenerName, CloseReason), IntCounter> ["listener", "reason"],
        /// Requests refused for their credential, by reason; admin: on the admin listener (grain: requests)
        auth_failures_total: Each<AuthFailure, IntCounter> ["reason"],
        /// Changes requested on the admin listener, by action and result
        admin_actions_total: Each<(Action, ActionResult), IntCounter> ["action", "result"],
        /// Teams beyond the 200 that have series of their own, counted as other
        label_overflow_total: Each<Overflow, IntCounter> ["label"],
        /// Log lines lost because their reader is too slow or gone
        log_lines_dropped_total: Total,
        /// Time the runtime's worker threads were busy, all together
        tokio_busy_seconds_total: Total,
    }
}
