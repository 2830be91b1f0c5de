//! Verbs as a person meets them: arguments in; text and an exit code out.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use granary_kit::ailab::FakeAilab;
use granary_kit::s3::S3Server;
use tempfile::TempDir;
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::base::key::CacheKey;
use crate::config::{LogConfig, LogFormat, LogLevel};
use crate::teams::Token;

struct Outcome {
    code: u8,
    stdout: String,
    stderr: String,
}

fn granary_in(directory: &Path, arguments: &[&str], stdin: &[u8]) -> Outcome {
    let (mut stdin, mut stdout, mut stderr) = (stdin, Vec::new(), Vec::new());
    let mut console = Console { stdin: &mut stdin, stdout: &mut stdout, stderr: &mut stderr };
    let arguments = ["granary"].iter().chain(arguments).map(OsString::from);
    let code = run(arguments, &Environment::of(directory, []), &mut console);
    let text = |bytes| String::from_utf8(bytes).expect("what we print is text");
    Outcome { code, stdout: text(stdout), stderr: text(stderr) }
}

fn granary(arguments: &[&str]) -> Outcome {
    granary_in(Path::new("/nowhere"), arguments, b"")
}

#[test]
fn wrong_usage_is_exit_2_and_says_what_is_wrong() {
    for (arguments, expected) in [
        (&["sreve"][..], "unrecognized subcommand 'sreve'"),
        (&["key", "x.jpg", "400"], "<HEIGHT>"),
        (&["key", "x.jpg", "0", "400"], "0 is not in 1..=65535"),
        (&["key", "x.jpg", "400", "65536"], "65536 is not in 1..=65535"),
        (&["token"], "Usage: granary token"),
        (&["token", "new", "Web"], "write 1 to 64 of a-z"),
        (&["token", "new", "local"], "reserved"),
        (
            &["token", "new", "web", "--expires", "soon"],
            "write a date such as 2027-01-31, or a time from now",
        ),
        (&["token", "new", "web", "--expires", "2020-01-01"], "not in the future"),
        (&["--config"], "a value is required"),
    ] {
        let Outcome { code, stdout, stderr } = granary(arguments);
        assert_eq!((code, stdout.as_str()), (2, ""), "{arguments:?}");
        assert!(stderr.contains(expected), "{arguments:?} {stderr}");
    }
}

#[test]
fn help_names_every_verb() {
    let Outcome { code, stdout, stderr } = granary(&["--help"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    for verb in ["serve", "check", "config", "key", "token", "purge", "settle", "freeze", "thaw", "--config"]
    {
        assert!(stdout.contains(verb), "{verb}\n{stdout}");
    }
    assert!(granary(&["--version"]).stdout.starts_with("granary 0."));
}

#[test]
fn a_key_is_the_documented_hash() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("x.jpg");
    let picture = vec![7; 200_000];
    fs::write(&file, &picture).unwrap();
    let expected = format!("{}\n", CacheKey::of(&picture, 640, 427));
    let of_file = granary(&["key", file.to_str().unwrap(), "640", "427"]);
    let of_stdin = granary_in(directory.path(), &["key", "-", "640", "427"], &picture);
    for Outcome { code, stdout, stderr } in [of_file, of_stdin] {
        assert_eq!((code, stdout, stderr.as_str()), (0, expected.clone(), ""));
    }
    // Computed by another implementation; see the pinned keys.
    let pinned = granary_in(directory.path(), &["key", "-", "400", "400"], b"granary").stdout;
    assert_eq!(pinned, "285c6995d1f2fcabf8cdba6f34f90395d2c57522dc2ae3569480e85ec6112023\n");
}

#[test]
fn a_key_of_nothing_is_a_failure_at_work() {
    for (arguments, expected) in [
        (
            &["key", "/nowhere/x.jpg", "4", "4"][..],
            "granary: cannot read the picture /nowhere/x.jpg: No such file",
        ),
        (
            &["key", "-", "4", "4"],
            "granary: cannot read the picture from standard input: it is empty; name a file",
        ),
        (&["key", "/", "4", "4"], "granary: cannot read the picture /: Is a directory"),
    ] {
        let Outcome { code, stdout, stderr } = granary(arguments);
        assert_eq!((code, stdout.as_str()), (1, ""), "{arguments:?}");
        assert!(stderr.starts_with(expected) && stderr.lines().count() == 1, "{stderr}");
    }
}

#[test]
fn a_new_token_works_with_the_line_that_is_printed() {
    for expires in [&[][..], &["--expires", "2h"]] {
        let arguments = [&["token", "new", "web"], expires].concat();
        let Outcome { code, stdout, stderr } = granary(&arguments);
        assert_eq!(code, 0);
        let token = stdout.strip_suffix('\n').unwrap();
        assert!(stderr.contains("the only time") && !stderr.contains(token), "{stderr}");

        let (_, snippet) = stderr.split_once("\n\n").unwrap();
        let config = Config::parse(snippet, &Environment::default()).unwrap().config;
        let kept: &Token = &config.teams[0].tokens[0];
        assert_eq!(kept.hash, blake3::hash(token.as_bytes()));
        assert_eq!(kept.expires.is_some(), !expires.is_empty());
        let mut headers = http::HeaderMap::new();
        headers.insert("ailabapi-api-key", token.parse().unwrap());
        let now = jiff::Timestamp::now();
        assert_eq!(config.to_teams().authenticate(&headers, now).unwrap().name, "web");
        let later = now + jiff::SignedDuration::from_hours(3);
        assert_eq!(config.to_teams().authenticate(&headers, later).is_err(), !expires.is_empty());
    }
}

#[test]
fn check_and_config_say_what_is_effective() {
    let directory = TempDir::new().unwrap();
    let Outcome { code, stdout, stderr } = granary_in(directory.path(), &["check"], b"");
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(stdout, "the configuration is valid (no file, only defaults and variables)\n");

    let file = directory.path().join("granary.toml");
    fs::write(&file, "[server]\nlisten = \"127.0.0.1:4567\"\n[[team]]\nname = \"web\"").unwrap();
    let Outcome { code, stdout, stderr } = granary_in(directory.path(), &["check"], b"");
    assert_eq!((code, stdout), (0, format!("the configuration is valid ({})\n", file.display())));
    assert_eq!(stderr, "warning: team.web has no tokens, so nobody can call as that team\n");

    let Outcome { code, stdout, .. } = granary_in(directory.path(), &["config"], b"");
    assert_eq!(code, 0);
    assert!(stdout.contains("listen = \"127.0.0.1:4567\""), "{stdout}");
}

#[test]
fn check_live_tries_the_folder_and_the_ledger_of_the_embedded_mode() {
    let directory = TempDir::new().unwrap();
    let folder = directory.path().display();
    let config = format!("[store]\npath = \"{folder}/store\"\n[state]\npath = \"{folder}/state\"\n");
    fs::write(directory.path().join("granary.toml"), config).unwrap();
    let Outcome { code, stdout, stderr } = granary_in(directory.path(), &["check", "--live"], b"");
    assert_eq!((code, stderr.as_str()), (0, ""));
    let lines: Vec<&str> = stdout.lines().skip(1).collect();
    assert!(lines[0].starts_with("store: the folder ") && lines[1].starts_with("ledger: "), "{stdout}");
    assert!(
        lines[1].ends_with("has 0 calls") && lines[2].starts_with("archive: ") && lines.len() == 3,
        "{stdout}"
    );

    // Beside a running one.
    let _running = crate::base::state::StateDir::open(&directory.path().join("state")).unwrap();
    let Outcome { code, stdout, .. } = granary_in(directory.path(), &["check", "--live"], b"");
    assert!(code == 0 && stdout.contains("in use by a running granary, and was left alone"), "{stdout}");
}

#[test]
fn check_live_spend_buys_one_crop_and_shows_the_answer_without_its_address() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let upstream = runtime.block_on(FakeAilab::start());
    let directory = TempDir::new().unwrap();
    let folder = directory.path().display();
    let config = format!(
        "[budget]\nmonthly_credits = 1000\n[upstream]\nkind = \"ailab\"\nbase_url = \"{}\"\napi_key = \"{}\"\nresult_hosts = [\"{}\"]\n\
         [store]\npath = \"{folder}/store\"\n[state]\npath = \"{folder}/state\"\n",
        upstream.base_url(),
        upstream.api_key(),
        upstream.result_host(),
    );
    let file = directory.path().join("granary.toml");
    fs::write(&file, config).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let check = |arguments: &[&str]| granary_in(directory.path(), arguments, b"");
    assert_eq!(check(&["check", "--spend"]).code, 2, "only with --live");
    assert_eq!(check(&["check", "--live"]).code, 0);
    assert_eq!(upstream.attempts(), 0);

    // The second time as well, although its result is stored by then.
    for charges in 1..=2 {
        let Outcome { code, stdout, stderr } = check(&["check", "--live", "--spend"]);
        assert_eq!((code, stderr.as_str()), (0, ""));
        assert_eq!((upstream.charges(), upstream.attempts()), (charges, charges));
        let balance =
            format!("the account had {} and has {}", 1_000_003 - 3 * charges, 1_000_000 - 3 * charges);
        let host = format!("\"url\":\"{}/…\"", upstream.result_host());
        for words in ["costs 3 credits", &balance, &host, "with status 200", "320 x 320 pixels, results/"] {
            assert!(stdout.contains(words), "{words}\n{stdout}");
        }
        let purchase = &upstream.purchases()[charges as usize - 1];
        assert!(!stdout.contains(&purchase.signature) && !stdout.contains(&upstream.api_key()), "{stdout}");
    }
    let spent = check(&["check", "--live"]).stdout;
    assert!(spent.contains("has 2 calls"), "both are booked: {spent}");

    // What a run that was broken off left open does not keep the next one waiting for ever.
    let ledger = rusqlite::Connection::open(directory.path().join("state/ledger.sqlite")).unwrap();
    ledger.execute_batch("UPDATE calls SET state = 'sent', ended_at = NULL WHERE id = 2").unwrap();
    drop(ledger);
    let Outcome { code, stderr, .. } = check(&["check", "--live", "--spend"]);
    assert!(code == 1 && stderr.contains("is not bought again before"), "{stderr}");
    let ledger = rusqlite::Connection::open(directory.path().join("state/ledger.sqlite")).unwrap();
    ledger.execute_batch("UPDATE calls SET state = 'lost' WHERE state = 'unknown'").unwrap();
    drop(ledger);

    upstream.on_next(granary_kit::ailab::Behaviour::refuse(422, "ERROR_LOW_RESOLUTION"));
    let Outcome { code, stderr, .. } = check(&["check", "--live", "--spend"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("with status 422") && stderr.contains("ERROR_LOW_RESOLUTION"), "{stderr}");
    assert_eq!(upstream.charges(), 2);
    // Not beside a running one, whose ledger it could not book in.
    let _running = crate::base::state::StateDir::open(&directory.path().join("state")).unwrap();
    let Outcome { code, stderr, .. } = check(&["check", "--live", "--spend"]);
    assert!(code == 1 && stderr.contains("nothing was bought"), "{stderr}");
    assert_eq!(upstream.attempts(), 3);
}

#[test]
fn check_live_says_of_each_part_what_does_not_work() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (bucket, upstream) = runtime.block_on(async { (S3Server::start().await, FakeAilab::start().await) });
    let directory = TempDir::new().unwrap();
    let folder = directory.path().display();
    bucket.write_credentials(&directory.path().join("credentials")).unwrap();
    let write = |key: &str| {
        let config = format!(
            "[budget]\nmonthly_credits = 1000\n[upstream]\nkind = \"ailab\"\nbase_url = \"{}\"\napi_key = \"{key}\"\n[state]\npath = \"{folder}/state\"\n\
             [store]\nkind = \"s3\"\nbucket = \"{}\"\nendpoint = \"{}\"\ncredentials_file = \"{folder}/credentials\"\n",
            upstream.base_url(),
            bucket.bucket(),
            bucket.endpoint(),
        );
        let file = directory.path().join("granary.toml");
        fs::write(&file, config).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    };
    write(&upstream.api_key());
    let Outcome { code, stdout, stderr } = granary_in(directory.path(), &["check", "--live"], b"");
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("store: the bucket granary-test keeps what is written"), "{stdout}");
    assert!(stdout.contains("upstream: ") && stdout.contains("; 1000000 credits are left\n"), "{stdout}");
    assert_eq!((upstream.charges(), upstream.attempts()), (0, 0));

    bucket.ignore_conditions(true, false);
    write("another");
    let Outcome { code, stdout, stderr } = granary_in(directory.path(), &["check", "--live"], b"");
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!((code, lines.len()), (1, 2), "{stderr}");
    assert!(
        lines[0].starts_with("granary: store: ") && lines[0].contains("ignores If-None-Match"),
        "{stderr}"
    );
    assert!(lines[1].starts_with("granary: upstream: ") && lines[1].contains("refused the key"), "{stderr}");
    assert!(stdout.contains("ledger: "), "{stdout}");
}

#[test]
fn a_bad_configuration_is_exit_3_with_a_line_per_problem() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("bad.toml");
    fs::write(&file, "[server]\nlisten = \"x\"\nport = 80\n").unwrap();
    for verb in ["check", "config", "serve"] {
        for arguments in
            [["--config", file.to_str().unwrap(), verb], [verb, "--config", file.to_str().unwrap()]]
        {
            let Outcome { code, stdout, stderr } = granary(&arguments);
            assert_eq!((code, stdout.as_str()), (3, ""), "{verb}");
            let lines: Vec<&str> = stderr.lines().collect();
            assert_eq!(lines.len(), 2, "{stderr}");
            assert!(
                lines[0].starts_with("server.listen: ") && lines[1].starts_with("server.port: "),
                "{stderr}"
            );
        }
    }
    let missing = granary(&["check", "--config", "/nowhere.toml"]);
    assert_eq!(missing.code, 3);
    assert!(missing.stderr.starts_with("/nowhere.toml: cannot be read"), "{}", missing.stderr);
}

struct Broken;

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_output_that_is_gone_is_a_failure_and_no_panic() {
    for arguments in
        [&["config"][..], &["check"], &["key", "-", "1", "1"], &["token", "new", "web"], &["--help"]]
    {
        let mut console = Console { stdin: &mut &b"x"[..], stdout: &mut Broken, stderr: &mut Broken };
        let arguments = ["granary"].iter().chain(arguments).map(OsString::from);
        assert_eq!(run(arguments, &Environment::of(Path::new("/nowhere"), []), &mut console), 1);
    }
}

/// What a log writes to.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Lines {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

fn logged(level: LogLevel, format: LogFormat, is_terminal: bool) -> String {
    let lines = Lines::default();
    let config = LogConfig { level, format };
    let (subscriber, _control) = logging::subscriber(&config, is_terminal, lines.clone());
    tracing::subscriber::with_default(subscriber, || {
        tracing::info_span!(target: "granary::routes", "request", team = "web").in_scope(|| {
            tracing::trace!(target: "granary::gateway", "ours at trace");
            tracing::info!(target: "granary::gateway", status = 200, "answered");
            tracing::error!(target: "granary", "ours at error");
            tracing::info!(target: "hyper::proto", "theirs at info");
            tracing::warn!(target: "rustls", "theirs at warn");
        });
    });
    let bytes = lines.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn the_log_is_json() {
    for log in [logged(LogLevel::Info, LogFormat::Json, true), logged(LogLevel::Info, LogFormat::Auto, false)]
    {
        let first: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
        assert_eq!(first["message"], "answered");
        assert_eq!(first["level"], "INFO");
        assert_eq!(first["status"], 200);
        assert!(log.lines().all(|line| line.starts_with('{')), "{log}");
    }
}

#[test]
fn the_level_of_the_log_can_be_changed_while_it_is_written() {
    let lines = Lines::default();
    let config = LogConfig { level: LogLevel::Info, format: LogFormat::Text };
    let (subscriber, control) = logging::subscriber(&config, false, lines.clone());
    let say = |number: u8| {
        tracing::error!(target: "granary::gateway", number, "error");
        tracing::info!(target: "granary::gateway", number, "info");
        tracing::debug!(target: "granary::gateway", number, "debug");
        tracing::info!(target: "hyper::proto", number, "theirs");
    };
    tracing::subscriber::with_default(subscriber, || {
        say(1);
        control(LogLevel::Debug);
        say(2);
        control(LogLevel::Error);
        say(3);
        control(LogLevel::Info);
        say(4);
    });
    let log = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let said: Vec<String> = log
        .lines()
        .map(|line| {
            line.rsplit_once("gateway: ").unwrap_or_else(|| panic!("{line}")).1.replace(" number=", "")
        })
        .collect();
    assert_eq!(said, ["error1", "info1", "error2", "info2", "debug2", "error3", "error4", "info4"]);
}

#[test]
fn the_log_is_text_for_people() {
    let log = logged(LogLevel::Info, LogFormat::Auto, true);
    assert!(log.contains("answered") && !log.starts_with('{'), "{log}");
    let log = logged(LogLevel::Info, LogFormat::Text, false);
    assert!(log.contains("request{team=\"web\"}") && !log.contains('\u{1b}'), "{log}");
}

#[test]
fn libraries_never_say_more_than_warnings() {
    let check = |level, expected: &[&str]| {
        let log = logged(level, LogFormat::Text, false);
        let said = ["ours at trace", "answered", "ours at error", "theirs at info", "theirs at warn"];
        let said: Vec<&str> = said.into_iter().filter(|words| log.contains(words)).collect();
        assert_eq!(said, expected, "{level:?}");
    };
    check(LogLevel::Trace, &["ours at trace", "answered", "ours at error", "theirs at warn"]);
    check(LogLevel::Info, &["answered", "ours at error", "theirs at warn"]);
    check(LogLevel::Warn, &["ours at error", "theirs at warn"]);
    check(LogLevel::Error, &["ours at error"]);
}

#[test]
fn each_verb_and_each_argument_has_help_of_its_own() {
    use clap::CommandFactory;
    let shared = "Where the running Granary is; every verb of this kind takes it";
    let mut verbs: Vec<clap::Command> = Arguments::command().get_subcommands().cloned().collect();
    while let Some(verb) = verbs.pop() {
        let about = verb.get_about().unwrap_or_else(|| panic!("{} has no help", verb.get_name())).to_string();
        assert_ne!(about, shared, "{}", verb.get_name());
        for argument in verb.get_arguments().filter(|argument| !argument.is_hide_set()) {
            assert!(argument.get_help().is_some(), "{} {}", verb.get_name(), argument.get_id());
        }
        verbs.extend(verb.get_subcommands().cloned());
    }
}
