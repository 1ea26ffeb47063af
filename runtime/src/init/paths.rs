//! linux.maskedPaths and linux.readonlyPaths.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::mounts::{Filesystem, Kernel, attach};
use crate::error::{Error, Failure, Step};
use crate::mounts::{CONTEXT, clone_open};
use crate::plan::Plan;
use crate::rooted::Rooted;
use crate::sys::{self, MountAttr};

/// Of the null device that masks files.
pub const NULL_ATTR: MountAttr = MountAttr {
    set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC,
    clear: 0,
    propagation: 0,
};

/// A detached, read-only mount of the host's /dev/null, checked: the container's could be anything
/// (CVE-2025-31133). Read-only, because the file is the host's own: uid 0 of a container could
/// change its mode through a masked path. A device on a read-only mount can still be written to.
pub fn host_null() -> Result<OwnedFd, Error> {
    let step = || "open the host's /dev/null".to_owned();
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty()).step(step)?;
    if !is_null_device(&null) {
        return Err(Failure::because(step(), "it is not the null device").into());
    }
    let tree = clone_open(&null, false).step(step)?;
    sys::mount_setattr(tree.as_fd(), NULL_ATTR, false, None).step(step)?;
    Ok(tree)
}

/// Whether it is /dev/null, whatever it is called.
pub fn is_null_device(file: &OwnedFd) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode).is_char_device()
            && stat.st_rdev == rustix::fs::makedev(1, 3)
    })
}

/// Makes each path, with all below it, read-only. One that is not there needs nothing.
pub fn make_readonly(plan: &Plan, root: &Rooted<'_>, kernel: &Kernel) -> Result<(), Error> {
    for path in &plan.readonly_paths {
        let step = || format!("make {} read-only", path.display());
        let Some(target) = existing(root, kernel, path).step(step)? else {
            continue;
        };
        let tree = clone_open(&target, true).step(step)?;
        let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        sys::mount_setattr(tree.as_fd(), attr, true, None).step(step)?;
        attach(&tree, &target).step(step)?;
    }
    Ok(())
}

/// Hides each path: a file behind /dev/null, a directory behind an empty read-only tmpfs.
pub fn mask(plan: &Plan, root: &Rooted<'_>, kernel: &Kernel, null: &OwnedFd) -> Result<(), Error> {
    let mut null = Some(null);
    let (mut null_mounted, mut empty) = (None, None);
    for path in &plan.masked_paths {
        let step = || format!("mask {}", path.display());
        let Some(target) = existing(root, kernel, path).step(step)? else {
            continue;
        };
        let stat = rustix::fs::fstat(&target).step(step)?;
        let mask = match FileType::from_raw_mode(stat.st_mode).is_dir() {
            true => next(&mut empty, || empty_dir(plan.mount_label.as_deref())),
            false => next(&mut null_mounted, || match null.take() {
                Some(null) => null.try_clone().step(step),
                None => Err(Failure::because(step(), "nothing to mask it with").into()),
            }),
        };
        attach(&mask?, &target).step(step)?;
    }
    Ok(())
}

fn empty_dir(label: Option<&str>) -> Result<OwnedFd, Error> {
    let mut data: Vec<_> =
        ["nr_blocks", "nr_inodes"].map(|limit| (limit.to_owned(), Some("1".to_owned()))).to_vec();
    data.extend(label.map(|label| (CONTEXT.to_owned(), Some(label.to_owned()))));
    let tmpfs = Filesystem { fstype: "tmpfs", source: "tmpfs", data: &data, flags: &["ro"] };
    Ok(tmpfs.make(libc::MOUNT_ATTR_RDONLY)?)
}

/// The first time the mount made by `make`, afterwards copies of it: one superblock serves all.
/// `mounted` refers to the first one, which by the second call is attached (Linux before 6.15
/// does not copy a detached mount).
fn next(
    mounted: &mut Option<OwnedFd>,
    make: impl FnOnce() -> Result<OwnedFd, Error>,
) -> Result<OwnedFd, Error> {
    let step = || "copy a mask".to_owned();
    match mounted {
        Some(first) => clone_open(first, false).step(step),
        None => {
            let first = make()?;
            *mounted = Some(first.try_clone().step(step)?);
            Ok(first)
        }
    }
}

fn existing(root: &Rooted<'_>, kernel: &Kernel, path: &Path) -> Result<Option<OwnedFd>, Errno> {
    let opened = match kernel.split(path) {
        Some((mount, rest)) => Rooted::new(mount).open(rest, OFlags::PATH),
        None => root.open(path, OFlags::PATH),
    };
    match opened {
        Ok(target) => Ok(Some(target)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}
