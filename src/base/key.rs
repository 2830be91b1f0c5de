//! The identity of a request, [`CacheKey`], and of a result, [`Digest`].
//!
//! `key = BLAKE3(image bytes ‖ width as u32 little-endian ‖ height as u32 little-endian)`. The suffix has a
//! fixed length, so no two inputs share an encoding. A change of the key buys the whole archive again; tests
//! pin some.

use std::fmt;
use std::str::FromStr;

/// Shown as 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheKey([u8; 32]);

/// BLAKE3 of the bytes of a result or of an uploaded picture.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// Hashes a picture while it arrives, and the numbers at the end, so that form fields may have any order.
#[derive(Default, Clone)]
pub struct KeyHasher(blake3::Hasher);

impl KeyHasher {
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The digest of the picture, and the key.
    pub fn finish(mut self, width: u32, height: u32) -> (Digest, CacheKey) {
        let image = Digest(*self.0.finalize().as_bytes());
        self.0.update(&width.to_le_bytes());
        self.0.update(&height.to_le_bytes());
        (image, CacheKey(*self.0.finalize().as_bytes()))
    }
}

impl CacheKey {
    pub fn of(image: &[u8], width: u32, height: u32) -> Self {
        let mut hasher = KeyHasher::default();
        hasher.update(image);
        hasher.finish(width, height).1
    }
}

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not 64 lower-case hex digits")]
pub struct InvalidHex;

/// One spelling per value, so that a name has one file.
fn parse_hex(text: &str) -> Result<[u8; 32], InvalidHex> {
    if text.len() != 64 || text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(InvalidHex);
    }
    blake3::Hash::from_hex(text).map(|hash| *hash.as_bytes()).map_err(|_| InvalidHex)
}

macro_rules! hex_identity {
    ($name:ident) => {
        impl $name {
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            pub fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }
        }

        impl FromStr for $name {
            type Err = InvalidHex;
            fn from_str(text: &str) -> Result<Self, InvalidHex> {
                parse_hex(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_identity!(CacheKey);
hex_identity!(Digest);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// These keys are on disk and in buckets. If this test fails, every customer pays again.
    #[test]
    fn pinned_keys_never_change() {
        for (image, width, height, key) in [
            (&b""[..], 1, 1, "88ada2950bdc9ee2d8c8ccb2de23ff4123479861015241301292c84c981e5daf"),
            (&b"granary"[..], 400, 400, "285c6995d1f2fcabf8cdba6f34f90395d2c57522dc2ae3569480e85ec6112023"),
            (&b"granary"[..], 400, 401, "94a383ce587a3fb15645c3afc5b972823e0fc1e8129a0e9c814ce05979c8c60e"),
            (&b"granary"[..], 65535, 1, "c018da198604a11f0f334d4f18261dbb325a3659eacaa9e335c789209ec39a52"),
        ] {
            assert_eq!(CacheKey::of(image, width, height).to_string(), key);
        }
    }

    #[test]
    fn the_key_is_the_documented_hash_of_a_plain_concatenation() {
        let mut plain = b"picture".to_vec();
        plain.extend_from_slice(&640u32.to_le_bytes());
        plain.extend_from_slice(&427u32.to_le_bytes());
        assert_eq!(CacheKey::of(b"picture", 640, 427).to_string(), blake3::hash(&plain).to_hex().as_str());
    }

    #[test]
    fn one_value_has_one_spelling() {
        let key = CacheKey::of(b"x", 2, 3);
        let text = key.to_string();
        assert_eq!(text.parse(), Ok(key));
        let long = format!("{text}0");
        for wrong in ["", &text[1..], &text.to_uppercase(), &long, &format!("{}g", &text[1..])] {
            assert_eq!(wrong.parse::<CacheKey>(), Err(InvalidHex), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter_and_every_byte_and_number_does(
            image in proptest::collection::vec(any::<u8>(), 1..600),
            cut in any::<prop::sample::Index>(),
            flip in any::<prop::sample::Index>(),
            width in 1u32..=65535, height in 1u32..=65535,
        ) {
            let whole = CacheKey::of(&image, width, height);
            let cut = cut.index(image.len());
            let mut hasher = KeyHasher::default();
            hasher.update(&image[..cut]);
            hasher.update(&image[cut..]);
            prop_assert_eq!(hasher.finish(width, height), (Digest::of(&image), whole));

            let mut other = image.clone();
            other[flip.index(image.len())] ^= 1;
            prop_assert_ne!(CacheKey::of(&other, width, height), whole);
            prop_assert_ne!(CacheKey::of(&image, width + 1, height), whole);
            prop_assert_ne!(CacheKey::of(&image, width, height + 1), whole);
            if width != height {
                prop_assert_ne!(CacheKey::of(&image, height, width), whole);
            }
        }
    }
}
