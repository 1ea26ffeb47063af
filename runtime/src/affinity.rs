//! process.execCPUAffinity: on which CPUs an exec'd process gets ready, and on which it runs.

use oci_spec::runtime::{ExecCPUAffinity, Process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::error::{Error, Step};

/// Both sets, checked; without one the CPUs are left as they are.
#[derive(Clone, Debug, Default)]
pub struct Affinity {
    /// Until the process is in the container's cgroup.
    initial: Option<CpuSet>,
    /// From then on.
    last: Option<CpuSet>,
}

impl Affinity {
    /// Checks process.execCPUAffinity.
    ///
    /// # Errors
    /// A list that is none, or a CPU beyond 1023.
    pub fn new(process: &Process) -> Result<Self, Error> {
        let Some(wanted) = process.exec_cpu_affinity() else { return Ok(Self::default()) };
        let set = |name: &str, list: fn(&ExecCPUAffinity) -> &Option<String>| {
            let list = list(wanted).as_deref().filter(|list| !list.is_empty());
            let set = list.map(|list| {
                let problem = || {
                    let field = format!("process.execCPUAffinity.{name}");
                    Error::config(field, format!("{list:?} is not a list of CPUs"))
                };
                parse(list).ok_or_else(problem)
            });
            set.transpose()
        };
        Ok(Self {
            initial: set("initial", ExecCPUAffinity::initial)?,
            last: set("final", ExecCPUAffinity::cpu_affinity_final)?,
        })
    }

    /// Calls `clone` on the initial CPUs: what it makes is born there. This thread is where it was
    /// when this returns.
    ///
    /// # Errors
    /// Those of sched_setaffinity(2) and of `clone`.
    pub fn on_initial<T>(&self, clone: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let Some(initial) = &self.initial else { return clone() };
        let step = || "set process.execCPUAffinity.initial".to_owned();
        let own = sched_getaffinity(None).step(step)?;
        sched_setaffinity(None, initial).step(step)?;
        let made = clone();
        sched_setaffinity(None, &own).step(step)?;
        made
    }

    /// In the process, once it is in its cgroup.
    ///
    /// # Errors
    /// Those of sched_setaffinity(2): EINVAL where its cpuset has none of the CPUs.
    pub fn apply_final(&self) -> Result<(), Error> {
        match (&self.initial, &self.last) {
            (_, Some(last)) => sched_setaffinity(None, last)
                .step(|| "set process.execCPUAffinity.final".to_owned()),
            (Some(_), None) => Ok(()),
            (None, None) => {
                reset();
                Ok(())
            }
        }
    }
}

/// All CPUs that the cgroup allows, wherever the caller was pinned: as runc has it. Without the
/// permission this thread stays where it is.
pub fn reset() {
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
    let _ = sched_setaffinity(None, &all);
}

/// `0-3,7`.
fn parse(list: &str) -> Option<CpuSet> {
    let mut set = CpuSet::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= CpuSet::MAX_CPU {
            return None;
        }
        (first..=last).for_each(|cpu| set.set(cpu));
    }
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let set = parse("0-2,5").unwrap();
        assert_eq!((set.count(), set.is_set(2), set.is_set(5)), (4, true, true));
        for bad in ["", "a", "2-1", "0-9999", "1,", "-1", "1-"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn the_field_is_named() {
        let process = |list: &str| -> Result<Affinity, Error> {
            let json = format!(
                r#"{{"user":{{"uid":0,"gid":0}},"cwd":"/","execCPUAffinity":{{"final":"{list}"}}}}"#
            );
            Affinity::new(&serde_json::from_str(&json).unwrap())
        };
        assert!(process("1").unwrap().initial.is_none());
        let problem = process("7-3").unwrap_err().to_string();
        assert_eq!(problem, "process.execCPUAffinity.final: \"7-3\" is not a list of CPUs");
    }

    #[test]
    fn this_thread_is_where_it_was() {
        let before = sched_getaffinity(None).unwrap();
        let first = (0..CpuSet::MAX_CPU).find(|&cpu| before.is_set(cpu)).unwrap();
        let affinity = Affinity { initial: parse(&first.to_string()), last: None };
        let during = affinity.on_initial(|| Ok(sched_getaffinity(None).unwrap())).unwrap();
        assert_eq!((during.count(), during.is_set(first)), (1, true));
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
