//! A log line as one JSON object: `timestamp`, `level`, the event's fields in their order, `target`. There are no
//! spans. In the formatter of `tracing-subscriber` a hit of 50 KB spent a tenth of its CPU time.

use std::fmt::{self, Debug, Display};

use jiff::Timestamp;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

pub(super) struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        write!(writer, "{{\"timestamp\":\"{:.6}\",\"level\":\"{}\"", Timestamp::now(), metadata.level())?;
        let mut fields = Fields { writer, result: Ok(()) };
        event.record(&mut fields);
        let Fields { mut writer, result } = fields;
        result?;
        writeln!(writer, ",\"target\":\"{}\"}}", metadata.target())
    }
}

struct Fields<'a> {
    writer: Writer<'a>,
    result: fmt::Result,
}

impl Fields<'_> {
    /// `value` is displayed as JSON.
    fn add(&mut self, field: &Field, value: impl Display) {
        if self.result.is_ok() {
            self.result = write!(self.writer, ",\"{field}\":{value}");
        }
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, Value::from(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, Value::from(format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use serde_json::{Value, json};

    use super::super::subscriber;
    use crate::config::{LogConfig, LogFormat};

    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_kind_of_value_is_read_back_from_its_line() {
        let written: Arc<Mutex<Vec<u8>>> = Arc::default();
        let config = LogConfig { format: LogFormat::Json, ..LogConfig::default() };
        let output = written.clone();
        let (subscriber, _level) = subscriber(&config, false, move || Written(output.clone()));
        let hostile: String = (0..0x300_u32).filter_map(char::from_u32).chain("\u{2028}😀".chars()).collect();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(
                text = hostile,
                shown = %hostile,
                debug = ?["a\"b", "c\\d"],
                small = 1e-7,
                milliseconds = 12.345,
                whole = 3.0,
                large = 1e21,
                none = None::<u64>,
                nan = f64::NAN,
                negative = -7,
                most = u64::MAX,
                yes = true,
                "\"{}\"\n", "quoted"
            );
        });
        let line = String::from_utf8(written.lock().clone()).unwrap();
        assert_eq!(line.lines().count(), 1, "{line}");
        let mut line: Value = serde_json::from_str(&line).unwrap();
        let time = line.as_object_mut().unwrap().remove("timestamp").unwrap();
        let time = time.as_str().unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok() && time.len() == "2026-01-01T00:00:00.000000Z".len());
        let expected = json!({
            "level": "INFO",
            "message": "\"quoted\"\n",
            "text": hostile,
            "shown": hostile,
            "debug": "[\"a\\\"b\", \"c\\\\d\"]",
            "small": 1e-7,
            "milliseconds": 12.345,
            "whole": 3.0,
            "large": 1e21,
            "nan": null,
            "negative": -7,
            "most": u64::MAX,
            "yes": true,
            "target": "granary::cli::logging::json::tests",
        });
        assert_eq!(line, expected);
    }
}
