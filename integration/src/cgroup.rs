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

/// A cgroup of this name in every hierarchy, made by the runtime for a test;
/// removed, with what is below it, when dropped.
#[derive(Debug)]
pub struct Parent(pub String);

impl Drop for Parent {
    fn drop(&mut self) {
        for dir in directories_of(&self.0) {
            remove_tree(&dir);
        }
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
