//! The dresses a secret might wear: every way of writing it that is looked for.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::alphabet::{Alphabet, STANDARD, URL_SAFE};
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};

/// Every way of writing `bytes` that is looked for. Some are equal for some secrets; the first name wins.
pub(super) fn encodings(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let each = |write: &dyn Fn(&mut String, u8)| {
        let mut text = String::new();
        bytes.iter().for_each(|&byte| write(&mut text, byte));
        text.into_bytes()
    };
    let put = |text: &mut String, written: std::fmt::Arguments<'_>| {
        text.write_fmt(written).expect("a String takes all")
    };
    let mut all = vec![
        ("raw", bytes.to_vec()),
        ("reversed", bytes.iter().rev().copied().collect()),
        ("hex, lower case", each(&|t, b| put(t, format_args!("{b:02x}")))),
        ("hex, upper case", each(&|t, b| put(t, format_args!("{b:02X}")))),
        ("hex, escaped", each(&|t, b| put(t, format_args!("\\x{b:02x}")))),
        (
            "list of numbers",
            each(&|t, b| put(t, format_args!("{}{b}", if t.is_empty() { "" } else { ", " }))),
        ),
        ("percent, every byte", each(&|t, b| put(t, format_args!("%{b:02X}")))),
        ("percent, every byte, lower case", each(&|t, b| put(t, format_args!("%{b:02x}")))),
        ("percent, reserved bytes", each(&|t, b| percent(t, b, true))),
        ("percent, reserved bytes, lower case", each(&|t, b| percent(t, b, false))),
        ("JSON, every byte", each(&|t, b| put(t, format_args!("\\u{b:04x}")))),
        ("JSON, every byte, upper case", each(&|t, b| put(t, format_args!("\\u{b:04X}")))),
    ];
    let text = String::from_utf8_lossy(bytes);
    let json = serde_json::Value::from(text.as_ref()).to_string();
    let json = &json[1..json.len() - 1];
    all.push(("JSON", json.into()));
    all.push(("JSON, escaped slashes", json.replace('/', "\\/").into()));
    all.push(("JSON, unicode slashes", json.replace('/', "\\u002f").into()));
    all.push(("JSON, safe for pages", page_safe(json).into_bytes()));
    for (name, alphabet) in [("base64", &STANDARD), ("base64, URL-safe", &URL_SAFE)] {
        all.extend((0..3).map(|offset| (name, base64_at(bytes, offset, alphabet))));
    }
    all
}

/// The characters of a base64 text that depend on `bytes` alone when `offset` unknown bytes (and any number of threes) precede it.
fn base64_at(bytes: &[u8], offset: usize, alphabet: &Alphabet) -> Vec<u8> {
    let shifted = [&[0; 2][..offset], bytes].concat();
    let text = GeneralPurpose::new(alphabet, NO_PAD).encode(&shifted);
    let (from, to) = ((offset * 8).div_ceil(6), shifted.len() * 8 / 6);
    text.as_bytes()[from..to].to_vec()
}

fn percent(text: &mut String, byte: u8, upper: bool) {
    let written = match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ if upper => format!("%{byte:02X}"),
        _ => format!("%{byte:02x}"),
    };
    text.push_str(&written);
}

/// As encoders write JSON that may stand in a page.
fn page_safe(json: &str) -> String {
    let mut text = String::new();
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\'' | '+' | '=' => text.push_str(&format!("\\u{:04x}", c as u32)),
            _ => text.push(c),
        }
    }
    text
}
