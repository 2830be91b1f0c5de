//! Log lines, written by a thread of their own. When the reader of the log is slow or stuck, a bounded number
//! of lines wait; further ones are lost and counted. So no terminal, pipe or disk delays a request or the
//! ledger.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

/// One or two megabytes: ten thousand requests a second while a disk hangs for a moment.
const MOST_WAITING: usize = 4096;
/// For the last lines at the end of the process.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

enum Message {
    Line(Vec<u8>),
    /// Confirms that all earlier lines are written.
    Flush(SyncSender<()>),
}

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Lines {
    queue: SyncSender<Message>,
    lost: Arc<AtomicU64>,
}

impl Lines {
    /// Starts the thread that writes to `output`.
    pub(super) fn to(output: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, waiting) = sync_channel(MOST_WAITING);
        let lines = Self { queue, lost: Arc::default() };
        let lost = lines.lost.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || write_all(output, &waiting, &lost))?;
        Ok(lines)
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Waits a moment at most.
    pub(super) fn flush(&self) {
        let until = Instant::now() + LAST_PATIENCE;
        let (done, written) = sync_channel(1);
        while let Err(TrySendError::Full(_)) = self.queue.try_send(Message::Flush(done.clone())) {
            if Instant::now() >= until {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = written.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

fn write_all(mut output: impl Write, waiting: &Receiver<Message>, lost: &AtomicU64) {
    for message in waiting {
        match message {
            Message::Line(line) => {
                if output.write_all(&line).is_err() {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
            }
            Message::Flush(done) => {
                // Usually not buffered. The caller may be gone.
                let _ = output.flush();
                let _ = done.try_send(());
            }
        }
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Write for Lines {
    /// Takes a whole line: the subscriber writes each event at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Message::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use super::*;

    /// An output that says when a write has begun, and writes when the gate is open.
    struct Gated {
        gate: Arc<Mutex<()>>,
        begun: SyncSender<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.begun.try_send(());
            let _open = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
            self.written.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type Written = Arc<Mutex<Vec<u8>>>;

    /// Lines to a gated output, its gate, the signal that a write has begun, and what was written.
    fn gated() -> (Lines, Arc<Mutex<()>>, Receiver<()>, Written) {
        let (begun, signal) = sync_channel(1);
        let (gate, written) = (Arc::default(), Arc::default());
        let output = Gated { gate: Arc::clone(&gate), begun, written: Arc::clone(&written) };
        (Lines::to(output).expect("a thread"), gate, signal, written)
    }

    fn text(written: &Mutex<Vec<u8>>) -> String {
        String::from_utf8(written.lock().expect("no test thread panics").clone()).expect("UTF-8")
    }

    #[test]
    fn stuck_output_delays_no_writer_and_lost_lines_are_counted() {
        const LOST: usize = 100;
        let (mut lines, gate, begun, written) = gated();
        let closed = gate.lock().expect("no test thread panics");
        let mut write =
            |number: usize| lines.write_all(format!("{number}\n").as_bytes()).expect("never fails");
        write(0);
        // From here on the thread is stuck in its first line, and takes no other.
        begun.recv_timeout(Duration::from_secs(60)).expect("the thread writes");
        (1..=MOST_WAITING + LOST).for_each(&mut write);
        assert_eq!(lines.lost(), LOST as u64);
        drop(closed);
        lines.flush();
        let expected: String = (0..=MOST_WAITING).map(|number| format!("{number}\n")).collect();
        assert!(text(&written) == expected, "the lines that found room, in their order");
    }

    #[test]
    fn flush_waits_for_waiting_lines_and_not_for_a_stuck_output() {
        let (mut lines, gate, _begun, written) = gated();
        lines.write_all(b"last words\n").expect("never fails");
        lines.flush();
        assert_eq!(text(&written), "last words\n");
        let _closed = gate.lock().expect("no test thread panics");
        lines.write_all(b"not read\n").expect("never fails");
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
        let mut lines = Lines::to(Closed).expect("a thread");
        lines.write_all(b"one\n").expect("never fails");
        lines.write_all(b"two\n").expect("never fails");
        lines.flush();
        assert_eq!(lines.lost(), 2);
    }
}
