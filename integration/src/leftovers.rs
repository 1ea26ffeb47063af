//! What a container may leave behind: processes, cgroups, mounts, state.
//!
//! Looks by the id and by the temporary folder, which no other test shares, in
//! everything that the kernel shows: so a runtime that forgets is found out
//! wherever it forgot.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cgroup;
use crate::proc;

/// Everything left of container `id`, whose state root is `root` and whose
/// bundle and scratch lie under `home`, in words.
pub fn find(id: &str, root: &Path, home: &Path) -> Vec<String> {
    let mut left: Vec<String> = state(id, root);
    left.extend(
        cgroup::directories_of(id)
            .iter()
            .map(|dir| format!("cgroup {}", dir.display())),
    );
    left.extend(
        mounts(home)
            .iter()
            .map(|at| format!("mount on {}", at.display())),
    );
    left.extend(processes_after_grace(id, home));
    left
}

/// Cleans up after a failed test as well as one can from outside.
pub fn remove(id: &str, home: &Path) {
    for pid in processes(id, home) {
        let _ = rustix::process::Pid::from_raw(pid)
            .map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
    }
    std::thread::sleep(Duration::from_millis(50));
    for mount in mounts(home).iter().rev() {
        let _ = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH);
    }
    for dir in cgroup::directories_of(id).iter().rev() {
        let _ = fs::remove_dir(dir);
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

/// Living processes that belong to the container: by cgroup, by a mount
/// namespace with the bundle in it, or by their command line.
fn processes(id: &str, home: &Path) -> Vec<i32> {
    let home = home.to_string_lossy();
    let own = std::process::id().cast_signed();
    let belongs = |pid: &i32| {
        let text = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let has = |name: &str, needle: &str| contains(&text(name), needle.as_bytes());
        has("cgroup", id) || has("mountinfo", &home) || has("cmdline", id) || has("cmdline", &home)
    };
    proc::pids()
        .into_iter()
        .filter(|&pid| pid != own && proc::alive(pid))
        .filter(belongs)
        .collect()
}

fn contains(text: &[u8], needle: &[u8]) -> bool {
    text.windows(needle.len()).any(|window| window == needle)
}

fn describe(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    format!("process {pid} {line:?} in {}", cgroup.replace('\n', " "))
}
