//! Some thousand URLs that lead to where nothing may be read, and resolvers that change their minds.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::*;

const PUBLIC: [&str; 3] = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111"];

const INSIDE_V4: &str = "0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 127.0.0.1 127.0.0.53
    127.255.255.255 168.63.129.16 169.254.0.1 169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.192
    192.0.2.1 192.168.0.1 192.168.255.255 198.18.0.1 198.51.100.7 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1
    255.255.255.255";

const INSIDE_V6: &str =
    ":: ::1 100::1 2001:db8::1 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 fec0::1 ff02::1 ff0e::1";

fn v4() -> Vec<Ipv4Addr> {
    INSIDE_V4.split_whitespace().map(|text| text.parse().unwrap()).collect()
}

/// Every inside address: IPv4, IPv6, and IPv4 carried by IPv6 in every way there is.
fn inside() -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = v4().into_iter().map(IpAddr::V4).collect();
    all.extend(INSIDE_V6.split_whitespace().map(|text| IpAddr::V6(text.parse().unwrap())));
    for address in v4() {
        let [a, b, c, d] = address.octets();
        let hex = format!("{a:02x}{b:02x}:{c:02x}{d:02x}");
        for carrier in [
            format!("::ffff:{address}"),
            format!("64:ff9b::{address}"),
            format!("64:ff9b:1::{address}"),
            format!("2002:{hex}::1"),
            format!("2001:0:{hex}::1"),
            format!("2a00:1450::200:5efe:{address}"),
        ] {
            all.push(IpAddr::V6(carrier.parse::<Ipv6Addr>().unwrap()));
        }
        if address.octets()[0] != 0 {
            all.push(IpAddr::V6(format!("::{address}").parse().unwrap()));
        }
    }
    all
}

/// An address as some programs would still read it.
fn spellings(address: Ipv4Addr) -> Vec<String> {
    let [a, b, c, d] = address.octets();
    let bits = address.to_bits();
    vec![
        format!("{bits}"),
        format!("{bits:#x}"),
        format!("0{bits:o}"),
        format!("{a:#x}.{b:#x}.{c:#x}.{d:#x}"),
        format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
        format!("{a}.{}", bits & 0x00ff_ffff),
        format!("{a}.{b}.{}", bits & 0xffff),
        format!("{a:03}.{b:03}.{c:03}.{d:03}"),
        format!("{address}."),
        format!("%3{}{}", a / 100, address),
        format!("{a}。{b}。{c}。{d}"),
        format!("①.{b}.{c}.{d}"),
    ]
}

/// All that a vendor's answer could name, with the resolver that goes with it.
fn corpus() -> (Vec<String>, FakeWire) {
    let (mut urls, mut wire) = (Vec::new(), FakeWire::default());
    for (number, address) in inside().into_iter().enumerate() {
        let (text, host) = match address {
            IpAddr::V4(v4) => (v4.to_string(), v4.to_string()),
            IpAddr::V6(v6) => (v6.to_string(), format!("[{v6}]")),
        };
        for scheme in ["http", "https"] {
            urls.push(format!("{scheme}://{host}/a.png"));
            urls.push(format!("{scheme}://{host}:8080/a.png"));
            urls.push(format!("{scheme}://b.aliyuncs.com@{host}/a.png"));
            urls.push(format!("{scheme}://b.aliyuncs.com:443@{host}/a.png"));
            urls.push(format!("{scheme}://{host}\\@b.aliyuncs.com/a.png"));
        }
        // A name that leads there, alone or beside public addresses, in any place.
        for (place, addresses) in [
            vec![text.as_str()],
            vec![text.as_str(), PUBLIC[0]],
            vec![PUBLIC[0], text.as_str()],
            vec![PUBLIC[0], PUBLIC[1], PUBLIC[2], text.as_str()],
        ]
        .into_iter()
        .enumerate()
        {
            for name in [format!("n{number}-{place}.example"), format!("n{number}-{place}.aliyuncs.com")] {
                wire = wire.name(&name, &addresses);
                urls.push(format!("https://{name}/a.png"));
                if name.ends_with("aliyuncs.com") {
                    urls.push(format!("http://{name}/a.png"));
                }
            }
        }
    }
    for address in v4() {
        urls.extend(spellings(address).iter().map(|host| format!("https://{host}/a.png")));
    }
    // Beyond the number of addresses that are dialled, too.
    let many: Vec<String> = (1..40).map(|last| format!("8.8.4.{last}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).chain(["10.0.0.1"]).collect();
    wire = wire.name("many.example", &many);
    urls.push("https://many.example/a.png".to_owned());
    for name in ["localhost", "localhost.localdomain", "metadata.google.internal", "kubernetes.default.svc"] {
        wire = wire.name(name, &["127.0.0.1"]);
        for scheme in ["http", "https"] {
            urls.push(format!("{scheme}://{name}/a.png"));
            urls.push(format!("{scheme}://{name}./a.png"));
            urls.push(format!("{scheme}://{}/a.png", name.to_uppercase()));
        }
    }
    for scheme in ["file", "ftp", "gopher", "dict", "ldap", "data", "jar", "unix", "ws", "javascript"] {
        urls.push(format!("{scheme}://b.aliyuncs.com/a.png"));
        urls.push(format!("{scheme}:///etc/passwd"));
    }
    for port in [0, 1, 22, 25, 80, 2375, 3306, 5432, 6379, 8080, 9090, 9200, 65535] {
        urls.push(format!("https://public.example:{port}/a.png"));
    }
    (urls, wire.name("public.example", &["8.8.8.8"]))
}

#[tokio::test]
async fn of_a_thousand_urls_that_lead_inside_none_is_dialled() {
    let (urls, wire) = corpus();
    let distinct: BTreeSet<&String> = urls.iter().collect();
    assert!(distinct.len() > 1000, "{}", distinct.len());
    let (_, roots) = tls_server(&["public.example"]);
    let downloader =
        Downloader::with_net(DownloadConfig::default(), Net::with_wire(wire.clone(), roots.clone()));
    for url in &urls {
        let result = downloader.fetch(&Secret::new(url.as_str())).await;
        assert!(matches!(result, Err(FetchError::NotAllowed(_))), "{url}: {result:?}");
        assert_eq!(wire.dialled(), Vec::<String>::new(), "{url}");
    }
    // Entries that allow every name and some ports open no way to an address inside.
    let hosts = ["https://*", "http://*", "http://*:8080", "https://*:8080"];
    let hosts = hosts.map(|entry| entry.parse().expect("an entry")).to_vec();
    let open = DownloadConfig { hosts, ..DownloadConfig::default() };
    let downloader = Downloader::with_net(open, Net::with_wire(wire.clone(), roots));
    for url in
        urls.iter().filter(|url| !url.contains("://public.example") && !url.contains("://b.aliyuncs.com/"))
    {
        let result = downloader.fetch(&Secret::new(url.as_str())).await;
        assert!(matches!(result, Err(FetchError::NotAllowed(_))), "{url}: {result:?}");
        assert_eq!(wire.dialled(), Vec::<String>::new(), "{url}");
    }
}

#[tokio::test]
async fn a_name_that_changes_its_mind_is_resolved_once_and_never_led_inside() {
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            answer(&mut stream, &response("200 OK", "", PNG)).await;
        }
    });
    let (_, roots) = tls_server(&["b.aliyuncs.com"]);
    for inside in inside() {
        let inside = inside.to_string();
        // One answer for each fetch: what is asked for a second time would come from the next.
        let mut wire = FakeWire::default().route("8.8.8.8:80", address);
        for addresses in
            [&["8.8.8.8"][..], &[&inside], &["8.8.8.8"], &["8.8.8.8", &inside], &["8.8.8.8"], &[&inside]]
        {
            wire = wire.name("b.aliyuncs.com", addresses);
        }
        let net = Net::with_wire(wire.clone(), roots.clone());
        let downloader = Downloader::with_net(DownloadConfig::default(), net);
        let url = Secret::new("http://b.aliyuncs.com/a.png");
        for is_public in [true, false, true, false, true, false, false] {
            let result = downloader.fetch(&url).await;
            match is_public {
                true => assert!(result.is_ok(), "{inside}: {result:?}"),
                false => assert!(matches!(result, Err(FetchError::NotAllowed(_))), "{inside}: {result:?}"),
            }
        }
        // Both schemes of three fetches, each at the address that was checked.
        assert_eq!(wire.dialled(), ["8.8.8.8:443", "8.8.8.8:80"].repeat(3), "{inside}");
    }
}
