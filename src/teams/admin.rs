//! The tokens of the admin listener: [`AdminTokens`].

use http::HeaderValue;

use super::Token;

/// The shortest token that cannot be guessed.
const SHORTEST: usize = 32;
const LONGEST: usize = 1024;
/// One in use, the next one, and a few for people.
const MOST: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminTokens(Vec<(String, blake3::Hash)>);

impl AdminTokens {
    pub const MAX_BYTES: u64 = 32 * 1024;

    /// One token per line, so that two overlap while one is replaced. Errors quote nothing.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut tokens = Vec::new();
        for token in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if !(SHORTEST..=LONGEST).contains(&token.len())
                || !token.bytes().all(|byte| byte.is_ascii_graphic())
            {
                return Err(format!(
                    "holds a line that is no token; write {SHORTEST} or more letters and digits on a line, such as \
                     openssl rand -hex 32 prints"
                ));
            }
            let hash = blake3::hash(token.as_bytes());
            tokens.push((id_of(token, &hash), hash));
        }
        match tokens.len() {
            0 => Err("holds no token; write one into it, such as openssl rand -hex 32 prints".to_owned()),
            1..=MOST => Ok(Self(tokens)),
            _ => Err(format!("holds more than {MOST} tokens; remove those nobody uses")),
        }
    }

    /// The token must be in the only `Authorization` header.
    pub fn authenticate<'h>(&self, mut authorization: impl Iterator<Item = &'h HeaderValue>) -> Option<&str> {
        let value = authorization.next().filter(|_| authorization.next().is_none())?;
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let hash = blake3::hash(token.trim().as_bytes());
        // Equality of `blake3::Hash` takes constant time, and all are compared.
        self.0.iter().fold(None, |found, (id, known)| if *known == hash { Some(id.as_str()) } else { found })
    }
}

/// Names a token in the audit: its own id, or the beginning of its hash.
fn id_of(token: &str, hash: &blake3::Hash) -> String {
    Token::id_of(token).map_or_else(|| hash.to_hex()[..8].to_owned(), |id| id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "0123456789abcdef0123456789abcdef";
    const OTHER: &str = "zyxwvutsrqponmlkjihgfedcba987654";

    fn authenticate(tokens: &AdminTokens, values: &[&str]) -> Option<String> {
        let values: Vec<HeaderValue> = values.iter().map(|value| value.parse().unwrap()).collect();
        tokens.authenticate(values.iter()).map(str::to_owned)
    }

    #[test]
    fn each_line_is_a_token_and_lets_its_holder_in() {
        let tokens = AdminTokens::parse(&format!("{ONE}\n\n  {OTHER}\r\n")).unwrap();
        let id = |token: &str| blake3::hash(token.as_bytes()).to_hex()[..8].to_owned();
        assert_eq!(authenticate(&tokens, &[&format!("Bearer {ONE}")]), Some(id(ONE)));
        assert_eq!(authenticate(&tokens, &[&format!("bearer  {OTHER} ")]), Some(id(OTHER)));
        let wrong = ONE.replace('f', "e");
        for values in [
            &[][..],
            &[""],
            &[ONE],
            &["Bearer"],
            &["Bearer "],
            &[&format!("Basic {ONE}")],
            &[&format!("Bearer {wrong}")],
            &[&format!("Bearer {ONE}{OTHER}")],
            &[&format!("Bearer {}", &ONE[..31])],
            &[&format!("Bearer {ONE}"), &format!("Bearer {ONE}")],
        ] {
            assert_eq!(authenticate(&tokens, values), None, "{values:?}");
        }
    }

    #[test]
    fn a_token_of_granarys_own_form_is_named_by_its_id() {
        let (secret, token) = Token::generate(None).unwrap();
        let tokens = AdminTokens::parse(secret.expose()).unwrap();
        let named = authenticate(&tokens, &[&format!("Bearer {}", secret.expose())]);
        assert_eq!(named, Some(token.id.to_string()));
    }

    #[test]
    fn what_is_no_list_of_tokens_is_refused_without_repeating_it() {
        let many = format!("{ONE}\n").repeat(17);
        for (text, expected) in [
            ("", "holds no token"),
            (" \n\n", "holds no token"),
            ("short", "no token"),
            (&format!("{ONE} {OTHER}"), "no token"),
            (&format!("{ONE}\u{e9}"), "no token"),
            (&many, "more than 16"),
        ] {
            let error = AdminTokens::parse(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(text.trim().is_empty() || !error.contains(&text[..5]), "{error}");
        }
    }
}
