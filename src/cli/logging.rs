//! The log: one line per event on standard error, JSON except on a terminal. Granary's own modules have the
//! configured level, which may change while the program runs. Libraries log warnings at most: at lower levels
//! some of them print header values and bodies, and the key with them.

mod json;
mod lines;
mod panics;

use std::io::{self, IsTerminal};

use anyhow::Context;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, reload};

use self::json::JsonLines;
use self::lines::Lines;
use crate::config::{LogConfig, LogFormat, LogLevel};

pub fn start(config: &LogConfig) -> anyhow::Result<(impl Fn(LogLevel) + Send + Sync + 'static, Flushed)> {
    let is_terminal = io::stderr().is_terminal();
    let lines = Lines::to(io::stderr()).context("cannot start the thread that writes the log")?;
    let (subscriber, set_level) = subscriber(config, is_terminal, lines.clone());
    subscriber.try_init().context("the log has been started already")?;
    panics::report();
    Ok((set_level, Flushed(lines)))
}

/// Waits on drop until earlier lines are written.
pub struct Flushed(Lines);

impl Flushed {
    pub fn lost(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let lines = self.0.clone();
        move || lines.lost()
    }
}

impl Drop for Flushed {
    fn drop(&mut self) {
        self.0.flush();
    }
}

/// Returns the log to `writer`, and the function that changes its level.
pub fn subscriber<W>(
    config: &LogConfig,
    is_terminal: bool,
    writer: W,
) -> (impl Subscriber + Send + Sync, impl Fn(LogLevel) + Send + Sync + 'static)
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
        lines.event_format(JsonLines).boxed()
    };
    let (filter, handle) = reload::Layer::new(filter(config.level));
    // Fails only when the log has ended.
    let set_level = move |level| drop(handle.reload(self::filter(level)));
    (tracing_subscriber::registry().with(lines.with_filter(filter)), set_level)
}

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
