//! The upstream's JSON envelope: read with suspicion, kept verbatim.
//!
//! An answer is never turned into a struct and back: clients get every field the upstream sent,
//! known or not, in its order and spelling. Only the text of the result's URL is ever replaced
//! ([`Answer::keep`]), and only fields that a newer upstream omits are ever added ([`complete`]).
//! The envelope's two documented generations are described in the README's API part.

mod show;

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

pub use self::show::without_addresses;
use crate::picture::ObjectName;
use crate::secret::Secret;

/// How deep an answer may nest. The documented ones nest three deep.
const MAX_DEPTH: usize = 16;

/// A success of the upstream that names a result.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The whole body, verbatim. It contains `url`, so it is as secret.
    text: Secret,
    /// Where the result is for the next hours.
    url: Secret,
    /// The upstream's `request_id`, or empty.
    pub request_id: String,
    /// The upstream's `log_id`, or empty.
    pub log_id: String,
}

/// What a body that is an envelope says.
#[derive(Debug)]
pub enum Envelope {
    /// No error code, and a result's URL.
    Success(Answer),
    /// No error code, and no result's URL.
    NoResult,
    /// An error.
    Error {
        /// `error_detail.code`, or `error_code_str`.
        code: String,
    },
}

/// The body is not an envelope: not UTF-8, not JSON, nested too deep, a repeated field, no object,
/// or an object of someone else's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an answer in the upstream's format")]
pub struct NotAnEnvelope;

impl Envelope {
    /// Reads a complete body.
    ///
    /// # Errors
    /// [`NotAnEnvelope`]; the body's bytes are in no message.
    pub fn read(body: &[u8]) -> Result<Self, NotAnEnvelope> {
        let text = std::str::from_utf8(body).map_err(|_| NotAnEnvelope)?;
        check_strictly(text)?;
        let fields = Fields::read(text)?;
        let detail = fields.object("error_detail");
        if !["error_code", "error_detail", "data", "request_id"].iter().any(|name| fields.has(name)) {
            return Err(NotAnEnvelope);
        }
        let code = detail
            .as_ref()
            .and_then(|detail| detail.string("code"))
            .filter(|code| !code.is_empty())
            .or_else(|| fields.string("error_code_str"))
            .unwrap_or_default();
        if fields.number("error_code").unwrap_or(0) != 0 || !code.is_empty() {
            return Ok(Self::Error { code });
        }
        match fields.object("data").and_then(|data| data.string("url")) {
            Some(url) if !url.is_empty() => Ok(Self::Success(Answer {
                text: Secret::new(text),
                url: Secret::new(url),
                request_id: fields.string("request_id").unwrap_or_default(),
                log_id: fields.string("log_id").unwrap_or_default(),
            })),
            _ => Ok(Self::NoResult),
        }
    }
}

impl Answer {
    /// Reads back what [`text`](Self::text) gave.
    ///
    /// # Errors
    /// [`NotAnEnvelope`] when that is not a success that names a result.
    pub fn read(text: &str) -> Result<Self, NotAnEnvelope> {
        match Envelope::read(text.as_bytes())? {
            Envelope::Success(answer) => Ok(answer),
            Envelope::NoResult | Envelope::Error { .. } => Err(NotAnEnvelope),
        }
    }

    /// The body, for the ledger's `answered` row, which alone may hold it.
    pub fn text(&self) -> &Secret {
        &self.text
    }

    /// Where the result can be fetched for some hours.
    pub fn url(&self) -> &Secret {
        &self.url
    }

    /// The answer to keep for ever: the object's path in place of the upstream's URL, wherever the
    /// latter stands, since a second copy of a signed URL is as much a secret as the first.
    pub fn keep(&self, object: &ObjectName) -> String {
        let path = serde_json::Value::from(object.path()).to_string();
        let mut kept = String::with_capacity(self.text.expose().len());
        replace_strings(self.text.expose(), self.url.expose(), &path, &mut kept);
        kept
    }
}

/// Adds what deployed clients need and a newer upstream omits: `error_code: 0`, `error_msg` and
/// `error_detail.status_code`. Everything else keeps its order and its spelling.
///
/// A text that is not a JSON object is returned as it is.
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

/// Copies JSON text, replacing every string value that means `from` by the JSON text `to`.
///
/// Works on the text, so that everything else stays as it was spelled. Escapes are honoured: `\/`
/// and `\u0026` spell the same URL as `/` and `&`.
fn replace_strings(text: &str, from: &str, to: &str, out: &mut String) {
    map_strings(text, out, |meaning| (meaning == from).then(|| to.to_owned()));
}

/// Copies JSON text, replacing every string by what `map` makes of its meaning, in JSON, if anything.
fn map_strings(text: &str, out: &mut String, map: impl Fn(&str) -> Option<String>) {
    let mut rest = text;
    while let Some(start) = rest.find('"') {
        let token = string_token(&rest[start..]);
        out.push_str(&rest[..start]);
        let mapped = serde_json::from_str::<String>(token).ok().and_then(|meaning| map(&meaning));
        out.push_str(mapped.as_deref().unwrap_or(token));
        rest = &rest[start + token.len()..];
    }
    out.push_str(rest);
}

/// The JSON string at the start of `text`, quotes included.
fn string_token(text: &str) -> &str {
    let mut escaped = false;
    let end = text.bytes().enumerate().skip(1).find_map(|(at, byte)| match byte {
        _ if escaped => {
            escaped = false;
            None
        }
        b'\\' => {
            escaped = true;
            None
        }
        b'"' => Some(at + 1),
        _ => None,
    });
    &text[..end.unwrap_or(text.len())]
}

/// One JSON object as a list of names and raw texts, in the order they came.
struct Fields(Vec<(String, String)>);

impl Fields {
    fn read(text: &str) -> Result<Self, NotAnEnvelope> {
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
        deserializer.deserialize_map(Collect).map(Self).map_err(|_| NotAnEnvelope)
    }

    fn write(&self) -> String {
        let fields: Vec<String> = self
            .0
            .iter()
            .map(|(name, raw)| format!("{}:{raw}", serde_json::Value::from(name.as_str())))
            .collect();
        format!("{{{}}}", fields.join(","))
    }

    fn raw(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, raw)| raw.as_str())
    }

    fn has(&self, name: &str) -> bool {
        self.raw(name).is_some()
    }

    fn set(&mut self, name: &str, raw: String) {
        match self.0.iter_mut().find(|(other, _)| other == name) {
            Some((_, old)) => *old = raw,
            None => self.0.push((name.to_owned(), raw)),
        }
    }

    fn string(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.raw(name)?).ok()
    }

    /// A number, or a number written as a string, as some older answers have it.
    fn number(&self, name: &str) -> Option<i64> {
        let raw = self.raw(name)?;
        raw.parse().ok().or_else(|| serde_json::from_str::<String>(raw).ok()?.parse().ok())
    }

    fn object(&self, name: &str) -> Option<Self> {
        Self::read(self.raw(name)?).ok()
    }
}

/// Refuses what two readers could understand differently: repeated names, and nesting that a
/// reader's stack may not bear.
fn check_strictly(text: &str) -> Result<(), NotAnEnvelope> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    Strict { depth: 0 }
        .deserialize(&mut deserializer)
        .and_then(|()| deserializer.end())
        .map_err(|_| NotAnEnvelope)
}

#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom("nested too deep"));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let deeper = self.deeper()?;
        while items.next_element_seed(deeper)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let deeper = self.deeper()?;
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !names.insert(name) {
                return Err(serde::de::Error::custom("a repeated name"));
            }
            map.next_value_seed(deeper)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
