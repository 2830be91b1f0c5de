//! The token of a team: `granary_<id>_<secret>`.

use std::fmt::{self, Write as _};

use jiff::Timestamp;

use crate::base::secret::Secret;

/// So that people and secret scanners recognize tokens.
pub(super) const PREFIX: &str = "granary_";
const ID_LENGTH: usize = 8;
/// Hex digits of a secret: 256 bits.
const SECRET_LENGTH: usize = 64;
/// Other lengths are refused before hashing.
const TOKEN_LENGTH: usize = PREFIX.len() + ID_LENGTH + 1 + SECRET_LENGTH;
/// 32 characters: five random bits choose one.
const ID_ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// The public name of a token: 8 of a-z and 0-9.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenId([u8; ID_LENGTH]);

impl TokenId {
    pub fn parse(text: &str) -> Option<Self> {
        let id = text.as_bytes().try_into().ok()?;
        text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()).then_some(Self(id))
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| f.write_char(char::from(*byte)))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub id: TokenId,
    /// BLAKE3 of the whole token; comparing two takes constant time.
    pub hash: blake3::Hash,
    pub expires: Option<Timestamp>,
}

impl Token {
    /// Makes a token: the text to hand out, which is not kept, and the stored part.
    pub fn generate(expires: Option<Timestamp>) -> Result<(Secret, Self), getrandom::Error> {
        let mut random = [0; ID_LENGTH + SECRET_LENGTH / 2];
        getrandom::fill(&mut random)?;
        let (for_id, for_secret) = random.split_at(ID_LENGTH);
        let mut id = [0; ID_LENGTH];
        for (character, random) in id.iter_mut().zip(for_id) {
            *character = ID_ALPHABET[usize::from(random % 32)];
        }
        let id = TokenId(id);
        // At its final capacity, so that no reallocated copy stays in memory.
        let mut text = String::with_capacity(TOKEN_LENGTH);
        // Writing to a String cannot fail.
        let _ = write!(text, "{PREFIX}{id}_");
        for byte in for_secret {
            let _ = write!(text, "{byte:02x}");
        }
        let hash = blake3::hash(text.as_bytes());
        Ok((Secret::new(text), Self { id, hash, expires }))
    }

    pub(super) fn id_of(text: &str) -> Option<TokenId> {
        if text.len() != TOKEN_LENGTH {
            return None;
        }
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        TokenId::parse(id).filter(|_| secret.len() == SECRET_LENGTH && secret.bytes().all(is_hex))
    }
}
