//! `[budget]` and `[[team]]`: who may spend how much.

use jiff::tz::TimeZone;
use toml::Value;

use super::setting::{Fault, Setting, kind, one, section, wrong};
use crate::teams::{BudgetMode, REFUSED_PER_DAY, Team, Token, TokenId};

section! {
    /// What all teams together may spend.
    pub struct BudgetConfig {
        /// The time zone in which days and months begin, by its IANA name, such as
        /// "Europe/Berlin".
        pub time_zone: TimeZone = TimeZone::UTC,
        /// Credits for all teams together in a day; no limit when left out.
        pub daily_credits: Option<u64> = None,
        /// Credits for all teams together in a month; no limit when left out.
        pub monthly_credits: Option<u64> = None,
    }
}

section! {
    /// A team: who calls, and what it may spend. As many as there are; with none, every caller is
    /// the team "local", and only this machine can call.
    pub struct TeamConfig {
        /// 1 to 64 of a-z, 0-9, _ and -, beginning with a letter or a digit. It is in the ledger:
        /// a team under a new name is a new team.
        pub name: String = String::new(),
        /// The tokens it calls with, as printed by "granary token new": { id, hash, expires }.
        /// The hash is no secret. Several work at once, so that a new one can be handed out before
        /// the old one ends; expires is optional, and a date alone is its beginning in UTC.
        pub tokens: Vec<Token> = Vec::new(),
        /// Credits it may spend in a day; no limit when left out, hits only when 0.
        pub daily_credits: Option<u64> = None,
        /// Credits it may spend in a month; no limit when left out, hits only when 0.
        pub monthly_credits: Option<u64> = None,
        /// enforce: refuse when the budget is used up. shadow: only say so.
        pub mode: BudgetMode = BudgetMode::Enforce,
        /// New crops per second that it may ask of this server, such as 2 or 0.5; no limit when
        /// left out. Hits are not counted.
        pub misses_per_second: Option<f64> = None,
        /// Calls per day that the upstream may refuse for their picture or size, such as grey images;
        /// further new crops of the team are refused until the day ends. Refusals are free, and each
        /// takes a call that another team could have had.
        pub refused_per_day: u64 = REFUSED_PER_DAY,
        /// May it buy a crop again that is stored already, with the header Granary-Refresh?
        pub may_refresh: bool = false,
        /// Refuse all its calls.
        pub disabled: bool = false,
    }
}

impl TeamConfig {
    pub(super) fn team(&self) -> Team {
        Team {
            name: self.name.clone(),
            may_refresh: self.may_refresh,
            disabled: self.disabled,
            mode: self.mode,
            daily_credits: self.daily_credits,
            monthly_credits: self.monthly_credits,
            misses_per_second: self.misses_per_second,
            refused_per_day: self.refused_per_day,
        }
    }
}

impl Setting for TimeZone {
    fn from_text(text: &str) -> Result<Self, String> {
        let zone = TimeZone::get(text).ok().filter(|zone| zone.iana_name().is_some() && !zone.is_unknown());
        zone.ok_or_else(|| wrong(text, "write the IANA name of a time zone, such as UTC or Europe/Berlin"))
    }

    fn to_toml(&self) -> Option<Value> {
        self.iana_name().map(|name| Value::String(name.to_owned()))
    }
}

/// In the file only. Errors quote nothing: it may be a token in the wrong place.
impl Setting for Token {
    fn from_text(_: &str) -> Result<Self, String> {
        Err("is a text; write { id = \"…\", hash = \"…\" } as printed by granary token new".to_owned())
    }

    fn from_toml(value: Value) -> Result<Self, Vec<Fault>> {
        let Value::Table(mut fields) = value else {
            return Err(one(format!(
                "is {}; write {{ id = \"…\", hash = \"…\" }} as printed by granary token new",
                kind(&value)
            )));
        };
        let mut faults = Vec::new();
        let id = required(&mut fields, "id", &mut faults, |text| {
            TokenId::parse(text).ok_or("is not 8 of a-z and 0-9; copy it from what granary token new printed")
        });
        let hash = required(&mut fields, "hash", &mut faults, |text| {
            blake3::Hash::from_hex(text)
                .map_err(|_| "is not 64 hex digits; copy it from what granary token new printed")
        });
        let expires = fields.remove("expires").map(Setting::from_toml).transpose().unwrap_or_else(|wrong| {
            faults.extend(wrong.into_iter().map(|Fault { at, why }| below("expires", &at, why)));
            None
        });
        for unknown in fields.keys() {
            faults.push(below(unknown, "", "is unknown here; write id, hash and expires".to_owned()));
        }
        match (id, hash) {
            (Some(id), Some(hash)) if faults.is_empty() => Ok(Self { id, hash, expires }),
            _ => Err(faults),
        }
    }

    fn to_toml(&self) -> Option<Value> {
        let mut fields = toml::Table::new();
        fields.insert("id".to_owned(), Value::String(self.id.to_string()));
        fields.insert("hash".to_owned(), Value::String(self.hash.to_string()));
        if let Some(expires) = self.expires.as_ref().and_then(Setting::to_toml) {
            fields.insert("expires".to_owned(), expires);
        }
        Some(Value::Table(fields))
    }
}

fn required<T>(
    fields: &mut toml::Table,
    name: &str,
    faults: &mut Vec<Fault>,
    read: impl Fn(&str) -> Result<T, &'static str>,
) -> Option<T> {
    let why = match fields.remove(name) {
        None => "is missing; copy the line that granary token new printed".to_owned(),
        Some(Value::String(text)) => match read(&text) {
            Ok(value) => return Some(value),
            Err(why) => why.to_owned(),
        },
        Some(other) => format!("is {}; write a text in quotes", kind(&other)),
    };
    faults.push(below(name, "", why));
    None
}

fn below(name: &str, at: &str, why: String) -> Fault {
    Fault { at: format!(".{name}{at}"), why }
}
