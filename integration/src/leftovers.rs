//! What a container may leave behind: processes, cgroups, mounts, state.
//!
//! Looks by the id and by the temporary folder, which no other test shares, in
//! everything that the kernel shows. Host mounts of a test must be gone before
//! its container is: what is mounted under the folder counts as left.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::binary;
use crate::cgroup;
use crate::proc;

/// Everything left of container `id`, whose state root is `root` and whose
/// bundle and scratch lie under `home`, in words.
pub fn find(id: &str, root: &Path, home: &Path) -> Vec<String> {
    let mut left: Vec<String> = state(id, root);
    left.extend(cgroup::directories_of(id).iter().map(|dir| format!("cgroup {}", dir.display())));
    left.extend(mounts(home).iter().map(|at| format!("mount on {}", at.display())));
    left.extend(processes_after_grace(id, home));
    left
}

/// What `find` finds in the end: nothing, or what it still does when asked for the hundredth time, two
/// seconds later.
pub fn after_grace(mut find: impl FnMut() -> Vec<String>) -> Vec<String> {
    let mut left = Vec::new();
    for _ in 0..100 {
        left = find();
        if left.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    left
}

/// Cleans up after a failed test as well as one can from outside.
pub fn remove(id: &str, home: &Path) {
    thaw(id);
    for pid in processes(id, home) {
        // Only what is the container's beyond doubt is killed.
        if in_cgroup(pid, id) || rooted_in(pid, home) || works_on(pid, id) {
            let _ = rustix::process::Pid::from_raw(pid)
                .map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
        }
    }
    std::thread::sleep(Duration::from_millis(50));
    for mount in mounts(home).iter().rev() {
        let _ = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH);
    }
    for dir in cgroup::directories_of(id).iter().rev() {
        let _ = fs::remove_dir(dir);
    }
}

/// A frozen process does not die.
fn thaw(id: &str) {
    for dir in cgroup::directories_of(id) {
        let _ =
            fs::OpenOptions::new().write(true).open(dir.join("freezer.state")).map(|mut file| {
                let _ = file.write_all(b"THAWED");
            });
        let _ =
            fs::OpenOptions::new().write(true).open(dir.join("cgroup.freeze")).map(|mut file| {
                let _ = file.write_all(b"0");
            });
    }
}

/// State of this id, and temporary files: anything that has the id in its name.
fn state(id: &str, root: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(root) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains(id))
        .map(|entry| format!("state {}", entry.path().display()))
        .collect()
}

/// Mounts of this program's namespace that lie under `home`.
fn mounts(home: &Path) -> Vec<PathBuf> {
    let points = proc::mounts("self").into_iter().map(|mount| mount.point);
    points.filter(|point| point.starts_with(home)).collect()
}

/// A killed process may still be on its way out when `delete` has returned.
fn processes_after_grace(id: &str, home: &Path) -> Vec<String> {
    let since = Instant::now();
    loop {
        let left = processes(id, home);
        if left.is_empty() || since.elapsed() > Duration::from_secs(2) {
            return left.into_iter().map(describe).collect();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Living processes that belong to the container: in its cgroup, or in a mount
/// namespace of their own with a mount from the test's folder, or commands of
/// the runtime that still work on it.
fn processes(id: &str, home: &Path) -> Vec<i32> {
    // A mount on the host would be in the namespace of every later container.
    let by_mount = mounts(home).is_empty();
    let own = std::process::id().cast_signed();
    let belongs =
        |pid| in_cgroup(pid, id) || works_on(pid, id) || (by_mount && has_mount_of(pid, home));
    let others = proc::pids().into_iter().filter(|&pid| pid > 1 && pid != own);
    others.filter(|&pid| proc::alive(pid) && belongs(pid)).collect()
}

fn in_cgroup(pid: i32, id: &str) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.contains(id)
}

/// Whether the process is the binary under test with this id as an argument.
fn works_on(pid: i32, id: &str) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = line.split(|&byte| byte == 0);
    let program = words.next().unwrap_or_default();
    program == binary::path().as_os_str().as_encoded_bytes()
        && words.any(|word| word == id.as_bytes())
}

/// Whether the process has a mount from the folder, in a mount namespace that
/// is certainly not this program's.
fn has_mount_of(pid: i32, home: &Path) -> bool {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let (own, other) = (namespace("self"), namespace(&pid.to_string()));
    if own.is_none() || other.is_none() || own == other {
        return false;
    }
    let from = |mount: &proc::Mount| mount.root.starts_with(home) || mount.point.starts_with(home);
    proc::mounts(&pid.to_string()).iter().any(from)
}

/// Whether the process's root is in the folder, or it has mounts from there.
pub(crate) fn is_inside(pid: i32, home: &Path) -> bool {
    rooted_in(pid, home) || has_mount_of(pid, home)
}

/// Whether the process's root directory lies in the folder.
fn rooted_in(pid: i32, home: &Path) -> bool {
    let is_root = |mount: &proc::Mount| mount.point == Path::new("/");
    let mounts = proc::mounts(&pid.to_string());
    mounts.iter().find(|mount| is_root(mount)).is_some_and(|mount| mount.root.starts_with(home))
}

pub(crate) fn describe(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    format!("process {pid} {line:?} in {}", cgroup.replace('\n', " "))
}
