//! The differences of two configurations, and which can take effect without a restart. Fields are named,
//! never their values, some of which are secrets.

use super::Config;
use super::problems::Problems;
use super::team::TeamConfig;

/// Settings that a reload changes, besides all of `[[team]]`. Every other one is read at the start only.
const LIVE: [&str; 9] = [
    "server.cors_origins",
    "upstream.api_key",
    "upstream.api_key_file",
    "upstream.concurrency",
    "upstream.max_concurrency",
    "upstream.queue",
    "budget.daily_credits",
    "budget.monthly_credits",
    "log.level",
];

/// Returns true when a setting, such as `log.level` or `team.tokens`, changes without a restart.
pub fn is_live(setting: &str) -> bool {
    setting.starts_with("team.") || LIVE.contains(&setting)
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Changed fields, such as `team.web.tokens`; a new or removed team is listed as `team.web`.
    pub live: Vec<String>,
    /// Fields that need a restart, each with what to do.
    pub restart: Problems,
}

impl Config {
    pub fn changes_to(&self, new: &Self) -> Changes {
        let mut changes = Changes::default();
        for (section, fields) in self.changed(new) {
            for field in fields {
                changes.setting(format!("{section}.{field}"));
            }
        }
        changes.teams(&self.teams, &new.teams);
        changes
    }
}

impl Changes {
    fn setting(&mut self, field: String) {
        if is_live(&field) {
            self.live.push(field);
        } else {
            self.restart
                .add(field, "was changed, which takes effect at a start only; restart, or change it back");
        }
    }

    fn teams(&mut self, old: &[TeamConfig], new: &[TeamConfig]) {
        if new.is_empty() && !old.is_empty() {
            // A half-written file looks like this too.
            self.restart.add(
                "team",
                "was removed for every team, and without teams anyone may call without a token, so this takes \
                 effect at a start only; restart, or keep a team, if need be with disabled = true",
            );
            return;
        }
        for team in old {
            match new.iter().find(|other| other.name == team.name) {
                Some(other) => {
                    let changed = team.changed(other).into_iter();
                    self.live.extend(changed.map(|field| format!("team.{}.{field}", team.name)));
                }
                None => self.live.push(format!("team.{}", team.name)),
            }
        }
        let is_new = |team: &&TeamConfig| !old.iter().any(|other| other.name == team.name);
        self.live.extend(new.iter().filter(is_new).map(|team| format!("team.{}", team.name)));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use toml::Value;

    use super::super::setting::{AnySetting, Section};
    use super::*;

    /// What is read at the start only. A setting that is neither here nor in [`LIVE`] has been added:
    /// decide whether the running program can take another value of it, and write it down.
    const AT_START: [&str; 50] = [
        "server.listen",
        "server.admin_listen",
        "server.admin_token_file",
        "server.public_url",
        "server.tls_cert",
        "server.tls_key",
        "server.max_connections",
        "server.head_timeout",
        "server.idle_timeout",
        "server.body_timeout",
        "server.min_upload_rate",
        "server.upload_memory",
        "server.upload_spill",
        "server.socket_buffer",
        "server.result_memory",
        "server.trusted_proxies",
        "server.write_timeout",
        "server.min_download_rate",
        "server.answer_within",
        "server.drain_grace",
        "upstream.kind",
        "upstream.namespace",
        "upstream.base_url",
        "upstream.credits_per_call",
        "upstream.credit_price",
        "upstream.balance_interval",
        "upstream.connect_timeout",
        "upstream.upload_timeout",
        "upstream.hard_stop",
        "upstream.result_hosts",
        "upstream.result_url_ttl",
        "upstream.result_max_bytes",
        "upstream.result_timeout",
        "store.kind",
        "store.path",
        "store.bucket",
        "store.prefix",
        "store.region",
        "store.endpoint",
        "store.path_style",
        "store.credentials_file",
        "store.public_url",
        "state.path",
        "state.database_url",
        "state.database_url_file",
        "state.database_ca",
        "state.spool_max",
        "cache.memory",
        "budget.time_zone",
        "log.format",
    ];

    /// Gives the field of this number another value, and returns its name.
    fn differ(section: Section<'_>, number: usize) -> Option<String> {
        let (name, field) = (section.name, section.fields.into_iter().nth(number)?);
        another(field.value, field.name);
        Some(format!("{name}.{}", field.name))
    }

    /// Puts some other value in the place of `value`.
    fn another(value: &mut dyn AnySetting, name: &str) {
        let texts = [
            "127.0.0.1:1",
            "10.0.0.0/8",
            "https://a.example.com",
            "1h",
            "7B",
            "shadow",
            "ailab",
            "s3",
            "json",
            "trace",
            "Europe/Berlin",
        ];
        let token: toml::Table =
            format!("id = \"abcdefgh\"\nhash = \"{}\"", blake3::hash(b"a")).parse().unwrap();
        let texts = texts.map(|text| Value::String(text.to_owned()));
        let lists = texts.clone().map(|text| Value::Array(vec![text]));
        let others = [Value::Integer(7), Value::Boolean(true), Value::Array(vec![Value::Table(token)])];
        let before = value.shown();
        let is_other = |other| value.read_toml(other).is_ok() && value.shown() != before;
        assert!(
            others.into_iter().chain(texts).chain(lists).any(is_other),
            "no other value is known for {name}"
        );
    }

    fn team(name: &str) -> TeamConfig {
        TeamConfig { name: name.to_owned(), ..TeamConfig::default() }
    }

    #[test]
    fn every_setting_is_live_or_read_at_the_start_and_is_treated_so() {
        let mut seen = BTreeSet::new();
        let old = Config { teams: vec![team("web")], ..Config::default() };
        let sizes: Vec<_> = old.clone().sections().iter().map(|section| section.fields.len()).collect();
        let places =
            sizes.iter().enumerate().flat_map(|(at, size)| (0..*size).map(move |number| (at, number)));
        for (at, number) in places {
            let mut new = old.clone();
            let field = differ(new.sections().swap_remove(at), number).unwrap();
            let changes = old.changes_to(&new);
            let restart: Vec<_> = changes.restart.0.iter().map(|problem| problem.field.clone()).collect();
            let expected =
                if is_live(&field) { (vec![field.clone()], vec![]) } else { (vec![], vec![field.clone()]) };
            assert_eq!((changes.live, restart), expected, "{field}");
            seen.insert(field);
        }
        let known: BTreeSet<_> = LIVE.iter().chain(&AT_START).map(|field| (*field).to_owned()).collect();
        assert_eq!(seen, known, "left: the settings there are; right: those of LIVE and AT_START");
        assert_eq!(known.len(), LIVE.len() + AT_START.len(), "none is both");
    }

    #[test]
    fn every_field_of_a_team_is_live() {
        let old = Config { teams: vec![team("shop"), team("web")], ..Config::default() };
        let mut seen = 0;
        for number in 0.. {
            let mut new = old.clone();
            let Some(field) = differ(new.teams[1].section("team"), number) else { break };
            // Under another name it is another team.
            let expected = match field.as_str() {
                "team.name" => vec!["team.web".to_owned(), format!("team.{}", new.teams[1].name)],
                field => vec![field.replace("team.", "team.web.")],
            };
            assert_eq!(old.changes_to(&new), Changes { live: expected, ..Changes::default() }, "{field}");
            assert!(is_live(&field));
            seen += 1;
        }
        assert_eq!(seen, 9);
    }

    #[test]
    fn teams_come_and_go_but_the_last_one_stays() {
        let with = |teams: &[&str]| Config {
            teams: teams.iter().map(|name| team(name)).collect(),
            ..Config::default()
        };
        let check = |old: &[&str], new: &[&str], live: &[&str]| {
            let changes = with(old).changes_to(&with(new));
            assert_eq!(
                (changes.live, changes.restart.is_empty()),
                (live.iter().map(|name| (*name).to_owned()).collect(), true)
            );
        };
        check(&["a", "b"], &["b", "a"], &[]);
        check(&["a", "b"], &["b", "c"], &["team.a", "team.c"]);
        check(&[], &["a"], &["team.a"]);
        check(&[], &[], &[]);
        let changes = with(&["a", "b"]).changes_to(&with(&[]));
        let field = changes.restart.0.first().map(|problem| problem.field.as_str());
        assert_eq!((changes.live, field), (vec![], Some("team")));
    }

    #[test]
    fn no_change_tells_a_value() {
        let with = |key: &str| {
            let mut config = Config::default();
            config.upstream.api_key = Some(crate::base::secret::Secret::new(key));
            config.store.endpoint = Some(format!("https://user:{key}@s3.example.com"));
            config
        };
        let changes = with("sesame-one").changes_to(&with("sesame-two"));
        assert_eq!((changes.live.len(), changes.restart.0.len()), (1, 1));
        assert!(!format!("{changes:?} {}", changes.restart).contains("sesame"), "{changes:?}");
    }
}
