//! Label values as closed sets: no request can make a new one.

use crate::base::outcome::{CacheStatus, SavingCause};
use crate::ledger::admin::Action;
use crate::ledger::{CallState, LedgerOp};
use crate::teams::AuthError;
use crate::upstream::CallPhase;
use crate::upstream::download::FetchError;

/// Of a family: a value or a tuple.
pub(crate) trait Labels: Copy {
    const COUNT: usize;

    /// In the order of their positions.
    fn all() -> Vec<Self>;

    /// The index in [`all`](Self::all).
    fn position(self) -> usize;

    /// In the order of the labels.
    fn words(self) -> Vec<&'static str>;
}

impl Labels for () {
    const COUNT: usize = 1;

    fn all() -> Vec<Self> {
        vec![()]
    }

    fn position(self) -> usize {
        0
    }

    fn words(self) -> Vec<&'static str> {
        Vec::new()
    }
}

impl<A: Labels, B: Labels> Labels for (A, B) {
    const COUNT: usize = A::COUNT * B::COUNT;

    fn all() -> Vec<Self> {
        A::all().into_iter().flat_map(|a| B::all().into_iter().map(move |b| (a, b))).collect()
    }

    fn position(self) -> usize {
        self.0.position() * B::COUNT + self.1.position()
    }

    fn words(self) -> Vec<&'static str> {
        [self.0.words(), self.1.words()].concat()
    }
}

/// For enums that have `ALL` and `as_str`.
macro_rules! label {
    ($($name:ty),+) => {$(
        impl $crate::metrics::labels::Labels for $name {
            const COUNT: usize = <$name>::ALL.len();

            fn all() -> Vec<Self> {
                <$name>::ALL.to_vec()
            }

            fn position(self) -> usize {
                self as usize
            }

            fn words(self) -> Vec<&'static str> {
                vec![self.as_str()]
            }
        }
    )+};
}

/// With a word for each value.
macro_rules! labels {
    ($($(#[$about:meta])* $visible:vis enum $name:ident { $($values:tt)+ })+) => {
        $crate::base::words::words! { $($(#[$about])* $visible enum $name { $($values)+ })+ }

        $crate::metrics::labels::label!($($name),+);
    };
}
pub(super) use label;
pub(super) use labels;

label!(Action, CacheStatus, CallPhase, CallState, SavingCause);

labels! {
    pub(crate) enum Outcome {
        HitMemory = "hit_memory", HitLedger = "hit_ledger", HitStore = "hit_store", Coalesced = "coalesced",
        Miss = "miss", Refresh = "refresh", Rejected = "rejected", Error = "error",
    }

    pub enum CacheTier { Memory = "memory", Ledger = "ledger", Store = "store" }

    /// Result of a lookup; `Error` when the tier could not be asked.
    pub enum Look { Hit = "hit", Miss = "miss", Error = "error" }
    pub enum SizedTier { Memory = "memory" }

    pub enum Eviction { Size = "size", Expired = "expired", Replaced = "replaced", Explicit = "explicit" }

    pub(crate) enum Rejection {
        NotImage = "not_image", TooLarge = "too_large", Incomplete = "incomplete", DeadUrl = "dead_url",
        Unreachable = "unreachable",
    }

    pub enum Space {
        Cache = "cache", Uploads = "uploads", UploadSpill = "upload_spill", Results = "results",
        Spool = "spool",
    }

    /// Whose fill is waited for: this process's, or another one's on the same ledger.
    pub enum CoalesceScope { Local = "local", Cluster = "cluster" }

    /// Result of an attempt to buy. `Connect`: never sent whole; `Timeout`: no complete answer in time.
    pub enum AttemptOutcome {
        Ok = "ok", CallerRejected = "caller_rejected", RateLimited = "rate_limited", Auth = "auth",
        Quota = "quota", ServerError = "server_error", Timeout = "timeout", Connect = "connect",
        BadBody = "bad_body",
    }

    pub enum ShedReason {
        QueueFull = "queue_full", WaitTimeout = "wait_timeout", BreakerOpen = "breaker_open",
        Draining = "draining", Deserted = "deserted", RetryAfterCache = "told_to_wait",
    }

    pub enum RetryReason { NotSent = "not_sent", RateLimited = "rate_limited" }
    pub enum Suspicion { Dimensions = "dimensions", RetainLocation = "retain_location" }

    /// Why nothing is bought. The first four are the reasons of an open circuit.
    pub enum BlockCause {
        KeyRefused = "key_refused", NoCredits = "no_credits", Unfetchable = "unfetchable", Outage = "outage",
        Frozen = "frozen", ArchiveGuard = "archive_guard", LedgerUnverified = "ledger_unverified",
    }

    pub(crate) enum EndState {
        Released = "released", Stored = "stored", Refused = "refused", Failed = "failed", Unknown = "unknown",
        Unfetchable = "unfetchable",
    }

    pub(crate) enum OpLabel {
        LookUp = "look_up", Reserve = "reserve", Send = "send", Answer = "answer", Store = "store",
        Other = "other",
    }

    /// What limits purchases: `misses_per_second`, slots, credits, or `refused_per_day`.
    pub enum LimitKind { Rate = "rate", Concurrency = "concurrency", Budget = "budget", Refused = "refused" }

    /// Decision of a limit; `Delay` allows after a wait.
    pub enum Decision { Allow = "allow", Delay = "delay", Deny = "deny" }
    pub enum LimitMode { Enforce = "enforce", Shadow = "shadow" }

    pub enum ListenerName { Public = "public", Admin = "admin" }

    /// Why a connection was closed. `Limit` and `Handshake` are refusals, the others expired timeouts.
    pub enum CloseReason {
        Limit = "limit", Handshake = "handshake", HandshakeTimeout = "handshake_timeout",
        FirstByte = "first_byte", Head = "head", Idle = "idle", Write = "write",
    }

    pub enum ReloadedFile { Configuration = "configuration", Certificate = "certificate", UpstreamKey = "upstream_key" }
    pub enum Success { Ok = "ok", Error = "error" }

    /// Why a credential was refused; `Admin` on the admin listener.
    pub enum AuthFailure {
        Missing = "missing", Malformed = "malformed", Unknown = "unknown", Expired = "expired",
        Disabled = "disabled", Ambiguous = "ambiguous", Admin = "admin",
    }

    pub enum ActionResult { Done = "done", Refused = "refused", Failed = "failed" }
}

impl From<CacheStatus> for Outcome {
    fn from(status: CacheStatus) -> Self {
        match status {
            CacheStatus::HitMemory => Self::HitMemory,
            CacheStatus::HitLedger => Self::HitLedger,
            CacheStatus::HitStore => Self::HitStore,
            CacheStatus::Coalesced => Self::Coalesced,
            CacheStatus::Miss => Self::Miss,
            CacheStatus::Refresh => Self::Refresh,
        }
    }
}

impl EndState {
    /// `None` for a state in which a call goes on, or that follows its end. The others have the same words.
    pub(super) fn of(state: CallState) -> Option<Self> {
        state.as_str().parse().ok()
    }
}

impl OpLabel {
    pub(super) fn of(op: LedgerOp) -> Option<Self> {
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

impl From<&FetchError> for Rejection {
    fn from(error: &FetchError) -> Self {
        match error {
            FetchError::NotPicture => Self::NotImage,
            FetchError::TooLarge(_) => Self::TooLarge,
            FetchError::Incomplete(_) => Self::Incomplete,
            FetchError::Dead(_) => Self::DeadUrl,
            FetchError::NotAllowed(_) | FetchError::Transient(_) | FetchError::Timeout => Self::Unreachable,
        }
    }
}

impl From<&AuthError> for AuthFailure {
    fn from(error: &AuthError) -> Self {
        match error {
            AuthError::Missing => Self::Missing,
            AuthError::Malformed | AuthError::Incomplete => Self::Malformed,
            AuthError::Unknown => Self::Unknown,
            AuthError::Expired => Self::Expired,
            AuthError::Disabled { .. } => Self::Disabled,
            AuthError::Conflicting => Self::Ambiguous,
        }
    }
}
