use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// A resolver of lies: what names mean, and where addresses really are.
#[derive(Default, Clone)]
pub(crate) struct FakeWire {
    /// A name's addresses, one list for each time it is asked for; the last one stays.
    pub(crate) names: Arc<Mutex<HashMap<String, Vec<Vec<IpAddr>>>>>,
    /// Where a dialled address is; one that is not listed is refused.
    pub(crate) routes: Arc<Mutex<HashMap<SocketAddr, SocketAddr>>>,
    /// Everything dialled.
    pub(crate) dialled: Arc<Mutex<Vec<SocketAddr>>>,
}

impl FakeWire {
    pub(crate) fn name(self, name: &str, addresses: &[&str]) -> Self {
        let addresses = addresses.iter().map(|address| address.parse().expect("an address")).collect();
        self.names.lock().unwrap().entry(name.to_owned()).or_default().push(addresses);
        self
    }

    pub(crate) fn route(self, from: &str, to: SocketAddr) -> Self {
        self.routes.lock().unwrap().insert(from.parse().expect("an address and port"), to);
        self
    }

    pub(crate) fn dialled(&self) -> Vec<String> {
        self.dialled.lock().unwrap().iter().map(ToString::to_string).collect()
    }
}

#[async_trait]
impl Wire for FakeWire {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let mut names = self.names.lock().unwrap();
        let answers = names.get_mut(name).ok_or_else(|| io::Error::other("no such name"))?;
        Ok(if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() })
    }

    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.dialled.lock().unwrap().push(address);
        let route = self.routes.lock().unwrap().get(&address).copied();
        TcpStream::connect(route.ok_or(io::ErrorKind::ConnectionRefused)?).await
    }
}

/// A TLS server's half for `names`, and the roots that trust it.
pub(crate) fn tls_server(names: &[&str]) -> (TlsAcceptor, RootCertStore) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring serves TLS")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("the key fits the certificate");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("a certificate");
    (TlsAcceptor::from(Arc::new(config)), roots)
}

pub(crate) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    (listener, address)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(3)
}

fn name(text: &str) -> Host {
    Host::Domain(text.to_owned())
}

#[tokio::test]
async fn one_forbidden_address_forbids_the_name() {
    let wire = FakeWire::default().name("h.example", &["8.8.8.8", "10.0.0.1"]);
    let net = Net::with_wire(wire.clone(), RootCertStore::empty());
    let refused = net.resolve(&name("h.example"), address::is_public, soon()).await;
    assert!(matches!(refused, Err(NetError::Forbidden)));
    assert_eq!(net.resolve(&name("h.example"), |_| true, soon()).await.unwrap().len(), 2);
    assert!(matches!(net.resolve(&name("gone.example"), |_| true, soon()).await, Err(NetError::Resolve(_))));
    let literal = Host::Ipv4([127, 0, 0, 1].into());
    assert!(matches!(net.resolve(&literal, address::is_public, soon()).await, Err(NetError::Forbidden)));
    assert!(wire.dialled().is_empty());
}

#[tokio::test]
async fn a_dead_address_does_not_keep_the_next_from_being_tried() {
    let (listener, real) = listen().await;
    let wire = FakeWire::default().route("2.2.2.2:80", real);
    let net = Net::with_wire(wire.clone(), RootCertStore::empty());
    let addresses = ["1.1.1.1".parse().unwrap(), "2.2.2.2".parse().unwrap()];
    let host = name("h.example");
    let (connected, accepted) =
        tokio::join!(net.connect(&addresses, &host, 80, false, soon()), listener.accept());
    assert!(connected.is_ok() && accepted.is_ok());
    assert_eq!(wire.dialled(), ["1.1.1.1:80", "2.2.2.2:80"]);
    assert!(matches!(
        net.connect(&addresses[..1], &host, 80, false, soon()).await,
        Err(NetError::Connect(_))
    ));
    assert!(matches!(net.connect(&[], &host, 80, false, soon()).await, Err(NetError::Resolve(_))));
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_uses_up_its_share_of_the_time_and_no_more() {
    struct Hole;
    #[async_trait]
    impl Wire for Hole {
        async fn resolve(&self, _: &str) -> io::Result<Vec<IpAddr>> {
            std::future::pending().await
        }
        async fn dial(&self, _: SocketAddr) -> io::Result<TcpStream> {
            std::future::pending().await
        }
    }
    let net = Net::with_wire(Hole, RootCertStore::empty());
    let start = Instant::now();
    assert!(matches!(net.resolve(&name("h.example"), |_| true, soon()).await, Err(NetError::Timeout)));
    assert_eq!(start.elapsed(), Duration::from_secs(3));
    let addresses = ["1.1.1.1".parse().unwrap(), "2.2.2.2".parse().unwrap()];
    let start = Instant::now();
    let connected = net.connect(&addresses, &name("h.example"), 80, false, soon()).await;
    assert!(matches!(connected, Err(NetError::Timeout)));
    assert!(start.elapsed().abs_diff(Duration::from_secs(3)) < Duration::from_millis(10));
}

#[tokio::test]
async fn tls_checks_the_certificate_by_the_given_roots_and_name() {
    let (acceptor, roots) = tls_server(&["h.example"]);
    let (listener, real) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let protocol = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
                    stream.write_all(&protocol.unwrap_or_default()).await.ok();
                    stream.shutdown().await.ok();
                }
            });
        }
    });
    let wire = || FakeWire::default().route("1.1.1.1:443", real);
    let addresses = ["1.1.1.1".parse().unwrap()];
    let net = Net::with_wire(wire(), roots);
    let mut stream = net.connect(&addresses, &name("h.example"), 443, true, soon()).await.expect("TLS");
    let mut protocol = String::new();
    stream.read_to_string(&mut protocol).await.expect("the protocol agreed on");
    assert_eq!(protocol, "http/1.1");
    let other = net.connect(&addresses, &name("other.example"), 443, true, soon()).await;
    assert!(matches!(other, Err(NetError::Tls(_))));

    let (_, strange_roots) = tls_server(&["h.example"]);
    let strange = Net::with_wire(wire(), strange_roots);
    let refused = strange.connect(&addresses, &name("h.example"), 443, true, soon()).await;
    assert!(matches!(refused, Err(NetError::Tls(_))));
    let rootless = Net::with_wire(wire(), RootCertStore::empty());
    let refused = rootless.connect(&addresses, &name("h.example"), 443, true, soon()).await;
    assert!(matches!(refused, Err(NetError::NoRoots)) && !rootless.has_roots());
}
