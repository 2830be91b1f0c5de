//! Label values as closed sets: no request can make a new one.

use crate::base::outcome::{CacheStatus, SavingCause};
use crate::ledger::CallState;
use crate::ledger::admin::Action;
use crate::teams::AuthError;
use crate::upstream::CallPhase;
use crate::upstream::download::FetchError;

/// A label's values.
pub(crate) trait Label: Copy + 'static {
    /// All, in the order of their positions.
    const ALL: &'static [Self];

    /// The word in the exposition and in the log.
    fn as_str(self) -> &'static str;

    /// Its index in [`ALL`](Self::ALL).
    fn position(self) -> usize;
}

/// Values of all labels of a family, as a value or a tuple.
pub(crate) trait Labels: Copy {
    /// The number of combinations.
    const COUNT: usize;

    /// Every combination, in the order of their positions.
    fn all() -> Vec<Self>;

    /// The index of a combination in [`all`](Self::all).
    fn position(self) -> usize;

    /// The words, in the order of the labels.
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

impl<L: Label> Labels for L {
    const COUNT: usize = L::ALL.len();

    fn all() -> Vec<Self> {
        L::ALL.to_vec()
    }

    fn position(self) -> usize {
        Label::position(self)
    }

    fn words(self) -> Vec<&'static str> {
        vec![self.as_str()]
    }
}

impl<A: Label, B: Labels> Labels for (A, B) {
    const COUNT: usize = A::ALL.len() * B::COUNT;

    fn all() -> Vec<Self> {
        A::ALL.iter().flat_map(|a| B::all().into_iter().map(|b| (*a, b))).collect()
    }

    fn position(self) -> usize {
        self.0.position() * B::COUNT + self.1.position()
    }

    fn words(self) -> Vec<&'static str> {
        [self.0.as_str()].into_iter().chain(self.1.words()).collect()
    }
}

/// Makes labels of enums that have `ALL` and `as_str`.
macro_rules! label {
    ($($name:ty),+) => {$(
        impl $crate::metrics::labels::Label for $name {
            const ALL: &'static [Self] = &<$name>::ALL;

            fn as_str(self) -> &'static str {
                <$name>::as_str(self)
            }

            fn position(self) -> usize {
                self as usize
            }
        }
    )+};
}

/// Declares enums with a word for each value.
macro_rules! labels {
    ($($(#[$about:meta])* $visible:vis enum $name:ident { $($value:ident = $word:literal),+ $(,)? })+) => {$(
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $visible enum $name { $($value),+ }

        impl $name {
            /// Every value.
            $visible const ALL: [Self; [$($word),+].len()] = [$(Self::$value),+];

            /// The word in the exposition and in the log.
            $visible fn as_str(self) -> &'static str {
                match self { $(Self::$value => $word),+ }
            }
        }

        $crate::metrics::labels::label!($name);
    )+};
}
pub(super) use label;
pub(super) use labels;

label!(Action, CacheStatus, CallPhase, CallState, SavingCause);

labels! {
    /// Result of a crop request.
    pub(crate) enum Outcome {
        HitMemory = "hit_memory", HitLedger = "hit_ledger", HitStore = "hit_store", Coalesced = "coalesced",
        Miss = "miss", Refresh = "refresh", Rejected = "rejected", Error = "error",
    }

    /// Where an answer is looked up.
    pub enum CacheTier { Memory = "memory", Ledger = "ledger", Store = "store" }

    /// Result of a lookup; `Error` when the tier could not be asked.
    pub enum Look { Hit = "hit", Miss = "miss", Error = "error" }

    /// The tier that evicts.
    pub enum SizedTier { Memory = "memory" }

    /// Why an entry left memory.
    pub enum Eviction { Size = "size", Expired = "expired", Replaced = "replaced", Explicit = "explicit" }

    /// Why a fetched result was not kept.
    pub(crate) enum Rejection {
        NotImage = "not_image", TooLarge = "too_large", Incomplete = "incomplete", DeadUrl = "dead_url",
        Unreachable = "unreachable",
    }

    /// Memory or disk space with a limit.
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

    /// Why a fill was given up before anything was reserved.
    pub enum ShedReason {
        QueueFull = "queue_full", WaitTimeout = "wait_timeout", BreakerOpen = "breaker_open",
        Draining = "draining", Deserted = "deserted", RetryAfterCache = "told_to_wait",
    }

    /// Why an attempt was repeated.
    pub enum RetryReason { NotSent = "not_sent", RateLimited = "rate_limited" }

    /// How a result differs from the order.
    pub enum Suspicion { Dimensions = "dimensions", RetainLocation = "retain_location" }

    /// Why nothing is bought. The first four are the reasons of an open circuit.
    pub enum BlockCause {
        KeyRefused = "key_refused", NoCredits = "no_credits", Unfetchable = "unfetchable", Outage = "outage",
        Frozen = "frozen", ArchiveGuard = "archive_guard", LedgerUnverified = "ledger_unverified",
    }

    /// A state in which a call ends.
    pub(crate) enum EndState {
        Released = "released", Stored = "stored", Refused = "refused", Failed = "failed", Unknown = "unknown",
        Unfetchable = "unfetchable",
    }

    /// What limits purchases: `misses_per_second`, slots, credits, or `refused_per_day`.
    pub enum LimitKind { Rate = "rate", Concurrency = "concurrency", Budget = "budget", Refused = "refused" }

    /// Decision of a limit; `Delay` allows after a wait.
    pub enum Decision { Allow = "allow", Delay = "delay", Deny = "deny" }

    /// Whether a decision is applied or only counted.
    pub enum LimitMode { Enforce = "enforce", Shadow = "shadow" }

    /// The listener of a connection.
    pub enum ListenerName { Public = "public", Admin = "admin" }

    /// Why a connection was closed. `Limit` and `Handshake` are refusals, the others expired timeouts.
    pub enum CloseReason {
        Limit = "limit", Handshake = "handshake", HandshakeTimeout = "handshake_timeout",
        FirstByte = "first_byte", Head = "head", Idle = "idle", Write = "write",
    }

    /// Files that are read again while the process runs.
    pub enum ReloadedFile { Configuration = "configuration", Certificate = "certificate", UpstreamKey = "upstream_key" }

    /// Whether something worked.
    pub enum Success { Ok = "ok", Error = "error" }

    /// Why a credential was refused; `Admin` on the admin listener.
    pub enum AuthFailure {
        Missing = "missing", Malformed = "malformed", Unknown = "unknown", Expired = "expired",
        Disabled = "disabled", Ambiguous = "ambiguous", Admin = "admin",
    }

    /// Result of an operator's action.
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
    /// Returns `None` for a state in which a call goes on, or that follows its end.
    pub(super) fn of(state: CallState) -> Option<Self> {
        match state {
            CallState::Released => Some(Self::Released),
            CallState::Stored => Some(Self::Stored),
            CallState::Refused => Some(Self::Refused),
            CallState::Failed => Some(Self::Failed),
            CallState::Unknown => Some(Self::Unknown),
            CallState::Unfetchable => Some(Self::Unfetchable),
            CallState::Reserved | CallState::Sent | CallState::Answered | CallState::Lost => None,
        }
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

impl From<bool> for Success {
    fn from(is_ok: bool) -> Self {
        if is_ok { Self::Ok } else { Self::Error }
    }
}
