//! Counts of served requests, prices, and the balance of the upstream's account.

pub mod balance;
pub mod metering;
pub mod money;
