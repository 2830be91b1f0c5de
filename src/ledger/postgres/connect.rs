//! One connection: where it leads, by what certificates it is checked, and when it may be plain.
//!
//! TLS is verified in every case: chain, name and dates. Only to this very machine is nothing
//! encrypted unless the URL asks for it, and elsewhere only when it says `sslmode=disable`.

use std::fs::File;
use std::future::Future;
use std::io::{self, BufReader};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres::{Client, Config};
use tokio_rustls::{Connect, TlsConnector};

use crate::secret::Secret;

/// How long one address of the server may take to take the connection.
const CONNECT: Duration = Duration::from_secs(2);
/// A connection over which nothing comes is asked after so long whether anyone is there.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Bytes that nobody confirms for so long mean that nobody is there.
const UNCONFIRMED: Duration = Duration::from_secs(10);

/// A URL as it was understood.
#[derive(Clone)]
pub(super) struct Target {
    config: Config,
}

impl Target {
    /// Reads a URL, `postgres://user:password@host:port/database?sslmode=…`, or the other form that
    /// PostgreSQL's own clients read, `host=… dbname=…`.
    ///
    /// # Errors
    /// What is wrong, without anything of the text: a password may be anywhere in a broken one.
    pub(super) fn parse(url: &Secret) -> Result<Self, String> {
        // Every TLS connection is verified here, so the stricter words of other clients mean nothing more.
        let text = ["verify-full", "verify-ca"].iter().fold(url.expose().trim().to_owned(), |text, mode| {
            text.replace(&format!("sslmode={mode}"), "sslmode=require")
        });
        let says_mode = text.contains("sslmode=");
        let mut config: Config = text.parse().map_err(|_| {
            "is not the address of a database, or has an option that is not known here; write \
             postgres://user:password@host:5432/database, with %-codes for special characters, and \
             certificates of your own into state.database_ca"
                .to_owned()
        })?;
        if config.get_hosts().is_empty() {
            return Err("names no host; write postgres://user:password@host:5432/database".to_owned());
        }
        let is_here = config.get_hosts().iter().all(is_this_machine)
            && config.get_hostaddrs().iter().all(std::net::IpAddr::is_loopback);
        let mode = match (config.get_ssl_mode(), says_mode) {
            (SslMode::Prefer, false) if is_here => SslMode::Disable,
            // To prefer is to do without when somebody in between says so.
            (SslMode::Prefer, _) => SslMode::Require,
            (mode, _) => mode,
        };
        config.ssl_mode(mode);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT);
        }
        if config.get_target_session_attrs() == TargetSessionAttrs::Any {
            // A standby answers, and takes nothing.
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        if config.get_application_name().is_none() {
            config.application_name("granary");
        }
        config.keepalives_idle(KEEPALIVE).tcp_user_timeout(UNCONFIRMED);
        Ok(Self { config })
    }

    /// Host, port and database, for a log line.
    pub(super) fn place(&self) -> String {
        let host = match self.config.get_hosts().first() {
            Some(Host::Tcp(name)) => name.clone(),
            Some(Host::Unix(folder)) => folder.display().to_string(),
            None => "nowhere".to_owned(),
        };
        let port = self.config.get_ports().first().copied().unwrap_or(5432);
        format!("{host}:{port}/{}", self.config.get_dbname().unwrap_or_default())
    }

    /// Connects and lets the connection live on in a task of its own.
    ///
    /// # Errors
    /// Whatever the server or the way to it say.
    pub(super) async fn connect(&self, tls: &Tls) -> Result<Connection, tokio_postgres::Error> {
        let (client, connection) = self.config.connect(tls.clone()).await?;
        let task = tokio::spawn(async move {
            // Whoever uses it is told the same.
            let _ = connection.await;
        });
        Ok(Connection { client: Arc::new(client), task: task.abort_handle() })
    }
}

fn is_this_machine(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
    }
}

/// Closed for good when it is dropped, whatever is still to come over it.
pub(super) struct Connection {
    pub(super) client: Arc<Client>,
    task: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Checks servers by root certificates.
#[derive(Clone)]
pub(super) struct Tls(Arc<ClientConfig>);

impl Tls {
    /// By the certificates in a file, in PEM; or by the system's.
    ///
    /// Blocks for as long as reading files does.
    ///
    /// # Errors
    /// A sentence about the file.
    pub(super) fn new(roots: Option<&Path>) -> Result<Self, String> {
        let Some(file) = roots else { return Ok(Self::system()) };
        let failed = |error: io::Error| {
            format!("the certificates of state.database_ca cannot be read ({})", error.kind())
        };
        let mut store = RootCertStore::empty();
        let reader = BufReader::new(File::open(file).map_err(failed)?);
        for certificate in rustls::pki_types::CertificateDer::pem_reader_iter(reader) {
            let certificate =
                certificate.map_err(|_| "state.database_ca is not a file of certificates (PEM)")?;
            store.add(certificate).map_err(|_| "state.database_ca has a certificate that cannot be used")?;
        }
        if store.is_empty() {
            return Err("state.database_ca has no certificate in it (PEM)".to_owned());
        }
        Ok(Self::with(store))
    }

    fn system() -> Self {
        static SYSTEM: OnceLock<Tls> = OnceLock::new();
        SYSTEM
            .get_or_init(|| {
                let mut roots = RootCertStore::empty();
                // Single unreadable certificates are common in system stores.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                Self::with(roots)
            })
            .clone()
    }

    fn with(roots: RootCertStore) -> Self {
        // The provider is named, because with two of them in the tree rustls would panic at run time.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring serves TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Self(Arc::new(config))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for Tls {
    type Stream = Encrypted<S>;
    type TlsConnect = Handshake;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Handshake> {
        // Asked for also where nothing will be encrypted, as over a Unix socket, which has no name.
        let name = ServerName::try_from(host.to_owned()).ok();
        Ok(Handshake { connector: TlsConnector::from(self.0.clone()), name })
    }
}

/// A handshake with a server of this name, to be made.
pub(super) struct Handshake {
    connector: TlsConnector,
    name: Option<ServerName<'static>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for Handshake {
    type Stream = Encrypted<S>;
    type Error = io::Error;
    type Future = Shaking<S>;

    fn connect(self, stream: S) -> Shaking<S> {
        Shaking(self.name.map(|name| self.connector.connect(name, stream)))
    }
}

/// A handshake under way.
pub(super) struct Shaking<S>(Option<Connect<S>>);

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Shaking<S> {
    type Output = io::Result<Encrypted<S>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Some(handshake) => Pin::new(handshake).poll(context).map_ok(Encrypted),
            None => Poll::Ready(Err(io::Error::other("a server without a name has no certificate"))),
        }
    }
}

/// A verified, encrypted connection.
pub(super) struct Encrypted<S>(tokio_rustls::client::TlsStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Encrypted<S> {
    fn channel_binding(&self) -> ChannelBinding {
        // The certificate is checked, and that is what binding adds where it is not.
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Encrypted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Encrypted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(url: &str) -> SslMode {
        Target::parse(&Secret::new(url)).unwrap_or_else(|error| panic!("{error}")).config.get_ssl_mode()
    }

    #[test]
    fn only_this_machine_and_an_explicit_word_do_without_tls() {
        for (url, expected) in [
            ("postgres://u:p@db.example.com/granary", SslMode::Require),
            ("postgres://u:p@db.example.com/granary?sslmode=prefer", SslMode::Require),
            ("postgresql://u:p@db.example.com/granary?sslmode=verify-full", SslMode::Require),
            ("postgres://u:p@127.0.0.1,db.example.com/granary", SslMode::Require),
            ("postgres://u:p@db.example.com/granary?sslmode=disable", SslMode::Disable),
            ("postgres://u:p@127.0.0.1:5433/granary", SslMode::Disable),
            ("postgres://u:p@localhost/granary?sslmode=require", SslMode::Require),
            ("postgres://u@%2Frun%2Fpostgresql/granary", SslMode::Disable),
            ("host=::1 user=u dbname=granary", SslMode::Disable),
            ("host=10.0.0.1 user=u dbname=granary", SslMode::Require),
        ] {
            assert_eq!(mode(url), expected, "{url}");
        }
    }

    #[test]
    fn a_broken_url_is_told_without_a_piece_of_it() {
        for url in [
            "postgres://u:sesame@host:port/granary",
            "postgres://u:p@host/granary?sesame=1",
            "sesame",
            "postgres://u:sesame@/granary",
        ] {
            let Err(why) = Target::parse(&Secret::new(url)) else { panic!("{url} was taken") };
            assert!(!why.contains("sesame"), "{why}");
        }
    }
}
