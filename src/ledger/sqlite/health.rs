//! Whether the file is sound. It is read whole after each start (`quick_check`), over its own connection. Nothing waits
//! for that, but from the first damage on, found there or by any statement, nothing is reserved.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rusqlite::Connection;

use crate::ledger::{LedgerError, Soundness};

const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Clones share the verdict. Damage stays until an operator restores the file.
#[derive(Clone)]
pub(super) struct Health(Arc<Mutex<Soundness>>);

impl Health {
    pub(super) fn check(connection: Connection) -> Self {
        let read = move || connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
        Self::check_with(read, RETRY_PAUSE)
    }

    fn check_with(read: impl Fn() -> rusqlite::Result<String> + Send + 'static, pause: Duration) -> Self {
        let health = Self(Arc::new(Mutex::new(Soundness::Checking)));
        let asked = Arc::downgrade(&health.0);
        let check = move || {
            let begun = Instant::now();
            loop {
                let found = read();
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

    /// Returns true for a verdict: a disk error or a lack of memory is none.
    fn judge(&self, found: rusqlite::Result<String>, begun: Instant) -> bool {
        match found.map_err(LedgerError::from) {
            Ok(found) if found == "ok" => {
                tracing::debug!(took = ?begun.elapsed(), "the ledger's file is sound");
                let mut verdict = self.0.lock();
                if *verdict == Soundness::Checking {
                    *verdict = Soundness::Sound;
                }
            }
            Ok(what) | Err(LedgerError::Damaged(what)) => self.is_damaged(&what),
            Err(error) => {
                tracing::warn!(%error, "the ledger's file could not be checked, and is checked again");
                return false;
            }
        }
        true
    }

    pub(super) fn soundness(&self) -> Soundness {
        self.0.lock().clone()
    }

    fn is_damaged(&self, what: &str) {
        let before = std::mem::replace(&mut *self.0.lock(), Soundness::Damaged(what.to_owned()));
        if !matches!(before, Soundness::Damaged(_)) {
            tracing::error!(
                alarm = "ledger_damaged",
                what,
                "the ledger's file is damaged: nothing is bought; stop, restore it from a backup, start"
            );
        }
    }

    pub(super) fn learn<T>(&self, result: Result<T, LedgerError>) -> Result<T, LedgerError> {
        if let Err(LedgerError::Damaged(what)) = &result {
            self.is_damaged(what);
        }
        result
    }

    /// [`LedgerError::Damaged`] from the first damage that is found.
    pub(super) fn is_whole(&self) -> Result<(), LedgerError> {
        match self.soundness() {
            Soundness::Damaged(what) => Err(LedgerError::Damaged(what)),
            Soundness::Sound | Soundness::Checking => Ok(()),
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

    /// The verdict that follows [`Soundness::Checking`].
    fn verdict(health: &Health) -> Soundness {
        loop {
            match health.soundness() {
                Soundness::Checking => std::thread::yield_now(),
                verdict => return verdict,
            }
        }
    }

    #[test]
    fn file_that_is_still_read_or_cannot_be_read_for_now_is_not_damaged() {
        let (found, health) = scripted();
        for code in [SQLITE_IOERR, SQLITE_NOMEM, SQLITE_BUSY] {
            found.send(fails(code)).unwrap();
        }
        assert_eq!(health.soundness(), Soundness::Checking);
        health.is_whole().unwrap();
        found.send(Ok("ok".to_owned())).unwrap();
        assert_eq!(verdict(&health), Soundness::Sound);
        health.is_whole().unwrap();
    }

    #[test]
    fn damage_is_what_the_check_finds_or_cannot_read_past() {
        for damage in [fails(SQLITE_CORRUPT), Ok("row 7 missing from index".to_owned())] {
            let (found, health) = scripted();
            health.is_whole().unwrap();
            found.send(damage).unwrap();
            assert!(matches!(verdict(&health), Soundness::Damaged(_)));
            assert!(matches!(health.is_whole(), Err(LedgerError::Damaged(_))));
        }
    }
}
