//! The real program as a child process, in a clean environment and a directory of its own: what it logs, where it listens, how it dies.
//!
//! Nothing of this process's environment reaches the child but `PATH`. It is signalled by its id only while it has not
//! been reaped, so a recycled id can never be hit, and it is killed and waited for when the handle is dropped.

mod output;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use output::{Output, watch_exit};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;

/// How long a start may take until both addresses are known.
const START: Duration = Duration::from_secs(20);

/// How a child is to be started. Clones and later starts share one home directory, so starting again is a restart.
#[derive(Clone, Debug)]
pub struct GranaryBuilder {
    binary: PathBuf,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    config: Option<String>,
    home: Arc<TempDir>,
}

/// A configuration in front of the paid API with a budget that no test uses up, unless it has teams
/// or a budget of its own: without any, the program refuses to start.
pub fn with_budget(config: String) -> String {
    let is_limited = config.contains("[[team]]") || config.contains("[budget]");
    if is_limited || !config.contains("kind = \"ailab\"") {
        return config;
    }
    format!("{config}\n[budget]\nmonthly_credits = 1_000_000_000_000\n")
}

impl GranaryBuilder {
    /// Writes this as `granary.toml` into the home directory at each start and names it in `GRANARY_CONFIG`.
    #[must_use]
    pub fn config_text(mut self, toml: impl Into<String>) -> Self {
        self.config = Some(toml.into());
        self
    }

    /// Sets an environment variable of the child.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Removes an environment variable again, one of the kit's own too.
    #[must_use]
    pub fn without_env(mut self, name: &str) -> Self {
        self.env.remove(name);
        self
    }

    /// Adds command line arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets `GRANARY_STATE_PATH`.
    #[must_use]
    pub fn state_dir(self, path: impl AsRef<Path>) -> Self {
        self.env("GRANARY_STATE_PATH", path.as_ref().to_str().expect("a test path is UTF-8"))
    }

    /// The child's home and working directory; it lives as long as a builder or a process of it does.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Starts the server and waits until it says where it listens.
    ///
    /// # Errors
    ///
    /// What the child wrote and how it ended, if it ended instead, or was silent for 20 seconds.
    pub async fn start(&self) -> Result<GranaryProcess, Finished> {
        let mut process = self.spawn();
        match process.wait_for_log("listening", START).await {
            Some(line) => {
                let address = |name: &str| field(&line, name).and_then(Value::as_str).map(str::to_owned);
                process.public = address("public").expect("`listening` names `public`");
                process.admin = address("admin").unwrap_or_default();
                Ok(process)
            }
            None => {
                process.kill().await;
                Err(process.finished())
            }
        }
    }

    /// Runs the child to its end: for verbs that are not a server, and for starts that must be refused.
    ///
    /// # Panics
    ///
    /// If it has not ended by itself within `patience`, with what it wrote.
    pub async fn run(&self, patience: Duration) -> Finished {
        let mut process = self.spawn();
        if process.wait_exit(patience).await.is_none() {
            process.kill().await;
            panic!("still running after {patience:?}: {:#?}", process.finished());
        }
        process.finished()
    }

    /// Starts the child and waits for nothing.
    ///
    /// # Panics
    ///
    /// If the program cannot be started at all.
    pub fn spawn(&self) -> GranaryProcess {
        let mut command = Command::new(&self.binary);
        command
            .args(&self.args)
            .env_clear()
            .envs(&self.env)
            .env("HOME", self.home())
            .current_dir(self.home());
        command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        if let Some(toml) = &self.config {
            let path = self.home().join("granary.toml");
            std::fs::write(&path, with_budget(toml.clone())).unwrap();
            command.env("GRANARY_CONFIG", path);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{}: {e}", self.binary.display()));
        let stdout = Output::follow(child.stdout.take().expect("piped"));
        let stderr = Output::follow(child.stderr.take().expect("piped"));
        let exit = watch_exit(&child);
        GranaryProcess {
            child,
            exit,
            status: None,
            stdout,
            stderr,
            public: String::new(),
            admin: String::new(),
            _home: Arc::clone(&self.home),
        }
    }
}

/// A child that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How it ended; the exit code is `status.code()`.
    pub status: ExitStatus,
    /// All it wrote on stdout.
    pub stdout: String,
    /// All it wrote on stderr.
    pub stderr: String,
}

/// A running child, or one that has died and has not been dropped yet.
#[derive(Debug)]
pub struct GranaryProcess {
    child: Child,
    exit: watch::Receiver<bool>,
    status: Option<ExitStatus>,
    stdout: Output,
    stderr: Output,
    public: String,
    admin: String,
    _home: Arc<TempDir>,
}

impl GranaryProcess {
    /// A child of this program, which a test knows as `env!("CARGO_BIN_EXE_granary")`, with both listeners on port 0.
    ///
    /// # Panics
    ///
    /// If no temporary directory can be made.
    pub fn builder(binary: impl AsRef<Path>) -> GranaryBuilder {
        let builder = GranaryBuilder {
            binary: binary.as_ref().to_owned(),
            args: Vec::new(),
            env: BTreeMap::new(),
            config: None,
            home: Arc::new(TempDir::new().unwrap()),
        };
        builder.env("GRANARY_SERVER_LISTEN", "127.0.0.1:0").env("GRANARY_SERVER_ADMIN_LISTEN", "127.0.0.1:0")
    }

    /// `http://127.0.0.1:PORT` of the public listener.
    pub fn public_url(&self) -> String {
        format!("http://{}", self.public)
    }

    /// `http://127.0.0.1:PORT` of the admin listener.
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.admin)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills with SIGKILL, waits, and says how it had ended: it may have died by itself before.
    pub async fn kill(&mut self) -> ExitStatus {
        self.signal(Signal::KILL);
        self.wait_exit(START).await.expect("a killed process ends")
    }

    /// Asks it to stop with SIGTERM and returns at once.
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
    }

    /// Sends any signal, such as HUP, STOP or CONT, unless the child is known to have ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.status.is_none() {
            // It may be dead by now, but it has not been reaped, so the id is still its own.
            kill_process(self.rustix_pid(), signal).unwrap();
        }
    }

    /// Waits for the end; `None` if it runs on.
    pub async fn wait_exit(&mut self, patience: Duration) -> Option<ExitStatus> {
        if self.status.is_none() {
            tokio::time::timeout(patience, self.exit.wait_for(|ended| *ended)).await.ok()?.ok()?;
            self.status = Some(self.child.wait().unwrap());
            // The pipes end with the child; what it wrote last must not be missed.
            self.stdout.finish();
            self.stderr.finish();
        }
        self.status
    }

    /// Whether it has ended, known without waiting.
    pub fn has_exited(&self) -> bool {
        *self.exit.borrow()
    }

    /// The signal that ended it, if one did and this handle has seen the end.
    pub fn died_by_signal(&self) -> Option<i32> {
        self.status?.signal()
    }

    /// All it has written on stderr so far.
    pub fn stderr_text(&self) -> String {
        self.stderr.text()
    }

    /// From now on nobody reads what it writes on stderr, as when whoever collects the log hangs: as soon
    /// as the pipe is full, a write to it takes for ever.
    pub fn stop_reading_stderr(&self) {
        self.stderr.pause();
    }

    /// Reads on.
    pub fn read_stderr_again(&self) {
        self.stderr.go_on();
    }

    /// All it has written on stdout so far.
    pub fn stdout_text(&self) -> String {
        self.stdout.text()
    }

    /// Every JSON line on stderr so far.
    pub fn log_lines(&self) -> Vec<Value> {
        self.stderr_text().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a log line with this message, one already written too; `None` if the child ends or `patience` does.
    pub async fn wait_for_log(&self, message: &str, patience: Duration) -> Option<Value> {
        self.wait_for_line(patience, |line| field(line, "message").is_some_and(|m| m == message)).await
    }

    /// Waits for a JSON line on stderr that is `wanted`, one already written too; `None` if the child ends or `patience` does.
    pub async fn wait_for_line(&self, patience: Duration, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        let found = self.stderr.find_line(wanted);
        tokio::time::timeout(patience, found).await.ok().flatten()
    }

    fn finished(&self) -> Finished {
        Finished {
            status: self.status.expect("waited for"),
            stdout: self.stdout_text(),
            stderr: self.stderr_text(),
        }
    }

    fn rustix_pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for GranaryProcess {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

/// A field of a log line, flat or under `fields`.
fn field<'a>(line: &'a Value, name: &str) -> Option<&'a Value> {
    line.get(name).or_else(|| line.get("fields")?.get(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTENING: &str = r#"echo '{"level":"INFO","message":"listening","public":"127.0.0.1:81","admin":"127.0.0.1:91"}' >&2;"#;

    /// A shell in the place of the program. `exec` keeps it one process, so that nothing outlives a kill.
    fn shell(script: &str) -> GranaryBuilder {
        GranaryProcess::builder("/bin/sh").args(["-c", script])
    }

    #[tokio::test]
    async fn a_child_is_followed_from_its_addresses_to_its_death() {
        let builder = shell(&format!("echo noise; echo noise >&2; {LISTENING} exec sleep 600"));
        let mut child = builder.start().await.unwrap();
        assert_eq!(
            (child.public_url().as_str(), child.admin_url().as_str()),
            ("http://127.0.0.1:81", "http://127.0.0.1:91")
        );
        assert!(child.wait_exit(Duration::from_millis(10)).await.is_none());
        assert!(!child.has_exited());
        assert_eq!(child.died_by_signal(), None);
        assert_eq!(child.kill().await.signal(), Some(9));
        assert_eq!(child.died_by_signal(), Some(9));
        assert_eq!(child.stdout_text(), "noise\n");
        assert_eq!(child.log_lines().len(), 1);
        child.terminate();
    }

    #[tokio::test]
    async fn a_child_that_dies_first_says_why() {
        let finished = shell("echo 'no such team' >&2; exit 3").start().await.unwrap_err();
        assert_eq!(finished.status.code(), Some(3));
        assert_eq!(finished.stderr, "no such team\n");
        let finished = shell("echo yes; kill -9 $$").run(START).await;
        assert_eq!((finished.status.signal(), finished.stdout.as_str()), (Some(9), "yes\n"));
    }

    #[tokio::test]
    async fn a_child_can_be_asked_to_stop() {
        let script = format!("trap 'echo bye >&2; exit 0' TERM; {LISTENING} while :; do sleep 0.02; done");
        let mut child = shell(&script).start().await.unwrap();
        child.terminate();
        assert_eq!(child.wait_exit(START).await.unwrap().code(), Some(0));
        assert!(child.stderr_text().ends_with("bye\n"));
        // What was said is still there after the end; what was not is known at once.
        assert!(child.wait_for_log("listening", START).await.is_some());
        assert!(child.wait_for_log("never said", START).await.is_none());
    }

    #[tokio::test]
    async fn nothing_of_our_environment_reaches_the_child() {
        let builder =
            shell("env; cat \"$GRANARY_CONFIG\"").env("ONE", "1").config_text("a = 1\n").state_dir("/s");
        let text = builder.run(START).await.stdout;
        let mut names: Vec<_> = text.lines().filter_map(|l| l.split_once('=')).map(|(n, _)| n).collect();
        names.retain(|n| !["PWD", "SHLVL", "_", "OLDPWD"].contains(n));
        names.sort_unstable();
        let own =
            ["GRANARY_CONFIG", "GRANARY_SERVER_ADMIN_LISTEN", "GRANARY_SERVER_LISTEN", "GRANARY_STATE_PATH"];
        assert_eq!(names, [&own[..], &["HOME", "ONE", "PATH", "a "]].concat());
        assert!(text.contains(&format!("HOME={}", builder.home().display())));
    }

    #[tokio::test]
    async fn a_dropped_child_is_dead_and_reaped() {
        let child = shell(&format!("{LISTENING} exec sleep 600")).start().await.unwrap();
        let pid = Pid::from_child(&child.child);
        assert!(rustix::process::test_kill_process(pid).is_ok());
        drop(child);
        assert_eq!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH));
    }

    #[tokio::test]
    async fn a_full_pipe_does_not_stop_the_child() {
        let finished = shell("head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2").run(START).await;
        assert_eq!((finished.stdout.len(), finished.stderr.len()), (1_000_000, 1_000_000));
    }
}
