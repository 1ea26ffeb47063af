//! `linux.resources` as properties of a unit: systemd.resource-control(5).
//!
//! They say again what [`Cgroup::apply`](crate::Cgroup::apply) writes right afterwards, because
//! systemd writes its own values again whenever it is reloaded. What it has no property for
//! (swappiness, hugetlb, rdma, burst, throttles) it leaves alone. Its rounding and its ranges are
//! coarser than the kernel's, so the files are written last.

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::manager::Property;
use super::value::Value;
use crate::cgroup::Cgroup;
use crate::error::Error;
use crate::{cpu, io, memory};

/// What the names and values depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    /// Whether there is the unified hierarchy alone.
    pub v2: bool,
    /// systemd's.
    pub version: u32,
}

/// What the cgroup has now, for limits of which only a part is given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Current {
    /// None: no limit.
    quota_usec: Option<u64>,
    period_usec: u64,
    /// memory.max in bytes, on v2; None: no limit.
    memory: Option<i64>,
}

impl Default for Current {
    /// A new cgroup.
    fn default() -> Self {
        Self { quota_usec: None, period_usec: 100_000, memory: None }
    }
}

impl Current {
    /// Looks.
    pub fn of(cgroup: &Cgroup) -> Self {
        let read = |controller, file| {
            let target = cgroup.target_if_any(controller);
            target.and_then(|target| target.read(file).ok()).unwrap_or_default()
        };
        let max = match cgroup.target_if_any("cpu") {
            Some(target) if !target.is_v2() => {
                format!("{} {}", read("cpu", "cpu.cfs_quota_us"), read("cpu", "cpu.cfs_period_us"))
            }
            _ => read("cpu", "cpu.max"),
        };
        Self { memory: read("memory", "memory.max").parse().ok(), ..Self::parse(&max) }
    }

    /// `max 100000`; v1 says -1 where v2 says max.
    fn parse(text: &str) -> Self {
        let default = Self::default();
        let mut words = text.split_whitespace();
        let quota_usec = words.next().and_then(|quota| quota.parse().ok());
        let period_usec = words.next().and_then(|period| period.parse().ok());
        Self { quota_usec, period_usec: period_usec.unwrap_or(default.period_usec), ..default }
    }
}

/// Everything in `resources` that systemd has a property for, but the devices.
///
/// # Errors
/// [`Error::Invalid`], where the limits contradict each other.
pub(crate) fn limits(
    resources: &LinuxResources,
    kind: Kind,
    current: Current,
) -> Result<Vec<Property>, Error> {
    let mut list = Vec::new();
    if let Some(limits) = resources.memory() {
        memory_limits(&mut list, limits, kind, current)?;
    }
    if let Some(limits) = resources.cpu() {
        cpu_limits(&mut list, limits, kind, current);
    }
    if let Some(limits) = resources.pids() {
        // systemd cannot set 0: crate::pids has the reason for 1.
        let tasks = u64::try_from(limits.limit()).map_or(u64::MAX, |limit| limit.max(1));
        put(&mut list, "TasksMax", Value::Uint64(tasks));
    }
    let weight = resources.block_io().as_ref().and_then(|limits| limits.weight());
    match weight.filter(|weight| *weight != 0) {
        Some(weight) if kind.v2 => put(&mut list, "IOWeight", Value::Uint64(io::io_weight(weight))),
        Some(weight) => put(&mut list, "BlockIOWeight", Value::Uint64(weight.into())),
        None => {}
    }
    if kind.v2 {
        let mut files: Vec<_> = resources.unified().iter().flatten().collect();
        files.sort();
        for (file, value) in files {
            unified(&mut list, file, value.trim(), kind);
        }
    }
    Ok(list)
}

fn put(list: &mut Vec<Property>, name: &str, value: Value) {
    list.push((name.to_owned(), value));
}

/// -1, no limit, becomes the largest number, which is systemd's "infinity".
fn bytes(limit: i64) -> Value {
    Value::Uint64(u64::try_from(limit).unwrap_or(u64::MAX))
}

fn memory_limits(
    list: &mut Vec<Property>,
    limits: &LinuxMemory,
    kind: Kind,
    current: Current,
) -> Result<(), Error> {
    let given = |limit: Option<i64>| limit.filter(|bytes| *bytes != 0);
    let limit = given(limits.limit());
    if let Some(limit) = limit {
        put(list, if kind.v2 { "MemoryMax" } else { "MemoryLimit" }, bytes(limit));
    }
    if !kind.v2 {
        return Ok(());
    }
    if let Some(reservation) = given(limits.reservation()) {
        put(list, "MemoryLow", bytes(reservation));
    }
    if let Some(swap) = memory::swap_max(limit.or(current.memory), given(limits.swap()))? {
        put(list, "MemorySwapMax", Value::Uint64(swap.parse().unwrap_or(u64::MAX)));
    }
    Ok(())
}

fn cpu_limits(list: &mut Vec<Property>, limits: &LinuxCpu, kind: Kind, current: Current) {
    let shares = limits.shares().filter(|shares| *shares != 0);
    match (limits.idle(), shares) {
        // A weight of 0 is "idle" since 252; an idle group takes no other weight.
        (Some(idle), _) if idle != 0 && kind.v2 && kind.version >= 252 => {
            put(list, "CPUWeight", Value::Uint64(0));
        }
        (_, Some(shares)) if kind.v2 => {
            put(list, "CPUWeight", Value::Uint64(cpu::weight(shares)));
        }
        (_, Some(shares)) => put(list, "CPUShares", Value::Uint64(shares)),
        (_, None) => {}
    }
    let quota = limits.quota().filter(|quota| *quota != 0);
    let period = limits.period().filter(|period| *period != 0);
    if quota.is_some() || period.is_some() {
        let quota_usec = quota.map_or(current.quota_usec, |quota| u64::try_from(quota).ok());
        let period_usec = period.unwrap_or(current.period_usec);
        put_quota(list, Current { quota_usec, period_usec, ..current }, kind);
    }
    for (name, cpus) in [("AllowedCPUs", limits.cpus()), ("AllowedMemoryNodes", limits.mems())] {
        put_set(list, name, cpus.as_deref().unwrap_or_default(), kind);
    }
}

/// systemd thinks in whole percents of a CPU; runc rounds up, too.
fn put_quota(list: &mut Vec<Property>, quota: Current, kind: Kind) {
    if kind.version >= 242 {
        put(list, "CPUQuotaPeriodUSec", Value::Uint64(quota.period_usec));
    }
    let per_second = quota.quota_usec.map_or(u64::MAX, |usec| {
        let exact = u128::from(usec) * 1_000_000 / u128::from(quota.period_usec.max(1));
        u64::try_from(exact.next_multiple_of(10_000)).unwrap_or(u64::MAX)
    });
    put(list, "CPUQuotaPerSecUSec", Value::Uint64(per_second));
}

/// A list such as `0-3,8` as a bit mask. One that is no list the kernel refuses, naming the field.
fn put_set(list: &mut Vec<Property>, name: &str, set: &str, kind: Kind) {
    if kind.version < 244 {
        return;
    }
    if let Some(mask) = mask(set).filter(|mask| !mask.is_empty()) {
        put(list, name, Value::bytes(mask));
    }
}

fn mask(set: &str) -> Option<Vec<u8>> {
    const MAX_BIT: usize = 8191;
    let mut mask = Vec::new();
    for range in set.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last > MAX_BIT {
            return None;
        }
        for bit in first..=last {
            mask.resize(mask.len().max(bit / 8 + 1), 0);
            mask[bit / 8] |= 1 << (bit % 8);
        }
    }
    Some(mask)
}

/// The files of `linux.resources.unified` that have a property; as runc.
fn unified(list: &mut Vec<Property>, file: &str, value: &str, kind: Kind) {
    let number = || match value {
        "max" => Some(u64::MAX),
        number => number.parse().ok(),
    };
    let name = match file {
        "cpu.max" => {
            return put_quota(list, Current::parse(value), kind);
        }
        "cpuset.cpus" => return put_set(list, "AllowedCPUs", value, kind),
        "cpuset.mems" => return put_set(list, "AllowedMemoryNodes", value, kind),
        "cpu.idle" if value == "1" && kind.version >= 252 => {
            return put(list, "CPUWeight", Value::Uint64(0));
        }
        "cpu.weight" => "CPUWeight",
        "memory.min" => "MemoryMin",
        "memory.low" => "MemoryLow",
        "memory.high" => "MemoryHigh",
        "memory.max" => "MemoryMax",
        "memory.swap.max" => "MemorySwapMax",
        "pids.max" => "TasksMax",
        _ => return,
    };
    if let Some(number) = number() {
        put(list, name, Value::Uint64(number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: Kind = Kind { v2: true, version: 252 };
    const V1: Kind = Kind { v2: false, version: 239 };

    fn of(json: &str, kind: Kind) -> Vec<String> {
        let resources = serde_json::from_str(json).unwrap();
        let list = limits(&resources, kind, Current::default()).unwrap();
        list.into_iter()
            .map(|(name, value)| match value {
                Value::Uint64(u64::MAX) => format!("{name}=max"),
                Value::Uint64(number) => format!("{name}={number}"),
                other => format!("{name}={other:?}"),
            })
            .collect()
    }

    #[test]
    fn memory() {
        let json = r#"{"memory": {"limit": 100, "reservation": 50, "swap": 150}}"#;
        assert_eq!(of(json, V2), ["MemoryMax=100", "MemoryLow=50", "MemorySwapMax=50"]);
        assert_eq!(of(json, V1), ["MemoryLimit=100"]);
        let json = r#"{"memory": {"limit": -1, "swap": 0}}"#;
        assert_eq!(of(json, V2), ["MemoryMax=max", "MemorySwapMax=max"]);
        let json = r#"{"memory": {"limit": 100, "swap": 50}}"#;
        let resources = serde_json::from_str(json).unwrap();
        assert!(limits(&resources, V2, Current::default()).is_err());
    }

    #[test]
    fn cpu_time() {
        let json = r#"{"cpu": {"shares": 1024, "quota": 20001, "period": 50000}}"#;
        let quota = ["CPUQuotaPeriodUSec=50000", "CPUQuotaPerSecUSec=410000"];
        assert_eq!(of(json, V2), [&["CPUWeight=100"][..], &quota].concat());
        assert_eq!(of(json, V1), ["CPUShares=1024", "CPUQuotaPerSecUSec=410000"]);
        assert_eq!(of(r#"{"cpu": {"quota": -1}}"#, V2)[1], "CPUQuotaPerSecUSec=max");
        assert_eq!(of(r#"{"cpu": {"idle": 1, "shares": 2}}"#, V2), ["CPUWeight=0"]);
        assert_eq!(of(r#"{"cpu": {"idle": 1}}"#, V1), [""; 0]);
    }

    #[test]
    fn half_a_quota_takes_the_other_half_from_the_cgroup() {
        let current = Current { quota_usec: Some(10_000), period_usec: 20_000, memory: Some(70) };
        let per_second = |json: &str| {
            let resources = serde_json::from_str(json).unwrap();
            limits(&resources, V2, current).unwrap()[1].1.clone()
        };
        assert_eq!(per_second(r#"{"cpu": {"period": 40000}}"#), Value::Uint64(250_000));
        assert_eq!(per_second(r#"{"cpu": {"quota": 20000}}"#), Value::Uint64(1_000_000));
        let resources = serde_json::from_str(r#"{"memory": {"swap": 100}}"#).unwrap();
        let swap = limits(&resources, V2, current).unwrap();
        assert_eq!(swap, [("MemorySwapMax".to_owned(), Value::Uint64(30))]);
    }

    #[test]
    fn cpu_sets_are_masks() {
        assert_eq!(mask("0-3, 8").unwrap(), [0x0f, 0x01]);
        assert_eq!(mask("").unwrap(), [0; 0]);
        for wrong in ["a", "1-", "3-1", "99999", "-1", "0-18446744073709551615"] {
            assert_eq!(mask(wrong), None, "{wrong}");
        }
        let json = r#"{"cpu": {"cpus": "1", "mems": "0"}}"#;
        let resources = serde_json::from_str(json).unwrap();
        let found = limits(&resources, V2, Current::default()).unwrap();
        assert_eq!(found[0], ("AllowedCPUs".to_owned(), Value::bytes([2])));
        assert_eq!(found[1], ("AllowedMemoryNodes".to_owned(), Value::bytes([1])));
        assert!(of(json, V1).is_empty());
    }

    #[test]
    fn the_rest() {
        let json = r#"{"pids": {"limit": -1}, "blockIO": {"weight": 500}}"#;
        assert_eq!(of(json, V2), ["TasksMax=max", "IOWeight=4950"]);
        assert_eq!(of(json, V1), ["TasksMax=max", "BlockIOWeight=500"]);
        assert_eq!(of(r#"{"pids": {"limit": 0}}"#, V2), ["TasksMax=1"]);
        let json = r#"{"unified": {"memory.high": "max", "memory.min": "5", "pids.max": "7",
            "cpu.max": "max 20000", "memory.oom.group": "1", "cpu.weight": "nonsense"}}"#;
        let expected = [
            "CPUQuotaPeriodUSec=20000",
            "CPUQuotaPerSecUSec=max",
            "MemoryHigh=max",
            "MemoryMin=5",
            "TasksMax=7",
        ];
        assert_eq!(of(json, V2), expected);
        assert!(of(json, V1).is_empty());
    }
}
