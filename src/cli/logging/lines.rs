//! Log lines, gathered and written in batches by a thread of their own: the first after a pause at once, then at most
//! one batch each [`PERIOD`]. When the reader of the log is slow or stuck, a bounded number of bytes wait; further
//! lines are lost and counted. So a stopped terminal, a full pipe or a slow disk never delays a request or the ledger.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::fmt::MakeWriter;

/// The longest a line waits for its batch.
const PERIOD: Duration = Duration::from_millis(100);
/// Thousands of requests, while a disk hangs for a moment.
const MOST_BYTES: usize = 1 << 20;
/// For the last lines at the end of the process.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Clone, Default)]
pub(super) struct Lines(Arc<Shared>);

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    written: Condvar,
    lost: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    /// Whole lines.
    bytes: Vec<u8>,
    lines: u64,
    /// The thread waits for a line, and not for the next period.
    is_idle: bool,
    is_writing: bool,
    is_flush_wanted: bool,
}

impl Lines {
    pub(super) fn to(output: impl Write + Send + 'static) -> io::Result<Self> {
        let lines = Self::default();
        let shared = lines.0.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || shared.write_batches(output))?;
        Ok(lines)
    }

    pub(super) fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    pub(super) fn flush(&self) {
        let until = Instant::now() + LAST_PATIENCE;
        let mut waiting = self.0.waiting.lock();
        waiting.is_flush_wanted = true;
        self.0.wake.notify_one();
        while waiting.is_writing || !waiting.bytes.is_empty() {
            if self.0.written.wait_until(&mut waiting, until).timed_out() {
                return;
            }
        }
    }
}

impl Shared {
    fn write_batches(&self, mut output: impl Write) {
        let mut batch = Vec::new();
        loop {
            let lines = self.take(&mut batch);
            // Flushed for an output that buffers.
            if output.write_all(&batch).and_then(|()| output.flush()).is_err() {
                self.lost.fetch_add(lines, Ordering::Relaxed);
            }
            batch.clear();
            let mut waiting = self.waiting.lock();
            waiting.is_writing = false;
            self.written.notify_all();
            if !waiting.is_flush_wanted {
                self.wake.wait_for(&mut waiting, PERIOD);
            }
            waiting.is_flush_wanted = false;
        }
    }

    /// Waits for lines, and exchanges them with the empty `batch`.
    fn take(&self, batch: &mut Vec<u8>) -> u64 {
        let mut waiting = self.waiting.lock();
        while waiting.bytes.is_empty() {
            waiting.is_idle = true;
            self.wake.wait(&mut waiting);
        }
        (waiting.is_idle, waiting.is_writing) = (false, true);
        std::mem::swap(&mut waiting.bytes, batch);
        std::mem::take(&mut waiting.lines)
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}

impl Write for &Lines {
    /// Takes a whole line: the subscriber writes each event at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Shared { waiting, wake, lost, .. } = &*self.0;
        let mut waiting = waiting.lock();
        if waiting.bytes.len() + line.len() > MOST_BYTES {
            lost.fetch_add(1, Ordering::Relaxed);
            return Ok(line.len());
        }
        waiting.bytes.extend_from_slice(line);
        waiting.lines += 1;
        if std::mem::take(&mut waiting.is_idle) {
            drop(waiting);
            wake.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// An output that says when a write has begun, and writes when the gate is open.
    struct Gated {
        gate: Arc<Mutex<()>>,
        begun: SyncSender<()>,
        written: Arc<Mutex<Vec<Vec<u8>>>>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.begun.try_send(());
            let _open = self.gate.lock();
            self.written.lock().push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type Written = Arc<Mutex<Vec<Vec<u8>>>>;

    /// Lines to a gated output, its gate, the signal that a write has begun, and the writes.
    fn gated() -> (Lines, Arc<Mutex<()>>, Receiver<()>, Written) {
        let (begun, signal) = sync_channel(1);
        let (gate, written) = (Arc::default(), Arc::default());
        let output = Gated { gate: Arc::clone(&gate), begun, written: Arc::clone(&written) };
        (Lines::to(output).expect("a thread"), gate, signal, written)
    }

    fn text(written: &Written) -> String {
        String::from_utf8(written.lock().concat()).expect("UTF-8")
    }

    #[test]
    fn stuck_output_delays_no_writer_and_lost_lines_are_counted() {
        const LINE: usize = 1024;
        const FIT: usize = MOST_BYTES / LINE;
        let (lines, gate, begun, written) = gated();
        let closed = gate.lock();
        let write = |number: usize| {
            (&lines)
                .write_all(format!("{number:>width$}\n", width = LINE - 1).as_bytes())
                .expect("never fails");
        };
        write(0);
        // From here on the thread is stuck in its first batch, and takes no other.
        begun.recv_timeout(Duration::from_secs(60)).expect("the thread writes");
        (1..=FIT + 100).for_each(write);
        assert_eq!(lines.lost(), 100);
        drop(closed);
        lines.flush();
        let expected: Vec<String> = (0..=FIT).map(|number| number.to_string()).collect();
        assert!(text(&written).split_whitespace().eq(expected), "the lines that found room, in their order");
    }

    #[test]
    fn lines_are_written_in_batches_without_loss() {
        let (lines, _, _, written) = gated();
        let begun = Instant::now();
        let mut number = 0;
        while begun.elapsed() < 3 * PERIOD {
            (&lines).write_all(format!("{number}\n").as_bytes()).expect("never fails");
            number += 1;
            // Fewer than wait at most.
            thread::sleep(Duration::from_millis(1));
        }
        lines.flush();
        let (periods, writes) =
            (begun.elapsed().as_millis() / PERIOD.as_millis(), written.lock().len() as u128);
        assert!(writes <= periods + 2, "{writes} writes in {periods} periods");
        assert!(
            text(&written).lines().eq((0..number).map(|number| number.to_string())),
            "all, in their order"
        );
    }

    #[test]
    fn flush_waits_for_waiting_lines_and_not_for_a_stuck_output() {
        let (lines, gate, _begun, written) = gated();
        (&lines).write_all(b"last words\n").expect("never fails");
        lines.flush();
        assert_eq!(text(&written), "last words\n");
        let _closed = gate.lock();
        (&lines).write_all(b"not read\n").expect("never fails");
        let begun = Instant::now();
        lines.flush();
        assert!(begun.elapsed() >= LAST_PATIENCE, "it returned before its time");
    }

    #[test]
    fn failed_writes_count_as_lost() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::to(Closed).expect("a thread");
        (&lines).write_all(b"one\n").expect("never fails");
        (&lines).write_all(b"two\n").expect("never fails");
        lines.flush();
        assert_eq!(lines.lost(), 2);
    }
}
