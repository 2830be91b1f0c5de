//! The command line. Results go to standard output, everything else to standard error. Exit codes: 0, 1 when
//! something failed at work, 2 for wrong usage, 3 for a configuration that is not valid.

mod admin;
mod check;
mod key;
pub(crate) mod logging;
mod operator;
mod token;
mod usage;
mod welcome;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::app::App;
use crate::config::{Config, Environment, Loaded, Problems};

/// A caching reverse proxy in front of the paid AILabTools image cropping API.
#[derive(Parser)]
#[command(name = "granary", version, about)]
struct Arguments {
    /// The configuration file; else the one GRANARY_CONFIG names, else granary.toml if it is here
    #[arg(long, global = true, value_name = "PATH")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve until told to stop; what happens without a verb
    Serve,
    /// Check the configuration and print every problem, one per line
    Check(check::CheckArguments),
    /// Print the effective configuration with the meaning of every field, secrets as stars
    Config,
    /// Print the key of a picture at a size: what GET …/image-cropping/KEY looks up
    Key(key::KeyArguments),
    /// Say that this ledger and this store belong together, after the archive guard stopped buying
    Adopt,
    /// Say who paid, who was served and what that saved, as a running Granary tells
    Usage(usage::UsageArguments),
    /// Make what is stored under a key count as absent; its URLs go on serving
    Purge(operator::PurgeArguments),
    /// Say what became of a call whose outcome nobody knows
    Settle(operator::SettleArguments),
    /// Stop spending at once; hits go on
    Freeze(operator::SpendingArguments),
    /// Resume spending
    Thaw(operator::SpendingArguments),
    /// Tokens, with which teams call
    #[command(subcommand)]
    Token(token::TokenVerb),
}

/// Tests pass buffers.
pub struct Console<'a> {
    pub stdin: &'a mut dyn Read,
    pub stdout: &'a mut dyn Write,
    pub stderr: &'a mut dyn Write,
}

impl Console<'_> {
    fn print(&mut self, text: impl Display) -> Result<(), Failure> {
        let printed = write!(self.stdout, "{text}").and_then(|()| self.stdout.flush());
        Ok(printed.context("cannot write to standard output")?)
    }
}

enum Failure {
    Work(anyhow::Error),
    Configuration(Problems),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Work(error.into())
    }
}

pub fn main() -> ExitCode {
    crate::base::secret::forbid_dumps();
    // A huge page makes 2 MiB resident for the first byte of any of its small allocations.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let (mut stdin, mut stdout, mut stderr) = (io::stdin(), io::stdout(), io::stderr());
    let mut console = Console { stdin: &mut stdin, stdout: &mut stdout, stderr: &mut stderr };
    ExitCode::from(run(std::env::args_os(), &Environment::of_process(), &mut console))
}

/// `arguments` begin with the program's name. Returns the exit code.
pub fn run(
    arguments: impl IntoIterator<Item = OsString>,
    environment: &Environment,
    console: &mut Console<'_>,
) -> u8 {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version were asked for.
            let out = if error.use_stderr() { &mut *console.stderr } else { &mut *console.stdout };
            let printed = write!(out, "{}", error.render());
            return if error.use_stderr() { 2 } else { u8::from(printed.is_err()) };
        }
    };
    let done = perform(arguments, environment, console);
    let (code, message) = match done {
        Ok(()) => return 0,
        Err(Failure::Work(error)) => (1, format!("granary: {error:#}")),
        Err(Failure::Configuration(problems)) => (3, problems.to_string()),
    };
    // If standard error is closed too, only the exit code is left.
    let _ = writeln!(console.stderr, "{message}");
    code
}

fn perform(
    arguments: Arguments,
    environment: &Environment,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let Arguments { config, verb } = arguments;
    let load = || Config::load(config.as_deref(), environment).map_err(Failure::Configuration);
    let text = match verb.unwrap_or(Verb::Serve) {
        Verb::Serve => return serve(load()?, environment, console),
        Verb::Check(arguments) => return check::run(&arguments, &load()?, console),
        Verb::Token(verb) => return token::run(verb, console),
        Verb::Config => load()?.config.to_commented_toml(),
        Verb::Adopt => operator::adopt(&load()?.config, environment)?,
        Verb::Key(arguments) => key::run(&arguments, console.stdin)?,
        Verb::Purge(arguments) => operator::purge(&arguments, environment)?,
        Verb::Settle(arguments) => operator::settle(&arguments, environment)?,
        Verb::Freeze(arguments) => operator::set_spending("freeze", &arguments, environment)?,
        Verb::Thaw(arguments) => operator::set_spending("thaw", &arguments, environment)?,
        Verb::Usage(arguments) => usage::run(&arguments, environment)?,
    };
    console.print(text)
}

fn block_on<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.context("cannot start what is needed to connect")?.block_on(work))
}

fn serve(loaded: Loaded, environment: &Environment, console: &mut Console<'_>) -> Result<(), Failure> {
    let (set_level, flushed) = logging::start(&loaded.config.log)?;
    if let Some(file) = &loaded.file {
        tracing::info!(file = %file.display(), "configuration read");
    }
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the threads that serve; allow this process more threads")?;
    let is_trial = welcome::is_trial(&loaded.config);
    let lost = flushed.lost();
    let welcome = |app: &App| {
        app.count_dropped_lines(lost);
        if is_trial {
            // Serving does not depend on standard output.
            let _ = welcome::write(app.public_addr, Path::new(welcome::SAMPLE), console.stdout);
        }
    };
    runtime.block_on(crate::app::serve(loaded, environment.clone(), Box::new(set_level), welcome))?;
    Ok(())
}
