//! The log: one line per event on standard error, JSON unless a person is looking.
//!
//! Granary's own modules are as talkative as configured. The libraries below never say more than
//! warnings: at lower levels some of them print header values and bodies, and the key with them.

use std::io::{self, IsTerminal};

use anyhow::Context;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogConfig, LogFormat, LogLevel};

/// Starts the log of this process.
///
/// # Errors
/// When it has been started before.
pub fn start(config: &LogConfig) -> anyhow::Result<()> {
    let is_terminal = io::stderr().is_terminal();
    subscriber(config, is_terminal, io::stderr).try_init().context("the log has been started already")
}

/// What writes the log to `writer`.
pub fn subscriber<W>(config: &LogConfig, is_terminal: bool, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let is_text = match config.format {
        LogFormat::Auto => is_terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let lines = if is_text {
        if is_terminal { lines.boxed() } else { lines.with_ansi(false).boxed() }
    } else {
        lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    };
    tracing_subscriber::registry().with(lines.with_filter(filter(config.level)))
}

/// Our own targets at `level`, everything else at warnings or less.
fn filter(level: LogLevel) -> Targets {
    let ours = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new().with_default(ours.min(LevelFilter::WARN)).with_target("granary", ours)
}
