//! The mount namespaces of a restore: CRIU's, and the container's.
//!
//! The root directory that CRIU restores into must be a mount point whose parent nothing covers. It
//! is mounted in a mount namespace of its own, which CRIU is started in and which goes with it:
//! nothing appears on the host, whoever is killed when.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::thread::LinkNameSpaceType;

use crate::error::{Error, Step};
use crate::init::mounts::attach;
use crate::init::paths::{NULL_ATTR, is_null_device};
use crate::init::rootfs::set_propagation;
use crate::mount_table::mount_root_id;
use crate::mounts::{Source, open_dir};
use crate::namespaces::{open_namespace, unshare};
use crate::plan::Plan;
use crate::rooted::Rooted;
use crate::sys::{self, MountAttr};

/// Calls `start` in a new mount namespace that has `tree`, a detached mount, on the directory `at`;
/// returns to the old one.
///
/// # Errors
/// The namespace cannot be made, or not be left again; those of `start`.
pub fn with<T>(
    tree: &OwnedFd,
    at: &Path,
    start: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let enter = || {
        unshare(libc::CLONE_NEWNS).step(|| "make a mount namespace for criu".to_owned())?;
        mount(tree, at)
    };
    elsewhere(|| enter().and_then(|()| start()))
}

fn mount(tree: &OwnedFd, at: &Path) -> Result<(), Error> {
    let step = || format!("mount the rootfs on {} for criu", at.display());
    let root = open_dir(Path::new("/")).step(step)?;
    set_propagation(&root, libc::MS_SLAVE, true).step(step)?;
    attach(tree, &open_dir(at).step(step)?).step(step)
}

/// In the mount namespace of the process `pid`, which does not run yet: gives each mount the options
/// of the config again.
///
/// CRIU restores those of its own mounts. The root it leaves writable; and of several mounts from one
/// filesystem of the host, with the same options, only the first gets them (its do_bind_mount() takes
/// the others for copies of that).
///
/// # Errors
/// Those of mount_setattr(2): EBUSY where a mount is to be read-only and a file in it is open for
/// writing.
pub fn set_options(plan: &Plan, pid: i32) -> Result<(), Error> {
    let step = || "enter the container's mount namespace".to_owned();
    let namespace = open_namespace(Path::new(&format!("/proc/{pid}/ns/mnt"))).step(step)?;
    elsewhere(|| {
        let link = Some(LinkNameSpaceType::Mount);
        // Leads to the namespace's root.
        rustix::thread::move_into_link_name_space(namespace.as_fd(), link).step(step)?;
        let root = open_dir(Path::new("/")).step(step)?;
        for mount in plan.mounts.iter().filter(|mount| matches!(mount.source, Source::Bind { .. }))
        {
            set(&root, &mount.destination, mount.attr, false, |_| true)?;
            set(&root, &mount.destination, mount.recursive_attr, true, |_| true)?;
        }
        for path in &plan.masked_paths {
            set(&root, path, NULL_ATTR, false, is_null_device)?;
        }
        let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        let attr = if plan.rootfs_readonly { attr } else { MountAttr::default() };
        set(&root, Path::new("/"), attr, false, |_| true)
    })
}

/// Nothing where the container has unmounted what was there.
fn set(
    root: &OwnedFd,
    path: &Path,
    attr: MountAttr,
    recursive: bool,
    wanted: impl Fn(&OwnedFd) -> bool,
) -> Result<(), Error> {
    if attr == MountAttr::default() {
        return Ok(());
    }
    let step = || format!("set the mount options of {}", path.display());
    match Rooted::new(root).open(path, OFlags::PATH) {
        Ok(mount) if mount_root_id(&mount).step(step)?.is_some() && wanted(&mount) => {
            sys::mount_setattr(mount.as_fd(), attr, recursive, None).step(step)
        }
        _ => Ok(()),
    }
}

/// Calls `there`, which changes the mount namespace, and returns from wherever it is then, with root
/// and working directory as they were.
fn elsewhere<T>(there: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let step = || "return to the mount namespace".to_owned();
    let own = open_namespace(Path::new("/proc/self/ns/mnt")).step(step)?;
    let root = open_dir(Path::new("/")).step(step)?;
    let cwd = open_dir(Path::new(".")).step(step)?;
    let result = there();
    let link = Some(LinkNameSpaceType::Mount);
    rustix::thread::move_into_link_name_space(own.as_fd(), link).step(step)?;
    // setns(2) has changed both to the namespace's root.
    rustix::process::fchdir(&root).step(step)?;
    rustix::process::chroot(".").step(step)?;
    rustix::process::fchdir(&cwd).step(step)?;
    result
}
