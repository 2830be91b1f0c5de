//! Values of labels, as closed sets. A [`Label`] is an enum whose every value is known, so that its
//! series can all be there from the start, and no request can make another.

/// A closed set of words.
pub(super) trait Label: Copy + 'static {
    /// All of them, in the order of their positions.
    const ALL: &'static [Self];

    /// The word.
    fn as_str(self) -> &'static str;

    /// Its place in [`ALL`](Self::ALL).
    fn position(self) -> usize;
}

/// Declares an enum with a word for each of its values.
macro_rules! labels {
    ($(#[$about:meta])* $visible:vis enum $name:ident {
        $($(#[$meaning:meta])* $value:ident = $word:literal,)+
    }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $visible enum $name {
            $($(#[$meaning])* $value,)+
        }

        impl $crate::metrics::labels::Label for $name {
            const ALL: &'static [Self] = &[$(Self::$value),+];

            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => $word,)+
                }
            }

            fn position(self) -> usize {
                self as usize
            }
        }
    };
}
pub(super) use labels;

labels! {
    /// How an attempt to buy ended.
    pub enum AttemptOutcome {
        /// With a result.
        Ok = "ok",
        /// Refused for the order's sake.
        CallerRejected = "caller_rejected",
        /// Refused for being too fast.
        RateLimited = "rate_limited",
        /// Refused for our key's sake.
        Auth = "auth",
        /// Refused for want of credits.
        Quota = "quota",
        /// A complete error.
        ServerError = "server_error",
        /// No complete answer in time.
        Timeout = "timeout",
        /// Never sent whole.
        Connect = "connect",
        /// No complete answer, or one that could not be understood.
        BadBody = "bad_body",
    }
}

labels! {
    /// Why a fill was given up before anything was reserved.
    pub enum ShedReason {
        /// As many wait as may.
        QueueFull = "queue_full",
        /// Its turn would have come too late.
        WaitTimeout = "wait_timeout",
        /// The upstream is not to be called.
        BreakerOpen = "breaker_open",
        /// The process is stopping.
        Draining = "draining",
        /// Nobody waited for it any more.
        Deserted = "deserted",
        /// The upstream is throttling, and its callers had been told to come back later than this.
        RetryAfterCache = "told_to_wait",
    }
}

labels! {
    /// Why an attempt was made again.
    pub enum RetryReason {
        /// It had not been sent whole.
        NotSent = "not_sent",
        /// The upstream's flow control had refused it.
        RateLimited = "rate_limited",
    }
}

labels! {
    /// What is odd about a result.
    pub enum Suspicion {
        /// It has another size than was ordered.
        Dimensions = "dimensions",
        /// Its `retain_location` is no place in it.
        RetainLocation = "retain_location",
    }
}

impl Suspicion {
    /// The word in labels and in the log.
    pub fn as_str(self) -> &'static str {
        Label::as_str(self)
    }
}

labels! {
    /// Whether something worked.
    pub(super) enum Success {
        /// It did.
        Ok = "ok",
        /// It did not.
        Error = "error",
    }
}

impl Success {
    pub(super) fn of(is_ok: bool) -> Self {
        if is_ok { Self::Ok } else { Self::Error }
    }
}

/// Why nothing may be bought.
pub(super) const ALARMS: [&str; 4] = ["key_refused", "no_credits", "unfetchable", "outage"];
/// Where the breaker goes.
pub(super) const BREAKER_POSITIONS: [&str; 3] = ["closed", "half_open", "open"];
