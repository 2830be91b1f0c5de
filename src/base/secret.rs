//! Values that cannot be printed: the upstream key, team tokens and signed result URLs. `Debug` shows stars,
//! there is no `Display` and no `Serialize`, and the memory is wiped on drop. `grep expose` lists every use.

use std::fmt;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use secrecy::{ExposeSecret, SecretString};

/// Disables core dumps, and access of other processes of the same user to our memory.
pub fn forbid_dumps() {
    // For tests that make its system calls fail without root.
    #[cfg(feature = "crash-points")]
    if std::env::var_os("GRANARY_DUMPABLE").is_some() {
        return;
    }
    // Neither can fail for the own process.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
}

#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    /// The caller must not log, store or return it.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        // Of hashes, in constant time: a comparison byte by byte shows how far two secrets agree.
        blake3::hash(self.expose().as_bytes()) == blake3::hash(other.expose().as_bytes())
    }
}

impl Eq for Secret {}

impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_as_stars() {
        let secret = Secret::new("sesame");
        assert_eq!(format!("{secret:?} {:#?}", Some(&secret)), "*** Some(\n    ***,\n)");
        assert_eq!(secret.expose(), "sesame");
    }
}
