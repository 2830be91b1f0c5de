//! Finds our key in an answer, in every form that servers put text in ([`quotes`]).

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use memchr::memmem;

use crate::base::envelope::decodings;
use crate::base::secret::Secret;

/// A piece counts as the key if it has half of its length, within these bounds.
const LONGEST_PIECE: usize = 12;
const SHORTEST_PIECE: usize = 8;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Returns true if `text` has the key or half of it: any case, backwards, JSON or percent escapes, base64 or hex.
pub(super) fn quotes(key: &Secret, text: &str) -> bool {
    let key = key.expose().to_ascii_lowercase().into_bytes();
    let piece = (key.len() / 2).clamp(SHORTEST_PIECE, LONGEST_PIECE).min(key.len());
    if piece == 0 {
        return false;
    }
    let backwards: Vec<u8> = key.iter().rev().copied().collect();
    let pieces: Vec<_> =
        key.windows(piece).chain(backwards.windows(piece)).map(memmem::Finder::new).collect();
    let has_piece = |bytes: &[u8]| {
        let bytes = bytes.to_ascii_lowercase();
        pieces.iter().any(|finder| finder.find(&bytes).is_some())
    };
    decodings(text).iter().any(|form| {
        has_piece(form.as_bytes())
            || runs(form, piece, is_base64).any(|run| base64(run).iter().any(|bytes| has_piece(bytes)))
            || runs(form, piece * 2, |byte| byte.is_ascii_hexdigit())
                .any(|run| hex(run).iter().any(|bytes| has_piece(bytes)))
    })
}

fn runs(text: &str, length: usize, is_part: fn(u8) -> bool) -> impl Iterator<Item = &[u8]> {
    text.as_bytes().split(move |byte| !is_part(*byte)).filter(move |run| run.len() >= length)
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_')
}

/// Decodes a run from each of its first four characters, because it may be the end of a longer text.
fn base64(run: &[u8]) -> Vec<Vec<u8>> {
    let standard = |byte: &u8| match byte {
        b'-' => b'+',
        b'_' => b'/',
        other => *other,
    };
    let run: Vec<u8> = run.iter().map(standard).collect();
    let decoded = (0..4).filter_map(|skipped| {
        let run = run.get(skipped..)?;
        // A single last character encodes nothing.
        let length = if run.len() % 4 == 1 { run.len() - 1 } else { run.len() };
        BASE64.decode(&run[..length]).ok()
    });
    decoded.collect()
}

fn hex(run: &[u8]) -> Vec<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or_default() as u8;
    let bytes = |run: &[u8]| run.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect();
    vec![bytes(run), bytes(&run[1..])]
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD as PADDED, URL_SAFE_NO_PAD};

    use super::*;

    const KEYS: [&str; 3] = ["server-held-secret-key-0123456789", "aB3?/~x9K+Lq7Zz_", "Kx7pQ2mV9tR4wY8z"];

    fn each(key: &str, write: impl Fn(u8) -> String) -> String {
        key.bytes().map(write).collect()
    }

    fn forms(key: &str) -> Vec<String> {
        let half = key.len() / 2;
        vec![
            key.to_owned(),
            key.to_ascii_uppercase(),
            key.to_ascii_lowercase(),
            key.chars().rev().collect(),
            key[..half].to_owned(),
            key[key.len() - half.max(8)..].to_owned(),
            each(key, |byte| format!("\\u{byte:04x}")),
            each(key, |byte| format!("\\\\u{byte:04X}")),
            each(key, |byte| format!("\\x{byte:02x}")),
            each(key, |byte| format!("%{byte:02x}")),
            each(key, |byte| format!("%25{byte:02X}")),
            each(key, |byte| format!("{byte:02x}")),
            format!("f{}", each(key, |byte| format!("{byte:02X}"))),
            PADDED.encode(key),
            URL_SAFE_NO_PAD.encode(key),
            PADDED.encode(format!("user:{key}")),
            PADDED.encode(format!("ab{key}cd")),
            PADDED.encode(key).replace('=', "%3D"),
            PADDED.encode(key.to_ascii_uppercase()),
        ]
    }

    #[test]
    fn key_is_found_in_every_form() {
        for key in KEYS {
            for form in forms(key) {
                for text in [
                    form.clone(),
                    format!("bad key {form}!"),
                    format!(r#"{{"m":"{form}"}}"#),
                    format!("x={form}&y"),
                ] {
                    assert!(quotes(&Secret::new(key), &text), "{key} in {text}");
                }
            }
        }
    }

    #[test]
    fn text_without_the_key_passes() {
        let answer = r#"{"data":{"url":"https://h.example/a.jpg?s=1"},"error_code":0,"log_id":"77496025","request_id":"A6697900-DAA5-510F-BF1E-12F51DAD40D1","m":"bad key server-held Kx7pQ2m 0123456"}"#;
        for key in KEYS {
            assert!(!quotes(&Secret::new(key), answer), "{key}");
            assert!(!quotes(&Secret::new(key), ""));
        }
        assert!(!quotes(&Secret::new(""), answer));
        assert!(quotes(&Secret::new("held"), answer), "of a short key the whole");
        assert!(!quotes(&Secret::new("helds"), answer));
    }
}
