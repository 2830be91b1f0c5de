//! Panics as lines of the log, so that its parser meets nothing else and no thread that panics waits.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;

pub(super) fn report() {
    std::panic::set_hook(Box::new(log));
}

/// With a backtrace if `RUST_BACKTRACE` asks for one.
fn log(panic: &PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    let thread = std::thread::current();
    tracing::error!(
        place = panic.location().map(ToString::to_string),
        thread = thread.name(),
        backtrace,
        "a panic, which is a mistake of ours: {}",
        panic.payload_as_str().unwrap_or("without a message")
    );
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::super::subscriber;
    use crate::config::LogConfig;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panics with it").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_panic_is_one_line_of_json_with_its_place() {
        let written = Written::default();
        let writer = written.clone();
        let (subscriber, _level) = subscriber(&LogConfig::default(), false, move || writer.clone());
        let before = std::panic::take_hook();
        super::report();
        tracing::subscriber::with_default(subscriber, || {
            let seven = String::from("seven\nis right out");
            let _ = std::panic::catch_unwind(|| panic!("{seven}"));
        });
        std::panic::set_hook(before);

        let written = String::from_utf8(written.0.lock().expect("nobody panics with it").clone());
        let written = written.expect("a log is text");
        assert_eq!(written.lines().count(), 1, "{written}");
        let line: serde_json::Value = serde_json::from_str(&written).expect("JSON");
        assert_eq!(
            (&line["level"], &line["target"]),
            (&"ERROR".into(), &"granary::cli::logging::panics".into())
        );
        let (message, place) = (line["message"].as_str().expect("a text"), line["place"].as_str());
        assert!(message.ends_with("mistake of ours: seven\nis right out"), "{message}");
        assert!(place.is_some_and(|place| place.contains("panics.rs:")), "{place:?}");
    }
}
