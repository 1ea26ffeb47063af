//! The container: from spec to process.

pub mod engine;
pub mod features;
pub mod seccomp;
pub mod template;
