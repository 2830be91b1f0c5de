//! Real reverse proxies in front of an origin: nginx, HAProxy, Apache httpd and Varnish.
//!
//! The programs are those of Debian, unpacked below `target/proxies` by `make test-all` and never installed. Each runs
//! in the foreground with a configuration and a folder of its own, on a loopback address that no other program uses,
//! and is stopped when it is dropped. As root, only Apache's workers change to another user; Varnish and nginx are
//! told not to.

mod configuration;

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use uuid::Uuid;

use crate::bound::Bound;

/// How long a start or a stop may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program, and how it is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// nginx with a bare `proxy_pass`: HTTP/1.0 to the origin, a connection for each request.
    Nginx,
    /// nginx with the usual lines for WebSockets, which pass `Upgrade` on.
    NginxUpgrade,
    /// HAProxy, which streams requests and passes `Upgrade` on.
    Haproxy,
    /// Apache httpd with `mod_proxy_http`.
    Apache,
    /// Varnish.
    Varnish,
}

/// A running proxy, or nginx as an origin.
#[derive(Debug)]
pub struct ReverseProxy {
    server: Bound,
    address: SocketAddr,
    folder: TempDir,
}

impl ReverseProxy {
    /// Starts a proxy in front of an origin, `http://host:port`.
    ///
    /// # Panics
    ///
    /// If it is not unpacked or does not start, with its log.
    pub fn start(kind: Kind, origin: &str) -> Self {
        let origin = origin.trim_start_matches("http://");
        match kind {
            Kind::Nginx => Self::nginx(&configuration::nginx(origin)),
            Kind::NginxUpgrade => Self::nginx(&configuration::nginx_upgrade(origin)),
            Kind::Haproxy => Self::launch(|folder, address| {
                let file = write(folder, "haproxy.cfg", &configuration::haproxy(address, origin));
                run("haproxy", &["-db".into(), "-f".into(), file])
            }),
            Kind::Apache => Self::launch(|folder, address| {
                let modules = root().join("usr/lib/apache2/modules");
                let file = write(folder, "apache.conf", &configuration::apache(address, origin, &modules));
                run("apache2", &["-DFOREGROUND".into(), "-d".into(), folder.into(), "-f".into(), file])
            }),
            Kind::Varnish => Self::launch(|folder, address| {
                let file = write(folder, "default.vcl", &configuration::varnish(origin));
                let mut arguments: Vec<OsString> = vec!["-f".into(), file];
                arguments.extend(["-n".into(), folder.join("work").into_os_string()]);
                arguments.extend(["-a".into(), address.to_string().into()]);
                arguments.extend(configuration::VARNISH_ARGUMENTS.map(OsString::from));
                run("varnishd", &arguments)
            }),
        }
    }

    /// Starts nginx with this `server { … }` block, in which `LISTEN` is replaced by its address.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub fn nginx(server: &str) -> Self {
        Self::launch(|folder, address| {
            let server = server.replace("LISTEN", &address.to_string());
            let file = write(folder, "nginx.conf", &configuration::nginx_around(&server, folder));
            run("nginx", &["-p".into(), folder.into(), "-e".into(), "stderr".into(), "-c".into(), file])
        })
    }

    /// Starts nginx as an origin that answers 401 to every request, before it reads the body.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub fn unauthorized_origin() -> Self {
        Self::nginx(configuration::UNAUTHORIZED_ORIGIN)
    }

    /// Starts nginx as an origin that answers 413 to bodies over `limit` bytes: at once when the length is declared.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    pub fn too_large_origin(limit: usize) -> Self {
        Self::nginx(&configuration::TOO_LARGE_ORIGIN.replace("LIMIT", &limit.to_string()))
    }

    /// `http://host:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The last 30 lines that it wrote to its outputs.
    pub fn log(&self) -> String {
        log(self.folder.path())
    }

    fn launch(command: impl FnOnce(&Path, SocketAddr) -> Command) -> Self {
        let folder = tempfile::Builder::new().prefix("kit-proxy").tempdir().unwrap();
        let address = own_address();
        let mut command = command(folder.path(), address);
        let log = File::create(folder.path().join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.current_dir(folder.path());
        let mut proxy = Self { server: Bound::spawn(command), address, folder };
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = proxy.server.child.try_wait().unwrap();
            assert!(ended.is_none(), "the proxy ended: {ended:?}: {}", proxy.log());
            assert!(begun.elapsed() < PATIENCE, "the proxy does not listen: {}", proxy.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        proxy
    }
}

impl Drop for ReverseProxy {
    fn drop(&mut self) {
        // The parent ends its workers. SIGKILL would leave those of nginx behind.
        let child = &mut self.server.child;
        let _ = kill_process(Pid::from_child(child), Signal::TERM);
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE && matches!(child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().ok();
        child.wait().ok();
    }
}

/// A loopback address that no other program uses, with a free port.
fn own_address() -> SocketAddr {
    let [a, b, c, ..] = Uuid::new_v4().into_bytes();
    TcpListener::bind((format!("127.{}.{b}.{}", a % 254 + 1, c % 254 + 1), 0)).unwrap().local_addr().unwrap()
}

/// Where `make test-all` unpacks the packages.
fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/proxies");
    root.canonicalize().expect("target/proxies is missing: run `make test-all`")
}

/// A program of those packages, with their libraries, that ends with its [`Bound`].
fn run(program: &str, arguments: &[OsString]) -> Command {
    let root = root();
    let path = root.join("usr/sbin").join(program);
    assert!(path.exists(), "{program} is missing in target/proxies: run `make test-all`");
    let libraries: Vec<_> =
        fs::read_dir(root.join("usr/lib")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(path).args(arguments);
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.env("LD_LIBRARY_PATH", std::env::join_paths(libraries).unwrap());
    command
}

fn write(folder: &Path, name: &str, text: &str) -> OsString {
    let file = folder.join(name);
    fs::write(&file, text).unwrap();
    file.into_os_string()
}

fn log(folder: &Path) -> String {
    let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
