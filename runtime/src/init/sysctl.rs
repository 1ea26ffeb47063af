//! linux.sysctl, written through a procfs of our own.
//!
//! The container's /proc is whatever its mounts made it; what is written must be what is meant
//! (CVE-2019-16884), so it goes through a detached procfs that no path leads to.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::mounts::Filesystem;
use crate::error::{Error, Step};
use crate::plan::Plan;

/// Whether anything is to be written: sysctls, or labels of the workload's process.
pub fn needs_proc(plan: &Plan) -> bool {
    !plan.sysctl.is_empty() || plan.process.labels.any()
}

/// A procfs of the container's pid namespace, attached nowhere.
pub fn open_proc() -> Result<OwnedFd, Error> {
    let proc = Filesystem { fstype: "proc", source: "proc", data: &[], flags: &[] };
    Ok(proc.make(libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC)?)
}

/// Writes all values; in the container's namespaces, so that they are its own.
pub fn write_all(sysctl: &[(PathBuf, String)], proc: &OwnedFd) -> Result<(), Error> {
    for (path, value) in sysctl {
        let step = || format!("set sysctl {} to {value:?}", path.display());
        let path = Path::new("sys").join(path);
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let file = rustix::fs::openat2(proc, &path, flags, Mode::empty(), beneath).step(step)?;
        rustix::io::write(&file, value.as_bytes()).step(step)?;
    }
    Ok(())
}
