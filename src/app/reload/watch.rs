//! When the configuration is read again: when its file's content has changed, or on a signal.
//!
//! The file is polled by its name and compared by its content, so that links that are swapped
//! (Kubernetes), files that are replaced (editors) and files that are written over are all noticed, and
//! a mere change of its time is not. A change counts only when it is still there a moment later: half a
//! file that is being written may look like a whole one. A file that cannot be used changes nothing, is
//! told of once, and is tried again in silence, because what keeps it from being used may be elsewhere,
//! as in the key's file.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::{Reloader, SetLevel};
use crate::config::{Config, ConfigFile, Environment, Loaded, Problems};
use crate::http::server::ReloadSignal;

/// How often the file is read.
const POLL: Duration = Duration::from_secs(2);
/// For how long a change must have been there.
const SETTLE: Duration = Duration::from_millis(250);

/// Reads the configuration of a running program again. See the module.
pub struct Watch {
    file: PathBuf,
    environment: Environment,
    /// What has been warned of.
    warned: BTreeSet<String>,
    inner: Arc<Inner>,
    /// What was read last, and what was wrong with it.
    last: Option<(Content, Option<Problems>)>,
}

/// What there was to read, for comparing.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    File(blake3::Hash),
    Unreadable(Problems),
}

/// Why the file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Poll,
    Signal,
}

impl Cause {
    /// The word in the log.
    fn as_str(self) -> &'static str {
        match self {
            Self::Poll => "change",
            Self::Signal => "signal",
        }
    }
}

impl Watch {
    /// Of the file that `loaded` came from; `None` when there was none.
    pub fn new(
        loaded: &Loaded,
        environment: Environment,
        reloader: Arc<Reloader>,
        set_level: SetLevel,
    ) -> Option<Self> {
        let file = loaded.file.clone()?;
        let warned = loaded.warnings.iter().cloned().collect();
        Some(Self { file, environment, warned, inner: Arc::new(Inner { reloader, set_level }), last: None })
    }

    /// Watches for ever; each hang-up is a signal to read the file at once.
    pub async fn run(mut self, mut hang_ups: ReloadSignal) {
        let mut clock = tokio::time::interval(POLL);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let cause = tokio::select! {
                () = hang_ups.next() => Cause::Signal,
                _ = clock.tick() => Cause::Poll,
            };
            self.look(cause).await;
        }
    }

    /// Looks once.
    #[cfg(test)]
    pub(super) async fn poll(&mut self) {
        self.look(Cause::Poll).await;
    }

    /// Reads the file, and takes it over if there is reason to.
    async fn look(&mut self, cause: Cause) {
        let Some((content, mut read)) = self.read().await else { return };
        let former = self.last.as_ref().filter(|(last, _)| *last == content);
        match (cause, former) {
            (Cause::Signal, _) | (Cause::Poll, Some((_, Some(_)))) => {}
            (Cause::Poll, Some((_, None))) => return,
            (Cause::Poll, None) => {
                tokio::time::sleep(SETTLE).await;
                match self.read().await {
                    Some((again, still)) if again == content => read = still,
                    _ => return,
                }
            }
        }
        let (inner, environment) = (self.inner.clone(), self.environment.clone());
        let taking = tokio::task::spawn_blocking(move || inner.take(&read?, &environment));
        let outcome = match taking.await {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::error!(%error, "the configuration could not be read again; that is a mistake of Granary");
                return;
            }
        };
        if cause == Cause::Signal || self.is_news(&content, &outcome) {
            self.tell(cause, &outcome);
        }
        self.last = Some((content, outcome.err()));
    }

    /// What the file holds now; `None` when there was no thread to read it.
    async fn read(&self) -> Option<(Content, Result<ConfigFile, Problems>)> {
        let file = self.file.clone();
        // A file system may hang; that must not stop anything else.
        let reading = tokio::task::spawn_blocking(move || {
            // Asked first, because opening a pipe would wait for a writer.
            if std::fs::metadata(&file).is_ok_and(|metadata| !metadata.is_file()) {
                return Err(Problems::one(file.display(), "is not a file, so it cannot be read again"));
            }
            ConfigFile::read(file)
        });
        let read = reading.await.ok()?;
        let content = match &read {
            Ok(file) => Content::File(file.fingerprint()),
            Err(problems) => Content::Unreadable(problems.clone()),
        };
        Some((content, read))
    }

    /// Is this something that has not been told?
    fn is_news(&self, content: &Content, outcome: &Result<Taken, Problems>) -> bool {
        match (&self.last, outcome) {
            // The file that the program started with, unless it has changed since.
            (None, Ok(taken)) => !taken.changed.is_empty(),
            (None, Err(_)) => true,
            (Some((_, known)), Err(found)) => known.as_ref() != Some(found),
            (Some((last, known)), Ok(_)) => known.is_some() || last != content,
        }
    }

    /// One count, and one line in the log beside the warnings that are new.
    fn tell(&mut self, cause: Cause, outcome: &Result<Taken, Problems>) {
        let (file, cause) = (self.file.display(), cause.as_str());
        self.inner.reloader.count(outcome.is_ok());
        match outcome {
            Ok(taken) => {
                for warning in &taken.warnings {
                    if self.warned.insert(warning.clone()) {
                        tracing::warn!("{warning}");
                    }
                }
                let changed = taken.changed.join(", ");
                tracing::info!(%file, cause, changed, "the configuration was read again and is in force");
            }
            Err(problems) => {
                let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
                let problems = problems.join("; ");
                tracing::error!(%file, cause, problems, "the configuration was not taken over: everything stays as it was");
            }
        }
    }
}

/// What a blocking thread needs.
struct Inner {
    reloader: Arc<Reloader>,
    set_level: SetLevel,
}

/// What came of a file that was taken over.
struct Taken {
    changed: Vec<String>,
    warnings: Vec<String>,
}

impl Inner {
    fn take(&self, file: &ConfigFile, environment: &Environment) -> Result<Taken, Problems> {
        let loaded = Config::parse_file(file, environment)?;
        let changed = self.reloader.take(&loaded.config, &self.set_level)?;
        Ok(Taken { changed, warnings: loaded.warnings })
    }
}
