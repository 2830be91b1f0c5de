//! One thread that owns one connection: group commit, and an idle-time scrub of the log.

use std::time::Duration;

use rusqlite::Connection;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::base::crash::crash_point;
use crate::ledger::LedgerError;

/// The most queued changes; further ones wait for a place.
const QUEUE: usize = 1024;
/// The pause before a scrub of the log that a reader prevented is tried again.
const SCRUB_PAUSE: Duration = Duration::from_millis(250);
/// How long a connection waits for a lock of another one.
pub(super) const BUSY: Duration = Duration::from_secs(5);
/// The most changes in one commit.
const GROUP: usize = 64;

struct Job {
    /// The change erases a secret.
    erases: bool,
    /// Runs in the group's transaction, or with the error of its begin; the result runs after the commit.
    run: Box<Run>,
}

type Run = dyn FnOnce(Result<&Connection, LedgerError>) -> Completion + Send;

/// Answers the caller, with the commit's error if it failed.
type Completion = Box<dyn FnOnce(Option<&LedgerError>) + Send>;

/// A handle to the thread; the thread ends when the handle is dropped and the queue is empty.
pub(super) struct Worker(mpsc::Sender<Job>);

impl Worker {
    pub(super) fn writer(connection: Connection, log_has_secrets: bool) -> Self {
        Self::start("ledger-write", connection, "BEGIN IMMEDIATE", GROUP, log_has_secrets)
    }

    /// Each read has its own transaction: one that has begun does not see what was acknowledged since.
    pub(super) fn reader(name: &str, connection: Connection) -> Self {
        Self::start(name, connection, "BEGIN", 1, false)
    }

    fn start(
        name: &str,
        connection: Connection,
        begin: &'static str,
        group: usize,
        log_has_secrets: bool,
    ) -> Self {
        let (sender, jobs) = mpsc::channel(QUEUE);
        let clock = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let clock = clock.expect("a clock can be had when the program starts");
        let thread = Thread { connection, begin, group, jobs, log_has_secrets };
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || thread.serve(&clock))
            .expect("a thread can be started when the program starts");
        Self(sender)
    }

    /// Runs `change`; returns after it is durable. The change is made even if the returned future is dropped.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        erases: bool,
        change: impl FnOnce(&Connection) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let (sender, outcome) = oneshot::channel();
        let run = Box::new(move |connection: Result<&Connection, LedgerError>| {
            let result = connection.and_then(|connection| in_savepoint(connection, change));
            let completion: Completion = Box::new(move |failed| {
                // The caller may be gone; the change stands all the same.
                let _ = sender.send(match failed {
                    Some(error) => result.and_then(|_| Err(error.clone())),
                    None => result,
                });
            });
            completion
        });
        let stopped = || LedgerError::Unavailable("the ledger's thread has stopped".to_owned());
        self.0.send(Job { erases, run }).await.map_err(|_| stopped())?;
        outcome.await.map_err(|_| stopped())?
    }
}

fn in_savepoint<T>(
    connection: &Connection,
    change: impl FnOnce(&Connection) -> Result<T, LedgerError>,
) -> Result<T, LedgerError> {
    connection.execute_batch("SAVEPOINT change")?;
    let result = change(connection);
    if result.is_ok() {
        connection.execute_batch("RELEASE change")?;
    } else if !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK TO change; RELEASE change")?;
    }
    result
}

struct Thread {
    connection: Connection,
    begin: &'static str,
    group: usize,
    jobs: mpsc::Receiver<Job>,
    log_has_secrets: bool,
}

impl Thread {
    fn serve(mut self, clock: &Runtime) {
        while let Some(first) = self.next(clock) {
            self.run_group(first);
        }
    }

    fn next(&mut self, clock: &Runtime) -> Option<Job> {
        loop {
            if let Ok(job) = self.jobs.try_recv() {
                return Some(job);
            }
            if self.log_has_secrets {
                crash_point("CP31");
                self.log_has_secrets = !scrub_log(&self.connection);
                crash_point("CP32");
            }
            if !self.log_has_secrets {
                return self.jobs.blocking_recv();
            }
            if let Ok(next) = clock.block_on(async { timeout(SCRUB_PAUSE, self.jobs.recv()).await }) {
                return next;
            }
        }
    }

    fn run_group(&mut self, first: Job) {
        let connection = &self.connection;
        let begun = connection.execute_batch(self.begin).map_err(LedgerError::from);
        self.log_has_secrets |= first.erases;
        let mut completions = vec![(first.run)(begun.clone().map(|()| connection))];
        // A full disk may end the transaction. A further change would be committed alone, yet reported as failed.
        while begun.is_ok()
            && !connection.is_autocommit()
            && completions.len() < self.group
            && let Ok(job) = self.jobs.try_recv()
        {
            self.log_has_secrets |= job.erases;
            completions.push((job.run)(Ok(connection)));
        }
        let ended = begun.and_then(|()| connection.execute_batch("COMMIT").map_err(LedgerError::from));
        if ended.is_err() && !connection.is_autocommit() {
            // A commit that failed may leave the transaction open, and then nothing could follow it.
            let _ = connection.execute_batch("ROLLBACK");
        }
        if let Err(error) = &ended {
            tracing::error!(%error, changes = completions.len(), "the ledger could not be written");
        }
        for completion in completions {
            completion(ended.as_ref().err());
        }
    }
}

/// Moves the log into the file and truncates it. Returns `false` instead of waiting for a reader: changes would wait.
pub(super) fn scrub_log(connection: &Connection) -> bool {
    let scrubbed = connection.busy_timeout(Duration::ZERO).and_then(|()| {
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0))
    });
    let waits_again = connection.busy_timeout(BUSY);
    scrubbed.is_ok_and(|busy| busy == 0) && waits_again.is_ok()
}
