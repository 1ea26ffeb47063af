//! The container: from spec to process.

pub mod engine;
pub mod seccomp;
