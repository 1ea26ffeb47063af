//! linux.memoryPolicy: set_mempolicy(2), which the workload inherits through execve(2).

use oci_spec::runtime::{Linux, MemoryPolicyFlagType, MemoryPolicyModeType};

use crate::error::{Error, Step};
use crate::sys;

/// The kernel's MAX_NUMNODES is at most this; it refuses a mask with more bits than it has.
const MAX_NODES: usize = 1024;
const WORD: usize = u64::BITS as usize;

/// The modes of the spec, for `features`, in the order of their numbers (linux/mempolicy.h).
pub const MODES: [&str; 7] = [
    "MPOL_DEFAULT",
    "MPOL_PREFERRED",
    "MPOL_BIND",
    "MPOL_INTERLEAVE",
    "MPOL_LOCAL",
    "MPOL_PREFERRED_MANY",
    "MPOL_WEIGHTED_INTERLEAVE",
];
/// The flags of the spec, for `features`.
pub const FLAGS: [&str; 3] =
    ["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"];

/// A policy, as the kernel takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPolicy {
    /// MPOL_* with MPOL_F_*.
    mode: i32,
    /// One bit per node.
    nodes: Vec<u64>,
}

impl MemoryPolicy {
    /// Checks linux.memoryPolicy.
    ///
    /// # Errors
    /// Nodes that are not a list of numbers. Whether the machine has them, and whether mode and
    /// flags go together, the kernel decides.
    pub fn new(linux: &Linux) -> Result<Option<Self>, Error> {
        let Some(policy) = linux.memory_policy() else { return Ok(None) };
        let mut mode = match policy.mode() {
            MemoryPolicyModeType::MpolDefault => 0,
            MemoryPolicyModeType::MpolPreferred => 1,
            MemoryPolicyModeType::MpolBind => 2,
            MemoryPolicyModeType::MpolInterleave => 3,
            MemoryPolicyModeType::MpolLocal => 4,
            MemoryPolicyModeType::MpolPreferredMany => 5,
            MemoryPolicyModeType::MpolWeightedInterleave => 6,
        };
        for flag in policy.flags().iter().flatten() {
            mode |= match flag {
                MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
                MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
                MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
            };
        }
        let list = policy.nodes().as_deref().unwrap_or_default();
        let nodes = nodes(list).ok_or_else(|| {
            let problem = format!("{list:?} is not a list of nodes below {MAX_NODES}");
            Error::config("linux.memoryPolicy.nodes", problem)
        })?;
        Ok(Some(Self { mode, nodes }))
    }

    /// Applies it to this thread, and with it to what it executes.
    ///
    /// # Errors
    /// EINVAL for nodes that the machine does not have, and for what does not go together; ENOSYS
    /// for a kernel without NUMA.
    pub fn apply(&self) -> Result<(), Error> {
        sys::set_mempolicy(self.mode, &self.nodes).step(|| "set linux.memoryPolicy".to_owned())
    }
}

/// `0-2,7` as bits, without words that are empty.
fn nodes(list: &str) -> Option<Vec<u64>> {
    let mut mask = vec![0; MAX_NODES / WORD];
    for range in list.trim().split(',').filter(|_| !list.trim().is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= MAX_NODES {
            return None;
        }
        (first..=last).for_each(|node| mask[node / WORD] |= 1 << (node % WORD));
    }
    mask.truncate(mask.iter().rposition(|word| *word != 0).map_or(0, |at| at + 1));
    Some(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(fields: &str) -> Result<Option<MemoryPolicy>, Error> {
        let json = format!(r#"{{"memoryPolicy":{{{fields}}}}}"#);
        MemoryPolicy::new(&serde_json::from_str(&json).unwrap())
    }

    #[test]
    fn lists_become_masks() {
        assert_eq!(nodes(""), Some(vec![]));
        assert_eq!(nodes("0-2, 7"), Some(vec![0b1000_0111]));
        assert_eq!(nodes("65"), Some(vec![0, 2]));
        for bad in ["x", "1-", "2-1", "1024", "0,,1", "-1"] {
            let said = policy(&format!(r#""mode":"MPOL_BIND","nodes":"{bad}""#)).unwrap_err();
            assert!(said.to_string().starts_with("linux.memoryPolicy.nodes"), "{said}");
        }
    }

    #[test]
    fn modes_and_flags_are_the_kernels() {
        for (number, name) in MODES.iter().enumerate() {
            let found = policy(&format!(r#""mode":"{name}""#)).unwrap().unwrap();
            assert_eq!(found.mode, number as i32, "{name}");
        }
        let all = r#""mode":"MPOL_PREFERRED_MANY","nodes":"0","flags":["MPOL_F_STATIC_NODES",
            "MPOL_F_RELATIVE_NODES","MPOL_F_NUMA_BALANCING"]"#;
        let all = policy(all).unwrap().unwrap();
        assert_eq!((all.mode, all.nodes), (5 | 7 << 13, vec![1]));
    }
}
