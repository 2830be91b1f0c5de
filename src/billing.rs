//! Who was served and who paid: counting requests, credits, and the balance of the upstream's account.

pub mod balance;
pub mod metering;
pub mod money;
