//! Wasm modules as OCI images.
//!
//! [`pack`] makes an image or an artifact of a module, for `kiln image pack`. With the feature
//! `containerd`, [`containerd`] finds the module of a container whose image is a wasm artifact,
//! and reads it from containerd's content store, for the shim.
//!
//! Documents and media types are in [`document`]. Nothing here runs a container or knows an
//! engine.

#[cfg(feature = "containerd")]
pub mod containerd;
pub mod document;
mod error;
#[cfg(all(fuzzing, feature = "containerd"))]
pub mod fuzzing;
mod name;
pub mod pack;
mod save;

pub use error::Error;
pub use name::Name;
