//! Who a request without a token counts for: the network of its client.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use ipnet::IpNet;

use crate::base::permits::Party;

/// The other end of the connection; set by the listener.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// The client's address. Each trusted proxy adds the address before it at the end of `X-Forwarded-For`, so the last one
/// there that is no trusted proxy's is the client's; what is before it, anyone may have written.
pub fn address(peer: Peer, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let lines = headers.get_all("x-forwarded-for").iter().filter_map(|line| line.to_str().ok());
    let mut named: Vec<&str> = lines.flat_map(|line| line.split(',')).map(str::trim).collect();
    let mut client = peer.0.to_canonical();
    while trusted.iter().any(|network| network.contains(&client))
        && let Some(address) = named.pop().and_then(parse)
    {
        client = address.to_canonical();
    }
    client
}

/// With a port or without.
fn parse(name: &str) -> Option<IpAddr> {
    name.parse().ok().or_else(|| Some(name.parse::<SocketAddr>().ok()?.ip()))
}

/// The /24 or /56 of an address, as far as one customer's addresses usually go.
pub fn network(client: IpAddr) -> Party {
    let bits = if client.is_ipv4() { 24 } else { 56 };
    let network = IpNet::new_assert(client, bits).trunc();
    Party::new(&network.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, lines: &[&str], trusted: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", line.parse().unwrap());
        }
        let trusted: Vec<IpNet> = trusted.iter().map(|network| network.parse().unwrap()).collect();
        address(Peer(peer.parse().unwrap()), &headers, &trusted).to_string()
    }

    #[test]
    fn only_trusted_proxies_name_the_client() {
        let inside = ["10.0.0.0/8", "fd00::/8"];
        for (peer, lines, trusted, expected) in [
            ("192.0.2.1", &["198.51.100.7"][..], &inside[..], "192.0.2.1"),
            ("10.0.0.1", &["198.51.100.7"], &[], "10.0.0.1"),
            ("10.0.0.1", &[], &inside, "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.7"], &inside, "198.51.100.7"),
            ("::ffff:10.0.0.1", &["198.51.100.7"], &inside, "198.51.100.7"),
            ("fd00::1", &["2001:db8::7"], &inside, "2001:db8::7"),
            // What the client wrote itself is before what the proxy adds.
            ("10.0.0.1", &["203.0.113.9, 198.51.100.7"], &inside, "198.51.100.7"),
            ("10.0.0.1", &["203.0.113.9", "198.51.100.7, 10.1.1.1"], &inside, "198.51.100.7"),
            ("10.0.0.1", &["198.51.100.7:4711"], &inside, "198.51.100.7"),
            ("10.0.0.1", &["[2001:db8::7]:80"], &inside, "2001:db8::7"),
            ("10.0.0.1", &["198.51.100.7, unknown"], &inside, "10.0.0.1"),
            ("10.0.0.1", &[""], &inside, "10.0.0.1"),
            ("10.0.0.1", &["10.0.0.2"], &inside, "10.0.0.2"),
        ] {
            assert_eq!(client(peer, lines, trusted), expected, "{peer} {lines:?}");
        }
    }

    #[test]
    fn neighbouring_addresses_are_one_party() {
        let network = |address: &str| network(address.parse().unwrap()).name().to_owned();
        assert_eq!(network("192.0.2.7"), "192.0.2.0/24");
        assert_eq!(network("2001:db8:0:12ff::1"), "2001:db8:0:1200::/56");
    }
}
