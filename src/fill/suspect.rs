//! Compares a result with its order ([`suspicions`]). A mismatch is only counted: the result was paid for.

use crate::base::picture;
use crate::metrics::Suspicion;

/// What in the result and in the upstream's answer does not fit an order of `width` by `height` pixels.
pub(super) fn suspicions(width: u32, height: u32, bytes: &[u8], answer: &str) -> Vec<Suspicion> {
    let mut found = Vec::new();
    if picture::dimensions(bytes) != Some((width as usize, height as usize)) {
        found.push(Suspicion::Dimensions);
    }
    if !is_plausible(width, height, answer) {
        found.push(Suspicion::RetainLocation);
    }
    found
}

/// Returns true if `retain_location` overlaps the result or is absent. The vendor does not define it; in each
/// reading it is a rectangle with a part of the generated image in it.
fn is_plausible(width: u32, height: u32, answer: &str) -> bool {
    let Ok(answer) = serde_json::from_str::<serde_json::Value>(answer) else { return false };
    let Some(place) = answer.pointer("/data/retain_location") else { return true };
    let side = |name: &str| place.get(name).and_then(serde_json::Value::as_f64);
    let (Some(x), Some(y), Some(w), Some(h)) = (side("x"), side("y"), side("width"), side("height")) else {
        return false;
    };
    let overlaps = |start: f64, length: f64, whole: u32| {
        length > 0.0 && start < f64::from(whole) && start + length > 0.0
    };
    overlaps(x, w, width) && overlaps(y, h, height)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PNG's header that claims this size.
    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0DIHDR".to_vec();
        bytes.extend(width.to_be_bytes());
        bytes.extend(height.to_be_bytes());
        bytes.extend(b"\x08\x02\0\0\0");
        bytes
    }

    #[test]
    fn a_result_of_another_size_is_suspect() {
        for (bytes, is_suspect) in [
            (png(400, 300), false),
            (png(300, 400), true),
            (png(400, 301), true),
            (b"\xFF\xD8\xFF no size".to_vec(), true),
        ] {
            let found = suspicions(400, 300, &bytes, "{}");
            assert_eq!(found.contains(&Suspicion::Dimensions), is_suspect);
            assert!(!found.contains(&Suspicion::RetainLocation));
        }
    }

    #[test]
    fn a_place_outside_of_the_result_is_suspect() {
        for (place, is_suspect) in [
            // The readings of the documents: the visible part, the whole scaled original, a window.
            (r#"{"x":0,"y":0,"width":400,"height":300}"#, false),
            (r#"{"x":-156,"y":0,"width":711,"height":400}"#, false),
            (r#"{"width":298,"height":224,"y":0,"x":0}"#, false),
            (r#"{"x":400,"y":0,"width":10,"height":10}"#, true),
            (r#"{"x":0,"y":-50,"width":400,"height":50}"#, true),
            (r#"{"x":0,"y":0,"width":0,"height":300}"#, true),
            (r#"{"x":"0","y":0,"width":400,"height":300}"#, true),
            (r#"{"x":0}"#, true),
            ("null", true),
        ] {
            let answer = format!(r#"{{"data":{{"url":"u","retain_location":{place}}}}}"#);
            let found = suspicions(400, 300, &png(400, 300), &answer);
            assert_eq!(!found.is_empty(), is_suspect, "{place}");
        }
    }
}
