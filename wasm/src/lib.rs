//! Which containers are wasm, where their module is, and whether it can be run.
//!
//! Nothing here links an engine or knows how to run a module: `kiln-wasmedge` does. The lean
//! `kiln` uses [`detect`] to know when to hand over; it builds this crate without the feature
//! `engine`.

pub mod annotations;
pub mod detect;
mod error;
pub mod locate;
mod view;

pub use error::Error;
