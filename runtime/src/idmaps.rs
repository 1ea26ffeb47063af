//! linux.uidMappings and linux.gidMappings: checked, written, and held as a namespace for
//! idmapped mounts.
//!
//! Root writes /proc/PID/uid_map and gid_map itself. A user may write one line, for the own id;
//! everything else takes newuidmap(1) and newgidmap(1), which look into /etc/subuid and
//! /etc/subgid.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use oci_spec::runtime::LinuxIdMapping;
use rustix::fs::{Mode, OFlags};
use rustix::process::{WaitId, WaitIdOptions};

use crate::error::{Error, Failure, Step};
use crate::privilege::Privilege;
use crate::sys::{self, Cloned};

/// UID_GID_MAP_MAX_EXTENTS, include/linux/user_namespace.h (Linux 4.15).
const MAX_RANGES: usize = 340;
/// The kernel takes less than a page (map_write() in kernel/user_namespace.c).
const MAX_TEXT: usize = 4095;

/// One range of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Range {
    inside: u32,
    outside: u32,
    size: u32,
}

/// User and group ids of a user namespace. Each map has at least one range, none overlaps another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdMaps {
    uids: Vec<Range>,
    gids: Vec<Range>,
}

impl IdMaps {
    /// Checks both maps; `field` names where they stand (`linux`, `mounts[3]`).
    ///
    /// # Errors
    /// A map is missing or empty, has an empty range, one that ends beyond 32 bits or that
    /// overlaps another, or is more than the kernel takes.
    pub fn new(
        field: &str,
        uids: Option<&Vec<LinuxIdMapping>>,
        gids: Option<&Vec<LinuxIdMapping>>,
    ) -> Result<Self, Error> {
        let uids = ranges(&format!("{field}.uidMappings"), uids)?;
        Ok(Self { uids, gids: ranges(&format!("{field}.gidMappings"), gids)? })
    }

    /// Whether the user id has a name in the namespace.
    pub fn has_uid(&self, id: u32) -> bool {
        has(&self.uids, id)
    }

    /// The same of a group id.
    pub fn has_gid(&self, id: u32) -> bool {
        has(&self.gids, id)
    }

    /// What the user id is outside of the namespace.
    pub fn host_uid(&self, id: u32) -> Option<u32> {
        outside(&self.uids, id)
    }

    /// The same of a group id.
    pub fn host_gid(&self, id: u32) -> Option<u32> {
        outside(&self.gids, id)
    }

    /// Whether a user's map of groups denies setgroups(2): see [`Self::write`].
    pub fn denies_groups(&self) -> bool {
        only(&self.gids, rustix::process::getegid().as_raw())
    }

    /// Root's ids in the namespace; if 0 is not mapped, the first that is.
    pub fn root(&self) -> (u32, u32) {
        let root = |ranges: &[Range], has_root: bool| match ranges.first() {
            Some(range) if !has_root => range.inside,
            _ => 0,
        };
        (root(&self.uids, self.has_uid(0)), root(&self.gids, self.has_gid(0)))
    }

    /// Maps the ids of the user namespace that process `pid` has just been made with:
    /// user_namespaces(7). `pid` must be a child of ours that has not been waited for, so that
    /// nobody else can have its number.
    ///
    /// A user's map of the own group alone denies setgroups(2), as the kernel demands.
    ///
    /// # Errors
    /// The kernel, newuidmap or newgidmap refuses a map.
    pub fn write(&self, pid: i32, privilege: Privilege) -> Result<(), Error> {
        let user = privilege == Privilege::User;
        let own = rustix::process::geteuid().as_raw();
        match user && !only(&self.uids, own) {
            true => run_helper("newuidmap", "linux.uidMappings", pid, &self.uids)?,
            false => write_map(pid, "uid_map", "linux.uidMappings", &self.uids)?,
        }
        let own = rustix::process::getegid().as_raw();
        if user && !only(&self.gids, own) {
            return run_helper("newgidmap", "linux.gidMappings", pid, &self.gids);
        }
        if user {
            std::fs::write(format!("/proc/{pid}/setgroups"), "deny")
                .step(|| "deny setgroups".to_owned())?;
        }
        write_map(pid, "gid_map", "linux.gidMappings", &self.gids)
    }

    /// A new user namespace with these maps, held by nothing but the descriptor (for an idmapped
    /// mount). Forks a process and ends it.
    ///
    /// # Errors
    /// The namespace cannot be made, or a map is refused.
    pub fn namespace(&self, privilege: Privilege) -> Result<OwnedFd, Error> {
        let step = || "make a user namespace for an idmapped mount".to_owned();
        let (pid, pidfd) = match sys::clone3(libc::CLONE_NEWUSER as u64, None).step(step)? {
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
            Cloned::Child => loop {
                // Ends with SIGKILL from below, or with its parent.
                let signal = Some(rustix::process::Signal::KILL);
                let _ = rustix::process::set_parent_process_death_signal(signal);
                if rustix::process::getppid().is_none() {
                    sys::exit_now(1);
                }
                let _ = rustix::event::poll(&mut [], None);
            },
        };
        let namespace = self.write(pid, privilege).and_then(|()| {
            let path = format!("/proc/{pid}/ns/user");
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            rustix::fs::open(Path::new(&path), flags, Mode::empty()).step(step)
        });
        let _ = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        namespace
    }
}

fn ranges(field: &str, mappings: Option<&Vec<LinuxIdMapping>>) -> Result<Vec<Range>, Error> {
    let mappings = mappings
        .filter(|mappings| !mappings.is_empty())
        .ok_or_else(|| Error::config(field, "is needed"))?;
    if mappings.len() > MAX_RANGES {
        let problem = format!("has {} ranges, the kernel takes {MAX_RANGES}", mappings.len());
        return Err(Error::config(field, problem));
    }
    let mut ranges = Vec::with_capacity(mappings.len());
    for (index, map) in mappings.iter().enumerate() {
        let field = |name: &str| format!("{field}[{index}].{name}");
        let (inside, outside, size) = (map.container_id(), map.host_id(), map.size());
        if size == 0 {
            return Err(Error::config(field("size"), "must not be 0"));
        }
        for (name, first) in [("containerID", inside), ("hostID", outside)] {
            // The last number of all, (uid_t)-1, is no id.
            if first.checked_add(size).is_none() {
                let problem = format!("{first} and the {} after it exceed 32 bits", size - 1);
                return Err(Error::config(field(name), problem));
            }
        }
        let range = Range { inside, outside, size };
        if let Some(other) = ranges.iter().position(|other| overlap(other, &range, |r| r.inside)) {
            return Err(Error::config(field("containerID"), overlaps(other)));
        }
        if let Some(other) = ranges.iter().position(|other| overlap(other, &range, |r| r.outside)) {
            return Err(Error::config(field("hostID"), overlaps(other)));
        }
        ranges.push(range);
    }
    let length = text(&ranges).len();
    if length > MAX_TEXT {
        let problem = format!("takes {length} bytes as a map, the kernel takes {MAX_TEXT}");
        return Err(Error::config(field, problem));
    }
    Ok(ranges)
}

fn overlap(a: &Range, b: &Range, first: impl Fn(&Range) -> u32) -> bool {
    first(a) < first(b) + b.size && first(b) < first(a) + a.size
}

fn overlaps(other: usize) -> String {
    format!("the range overlaps range {other}")
}

fn has(ranges: &[Range], id: u32) -> bool {
    outside(ranges, id).is_some()
}

fn outside(ranges: &[Range], id: u32) -> Option<u32> {
    let has = |range: &&Range| (range.inside..range.inside + range.size).contains(&id);
    ranges.iter().find(has).map(|range| range.outside + (id - range.inside))
}

/// Whether this is the map that a user may write for the own id.
fn only(ranges: &[Range], own: u32) -> bool {
    matches!(ranges, [Range { outside, size: 1, .. }] if *outside == own)
}

/// Lines of uid_map or gid_map.
fn text(ranges: &[Range]) -> String {
    let line = |range: &Range| format!("{} {} {}\n", range.inside, range.outside, range.size);
    ranges.iter().map(line).collect()
}

/// One write(2), as the kernel demands.
fn write_map(pid: i32, file: &str, field: &str, ranges: &[Range]) -> Result<(), Error> {
    let text = text(ranges);
    std::fs::write(format!("/proc/{pid}/{file}"), &text).map_err(|error| {
        let step = format!("{field}: write {file} {:?}", text.trim_end().replace('\n', ", "));
        let errno = rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO);
        let hint = (errno == rustix::io::Errno::PERM).then(|| {
            "only ids that we have ourselves can be mapped: /proc/self/uid_map".to_owned()
        });
        Failure { hint, ..Failure::new(step, errno) }.into()
    })
}

/// `newuidmap PID INSIDE OUTSIDE SIZE ...`, found along PATH. It is set-uid, so it takes from us
/// nothing but its arguments, which are numbers.
fn run_helper(program: &str, field: &str, pid: i32, ranges: &[Range]) -> Result<(), Error> {
    let numbers = ranges.iter().flat_map(|range| [range.inside, range.outside, range.size]);
    let output = Command::new(program)
        .arg(pid.to_string())
        .args(numbers.map(|number| number.to_string()))
        .stdin(Stdio::null())
        .output();
    let failed = |reason: String, hint: &str| {
        let hint = Some(hint.to_owned());
        Err(Failure { hint, ..Failure::because(format!("{field}: {program}"), reason) }.into())
    };
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', ", ");
            let reason = if said.is_empty() { output.status.to_string() } else { said };
            failed(reason, "/etc/subuid and /etc/subgid say which ids a user may map")
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let hint = "install uidmap, or map nothing but the own id";
            failed("not found in PATH: it maps more than the own id".to_owned(), hint)
        }
        Err(error) => failed(error.to_string(), "is it installed set-uid root?"),
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Linux;

    use super::*;

    fn maps(uids: &str, gids: &str) -> Result<IdMaps, Error> {
        let json = format!(r#"{{"uidMappings":[{uids}],"gidMappings":[{gids}]}}"#);
        let linux: Linux = serde_json::from_str(&json).unwrap();
        IdMaps::new("linux", linux.uid_mappings().as_ref(), linux.gid_mappings().as_ref())
    }

    fn range(inside: u32, outside: u32, size: u32) -> String {
        format!(r#"{{"containerID":{inside},"hostID":{outside},"size":{size}}}"#)
    }

    fn problem(uids: &str) -> String {
        maps(uids, &range(0, 0, 1)).unwrap_err().to_string()
    }

    #[test]
    fn maps_become_lines() {
        let uids = format!("{},{}", range(0, 1000, 1), range(1, 100_000, 65536));
        let maps = maps(&uids, &range(5, 7, 1)).unwrap();
        assert_eq!(text(&maps.uids), "0 1000 1\n1 100000 65536\n");
        assert!(maps.has_uid(65536) && !maps.has_uid(65537) && !maps.has_gid(0));
        assert_eq!(maps.root(), (0, 5));
        assert!(!only(&maps.uids, 1000) && only(&maps.gids, 7) && !only(&maps.gids, 8));
    }

    #[test]
    fn wrong_ranges_are_named() {
        assert_eq!(problem(""), "linux.uidMappings: is needed");
        assert!(problem(&range(0, 1, 0)).starts_with("linux.uidMappings[0].size"));
        assert!(
            problem(&range(4_294_967_290, 0, 6)).starts_with("linux.uidMappings[0].containerID")
        );
        assert!(problem(&range(0, u32::MAX, 1)).starts_with("linux.uidMappings[0].hostID"));
        let inside = format!("{},{}", range(0, 0, 10), range(9, 100, 1));
        assert!(problem(&inside).starts_with("linux.uidMappings[1].containerID"));
        let outside = format!("{},{}", range(0, 100, 10), range(10, 95, 6));
        assert!(problem(&outside).starts_with("linux.uidMappings[1].hostID"));
        let beside = format!("{},{}", range(0, 100, 10), range(10, 90, 10));
        maps(&beside, &beside).unwrap();
    }

    #[test]
    fn more_than_the_kernel_takes_is_an_error() {
        let many = |count: u32, base: u32| {
            (0..count).map(|n| range(n, base + 2 * n, 1)).collect::<Vec<_>>().join(",")
        };
        assert!(problem(&many(341, 0)).contains("341 ranges"));
        // Short lines: 340 of them are less than a page.
        maps(&many(340, 0), &range(0, 0, 1)).unwrap();
        assert!(problem(&many(340, 1_000_000_000)).contains("bytes as a map"));
    }
}
