//! The rootfs becomes the root.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags};

use super::rootfs::set_propagation;
use crate::error::{Error, Step};
use crate::mount_table::MountTable;
use crate::plan::Plan;

/// Makes `tree` the root of this process and lets go of the old one. Takes the old root's
/// descriptor: it must not outlive this.
///
/// In a joined mount namespace, whose root others use, only this process's root is changed.
pub fn enter(plan: &Plan, tree: &OwnedFd, old_root: OwnedFd, pivot: bool) -> Result<(), Error> {
    let step = || "enter the rootfs".to_owned();
    rustix::process::fchdir(tree).step(step)?;
    if !plan.namespaces.makes(libc::CLONE_NEWNS) || !pivot {
        // --no-pivot, for a root on a ramdisk, which pivot_root(2) refuses.
        if plan.namespaces.makes(libc::CLONE_NEWNS) {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(tree, "", CWD, "/", flags).step(step)?;
            let host = hide_host_mounts(&old_root);
            host.step(|| "unmount what the old root holds".to_owned())?;
        }
        rustix::process::chroot(".").step(step)?;
        return rustix::process::chdir("/").step(step);
    }
    // pivot_root(".", "."): the old root is stacked on the new one and needs no directory of its
    // own (pivot_root(2), NOTES).
    rustix::process::pivot_root(".", ".").step(|| "pivot_root to the rootfs".to_owned())?;
    let leave = || "unmount the old root".to_owned();
    rustix::process::fchdir(&old_root).step(leave)?;
    if plan.rootfs_propagation.is_some() {
        // Its mounts, or with a value that is not recursive those below them, are still peers of
        // the host's: unmounting them must not unmount those.
        set_propagation(&old_root, libc::MS_SLAVE, true).step(leave)?;
    }
    rustix::mount::unmount(".", UnmountFlags::DETACH).step(leave)?;
    rustix::process::chdir("/").step(step)
}

/// Without pivot_root(2) the old root stays below the new one, out of reach by path; but its procfs
/// and sysfs would still let a user namespace made in the container mount bare ones
/// (mount_namespaces(7)). Paths that begin at `/` still start at the old root here.
fn hide_host_mounts(old_root: &OwnedFd) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(old_root, "proc/self/mountinfo", flags, Mode::empty())?;
    let mut mountinfo = Vec::new();
    let read = std::fs::File::from(file).read_to_end(&mut mountinfo);
    read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    // The last mounted first: what lies on another one goes before it.
    let table = MountTable::parse(&mountinfo);
    for place in table.points().rev().filter(|place| place.as_os_str() != "/") {
        match leave(place) {
            // Gone with another one; or the new root's, which is not at this path any more.
            Ok(()) | Err(Errno::NOENT | Errno::INVAL | Errno::NOTDIR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Unmounts `place` here and nowhere else, whatever its propagation.
fn leave(place: &Path) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mount = rustix::fs::open(place, flags, Mode::empty())?;
    set_propagation(&mount, libc::MS_SLAVE, true)?;
    rustix::mount::unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
}
