//! A new v1 cpuset has no CPUs and no memory nodes, and no process can enter
//! it (ENOSPC) until it has; cpuset(7). So every new level takes its parent's.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;

use crate::dir;

const FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// Fills the cpuset `name` in `parent`, if it was just made or is empty.
///
/// Returns false if the parent itself has none; then the whole path needs
/// [`fill_path`].
pub(crate) fn inherit(parent: impl AsFd, child: impl AsFd, just_made: bool) -> Result<bool, Errno> {
    for file in FILES {
        if !just_made && !is_empty(&dir::read_file(&child, file)?) {
            continue;
        }
        let value = dir::read_file(&parent, file)?;
        if is_empty(&value) {
            return Ok(false);
        }
        dir::write_file(&child, file, value.trim_end().as_bytes())?;
    }
    Ok(true)
}

/// Fills each level of `path` that is empty, from the mount point down.
pub(crate) fn fill_path(mount: OwnedFd, path: &Path) -> Result<(), Errno> {
    let mut parent = mount;
    for name in path.iter() {
        let child = dir::open_child(&parent, Path::new(name))?;
        inherit(&parent, &child, false)?;
        parent = child;
    }
    Ok(())
}

fn is_empty(text: &str) -> bool {
    text.trim_end().is_empty()
}
