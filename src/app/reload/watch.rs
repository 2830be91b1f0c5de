//! When the configuration is read again: when its file has changed, or on a signal. A file that cannot be
//! used changes nothing and is logged once. That may depend on another file, such as the key's, so both are
//! read at each poll.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Reloader, SetLevel};
use crate::app::file_watch::FileWatch;
use crate::config::{Config, ConfigFile, Environment, Loaded, Problems};
use crate::http::server::ReloadSignal;
use crate::metrics::ReloadedFile;

pub struct Watch {
    file: PathBuf,
    files: FileWatch<Version, Problems>,
    is_first: bool,
    warned: BTreeSet<String>,
    reloader: Arc<Reloader>,
    set_level: Arc<SetLevel>,
}

#[derive(Clone, PartialEq)]
struct Version {
    file: blake3::Hash,
    loaded: Loaded,
}

impl Watch {
    /// `None` when `loaded` came from no file.
    pub fn new(
        loaded: &Loaded,
        environment: Environment,
        reloader: Arc<Reloader>,
        set_level: SetLevel,
    ) -> Option<Self> {
        let file = loaded.file.clone()?;
        let path = file.clone();
        let files = FileWatch::new(move || {
            // Opening a pipe would wait for a writer.
            if std::fs::metadata(&path).is_ok_and(|metadata| !metadata.is_file()) {
                return Err(Problems::one(path.display(), "is not a file, so it cannot be read again"));
            }
            let file = ConfigFile::read(path.clone())?;
            Ok(Version { file: file.fingerprint(), loaded: Config::parse_file(&file, &environment)? })
        });
        let warned = loaded.warnings.iter().cloned().collect();
        Some(Self { file, files, is_first: true, warned, reloader, set_level: Arc::new(set_level) })
    }

    /// Follows the file; a hang-up reads it at once.
    pub async fn run(mut self, mut hang_ups: ReloadSignal) {
        loop {
            tokio::select! {
                () = hang_ups.next() => {
                    if let Some(read) = self.files.now().await {
                        self.is_first = false;
                        self.take(read, "signal").await;
                    }
                }
                (read, _) = self.files.next() => self.take(read, "change").await,
            }
        }
    }

    #[cfg(test)]
    pub(super) async fn poll(&mut self) {
        if let Some(read) = self.files.poll().await {
            self.take(read, "change").await;
        }
    }

    async fn take(&mut self, read: Result<Version, Problems>, cause: &str) {
        let (reloader, set_level) = (self.reloader.clone(), self.set_level.clone());
        let taking = tokio::task::spawn_blocking(move || {
            let loaded = read?.loaded;
            Ok((reloader.take(&loaded.config, &set_level)?, loaded.warnings))
        });
        let outcome: Result<_, Problems> = match taking.await {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::error!(%error, "configuration reload failed; this is a bug in Granary");
                return;
            }
        };
        // The first read is of the file that the program started with, unless it has changed since.
        let is_known = self.is_first && outcome.as_ref().is_ok_and(|(changed, _)| changed.is_empty());
        self.is_first = false;
        if is_known {
            return;
        }
        self.reloader.metrics.reloaded(ReloadedFile::Configuration, outcome.is_ok());
        let file = self.file.display();
        match outcome {
            Ok((changed, warnings)) => {
                for warning in warnings {
                    if !self.warned.contains(&warning) {
                        tracing::warn!("{warning}");
                        self.warned.insert(warning);
                    }
                }
                let changed = changed.join(", ");
                tracing::info!(%file, cause, changed, "the configuration was read again and is in force");
            }
            Err(problems) => {
                let problems = problems.to_string().replace('\n', "; ");
                tracing::error!(%file, cause, problems, "the configuration was not taken over: everything stays as it was");
            }
        }
    }
}
