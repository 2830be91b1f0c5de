//! One TOML file and the environment become one [`Config`], or the list of all its problems.
//!
//! Everything has a default; the [`Default`] as a whole is the embedded mode: the built-in engine, files
//! below the working directory, loopback, no account. Doc comments of fields are what `granary config`
//! prints. Only this module reads the process's environment. An unknown setting is refused, never ignored.

mod change;
mod check;
mod print;
mod problems;
mod read;
mod secret_file;
mod server;
mod setting;
mod storage;
mod team;
mod units;
mod upstream;
mod urls;
mod values;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub use change::{Changes, is_live};
pub use problems::{Problem, Problems};
pub use server::{LogConfig, LogFormat, LogLevel, ServerConfig};
pub use storage::{CacheConfig, StateConfig, StoreConfig, StoreKind};
pub use team::{BudgetConfig, TeamConfig};
pub use units::{ByteSize, parse_moment};
pub use upstream::{UpstreamConfig, UpstreamKind};
pub use urls::{BaseUrl, Origin, parse_service_url};

use crate::base::secret::Secret;
use crate::teams::Teams;
use setting::Section;

const DEFAULT_FILE: &str = "granary.toml";
const FILE_VARIABLE: &str = "GRANARY_CONFIG";
/// In bytes.
const LARGEST_FILE: u64 = 4 << 20;

/// Declares [`Config`], a field for each section.
macro_rules! config {
    ($($section:ident: $type:ty,)+) => {
        /// All settings. Its `Debug` shows no secret.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct Config {
            $(pub $section: $type,)+
            pub teams: Vec<TeamConfig>,
        }

        impl Config {
            /// Without the teams.
            fn sections(&mut self) -> Vec<Section<'_>> {
                vec![$(self.$section.section(stringify!($section))),+]
            }

            /// By section, the names of fields that differ; without the teams.
            fn changed(&self, other: &Self) -> Vec<(&'static str, Vec<&'static str>)> {
                vec![$((stringify!($section), self.$section.changed(&other.$section))),+]
            }
        }
    };
}

config! {
    server: ServerConfig,
    upstream: UpstreamConfig,
    store: StoreConfig,
    state: StateConfig,
    cache: CacheConfig,
    budget: BudgetConfig,
    log: LogConfig,
}

/// A valid configuration with its warnings.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    pub config: Config,
    pub warnings: Vec<String>,
    pub file: Option<PathBuf>,
}

impl Config {
    /// Reads the file `named`, or that of the environment, or `granary.toml`; then variables; then checks
    /// all.
    pub fn load(named: Option<&Path>, environment: &Environment) -> Result<Loaded, Problems> {
        let named = named.map(Path::to_owned).or_else(|| environment.get(FILE_VARIABLE).map(PathBuf::from));
        let file = named.or_else(|| {
            let default = environment.directory.join(DEFAULT_FILE);
            // An unreadable file must be reported.
            let is_absent = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
            (!default.symlink_metadata().is_err_and(is_absent)).then_some(default)
        });
        match file {
            Some(file) => Self::parse_file(&ConfigFile::read(file)?, environment),
            None => Self::parse("", environment),
        }
    }

    pub fn parse_file(file: &ConfigFile, environment: &Environment) -> Result<Loaded, Problems> {
        let mut loaded = Self::parse(file.text.expose(), environment)?;
        let config = &loaded.config;
        for (field, is_set, variable) in [
            ("upstream.api_key", config.upstream.api_key.is_some(), KEY_VARIABLE),
            ("state.database_url", config.state.database_url.is_some(), DATABASE_VARIABLE),
        ] {
            if file.is_open && is_set && environment.get(variable).is_none() {
                let (_, name) = field.split_once('.').unwrap_or_default();
                loaded.warnings.push(format!(
                    "{} holds {field} and every user of this machine may read it; use {name}_file, or chmod o= \
                     the file",
                    file.path.display()
                ));
            }
        }
        loaded.file = Some(file.path.clone());
        Ok(loaded)
    }

    pub fn parse(text: &str, environment: &Environment) -> Result<Loaded, Problems> {
        let mut reading = read::ConfigReader::default();
        let file = reading.file(text);
        let is_read = file.is_some();
        let mut config = file.unwrap_or_default();
        reading.variables(&mut config, environment);
        if is_read {
            check::check(&mut config, &mut reading);
        }
        let read::ConfigReader { problems, warnings, .. } = reading;
        if problems.is_empty() { Ok(Loaded { config, warnings, file: None }) } else { Err(problems) }
    }

    pub fn to_teams(&self) -> Teams {
        Teams::new(self.teams.iter().map(|team| (team.team(), team.tokens.clone())))
    }

    /// With every field and its docs, and stars for secrets.
    pub fn to_commented_toml(&self) -> String {
        print::print(self)
    }
}

/// For the upstream's key.
const KEY_VARIABLE: &str = "GRANARY_UPSTREAM_API_KEY";
/// For the address of the ledger's database.
const DATABASE_VARIABLE: &str = "GRANARY_STATE_DATABASE_URL";

/// The process's environment; tests make up their own.
#[derive(Clone, Default)]
pub struct Environment {
    /// Of `granary.toml`.
    directory: PathBuf,
    /// Our variables. Without `Debug`: one of them is a key.
    variables: BTreeMap<String, String>,
    /// Our variables that are not UTF-8.
    unreadable: Vec<String>,
}

impl Environment {
    pub fn of_process() -> Self {
        Self::of_variables(std::env::vars_os())
    }

    fn of_variables(all: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut environment = Self::default();
        for (name, value) in all {
            let Some(name) = name.to_str().filter(|name| name.starts_with("GRANARY_")) else { continue };
            match value.into_string() {
                Ok(value) => drop(environment.variables.insert(name.to_owned(), value)),
                Err(_) => environment.unreadable.push(name.to_owned()),
            }
        }
        environment
    }

    pub fn of<'a>(directory: &Path, variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into()));
        Self { directory: directory.to_owned(), ..Self::of_variables(variables) }
    }

    /// An empty variable counts as not set, because compose files and charts write "nothing" that way.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

pub struct ConfigFile {
    path: PathBuf,
    /// May contain the key.
    text: Secret,
    /// Readable by every user of this machine.
    is_open: bool,
}

impl ConfigFile {
    pub fn read(path: PathBuf) -> Result<Self, Problems> {
        let failed = |why: String| Problems::one(path.display(), why);
        let unreadable =
            |error| failed(format!("cannot be read ({error}); name a readable file with --config"));
        let file = File::open(&path).map_err(unreadable)?;
        let is_open = file.metadata().is_ok_and(|metadata| secret_file::is_open_to_everyone(&metadata));
        let mut bytes = Vec::new();
        file.take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > LARGEST_FILE {
            return Err(failed("is larger than 4 MiB; it cannot be a configuration".to_owned()));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| failed("is not UTF-8; save it in that encoding".to_owned()))?;
        Ok(Self { path, text: Secret::new(text), is_open })
    }

    pub fn fingerprint(&self) -> blake3::Hash {
        blake3::hash(self.text.expose().as_bytes())
    }
}
