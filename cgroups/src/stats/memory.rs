//! Memory and swap.

use std::collections::BTreeMap;

use serde::Serialize;

use super::is_zero;
use super::pressure::{self, Pressure};
use crate::cgroup::Cgroup;
use crate::error::Error;
use crate::target::Target;

/// Memory in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Of that in use, what caches files.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache: u64,
    /// Memory.
    pub usage: MemoryEntry,
    /// Memory and swap together, as v1 counts it; on v2 the sum.
    pub swap: MemoryEntry,
    /// The kernel's; v1 only.
    pub kernel: MemoryEntry,
    /// Buffers of TCP; v1 only.
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: MemoryEntry,
    /// `memory.stat` as it is.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
    /// v2 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
    /// v2 only.
    pub event_count: MemoryEvents,
}

/// One kind of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEntry {
    /// No limit is the largest number, on v1 nearly.
    pub limit: u64,
    /// In use.
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    /// The most that there ever was; on v2 since Linux 5.19, and not for memory and swap together.
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    /// How often the limit was in the way.
    pub failcnt: u64,
}

/// `memory.events`, cgroup-v2.rst.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct MemoryEvents {
    #[serde(skip_serializing_if = "is_zero")]
    pub low: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub high: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub oom: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub oom_kill: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub oom_group_kill: u64,
}

impl Cgroup {
    /// What is charged to the cgroup, in bytes, and nothing else of [`Cgroup::stats`]; None where
    /// there is no memory controller.
    ///
    /// # Errors
    ///
    /// [`Error::Read`], also when the cgroup has gone; [`Error::Malformed`].
    pub fn memory_usage(&self) -> Result<Option<u64>, Error> {
        let Some(target) = self.target_if_any("memory") else { return Ok(None) };
        target.number(if target.is_v2() { "memory.current" } else { "memory.usage_in_bytes" })
    }
}

pub(super) fn read(cgroup: &Cgroup) -> Result<Memory, Error> {
    let Some(target) = cgroup.target_if_any("memory") else { return Ok(Memory::default()) };
    let mut memory = Memory::default();
    if let Some(text) = target.text("memory.stat")? {
        for pair in text.pairs() {
            let (key, value) = pair?;
            memory.raw.insert(key.to_owned(), value);
        }
    }
    if target.is_v2() {
        read_v2(target, &mut memory)?
    } else {
        read_v1(target, &mut memory)?
    }
    Ok(memory)
}

fn read_v1(target: Target<'_>, memory: &mut Memory) -> Result<(), Error> {
    memory.cache = memory.raw.get("cache").copied().unwrap_or(0);
    memory.usage = entry_v1(target, "memory")?;
    memory.swap = entry_v1(target, "memory.memsw")?;
    memory.kernel = entry_v1(target, "memory.kmem")?;
    memory.kernel_tcp = entry_v1(target, "memory.kmem.tcp")?;
    Ok(())
}

/// All zero where the kernel does not count it.
fn entry_v1(target: Target<'_>, prefix: &str) -> Result<MemoryEntry, Error> {
    let number = |end: &str| Ok(target.number(&format!("{prefix}.{end}"))?.unwrap_or(0));
    Ok(MemoryEntry {
        limit: number("limit_in_bytes")?,
        usage: number("usage_in_bytes")?,
        max: number("max_usage_in_bytes")?,
        failcnt: number("failcnt")?,
    })
}

fn read_v2(target: Target<'_>, memory: &mut Memory) -> Result<(), Error> {
    let number = |file: &str| Ok::<_, Error>(target.number(file)?.unwrap_or(0));
    memory.cache = memory.raw.get("file").copied().unwrap_or(0);
    memory.psi = pressure::read(target, "memory.pressure")?;
    memory.event_count = events(target)?;
    memory.usage = MemoryEntry {
        limit: number("memory.max")?,
        usage: number("memory.current")?,
        max: number("memory.peak")?,
        failcnt: memory.event_count.max,
    };
    // A kernel that does not count swap has no such files.
    if let Some(swap) = target.number("memory.swap.current")? {
        memory.swap = MemoryEntry {
            limit: number("memory.swap.max")?.saturating_add(memory.usage.limit),
            usage: swap.saturating_add(memory.usage.usage),
            ..MemoryEntry::default()
        };
    }
    Ok(())
}

pub(crate) fn events(target: Target<'_>) -> Result<MemoryEvents, Error> {
    let mut events = MemoryEvents::default();
    let Some(text) = target.text("memory.events")? else { return Ok(events) };
    for pair in text.pairs() {
        let (key, value) = pair?;
        let to = match key {
            "low" => &mut events.low,
            "high" => &mut events.high,
            "max" => &mut events.max,
            "oom" => &mut events.oom,
            "oom_kill" => &mut events.oom_kill,
            "oom_group_kill" => &mut events.oom_group_kill,
            _ => continue,
        };
        *to = value;
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    #[test]
    fn v1() {
        let fake = Fake::new(false, &["memory"], &[]);
        fake.write("memory.stat", "cache 7\nrss 8\n");
        for (prefix, base) in [("memory", 10), ("memory.memsw", 20), ("memory.kmem", 30)] {
            for (number, end) in
                ["limit_in_bytes", "usage_in_bytes", "max_usage_in_bytes", "failcnt"]
                    .iter()
                    .enumerate()
            {
                fake.write(&format!("{prefix}.{end}"), &format!("{}\n", base + number));
            }
        }
        assert_eq!(fake.cgroup.memory_usage().unwrap(), Some(11));
        let memory = read(&fake.cgroup).unwrap();
        assert_eq!(memory.cache, 7);
        assert_eq!(memory.raw["rss"], 8);
        assert_eq!(memory.usage, MemoryEntry { limit: 10, usage: 11, max: 12, failcnt: 13 });
        assert_eq!(memory.swap.limit, 20);
        assert_eq!(memory.kernel.failcnt, 33);
        assert_eq!(memory.kernel_tcp, MemoryEntry::default());
        let json = serde_json::to_string(&memory).unwrap();
        assert!(
            json.ends_with(
                r#""kernelTCP":{"limit":0,"failcnt":0},"raw":{"cache":7,"rss":8},"event_count":{}}"#
            ),
            "{json}"
        );
    }

    #[test]
    fn v2_swap_is_with_memory() {
        let fake = Fake::new(true, &["memory"], &[]);
        let read = || read(&fake.cgroup).unwrap();
        assert_eq!(read(), Memory::default());
        for (file, text) in [
            ("memory.stat", "anon 1\nfile 2\n"),
            ("memory.current", "100\n"),
            ("memory.max", "1000\n"),
            ("memory.peak", "150\n"),
            ("memory.events", "low 0\nmax 3\noom 2\noom_kill 1\nsomething_new 9\n"),
            ("memory.swap.current", "5\n"),
            ("memory.swap.max", "50\n"),
        ] {
            fake.write(file, text);
        }
        let memory = read();
        assert_eq!(memory.cache, 2);
        assert_eq!(memory.usage, MemoryEntry { limit: 1000, usage: 100, max: 150, failcnt: 3 });
        assert_eq!(memory.swap, MemoryEntry { limit: 1050, usage: 105, max: 0, failcnt: 0 });
        assert_eq!(memory.event_count.oom_kill, 1);
        fake.write("memory.max", "max\n");
        assert_eq!((read().usage.limit, read().swap.limit), (u64::MAX, u64::MAX));
    }

    #[test]
    fn what_cannot_be_understood_is_an_error() {
        let fake = Fake::new(true, &["memory"], &[]);
        for (file, text) in [
            ("memory.stat", "anon\n"),
            ("memory.stat", "anon x\n"),
            ("memory.current", ""),
            ("memory.current", "18446744073709551616"),
            ("memory.max", "-1"),
            ("memory.events", "oom_kill many"),
        ] {
            fake.write(file, text);
            let error = read(&fake.cgroup).unwrap_err().to_string();
            assert!(error.contains(file), "{error}");
            fake.write(file, "anon 1");
            fake.remove(file);
        }
    }
}
