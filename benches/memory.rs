//! What clients can make Granary's memory grow to: the real binary, and what the kernel counts.
//!
//! | measured | how |
//! |---|---|
//! | idle | resident memory after one hit |
//! | held uploads | 200 pictures of 3.5 MB, all but their last bytes sent, with 64 MiB for uploads |
//! | stalled uploads | 1,000 forms that declare 3.6 MB and have sent 400 bytes |
//! | heads | 9,000 heads of 16 KB without their end, and what is left after 5 s of hits |
//! | slow readers | 300 that asked for a result of 12 MB and read nothing; kernel memory is that of all TCP sockets |
//!
//! Resident memory is `VmRSS` and `VmHWM` of `/proc`, so this runs on Linux only.

#![allow(clippy::print_stdout, reason = "a report is what it is for")]
#![allow(clippy::unwrap_used, reason = "a panic is the report of what cannot be measured")]

use std::time::Duration;

use granary::base::picture::ObjectName;
use granary_kit::client::Call;
use granary_kit::form::Form;
use granary_kit::images;
use granary_kit::process::{GranaryBuilder, GranaryProcess};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

const MIB: u64 = 1 << 20;

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        // `cargo test --all-targets` starts benchmarks too.
        println!("start this with: cargo bench");
        return;
    }
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        println!("\nMemory over idle, MiB\n");
        println!("| | connections | idle | resident, at most | kernel | resident, 5 s after |");
        println!("|---|---|---|---|---|---|");
        held_uploads().await;
        stalled_uploads().await;
        heads().await;
        slow_readers().await;
    });
}

fn granary(server: &str) -> GranaryBuilder {
    let patient =
        "body_timeout = \"10m\"\nhead_timeout = \"1m\"\nmin_upload_rate = \"0\"\nanswer_within = \"10m\"";
    GranaryProcess::builder(env!("CARGO_BIN_EXE_granary"))
        .config_text(format!("[server]\n{patient}\n{server}\n"))
}

/// A process that has answered one hit, and what it takes then.
struct Subject {
    process: GranaryProcess,
    idle: u64,
    kernel: u64,
}

impl Subject {
    async fn start(builder: GranaryBuilder) -> Self {
        Self::with_crop_of(images::photo_jpeg(), builder).await
    }

    /// Whose crop of this picture is a hit from here on.
    async fn with_crop_of(picture: &[u8], builder: GranaryBuilder) -> Self {
        let process = builder.start().await.unwrap_or_else(|ended| panic!("{ended:#?}"));
        let url = process.public_url();
        for _ in 0..2 {
            let call = Call::crop(&url, None, &Form::curl(picture, 60, 60));
            assert_eq!(call.send().await.unwrap().status, 200);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        std::fs::write(format!("/proc/{}/clear_refs", process.pid()), "5").unwrap();
        let idle = status(&process, "VmRSS");
        Self { process, idle, kernel: sockets() }
    }

    async fn connect(&self) -> TcpStream {
        let address = self.process.public_url().strip_prefix("http://").unwrap().parse().unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        // What waits is to wait in Granary's buffers.
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(address).await.unwrap()
    }

    /// Prints a line, closing the connections in the middle of it.
    async fn report(self, name: &str, connections: Vec<TcpStream>) {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let over = |bytes: u64| bytes.saturating_sub(self.idle) / MIB;
        let peak = over(status(&self.process, "VmHWM"));
        let kernel = sockets().saturating_sub(self.kernel) / MIB;
        let count = connections.len();
        drop(connections);
        // The allocator gives back while it is used.
        let url = self.process.public_url();
        for _ in 0..50 {
            let call = Call::crop(&url, None, &Form::curl(images::photo_jpeg(), 60, 60));
            assert_eq!(call.send().await.unwrap().status, 200);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let after = over(status(&self.process, "VmRSS"));
        println!("| {name} | {count} | {} | {peak} | {kernel} | {after} |", self.idle / MIB);
    }
}

async fn held_uploads() {
    let picture = images::padded(images::photo_jpeg(), 3_500_000);
    let subject = Subject::with_crop_of(&picture, granary("upload_memory = \"64MiB\"")).await;
    let bytes = Call::crop(&subject.process.public_url(), None, &Form::curl(&picture, 60, 60)).to_bytes();
    let mut connections = Vec::new();
    for _ in 0..200 {
        let mut connection = subject.connect().await;
        connection.write_all(&bytes[..bytes.len() - 8]).await.unwrap();
        connections.push(connection);
    }
    let mut answered = Vec::new();
    for mut connection in connections {
        connection.write_all(&bytes[bytes.len() - 8..]).await.unwrap();
        let mut start = [0; 12];
        connection.read_exact(&mut start).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 200");
        answered.push(connection);
    }
    subject.report("held uploads of 3.5 MB, 64 MiB for uploads", answered).await;
}

async fn stalled_uploads() {
    let subject = Subject::start(granary("")).await;
    let call = Call::crop(&subject.process.public_url(), None, &Form::curl(vec![7; 3_600_000], 40, 40));
    let bytes = call.to_bytes();
    let mut connections = Vec::new();
    for _ in 0..1000 {
        let mut connection = subject.connect().await;
        connection.write_all(&bytes[..bytes.len() - call.body_len() + 400]).await.unwrap();
        connections.push(connection);
    }
    subject.report("stalled uploads of 400 bytes", connections).await;
}

async fn heads() {
    let subject = Subject::start(granary("")).await;
    let head = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: {}", "x".repeat(16_000));
    let mut connections = Vec::new();
    for _ in 0..9000 {
        let mut connection = subject.connect().await;
        connection.write_all(head.as_bytes()).await.unwrap();
        connections.push(connection);
    }
    subject.report("heads of 16 KB without an end", connections).await;
}

async fn slow_readers() {
    let builder = granary("");
    let subject = Subject::start(builder.clone()).await;
    let bytes = images::padded(&images::tiny_png(16, 16, 1), 12_000_000);
    let path = ObjectName::of(&bytes).unwrap().path();
    std::fs::write(builder.home().join("granary-data/store").join(&path), &bytes).unwrap();
    let mut connections = Vec::new();
    for _ in 0..300 {
        let mut connection = subject.connect().await;
        let request = format!("GET /{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        connections.push(connection);
    }
    subject.report("slow readers of a result of 12 MB", connections).await;
}

/// A field of `/proc/PID/status`, in bytes.
fn status(process: &GranaryProcess, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Kernel memory of all TCP sockets of the machine, in bytes; the kernel counts pages of 4 KiB.
fn sockets() -> u64 {
    let text = std::fs::read_to_string("/proc/net/sockstat").unwrap();
    let line = text.lines().find(|line| line.starts_with("TCP:")).unwrap();
    line.split_whitespace().last().unwrap().parse::<u64>().unwrap() * 4096
}
