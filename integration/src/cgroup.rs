//! The host's cgroup hierarchies as the kernel shows them: v1, hybrid or v2.

use std::fs;
use std::path::{Path, PathBuf};

use crate::proc;

/// The mount points of all cgroup hierarchies.
pub fn hierarchies() -> Vec<PathBuf> {
    let mounts = proc::mounts("self").into_iter();
    mounts.filter(|mount| mount.kind.starts_with("cgroup")).map(|mount| mount.point).collect()
}

/// Whether the controllers are on cgroup v2.
pub fn is_v2() -> bool {
    proc::mounts("self")
        .iter()
        .any(|mount| mount.kind == "cgroup2" && mount.point == Path::new("/sys/fs/cgroup"))
}

/// Plain directories among the mount points below /sys/fs/cgroup, where somebody has left them:
/// Podman takes them for hierarchies.
pub fn strays() -> Vec<PathBuf> {
    let hierarchies = hierarchies();
    let root = Path::new("/sys/fs/cgroup");
    if hierarchies.iter().any(|mount| mount == root) {
        return Vec::new();
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path()).filter(|path| !hierarchies.contains(path)).collect()
}

/// Directories, in every hierarchy, whose own name has `id` in it.
pub fn directories_of(id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for hierarchy in hierarchies() {
        collect(&hierarchy, id, &mut found);
    }
    found
}

fn collect(dir: &Path, id: &str, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        if entry.file_name().to_string_lossy().contains(id) {
            found.push(path.clone());
        }
        collect(&path, id, found);
    }
}

/// The directory that process `pid` is in, of the hierarchy that has this
/// controller (`unified` for v2 itself); nothing if the host has none.
pub fn directory(pid: i32, controller: &str) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let v1 = text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let names = fields.next()?;
        let path = fields.next()?;
        names.split(',').any(|name| name == controller).then(|| path.to_owned())
    });
    if let Some(path) = v1 {
        return Some(mount_of(controller)?.join(path.trim_start_matches('/')));
    }
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let dir = v2_mount()?.join(path.trim_start_matches('/'));
    let controllers = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    (controller == "unified" || controllers.split_whitespace().any(|name| name == controller))
        .then_some(dir)
}

fn mount_of(controller: &str) -> Option<PathBuf> {
    let mounts = proc::mounts("self").into_iter();
    let mut own = mounts.filter(|mount| {
        mount.kind == "cgroup" && mount.super_options.iter().any(|name| name == controller)
    });
    own.next().map(|mount| mount.point)
}

fn v2_mount() -> Option<PathBuf> {
    proc::mounts("self").into_iter().find(|mount| mount.kind == "cgroup2").map(|mount| mount.point)
}

/// Reads a setting of the cgroup that `pid` is in: the file is called `v1` or
/// `v2`. Nothing if the host lacks the controller or the file.
pub fn setting(pid: i32, controller: &str, v1: &str, v2: &str) -> Option<String> {
    let dir = directory(pid, controller)?;
    let text = fs::read_to_string(dir.join(v1)).or_else(|_| fs::read_to_string(dir.join(v2)));
    text.ok().map(|text| text.trim().to_owned())
}

/// Whether this machine has the controller somewhere.
pub fn has(controller: &str) -> bool {
    mount_of(controller).is_some()
        || v2_mount().is_some_and(|mount| {
            let names = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
            names.split_whitespace().any(|name| name == controller)
        })
}

/// Why containerd's cgroup library (that of its shim for runc, of Docker) finds no cgroup here, which
/// leaves both without statistics and without word of memory that has run out: it wants every v1
/// hierarchy of /proc/self/cgroup mounted, wherever.
pub fn library_objection() -> Option<String> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let names = text.lines().filter_map(|line| line.split(':').nth(1));
    let mut unmounted = names
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty() && mount_of(name).is_none());
    let name = unmounted.next()?;
    Some(format!(
        "containerd's cgroup library finds nothing while hierarchy {name} is mounted nowhere"
    ))
}

/// A cgroup of this name in every hierarchy, made by the runtime for a test;
/// removed, with what is below it, when dropped.
#[derive(Debug)]
pub struct Parent(pub String);

impl Drop for Parent {
    fn drop(&mut self) {
        // The last process may not be gone altogether.
        for _ in 0..100 {
            for dir in directories_of(&self.0) {
                remove_tree(&dir);
            }
            if directories_of(&self.0).is_empty() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        eprintln!("cgroups left: {:?}", directories_of(&self.0));
    }
}

/// Removes a cgroup and those below it, which must have no process.
fn remove_tree(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

/// The processes in the cgroup of `pid`, itself included.
///
/// # Panics
/// If `pid` is in no cgroup that the host knows.
pub fn members(pid: i32) -> Vec<i32> {
    let dir = ["pids", "memory", "unified"].iter().find_map(|name| directory(pid, name));
    let text = fs::read_to_string(dir.unwrap().join("cgroup.procs")).unwrap();
    text.lines().map(|line| line.parse().unwrap()).collect()
}
