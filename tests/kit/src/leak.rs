//! Looks for secrets where they must not be: in bytes, answers, logs, files and whole directories, in any dress they might wear.
//!
//! A secret is looked for as it is, reversed, in hex, in base64 at each of the three offsets a longer text can give it,
//! percent-encoded, and escaped as JSON may escape it. Files are read as raw bytes, database files too, so a row that was
//! deleted and not overwritten is found as well. Compressed data are not opened.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write as _;
use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::alphabet::{Alphabet, STANDARD, URL_SAFE};
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use memchr::memmem::Finder;

/// One secret found in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    /// The name it was given.
    pub secret: String,
    /// Where it was.
    pub place: String,
    /// How it was written there.
    pub encoding: &'static str,
}

struct Needle {
    secret: String,
    encoding: &'static str,
    finder: Finder<'static>,
}

/// A set of secrets to look for.
pub struct Secrets {
    needles: Vec<Needle>,
    plain: Vec<(String, Vec<u8>)>,
    fragment: Option<usize>,
}

impl Secrets {
    /// Named secrets.
    ///
    /// # Panics
    ///
    /// If one is shorter than eight bytes: chance would find it.
    pub fn new<N, B>(secrets: impl IntoIterator<Item = (N, B)>) -> Secrets
    where
        N: Into<String>,
        B: AsRef<[u8]>,
    {
        let plain: Vec<_> = secrets
            .into_iter()
            .map(|(name, bytes)| (name.into(), bytes.as_ref().to_vec()))
            .collect();
        let mut needles = Vec::new();
        for (name, bytes) in &plain {
            assert!(
                bytes.len() >= 8,
                "{name} is too short to be told from chance"
            );
            let mut known = BTreeSet::new();
            for (encoding, form) in encodings(bytes) {
                if known.insert(form.clone()) {
                    needles.push(Needle {
                        secret: name.clone(),
                        encoding,
                        finder: Finder::new(&form).into_owned(),
                    });
                }
            }
        }
        Secrets {
            needles,
            plain,
            fragment: None,
        }
    }

    /// Looks for every piece of `length` plain bytes too. Only for secrets without a public part, such as a prefix.
    #[must_use]
    pub fn with_fragments(mut self, length: usize) -> Secrets {
        assert!(
            length >= 8,
            "fragments of {length} bytes are found by chance"
        );
        self.fragment = Some(length);
        self
    }

    /// Every secret in every place that holds it, once for each way it is written there.
    pub fn find_leaks<N, B>(&self, haystacks: impl IntoIterator<Item = (N, B)>) -> Vec<Leak>
    where
        N: Into<String>,
        B: AsRef<[u8]>,
    {
        let mut leaks = Vec::new();
        for (place, bytes) in haystacks {
            let (place, bytes) = (place.into(), bytes.as_ref());
            let whole = self
                .needles
                .iter()
                .filter(|needle| needle.finder.find(bytes).is_some());
            leaks.extend(whole.map(|n| Leak {
                secret: n.secret.clone(),
                place: place.clone(),
                encoding: n.encoding,
            }));
            if let Some(length) = self.fragment {
                leaks.extend(self.fragments(length, &place, bytes));
            }
        }
        leaks
    }

    /// The same for every file under a directory, and for the names of the files.
    ///
    /// # Errors
    ///
    /// If something in it cannot be read: a file that was not looked into is not a clean one.
    pub fn scan_dir(&self, root: impl AsRef<Path>) -> io::Result<Vec<Leak>> {
        let mut leaks = Vec::new();
        let mut open = vec![root.as_ref().to_owned()];
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(directory)? {
                let entry = entry?;
                let path = entry.path();
                let name = path.to_string_lossy().into_owned();
                leaks.extend(self.find_leaks([(
                    format!("the name {name}"),
                    entry.file_name().as_encoded_bytes(),
                )]));
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    open.push(path);
                } else if kind.is_file() {
                    leaks.extend(self.find_leaks([(name, std::fs::read(&path)?)]));
                }
            }
        }
        Ok(leaks)
    }

    fn fragments(&self, length: usize, place: &str, bytes: &[u8]) -> Vec<Leak> {
        let here: HashSet<&[u8]> = bytes.windows(length).collect();
        let touched = self
            .plain
            .iter()
            .filter(|(_, secret)| secret.windows(length).any(|piece| here.contains(piece)));
        touched
            .map(|(secret, _)| Leak {
                secret: secret.clone(),
                place: place.to_owned(),
                encoding: "fragment",
            })
            .collect()
    }
}

/// Every way of writing `bytes` that is looked for. Some are equal for some secrets; the first name wins.
fn encodings(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
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
        (
            "hex, lower case",
            each(&|t, b| put(t, format_args!("{b:02x}"))),
        ),
        (
            "hex, upper case",
            each(&|t, b| put(t, format_args!("{b:02X}"))),
        ),
        (
            "hex, escaped",
            each(&|t, b| put(t, format_args!("\\x{b:02x}"))),
        ),
        (
            "list of numbers",
            each(&|t, b| {
                put(
                    t,
                    format_args!("{}{b}", if t.is_empty() { "" } else { ", " }),
                )
            }),
        ),
        (
            "percent, every byte",
            each(&|t, b| put(t, format_args!("%{b:02X}"))),
        ),
        (
            "percent, every byte, lower case",
            each(&|t, b| put(t, format_args!("%{b:02x}"))),
        ),
        ("percent, reserved bytes", each(&|t, b| percent(t, b, true))),
        (
            "percent, reserved bytes, lower case",
            each(&|t, b| percent(t, b, false)),
        ),
        (
            "JSON, every byte",
            each(&|t, b| put(t, format_args!("\\u{b:04x}"))),
        ),
        (
            "JSON, every byte, upper case",
            each(&|t, b| put(t, format_args!("\\u{b:04X}"))),
        ),
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
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"s3cret/with+odd=bytes \"and\" <more>";

    fn secrets() -> Secrets {
        Secrets::new([
            ("upstream key", SECRET),
            ("team token", b"granary_ab_0123456789"),
        ])
    }

    fn check(planted: impl AsRef<[u8]>, encoding: &str) {
        let haystack = [b"before ", planted.as_ref(), b" after"].concat();
        let leaks = secrets().find_leaks([("here", haystack)]);
        let expected = Leak {
            secret: "upstream key".into(),
            place: "here".into(),
            encoding: "",
        };
        assert!(
            leaks.iter().any(|l| l.encoding == encoding),
            "{encoding}: {leaks:?}"
        );
        assert!(
            leaks.iter().all(|l| Leak {
                encoding: "",
                ..l.clone()
            } == expected),
            "{leaks:?}"
        );
    }

    // Each planted text is written out, or made by other code than the code that looks for it.
    #[test]
    fn every_encoding_that_is_planted_is_found() {
        let text = std::str::from_utf8(SECRET).unwrap();
        check(SECRET, "raw");
        check(text.chars().rev().collect::<String>(), "reversed");
        check(
            "7333637265742f776974682b6f64643d62797465732022616e6422203c6d6f72653e",
            "hex, lower case",
        );
        check(
            "7333637265742F776974682B6F64643D62797465732022616E6422203C6D6F72653E",
            "hex, upper case",
        );
        check(format!("{SECRET:?}"), "list of numbers");
        check(
            "s3cret%2Fwith%2Bodd%3Dbytes%20%22and%22%20%3Cmore%3E",
            "percent, reserved bytes",
        );
        check(
            "s3cret%2fwith%2bodd%3dbytes%20%22and%22%20%3cmore%3e",
            "percent, reserved bytes, lower case",
        );
        check(
            SECRET
                .iter()
                .map(|b| format!("%{b:02X}"))
                .collect::<String>(),
            "percent, every byte",
        );
        check(
            SECRET
                .iter()
                .map(|b| format!("%{b:02x}"))
                .collect::<String>(),
            "percent, every byte, lower case",
        );
        check(
            SECRET
                .iter()
                .map(|b| format!("\\x{b:02x}"))
                .collect::<String>(),
            "hex, escaped",
        );
        check(
            SECRET
                .iter()
                .map(|b| format!("\\u00{b:02x}"))
                .collect::<String>(),
            "JSON, every byte",
        );
        check(
            SECRET
                .iter()
                .map(|b| format!("\\u00{b:02X}"))
                .collect::<String>(),
            "JSON, every byte, upper case",
        );
        check(r#"s3cret/with+odd=bytes \"and\" <more>"#, "JSON");
        check(
            r#"s3cret\/with+odd=bytes \"and\" <more>"#,
            "JSON, escaped slashes",
        );
        check(
            r#"s3cret\u002fwith+odd=bytes \"and\" <more>"#,
            "JSON, unicode slashes",
        );
        check(
            r#"s3cret/with\u002bodd\u003dbytes \"and\" \u003cmore\u003e"#,
            "JSON, safe for pages",
        );
    }

    #[test]
    fn base64_is_found_at_every_offset_and_with_anything_after() {
        use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
        for before in 0..7 {
            for after in 0..4 {
                let longer = [&vec![0xa5; before][..], SECRET, &vec![0x5a; after]].concat();
                check(BASE64_STANDARD.encode(&longer), "base64");
                // Where the two alphabets agree on every character, the standard one is reported.
                let text = BASE64_URL_SAFE_NO_PAD.encode(&longer);
                assert!(
                    !secrets().find_leaks([("here", text)]).is_empty(),
                    "{before} {after}"
                );
            }
        }
        // 0xfb 0xff makes the characters in which the alphabets differ.
        let odd = [0xfb, 0xff, 0xfe, 0xfb, 0xff, 0xfe, 0xfb, 0xff, 0xfe];
        let found =
            Secrets::new([("odd", odd)]).find_leaks([("here", BASE64_URL_SAFE_NO_PAD.encode(odd))]);
        assert_eq!(found[0].encoding, "base64, URL-safe");
    }

    #[test]
    fn random_data_hold_no_secret() {
        let mut noise = vec![0; 4 << 20];
        blake3::Hasher::new()
            .update(b"noise")
            .finalize_xof()
            .fill(&mut noise);
        assert_eq!(
            secrets().with_fragments(8).find_leaks([("noise", &noise)]),
            []
        );
        let hex: String = noise[..1 << 20]
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(secrets().find_leaks([("hex", hex)]), []);
        // All but one byte of it is not it.
        assert_eq!(secrets().find_leaks([("short", &SECRET[1..])]), []);
    }

    #[test]
    fn fragments_are_found_when_asked_for() {
        let piece = &SECRET[5..15];
        assert_eq!(secrets().find_leaks([("here", piece)]), []);
        let found = secrets()
            .with_fragments(10)
            .find_leaks([("here", [b"x", piece, b"y"].concat())]);
        assert_eq!(
            found,
            [Leak {
                secret: "upstream key".into(),
                place: "here".into(),
                encoding: "fragment"
            }]
        );
    }

    #[test]
    fn a_tree_is_searched_to_its_leaves_and_names() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("clean"), b"nothing here").unwrap();
        assert_eq!(secrets().scan_dir(root.path()).unwrap(), []);
        // A database page: binary around it, no line ends.
        std::fs::write(
            deep.join("ledger.db-wal"),
            [&[0; 4096], SECRET, &[0xff; 4096]].concat(),
        )
        .unwrap();
        std::fs::write(root.path().join("granary_ab_0123456789.json"), b"{}").unwrap();
        let leaks = secrets().scan_dir(root.path()).unwrap();
        let mut found: Vec<_> = leaks
            .iter()
            .map(|l| (l.secret.as_str(), l.place.contains("ledger.db-wal")))
            .collect();
        found.sort_unstable();
        assert_eq!(found, [("team token", false), ("upstream key", true)]);
        assert!(secrets().scan_dir(root.path().join("absent")).is_err());
    }
}
