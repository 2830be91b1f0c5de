//! Replaces the path in a kept answer by a permanent URL. Pure; done for each answer, so that a new public
//! host is a line of configuration and no migration.

use crate::base::envelope;
use crate::base::record::Record;

/// The upstream's answer with our URL, and with the fields that deployed clients need and a newer upstream
/// omits. `None` if the record is damaged and names no object. `public_root` has no trailing slash.
pub fn answer(record: &Record, public_root: &str) -> Option<String> {
    let path = record.object()?.path();
    let url = serde_json::Value::from(format!("{public_root}/{path}")).to_string();
    Some(envelope::complete(&record.answer.replace(&format!("\"{path}\""), &url)))
}
