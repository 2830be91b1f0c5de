//! Hosts that results may be read from ([`HostRule`]).

use std::net::Ipv4Addr;
use std::str::FromStr;

use url::Host;

/// One entry of `result_hosts`: `[scheme://]host[:port]`. The scheme is by default `https`, the port the
/// scheme's. A name or an address stands for itself, even if private; `*.example.com` for every name below
/// `example.com` and `*` for every name, at public addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRule {
    scheme: Scheme,
    host: Pattern,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Any,
    Below(String),
    Exactly(Host),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Permission {
    /// An entry names the host itself, so private addresses are allowed.
    pub(super) anywhere: bool,
    /// Only patterns allow plain HTTP, so HTTPS is tried first.
    pub(super) https_first: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{entry:?} is not an entry for result_hosts: {reason}; write [scheme://]host[:port], such as \"https://*.example.com\""
)]
pub struct HostRuleError {
    entry: String,
    reason: &'static str,
}

impl Scheme {
    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::Http, Self::Https].into_iter().find(|scheme| text.eq_ignore_ascii_case(scheme.as_str()))
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    pub(super) fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl HostRule {
    /// HTTPS on 443 to any public host, and plain HTTP to the vendor and its object storage.
    pub fn defaults() -> Vec<Self> {
        let rule = |scheme: Scheme, host| Self { scheme, host, port: scheme.default_port() };
        let vendor = |suffix: &str| rule(Scheme::Http, Pattern::Below(suffix.to_owned()));
        vec![rule(Scheme::Https, Pattern::Any), vendor("ailabtools.com"), vendor("aliyuncs.com")]
    }

    fn admits(&self, scheme: Scheme, host: &Host, port: u16) -> bool {
        let host_fits = match (&self.host, host) {
            (Pattern::Any, Host::Domain(_)) => true,
            (Pattern::Below(suffix), Host::Domain(name)) => name
                .strip_suffix(suffix.as_str())
                .is_some_and(|below| below.len() > 1 && below.ends_with('.')),
            (Pattern::Any | Pattern::Below(_), Host::Ipv4(_) | Host::Ipv6(_)) => false,
            (Pattern::Exactly(named), host) => named == host,
        };
        host_fits && self.scheme == scheme && self.port == port
    }
}

/// `None` if no rule allows the place.
pub(super) fn permission(rules: &[HostRule], scheme: Scheme, host: &Host, port: u16) -> Option<Permission> {
    let mut admitting = rules.iter().filter(|rule| rule.admits(scheme, host, port)).peekable();
    admitting.peek()?;
    let anywhere = admitting.any(|rule| matches!(rule.host, Pattern::Exactly(_)));
    let https_first = scheme == Scheme::Http && port == scheme.default_port() && !anywhere;
    Some(Permission { anywhere, https_first })
}

/// Reads a DNS name or an address in its plain spelling; others (`0x7f.1`, `2130706433`) are refused.
pub(super) fn parse_host(text: &str) -> Option<Host> {
    if let Some(inner) = text.strip_prefix('[') {
        return inner.strip_suffix(']')?.parse().ok().map(Host::Ipv6);
    }
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Some(Host::Ipv4(address));
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // No top-level domain begins with a digit, but every spelling of a number does.
    let is_number = text.rsplit('.').next()?.starts_with(|first: char| first.is_ascii_digit());
    let is_name = text.len() <= 253 && text.split('.').all(is_label) && !is_number;
    is_name.then(|| Host::Domain(text.to_ascii_lowercase()))
}

pub(super) fn split_port(authority: &str) -> Result<(&str, Option<u16>), &'static str> {
    // A colon inside brackets belongs to an IPv6 address.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => return Ok((authority, None)),
    };
    let is_plain = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse() {
        Ok(number) if is_plain && number != 0 => Ok((host, Some(number))),
        _ => Err("the port is not a number from 1 to 65535"),
    }
}

impl FromStr for HostRule {
    type Err = HostRuleError;

    fn from_str(entry: &str) -> Result<Self, HostRuleError> {
        let error = |reason| HostRuleError { entry: entry.chars().take(100).collect(), reason };
        let (scheme, authority) = match entry.split_once("://") {
            None => (Scheme::Https, entry),
            Some((scheme, authority)) => {
                (Scheme::parse(scheme).ok_or_else(|| error("the scheme is not http or https"))?, authority)
            }
        };
        let (host, port) = split_port(authority).map_err(error)?;
        let named = |text| parse_host(text).ok_or_else(|| error("the host is not a name or an address"));
        let host = match host.strip_prefix('*') {
            None => Pattern::Exactly(named(host)?),
            Some("") => Pattern::Any,
            Some(rest) => match rest.strip_prefix('.').map(named) {
                Some(Ok(Host::Domain(suffix))) => Pattern::Below(suffix),
                _ => return Err(error("a * must stand alone, or be followed by a dot and a name")),
            },
        };
        Ok(Self { scheme, host, port: port.unwrap_or(scheme.default_port()) })
    }
}

#[cfg(test)]
mod tests;
