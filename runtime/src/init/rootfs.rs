//! The rootfs in the container's mount namespace.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use crate::error::{Error, Step};
use crate::mounts::{clone_tree, open_dir};
use crate::plan::Plan;
use crate::sys::{self, MountAttr};

/// In the container's mount namespace: the rootfs as a detached mount, where the runtime could not
/// make it. By its path: what the runtime has open lies in a namespace that is not ours any more.
pub fn open(path: &Path) -> Result<OwnedFd, Error> {
    let tree = clone_tree(path, true)?;
    // What is mounted inside must not appear below the host's rootfs.
    set_propagation(&tree, libc::MS_SLAVE, true)
        .step(|| format!("root.path: bind {}", path.display()))?;
    Ok(tree)
}

/// Cuts the namespace off from the host's mounts and attaches `tree`, the rootfs, where it lies.
/// Returns the old root.
///
/// At its own path, because createContainer hooks mount below that. A process in a user namespace
/// may not reach it; `/` serves pivot_root(2) as well then, and paths that begin at `/` still
/// start at the old root.
pub fn attach(plan: &Plan, tree: &OwnedFd) -> Result<OwnedFd, Error> {
    let step = || "cut the mounts off from the host's".to_owned();
    let old_root = open_dir("/".as_ref()).step(step)?;
    // With rootfsPropagation shared, bind mounts made from here on stay peers of the host's.
    let (propagation, recursive) = plan.rootfs_propagation.unwrap_or((libc::MS_SLAVE, true));
    set_propagation(&old_root, propagation, recursive).step(step)?;
    let step = || format!("attach the rootfs {}", plan.rootfs_path.display());
    let place = match open_dir(&plan.rootfs_path) {
        Err(Errno::ACCESS) => open_dir("/".as_ref()).step(step)?,
        place => place.step(step)?,
    };
    if plan.rootfs_propagation.is_some() {
        // What is attached must not appear on the host; pivot_root(2) demands it, too. Without a
        // word in the config it is a slave of the host's already.
        make_mount_private(&plan.rootfs_path).step(step)?;
    }
    super::mounts::attach(tree, &place).step(step)?;
    Ok(old_root)
}

/// Makes the mount that `path` lies on private: statx(2) tells which of its parents is the root of
/// that mount (Linux 5.8).
fn make_mount_private(path: &Path) -> Result<(), Errno> {
    for parent in path.ancestors() {
        let place = open_dir(parent)?;
        let stat = rustix::fs::statx(&place, "", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
        if stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return set_propagation(&place, libc::MS_PRIVATE, false);
        }
    }
    Ok(())
}

/// After everything has been made inside: the root's propagation, and read-only if asked.
pub fn finish(plan: &Plan, tree: &OwnedFd) -> Result<(), Error> {
    if let Some((propagation, recursive)) = plan.rootfs_propagation {
        set_propagation(tree, propagation, recursive)
            .step(|| "set linux.rootfsPropagation".to_owned())?;
    }
    if plan.rootfs_readonly {
        let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
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
    let attr = MountAttr { propagation, ..MountAttr::default() };
    sys::mount_setattr(mount.as_fd(), attr, recursive, None)
}
