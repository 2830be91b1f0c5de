//! Looks for secrets where they must not be: in bytes, answers, logs, files and whole directories, in any dress they might wear.
//!
//! A secret is looked for as it is, reversed, in hex, in base64 at each of the three offsets a longer text can give it,
//! percent-encoded, and escaped as JSON may escape it. Files are read as raw bytes, database files too, so a row that was
//! deleted and not overwritten is found as well. Compressed data are not opened.

mod encodings;

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::Path;

use encodings::encodings;
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
        let plain: Vec<_> =
            secrets.into_iter().map(|(name, bytes)| (name.into(), bytes.as_ref().to_vec())).collect();
        let mut needles = Vec::new();
        for (name, bytes) in &plain {
            assert!(bytes.len() >= 8, "{name} is too short to be told from chance");
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
        Secrets { needles, plain, fragment: None }
    }

    /// Looks for every piece of `length` plain bytes too. Only for secrets without a public part, such as a prefix.
    #[must_use]
    pub fn with_fragments(mut self, length: usize) -> Secrets {
        assert!(length >= 8, "fragments of {length} bytes are found by chance");
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
            let whole = self.needles.iter().filter(|needle| needle.finder.find(bytes).is_some());
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

    /// The same for every file under a directory, and for the names of the files. Links are not followed; a file that
    /// vanishes between being listed and being read (a running server has such) is passed over.
    ///
    /// # Errors
    ///
    /// If something in it cannot be read: a file that was not looked into is not a clean one.
    pub fn scan_dir(&self, root: impl AsRef<Path>) -> io::Result<Vec<Leak>> {
        let mut leaks = Vec::new();
        let mut entries: Vec<_> = std::fs::read_dir(root)?.collect();
        while let Some(entry) = entries.pop() {
            let (path, kind) = {
                let entry = entry?;
                (entry.path(), entry.file_type()?)
            };
            let place = path.to_string_lossy().into_owned();
            let name = path.file_name().expect("an entry has a name");
            leaks.extend(self.find_leaks([(format!("the name {place}"), name.as_encoded_bytes())]));
            let read = if kind.is_dir() {
                std::fs::read_dir(&path).map(|inner| entries.extend(inner))
            } else if kind.is_file() {
                std::fs::read(&path).map(|bytes| leaks.extend(self.find_leaks([(place, bytes)])))
            } else {
                Ok(())
            };
            read.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
        }
        Ok(leaks)
    }

    fn fragments(&self, length: usize, place: &str, bytes: &[u8]) -> Vec<Leak> {
        let touched = self.plain.iter().filter(|(_, secret)| {
            let pieces: HashSet<&[u8]> = secret.windows(length).collect();
            bytes.windows(length).any(|here| pieces.contains(here))
        });
        touched
            .map(|(secret, _)| Leak { secret: secret.clone(), place: place.to_owned(), encoding: "fragment" })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use base64::Engine as _;

    const SECRET: &[u8] = b"s3cret/with+odd=bytes \"and\" <more>";

    fn secrets() -> Secrets {
        Secrets::new([("upstream key", SECRET), ("team token", b"granary_ab_0123456789")])
    }

    fn check(planted: impl AsRef<[u8]>, encoding: &str) {
        let haystack = [b"before ", planted.as_ref(), b" after"].concat();
        let leaks = secrets().find_leaks([("here", haystack)]);
        let expected = Leak { secret: "upstream key".into(), place: "here".into(), encoding: "" };
        assert!(leaks.iter().any(|l| l.encoding == encoding), "{encoding}: {leaks:?}");
        assert!(leaks.iter().all(|l| Leak { encoding: "", ..l.clone() } == expected), "{leaks:?}");
    }

    // Each planted text is written out, or made by other code than the code that looks for it.
    #[test]
    fn every_encoding_that_is_planted_is_found() {
        let text = std::str::from_utf8(SECRET).unwrap();
        check(SECRET, "raw");
        check(text.chars().rev().collect::<String>(), "reversed");
        check("7333637265742f776974682b6f64643d62797465732022616e6422203c6d6f72653e", "hex, lower case");
        check("7333637265742F776974682B6F64643D62797465732022616E6422203C6D6F72653E", "hex, upper case");
        check(format!("{SECRET:?}"), "list of numbers");
        check("s3cret%2Fwith%2Bodd%3Dbytes%20%22and%22%20%3Cmore%3E", "percent, reserved bytes");
        check("s3cret%2fwith%2bodd%3dbytes%20%22and%22%20%3cmore%3e", "percent, reserved bytes, lower case");
        check(SECRET.iter().map(|b| format!("%{b:02X}")).collect::<String>(), "percent, every byte");
        check(
            SECRET.iter().map(|b| format!("%{b:02x}")).collect::<String>(),
            "percent, every byte, lower case",
        );
        check(SECRET.iter().map(|b| format!("\\x{b:02x}")).collect::<String>(), "hex, escaped");
        check(SECRET.iter().map(|b| format!("\\u00{b:02x}")).collect::<String>(), "JSON, every byte");
        check(
            SECRET.iter().map(|b| format!("\\u00{b:02X}")).collect::<String>(),
            "JSON, every byte, upper case",
        );
        check(r#"s3cret/with+odd=bytes \"and\" <more>"#, "JSON");
        check(r#"s3cret\/with+odd=bytes \"and\" <more>"#, "JSON, escaped slashes");
        check(r#"s3cret\u002fwith+odd=bytes \"and\" <more>"#, "JSON, unicode slashes");
        check(r#"s3cret/with\u002bodd\u003dbytes \"and\" \u003cmore\u003e"#, "JSON, safe for pages");
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
                assert!(!secrets().find_leaks([("here", text)]).is_empty(), "{before} {after}");
            }
        }
        // 0xfb 0xff makes the characters in which the alphabets differ.
        let odd = [0xfb, 0xff, 0xfe, 0xfb, 0xff, 0xfe, 0xfb, 0xff, 0xfe];
        let found = Secrets::new([("odd", odd)]).find_leaks([("here", BASE64_URL_SAFE_NO_PAD.encode(odd))]);
        assert_eq!(found[0].encoding, "base64, URL-safe");
    }

    #[test]
    fn random_data_hold_no_secret() {
        let mut noise = vec![0; 1 << 20];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut noise);
        assert_eq!(secrets().with_fragments(8).find_leaks([("noise", &noise)]), []);
        let hex: String = noise.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(secrets().find_leaks([("hex", hex)]), []);
        // All but one byte of it is not it.
        assert_eq!(secrets().find_leaks([("short", &SECRET[1..])]), []);
    }

    #[test]
    fn fragments_are_found_when_asked_for() {
        let piece = &SECRET[5..15];
        assert_eq!(secrets().find_leaks([("here", piece)]), []);
        let found = secrets().with_fragments(10).find_leaks([("here", [b"x", piece, b"y"].concat())]);
        assert_eq!(
            found,
            [Leak { secret: "upstream key".into(), place: "here".into(), encoding: "fragment" }]
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
        std::fs::write(deep.join("ledger.db-wal"), [&[0; 4096], SECRET, &[0xff; 4096]].concat()).unwrap();
        std::fs::write(root.path().join("granary_ab_0123456789.json"), b"{}").unwrap();
        let leaks = secrets().scan_dir(root.path()).unwrap();
        let mut found: Vec<_> =
            leaks.iter().map(|l| (l.secret.as_str(), l.place.contains("ledger.db-wal"))).collect();
        found.sort_unstable();
        assert_eq!(found, [("team token", false), ("upstream key", true)]);
        assert!(secrets().scan_dir(root.path().join("absent")).is_err());
    }
}
