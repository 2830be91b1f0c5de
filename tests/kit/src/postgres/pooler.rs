//! A pooler before a PostgreSQL server: pgbouncer in transaction mode, as companies run it.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{PATIENCE, USER, as_user, end, own, own_folder};
use crate::bound::{Bound, free_port};

/// A running pooler, until it is dropped.
#[derive(Debug)]
pub struct Pooler {
    port: u16,
    folder: TempDir,
    server: Option<Bound>,
}

impl Pooler {
    pub(super) fn start(socket: &Path, port: u16, connections: u32) -> Self {
        for _ in 0..20 {
            let folder = own_folder();
            let own_port = free_port();
            let settings = folder.path().join("pgbouncer.ini");
            let text = format!(
                "[databases]\n* = host={} port={port} user={USER}\n\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
                 listen_port = {own_port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\n\
                 default_pool_size = {connections}\nmax_client_conn = 200\n",
                socket.display()
            );
            fs::write(&settings, text).unwrap();
            own(&settings);
            let program = Path::new("/usr/sbin/pgbouncer");
            assert!(program.is_file(), "pgbouncer is missing: install it, as `make test` does");
            let mut command = as_user(program);
            let log = File::create(folder.path().join("log")).unwrap();
            command.arg(&settings).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            let mut pooler = Self { port: own_port, folder, server: Some(Bound::spawn(command)) };
            if pooler.is_there() {
                return pooler;
            }
        }
        panic!("pgbouncer did not start");
    }

    /// The URL of a database behind it.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://anybody@127.0.0.1:{}/{database}", self.port)
    }

    /// Waits until it listens; `false` when it has ended.
    fn is_there(&mut self) -> bool {
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let child = &mut self.server.as_mut().unwrap().child;
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            let said = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(begun.elapsed() < PATIENCE, "pgbouncer does not listen: {said}");
            thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            end(server);
        }
    }
}
