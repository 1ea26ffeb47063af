//! The settings of v1's cpuset; runc does not show v2's.

use serde::Serialize;

use super::text::Text;
use crate::cgroup::Cgroup;
use crate::error::Error;

/// cpuset(7)'s files by their names; all zero on v2.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // cpuset(7) has it.
pub struct CpuSet {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u16>,
    pub cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u16>,
    pub mem_hardwall: u64,
    pub mem_exclusive: u64,
    pub memory_migrate: u64,
    pub memory_spread_page: u64,
    pub memory_spread_slab: u64,
    pub memory_pressure: u64,
    pub sched_load_balance: u64,
    pub sched_relax_domain_level: i64,
}

pub(super) fn read(cgroup: &Cgroup) -> Result<CpuSet, Error> {
    let Some(target) = cgroup.target_if_any("cpuset").filter(|target| !target.is_v2()) else {
        return Ok(CpuSet::default());
    };
    let list = |file| target.text(file)?.map_or(Ok(Vec::new()), |text| numbers(&text));
    let number = |file| Ok::<_, Error>(target.number(file)?.unwrap_or(0));
    Ok(CpuSet {
        cpus: list("cpuset.cpus")?,
        cpu_exclusive: number("cpuset.cpu_exclusive")?,
        mems: list("cpuset.mems")?,
        mem_hardwall: number("cpuset.mem_hardwall")?,
        mem_exclusive: number("cpuset.mem_exclusive")?,
        memory_migrate: number("cpuset.memory_migrate")?,
        memory_spread_page: number("cpuset.memory_spread_page")?,
        memory_spread_slab: number("cpuset.memory_spread_slab")?,
        memory_pressure: number("cpuset.memory_pressure")?,
        sched_load_balance: number("cpuset.sched_load_balance")?,
        sched_relax_domain_level: match target.text("cpuset.sched_relax_domain_level")? {
            Some(text) => text.parse(text.as_str())?,
            None => 0,
        },
    })
}

/// `0-2,7`
fn numbers(text: &Text<'_>) -> Result<Vec<u16>, Error> {
    let mut all = Vec::new();
    for part in text.as_str().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        all.extend(text.parse::<u16>(first)?..=text.parse(last)?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    #[test]
    fn lists_are_written_out() {
        let fake = Fake::new(false, &["cpuset"], &[]);
        fake.write("cpuset.cpus", "0-2,7\n");
        fake.write("cpuset.mems", "\n");
        fake.write("cpuset.sched_relax_domain_level", "-1\n");
        let cpuset = read(&fake.cgroup).unwrap();
        assert_eq!(cpuset.cpus, [0, 1, 2, 7]);
        assert!(cpuset.mems.is_empty());
        assert_eq!(cpuset.sched_relax_domain_level, -1);
        for bad in ["0-", "x", "-1", "0-70000", "1-2-3"] {
            fake.write("cpuset.cpus", bad);
            assert!(read(&fake.cgroup).is_err(), "{bad}");
        }
    }
}
