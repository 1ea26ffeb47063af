//! Statistics, as containerd's cgroups library has them: `io.containerd.cgroups.v1.Metrics`, or
//! v2's.

use std::collections::BTreeMap;

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::{cgroups::metrics as v1, cgroups_v2::metrics as v2};
use kiln_cgroups::Cgroup;
use kiln_cgroups::stats::{BlkioEntry, MemoryEntry, Pressure, PressureLine, Stats};

use crate::error::Error;
use crate::events::any;

/// What the container has used.
///
/// # Errors
/// A file of the kernel's cannot be read or understood.
pub fn metrics(cgroup: &Cgroup) -> Result<Any, Error> {
    let stats = cgroup.stats().map_err(kiln_runtime::Error::from)?;
    Ok(match cgroup.paths().is_v2() {
        true => any("io.containerd.cgroups.v2.Metrics", &unified(&stats)),
        false => any("io.containerd.cgroups.v1.Metrics", &legacy(&stats)),
    })
}

/// Fills fields of the same name from a map, or from a structure.
macro_rules! fill {
    ($to:ident from map $map:ident: $($field:ident = $key:literal),* $(,)?) => {
        $($to.$field = value($map, $key);)*
    };
    ($to:ident from $from:expr => $($field:ident = $other:ident),* $(,)?) => {
        $($to.$field = $from.$other;)*
    };
}

fn value(raw: &BTreeMap<String, u64>, key: &str) -> u64 {
    raw.get(key).copied().unwrap_or_default()
}

fn legacy(stats: &Stats) -> v1::Metrics {
    let mut metrics = v1::Metrics::new();
    for (size, used) in &stats.hugetlb {
        let mut entry = v1::HugetlbStat::new();
        fill!(entry from used => usage = usage, max = max, failcnt = failcnt);
        entry.pagesize.clone_from(size);
        metrics.hugetlb.push(entry);
    }
    let mut pids = v1::PidsStat::new();
    fill!(pids from stats.pids => current = current, limit = limit);
    metrics.pids = MessageField::some(pids);

    let mut usage = v1::CPUUsage::new();
    fill!(usage from stats.cpu.usage => total = total, kernel = kernel, user = user);
    usage.per_cpu.clone_from(&stats.cpu.usage.percpu);
    let mut throttle = v1::Throttle::new();
    fill!(throttle from stats.cpu.throttling =>
        periods = periods, throttled_periods = throttled_periods, throttled_time = throttled_time);
    let mut cpu = v1::CPUStat::new();
    cpu.usage = MessageField::some(usage);
    cpu.throttling = MessageField::some(throttle);
    metrics.cpu = MessageField::some(cpu);
    metrics.memory = MessageField::some(legacy_memory(stats));
    metrics.memory_oom_control = MessageField::some({
        let raw = &stats.memory.raw;
        let mut control = v1::MemoryOomControl::new();
        fill!(control from map raw: oom_kill = "oom_kill");
        control
    });

    let entries = |list: &[BlkioEntry]| list.iter().map(legacy_io).collect();
    let mut io = v1::BlkIOStat::new();
    let used = &stats.blkio;
    io.io_service_bytes_recursive = entries(&used.io_service_bytes_recursive);
    io.io_serviced_recursive = entries(&used.io_serviced_recursive);
    io.io_queued_recursive = entries(&used.io_queue_recursive);
    io.io_service_time_recursive = entries(&used.io_service_time_recursive);
    io.io_wait_time_recursive = entries(&used.io_wait_time_recursive);
    io.io_merged_recursive = entries(&used.io_merged_recursive);
    io.io_time_recursive = entries(&used.io_time_recursive);
    io.sectors_recursive = entries(&used.sectors_recursive);
    metrics.blkio = MessageField::some(io);

    let mut rdma = v1::RdmaStat::new();
    let entry = |from: &kiln_cgroups::stats::RdmaEntry| {
        let mut entry = v1::RdmaEntry::new();
        entry.device.clone_from(&from.device);
        fill!(entry from from => hca_handles = hca_handles, hca_objects = hca_objects);
        entry
    };
    rdma.current = stats.rdma.rdma_current.iter().map(entry).collect();
    rdma.limit = stats.rdma.rdma_limit.iter().map(entry).collect();
    metrics.rdma = MessageField::some(rdma);
    metrics
}

fn legacy_memory(stats: &Stats) -> v1::MemoryStat {
    let mut memory = v1::MemoryStat::new();
    let raw = &stats.memory.raw;
    fill!(memory from map raw:
        cache = "cache", rss = "rss", rss_huge = "rss_huge", mapped_file = "mapped_file",
        dirty = "dirty", writeback = "writeback", pg_pg_in = "pgpgin", pg_pg_out = "pgpgout",
        pg_fault = "pgfault", pg_maj_fault = "pgmajfault", inactive_anon = "inactive_anon",
        active_anon = "active_anon", inactive_file = "inactive_file",
        active_file = "active_file", unevictable = "unevictable",
        hierarchical_memory_limit = "hierarchical_memory_limit",
        hierarchical_swap_limit = "hierarchical_memsw_limit", total_cache = "total_cache",
        total_rss = "total_rss", total_rss_huge = "total_rss_huge",
        total_mapped_file = "total_mapped_file", total_dirty = "total_dirty",
        total_writeback = "total_writeback", total_pg_pg_in = "total_pgpgin",
        total_pg_pg_out = "total_pgpgout", total_pg_fault = "total_pgfault",
        total_pg_maj_fault = "total_pgmajfault", total_inactive_anon = "total_inactive_anon",
        total_active_anon = "total_active_anon", total_inactive_file = "total_inactive_file",
        total_active_file = "total_active_file", total_unevictable = "total_unevictable",
    );
    let entry = |from: &MemoryEntry| {
        let mut entry = v1::MemoryEntry::new();
        fill!(entry from from => limit = limit, usage = usage, max = max, failcnt = failcnt);
        MessageField::some(entry)
    };
    memory.usage = entry(&stats.memory.usage);
    memory.swap = entry(&stats.memory.swap);
    memory.kernel = entry(&stats.memory.kernel);
    memory.kernel_tcp = entry(&stats.memory.kernel_tcp);
    memory
}

fn legacy_io(from: &BlkioEntry) -> v1::BlkIOEntry {
    let mut entry = v1::BlkIOEntry::new();
    entry.op.clone_from(&from.op);
    fill!(entry from from => major = major, minor = minor, value = value);
    entry
}

fn unified(stats: &Stats) -> v2::Metrics {
    let mut metrics = v2::Metrics::new();
    let mut pids = v2::PidsStat::new();
    fill!(pids from stats.pids => current = current, limit = limit);
    metrics.pids = MessageField::some(pids);

    let mut cpu = v2::CPUStat::new();
    cpu.usage_usec = stats.cpu.usage.total / 1000;
    cpu.user_usec = stats.cpu.usage.user / 1000;
    cpu.system_usec = stats.cpu.usage.kernel / 1000;
    cpu.nr_periods = stats.cpu.throttling.periods;
    cpu.nr_throttled = stats.cpu.throttling.throttled_periods;
    cpu.throttled_usec = stats.cpu.throttling.throttled_time / 1000;
    cpu.psi = pressure(stats.cpu.psi.as_ref());
    metrics.cpu = MessageField::some(cpu);
    metrics.memory = MessageField::some(unified_memory(stats));

    let mut events = v2::MemoryEvents::new();
    fill!(events from stats.memory.event_count =>
        low = low, high = high, max = max, oom = oom, oom_kill = oom_kill,
        oom_group_kill = oom_group_kill);
    metrics.memory_events = MessageField::some(events);
    metrics.io = MessageField::some(unified_io(stats));
    for (size, used) in &stats.hugetlb {
        let mut entry = v2::HugeTlbStat::new();
        fill!(entry from used => current = usage, max = max, failcnt = failcnt);
        entry.pagesize.clone_from(size);
        metrics.hugetlb.push(entry);
    }
    let mut rdma = v2::RdmaStat::new();
    let entry = |from: &kiln_cgroups::stats::RdmaEntry| {
        let mut entry = v2::RdmaEntry::new();
        entry.device.clone_from(&from.device);
        fill!(entry from from => hca_handles = hca_handles, hca_objects = hca_objects);
        entry
    };
    rdma.current = stats.rdma.rdma_current.iter().map(entry).collect();
    rdma.limit = stats.rdma.rdma_limit.iter().map(entry).collect();
    metrics.rdma = MessageField::some(rdma);
    metrics
}

fn unified_memory(stats: &Stats) -> v2::MemoryStat {
    let mut memory = v2::MemoryStat::new();
    let raw = &stats.memory.raw;
    fill!(memory from map raw:
        anon = "anon", file = "file", kernel_stack = "kernel_stack", slab = "slab", sock = "sock",
        shmem = "shmem", file_mapped = "file_mapped", file_dirty = "file_dirty",
        file_writeback = "file_writeback", anon_thp = "anon_thp",
        inactive_anon = "inactive_anon", active_anon = "active_anon",
        inactive_file = "inactive_file", active_file = "active_file",
        unevictable = "unevictable", slab_reclaimable = "slab_reclaimable",
        slab_unreclaimable = "slab_unreclaimable", pgfault = "pgfault",
        pgmajfault = "pgmajfault", workingset_nodereclaim = "workingset_nodereclaim",
        pgrefill = "pgrefill", pgscan = "pgscan", pgsteal = "pgsteal",
        pgactivate = "pgactivate", pgdeactivate = "pgdeactivate", pglazyfree = "pglazyfree",
        pglazyfreed = "pglazyfreed", thp_fault_alloc = "thp_fault_alloc",
        thp_collapse_alloc = "thp_collapse_alloc",
    );
    // Told apart by what was in the page since Linux 5.9.
    let sum = |name: &str| {
        ["_anon", "_file", ""].iter().map(|kind| value(raw, &format!("{name}{kind}"))).sum()
    };
    memory.workingset_refault = sum("workingset_refault");
    memory.workingset_activate = sum("workingset_activate");
    let MemoryEntry { limit, usage, max, .. } = stats.memory.usage;
    (memory.usage, memory.usage_limit, memory.max_usage) = (usage, limit, max);
    // Theirs count swap alone.
    memory.swap_usage = stats.memory.swap.usage.saturating_sub(usage);
    memory.swap_limit = stats.memory.swap.limit.saturating_sub(limit);
    memory.psi = pressure(stats.memory.psi.as_ref());
    memory
}

/// One entry a device, where runc's words have one for each kind of operation.
fn unified_io(stats: &Stats) -> v2::IOStat {
    let mut devices: BTreeMap<(u64, u64), v2::IOEntry> = BTreeMap::new();
    let lists = [
        (&stats.blkio.io_service_bytes_recursive, true),
        (&stats.blkio.io_serviced_recursive, false),
    ];
    for (list, bytes) in lists {
        for from in list {
            let entry = devices.entry((from.major, from.minor)).or_default();
            (entry.major, entry.minor) = (from.major, from.minor);
            match (from.op.as_str(), bytes) {
                ("Read", true) => entry.rbytes = from.value,
                ("Write", true) => entry.wbytes = from.value,
                ("Read", false) => entry.rios = from.value,
                ("Write", false) => entry.wios = from.value,
                _ => {}
            }
        }
    }
    let mut io = v2::IOStat::new();
    io.usage = devices.into_values().collect();
    io.psi = pressure(stats.blkio.psi.as_ref());
    io
}

fn pressure(from: Option<&Pressure>) -> MessageField<v2::PSIStats> {
    let line = |from: &PressureLine| {
        let mut data = v2::PSIData::new();
        fill!(data from from => avg10 = avg10, avg60 = avg60, avg300 = avg300, total = total);
        MessageField::some(data)
    };
    let Some(from) = from else { return MessageField::none() };
    let mut stats = v2::PSIStats::new();
    (stats.some, stats.full) = (line(&from.some), line(&from.full));
    MessageField::some(stats)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(op: &str, value: u64) -> BlkioEntry {
        BlkioEntry { major: 8, minor: 0, op: op.to_owned(), value }
    }

    fn stats() -> Stats {
        let mut stats = Stats::default();
        stats.cpu.usage.total = 7_000;
        stats.pids.current = 3;
        stats.memory.usage = MemoryEntry { limit: 100, usage: 10, max: 20, failcnt: 1 };
        stats.memory.swap = MemoryEntry { limit: 150, usage: 15, ..MemoryEntry::default() };
        stats.memory.raw.insert("pgpgin".into(), 5);
        stats.memory.raw.insert("workingset_refault_anon".into(), 1);
        stats.memory.raw.insert("workingset_refault_file".into(), 2);
        stats.blkio.io_service_bytes_recursive = vec![entry("Read", 1), entry("Write", 2)];
        stats.blkio.io_serviced_recursive = vec![entry("Read", 3), entry("Write", 4)];
        stats
    }

    #[test]
    fn v1_keeps_runcs_words() {
        let metrics = legacy(&stats());
        assert_eq!(metrics.cpu.usage.total, 7_000);
        assert_eq!((metrics.memory.usage.usage, metrics.memory.pg_pg_in), (10, 5));
        assert_eq!(metrics.blkio.io_serviced_recursive.len(), 2);
        assert_eq!(metrics.pids.current, 3);
    }

    #[test]
    fn v2_counts_otherwise() {
        let metrics = unified(&stats());
        assert_eq!(metrics.cpu.usage_usec, 7);
        assert_eq!((metrics.memory.swap_usage, metrics.memory.swap_limit), (5, 50));
        assert_eq!(metrics.memory.workingset_refault, 3);
        let [device] = &metrics.io.usage[..] else { panic!("{:?}", metrics.io.usage.len()) };
        assert_eq!((device.rbytes, device.wbytes, device.rios, device.wios), (1, 2, 3, 4));
    }
}
