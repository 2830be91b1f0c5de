//! What the headers of a request say about who calls.

use super::*;

/// A day in 2026; tokens expire around it.
const NOW: &str = "2026-11-22T12:00:00Z";

struct Fixture {
    teams: Teams,
    /// Tokens of `web`, of `web` and expiring now, of `web` and expiring a nanosecond later, of the
    /// disabled `old`, and of nobody.
    web: String,
    ended: String,
    ending: String,
    disabled: String,
    nobody: String,
}

fn fixture() -> Fixture {
    let now: Timestamp = NOW.parse().unwrap();
    let make = |expires| {
        let (secret, token) = Token::generate(expires).unwrap();
        (secret.expose().to_owned(), token)
    };
    let (web, kept_web) = make(None);
    let (ended, kept_ended) = make(Some(now));
    let (ending, kept_ending) = make(Some(now + jiff::SignedDuration::from_nanos(1)));
    let (disabled, kept_disabled) = make(None);
    let (nobody, _) = make(None);
    let team = |name: &str, disabled| Team { name: name.to_owned(), disabled, ..Team::local() };
    let teams = Teams::new([
        (team("web", false), vec![kept_web, kept_ended, kept_ending]),
        (team("old", true), vec![kept_disabled]),
    ]);
    Fixture { teams, web, ended, ending, disabled, nobody }
}

fn ask(teams: &Teams, headers: &[(&'static str, &str)]) -> Result<String, AuthError> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    teams.authenticate(&map, NOW.parse().unwrap()).map(|team| team.name.clone())
}

#[test]
fn a_token_names_its_team() {
    let Fixture { teams, web, ended, ending, disabled, nobody } = fixture();
    let check = |headers: &[(&'static str, &str)], expected: Result<&str, AuthError>| {
        assert_eq!(ask(&teams, headers), expected.map(str::to_owned), "{headers:?}");
    };
    let bearer = format!("Bearer {web}");
    let of_web: Result<&str, AuthError> = Ok("web");

    check(&[(API_KEY_HEADER, &web)], of_web.clone());
    check(&[(API_KEY_HEADER, &format!("  {web} "))], of_web.clone());
    check(&[("authorization", &bearer)], of_web.clone());
    check(&[("authorization", &format!("bEARER   {web}"))], of_web.clone());
    check(&[(API_KEY_HEADER, &web), ("authorization", &bearer)], of_web.clone());
    check(&[(API_KEY_HEADER, ""), ("authorization", &bearer)], of_web.clone());
    check(&[(API_KEY_HEADER, &ending)], of_web.clone());

    // What is not a Bearer is somebody else's: a proxy's, or a browser's.
    for other in ["Basic dTpw", "basic", "Digest username=\"u\"", "Bearerless x", "NTLM", "\u{e9}", &web] {
        check(&[(API_KEY_HEADER, &web), ("authorization", other)], of_web.clone());
        check(&[("authorization", other), ("authorization", &bearer)], of_web.clone());
        check(&[("authorization", other)], Err(AuthError::Missing));
    }

    check(&[], Err(AuthError::Missing));
    check(&[(API_KEY_HEADER, "")], Err(AuthError::Missing));
    check(&[("authorization", "Bearer")], Err(AuthError::Missing));
    check(&[("authorization", "Bearer  ")], Err(AuthError::Missing));
    check(&[("cookie", &format!("token={web}"))], Err(AuthError::Missing));
    check(&[("x-api-key", &web)], Err(AuthError::Missing));

    check(&[(API_KEY_HEADER, &nobody)], Err(AuthError::Unknown));
    check(&[(API_KEY_HEADER, &ended)], Err(AuthError::Expired));
    check(&[(API_KEY_HEADER, &disabled)], Err(AuthError::Disabled { team: "old".to_owned() }));

    check(&[(API_KEY_HEADER, &web), (API_KEY_HEADER, &web)], Err(AuthError::Conflicting));
    check(&[("authorization", &bearer), ("authorization", &bearer)], Err(AuthError::Conflicting));
    check(&[(API_KEY_HEADER, &ending), ("authorization", &bearer)], Err(AuthError::Conflicting));
}

#[test]
fn text_that_is_not_a_token_is_refused_before_it_is_hashed() {
    let Fixture { teams, web, .. } = fixture();
    for wrong in [
        "x".to_owned(),
        "0123456789abcdef0123456789abcdef".to_owned(),
        web.to_uppercase(),
        web.replace("granary_", "granary-"),
        format!("{}é", &web[..web.len() - 2]),
        "g".repeat(1 << 20),
        format!("Basic {web}"),
        web.replacen('_', " ", 1),
    ] {
        assert_eq!(ask(&teams, &[(API_KEY_HEADER, &wrong)]), Err(AuthError::Malformed), "{wrong:.100}");
        assert_eq!(Token::id_of(&wrong), None);
    }
    for wrong in [
        web[..web.len() - 2].to_owned(),
        "granary_".to_owned(),
        format!("{web}0"),
        format!("{}g", &web[..web.len() - 1]),
        format!("granary_IDIDIDID{}", &web["granary_idididid".len()..]),
    ] {
        assert_eq!(ask(&teams, &[(API_KEY_HEADER, &wrong)]), Err(AuthError::Incomplete), "{wrong}");
        assert_eq!(Token::id_of(&wrong), None);
    }
}

/// The id is public and may be found in any way; the secret is only ever compared as a hash.
#[test]
fn a_known_id_with_another_secret_is_unknown() {
    let Fixture { teams, web, .. } = fixture();
    for index in "granary_idididid_".len()..web.len() {
        let mut guess = web.clone().into_bytes();
        guess[index] = if guess[index] == b'0' { b'1' } else { b'0' };
        let guess = String::from_utf8(guess).unwrap();
        assert_eq!(ask(&teams, &[(API_KEY_HEADER, &guess)]), Err(AuthError::Unknown));
    }
}

/// What is compared has a type whose equality takes constant time, for known and unknown ids.
#[test]
fn hashes_are_compared_in_constant_time() {
    fn of_hashes(_: blake3::Hash) {}
    let (_, token) = Token::generate(None).unwrap();
    of_hashes(token.hash);
    of_hashes(NOBODY);
    // The zero hash would match nothing even if somebody found a text for it: there is no holder.
    assert_ne!(token.hash, NOBODY);
}

#[test]
fn without_teams_every_caller_is_local() {
    let teams = Teams::new([]);
    assert!(teams.is_open());
    let local: Result<String, AuthError> = Ok(LOCAL_TEAM.to_owned());
    assert_eq!(ask(&teams, &[]), local);
    assert_eq!(ask(&teams, &[(API_KEY_HEADER, "any key")]), local);
    assert_eq!(ask(&teams, &[(API_KEY_HEADER, "a"), (API_KEY_HEADER, "b")]), local);
    assert_eq!(ask(&teams, &[(API_KEY_HEADER, "\u{e9}"), ("authorization", "Basic dTpw")]), local);
    assert!(teams.get(LOCAL_TEAM).unwrap().may_refresh);
    assert_eq!(teams.iter().count(), 1);
}

#[test]
fn teams_without_tokens_let_nobody_in() {
    let teams = Teams::new([(Team { name: "web".to_owned(), ..Team::local() }, Vec::new())]);
    assert!(!teams.is_open());
    assert_eq!(ask(&teams, &[]), Err(AuthError::Missing));
    assert!(teams.get(LOCAL_TEAM).is_none());
}

#[test]
fn a_generated_token_has_the_documented_form() {
    let expires = Some(NOW.parse().unwrap());
    let (secret, token) = Token::generate(expires).unwrap();
    let parts: Vec<&str> = secret.expose().split('_').collect();
    let [prefix, id, hex] = parts[..] else { panic!("three parts") };
    assert_eq!((prefix, id, hex.len()), ("granary", token.id.to_string().as_str(), 64));
    assert_eq!(token.hash, blake3::hash(secret.expose().as_bytes()));
    assert_eq!(token.expires, expires);
    assert_eq!(Token::id_of(secret.expose()), Some(token.id));
    let (other, _) = Token::generate(None).unwrap();
    assert_ne!(secret, other);
}

#[test]
fn an_id_is_eight_lower_case_characters() {
    for id in ["abcdefgh", "23456789", "01234567"] {
        assert_eq!(TokenId::parse(id).map(|id| id.to_string()).as_deref(), Some(id));
    }
    for wrong in ["", "abcdefg", "abcdefghi", "ABCDEFGH", "abcd_fgh", "abcdefg\u{e9}", "abc def"] {
        assert_eq!(TokenId::parse(wrong), None, "{wrong}");
    }
}

#[test]
fn every_refusal_says_what_to_do_and_repeats_nothing() {
    let Fixture { teams, web, .. } = fixture();
    for error in [
        AuthError::Missing,
        AuthError::Malformed,
        AuthError::Incomplete,
        AuthError::Unknown,
        AuthError::Expired,
        AuthError::Conflicting,
        AuthError::Disabled { team: "web".to_owned() },
    ] {
        let sentence = error.to_string();
        assert!(sentence.starts_with(char::is_lowercase) && !sentence.ends_with('.'), "{sentence}");
        assert!(
            ["ask whoever", "send", "copy it"].iter().any(|remedy| sentence.contains(remedy)),
            "{sentence}"
        );
    }
    let guess = web.replace(&web[20..24], "0000");
    for value in [guess.as_str(), "sesame", "sk_live_1234"] {
        let error = ask(&teams, &[(API_KEY_HEADER, value)]).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(value));
    }
    assert!(!format!("{teams:?}").contains(&web[17..]));
}

#[test]
fn names_of_teams_are_plain() {
    for name in ["web", "a", "9", "team-1_x", &"a".repeat(64)] {
        assert!(is_team_name(name), "{name}");
    }
    for name in ["", "Web", "-web", "_web", "we b", "we/b", "wéb", "..", &"a".repeat(65)] {
        assert!(!is_team_name(name), "{name}");
    }
}
