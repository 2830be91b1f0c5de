//! `host[:port]`, as a `Host` line and an absolute target name it.

/// A host and a port, in the spelling they came in.
pub(super) struct Host<'a> {
    name: &'a str,
    port: &'a str,
}

impl<'a> Host<'a> {
    /// `None` for anything else, such as a path, a user's name or blanks within.
    pub(super) fn parse(value: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let (name, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, after) = rest.split_once(']')?;
                address.parse::<std::net::Ipv6Addr>().ok()?;
                (&text[..address.len() + 2], after)
            }
            None => {
                let (name, after) = text.split_at(text.find(':').unwrap_or(text.len()));
                let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte);
                if name.is_empty() || !name.bytes().all(is_plain) {
                    return None;
                }
                (name, after)
            }
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => "",
            Some("") => "",
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse::<u16>().ok()?;
                digits
            }
            _ => return None,
        };
        Some(Self { name, port })
    }
}

/// Do both mean the same under this scheme?
pub(super) fn same_place(one: &Host<'_>, other: &Host<'_>, scheme: &str) -> bool {
    let default = if scheme == "https" { 443 } else { 80 };
    let port = |host: &Host<'_>| host.port.parse::<u16>().unwrap_or(default);
    one.name.eq_ignore_ascii_case(other.name) && port(one) == port(other)
}
