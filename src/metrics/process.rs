//! The families about this process and its runtime, read when somebody asks: from `/proc`, from tokio,
//! and from whoever writes the log.

use std::fs;
use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use prometheus::{Counter, Gauge, IntCounter, IntGauge};
use tokio::runtime::Handle;

use super::Metrics;
use super::families::{Families, gauge_value};

/// What `/proc` counts times in: 100 to the second on every machine Linux has users on.
const TICKS_PER_SECOND: f64 = 100.0;

/// See the module.
pub(super) struct ProcessFamilies {
    cpu: Counter,
    resident: IntGauge,
    virtual_memory: IntGauge,
    open_files: IntGauge,
    max_files: IntGauge,
    started: Gauge,
    threads: IntGauge,
    workers: IntGauge,
    tasks: IntGauge,
    queue: IntGauge,
    busy: Counter,
    log_dropped: IntCounter,
    dropped_lines: OnceLock<Box<dyn Fn() -> u64 + Send + Sync>>,
    /// Two who look at the same time would count twice.
    looking: Mutex<()>,
}

impl ProcessFamilies {
    pub(super) fn new(families: &Families<'_>) -> Self {
        Self {
            cpu: families.float_count(
                "process_cpu_seconds_total",
                "Processor time of this process, its own and the kernel's for it",
            ),
            resident: families
                .plain("process_resident_memory_bytes", "Memory of this process that is in RAM"),
            virtual_memory: families.plain("process_virtual_memory_bytes", "Addresses of this process"),
            open_files: families.plain("process_open_fds", "Files and sockets this process has open"),
            max_files: families.plain("process_max_fds", "Files and sockets this process may have open"),
            started: families.float("process_start_time_seconds", "When this process started, in Unix time"),
            threads: families.plain("process_threads", "Threads of this process"),
            workers: families.plain("granary_tokio_workers", "Threads that run tasks"),
            tasks: families.plain("granary_tokio_alive_tasks", "Tasks that have not ended"),
            queue: families.plain(
                "granary_tokio_global_queue_depth",
                "Tasks that could run and that no thread has taken yet",
            ),
            busy: families.float_count(
                "granary_tokio_busy_seconds_total",
                "Time the threads that run tasks were at work, all of them together",
            ),
            log_dropped: families.count(
                "granary_log_lines_dropped_total",
                "Lines of the log that are lost, because whoever reads it was too slow or is gone",
            ),
            dropped_lines: OnceLock::new(),
            looking: Mutex::default(),
        }
    }

    fn observe(&self) {
        let _alone = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        // What cannot be read stays as it was.
        if let Ok(figures) = Figures::read() {
            advance(&self.cpu, figures.cpu_seconds);
            self.resident.set(gauge_value(figures.resident_bytes));
            self.virtual_memory.set(gauge_value(figures.virtual_bytes));
            self.open_files.set(gauge_value(figures.open_files));
            self.max_files.set(gauge_value(figures.max_files));
            self.started.set(figures.started_at);
            self.threads.set(gauge_value(figures.threads));
        }
        if let Ok(runtime) = Handle::try_current() {
            let runtime = runtime.metrics();
            self.workers.set(gauge_value(runtime.num_workers() as u64));
            self.tasks.set(gauge_value(runtime.num_alive_tasks() as u64));
            self.queue.set(gauge_value(runtime.global_queue_depth() as u64));
            let busy = (0..runtime.num_workers()).map(|worker| runtime.worker_total_busy_duration(worker));
            advance(&self.busy, busy.sum::<std::time::Duration>().as_secs_f64());
        }
        if let Some(dropped) = self.dropped_lines.get() {
            self.log_dropped.inc_by(dropped().saturating_sub(self.log_dropped.get()));
        }
    }
}

/// Sets a counter to what somebody else has counted.
fn advance(counter: &Counter, to: f64) {
    counter.inc_by((to - counter.get()).max(0.0));
}

impl Metrics {
    /// Says how many lines of the log were lost, whenever it is asked.
    pub fn count_dropped_lines(&self, dropped: impl Fn() -> u64 + Send + Sync + 'static) {
        // A process has one log, and the first one to say so is it.
        let _ = self.process.dropped_lines.set(Box::new(dropped));
    }

    /// Sets what is known of this process at the moment. Reads some small files.
    pub fn observe_process(&self) {
        self.process.observe();
    }
}

/// What the kernel says of this process.
struct Figures {
    cpu_seconds: f64,
    started_at: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    threads: u64,
    open_files: u64,
    max_files: u64,
}

impl Figures {
    fn read() -> io::Result<Self> {
        let stat = fs::read_to_string("/proc/self/stat")?;
        let status = fs::read_to_string("/proc/self/status")?;
        let limits = fs::read_to_string("/proc/self/limits")?;
        let boot = fs::read_to_string("/proc/stat")?;
        let open_files = fs::read_dir("/proc/self/fd")?.count() as u64;
        Self::parse(&stat, &status, &limits, &boot, open_files)
            .ok_or_else(|| io::Error::other("what /proc says cannot be read"))
    }

    fn parse(stat: &str, status: &str, limits: &str, boot: &str, open_files: u64) -> Option<Self> {
        // The second field is the program's name, in parentheses, and may be anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
        let of = |text: &str, name: &str| -> Option<u64> {
            let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
            rest.split_whitespace().next()?.parse().ok()
        };
        Some(Self {
            cpu_seconds: (ticks(14)? + ticks(15)?) / TICKS_PER_SECOND,
            started_at: of(boot, "btime")? as f64 + ticks(22)? / TICKS_PER_SECOND,
            resident_bytes: of(status, "VmRSS:")? << 10,
            virtual_bytes: of(status, "VmSize:")? << 10,
            threads: of(status, "Threads:")?,
            open_files,
            // One without a limit says so in a word.
            max_files: of(limits, "Max open files").unwrap_or(u64::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read_by_its_places() {
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 150 13 14 15 16 7 18 12345 0 0";
        let status = "Name:\tx\nVmSize:\t    2048 kB\nVmRSS:\t    1024 kB\nThreads:\t7\n";
        let limits = "Max processes  1 2 processes\nMax open files            1024                 4096                 files\n";
        let figures = Figures::parse(stat, status, limits, "cpu 1\nbtime 1000\n", 5).expect("it can be read");
        assert_eq!((figures.cpu_seconds, figures.started_at), (4.0, 1123.45));
        assert_eq!((figures.resident_bytes, figures.virtual_bytes, figures.threads), (1 << 20, 2 << 20, 7));
        assert_eq!((figures.open_files, figures.max_files), (5, 1024));
    }

    #[test]
    fn this_process_is_known() {
        let metrics = Metrics::new(std::iter::empty(), 0);
        metrics.count_dropped_lines(|| 3);
        metrics.observe_process();
        metrics.observe_process();
        let process = &metrics.process;
        assert!(
            process.resident.get() > 1 << 20 && process.open_files.get() > 2 && process.threads.get() > 0
        );
        assert!(process.started.get() > 1.7e9, "{}", process.started.get());
        assert_eq!(process.log_dropped.get(), 3);
    }
}
