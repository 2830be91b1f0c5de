//! Named points at which the crash tests kill or stop the process. They do nothing without the feature
//! `crash-points`, which no build for service has.
//!
//! `GRANARY_CRASH_AT` names one point, as `CP18`, or `CP18:3` for its third passage, at which the process
//! gets SIGKILL, so that nothing is flushed or cleaned up. `GRANARY_STOP_AT` does the same with SIGSTOP.

#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) fn crash_point(_name: &'static str) {}

/// Kills or stops this process at the configured point, after one line on stderr.
#[cfg(feature = "crash-points")]
pub(crate) fn crash_point(name: &'static str) {
    use std::sync::OnceLock;

    use rustix::process::Signal;

    static CRASH: OnceLock<Option<Plan>> = OnceLock::new();
    static STOP: OnceLock<Option<Plan>> = OnceLock::new();
    if CRASH.get_or_init(|| Plan::read("GRANARY_CRASH_AT")).as_ref().is_some_and(|plan| plan.is_due(name)) {
        signal(format_args!("crash point {name}"), Signal::KILL);
        loop {
            std::thread::park();
        }
    }
    if STOP.get_or_init(|| Plan::read("GRANARY_STOP_AT")).as_ref().is_some_and(|plan| plan.is_due(name)) {
        signal(format_args!("stopped at {name}"), Signal::STOP);
        // This thread may run on for some microseconds before it stops.
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// One passage of one point.
#[cfg(feature = "crash-points")]
struct Plan {
    point: String,
    passage: u64,
    passages: std::sync::atomic::AtomicU64,
}

#[cfg(feature = "crash-points")]
impl Plan {
    fn read(variable: &str) -> Option<Self> {
        let plan = std::env::var(variable).ok()?;
        let (point, passage) = plan.split_once(':').unwrap_or((&plan, "1"));
        Some(Self { point: point.to_owned(), passage: passage.parse().ok()?, passages: 0.into() })
    }

    fn is_due(&self, name: &str) -> bool {
        use std::sync::atomic::Ordering;
        name == self.point && self.passages.fetch_add(1, Ordering::SeqCst) + 1 == self.passage
    }
}

/// A closed stderr does not prevent the signal.
#[cfg(feature = "crash-points")]
fn signal(line: std::fmt::Arguments<'_>, signal: rustix::process::Signal) {
    use std::io::Write as _;
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
    let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
}
