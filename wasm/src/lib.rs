//! Which containers are wasm, where their module is, whether it can be run, and the cache of
//! what was compiled ahead of time.
//!
//! Nothing here links an engine or knows how to run a module: `kiln-wasmedge` does. The lean
//! `kiln` uses [`detect`] to know when to hand over, and lists and prunes the [`cache`]; it
//! builds this crate without the feature `engine`.

pub mod annotations;
pub mod cache;
pub mod detect;
mod error;
pub mod folder;
pub mod header;
pub mod key;
pub mod locate;
#[cfg(feature = "engine")]
pub mod module;
#[cfg(feature = "engine")]
pub mod proposals;
pub mod prune;
mod view;

pub use error::{BadModule, Error};
