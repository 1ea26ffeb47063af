//! In place of a filesystem that a user namespace's root may not mount: the runtime's own.
//!
//! sysfs, procfs and mqueue each show one namespace, and only that namespace's owner may mount
//! them. Where the container shares that namespace with the runtime, the runtime's mount shows
//! the very same, so it is bound (crun does it, too; runc fails). Where it has one of its own,
//! only an outer container that has covered parts of its /proc or /sys is in the way.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::mounts::{attach, name, real_dir, set_propagation};
use crate::error::{Error, Failure, Step};
use crate::mounts::{MountPlan, clone_tree};
use crate::plan::Plan;
use crate::rooted::Rooted;
use crate::sys::{self, MountAttr};

/// The filesystem, the namespace that it shows, where the host has it.
const SHOWN: [(&str, i32, &str); 3] = [
    ("mqueue", libc::CLONE_NEWIPC, "/dev/mqueue"),
    ("proc", libc::CLONE_NEWPID, "/proc"),
    ("sysfs", libc::CLONE_NEWNET, "/sys"),
];

/// Takes over after `error`, which came of mounting a new `fstype`, if it can; returns what it
/// has attached.
pub fn instead(
    plan: &Plan,
    mount: &MountPlan,
    root: &Rooted<'_>,
    fstype: &str,
    error: Error,
) -> Result<OwnedFd, Error> {
    let inside = plan.namespaces.has(libc::CLONE_NEWUSER) || !plan.privilege.is_root();
    let shown = SHOWN.iter().find(|(name, ..)| *name == fstype && inside);
    let (failure, namespace, place) = match (error, shown) {
        (Error::Step(failure), Some((_, namespace, place)))
            if failure.errno == Some(libc::EPERM) =>
        {
            (failure, *namespace, *place)
        }
        (error, _) => return Err(error),
    };
    if plan.namespaces.has(namespace) {
        let hint = format!("a user namespace may mount it only where all of {place} is seen");
        return Err(Failure { hint: Some(hint), ..failure }.into());
    }
    let tree = clone_tree(Path::new(place), true)?;
    let attr = MountAttr { set: mount.attr.set | mount.recursive_attr.set, ..MountAttr::default() };
    // None of the mounts below it is the container's to change.
    sys::mount_setattr(tree.as_fd(), attr, true, None)
        .step(|| format!("set the options of {}", name(mount)))?;
    set_propagation(mount, &tree)?;
    let target = real_dir(root, &mount.destination).step(|| name(mount))?;
    attach(&tree, &target).step(|| name(mount))?;
    Ok(tree)
}
