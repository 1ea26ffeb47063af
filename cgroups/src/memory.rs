//! `linux.resources.memory`; cgroup-v1/memory.rst, cgroup-v2.rst.

use oci_spec::runtime::LinuxMemory;

use crate::cgroup::Cgroup;
use crate::changes::{Changes, Missing};
use crate::error::Error;
use crate::target::Target;

const LIMIT: &str = "linux.resources.memory.limit";
const RESERVATION: &str = "linux.resources.memory.reservation";
const SWAP: &str = "linux.resources.memory.swap";
const KERNEL: &str = "linux.resources.memory.kernel";
const KERNEL_TCP: &str = "linux.resources.memory.kernelTCP";
const SWAPPINESS: &str = "linux.resources.memory.swappiness";
const OOM: &str = "linux.resources.memory.disableOOMKiller";
const HIERARCHY: &str = "linux.resources.memory.useHierarchy";

pub(crate) fn plan<'a>(
    cgroup: &'a Cgroup,
    limits: &LinuxMemory,
    changes: &mut Changes<'a>,
) -> Result<(), Error> {
    let memory = Memory::from(limits);
    if let Some(percent @ 101..) = memory.swappiness {
        return Err(Error::invalid(SWAPPINESS, percent, "must be between 0 and 100"));
    }
    let Some(field) = memory.first_field() else {
        return Ok(());
    };
    let target = cgroup.target("memory", field)?;
    if target.is_v2() {
        return memory.plan_v2(target, changes);
    }
    memory.plan_v1(target, changes);
    Ok(())
}

/// The fields without those that mean "leave it". Limits are in bytes, -1 is
/// no limit; swap is memory and swap together.
struct Memory {
    limit: Option<i64>,
    reservation: Option<i64>,
    swap: Option<i64>,
    kernel: Option<i64>,
    kernel_tcp: Option<i64>,
    swappiness: Option<u64>,
    disable_oom_killer: bool,
    use_hierarchy: Option<bool>,
    check_before_update: bool,
}

impl From<&LinuxMemory> for Memory {
    fn from(limits: &LinuxMemory) -> Self {
        let limit = |limit: Option<i64>| limit.filter(|bytes| *bytes != 0);
        #[allow(deprecated)] // The specification still has it.
        let kernel = limits.kernel();
        Self {
            limit: limit(limits.limit()),
            reservation: limit(limits.reservation()),
            swap: limit(limits.swap()),
            kernel: limit(kernel),
            kernel_tcp: limit(limits.kernel_tcp()),
            swappiness: limits.swappiness(),
            // Off is the default, and not written: v2 cannot have it on.
            disable_oom_killer: limits.disable_oom_killer() == Some(true),
            use_hierarchy: limits.use_hierarchy(),
            check_before_update: limits.check_before_update() == Some(true),
        }
    }
}

impl Memory {
    fn first_field(&self) -> Option<&'static str> {
        let set = [
            (LIMIT, self.limit.is_some()),
            (RESERVATION, self.reservation.is_some()),
            (SWAP, self.swap.is_some()),
            (KERNEL, self.kernel.is_some()),
            (KERNEL_TCP, self.kernel_tcp.is_some()),
            (SWAPPINESS, self.swappiness.is_some()),
            (OOM, self.disable_oom_killer),
            (HIERARCHY, self.use_hierarchy.is_some()),
        ];
        set.iter().find(|(_, set)| *set).map(|(field, _)| *field)
    }

    /// Memory may never be above memory and swap together, at no moment: to raise both, the latter
    /// goes first, to lower both, the former. [`Changes`] finds out.
    fn plan_v1<'a>(&self, target: Target<'a>, changes: &mut Changes<'a>) {
        let text = |bytes: Option<i64>| bytes.map(|bytes| bytes.to_string());
        // No limit on memory: none on both together either, where the kernel counts swap at all.
        let lifted = (self.limit < Some(0) && self.swap.is_none()).then_some(-1);
        let rows = [
            // Since Linux 5.11 it is always on.
            (
                HIERARCHY,
                "memory.use_hierarchy",
                self.use_hierarchy.map(|on| i32::from(on).to_string()),
                Missing::Warn,
            ),
            (SWAP, "memory.memsw.limit_in_bytes", text(lifted), Missing::Ignore),
            (LIMIT, "memory.limit_in_bytes", text(self.limit), Missing::Fail),
            (SWAP, "memory.memsw.limit_in_bytes", text(self.swap), Missing::Fail),
            (RESERVATION, "memory.soft_limit_in_bytes", text(self.reservation), Missing::Fail),
            // runc ignores both on every kernel; Linux 5.16 made the first a no-op, and they may
            // go altogether.
            (KERNEL, "memory.kmem.limit_in_bytes", text(self.kernel), Missing::Warn),
            (KERNEL_TCP, "memory.kmem.tcp.limit_in_bytes", text(self.kernel_tcp), Missing::Warn),
            (
                OOM,
                "memory.oom_control",
                self.disable_oom_killer.then(|| "1".to_owned()),
                Missing::Fail,
            ),
            (
                SWAPPINESS,
                "memory.swappiness",
                self.swappiness.map(|percent| percent.to_string()),
                Missing::Fail,
            ),
        ];
        for (field, file, value, missing) in rows {
            if let Some(value) = value {
                changes.add_if_there(target, field, file, value, missing);
            }
        }
    }

    fn plan_v2<'a>(&self, target: Target<'a>, changes: &mut Changes<'a>) -> Result<(), Error> {
        self.check_usage(target)?;
        // Of an update that is only about swap.
        let current = || target.read("memory.max").ok().and_then(|text| text.parse().ok());
        let limit =
            self.limit.or_else(|| self.swap.filter(|swap| *swap > 0).and_then(|_| current()));
        if let Some(swap) = swap_max(limit, self.swap)? {
            // A kernel without swap accounting has nothing to limit or lift.
            let missing = match swap.as_str() {
                "0" | "max" => Missing::Ignore,
                _ => Missing::Fail,
            };
            changes.add_if_there(target, SWAP, "memory.swap.max", swap, missing);
        }
        if let Some(bytes) = self.limit {
            changes.add(target, LIMIT, "memory.max", max(bytes));
        }
        if let Some(bytes) = self.reservation {
            changes.add(target, RESERVATION, "memory.low", max(bytes));
        }
        for (field, set) in [
            (KERNEL, self.kernel.is_some()),
            (KERNEL_TCP, self.kernel_tcp.is_some()),
            (SWAPPINESS, self.swappiness.is_some()),
            (OOM, self.disable_oom_killer),
        ] {
            if set {
                log::warn!("{field} is ignored: cgroup v2 does not have it");
            }
        }
        Ok(())
    }

    /// v2 takes a limit below the current usage and kills until it fits; v1
    /// refuses it (EBUSY). With `checkBeforeUpdate`, v2 refuses it too.
    fn check_usage(&self, target: Target<'_>) -> Result<(), Error> {
        if !self.check_before_update {
            return Ok(());
        }
        // Missing: the controller is not enabled yet, so there is no usage.
        let Some(usage) = target.read("memory.current").ok().and_then(|text| text.parse().ok())
        else {
            return Ok(());
        };
        for (field, limit) in [(SWAP, self.swap), (LIMIT, self.limit)] {
            if let Some(limit) = limit.filter(|limit| (1..=usage).contains(limit)) {
                let reason = format!("{usage} bytes are in use, and checkBeforeUpdate is set");
                return Err(Error::invalid(field, limit, reason));
            }
        }
        Ok(())
    }
}

/// v2's limit on swap alone, from the limits on memory and on both together.
pub(crate) fn swap_max(limit: Option<i64>, swap: Option<i64>) -> Result<Option<String>, Error> {
    let invalid = |reason: &'static str| Error::invalid(SWAP, swap.unwrap_or_default(), reason);
    Ok(match (limit, swap) {
        // As on v1: no limit on memory alone lifts that on swap.
        (Some(..0), None) => Some("max".to_owned()),
        (_, None) => None,
        (_, Some(..0)) => Some("max".to_owned()),
        (None, Some(_)) => return Err(invalid("needs a memory limit too")),
        (Some(..0), Some(swap)) => Some(swap.to_string()),
        (Some(limit), Some(swap)) if swap < limit => {
            return Err(invalid("is less than the memory limit: it is memory and swap together"));
        }
        (Some(limit), Some(swap)) => Some((swap - limit).to_string()),
    })
}

fn max(bytes: i64) -> String {
    if bytes < 0 { "max".to_owned() } else { bytes.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    const V1: [&str; 7] = [
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.soft_limit_in_bytes",
        "memory.kmem.limit_in_bytes",
        "memory.kmem.tcp.limit_in_bytes",
        "memory.oom_control",
        "memory.swappiness",
    ];
    const V2: [&str; 3] = ["memory.max", "memory.swap.max", "memory.low"];

    fn apply(cgroup: &Cgroup, limits: &LinuxMemory) -> Result<(), Error> {
        let mut changes = Changes::default();
        plan(cgroup, limits, &mut changes)?;
        changes.apply()
    }

    fn limits(json: &str) -> LinuxMemory {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn v1_files() {
        let fake = Fake::new(false, &["memory"], &V1);
        let json = r#"{"limit": 100, "swap": 300, "reservation": 50, "kernel": 7, "kernelTCP": 8,
            "disableOOMKiller": true, "swappiness": 60}"#;
        apply(&fake.cgroup, &limits(json)).unwrap();
        assert_eq!(V1.map(|file| fake.read(file)), ["100", "300", "50", "7", "8", "1", "60"]);
    }

    #[test]
    fn v1_tolerates_kernels_without_kernel_limits_and_checks_swappiness() {
        let fake = Fake::new(false, &["memory"], &V1[..3]);
        apply(&fake.cgroup, &limits(r#"{"kernel": 7, "kernelTCP": 8, "limit": -1}"#)).unwrap();
        assert_eq!(fake.read(V1[0]), "-1");
        assert_eq!(fake.read(V1[1]), "-1");
        let error = apply(&fake.cgroup, &limits(r#"{"swappiness": 101}"#)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "linux.resources.memory.swappiness: \"101\": must be between 0 and 100"
        );
    }

    #[test]
    fn v1_without_swap_accounting_says_so() {
        let fake = Fake::new(false, &["memory"], &V1[..1]);
        apply(&fake.cgroup, &limits(r#"{"limit": -1}"#)).unwrap();
        let error = apply(&fake.cgroup, &limits(r#"{"swap": 5}"#)).unwrap_err().to_string();
        assert!(error.starts_with("linux.resources.memory.swap: write \"5\" to "), "{error}");
        assert!(error.contains("swapaccount=1"), "{error}");
    }

    #[test]
    fn v2_files() {
        let fake = Fake::new(true, &["memory"], &V2);
        let json =
            r#"{"limit": 100, "swap": 300, "reservation": 50, "kernel": 7, "swappiness": 3}"#;
        apply(&fake.cgroup, &limits(json)).unwrap();
        assert_eq!(V2.map(|file| fake.read(file)), ["100", "200", "50"]);
        let fake = Fake::new(true, &["memory"], &V2);
        apply(&fake.cgroup, &limits(r#"{"disableOOMKiller": false, "limit": 0}"#)).unwrap();
        assert_eq!(V2.map(|file| fake.read(file)), ["", "", ""]);
    }

    #[test]
    fn v2_swap_is_without_memory() {
        let text = |limit, swap| swap_max(limit, swap).unwrap();
        assert_eq!(text(Some(10), None), None);
        assert_eq!(text(Some(-1), None).unwrap(), "max");
        assert_eq!(text(Some(10), Some(-1)).unwrap(), "max");
        assert_eq!(text(None, Some(-1)).unwrap(), "max");
        assert_eq!(text(Some(10), Some(10)).unwrap(), "0");
        assert_eq!(text(Some(10), Some(25)).unwrap(), "15");
        assert_eq!(text(Some(-1), Some(25)).unwrap(), "25");
        assert!(swap_max(Some(10), Some(9)).is_err());
        assert!(swap_max(None, Some(9)).is_err());
    }

    #[test]
    fn v2_check_before_update_refuses_less_than_is_used() {
        let fake = Fake::new(true, &["memory"], &V2);
        fake.write("memory.current", "1000\n");
        let error = apply(&fake.cgroup, &limits(r#"{"limit": 1000, "checkBeforeUpdate": true}"#));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("1000 bytes are in use"), "{error}");
        assert_eq!(fake.read("memory.max"), "");
        apply(&fake.cgroup, &limits(r#"{"limit": 1001, "checkBeforeUpdate": true}"#)).unwrap();
    }

    #[test]
    fn v2_without_swap_only_matters_for_a_real_swap_limit() {
        let fake = Fake::new(true, &["memory"], &["memory.max"]);
        fake.write_root("cgroup.controllers", "memory\n");
        fake.write_root("cgroup.subtree_control", "memory\n");
        apply(&fake.cgroup, &limits(r#"{"limit": 10, "swap": 10}"#)).unwrap();
        let error = apply(&fake.cgroup, &limits(r#"{"limit": 10, "swap": 11}"#)).unwrap_err();
        assert!(error.to_string().contains("swapaccount=1"), "{error}");
    }
}
