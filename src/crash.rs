//! Named points at which the process can be made to die, for the crash tests.
//!
//! A point costs nothing and does nothing unless the program is built with the feature
//! `crash-points`, which no build that serves has. With it, the environment variable
//! `GRANARY_CRASH_AT` names one point, as `CP18`, or as `CP18:3` to die at its third passage.
//! Death is SIGKILL, so that nothing is flushed, unwound or cleaned up, as when the kernel kills.

/// Does nothing: this build has no crash points.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) fn crash_point(_name: &'static str) {}

/// Kills this process when `name` is the point that was asked for, after one line on stderr that
/// proves it was reached.
#[cfg(feature = "crash-points")]
pub(crate) fn crash_point(name: &'static str) {
    use std::io::Write as _;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static PLAN: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSAGES: AtomicU64 = AtomicU64::new(0);

    let plan = PLAN.get_or_init(|| {
        let plan = std::env::var("GRANARY_CRASH_AT").ok()?;
        match plan.split_once(':') {
            Some((point, passage)) => Some((point.to_owned(), passage.parse().ok()?)),
            None => Some((plan, 1)),
        }
    });
    let Some((point, passage)) = plan else { return };
    if name != point || PASSAGES.fetch_add(1, Ordering::SeqCst) + 1 != *passage {
        return;
    }
    // The line is for whoever watches; the death is what matters, so a closed stderr is no reason to live.
    let _ = std::io::stderr().write_all(format!("crash point {name}\n").as_bytes());
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    loop {
        std::thread::park();
    }
}
