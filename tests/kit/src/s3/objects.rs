//! What is in the bucket: one map behind one lock, so that a condition and its write are one step.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use uuid::Uuid;

/// One name's bytes and what was said with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredObject {
    /// The bytes.
    pub bytes: Bytes,
    /// `Content-Type`, as it was sent.
    pub content_type: Option<String>,
    /// `Cache-Control`, as it was sent.
    pub cache_control: Option<String>,
    /// Whether a checksum was sent in a header; it was right, or nothing would be here.
    pub checksummed: bool,
    /// The tag, without quotes: another one for each write.
    pub tag: String,
}

/// What must hold for a write or a removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Absent,
    Tag(String),
    /// `If-Match: *`
    Present,
}

/// Why a write did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unmet {
    /// 412.
    Failed,
    /// 404: a tag was asked for, and there is nothing.
    Nothing,
}

/// The map.
#[derive(Default)]
pub(super) struct Objects {
    map: Mutex<BTreeMap<String, StoredObject>>,
    ignores_if_none_match: AtomicBool,
    ignores_if_match: AtomicBool,
}

impl Objects {
    pub(super) fn map(&self) -> MutexGuard<'_, BTreeMap<String, StoredObject>> {
        self.map.lock().unwrap()
    }

    /// Like some stores that call themselves compatible.
    pub(super) fn ignore_conditions(&self, if_none_match: bool, if_match: bool) {
        self.ignores_if_none_match.store(if_none_match, Ordering::SeqCst);
        self.ignores_if_match.store(if_match, Ordering::SeqCst);
    }

    /// Writes when every condition holds; returns the new tag.
    pub(super) fn put(
        &self,
        name: &str,
        object: StoredObject,
        conditions: &[Condition],
    ) -> Result<String, Unmet> {
        let mut map = self.map();
        self.check(map.get(name), conditions)?;
        let tag = new_tag();
        map.insert(name.to_owned(), StoredObject { tag: tag.clone(), ..object });
        Ok(tag)
    }

    /// Removes a name when the condition holds.
    pub(super) fn remove(&self, name: &str, condition: Option<Condition>) -> Result<(), Unmet> {
        let mut map = self.map();
        self.check(map.get(name), condition.as_slice())?;
        map.remove(name);
        Ok(())
    }

    fn check(&self, standing: Option<&StoredObject>, conditions: &[Condition]) -> Result<(), Unmet> {
        for condition in conditions {
            match (condition, standing) {
                (Condition::Absent, Some(_)) if !self.ignores_if_none_match.load(Ordering::SeqCst) => {
                    return Err(Unmet::Failed);
                }
                (Condition::Absent, _) => {}
                _ if self.ignores_if_match.load(Ordering::SeqCst) => {}
                (Condition::Tag(_) | Condition::Present, None) => return Err(Unmet::Nothing),
                (Condition::Tag(tag), Some(standing)) if *tag != standing.tag => return Err(Unmet::Failed),
                (Condition::Tag(_) | Condition::Present, Some(_)) => {}
            }
        }
        Ok(())
    }

    /// Puts other bytes under a name, behind everyone's back.
    pub(super) fn overwrite(&self, name: &str, bytes: Bytes) {
        let mut map = self.map();
        let object = map.entry(name.to_owned()).or_default();
        (object.bytes, object.tag) = (bytes, new_tag());
    }
}

fn new_tag() -> String {
    Uuid::new_v4().simple().to_string()
}
