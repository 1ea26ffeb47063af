//! The container: from spec to process.
//!
//! Each operation of the runtime-spec is a file ([`create`], [`start`], [`kill`], [`delete`]);
//! what a config asks for is read by [`bundle`] and checked by [`plan`]; the process that becomes
//! the container is [`init`], one file per step. The command line and the shim call this crate;
//! it knows cgroups and hooks, and of WebAssembly no more than the trait in [`engine`].
//!
//! Oldest kernel: 5.12 (openat2, clone3, pidfds, the mount API with mount_setattr).

pub mod affinity;
pub mod annotations;
pub mod bundle;
pub mod channel;
pub mod checkpoint;
pub mod create;
pub mod delete;
pub mod devices;
pub mod engine;
pub mod error;
pub mod events;
pub mod exec;
pub mod features;
pub mod id;
pub mod idmaps;
pub mod init;
pub mod kill;
pub mod labels;
pub mod lenient;
pub mod listener;
pub mod memory_policy;
pub mod missing;
mod mount_table;
pub mod mounts;
pub mod namespaces;
pub mod net_devices;
pub mod netlink;
pub mod network_stats;
pub mod order;
pub mod passwd;
pub mod pause;
pub mod placement;
pub mod plan;
pub mod privilege;
pub mod process;
pub mod ps;
pub mod rdt;
pub mod ready;
pub mod rooted;
pub mod rootless;
pub mod scheduling;
pub mod sealed;
pub mod seccomp;
pub mod snapshot;
pub mod start;
pub mod state;
pub mod sys;
pub mod template;
pub mod update;
pub mod wait;

pub use error::Error;
