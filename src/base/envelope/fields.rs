//! The fields of one JSON object as they are spelled: [`Fields`]; and [`complete`], which adds some.

use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::NotAnEnvelope;

/// In their order. Of fields with one name the last counts.
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    pub(super) fn read(text: &str) -> Result<Self, NotAnEnvelope> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Vec<(String, String)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    fields.push((name, value.get().to_owned()));
                }
                Ok(fields)
            }
        }
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let fields = deserializer.deserialize_map(Collect).map_err(|_| NotAnEnvelope)?;
        deserializer.end().map_err(|_| NotAnEnvelope)?;
        Ok(Self(fields))
    }

    fn write(&self) -> String {
        let field = |(name, raw): &(String, String)| format!("{}:{raw}", serde_json::Value::from(&**name));
        let fields: Vec<String> = self.0.iter().map(field).collect();
        format!("{{{}}}", fields.join(","))
    }

    pub(super) fn raw(&self, name: &str) -> Option<&str> {
        self.0.iter().rfind(|(other, _)| other == name).map(|(_, raw)| raw.as_str())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.raw(name).is_some()
    }

    fn set(&mut self, name: &str, raw: String) {
        match self.0.iter_mut().rfind(|(other, _)| other == name) {
            Some((_, old)) => *old = raw,
            None => self.0.push((name.to_owned(), raw)),
        }
    }

    pub(super) fn string(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.raw(name)?).ok()
    }

    /// Some older answers write it as a string.
    pub(super) fn number(&self, name: &str) -> Option<i64> {
        let raw = self.raw(name)?;
        raw.parse().ok().or_else(|| serde_json::from_str::<String>(raw).ok()?.parse().ok())
    }

    pub(super) fn object(&self, name: &str) -> Option<Self> {
        Self::read(self.raw(name)?).ok()
    }
}

/// Adds fields that clients need and a newer upstream omits: `error_code: 0`, `error_msg` and
/// `error_detail.status_code`. Everything else stays, and so does a text that is not a JSON object.
pub fn complete(text: &str) -> String {
    let Ok(mut fields) = Fields::read(text) else { return text.to_owned() };
    let mut missing = Vec::new();
    if fields.raw("error_code") != Some("0") {
        missing.push(("error_code", "0".to_owned()));
    }
    if fields.string("error_msg").is_none() {
        missing.push(("error_msg", r#""""#.to_owned()));
    }
    match fields.object("error_detail") {
        None => missing.push((
            "error_detail",
            r#"{"status_code":200,"code":"","code_message":"","message":""}"#.to_owned(),
        )),
        Some(detail) if detail.has("status_code") => {}
        Some(mut detail) => {
            detail.0.insert(0, ("status_code".to_owned(), "200".to_owned()));
            missing.push(("error_detail", detail.write()));
        }
    }
    if missing.is_empty() {
        return text.to_owned();
    }
    for (name, raw) in missing {
        fields.set(name, raw);
    }
    fields.write()
}
