//! Values of labels, as closed sets: what can be counted about the upstream.

/// Why a fill was given up before anything was reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShedReason {
    /// As many wait as may.
    QueueFull,
    /// Its turn would have come too late.
    WaitTimeout,
    /// The upstream is not to be called.
    BreakerOpen,
    /// The process is stopping.
    Draining,
    /// Nobody waited for it any more.
    Deserted,
    /// The upstream is throttling, and its callers had been told to come back later than this.
    ToldToWait,
}

impl ShedReason {
    pub(super) const ALL: [Self; 6] = [
        Self::QueueFull,
        Self::WaitTimeout,
        Self::BreakerOpen,
        Self::Draining,
        Self::Deserted,
        Self::ToldToWait,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::WaitTimeout => "wait_timeout",
            Self::BreakerOpen => "breaker_open",
            Self::Draining => "draining",
            Self::Deserted => "deserted",
            Self::ToldToWait => "told_to_wait",
        }
    }
}

/// Why an attempt was made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryReason {
    /// It had not been sent whole.
    NotSent,
    /// The upstream's flow control had refused it.
    RateLimited,
}

impl RetryReason {
    pub(super) const ALL: [Self; 2] = [Self::NotSent, Self::RateLimited];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::RateLimited => "rate_limited",
        }
    }
}

/// What is odd about a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// It has another size than was ordered.
    Dimensions,
    /// Its `retain_location` is no place in it.
    RetainLocation,
}

impl Suspicion {
    pub(super) const ALL: [Self; 2] = [Self::Dimensions, Self::RetainLocation];

    /// The word in labels and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dimensions => "dimensions",
            Self::RetainLocation => "retain_location",
        }
    }
}

/// Why nothing may be bought.
pub(super) const ALARMS: [&str; 4] = ["key_refused", "no_credits", "unfetchable", "outage"];
/// Where the breaker goes.
pub(super) const BREAKER_POSITIONS: [&str; 3] = ["closed", "half_open", "open"];
