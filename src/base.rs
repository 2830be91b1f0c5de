//! What every other part rests on: keys, records, pictures, secrets, clock, disk. Imports nothing above it.

pub mod archive;
pub mod breaker;
pub mod clock;
pub(crate) mod crash;
pub(crate) mod disk;
pub mod envelope;
pub mod key;
pub mod outcome;
pub mod picture;
pub mod random;
pub mod record;
pub mod results;
pub mod secret;
pub mod state;
