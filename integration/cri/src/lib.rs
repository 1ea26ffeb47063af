//! A small CRI client, and just enough of a kubelet to run the pods of `deploy/` with it in a real
//! containerd.
//!
//! - [`Manifest`] is a pod's YAML, read strictly.
//! - [`Pod`] is one that runs. Dropping it stops and removes it, and fails the test if a process, a
//!   cgroup, a mount or state of it is still there.
//! - [`Client`] has CRI's calls themselves.

// A harness reports by panicking, which is what a test is to do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod api;
pub mod client;
mod grpc;
mod kubelet;
pub mod log;
pub mod manifest;
pub mod spdy;

pub use client::Client;
pub use grpc::Status;
pub use kubelet::{Container, HOST_IDS, Pod, import};
pub use manifest::Manifest;
