//! A PostgreSQL server of one's own: real, empty, and gone with the test.
//!
//! The binaries are those of the Debian package `postgresql`, which are not on the `PATH`. The server refuses to run as
//! root, so root runs it as the user `postgres`. A fresh cluster takes most of a second to make; one is kept in the
//! target directory and copied. The server dies with the thread that started it, also when the test is killed.

mod pooler;

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getuid, kill_process};
use tempfile::TempDir;

pub use self::pooler::Pooler;
use crate::bound::{Bound, free_port};

/// How long a start or a stop may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// The owner of everything, who may do everything.
const USER: &str = "granary";
/// What is asked of whoever comes over TCP.
pub const PASSWORD: &str = "Zuckerhut-4711-Postgres-Kennwort";

/// A server, until it is dropped.
#[derive(Debug)]
pub struct Postgres {
    folder: TempDir,
    port: u16,
    settings: Vec<String>,
    server: Mutex<Option<Bound>>,
}

impl Postgres {
    /// Starts one on a free port.
    ///
    /// # Panics
    ///
    /// When it cannot be started, with what it said.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Likewise, with settings such as `synchronous_commit=off`.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub fn start_with(settings: &[&str]) -> Self {
        Self::begin(settings, &[])
    }

    /// A server that shows this certificate, in PEM, to whoever asks for TLS.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub fn start_with_tls(certificate: &str, key: &str) -> Self {
        let settings = ["ssl=on", "ssl_cert_file=../server.crt", "ssl_key_file=../server.key"];
        Self::begin(&settings, &[("server.crt", certificate), ("server.key", key)])
    }

    fn begin(settings: &[&str], files: &[(&str, &str)]) -> Self {
        let folder = own_folder();
        copy(&template(), &folder.path().join("data"));
        for (name, text) in files {
            let file = folder.path().join(name);
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
            own(&file);
        }
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        for _ in 0..20 {
            let port = free_port();
            if let Some(server) = launch(folder.path(), port, &settings) {
                return Self { folder, port, settings, server: Mutex::new(Some(server)) };
            }
        }
        panic!("PostgreSQL did not start: {}", log(folder.path()));
    }

    /// A pooler before it, which gives each transaction one of so many connections.
    ///
    /// # Panics
    ///
    /// When it cannot be started, with what it said.
    pub fn pooler(&self, connections: u32) -> Pooler {
        Pooler::start(self.folder.path(), self.port, connections)
    }

    /// Where it listens on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of a database over TCP, with user and password.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// The URL of a database over the Unix socket, where nobody is asked for a password.
    pub fn socket_url(&self, database: &str) -> String {
        let folder = self.folder.path().display().to_string().replace('/', "%2F");
        format!("postgres://{USER}@{folder}:{}/{database}", self.port)
    }

    /// Makes an empty database.
    pub fn create_database(&self, name: &str) {
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
    }

    /// What a person would see who asks with `psql`: rows as lines, columns between bars.
    ///
    /// # Panics
    ///
    /// When the statement fails.
    pub fn sql(&self, database: &str, statement: &str) -> String {
        let said = Command::new(binary("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement])
            .arg(self.socket_url(database))
            .env_remove("PGOPTIONS")
            .output()
            .unwrap();
        assert!(said.status.success(), "{statement}: {}", String::from_utf8_lossy(&said.stderr));
        String::from_utf8(said.stdout).unwrap().trim_end().to_owned()
    }

    /// Ends it as a crash does: nothing is finished, nothing is written out.
    pub fn kill(&self) {
        if let Some(server) = self.server.lock().unwrap().take() {
            end(server);
        }
    }

    /// Starts it again after [`kill`](Self::kill), on the same port and with the same data.
    ///
    /// # Panics
    ///
    /// When it does not come back.
    pub fn restart(&self) {
        self.kill();
        let server = launch(self.folder.path(), self.port, &self.settings);
        let server = server.unwrap_or_else(|| panic!("did not come back: {}", log(self.folder.path())));
        *self.server.lock().unwrap() = Some(server);
    }

    /// Stops it and everything it runs in their tracks: it takes connections and answers nothing.
    pub fn freeze(&self) {
        self.signal_all(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal_all(Signal::CONT);
    }

    /// What it logged.
    pub fn log(&self) -> String {
        log(self.folder.path())
    }

    /// Where its files are.
    pub fn data_folder(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn signal_all(&self, signal: Signal) {
        let server = self.server.lock().unwrap();
        let Some(server) = server.as_ref() else { return };
        let parent = server.child.id();
        // The parent first: it would start new ones.
        for pid in std::iter::once(parent).chain(children(parent)) {
            let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            // One of them may have ended by itself.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.thaw();
        self.kill();
    }
}

/// Immediate shutdown: every process of the server ends at once, and its shared memory goes.
fn end(mut server: Bound) {
    let pid = Pid::from_child(&server.child);
    kill_process(pid, Signal::QUIT).unwrap();
    let begun = Instant::now();
    while server.child.try_wait().unwrap().is_none() {
        if begun.elapsed() > PATIENCE {
            let _ = server.child.kill();
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// `None` when it ended instead of getting ready, as when somebody took the port.
fn launch(folder: &Path, port: u16, settings: &[String]) -> Option<Bound> {
    let data = folder.join("data");
    let mut command = as_user(&binary("postgres"));
    command.arg("-D").arg(&data).arg("-k").arg(folder).arg("-p").arg(port.to_string());
    for setting in [
        "listen_addresses=127.0.0.1",
        // A machine that loses power is not what these tests are about.
        "fsync=off",
        "shared_buffers=16MB",
        "max_connections=200",
        "log_min_messages=warning",
    ] {
        command.arg("-c").arg(setting);
    }
    for setting in settings {
        command.arg("-c").arg(setting);
    }
    let log = File::options().create(true).append(true).open(folder.join("log")).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.current_dir(folder);
    let mut server = Bound::spawn(command);
    let begun = Instant::now();
    loop {
        if server.child.try_wait().unwrap().is_some() {
            return None;
        }
        if is_ready(&data, server.child.id()) {
            return Some(server);
        }
        assert!(begun.elapsed() < PATIENCE, "PostgreSQL is not ready: {}", self::log(folder));
        thread::sleep(Duration::from_millis(5));
    }
}

/// The server says so in its file, as `pg_ctl` reads it; an older one's file has another number.
fn is_ready(data: &Path, pid: u32) -> bool {
    let file = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let mut lines = file.lines();
    lines.next() == Some(&pid.to_string()) && lines.nth(6).is_some_and(|line| line.trim() == "ready")
}

fn log(folder: &Path) -> String {
    fs::read_to_string(folder.join("log")).unwrap_or_default()
}

fn children(parent: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name may hold blanks and brackets; the state and the parent come after it.
        let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        if after.split_whitespace().nth(1) == Some(&parent.to_string()) {
            found.push(pid);
        }
    }
    found
}

/// The newest version that is installed.
fn binary(name: &str) -> PathBuf {
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let versions = installed.filter_map(|entry| {
        let version: u32 = entry.file_name().to_str()?.parse().ok()?;
        let file = entry.path().join("bin").join(name);
        file.is_file().then_some((version, file))
    });
    let (_, file) = versions.max().unwrap_or_else(|| {
        panic!("PostgreSQL's {name} is missing: install the package postgresql, as `make test` does")
    });
    file
}

/// Whom root runs the server as.
fn account() -> Option<(u32, u32)> {
    if !getuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let mut fields = line.expect("the package postgresql makes the user postgres").split(':').skip(2);
    let mut number = || fields.next().unwrap().parse().unwrap();
    Some((number(), number()))
}

/// A folder that the server can write.
fn own_folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("kit-pg").tempdir().unwrap();
    own(folder.path());
    folder
}

fn own(path: &Path) {
    if let Some((user, group)) = account() {
        chown(path, Some(user), Some(group)).unwrap();
    }
}

/// A program as a user that it accepts, which ends when we do.
fn as_user(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    if let Some((user, group)) = account() {
        command.arg(format!("--reuid={user}")).arg(format!("--regid={group}")).arg("--clear-groups");
    }
    command.args(["--pdeathsig", "QUIT", "--"]).arg(program);
    command.env_clear().env("LC_ALL", "C").env("TZ", "UTC");
    command
}

/// A fresh cluster, made once for this target directory.
fn template() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let target = program.ancestors().find(|folder| folder.file_name().is_some_and(|name| name == "target"));
    let cache = target.map_or_else(std::env::temp_dir, |target| target.join("tmp"));
    fs::create_dir_all(&cache).unwrap();
    let version = binary("postgres").display().to_string().replace('/', "-");
    let kept = cache.join(format!("kit-cluster{version}"));
    let lock = File::create(kept.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    if !kept.exists() {
        let folder = own_folder();
        let mut password = tempfile::NamedTempFile::new_in(folder.path()).unwrap();
        writeln!(password, "{PASSWORD}").unwrap();
        own(password.path());
        let made = as_user(&binary("initdb"))
            .arg("-D")
            .arg(folder.path().join("data"))
            .arg(format!("--pwfile={}", password.path().display()))
            .args(["-U", USER, "--auth-local=trust", "--auth-host=scram-sha-256"])
            .args(["--no-sync", "--encoding=UTF8", "--locale=C", "--wal-segsize=1"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let unfinished = kept.with_extension("new");
        let _ = fs::remove_dir_all(&unfinished);
        copy(&folder.path().join("data"), &unfinished);
        fs::rename(&unfinished, &kept).unwrap();
    }
    kept
}

/// With owners and permissions.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success(), "{} was not copied", from.display());
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn it_keeps_what_was_committed_over_a_crash_and_serves_again() {
        let server = Postgres::start();
        server.create_database("one");
        server.sql("one", "CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)");
        server.kill();
        server.restart();
        assert_eq!(server.sql("one", "SELECT n FROM kept"), "7");
    }

    #[test]
    fn it_answers_nothing_while_it_is_frozen_and_is_gone_when_it_is_dropped() {
        let server = Postgres::start();
        server.freeze();
        let (told, answer) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| told.send(server.sql("postgres", "SELECT 1")));
            assert!(answer.recv_timeout(Duration::from_millis(300)).is_err());
            server.thaw();
            assert_eq!(answer.recv_timeout(PATIENCE).unwrap(), "1");
        });
        let port = server.port();
        drop(server);
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    }
}
