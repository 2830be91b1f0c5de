//! From what is kept to what clients see: the result's path becomes a permanent URL.
//!
//! Pure, and done on the way out for hits as well, so that moving the public host is a line of
//! configuration and no migration. Which root a URL has is the gateway's decision.

use crate::base::envelope;
use crate::base::picture::ObjectName;
use crate::base::record::Record;

/// The permanent URL of a result below a public root without a trailing slash.
pub fn permanent_url(public_root: &str, object: ObjectName) -> String {
    format!("{public_root}/{}", object.path())
}

/// The answer clients get: the upstream's, with our URL, and with the fields that deployed clients
/// need and a newer upstream omits.
///
/// `None` when the record names no object of ours, which only a damaged record does.
pub fn answer(record: &Record, public_root: &str) -> Option<String> {
    let object = record.object()?;
    let path = format!("\"{}\"", object.path());
    let url = serde_json::Value::from(permanent_url(public_root, object)).to_string();
    Some(envelope::complete(&record.answer.replace(&path, &url)))
}
