//! Named points at which the process can be made to die or to stop, for the crash tests.
//!
//! A point costs nothing and does nothing unless the program is built with the feature
//! `crash-points`, which no build that serves has. With it, the environment variable
//! `GRANARY_CRASH_AT` names one point, as `CP18`, or as `CP18:3` to die at its third passage.
//! Death is SIGKILL, so that nothing is flushed, unwound or cleaned up, as when the kernel kills.
//! `GRANARY_STOP_AT` names, in the same way, one at which the process stops (SIGSTOP) until it is told
//! to go on.

/// Does nothing: this build has no crash points.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) fn crash_point(_name: &'static str) {}

/// Kills or stops this process when `name` is the point that was asked for, after one line on stderr
/// that proves it was reached.
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
        // All threads stop, and this one may run on for some microseconds: not beyond here.
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

/// The line is for whoever watches; the signal is what matters, so a closed stderr is no hindrance.
#[cfg(feature = "crash-points")]
fn signal(line: std::fmt::Arguments<'_>, signal: rustix::process::Signal) {
    use std::io::Write as _;
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
    let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
}
