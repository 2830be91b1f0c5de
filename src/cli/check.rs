//! `granary check`: is the configuration valid, and with `--live`, does what it names work?

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::Args;

use super::{Console, Failure, block_on};
use crate::app::live;
use crate::config::Loaded;

#[derive(Args)]
pub(super) struct CheckArguments {
    /// Also try the store, the ledger and the upstream; spends no credit by itself
    #[arg(long)]
    live: bool,
    /// With --live: also buy one crop, which costs credits, and show the upstream's answer
    #[arg(long, requires = "live")]
    spend: bool,
    /// With --spend: also write what the answer says about the upstream, as JSON, without secrets or
    /// signed addresses; makes one more call, which is refused and free
    #[arg(long, requires = "spend", value_name = "FILE")]
    report: Option<PathBuf>,
}

pub(super) fn run(
    arguments: &CheckArguments,
    loaded: &Loaded,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    for warning in &loaded.warnings {
        writeln!(console.stderr, "warning: {warning}")?;
    }
    let source = match &loaded.file {
        Some(file) => file.display().to_string(),
        None => "no file, only defaults and variables".to_owned(),
    };
    console.print(format_args!("the configuration is valid ({source})\n"))?;
    if !arguments.live {
        return Ok(());
    }
    // Before anything is bought.
    let report = arguments.report.as_deref().map(|path| {
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
        file.with_context(|| format!("the report {} cannot be written", path.display()))
    });
    let report = report.transpose()?;
    let mut failed = Vec::new();
    for (part, result) in block_on(live::check(&loaded.config, arguments.spend, report))? {
        match result {
            Ok(text) => console.print(format_args!("{part}: {text}\n"))?,
            Err(error) => failed.push(format!("{part}: {error:#}")),
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(anyhow!(failed.join("\ngranary: ")).into()) }
}
