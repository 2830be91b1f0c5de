//! A store in memory, for tests: the same contract as the real ones, without their files.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::base::archive::ArchiveId;
use crate::base::key::CacheKey;
use crate::base::picture::ObjectName;
use crate::base::record::{RECORDS, Record};
use crate::store::{MARKER, RecordPage, Store, StoreError, archive_of, check_object, is_object};

/// What is kept at each path, whether `results/…` or `records/…`.
#[derive(Default)]
pub(crate) struct MemoryStore(Mutex<BTreeMap<String, Bytes>>);

impl MemoryStore {
    /// The files themselves, to look at and to damage.
    pub(crate) fn files(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put_object(&self, name: ObjectName, bytes: Bytes) -> Result<(), StoreError> {
        check_object(name, &bytes)?;
        self.files().entry(name.path()).or_insert(bytes);
        Ok(())
    }

    pub(crate) fn object(&self, name: ObjectName, max: u64) -> Result<Option<Bytes>, StoreError> {
        let found = self.files().get(&name.path()).cloned();
        match found {
            Some(bytes) if !is_object(name, &bytes) => {
                Err(StoreError::Corrupt(format!("{} is not the picture that its name says", name.path())))
            }
            Some(bytes) if bytes.len() as u64 > max => Err(StoreError::TooLong(bytes.len() as u64)),
            found => Ok(found),
        }
    }

    pub(crate) fn has_object(&self, name: ObjectName) -> bool {
        self.files().contains_key(&name.path())
    }

    pub(crate) fn put_record(&self, record: &Record) -> Result<Record, StoreError> {
        let path = Record::checked_path(&record.namespace, record.key)?;
        let json = record.to_json(&path)?;
        let mut files = self.files();
        if let Some(standing) = files.get(&path) {
            let standing = Record::from_json(&path, standing, &record.namespace, record.key)?;
            if standing.generation >= record.generation {
                return Ok(standing);
            }
        }
        files.insert(path, json);
        Ok(record.clone())
    }

    pub(crate) fn record(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, StoreError> {
        let path = Record::checked_path(namespace, key)?;
        let json = self.files().get(&path).cloned();
        Ok(json.map(|json| Record::from_json(&path, &json, namespace, key)).transpose()?)
    }

    pub(crate) fn list_records(&self, after: Option<&str>, limit: usize) -> RecordPage {
        let files = self.files();
        let is_behind = |name: &&String| after.is_none_or(|after| name.as_str() > after);
        let mut names = files.keys().filter(|name| name.starts_with(RECORDS)).filter(is_behind).cloned();
        let page: Vec<String> = names.by_ref().take(limit).collect();
        RecordPage::of(&page, names.next().is_none())
    }

    pub(crate) fn forget_record(
        &self,
        namespace: &str,
        key: CacheKey,
        up_to: u64,
    ) -> Result<bool, StoreError> {
        let path = Record::checked_path(namespace, key)?;
        let mut files = self.files();
        let Some(json) = files.get(&path) else { return Ok(false) };
        if Record::from_json(&path, json, namespace, key)?.generation > up_to {
            return Ok(false);
        }
        Ok(files.remove(&path).is_some())
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn put_object(&self, name: ObjectName, bytes: Bytes) -> Result<(), StoreError> {
        Self::put_object(self, name, bytes)
    }

    async fn object(&self, name: ObjectName, max: u64) -> Result<Option<Bytes>, StoreError> {
        Self::object(self, name, max)
    }

    async fn has_object(&self, name: ObjectName) -> Result<bool, StoreError> {
        Ok(Self::has_object(self, name))
    }

    async fn put_record(&self, record: &Record) -> Result<Record, StoreError> {
        Self::put_record(self, record)
    }

    async fn record(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, StoreError> {
        Self::record(self, namespace, key)
    }

    async fn list_records(&self, after: Option<&str>, limit: usize) -> Result<RecordPage, StoreError> {
        Ok(Self::list_records(self, after, limit))
    }

    async fn forget_record(&self, namespace: &str, key: CacheKey, up_to: u64) -> Result<bool, StoreError> {
        Self::forget_record(self, namespace, key, up_to)
    }

    async fn check_room(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn prove(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn archive(&self) -> Result<Option<ArchiveId>, StoreError> {
        self.files().get(MARKER).map(|marker| archive_of(marker)).transpose()
    }

    async fn mark_archive(&self, archive: ArchiveId) -> Result<ArchiveId, StoreError> {
        archive_of(self.files().entry(MARKER.to_owned()).or_insert_with(|| archive.to_marker().into()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::store_contract::{StoreFixture, store_contract};

    #[derive(Default)]
    struct Fixture(Arc<MemoryStore>);

    #[async_trait]
    impl StoreFixture for Fixture {
        async fn open(&self) -> Arc<dyn Store> {
            self.0.clone()
        }

        async fn overwrite(&self, path: &str, bytes: &[u8]) {
            self.0.files().insert(path.to_owned(), Bytes::copy_from_slice(bytes));
        }
    }

    store_contract!(Fixture::default());
}
