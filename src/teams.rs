//! Authentication: a credential becomes a [`Team`], or an [`AuthError`]. [`Teams`] is immutable; a reload replaces
//! it. Tokens are kept as their public id and the BLAKE3 of the whole token, so nothing here can be used to call. A
//! token is found by its id, and its hash compared in constant time; an unknown id costs the same work.
//!
//! [`AdminTokens`] are kept apart: no team's token opens the admin listener, and no admin token buys.
//! Credentials in a query or cookie are not read.

mod admin;
pub(crate) mod policy;
mod token;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use jiff::Timestamp;

pub use admin::AdminTokens;
pub use token::{Token, TokenId};

use crate::base::words::words;

/// The upstream's clients send their key in it.
pub const API_KEY_HEADER: &str = "ailabapi-api-key";

pub const REFUSED_PER_DAY: u64 = 200;

/// While no teams are configured.
pub const LOCAL_TEAM: &str = "local";

/// In metrics, for teams without series of their own.
pub const OTHER_TEAMS: &str = "other";

/// Lower-case, so that names that look alike are alike.
pub fn is_team_name(name: &str) -> bool {
    let is_inner = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    (1..=64).contains(&name.len())
        && name.bytes().all(is_inner)
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
}

#[derive(Clone, Debug, PartialEq)]
pub struct Team {
    pub name: String,
    pub may_refresh: bool,
    pub disabled: bool,
    pub mode: BudgetMode,
    /// Per calendar day; `None` for no limit.
    pub daily_credits: Option<u64>,
    pub monthly_credits: Option<u64>,
    /// Per replica, more than 0; `None` for no limit.
    pub misses_per_second: Option<f64>,
    /// Refused by the upstream for their picture or numbers.
    pub refused_per_day: u64,
}

impl Team {
    pub fn local() -> Self {
        Self {
            name: LOCAL_TEAM.to_owned(),
            may_refresh: true,
            disabled: false,
            mode: BudgetMode::Enforce,
            daily_credits: None,
            monthly_credits: None,
            misses_per_second: None,
            refused_per_day: REFUSED_PER_DAY,
        }
    }
}

words! {
    pub enum BudgetMode { Enforce = "enforce", Shadow = "shadow" }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Teams {
    /// In the order of the configuration; the team `local` alone when there is none.
    teams: Vec<Arc<Team>>,
    /// `None`: no teams are configured, and access is unauthenticated.
    tokens: Option<HashMap<TokenId, (Token, Arc<Team>)>>,
}

/// The hash of no token, for unknown ids.
const NOBODY: blake3::Hash = blake3::Hash::from_bytes([0; 32]);

impl Teams {
    pub fn new(configured: impl IntoIterator<Item = (Team, Vec<Token>)>) -> Self {
        let (mut teams, mut by_id) = (Vec::new(), HashMap::new());
        for (team, tokens) in configured {
            let team = Arc::new(team);
            for token in tokens {
                by_id.insert(token.id, (token, team.clone()));
            }
            teams.push(team);
        }
        if teams.is_empty() {
            return Self { teams: vec![Arc::new(Team::local())], tokens: None };
        }
        Self { teams, tokens: Some(by_id) }
    }

    pub fn is_open(&self) -> bool {
        self.tokens.is_none()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Team>> + Clone {
        self.teams.iter()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.teams.iter().map(|team| team.name.as_str())
    }

    pub fn get(&self, name: &str) -> Option<&Arc<Team>> {
        self.teams.iter().find(|team| team.name == name)
    }

    pub fn authenticate(&self, headers: &HeaderMap, now: Timestamp) -> Result<Arc<Team>, AuthError> {
        let Some(tokens) = &self.tokens else { return Ok(self.teams[0].clone()) };
        let presented = credential(headers)?;
        let id = Token::id_of(presented).ok_or_else(|| {
            if presented.starts_with(token::PREFIX) { AuthError::Incomplete } else { AuthError::Malformed }
        })?;
        let hash = blake3::hash(presented.as_bytes());
        let holder = tokens.get(&id);
        // Takes constant time.
        let equal = hash == holder.map_or(NOBODY, |(token, _)| token.hash);
        let (token, team) = holder.filter(|_| equal).ok_or(AuthError::Unknown)?;
        if token.expires.is_some_and(|expires| now >= expires) {
            return Err(AuthError::Expired);
        }
        if team.disabled {
            return Err(AuthError::Disabled { team: team.name.clone() });
        }
        Ok(team.clone())
    }
}

/// Ignores empty headers, and an `Authorization` of another scheme, which a proxy may have left.
fn credential(headers: &HeaderMap) -> Result<&str, AuthError> {
    let api_key = single(headers.get_all(API_KEY_HEADER).iter())?;
    let bearer = single(headers.get_all(AUTHORIZATION).iter().filter(|value| is_bearer(value)))?;
    let bearer = bearer.map(|value| value[BEARER.len()..].trim()).filter(|token| !token.is_empty());
    match (api_key, bearer) {
        (None, None) => Err(AuthError::Missing),
        (Some(token), None) | (None, Some(token)) => Ok(token),
        (Some(token), Some(same)) if same == token => Ok(token),
        (Some(_), Some(_)) => Err(AuthError::Conflicting),
    }
}

const BEARER: &str = "bearer";

fn is_bearer(value: &HeaderValue) -> bool {
    let (scheme, rest) = value.as_bytes().split_at(value.len().min(BEARER.len()));
    scheme.eq_ignore_ascii_case(BEARER.as_bytes()) && matches!(rest, [] | [b' ' | b'\t', ..])
}

/// Trimmed; `None` when it is empty.
fn single<'a>(mut values: impl Iterator<Item = &'a HeaderValue>) -> Result<Option<&'a str>, AuthError> {
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(AuthError::Conflicting);
    }
    let text = value.to_str().map_err(|_| AuthError::Malformed)?.trim();
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// The texts are for clients and never quote the credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error(
        "the request carries no token; send your team's Granary token in the header ailabapi-api-key, \
         or as Authorization: Bearer"
    )]
    Missing,
    #[error(
        "the credential is not a Granary token, which begins with granary_ and stands in the header \
         ailabapi-api-key or after the word Bearer in Authorization; an AILabTools key does not work here, \
         so send your team's Granary token instead"
    )]
    Malformed,
    #[error(
        "this token begins like a Granary token but is incomplete or has been changed; copy it again, from \
         granary_ to its last character"
    )]
    Incomplete,
    #[error(
        "this token is unknown or has been revoked; copy it again, or ask whoever runs this Granary for a \
         new one"
    )]
    Unknown,
    #[error("this token has expired; ask whoever runs this Granary for a new one")]
    Expired,
    #[error(
        "the request carries more than one credential; send a single token, either in the header \
         ailabapi-api-key or as Authorization: Bearer"
    )]
    Conflicting,
    #[error("the team {team} is disabled; ask whoever runs this Granary to enable it")]
    Disabled { team: String },
}
