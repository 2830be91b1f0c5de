//! The files: one per call, named by its row, whole or not there. Blocks on the disk.
//!
//! ```text
//! granary-spill 1\n    {"call":7,"booking":"answered",…}\n    the result's bytes, if any    BLAKE3 of all that, 32 bytes
//! ```
//!
//! Errors speak of places and never repeat what is in a file.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::disk::{self, TempFile};
use crate::key::CacheKey;
use crate::ledger::{Booking, CallFacts, CallId, CallState};
use crate::secret::Secret;
use crate::store::{MAX_OBJECT_BYTES, Record};

const MAGIC: &[u8] = b"granary-spill 1\n";
const DIGEST_BYTES: usize = 32;
/// Larger than any file that is written: a result of the largest size that can be configured.
const MAX_BYTES: u64 = MAX_OBJECT_BYTES + (8 << 20);
/// The upstream's links live no longer than this.
const LINK_LIVES: Duration = Duration::from_secs(24 * 3600);
const ANSWERED: &str = "answered";
const SPOOLED: &str = "spooled";
const DAMAGED: &str = "damaged";

/// A booking that a file holds.
#[derive(Debug)]
pub(super) struct Spilled {
    pub(super) id: CallId,
    /// The row, and the state the booking leads to.
    pub(super) facts: CallFacts,
    pub(super) booking: Booking,
}

/// The line before the bytes.
#[derive(Serialize, Deserialize)]
struct Head<S> {
    call: i64,
    namespace: String,
    key: CacheKey,
    generation: u64,
    #[serde(flatten)]
    what: What<S>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "booking", rename_all = "snake_case")]
enum What<S> {
    Answered { text: S, request_id: String, log_id: String },
    Spooled { record: Box<Record> },
}

/// Where the files are.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The name of a call's file.
    pub(super) fn name(id: CallId, state: CallState) -> String {
        let kind = if state == CallState::Answered { ANSWERED } else { SPOOLED };
        format!("{}.{kind}", id.0)
    }

    /// Makes a booking durable.
    pub(super) fn write(&self, spilled: &Spilled) -> io::Result<()> {
        self.make()?;
        let (head, bytes) = encode(spilled)?;
        let mut hasher = blake3::Hasher::new();
        let mut temp = TempFile::create(&self.0, 0o600)?;
        for part in [MAGIC, &head, b"\n", bytes] {
            hasher.update(part);
            temp.write(part)?;
        }
        temp.write(hasher.finalize().as_bytes())?;
        temp.sync()?;
        temp.replace(&self.0.join(Self::name(spilled.id, spilled.booking.state())))?;
        disk::sync_folder(&self.0)
    }

    /// Makes the folder, for our user only.
    fn make(&self) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt as _;
        match fs::DirBuilder::new().mode(0o700).create(&self.0) {
            Ok(()) => self.0.parent().map_or(Ok(()), disk::sync_folder),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The names of what is to be booked, the oldest row first; removes what was left half written.
    pub(super) fn list(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            match name.split_once('.') {
                Some((id, ANSWERED | SPOOLED)) => found.push((id.parse().unwrap_or(i64::MAX), name)),
                Some(_) => tracing::error!(file = name, "a file among the spilled bookings is left alone"),
                None => fs::remove_file(entry.path())?,
            }
        }
        found.sort();
        Ok(found.into_iter().map(|(_, name)| name).collect())
    }

    /// Reads a file that [`list`](Self::list) named.
    pub(super) fn read(&self, name: &str) -> io::Result<Spilled> {
        let damaged = |why: &str| io::Error::new(ErrorKind::InvalidData, why.to_owned());
        let bytes = disk::read(&self.0.join(name), MAX_BYTES)?.ok_or_else(|| damaged("it is gone"))?;
        let spilled = decode(bytes).ok_or_else(|| damaged("it is not whole, or was changed"))?;
        if Self::name(spilled.id, spilled.booking.state()) != name {
            return Err(damaged("it is not about its own name"));
        }
        Ok(spilled)
    }

    /// Removes whatever there is of a call, durably.
    pub(super) fn remove(&self, id: CallId) -> io::Result<()> {
        for state in [CallState::Answered, CallState::Stored] {
            match fs::remove_file(self.0.join(Self::name(id, state))) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        disk::sync_folder(&self.0)
    }

    /// Removes answers that were set aside and whose link no longer works. A result that was set
    /// aside has no link, and stays.
    pub(super) fn remove_expired(&self) -> io::Result<u64> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
            entries => entries?,
        };
        let mut removed = 0;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let is_answer =
                name.to_str().is_some_and(|name| name.ends_with(&format!(".{ANSWERED}.{DAMAGED}")));
            // A time in the future tells no age.
            let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
            if is_answer && age > LINK_LIVES {
                fs::remove_file(entry.path())?;
                tracing::warn!(file = ?name, "removed: the link in it no longer works");
                removed += 1;
            }
        }
        if removed > 0 {
            disk::sync_folder(&self.0)?;
        }
        Ok(removed)
    }

    pub(super) fn set_aside(&self, name: &str) -> io::Result<()> {
        let path = self.0.join(name);
        fs::rename(&path, with_suffix(&path))?;
        disk::sync_folder(&self.0)
    }
}

fn with_suffix(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(DAMAGED);
    name.into()
}

/// The head's line without its end, and the bytes after it.
fn encode(spilled: &Spilled) -> io::Result<(Vec<u8>, &[u8])> {
    let Spilled { id, facts, booking } = spilled;
    let (what, bytes): (What<&str>, &[u8]) = match booking {
        Booking::Answered { text, request_id, log_id } => {
            let (request_id, log_id) = (request_id.clone(), log_id.clone());
            (What::Answered { text: text.expose(), request_id, log_id }, &[])
        }
        Booking::Spooled { record, bytes } => (What::Spooled { record: record.clone() }, bytes),
        _ => return Err(io::Error::new(ErrorKind::InvalidInput, "no money is in this booking")),
    };
    let CallFacts { namespace, key, generation, .. } = facts.clone();
    let head = Head { call: id.0, namespace, key, generation, what };
    Ok((serde_json::to_vec(&head)?, bytes))
}

fn decode(mut file: Vec<u8>) -> Option<Spilled> {
    let digest = file.split_off(file.len().checked_sub(DIGEST_BYTES)?);
    if blake3::hash(&file).as_bytes()[..] != digest[..] || !file.starts_with(MAGIC) {
        return None;
    }
    let file = Bytes::from(file).slice(MAGIC.len()..);
    let end = file.iter().position(|&byte| byte == b'\n')?;
    let Head { call, namespace, key, generation, what } = serde_json::from_slice(&file[..end]).ok()?;
    let bytes = file.slice(end + 1..);
    let booking = match what {
        What::Answered { text, request_id, log_id } => {
            let text: Secret = text;
            Booking::Answered { text, request_id, log_id }
        }
        What::Spooled { record } => Booking::Spooled { record, bytes },
    };
    let facts = CallFacts { namespace, key, generation, state: booking.state() };
    Some(Spilled { id: CallId(call), facts, booking })
}
