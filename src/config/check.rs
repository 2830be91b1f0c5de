//! Checks of values, alone and together, after file and variables are read.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::read::{ConfigReader, team_path};
use super::{Config, StoreConfig, StoreKind, UpstreamKind, parse_service_url};
use crate::base::record::{MAX_CREDITS, MAX_OBJECT_BYTES};
use crate::teams::{LOCAL_TEAM, OTHER_TEAMS, is_team_name};

/// Also fills in fields that follow from others.
pub(super) fn check(config: &mut Config, reading: &mut ConfigReader) {
    listeners(config, reading);
    limits(config, reading);
    upstream(config, reading);
    store(config, reading);
    database(config, reading);
    teams(config, reading);
}

fn listeners(config: &Config, reading: &mut ConfigReader) {
    let server = &config.server;
    let is_public = !server.listen.ip().to_canonical().is_loopback();
    if is_public && config.teams.is_empty() {
        reading.problem(
            &["server.listen", "team"],
            format!(
                "is {}, which other machines can reach, and no teams are configured, so anyone could spend \
                 credits; add a [[team]] with a token (granary token new TEAM), or listen on 127.0.0.1",
                server.listen
            ),
        );
    }
    let budget = &config.budget;
    let is_limited = budget.daily_credits.is_some() || budget.monthly_credits.is_some();
    if config.upstream.kind == UpstreamKind::Ailab && config.teams.is_empty() && !is_limited {
        reading.problem(
            &["upstream.kind", "team", "budget.daily_credits", "budget.monthly_credits"],
            "is \"ailab\", which costs credits, and neither teams nor a budget limit who may spend how many; add a \
             [[team]] with a token (granary token new TEAM), or set budget.daily_credits or budget.monthly_credits",
        );
    }
    if is_public && server.public_url.is_none() {
        reading.problem(
            &["server.public_url", "server.listen"],
            "is missing; permanent URLs begin with it, so write where clients reach this server, such as \
             https://granary.example.com",
        );
    }
    if !server.admin_listen.ip().to_canonical().is_loopback() && server.admin_token_file.is_none() {
        reading.problem(
            &["server.admin_listen", "server.admin_token_file"],
            format!(
                "is {}, which other machines can reach, and no admin token is configured, so anyone could \
                 purge and thaw; set server.admin_token_file, or listen on 127.0.0.1",
                server.admin_listen
            ),
        );
    }
    if let Err(why) = server.admin_tokens() {
        reading.problem(&["server.admin_token_file"], why);
    }
    if let Err((field, why)) = server.certificate() {
        reading.problem(&[field, "server.tls_cert", "server.tls_key"], why);
    }
    if server.is_encrypted() && server.public_url.as_ref().is_some_and(|url| !url.is_encrypted()) {
        let why = "is http, but server.tls_cert makes this server speak https; write https://";
        reading.problem(&["server.public_url", "server.tls_cert"], why);
    }
    if server.listen == server.admin_listen && server.listen.port() != 0 {
        let why = "is the same address as server.listen; give it another port";
        reading.problem(&["server.admin_listen", "server.listen"], why);
    }
}

fn limits(config: &Config, reading: &mut ConfigReader) {
    let (server, upstream) = (&config.server, &config.upstream);
    for (field, duration) in [
        ("server.head_timeout", server.head_timeout),
        ("server.idle_timeout", server.idle_timeout),
        ("server.body_timeout", server.body_timeout),
        ("server.write_timeout", server.write_timeout),
        ("server.answer_within", server.answer_within),
        ("upstream.connect_timeout", upstream.connect_timeout),
        ("upstream.upload_timeout", upstream.upload_timeout),
        ("upstream.hard_stop", upstream.hard_stop),
        ("upstream.result_url_ttl", upstream.result_url_ttl),
        ("upstream.result_timeout", upstream.result_timeout),
    ] {
        if duration < Duration::from_millis(1) {
            reading.problem(&[field], "leaves no time at all; write at least 1ms");
        }
    }
    let interval = upstream.balance_interval;
    if !interval.is_zero() && interval < Duration::from_secs(1) {
        reading.problem(&["upstream.balance_interval"], "is too often; write at least 1s, or 0s for never");
    }
    for (field, number, least, most) in [
        ("server.max_connections", server.max_connections as u64, 1, 1_000_000),
        // Room for one picture at least, so that no upload waits without end.
        ("server.upload_memory", server.upload_memory.0, 4 << 20, 1 << 40),
        ("server.socket_buffer", server.socket_buffer.0, 4 << 10, 16 << 20),
        // While the largest result is being sent, the next one can be read.
        ("server.result_memory", server.result_memory.0, 2 * MAX_OBJECT_BYTES, 1 << 40),
        ("upstream.concurrency", upstream.concurrency as u64, 1, 1_000),
        ("upstream.max_concurrency", upstream.max_concurrency as u64, 1, 1_000),
        ("upstream.queue", upstream.queue as u64, 0, 1_000_000),
        ("upstream.credits_per_call", upstream.credits_per_call, 1, MAX_CREDITS),
        ("upstream.result_max_bytes", upstream.result_max_bytes.0, 1, MAX_OBJECT_BYTES),
    ] {
        if !(least..=most).contains(&number) {
            reading.problem(&[field], format!("is {number}; write a number from {least} to {most}"));
        }
    }
}

fn upstream(config: &mut Config, reading: &mut ConfigReader) {
    let upstream = &mut config.upstream;
    if !reading.is_set("upstream.namespace") {
        upstream.namespace = upstream.kind.default_namespace().to_owned();
    }
    let namespace = &upstream.namespace;
    let is_plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    if !(1..=64).contains(&namespace.len()) || !namespace.bytes().all(is_plain) {
        reading.problem(&["upstream.namespace"], "is not 1 to 64 of a-z, 0-9 and -; write such as ailab-v1");
    }
    let (other, other_kind) = match upstream.kind {
        UpstreamKind::Builtin => ("ailab-", "ailab"),
        UpstreamKind::Ailab => ("builtin-", "builtin"),
    };
    if namespace.starts_with(other) {
        let why =
            format!("is one for kind {other_kind}, whose results must not mix with others; leave it out");
        reading.problem(&["upstream.namespace", "upstream.kind"], why);
    }
    if upstream.max_concurrency < upstream.concurrency {
        let (most, first) = (upstream.max_concurrency, upstream.concurrency);
        let why = format!("is {most}, less than the {first} calls it begins with; write at least as many");
        reading.problem(&["upstream.max_concurrency", "upstream.concurrency"], why);
    }
    if upstream.result_hosts.iter().any(|entry| entry.trim().is_empty()) {
        reading.problem(&["upstream.result_hosts"], "has an empty entry; remove it");
    }
    if !upstream.base_url.is_encrypted() && !upstream.base_url.is_loopback() {
        let why = "is not encrypted, and the key would travel in the clear; write https://";
        reading.problem(&["upstream.base_url"], why);
    }
    key(config, reading);
}

fn key(config: &mut Config, reading: &mut ConfigReader) {
    const BOTH: [&str; 3] = ["upstream.api_key", "upstream.api_key_file", "upstream.kind"];
    let upstream = &mut config.upstream;
    let field = if upstream.api_key.is_some() { "upstream.api_key" } else { "upstream.api_key_file" };
    match (upstream.kind, upstream.api_key.is_some(), upstream.api_key_file.is_some()) {
        (UpstreamKind::Builtin, false, false) => {}
        (UpstreamKind::Builtin, _, _) => reading.problem(
            &[field, "upstream.kind"],
            "is set, but the built-in engine needs no key; remove it, or write kind = \"ailab\"",
        ),
        (UpstreamKind::Ailab, false, false) => reading.problem(
            &BOTH,
            "is missing; put the key of the AILabTools account into the variable GRANARY_UPSTREAM_API_KEY, or \
             into a file named by upstream.api_key_file",
        ),
        (UpstreamKind::Ailab, true, true) => {
            reading.problem(&BOTH, "is set, and so is upstream.api_key_file; remove one of them");
        }
        (UpstreamKind::Ailab, _, _) => match upstream.key() {
            Ok(key) if key.as_ref().is_some_and(|key| key.expose().bytes().all(|byte| byte == b'*')) => {
                reading.warnings.push(format!(
                    "{field} holds the stars that granary config prints in place of a key; put the key there"
                ));
            }
            // Without the line end that a variable often has.
            Ok(key) if upstream.api_key.is_some() => upstream.api_key = key,
            Ok(_) => {}
            Err(why) => reading.problem(&[field, "upstream.kind"], why),
        },
    }
}

fn store(config: &Config, reading: &mut ConfigReader) {
    let store = &config.store;
    match store.kind {
        StoreKind::Local => {
            if store.path == config.state.path {
                let why = "is the same folder as store.path; give results and ledger a folder each";
                reading.problem(&["state.path", "store.path"], why);
            }
            if store.bucket.is_some() {
                let why = "is set, but results are kept in files; write kind = \"s3\", or remove it";
                reading.problem(&["store.bucket", "store.kind"], why);
            }
        }
        StoreKind::S3 => bucket(store, reading),
    }
}

fn database(config: &Config, reading: &mut ConfigReader) {
    const BOTH: [&str; 2] = ["state.database_url", "state.database_url_file"];
    let state = &config.state;
    let field = if state.database_url.is_some() { BOTH[0] } else { BOTH[1] };
    if !state.has_database() {
        if state.database_ca.is_some() {
            let why = "is set, but the ledger is kept in a file; remove it, or write state.database_url";
            reading.problem(&["state.database_ca", BOTH[0], BOTH[1]], why);
        }
        return;
    }
    if state.database_url.is_some() && state.database_url_file.is_some() {
        reading.problem(&BOTH, "is set, and so is state.database_url_file; remove one of them");
    } else if let Err(why) = state.database() {
        reading.problem(&[field], why);
    }
    if config.store.kind != StoreKind::S3 {
        reading.problem(
            &[field, "store.kind"],
            "is set, but results are kept in files of this machine, where other processes of the same ledger \
             would not find them; write store.kind = \"s3\", or remove it",
        );
    }
}

fn bucket(store: &StoreConfig, reading: &mut ConfigReader) {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    match store.bucket.as_deref() {
        None | Some("") => reading.problem(
            &["store.bucket", "store.kind"],
            "is missing; write the name of an existing bucket, or kind = \"local\"",
        ),
        Some(name) if name.len() > 255 || !name.bytes().all(is_plain) => {
            let why = "is not a bucket's name; write it without s3:// and without a path";
            reading.problem(&["store.bucket"], why);
        }
        Some(_) => {}
    }
    let prefix = store.prefix.trim_matches('/');
    let is_part = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(is_plain);
    if prefix.len() > 512 || !(prefix.is_empty() || prefix.split('/').all(is_part)) {
        reading.problem(
            &["store.prefix"],
            "is not of a-z, A-Z, 0-9, -, _ and . with single slashes between; write such as granary/prod",
        );
    }
    if store.endpoint.as_ref().is_some_and(|endpoint| parse_service_url(endpoint).is_none()) {
        // Not repeated in the message: a URL may hold a password.
        reading.problem(
            &["store.endpoint"],
            "is not the address of a service; write http:// or https://, a host and perhaps a port, such as \
             https://minio.example.com:9000, and put credentials into store.credentials_file",
        );
    }
}

fn teams(config: &Config, reading: &mut ConfigReader) {
    let mut names = BTreeSet::new();
    let mut ids = BTreeMap::new();
    for (index, team) in config.teams.iter().enumerate() {
        let path = team_path(index, &team.name);
        let name = format!("{path}.name");
        let why = match team.name.as_str() {
            "" => "is missing; give the team a name such as \"web\"",
            name if !is_team_name(name) => {
                "is not 1 to 64 of a-z, 0-9, _ and -, beginning with a letter or a digit; write such as \"web\""
            }
            LOCAL_TEAM => "is reserved for the time when no teams are configured; write another",
            OTHER_TEAMS => "is what metrics call all teams beyond their 200; write another",
            name if !names.insert(name) => "is the name of two teams; give each its own",
            _ => "",
        };
        if !why.is_empty() {
            reading.problem(&[&name], why);
        }
        for (number, token) in team.tokens.iter().enumerate() {
            if let Some(other) = ids.insert(token.id, path.clone()) {
                let at = format!("{path}.tokens[{number}].id");
                let why = format!("is also in {other}.tokens; make another token with granary token new");
                reading.problem(&[&at], why);
            }
        }
        let rate = format!("{path}.misses_per_second");
        if team.misses_per_second.is_some_and(|rate| !(0.001..=1000.0).contains(&rate)) {
            reading.problem(&[&rate], "is out of range; write a number from 0.001 to 1000, or leave it out");
        }
        if team.tokens.is_empty() && !team.disabled {
            reading.warnings.push(format!("{path} has no tokens, so nobody can call as that team"));
        }
    }
}
