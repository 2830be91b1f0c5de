//! What the engine promises, a module per promise. One binary, so that it links once.

#![allow(clippy::unwrap_used)]

mod orientation;
mod output;
mod robust;
mod rules;
mod scene;
mod subject;
