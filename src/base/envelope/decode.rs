//! Undoes escapes: [`decodings`].

use percent_encoding::percent_decode_str;

/// The depth of escapes within escapes.
const ROUNDS: usize = 4;

/// The text, and its forms after repeated decoding of backslash escapes and percent-encoding.
pub fn decodings(text: &str) -> Vec<String> {
    let mut forms = vec![text.to_owned()];
    for _ in 0..ROUNDS {
        let last = &forms[forms.len() - 1];
        if !last.contains(['\\', '%']) {
            break;
        }
        let unescaped = unescape(last);
        let decoded = percent_decode_str(&unescaped).decode_utf8_lossy().into_owned();
        if decoded == *last {
            break;
        }
        forms.push(decoded);
    }
    forms
}

/// Undoes `\u0041`, `\x41` and `\/`, as JSON, JavaScript and C spell characters.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let digits = match rest.bytes().next() {
            Some(b'u') => 4,
            Some(b'x') => 2,
            _ => 0,
        };
        let code = rest.get(1..1 + digits).filter(|_| digits > 0);
        let character = code.and_then(|code| char::from_u32(u32::from_str_radix(code, 16).ok()?));
        match character {
            Some(character) => {
                out.push(character);
                rest = &rest[1 + digits..];
            }
            // The escaped character stands for itself; a second backslash may begin another escape.
            None => {
                let length = rest.chars().next().map_or(0, char::len_utf8);
                out.push_str(&rest[..length]);
                rest = &rest[length..];
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_within_escapes_are_undone() {
        for (text, last) in [
            ("plain", "plain"),
            (r"\u0073\u0065same", "sesame"),
            (r"\\u0073esame", "sesame"),
            (r"\x73esame", "sesame"),
            (r"https:\/\/h", "https://h"),
            ("%73esame", "sesame"),
            ("%2573esame", "sesame"),
            (r"\u002573esame", "sesame"),
            (r"\ud83d 100% \u12 \", "ud83d 100% u12 "),
            (r"\é\u", "éu"),
        ] {
            assert_eq!(decodings(text).last().map(String::as_str), Some(last), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn decoding_never_panics(text in r"[\\ux%0-9a-fé]{0,40}|.*") {
            proptest::prop_assert!(decodings(&text).len() <= ROUNDS + 1);
        }
    }
}
