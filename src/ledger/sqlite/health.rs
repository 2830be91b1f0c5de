//! Whether the file is sound: nothing is reserved in one that is not, or is not known to be.
//!
//! A file may be damaged where nobody looks before the end of a purchase, which then could not be
//! booked. So all of it is read once after the start (`quick_check`), beside everything else and by a
//! connection of its own; hits do not wait for it. Whoever meets damage later says so here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::watch;

use crate::ledger::{LedgerError, Soundness};

/// What is known of the file.
#[derive(Clone, Debug)]
enum Verdict {
    /// It is still being read.
    Unknown,
    Sound,
    Damaged(String),
}

/// Whoever wants to buy waits so long for the verdict.
const PATIENCE: Duration = Duration::from_secs(2);
/// The pause before a file that could not be read is read again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Shared by those who meet the file and those who ask. Damage is for ever: a person has to mend it.
#[derive(Clone)]
pub(super) struct Health(Arc<watch::Sender<Verdict>>);

impl Health {
    /// Begins to read the file through `connection`, on a thread of its own.
    pub(super) fn check(connection: Connection) -> Self {
        let read = move || connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
        Self::check_with(read, RETRY_PAUSE)
    }

    /// The same with any way to read it, and any pause before it is read again.
    fn check_with(read: impl Fn() -> rusqlite::Result<String> + Send + 'static, pause: Duration) -> Self {
        let health = Self(Arc::new(watch::Sender::new(Verdict::Unknown)));
        let asked = Arc::downgrade(&health.0);
        let check = move || {
            let begun = Instant::now();
            loop {
                let found = read();
                // Nobody wants to know any more.
                let Some(verdict) = asked.upgrade() else { return };
                if Self(verdict).judge(found, begun) {
                    return;
                }
                std::thread::sleep(pause);
            }
        };
        std::thread::Builder::new()
            .name("ledger-check".to_owned())
            .spawn(check)
            .expect("a thread can be started when the program starts");
        health
    }

    /// Says whether that was a verdict: an error of the disk or a lack of memory is none.
    fn judge(&self, found: rusqlite::Result<String>, begun: Instant) -> bool {
        match found.map_err(LedgerError::from) {
            Ok(found) if found == "ok" => {
                tracing::debug!(took = ?begun.elapsed(), "the ledger's file is sound");
                self.0.send_if_modified(|verdict| {
                    let is_news = matches!(verdict, Verdict::Unknown);
                    if is_news {
                        *verdict = Verdict::Sound;
                    }
                    is_news
                });
            }
            Ok(found) => self.is_damaged(&found),
            Err(LedgerError::Damaged(what)) => self.is_damaged(&what),
            Err(error) => {
                tracing::warn!(%error, "the ledger's file could not be checked, and is checked again");
                return false;
            }
        }
        true
    }

    /// What is known now.
    pub(super) fn soundness(&self) -> Soundness {
        match &*self.0.borrow() {
            Verdict::Unknown => Soundness::Checking,
            Verdict::Sound => Soundness::Sound,
            Verdict::Damaged(_) => Soundness::Damaged,
        }
    }

    /// Somebody met damage.
    fn is_damaged(&self, what: &str) {
        let is_news = self.0.send_if_modified(|verdict| {
            let is_news = !matches!(verdict, Verdict::Damaged(_));
            if is_news {
                *verdict = Verdict::Damaged(what.to_owned());
            }
            is_news
        });
        if is_news {
            tracing::error!(
                alarm = "ledger_damaged",
                what,
                "the ledger's file is damaged: nothing is bought; stop, restore it from a backup, start"
            );
        }
    }

    /// Takes note of what came of a question or a change.
    pub(super) fn learn<T>(&self, result: Result<T, LedgerError>) -> Result<T, LedgerError> {
        if let Err(LedgerError::Damaged(what)) = &result {
            self.is_damaged(what);
        }
        result
    }

    /// Waits until the file has been read, but not for long.
    ///
    /// # Errors
    /// [`LedgerError::Damaged`], or [`LedgerError::Unavailable`] while it is still being read: nothing
    /// may be bought.
    pub(super) async fn is_sound(&self) -> Result<(), LedgerError> {
        if self.soundness() == Soundness::Checking {
            let mut verdict = self.0.subscribe();
            let known = verdict.wait_for(|verdict| !matches!(verdict, Verdict::Unknown));
            // Without a verdict by then, what is known says so.
            let _ = tokio::time::timeout(PATIENCE, known).await;
        }
        match &*self.0.borrow() {
            Verdict::Sound => Ok(()),
            Verdict::Damaged(what) => Err(LedgerError::Damaged(what.clone())),
            Verdict::Unknown => {
                Err(LedgerError::Unavailable("the ledger's file is still being checked".to_owned()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use rusqlite::ffi::{self, SQLITE_BUSY, SQLITE_CORRUPT, SQLITE_IOERR, SQLITE_NOMEM};

    use super::*;

    fn fails(code: i32) -> rusqlite::Result<String> {
        Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None))
    }

    /// A check that finds these things, one after the other, as they are sent.
    fn scripted() -> (mpsc::Sender<rusqlite::Result<String>>, Health) {
        let (found, finds) = mpsc::channel();
        let read = move || finds.recv().unwrap_or_else(|_| fails(SQLITE_CORRUPT));
        (found, Health::check_with(read, Duration::ZERO))
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_for_now_is_not_damaged() {
        let (found, health) = scripted();
        for code in [SQLITE_IOERR, SQLITE_NOMEM, SQLITE_BUSY] {
            found.send(fails(code)).unwrap();
        }
        assert_eq!(health.soundness(), Soundness::Checking);
        let waits = tokio::time::timeout(10 * PATIENCE, health.is_sound()).await;
        let Ok(Err(LedgerError::Unavailable(why))) = waits else { panic!("{waits:?}") };
        assert_eq!(why, "the ledger's file is still being checked");
        found.send(Ok("ok".to_owned())).unwrap();
        health.is_sound().await.unwrap();
        assert_eq!(health.soundness(), Soundness::Sound);
    }

    #[tokio::test]
    async fn damage_is_what_the_check_finds_or_cannot_read_past() {
        for damage in [fails(SQLITE_CORRUPT), Ok("row 7 missing from index".to_owned())] {
            let (found, health) = scripted();
            found.send(damage).unwrap();
            assert!(matches!(health.is_sound().await, Err(LedgerError::Damaged(_))));
            assert_eq!(health.soundness(), Soundness::Damaged);
        }
    }
}
