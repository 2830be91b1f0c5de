//! `[server]` and `[log]`: the listeners, their limits, and what is said about them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::secret_file::{read_secret_file, read_small_file};
use super::setting::section;
use super::units::ByteSize;
use super::urls::Origin;
use crate::base::secret::Secret;
use crate::base::words::words;
use crate::http::certificate::{Certificate, CertificateError};
use crate::teams::AdminTokens;

/// Bytes: more than any chain or key.
const LONGEST_PEM: u64 = 256 * 1024;

section! {
    /// The two listeners: where they listen, and what a connection may take.
    pub struct ServerConfig {
        /// Address and port for clients. Beyond loopback, teams must be configured.
        pub listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
        /// Address and port for health, metrics and what operators ask and change. Beyond loopback,
        /// admin_token_file must be set.
        pub admin_listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)),
        /// A file with the tokens of operators, one on each line, not readable by every user of this
        /// machine; without one of them, health and metrics are all that the admin listener tells. A
        /// change of the file is noticed within seconds. Left out: whoever is on this machine is let in.
        pub admin_token_file: Option<PathBuf> = None,
        /// Where clients reach this server: the beginning of every permanent URL, without a path,
        /// such as `https://granary.example.com`. Required when listen is not a loopback address,
        /// and else made of that address.
        pub public_url: Option<Origin> = None,
        /// A PEM file with this server's certificate and those between it and a root. With it and
        /// tls_key, clients are spoken to by TLS. A change of either file is noticed within seconds.
        pub tls_cert: Option<PathBuf> = None,
        /// A PEM file with the key of that certificate, not readable by every user of this machine.
        pub tls_key: Option<PathBuf> = None,
        /// Origins whose web pages may call from a browser, such as `["https://app.example.com"]`.
        /// Permanent URLs may be read by any page.
        pub cors_origins: Vec<Origin> = Vec::new(),
        /// Addresses or networks of proxies in front, such as `["10.0.0.0/8"]`. The address that they add to
        /// X-Forwarded-For is the client's; what other clients send in that header is ignored.
        pub trusted_proxies: Vec<IpNet> = Vec::new(),
        /// Connections of clients that are open at the same time, at most. When there are as many,
        /// the longest-idle one of the address that holds most is closed for another; while none is
        /// idle, some more are refused with 503, and the rest is closed. This process may open a
        /// few hundred files more than that.
        pub max_connections: usize = 10_000,
        /// How long a client may take for the head of a request, and a new connection for its
        /// first byte.
        pub head_timeout: Duration = Duration::from_secs(5),
        /// How long a connection may rest between two requests. Longer than a load balancer's, so
        /// that the load balancer is the one that closes.
        pub idle_timeout: Duration = Duration::from_secs(75),
        /// How long a client may take for the body of a request.
        pub body_timeout: Duration = Duration::from_secs(60),
        /// The slowest upload that is borne, in bytes per second, measured after its first five
        /// seconds.
        pub min_upload_rate: ByteSize = ByteSize::kib(8),
        /// The memory that the pictures of all uploads together may take, counted as they arrive and
        /// until they are bought or need not be. An upload that gets no more goes on in a file.
        pub upload_memory: ByteSize = ByteSize::mib(256),
        /// What uploads may take on the disk of state.path in such files, which have no name and end
        /// with the process; 1 GiB stays free there. Uploads beyond that are refused with 503. 0: no
        /// files.
        pub upload_spill: ByteSize = ByteSize::mib(2048),
        /// Bytes that the system may buffer for a connection on their way to the client, and 16 times as
        /// much of an upload; it counts its own overhead, about as much again.
        pub socket_buffer: ByteSize = ByteSize::kib(128),
        /// The memory that results may take while they are being sent, each once however many read
        /// it; the same again for results that were paid for and are being fetched and kept. When
        /// slow clients have all of it, others wait 5 s and are then told 503.
        pub result_memory: ByteSize = ByteSize::mib(256),
        /// How long a client may keep an answer waiting, in all.
        pub write_timeout: Duration = Duration::from_secs(30),
        /// And how much longer, as the time that the answer's bytes take at this rate, in bytes per
        /// second.
        pub min_download_rate: ByteSize = ByteSize::kib(8),
        /// A waiting client is answered so long after the head of its request at the latest, if
        /// only by an error; the crop is still made and kept. Most clients give up after 30 s.
        pub answer_within: Duration = Duration::from_secs(28),
        /// How long everything is still served after the signal to stop, while load balancers
        /// notice that this server is no longer ready.
        pub drain_grace: Duration = Duration::from_secs(5),
    }
}

impl ServerConfig {
    /// `None` when no tokens are configured. Blocks while it reads a small file. Errors quote nothing.
    pub fn admin_tokens(&self) -> Result<Option<AdminTokens>, String> {
        let Some(file) = &self.admin_token_file else { return Ok(None) };
        AdminTokens::parse(&read_secret_file(file, "the tokens", AdminTokens::MAX_BYTES)?).map(Some)
    }

    /// A token for this machine's own verbs. As [`admin_tokens`](Self::admin_tokens).
    pub fn admin_token(&self) -> Result<Option<Secret>, String> {
        let Some(file) = &self.admin_token_file else { return Ok(None) };
        let text = Secret::new(read_secret_file(file, "the tokens", AdminTokens::MAX_BYTES)?);
        AdminTokens::parse(text.expose())?;
        Ok(text.expose().lines().map(str::trim).find(|line| !line.is_empty()).map(Secret::new))
    }

    /// Blocks while it reads two small files. The error has the field, and quotes nothing of the key.
    pub fn certificate(&self) -> Result<Option<Certificate>, (&'static str, String)> {
        const CERT: &str = "server.tls_cert";
        const KEY: &str = "server.tls_key";
        let missing = |other| format!("is missing, but {other} is set; write both, or remove it");
        let (chain, key) = match (&self.tls_cert, &self.tls_key) {
            (None, None) => return Ok(None),
            (None, Some(_)) => return Err((CERT, missing(KEY))),
            (Some(_), None) => return Err((KEY, missing(CERT))),
            (Some(chain), Some(key)) => (chain, key),
        };
        let chain = read_small_file(chain, "the certificate", LONGEST_PEM).map_err(|why| (CERT, why))?;
        let key = Secret::new(read_secret_file(key, "its key", LONGEST_PEM).map_err(|why| (KEY, why))?);
        let made = Certificate::from_pem(chain.as_bytes(), key.expose().as_bytes());
        made.map(Some).map_err(|error| match error {
            CertificateError::Chain => (CERT, error.to_string()),
            CertificateError::Key | CertificateError::Mismatch => (KEY, error.to_string()),
        })
    }

    pub fn is_encrypted(&self) -> bool {
        self.tls_cert.is_some()
    }

    /// The origin of permanent URLs, once the public listener is bound to `bound`.
    pub fn public_origin(&self, bound: SocketAddr) -> Origin {
        match &self.public_url {
            Some(url) => url.clone(),
            None => Origin::of_address(bound, self.is_encrypted()),
        }
    }
}

words! {
    pub enum LogLevel { Error = "error", Warn = "warn", Info = "info", Debug = "debug", Trace = "trace" }

    /// `Auto` is text on a terminal, and JSON elsewhere.
    pub enum LogFormat { Auto = "auto", Json = "json", Text = "text" }
}

section! {
    /// The log, on standard error.
    pub struct LogConfig {
        /// How much Granary says of itself: error, warn, info, debug or trace. The libraries it is
        /// made of never say more than warnings, because they know no secrets.
        pub level: LogLevel = LogLevel::Info,
        /// auto is text on a terminal and JSON elsewhere; or json, or text.
        pub format: LogFormat = LogFormat::Auto,
    }
}
