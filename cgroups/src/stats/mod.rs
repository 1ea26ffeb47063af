//! Statistics of a container's cgroups, in the words and units of runc's `events` (its
//! `types/events.go`): serialized, this is the greater part of what it prints.
//!
//! One file per subject, each for v1 and v2. A file that this kernel does not have leaves its
//! numbers at zero, as absent as they are in runc's JSON; one that cannot be understood is an
//! error. Network interfaces are `runtime`'s: no cgroup counts them.

mod cpu;
mod cpuset;
mod hugetlb;
mod io;
mod memory;
mod pids;
mod pressure;
mod rdma;
mod text;

use std::collections::BTreeMap;

use serde::Serialize;

pub use cpu::{Cpu, CpuUsage, Throttling};
pub use cpuset::CpuSet;
pub use hugetlb::Hugetlb;
pub use io::{Blkio, BlkioEntry};
pub use memory::{Memory, MemoryEntry, MemoryEvents};
pub use pids::Pids;
pub use pressure::{Pressure, PressureLine};
pub use rdma::{Rdma, RdmaEntry};

use crate::cgroup::Cgroup;
use crate::error::Error;

/// What a container has used, and what it may use.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)] // The types say it.
pub struct Stats {
    pub cpu: Cpu,
    pub cpuset: CpuSet,
    pub memory: Memory,
    pub pids: Pids,
    pub blkio: Blkio,
    /// By page size: `2MB`.
    pub hugetlb: BTreeMap<String, Hugetlb>,
    /// runc's `events` does not print it; here it is left out only where there is none.
    #[serde(skip_serializing_if = "Rdma::is_empty")]
    pub rdma: Rdma,
}

impl Cgroup {
    /// Reads the statistics, of the cgroup and its descendants as far as the kernel adds them up
    /// (v1's cpu time, memory and block I/O; all of v2).
    ///
    /// # Errors
    ///
    /// [`Error::Read`], also when the cgroup has gone; [`Error::Malformed`].
    pub fn stats(&self) -> Result<Stats, Error> {
        Ok(Stats {
            cpu: cpu::read(self)?,
            cpuset: cpuset::read(self)?,
            memory: memory::read(self)?,
            pids: pids::read(self)?,
            blkio: io::read(self)?,
            hugetlb: hugetlb::read(self)?,
            rdma: rdma::read(self)?,
        })
    }
}

/// For `skip_serializing_if`, as Go's omitempty.
#[allow(clippy::trivially_copy_pass_by_ref)] // The signature is serde's.
fn is_zero(number: &u64) -> bool {
    *number == 0
}
