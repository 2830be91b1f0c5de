//! The upstream's JSON envelope, kept verbatim: clients get every field the upstream sent, known or not, in
//! its order and spelling. Only addresses of the upstream are replaced or removed (`addresses`), and only
//! fields that a newer upstream omits are added ([`complete`]).

mod addresses;
mod decode;
mod fields;

use serde_json::{Value, json};

use self::addresses::{depth, replace_strings, without_foreign};
pub use self::decode::decodings;
use self::fields::Fields;
pub use self::fields::complete;
use crate::base::operation::Operation;
use crate::base::picture::ObjectName;
use crate::base::secret::Secret;

/// The most that readers of stored answers accept.
const MAX_DEPTH: usize = 120;

/// Longer ids of the upstream are cut. Documented ones have 36 bytes.
const MAX_ID_BYTES: usize = 128;

#[derive(Debug, Clone)]
pub struct Answer {
    /// The body without foreign addresses; secret, because it contains `url`.
    text: Secret,
    url: Secret,
    /// At most 128 bytes, or empty; so is `log_id`.
    pub request_id: String,
    pub log_id: String,
}

#[derive(Debug)]
pub enum Envelope {
    Success(Answer),
    /// Neither an error code nor a result's URL.
    NoResult,
    /// `code`: `error_detail.code`, or `error_code_str`. `text`: the body without addresses.
    Error {
        code: String,
        text: String,
    },
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an answer in the upstream's format")]
pub struct NotAnEnvelope;

impl Envelope {
    /// Reads a body as common clients do: after a byte order mark, with bytes that are not UTF-8, and with
    /// repeated fields, of which the last counts.
    pub fn read(body: &[u8], operation: &Operation) -> Result<Self, NotAnEnvelope> {
        let (text, ..) = encoding_rs::UTF_8.decode(body);
        if depth(&text) > MAX_DEPTH {
            return Err(NotAnEnvelope);
        }
        let fields = Fields::read(&text)?;
        if !["error_code", "error_detail", "data", "request_id"].iter().any(|name| fields.has(name)) {
            return Err(NotAnEnvelope);
        }
        let [parent, member] = operation.result_url;
        let url = fields.object(parent).and_then(|data| data.string(member)).filter(|url| !url.is_empty());
        let text = without_foreign(&text, url.as_deref());
        let fields = Fields::read(&text)?;
        let code = fields
            .object("error_detail")
            .and_then(|detail| detail.string("code"))
            .filter(|code| !code.is_empty())
            .or_else(|| fields.string("error_code_str"))
            .unwrap_or_default();
        let is_error = fields.number("error_code").is_some_and(|code| code != 0);
        Ok(match url {
            // A result, with any text of the code.
            Some(url) if !is_error => Self::Success(Answer {
                url: Secret::new(url),
                request_id: id(&fields, "request_id"),
                log_id: id(&fields, "log_id"),
                text: Secret::new(text),
            }),
            _ if is_error || !code.is_empty() => Self::Error { code, text },
            _ => Self::NoResult,
        })
    }
}

fn id(fields: &Fields, name: &str) -> String {
    let mut id = fields.string(name).or_else(|| Some(fields.number(name)?.to_string())).unwrap_or_default();
    id.truncate(id.floor_char_boundary(MAX_ID_BYTES));
    id
}

impl Answer {
    /// Reads a text of [`text`](Self::text).
    pub fn read(text: &str, operation: &Operation) -> Result<Self, NotAnEnvelope> {
        match Envelope::read(text.as_bytes(), operation)? {
            Envelope::Success(answer) => Ok(answer),
            Envelope::NoResult | Envelope::Error { .. } => Err(NotAnEnvelope),
        }
    }

    /// For the `answered` row only.
    pub fn text(&self) -> &Secret {
        &self.text
    }

    pub fn url(&self) -> &Secret {
        &self.url
    }

    /// The permanent answer: the object's path replaces every copy of the upstream's URL.
    pub fn keep(&self, object: &ObjectName) -> String {
        replace_strings(self.text.expose(), self.url.expose(), &object.path())
    }

    /// For people. The URL is cut after its host, because the rest may be signed.
    pub fn shown(&self) -> String {
        let url = self.url.expose();
        let place = match (url.split_once("://"), url.split_once(',')) {
            (Some((scheme, rest)), _) => {
                let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
                // There may be a password before an @.
                format!("{scheme}://{}/…", host.rsplit('@').next().unwrap_or_default())
            }
            (None, Some((kind, _))) => format!("{kind},…"),
            (None, None) => "…".to_owned(),
        };
        replace_strings(self.text.expose(), url, &place)
    }

    /// Only the URL and the location of the answer.
    pub fn bare(&self) -> Self {
        let answer: Value = serde_json::from_str(self.text.expose()).unwrap_or_default();
        let place = answer.pointer("/data/retain_location").and_then(Value::as_object);
        let place = place.map(|place| {
            let sides = ["width", "height", "y", "x"].into_iter();
            let numbers =
                sides.filter_map(|side| place.get(side).filter(|value| value.is_number()).map(|n| (side, n)));
            numbers.map(|(side, number)| (side.to_owned(), number.clone())).collect::<serde_json::Map<_, _>>()
        });
        let text = json!({"data": {"url": self.url.expose(), "retain_location": place}, "error_code": 0});
        let text = Secret::new(complete(&text.to_string()));
        Self { text, url: self.url.clone(), request_id: String::new(), log_id: String::new() }
    }
}

#[cfg(test)]
mod tests;
