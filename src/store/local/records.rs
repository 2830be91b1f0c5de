//! Records as files. Blocks on the disk. An unreadable record is an error, never absent: its key would be paid again.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::files::{Files, failed};
use crate::base::crash::crash_point;
use crate::base::disk::{self, TempFile};
use crate::base::key::CacheKey;
use crate::base::record::{RECORDS, Record};
use crate::store::{MAX_RECORD_BYTES, RecordPage, StoreError};

/// Records name teams.
const MODE: u32 = 0o640;

impl Files {
    pub(super) fn put_record(&self, record: Record) -> Result<Record, StoreError> {
        let path = Record::checked_path(&record.namespace, record.key)?;
        let target = self.root().join(&path);
        let folder = target.parent().expect("a record's path has folders");
        let bytes = record.to_json(&path)?;

        let _one_at_a_time = self.turn(record.key);
        let standing = self.record(&record.namespace, record.key)?;
        if let Some(standing) = standing.as_ref().filter(|standing| standing.generation >= record.generation)
        {
            // Its writer may have died before the sync, or it is part of a copied archive.
            self.sync_record(&target, folder).map_err(failed("sync", &path))?;
            return Ok(standing.clone());
        }

        let write = failed("write", &path);
        let mut temp = TempFile::create(self.tmp(), MODE).map_err(&write)?;
        let (first, rest) = bytes.split_at(bytes.len() / 2);
        temp.write(first).map_err(&write)?;
        crash_point("CP23");
        temp.write(rest).map_err(&write)?;
        temp.sync().map_err(failed("sync", &path))?;
        crash_point("CP25");

        self.create_record_folder(folder).map_err(failed("make the folder of", &path))?;
        let published = match standing {
            // Create-only even against another process: its record stands, and this call fails.
            None => temp.link(&target),
            Some(_) => temp.replace(&target),
        };
        if published.is_err() {
            // The folder may have been removed.
            self.durable.lock().clear();
        }
        published.map_err(failed("publish", &path))?;
        disk::sync_folder(folder).map_err(failed("sync the folder of", &path))?;
        crash_point("CP26");
        Ok(record)
    }

    pub(super) fn record(&self, namespace: &str, key: CacheKey) -> Result<Option<Record>, StoreError> {
        let path = Record::checked_path(namespace, key)?;
        let Some(bytes) = self.read(RECORDS, &path, MAX_RECORD_BYTES)? else { return Ok(None) };
        Ok(Some(Record::from_json(&path, &bytes, namespace, key)?))
    }

    /// Ordered by folder, then by name.
    pub(super) fn list_records(&self, after: Option<&str>, limit: usize) -> Result<RecordPage, StoreError> {
        let mut folders = Vec::new();
        for namespace in self.names_in(RECORDS)? {
            folders.append(&mut self.names_in(&namespace)?);
        }
        folders.sort_unstable();
        let first = after.and_then(|after| after.rsplit_once('/')).map_or("", |(folder, _)| folder);
        let mut page = Vec::new();
        for folder in folders.iter().filter(|folder| folder.as_str() >= first) {
            let mut names = self.names_in(folder)?;
            names.sort_unstable();
            names.retain(|name| after.is_none_or(|after| folder != first || name.as_str() > after));
            page.append(&mut names);
            // One more means that this is not the last page.
            if page.len() > limit {
                page.truncate(limit);
                return Ok(RecordPage::of(&page, false));
            }
        }
        Ok(RecordPage::of(&page, true))
    }

    /// None when it is not a folder.
    fn names_in(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let list = failed("list", folder);
        let entries = match fs::read_dir(self.root().join(folder)) {
            Ok(entries) => entries,
            Err(error) if folder != RECORDS && is_absence(&error) => return Ok(Vec::new()),
            Err(error) => return Err(list(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            // A name that is not UTF-8 is not a record.
            if let Ok(name) = entry.map_err(&list)?.file_name().into_string() {
                names.push(format!("{folder}/{name}"));
            }
        }
        Ok(names)
    }

    pub(super) fn forget_record(
        &self,
        namespace: &str,
        key: CacheKey,
        up_to: u64,
    ) -> Result<bool, StoreError> {
        let path = Record::checked_path(namespace, key)?;
        let target = self.root().join(&path);
        let folder = target.parent().expect("a record's path has folders");

        let _one_at_a_time = self.turn(key);
        let standing = self.record(namespace, key)?;
        if standing.as_ref().is_some_and(|standing| standing.generation > up_to) {
            return Ok(false);
        }
        if standing.is_some() {
            fs::remove_file(&target).map_err(failed("remove", &path))?;
        }
        // Even for a missing one: the process that removed it may have died before this.
        match disk::sync_folder(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("sync the folder of", &path)(error))
            }
            _ => Ok(standing.is_some()),
        }
    }

    fn sync_record(&self, target: &Path, folder: &Path) -> io::Result<()> {
        File::open(target)?.sync_all()?;
        self.create_record_folder(folder)?;
        disk::sync_folder(folder)
    }

    /// Makes `records/{namespace}/{kk}`, but not `records`: without that it is not our archive.
    fn create_record_folder(&self, folder: &Path) -> io::Result<()> {
        for folder in folder.parent().into_iter().chain([folder]) {
            if !self.durable.lock().contains(folder) {
                disk::create_folder(folder)?;
                self.durable.lock().insert(folder.to_owned());
            }
        }
        Ok(())
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
