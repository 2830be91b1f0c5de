//! Addresses in the public internet ([`is_public`]). A result's URL comes from outside and must not lead to
//! this host, its network or a cloud's metadata service. The tables follow the IANA special-purpose
//! registries; a doubtful address is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Not public: network and prefix length.
const V4_SPECIAL: [(Ipv4Addr, u32); 18] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),        // this network; connects to this host
    (Ipv4Addr::new(10, 0, 0, 0), 8),       // private
    (Ipv4Addr::new(100, 64, 0, 0), 10),    // carrier-grade NAT; a cloud's metadata at 100.100.100.200
    (Ipv4Addr::new(127, 0, 0, 0), 8),      // loopback
    (Ipv4Addr::new(168, 63, 129, 16), 32), // a cloud's host agent, at a public-looking address
    (Ipv4Addr::new(169, 254, 0, 0), 16),   // link-local; clouds' metadata at 169.254.169.254
    (Ipv4Addr::new(172, 16, 0, 0), 12),    // private
    (Ipv4Addr::new(192, 0, 0, 0), 24),     // protocol assignments; a cloud's metadata at 192.0.0.192
    (Ipv4Addr::new(192, 0, 2, 0), 24),     // documentation
    (Ipv4Addr::new(192, 31, 196, 0), 24),  // AS112
    (Ipv4Addr::new(192, 52, 193, 0), 24),  // AMT
    (Ipv4Addr::new(192, 88, 99, 0), 24),   // 6to4 relays, deprecated
    (Ipv4Addr::new(192, 168, 0, 0), 16),   // private
    (Ipv4Addr::new(192, 175, 48, 0), 24),  // AS112
    (Ipv4Addr::new(198, 18, 0, 0), 15),    // benchmarking
    (Ipv4Addr::new(198, 51, 100, 0), 24),  // documentation
    (Ipv4Addr::new(203, 0, 113, 0), 24),   // documentation
    (Ipv4Addr::new(224, 0, 0, 0), 3),      // multicast, reserved, broadcast
];

/// Inside 2000::/3 and not public: network and prefix length.
const V6_SPECIAL: [(Ipv6Addr, u32); 4] = [
    // Protocol assignments: Teredo, benchmarking, ORCHID and others, none of which serves results.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32), // documentation
    (Ipv6Addr::new(0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0), 48), // AS112
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),     // documentation
];

/// IPv6 addresses that carry an IPv4 address (mapped, NAT64, 6to4, ISATAP) are as public as that one.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    !V4_SPECIAL.iter().any(|(network, prefix)| (address.to_bits() ^ network.to_bits()) >> (32 - prefix) == 0)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let last = Ipv4Addr::from_bits(u32::from(segments[6]) << 16 | u32::from(segments[7]));
    match segments {
        [0, 0, 0, 0, 0, 0xffff, ..] => return is_public_v4(last),
        // The well-known NAT64 prefix, by which networks without IPv4 reach it. The local-use one,
        // 64:ff9b:1::/48, is refused below: the position of its IPv4 address is not known here.
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => return is_public_v4(last),
        // ISATAP is an interface identifier, so it occurs below any prefix.
        [.., 0 | 0x200, 0x5efe, _, _] if !is_public_v4(last) => return false,
        [0x2002, high, low, ..] => {
            let carried = Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
            return is_public_v4(carried);
        }
        _ => {}
    }
    // All other special addresses (loopback, ULA, link-local, site-local, compatible, discard, multicast) are
    // outside the one block of public addresses.
    segments[0] & 0xe000 == 0x2000
        && !V6_SPECIAL
            .iter()
            .any(|(network, prefix)| (address.to_bits() ^ network.to_bits()) >> (128 - prefix) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expected: bool, addresses: &str) {
        for text in addresses.split_whitespace() {
            let address: IpAddr = text.parse().unwrap_or_else(|_| panic!("{text} is no address"));
            assert_eq!(is_public(address), expected, "{text}");
        }
    }

    #[test]
    fn ordinary_addresses_are_public() {
        check(
            true,
            "1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 47.246.0.1 99.255.255.255 100.63.255.255 100.128.0.0
             126.255.255.255 128.0.0.0 168.63.129.15 168.63.129.17 169.253.255.255 169.255.0.0
             172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.0.3.0 192.167.255.255 192.169.0.0
             198.17.255.255 198.20.0.0 198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0
             223.255.255.255",
        );
        check(
            true,
            "2000:: 2001:200:: 2001:4860:4860::8888 2001:db7:ffff:: 2001:db9:: 2606:4700:4700::1111
             2620:4f:7fff:: 2a00:1450:4001::1 3ffe:ffff:: 3fff:1000:: 3fff:ffff::1",
        );
    }

    #[test]
    fn special_ipv4_addresses_are_not() {
        check(
            false,
            "0.0.0.0 0.1.2.3 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.100.100.200
             100.127.255.255 127.0.0.0 127.0.0.1 127.255.255.255 168.63.129.16 169.254.0.0
             169.254.169.254 169.254.255.255 172.16.0.0 172.31.255.255 192.0.0.0 192.0.0.192
             192.0.2.1 192.31.196.1 192.52.193.1 192.88.99.1 192.168.0.0 192.168.255.255 192.175.48.1
             198.18.0.0 198.19.255.255 198.51.100.7 203.0.113.0 224.0.0.0 224.0.0.1 239.255.255.255
             240.0.0.1 255.255.255.254 255.255.255.255",
        );
    }

    #[test]
    fn special_ipv6_addresses_are_not() {
        check(
            false,
            ":: ::1 ::2 100:: 100:0:0:1::1 1fff:: 2001::1 2001:2::1 2001:10::1 2001:20::1 2001:1ff::1
             2001:db8:: 2001:db8:ffff::1 2620:4f:8000::1 3fff:: 3fff:fff:: 4000:: 5f00::1 8000::
             fc00:: fd00:ec2::254 fdff::1 fe80::1 febf::1 fec0::1 feff::1 ff02::1 ffff::",
        );
    }

    #[test]
    fn an_ipv6_address_is_no_more_public_than_the_ipv4_address_it_carries() {
        for v4 in ["0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "192.168.0.1"] {
            let [a, b, c, d] = v4.parse::<Ipv4Addr>().unwrap().octets();
            let hex = format!("{a:02x}{b:02x}:{c:02x}{d:02x}");
            for carrier in [
                format!("::ffff:{v4}"),
                format!("::{v4}"),
                format!("::ffff:0:{v4}"),
                format!("64:ff9b::{v4}"),
                format!("64:ff9b:1::{v4}"),
                format!("2002:{hex}::1"),
                format!("2001:0:{hex}::1"),
                format!("2a00:1450::5efe:{v4}"),
                format!("2a00:1450::200:5efe:{v4}"),
                format!("fe80::5efe:{v4}"),
            ] {
                check(false, &carrier);
            }
        }
        check(true, "::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::1 2a00:1450::200:5efe:8.8.8.8");
        // Never in use between strangers, whatever they carry.
        check(false, "::8.8.8.8 64:ff9b:1::8.8.8.8 2001:0:808:808::1 fe80::5efe:8.8.8.8");
    }
}
