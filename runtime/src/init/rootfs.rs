//! The rootfs in the container's mount namespace.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::MoveMountFlags;

use crate::error::{Error, Step};
use crate::mounts::open_dir;
use crate::plan::Plan;
use crate::sys::{self, MountAttr};

/// Cuts the namespace off from the host's mounts and attaches `tree`, the rootfs, to it. Returns
/// the old root.
///
/// The tree goes on top of `/`: it must be attached to something for pivot_root(2), and `/` needs
/// no look-up. Paths that begin at `/` still start at the old root.
pub fn attach(plan: &Plan, tree: &OwnedFd) -> Result<OwnedFd, Error> {
    let step = || "cut the mounts off from the host's".to_owned();
    let old_root = open_dir("/".as_ref()).step(step)?;
    // With rootfsPropagation shared, bind mounts made from here on stay peers of the host's.
    let (propagation, recursive) = plan.rootfs_propagation.unwrap_or((libc::MS_SLAVE, true));
    set_propagation(&old_root, propagation, recursive).step(step)?;
    // What is attached to `/` itself must never appear on the host, and pivot_root(2) demands it.
    set_propagation(&old_root, libc::MS_PRIVATE, false).step(step)?;
    rustix::mount::move_mount(tree, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .step(|| format!("attach the rootfs {}", plan.rootfs_path.display()))?;
    Ok(old_root)
}

/// After everything has been made inside: the root's propagation, and read-only if asked.
pub fn finish(plan: &Plan, tree: &OwnedFd) -> Result<(), Error> {
    if let Some((propagation, recursive)) = plan.rootfs_propagation {
        set_propagation(tree, propagation, recursive)
            .step(|| "set linux.rootfsPropagation".to_owned())?;
    }
    if plan.rootfs_readonly {
        let attr = MountAttr {
            set: libc::MOUNT_ATTR_RDONLY,
            ..MountAttr::default()
        };
        sys::mount_setattr(tree.as_fd(), attr, false, None)
            .step(|| "make the root read-only".to_owned())?;
    }
    Ok(())
}

/// Sets the propagation type of the mount that `mount` is the root of.
pub fn set_propagation(
    mount: &OwnedFd,
    propagation: u64,
    recursive: bool,
) -> Result<(), rustix::io::Errno> {
    let attr = MountAttr {
        propagation,
        ..MountAttr::default()
    };
    sys::mount_setattr(mount.as_fd(), attr, recursive, None)
}
