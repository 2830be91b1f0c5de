//! What one purchase says about the upstream's open questions: [`Report`], a JSON file for operators.
//!
//! It names no secret, and of a result's URL no more than scheme and host.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use url::Url;

use crate::base::envelope::Answer;
use crate::base::picture::{self, ImageFormat};
use crate::upstream::{ErrorReply, Reply};

/// The report. A part is `null` where the purchase did not get so far.
#[derive(Default, Serialize)]
pub(super) struct Report {
    /// When the purchase was made, by our clock.
    pub(super) at: Timestamp,
    /// The upstream's base URL.
    pub(super) upstream: String,
    /// What came of the order, in words.
    pub(super) outcome: String,
    pub(super) envelope: Option<EnvelopeReport>,
    pub(super) result_url: Option<UrlReport>,
    pub(super) retain_location: Option<PlaceReport>,
    pub(super) result: Option<ResultReport>,
    /// Whether an earlier purchase of the same crop brought the same bytes: `same` or `different`;
    /// `unknown` at the first purchase.
    pub(super) repeat: &'static str,
    /// How the order was refused.
    pub(super) refusal: Option<ErrorReport>,
    /// How a wrong key is refused.
    pub(super) wrong_key: Option<ErrorReport>,
}

/// Which generation of the envelope a success has.
#[derive(Serialize)]
pub(super) struct EnvelopeReport {
    /// `legacy` with `error_code`, else `new`.
    generation: &'static str,
    error_msg: bool,
    error_code_str: bool,
    status_code: bool,
    /// Top-level fields, as they came.
    fields: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct UrlReport {
    scheme: String,
    host: String,
    /// It has a query, which is never shown.
    signed: bool,
    /// How long it lives from now, where its query says so.
    life_seconds: Option<i64>,
}

#[derive(Serialize)]
pub(super) struct PlaceReport {
    /// `visible_area` and `whole_original` in pixels of the result, `kept_window` in pixels of the picture
    /// that was sent; `other`, `not_numbers` or `absent`.
    reading: &'static str,
    numbers: Option<[f64; 4]>,
}

#[derive(Serialize)]
pub(super) struct ResultReport {
    sent: &'static str,
    received: &'static str,
    width: Option<usize>,
    height: Option<usize>,
    /// It has the size that was ordered.
    size_as_ordered: bool,
    bytes: usize,
    /// What follows the picture's end mark.
    bytes_after_end: usize,
}

#[derive(Serialize)]
pub(super) struct ErrorReport {
    status: u16,
    code: String,
    /// In the upstream's envelope, rather than bare.
    envelope: bool,
    error_code: bool,
    error_code_str: bool,
}

/// Sides of a picture in pixels.
pub(super) type Size = (u32, u32);

impl Report {
    /// Notes what a successful answer to an order of `target` for a picture of `source` looks like.
    pub(super) fn note_answer(&mut self, answer: &Answer, source: Size, target: Size) {
        let body: Value = serde_json::from_str(answer.text().expose()).unwrap_or_default();
        let has = |pointer: &str| body.pointer(pointer).is_some();
        self.envelope = Some(EnvelopeReport {
            generation: if has("/error_code") { "legacy" } else { "new" },
            error_msg: has("/error_msg"),
            error_code_str: has("/error_code_str"),
            status_code: has("/error_detail/status_code"),
            fields: body.as_object().map(|fields| fields.keys().cloned().collect()).unwrap_or_default(),
        });
        self.result_url = Url::parse(answer.url().expose()).ok().map(|url| UrlReport {
            scheme: url.scheme().to_owned(),
            host: url.host_str().unwrap_or_default().to_owned(),
            signed: url.query().is_some(),
            life_seconds: life(&url, self.at),
        });
        self.retain_location = Some(place(body.pointer("/data/retain_location"), source, target));
    }

    /// Notes the result that was kept.
    pub(super) fn note_result(
        &mut self,
        sent: ImageFormat,
        received: ImageFormat,
        bytes: &[u8],
        target: Size,
    ) {
        let size = picture::dimensions(bytes);
        self.result = Some(ResultReport {
            sent: sent.content_type(),
            received: received.content_type(),
            width: size.map(|(width, _)| width),
            height: size.map(|(_, height)| height),
            size_as_ordered: size == Some((target.0 as usize, target.1 as usize)),
            bytes: bytes.len(),
            bytes_after_end: picture::end(bytes).map_or(0, |end| bytes.len() - end),
        });
    }

    /// As a file's content.
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

impl ErrorReport {
    /// `None` when the reply is no complete error.
    pub(super) fn of(reply: &Reply) -> Option<Self> {
        let ErrorReply { status, body, code } = match reply {
            Reply::Refused(refusal) => &refusal.reply,
            Reply::Failed(reply) => reply,
            Reply::Answered(_) | Reply::NotSent(_) | Reply::Unknown(_) => return None,
        };
        let read = body.as_ref().and_then(|body| serde_json::from_slice::<Value>(body).ok());
        let has = |name: &str| read.as_ref().is_some_and(|body| body.get(name).is_some());
        Some(Self {
            status: status.as_u16(),
            code: code.clone(),
            envelope: body.is_some(),
            error_code: has("error_code"),
            error_code_str: has("error_code_str"),
        })
    }
}

/// What the query of a signed URL says about its end: a time (`Expires`), or a span (`x-oss-expires`,
/// `X-Amz-Expires`).
fn life(url: &Url, now: Timestamp) -> Option<i64> {
    url.query_pairs().find_map(|(name, value)| {
        let value: i64 = value.parse().ok()?;
        match name.to_ascii_lowercase().as_str() {
            "expires" => Some(value - now.as_second()),
            "x-oss-expires" | "x-amz-expires" => Some(value),
            _ => None,
        }
    })
}

/// Which of the documents' readings the numbers fit.
fn place(place: Option<&Value>, source: Size, target: Size) -> PlaceReport {
    let Some(place) = place else { return PlaceReport { reading: "absent", numbers: None } };
    let side = |name: &str| place.get(name).and_then(Value::as_f64);
    let (Some(x), Some(y), Some(width), Some(height)) = (side("x"), side("y"), side("width"), side("height"))
    else {
        return PlaceReport { reading: "not_numbers", numbers: None };
    };
    let [source_width, source_height] = [source.0, source.1].map(f64::from);
    let [target_width, target_height] = [target.0, target.1].map(f64::from);
    // The target is covered, and what sticks out is cropped.
    let scale = (target_width / source_width).max(target_height / source_height);
    // Rounding, and sides made even, are not told apart.
    let is = |w: f64, h: f64| (width - w).abs() <= 2.0 && (height - h).abs() <= 2.0;
    let reading = if is(target_width, target_height) {
        "visible_area"
    } else if is(source_width * scale, source_height * scale) {
        "whole_original"
    } else if is(target_width / scale, target_height / scale) {
        "kept_window"
    } else {
        "other"
    };
    PlaceReport { reading, numbers: Some([x, y, width, height]) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn place_is_read_as_the_documents_may_mean_it() {
        for (numbers, reading) in [
            (json!({"x": 0, "y": 0, "width": 400, "height": 400}), "visible_area"),
            (json!({"x": -156, "y": 0, "width": 711, "height": 400}), "whole_original"),
            (json!({"x": 350, "y": 0, "width": 900, "height": 900}), "kept_window"),
            (json!({"x": 0, "y": 0, "width": 298, "height": 224}), "other"),
            (json!({"x": "0", "y": 0, "width": 298, "height": 224}), "not_numbers"),
            (Value::Null, "not_numbers"),
        ] {
            assert_eq!(place(Some(&numbers), (1600, 900), (400, 400)).reading, reading, "{numbers}");
        }
        assert_eq!(place(None, (1600, 900), (400, 400)).reading, "absent");
    }

    #[test]
    fn life_of_a_url_is_what_its_query_says() {
        let now = Timestamp::from_second(1_000).unwrap();
        for (query, expected) in [
            ("Expires=2800&Signature=s", Some(1_800)),
            ("x-oss-expires=1800", Some(1_800)),
            ("X-Amz-Expires=60", Some(60)),
            ("Signature=s", None),
            ("Expires=soon", None),
        ] {
            let url = Url::parse(&format!("http://h.example/a?{query}")).unwrap();
            assert_eq!(life(&url, now), expected, "{query}");
        }
    }
}
