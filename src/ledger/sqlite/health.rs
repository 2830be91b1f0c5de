//! Whether the file is sound: nothing is reserved in one that is not, or is not known to be.
//!
//! A file may be damaged where nobody looks before the end of a purchase, which then could not be
//! booked. So all of it is read once after the start (`quick_check`), beside everything else and by a
//! connection of its own; hits do not wait for it. Whoever meets damage later says so here.

use std::time::Instant;

use rusqlite::Connection;
use tokio::sync::watch;

use crate::ledger::LedgerError;

/// What is known of the file.
#[derive(Clone, Debug)]
enum Verdict {
    /// It is still being read.
    Unknown,
    Sound,
    Damaged(String),
}

/// Shared by those who meet the file and those who ask. Damage is for ever: a person has to mend it.
#[derive(Clone)]
pub(super) struct Health(watch::Sender<Verdict>);

impl Health {
    /// Begins to read the file through `connection`, on a thread of its own.
    pub(super) fn check(connection: Connection) -> Self {
        let health = Self(watch::Sender::new(Verdict::Unknown));
        let checked = health.clone();
        std::thread::Builder::new()
            .name("ledger-check".to_owned())
            .spawn(move || checked.read(&connection))
            .expect("a thread can be started when the program starts");
        health
    }

    fn read(&self, connection: &Connection) {
        let begun = Instant::now();
        let found = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
        match found {
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
            Err(error) => self.is_damaged(&error.to_string()),
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

    /// Waits until the file has been read.
    ///
    /// # Errors
    /// [`LedgerError::Damaged`]: nothing may be bought.
    pub(super) async fn is_sound(&self) -> Result<(), LedgerError> {
        let mut verdict = self.0.subscribe();
        let known = verdict.wait_for(|verdict| !matches!(verdict, Verdict::Unknown)).await;
        match known.as_deref() {
            Ok(Verdict::Sound) => Ok(()),
            Ok(Verdict::Damaged(what)) => Err(LedgerError::Damaged(what.clone())),
            Ok(Verdict::Unknown) | Err(_) => {
                Err(LedgerError::Unavailable("the ledger's file was not checked".to_owned()))
            }
        }
    }
}
