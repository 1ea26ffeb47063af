//! Control groups for containers: one interface over cgroup v1, hybrid and v2.
//!
//! Owns where a container's cgroups are ([`Paths`]), making and removing them
//! ([`Cgroup`]), the limits of `linux.resources`, and finding, freezing and
//! killing the processes inside. Leaves out the cgroup mount in the container
//! and the cgroup namespace, which belong to `runtime`.
//!
//! It is on the path of every container, so it works on directory descriptors
//! (no path is resolved twice), writes only what the configuration names, and
//! reads nothing back that it can know.
//!
//! | file | subject |
//! |---|---|
//! | `paths`, `mountinfo` | which hierarchies there are, and the cgroup's place in each |
//! | `cgroup`, `permitted`, `dir`, `cpuset`, `subtree` | make, open, attach, remove |
//! | `join` | the way in for a further process |
//! | `freezer`, `processes`, `events` | freeze, list, signal, kill, wait |
//! | `resources`, `changes`, `target` | the order in which limits are written, and how |
//! | `memory`, `cpu`, `pids`, `io`, `hugetlb`, `network`, `rdma`, `unified` | one controller each |
//! | `stats` | what was used: one file per controller |
//! | `oom` | tells of processes killed for want of memory |
//! | `devices`, `device_rules`, `device_bpf` | device access: v1 files, v2 eBPF |
//! | `systemd` | the systemd driver: units in place of directories |
//! | `sys` | system calls that rustix has no safe wrapper for |

mod cgroup;
mod changes;
mod cpu;
mod cpuset;
mod device_bpf;
mod device_rules;
mod devices;
mod dir;
mod error;
mod events;
mod freezer;
#[cfg(fuzzing)]
pub mod fuzzing;
mod hugetlb;
mod io;
mod join;
mod memory;
mod mountinfo;
mod network;
mod oom;
mod paths;
mod permitted;
mod pids;
mod processes;
mod rdma;
mod resources;
pub mod stats;
mod subtree;
mod sys;
pub mod systemd;
mod target;
#[cfg(any(test, fuzzing))]
mod testing;
mod unified;

pub use cgroup::{Cgroup, enter, remove};
pub use device_rules::{AllowedDevice, DEFAULT_ALLOWED_DEVICES};
pub use error::{Error, Hint};
pub use freezer::is_frozen;
pub use join::{Below, Entrances, refused, unified_of};
pub use oom::{OomNews, OomWatch};
pub use paths::{Hierarchy, Paths, resolve};
