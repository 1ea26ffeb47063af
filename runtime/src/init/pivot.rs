//! The rootfs becomes the root.

use std::os::fd::OwnedFd;

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, UnmountFlags};

use super::rootfs::set_propagation;
use crate::error::{Error, Step};
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
