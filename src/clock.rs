//! The wall clock, as something a test can turn: [`Clock`].
//!
//! Used for what people read and for calendar windows. Time limits are measured on tokio's
//! monotonic clock instead.

use std::sync::Arc;

use jiff::Timestamp;

/// Tells the time of day.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Arc::new(|| shifted(Timestamp::now())))
    }

    /// Any clock.
    pub fn from_fn(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The present instant.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

/// What a clock shows where all clocks of a test are wrong by the same time; here they are not.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) fn shifted(now: Timestamp) -> Timestamp {
    now
}

/// Shifts a clock by the seconds that `GRANARY_CLOCK_OFFSET` says, so that a test can wait for the end
/// of a month with the real program.
#[cfg(feature = "crash-points")]
pub(crate) fn shifted(now: Timestamp) -> Timestamp {
    static OFFSET: std::sync::OnceLock<jiff::SignedDuration> = std::sync::OnceLock::new();
    let offset = OFFSET.get_or_init(|| {
        let seconds = std::env::var("GRANARY_CLOCK_OFFSET").ok().and_then(|text| text.parse().ok());
        jiff::SignedDuration::from_secs(seconds.unwrap_or(0))
    });
    now + *offset
}
