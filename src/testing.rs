//! Machinery of the tests: a contract suite for each seam, the memory ledger and store, and the simulation.

pub(crate) mod ledger_contract;
pub(crate) mod memory_ledger;
pub(crate) mod memory_store;
mod simulation;
pub(crate) mod store_contract;
pub(crate) mod upstream_contract;
pub(crate) mod usage_contract;
