//! Name resolution, TCP and TLS for the paid API's client and the downloader ([`Net`]). A name is resolved
//! once, and only addresses that the caller has checked are dialled, so a name whose addresses change gains
//! nothing. Proxy variables are never read. Each connection serves one exchange.

pub mod address;
pub(crate) mod coding;
pub(crate) mod exchange;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use url::Host;

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 16;

#[derive(Clone)]
pub struct Net {
    wire: Arc<dyn Wire>,
    tls: Option<TlsConnector>,
}

pub(crate) type Stream = Box<dyn Duplex>;

pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The system's resolver and sockets, or a test's.
#[async_trait]
pub(crate) trait Wire: Send + Sync {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>>;
    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream>;
}

/// The texts are safe to log.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("the name could not be resolved: {0}")]
    Resolve(io::Error),
    #[error("the name leads to an address that is not allowed")]
    Forbidden,
    /// The error of the last address.
    #[error("no connection: {0}")]
    Connect(io::Error),
    #[error("no TLS connection: {0}")]
    Tls(io::Error),
    #[error("no connection in time")]
    Timeout,
    #[error("no root certificates were found: install the system's CA certificates or set SSL_CERT_FILE")]
    NoRoots,
}

impl Net {
    /// The system's resolver and root certificates, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`.
    pub fn system() -> Self {
        static SYSTEM: LazyLock<Net> = LazyLock::new(|| {
            let mut roots = RootCertStore::empty();
            // Single unreadable certificates are common; an empty store is reported when TLS is needed.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            Net::with_roots(roots)
        });
        SYSTEM.clone()
    }

    pub fn with_roots(roots: RootCertStore) -> Self {
        Self::with_wire(SystemWire, roots)
    }

    pub(crate) fn with_wire(wire: impl Wire + 'static, roots: RootCertStore) -> Self {
        let tls = (!roots.is_empty()).then(|| TlsConnector::from(Arc::new(tls_config(roots))));
        Self { wire: Arc::new(wire), tls }
    }

    pub fn has_roots(&self) -> bool {
        self.tls.is_some()
    }

    /// Resolves a host; an address resolves to itself. Fails with [`NetError::Forbidden`] if any address is
    /// not allowed: a name with a public and a private address is an attack or a mistake.
    pub(crate) async fn resolve(
        &self,
        host: &Host,
        allowed: impl Fn(IpAddr) -> bool + Send,
        deadline: Instant,
    ) -> Result<Vec<IpAddr>, NetError> {
        let mut addresses = match host {
            Host::Ipv4(address) => vec![IpAddr::V4(*address)],
            Host::Ipv6(address) => vec![IpAddr::V6(*address)],
            Host::Domain(name) => timeout_at(deadline, self.wire.resolve(name))
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

    /// Connects to the first of `addresses` that answers, with TLS for `host` if `tls`. Each address gets an
    /// equal share of the remaining time, so that one that never answers does not use up all of it.
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
        let stream = self.wire.dial(address).await.map_err(NetError::Connect)?;
        // The short tail of a paid request must not wait for an acknowledgement.
        stream.set_nodelay(true).map_err(NetError::Connect)?;
        if !tls {
            return Ok(Box::new(stream));
        }
        let connector = self.tls.as_ref().ok_or(NetError::NoRoots)?;
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
    // A named provider: with two in the dependency tree, rustls would panic at run time.
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
