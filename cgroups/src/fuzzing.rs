//! What the fuzz targets (fuzz/) call; not part of the crate otherwise.

use std::path::Path;

use oci_spec::runtime::LinuxResources;

pub use crate::testing::Fake;
use crate::{device_bpf, device_rules, join, mountinfo, paths, systemd};

/// Reads `/proc/PID/mountinfo` and `/proc/PID/cgroup` and finds a container's place in them.
///
/// # Panics
/// A path with `..` was taken.
pub fn place(mountinfo: &[u8], proc_cgroup: &[u8], cgroups_path: &str) {
    let mounts = mountinfo::cgroup_mounts(mountinfo);
    let memberships = mountinfo::memberships(proc_cgroup);
    let found = paths::place_in(Path::new(cgroups_path), &mounts, &memberships);
    let climbs = cgroups_path.split('/').any(|part| part == "..");
    assert!(!climbs || found.is_err(), "{cgroups_path:?}");
    let _ = join::Below::parse(&cgroups_path.split(' ').collect::<Vec<_>>());
}

/// Reads a message of D-Bus, an address of a bus, and a unit's name.
pub fn bus(bytes: &[u8]) {
    let _ = systemd::fuzzing::length(bytes);
    let _ = systemd::fuzzing::decode(bytes);
    let text = String::from_utf8_lossy(bytes);
    let _ = systemd::fuzzing::addresses(&text);
    if let Ok(name) = systemd::fuzzing::name(Path::new(&*text)) {
        let path = name.unwrap_or_default();
        assert!(!path.split('/').any(|part| part == ".."), "{path}");
    }
}

/// Writes limits to cgroups that are directories of files, of both versions.
///
/// # Panics
/// Something was written elsewhere.
pub fn limits(resources: &LinuxResources, fakes: &[Fake; 2]) {
    for fake in fakes {
        let _ = fake.cgroup.update(resources);
        assert_eq!(fake.read_root(OUTSIDE), "", "{resources:?}");
    }
    let rules = resources.devices().as_deref().unwrap_or_default();
    if let Ok(policy) = device_rules::Policy::new(rules) {
        assert!(!device_bpf::program(&policy).is_empty());
    }
}

/// A cgroup of v1 and one of v2, with the files that limits are written to.
pub fn fakes() -> [Fake; 2] {
    [false, true].map(|v2| {
        let controllers = [
            "blkio", "cpu", "cpuset", "hugetlb", "io", "memory", "net_cls", "net_prio", "pids",
            "rdma",
        ];
        let fake = Fake::new(v2, &controllers, if v2 { &V2_FILES } else { &V1_FILES });
        fake.write_root(OUTSIDE, "");
        fake
    })
}

/// A file beside the cgroup.
const OUTSIDE: &str = "memory.max";

const V1_FILES: [&str; 16] = [
    "blkio.weight",
    "cpu.cfs_burst_us",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
    "cpu.idle",
    "cpu.rt_period_us",
    "cpu.rt_runtime_us",
    "cpu.shares",
    "cpuset.cpus",
    "cpuset.mems",
    "hugetlb.2MB.limit_in_bytes",
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.soft_limit_in_bytes",
    "memory.swappiness",
    "pids.max",
];
const V2_FILES: [&str; 14] = [
    "cpu.idle",
    "cpu.max",
    "cpu.max.burst",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.mems",
    "hugetlb.2MB.max",
    "io.bfq.weight",
    "io.max",
    "io.weight",
    "memory.low",
    "memory.max",
    "memory.swap.max",
    "pids.max",
];
