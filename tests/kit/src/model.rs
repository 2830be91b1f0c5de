//! What must be true of any Granary, whatever happens to it: the reference model that the simulation and the crash
//! tests share. Facts go in, contradictions come out as sentences.
//!
//! It knows keys, URLs, bytes and numbers of calls, and nothing of how a Granary keeps them.

use std::collections::BTreeMap;

/// The permanent URLs that clients were told: each serves the same bytes for ever.
#[derive(Debug, Default)]
pub struct Archive {
    urls: BTreeMap<String, LogContext>,
}

#[derive(Debug)]
struct LogContext {
    key: String,
    bytes: Vec<u8>,
    /// Somebody else took the object away, so it may be missing.
    is_lost: bool,
}

/// What came back when a permanent URL was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served<'a> {
    /// 200 and these bytes.
    Bytes(&'a [u8]),
    /// 404.
    NotThere,
    /// 503: not now.
    Later,
}

impl Archive {
    /// A client was told that the result of `key` is at `url`; `bytes` are what was bought.
    ///
    /// # Errors
    /// The URL was told before, for other bytes or another key.
    pub fn told(&mut self, key: &str, url: &str, bytes: &[u8]) -> Result<(), String> {
        let told = self.urls.entry(url.to_owned()).or_insert_with(|| LogContext {
            key: key.to_owned(),
            bytes: bytes.to_vec(),
            is_lost: false,
        });
        if told.bytes != bytes {
            return Err(format!("{url} was told for {} bytes, and now for others", told.bytes.len()));
        }
        if told.key != key {
            return Err(format!("{url} was told for key {}, and now for {key}", told.key));
        }
        Ok(())
    }

    /// The object behind a URL was taken away, by somebody who is not Granary.
    pub fn lost(&mut self, url: &str) {
        if let Some(told) = self.urls.get_mut(url) {
            told.is_lost = true;
        }
    }

    /// What a URL that was told served.
    ///
    /// # Errors
    /// Other bytes, or nothing although nobody took it away.
    pub fn served(&self, url: &str, served: Served<'_>) -> Result<(), String> {
        let Some(told) = self.urls.get(url) else { return Ok(()) };
        match served {
            Served::Bytes(bytes) if bytes == told.bytes => Ok(()),
            Served::Bytes(bytes) => {
                let (now, then) = (bytes.len(), told.bytes.len());
                Err(format!("{url} serves other bytes than were told: {now} instead of {then}"))
            }
            Served::NotThere if !told.is_lost => Err(format!("{url} was told and is not there any more")),
            Served::NotThere | Served::Later => Ok(()),
        }
    }

    /// Key, URL and bytes of all that was told and that nobody took away.
    pub fn standing(&self) -> impl Iterator<Item = (&str, &str, &[u8])> {
        let standing = self.urls.iter().filter(|(_, told)| !told.is_lost);
        standing.map(|(url, told)| (told.key.as_str(), url.as_str(), told.bytes.as_slice()))
    }

    /// How many URLs of a key were told, lost ones too.
    pub fn urls_of(&self, key: &str) -> usize {
        self.urls.values().filter(|told| told.key == key).count()
    }
}

/// One ledger against what the upstream charged for, in calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Charged by the upstream.
    pub charges: u64,
    /// Rows whose answer was booked: `answered`, `stored`, `unfetchable`, `lost`; none that was adopted.
    pub booked: u64,
    /// Rows that are `unknown`.
    pub unknown: u64,
    /// Rows that are `sent`, or `reserved` when they are counted at another moment than the charges.
    pub open: u64,
}

impl Balance {
    /// The charges minus the booked ones lie between 0 and the number of calls of unknown outcome.
    ///
    /// # Errors
    /// They do not.
    pub fn check(&self) -> Result<(), String> {
        let Self { charges, booked, unknown, open } = *self;
        if booked <= charges && charges <= booked + unknown + open {
            return Ok(());
        }
        Err(format!("{charges} charges, but {booked} booked, {unknown} unknown and {open} open calls"))
    }
}

/// One charge for a key, and one more for each call of it whose outcome or result was in doubt: `unknown`, `unfetchable`
/// and `lost` rows, and refreshes.
///
/// # Errors
/// There are more.
pub fn check_charges(key: &str, charges: u64, doubtful: u64) -> Result<(), String> {
    if charges <= 1 + doubtful {
        return Ok(());
    }
    Err(format!("key {key} was charged {charges} times, and only {doubtful} of them can be explained"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_one_key_and_one_picture_for_ever() {
        let mut archive = Archive::default();
        archive.told("k", "/results/1", b"one").unwrap();
        archive.told("k", "/results/1", b"one").unwrap();
        assert!(archive.told("k", "/results/1", b"two").unwrap_err().contains("for others"));
        assert!(archive.told("other", "/results/1", b"one").unwrap_err().contains("key k"));
        archive.told("k", "/results/2", b"two").unwrap();
        assert_eq!((archive.urls_of("k"), archive.standing().count()), (2, 2));
    }

    #[test]
    fn what_was_told_is_served_or_later_but_never_missing_unless_taken_away() {
        let mut archive = Archive::default();
        archive.told("k", "/results/1", b"one").unwrap();
        for (served, is_fine) in [
            (Served::Bytes(b"one"), true),
            (Served::Later, true),
            (Served::Bytes(b"two"), false),
            (Served::NotThere, false),
        ] {
            assert_eq!(archive.served("/results/1", served).is_ok(), is_fine, "{served:?}");
        }
        assert!(archive.served("/results/never", Served::NotThere).is_ok());
        archive.lost("/results/1");
        assert!(archive.served("/results/1", Served::NotThere).is_ok());
        assert!(archive.served("/results/1", Served::Bytes(b"two")).is_err());
        assert_eq!(archive.standing().count(), 0);
    }

    #[test]
    fn a_balance_has_both_its_ends() {
        let balance = Balance { charges: 5, booked: 3, unknown: 1, open: 1 };
        assert!(balance.check().is_ok());
        assert!(Balance { open: 0, ..balance }.check().is_err());
        assert!(Balance { charges: 2, ..balance }.check().is_err());
        assert!(check_charges("k", 2, 1).is_ok() && check_charges("k", 2, 0).is_err());
    }
}
