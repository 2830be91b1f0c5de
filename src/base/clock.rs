//! The clocks, which a test can set. The wall clock is for timestamps and calendar windows. Leases use the
//! uptime of the machine, which counts suspended time. Time limits use tokio's monotonic clock instead.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

#[derive(Clone)]
pub struct Clock {
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    uptime: Arc<dyn Fn() -> Duration + Send + Sync>,
}

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Self {
        Self { now: Arc::new(|| shifted(Timestamp::now())), uptime: Arc::new(boot_time) }
    }

    /// The uptime is tokio's, which a test may pause.
    pub fn from_fn(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        let begun = tokio::time::Instant::now();
        Self { now: Arc::new(now), uptime: Arc::new(move || begun.elapsed()) }
    }

    pub fn now(&self) -> Timestamp {
        (self.now)()
    }

    /// Since some instant before this process, with suspended time.
    pub fn uptime(&self) -> Duration {
        (self.uptime)()
    }
}

/// `CLOCK_BOOTTIME`: Linux's `CLOCK_MONOTONIC` stands still while the machine is suspended.
fn boot_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanoseconds)
}

/// Test builds shift all clocks by the same time.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) fn shifted(now: Timestamp) -> Timestamp {
    now
}

/// Adds `GRANARY_CLOCK_OFFSET` seconds, so that a test can reach the end of a month with the real program.
#[cfg(feature = "crash-points")]
pub(crate) fn shifted(now: Timestamp) -> Timestamp {
    static OFFSET: std::sync::OnceLock<jiff::SignedDuration> = std::sync::OnceLock::new();
    let offset = OFFSET.get_or_init(|| {
        let seconds = std::env::var("GRANARY_CLOCK_OFFSET").ok().and_then(|text| text.parse().ok());
        jiff::SignedDuration::from_secs(seconds.unwrap_or(0))
    });
    now + *offset
}
