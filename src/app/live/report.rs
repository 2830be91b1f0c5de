//! The parts of a JSON report about the upstream's open questions. It names no secret, and only scheme and
//! host of a result's URL.

use jiff::Timestamp;
use serde_json::{Value, json};
use url::Url;

use crate::base::picture::{self, ImageFormat};
use crate::upstream::{ErrorReply, Reply};

type Size = (u32, u32);

/// The generation of the envelope, `legacy` with `error_code`, and its top-level fields.
pub(super) fn envelope(body: &Value) -> Value {
    let has = |pointer: &str| body.pointer(pointer).is_some();
    json!({
        "generation": if has("/error_code") { "legacy" } else { "new" },
        "error_msg": has("/error_msg"),
        "error_code_str": has("/error_code_str"),
        "status_code": has("/error_detail/status_code"),
        "fields": body.as_object().map(|fields| fields.keys().collect::<Vec<_>>()).unwrap_or_default(),
    })
}

pub(super) fn url(url: &str, now: Timestamp) -> Value {
    let Ok(url) = Url::parse(url) else { return Value::Null };
    json!({
        "scheme": url.scheme(),
        "host": url.host_str().unwrap_or_default(),
        "signed": url.query().is_some(),
        "life_seconds": life(&url, now),
    })
}

pub(super) fn result(sent: ImageFormat, received: ImageFormat, bytes: &[u8], target: Size) -> Value {
    let size = picture::dimensions(bytes);
    json!({
        "sent": sent.content_type(),
        "received": received.content_type(),
        "width": size.map(|(width, _)| width),
        "height": size.map(|(_, height)| height),
        "size_as_ordered": size == Some((target.0 as usize, target.1 as usize)),
        "bytes": bytes.len(),
        "bytes_after_end": picture::end(bytes).map_or(0, |end| bytes.len() - end),
    })
}

pub(super) fn error(reply: &Reply) -> Option<Value> {
    let ErrorReply { status, body, code } = match reply {
        Reply::Refused(refusal) => &refusal.reply,
        Reply::Failed(reply) => reply,
        Reply::Answered(_) | Reply::NotSent(_) | Reply::Unknown(_) => return None,
    };
    let read = body.as_ref().and_then(|body| serde_json::from_slice::<Value>(body).ok());
    let has = |name: &str| read.as_ref().is_some_and(|body| body.get(name).is_some());
    Some(json!({
        "status": status.as_u16(),
        "code": code,
        "envelope": body.is_some(),
        "error_code": has("error_code"),
        "error_code_str": has("error_code_str"),
    }))
}

/// In seconds from now: a time (`Expires`), or a span (`x-oss-expires`, `X-Amz-Expires`) in the query.
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

/// The reading of the documents that fits the numbers: `visible_area` and `whole_original` are in pixels of
/// the result, `kept_window` in pixels of the sent picture.
pub(super) fn place(place: Option<&Value>, source: Size, target: Size) -> Value {
    let Some(place) = place else { return json!({"reading": "absent", "numbers": null}) };
    let side = |name: &str| place.get(name).and_then(Value::as_f64);
    let (Some(x), Some(y), Some(width), Some(height)) = (side("x"), side("y"), side("width"), side("height"))
    else {
        return json!({"reading": "not_numbers", "numbers": null});
    };
    let [source_width, source_height] = [source.0, source.1].map(f64::from);
    let [target_width, target_height] = [target.0, target.1].map(f64::from);
    // The target is covered, and the rest is cropped.
    let scale = (target_width / source_width).max(target_height / source_height);
    // Within rounding and even sides.
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
    json!({"reading": reading, "numbers": [x, y, width, height]})
}

#[cfg(test)]
mod tests {
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
            assert_eq!(place(Some(&numbers), (1600, 900), (400, 400))["reading"], reading, "{numbers}");
        }
        assert_eq!(place(None, (1600, 900), (400, 400))["reading"], "absent");
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
