//! What every other part rests on: keys, records, pictures, secrets, clock, disk. Imports nothing above it.

pub mod archive;
pub(crate) mod breaker;
pub mod clock;
pub(crate) mod crash;
pub(crate) mod disk;
pub mod envelope;
pub mod identity;
pub mod key;
pub mod operation;
pub mod outcome;
pub mod permits;
pub mod picture;
pub(crate) mod random;
pub mod record;
pub mod secret;
pub(crate) mod state;
pub(crate) mod words;
