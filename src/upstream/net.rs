//! Dialling: a name becomes addresses, an address a TCP connection, that one perhaps TLS.
//!
//! Shared by the paid API's client and the downloader, which have nothing else in common. A name is
//! resolved once; the caller's predicate sees every address before any is dialled, and only checked
//! addresses are dialled, so a name that changes its mind gains nothing. Proxy variables are never
//! read. There is no pool: each connection serves one exchange (`exchange.rs`).

pub mod address;
pub(crate) mod coding;
pub(crate) mod exchange;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use url::Host;

/// How many addresses of one name are looked at; the rest is dropped.
const MAX_ADDRESSES: usize = 16;

/// What is needed to dial: a resolver, and the root certificates that TLS servers are checked by.
///
/// Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Net(Arc<Inner>);

struct Inner {
    wire: Box<dyn Wire>,
    /// `None` where there are no root certificates.
    tls: Option<TlsConnector>,
}

/// A connection's two directions, plain or TLS.
pub(crate) type Stream = Box<dyn Duplex>;

/// Something that can be read and written.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The system's resolver and sockets, behind a seam so that tests can lie about names.
#[async_trait]
pub(crate) trait Wire: Send + Sync {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>>;
    /// A TCP connection to exactly this address.
    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream>;
}

/// Why there is no connection. The texts are safe to log; the caller adds the host where it may.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The name has no address, or the resolver failed.
    #[error("the name could not be resolved: {0}")]
    Resolve(io::Error),
    /// The name has an address that the caller does not allow.
    #[error("the name leads to an address that is not allowed")]
    Forbidden,
    /// No address took the connection; the error is the last one's.
    #[error("no connection: {0}")]
    Connect(io::Error),
    /// The TLS handshake failed: a wrong certificate, or no TLS at all.
    #[error("no TLS connection: {0}")]
    Tls(io::Error),
    #[error("no connection in time")]
    Timeout,
    /// TLS was asked for, and there is nothing to check a certificate by.
    #[error("no root certificates were found: install the system's CA certificates or set SSL_CERT_FILE")]
    NoRoots,
}

impl Net {
    /// The system's resolver and root certificates; `SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured.
    ///
    /// Read once per process: the first call reads files and may take some milliseconds. Without any
    /// root certificate plain connections still work, see [`has_roots`](Self::has_roots).
    pub fn system() -> Self {
        static SYSTEM: OnceLock<Net> = OnceLock::new();
        SYSTEM
            .get_or_init(|| {
                let mut roots = RootCertStore::empty();
                // Single unreadable certificates are common in system stores; all of them missing
                // is what matters, and shows as an empty store.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                Self::with_roots(roots)
            })
            .clone()
    }

    /// The system's resolver with these root certificates only.
    pub fn with_roots(roots: RootCertStore) -> Self {
        Self::with_wire(SystemWire, roots)
    }

    pub(crate) fn with_wire(wire: impl Wire + 'static, roots: RootCertStore) -> Self {
        let tls = (!roots.is_empty()).then(|| TlsConnector::from(Arc::new(tls_config(roots))));
        Self(Arc::new(Inner { wire: Box::new(wire), tls }))
    }

    /// Whether TLS servers can be checked at all.
    pub fn has_roots(&self) -> bool {
        self.0.tls.is_some()
    }

    /// Resolves a host and checks its addresses; an address resolves to itself.
    ///
    /// # Errors
    /// [`NetError::Forbidden`] when a single one of them is not allowed: a name with a public and a
    /// private address is an attack or a mistake, and which of them answers must not be luck.
    pub(crate) async fn resolve(
        &self,
        host: &Host,
        allowed: impl Fn(IpAddr) -> bool + Send,
        deadline: Instant,
    ) -> Result<Vec<IpAddr>, NetError> {
        let mut addresses = match host {
            Host::Ipv4(address) => vec![IpAddr::V4(*address)],
            Host::Ipv6(address) => vec![IpAddr::V6(*address)],
            Host::Domain(name) => timeout_at(deadline, self.0.wire.resolve(name))
                .await
                .map_err(|_| NetError::Timeout)?
                .map_err(NetError::Resolve)?,
        };
        if !addresses.iter().all(|address| allowed(*address)) {
            return Err(NetError::Forbidden);
        }
        addresses.truncate(MAX_ADDRESSES);
        Ok(addresses)
    }

    /// Connects to the first of `addresses` that answers, in their order, with TLS for `host` if asked.
    ///
    /// Each gets an equal share of what is left of the time, so that a black hole in front does not
    /// use up all of it.
    pub(crate) async fn connect(
        &self,
        addresses: &[IpAddr],
        host: &Host,
        port: u16,
        tls: bool,
        deadline: Instant,
    ) -> Result<Stream, NetError> {
        let mut last = NetError::Resolve(io::Error::new(io::ErrorKind::NotFound, "no addresses"));
        for (tried, address) in addresses.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            let attempt = self.connect_one(SocketAddr::new(*address, port), host, tls);
            match tokio::time::timeout(share, attempt).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(_) => last = NetError::Timeout,
            }
        }
        Err(last)
    }

    async fn connect_one(&self, address: SocketAddr, host: &Host, tls: bool) -> Result<Stream, NetError> {
        let stream = self.0.wire.dial(address).await.map_err(NetError::Connect)?;
        // The last bytes of a paid request are few, and must not wait for an acknowledgement.
        stream.set_nodelay(true).map_err(NetError::Connect)?;
        if !tls {
            return Ok(Box::new(stream));
        }
        let connector = self.0.tls.as_ref().ok_or(NetError::NoRoots)?;
        let name = match host {
            Host::Domain(name) => ServerName::try_from(name.clone())
                .map_err(|error| NetError::Tls(io::Error::new(io::ErrorKind::InvalidInput, error)))?,
            Host::Ipv4(address) => ServerName::from(IpAddr::V4(*address)),
            Host::Ipv6(address) => ServerName::from(IpAddr::V6(*address)),
        };
        Ok(Box::new(connector.connect(name, stream).await.map_err(NetError::Tls)?))
    }
}

fn tls_config(roots: RootCertStore) -> rustls::ClientConfig {
    // The provider is named, because with two of them in the tree rustls would panic at run time.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring serves TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

struct SystemWire;

#[async_trait]
impl Wire for SystemWire {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect())
    }

    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(address).await
    }
}

#[cfg(test)]
pub(crate) mod tests;
