//! What processes need: smaps_rollup of proc(5), in MiB.

use std::fs;
use std::path::Path;

use kiln_integration::proc;

/// Sums of a process's mappings.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    /// Its share of what it has mapped: a page that n processes map counts 1/n.
    pub pss: f64,
    /// What is its alone, and differs from a file.
    pub private_dirty: f64,
    /// What is its alone, but is as in its file.
    pub private_clean: f64,
    /// What is no file's, shared after a fork or not.
    pub anonymous: f64,
}

impl Memory {
    /// Of a living process.
    pub fn of(pid: i32) -> Self {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).unwrap_or_else(|err| panic!("{path}: {err}"));
        Memory::parse(&text)
    }

    fn parse(text: &str) -> Self {
        let mib = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kib: f64 = line.unwrap().trim().trim_end_matches(" kB").parse().unwrap();
            kib / 1024.0
        };
        Memory {
            pss: mib("Pss"),
            private_dirty: mib("Private_Dirty"),
            private_clean: mib("Private_Clean"),
            anonymous: mib("Anonymous"),
        }
    }

    /// What would be free again without it.
    pub fn private(&self) -> f64 {
        self.private_clean + self.private_dirty
    }

    /// The sum of several processes.
    pub fn sum(parts: impl IntoIterator<Item = Memory>) -> Self {
        parts.into_iter().fold(Memory::default(), |sum, part| Memory {
            pss: sum.pss + part.pss,
            private_dirty: sum.private_dirty + part.private_dirty,
            private_clean: sum.private_clean + part.private_clean,
            anonymous: sum.anonymous + part.anonymous,
        })
    }
}

/// What the processes of a pod need that are not its containers.
#[derive(Clone, Copy, Debug)]
pub struct Keepers {
    /// The shim, and whatever it has forked for itself.
    pub shim: Memory,
    /// The warm parent of its wasm containers.
    pub warm: Option<Memory>,
}

impl Keepers {
    /// Of the shim that has these bundles, one for each of the pod's containers.
    pub fn of(bundles: &[impl AsRef<Path>]) -> Self {
        let inits: Vec<i32> = bundles.iter().map(|dir| init_of(dir.as_ref())).collect();
        let shim = proc::status_field(inits[0], "PPid").unwrap().parse().unwrap();
        let children = children(shim).into_iter().filter(|pid| !inits.contains(pid));
        let (warm, jobs): (Vec<i32>, Vec<i32>) = children.partition(|&pid| is_warm(pid));
        Keepers {
            shim: Memory::sum(jobs.into_iter().chain([shim]).map(Memory::of)),
            warm: warm.first().map(|&pid| Memory::of(pid)),
        }
    }

    /// Its warm parent's, if it has one.
    pub fn warm(&self) -> Memory {
        self.warm.unwrap_or_default()
    }
}

/// The init of a bundle's container.
pub fn init_of(bundle: &Path) -> i32 {
    let path = bundle.join("init.pid");
    let text = fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    text.trim().parse().unwrap()
}

fn children(pid: i32) -> Vec<i32> {
    let parent = pid.to_string();
    let is_child = |pid: &i32| proc::status_field(*pid, "PPid").is_some_and(|own| own == parent);
    proc::pids().into_iter().filter(is_child).collect()
}

fn is_warm(pid: i32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|&byte| byte == 0).any(|word| word == b"warm")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLLUP: &str = "00400000-7ffd1000 ---p 00000000 00:00 0 [rollup]\n\
        Rss:                2048 kB\nPss:                1024 kB\nPss_Dirty:           512 kB\n\
        Private_Clean:       256 kB\nPrivate_Dirty:       512 kB\nAnonymous:          1536 kB\n\
        AnonHugePages:         0 kB\n";

    #[test]
    fn sums_of_the_kernel() {
        let memory = Memory::parse(ROLLUP);
        assert_eq!((memory.pss, memory.anonymous), (1.0, 1.5));
        assert_eq!((memory.private_dirty, memory.private()), (0.5, 0.75));
        let both = Memory::sum([memory, memory]);
        assert_eq!((both.pss, both.private()), (2.0, 1.5));
    }

    #[test]
    fn of_this_program() {
        let memory = Memory::of(std::process::id().cast_signed());
        assert!(memory.pss > 0.0 && memory.private_dirty <= memory.anonymous + memory.pss);
    }
}
