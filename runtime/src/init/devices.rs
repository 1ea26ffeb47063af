//! Device nodes and the links that every container's /dev has.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::mounts::{attach, real_dir};
use crate::devices::Device;
use crate::error::{Error, Failure, Step};
use crate::mounts::{Source, clone_tree};
use crate::plan::Plan;
use crate::rooted::Rooted;

/// config-linux.md#default-filesystems, and /dev/ptmx.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Makes all devices and links, unless /dev is bound from the host.
pub fn make_all(plan: &Plan, root: &Rooted<'_>) -> Result<(), Error> {
    let dev = Path::new("/dev");
    let bound = plan.mounts.iter().any(|mount| {
        matches!(mount.source, Source::Bind { .. })
            && dev.components().eq(mount.destination.components())
    });
    if bound {
        return Ok(());
    }
    // Not through a link of the image's: it could lead to a volume, which is the host's.
    let dev_dir = real_dir(root, dev).step(|| "open /dev".to_owned())?;
    // A user namespace may not make devices: the host's are bound, or the runtime's.
    let bind = plan.namespaces.has(libc::CLONE_NEWUSER) || !plan.privilege.is_root();
    for device in &plan.devices {
        let step = || format!("make device {}", device.path.display());
        let (parent, name) = match device.path.strip_prefix(dev) {
            // Most are right in /dev: one look-up for all.
            Ok(name) if name.components().count() == 1 => {
                (dev_dir.try_clone().step(step)?, name.as_os_str().to_owned())
            }
            _ => root.make_parent(&device.path).step(step)?,
        };
        match bind {
            true => bind_device(device, &parent, &name)?,
            false => make_device(device, &parent, &name)?,
        }
    }
    for (name, target) in LINKS {
        match rustix::fs::symlinkat(target, &dev_dir, name) {
            Ok(()) => {}
            // The image's own, or a device of that name: left as it is.
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).step(|| format!("link /dev/{name}")),
        }
    }
    Ok(())
}

fn make_device(device: &Device, parent: &OwnedFd, name: &OsStr) -> Result<(), Error> {
    let step = || format!("make device {}", device.path.display());
    let mode = Mode::from_raw_mode(device.mode);
    match rustix::fs::mknodat(parent, name, device.kind, mode, device.device) {
        Ok(()) => {}
        // In a /dev that comes with the image. Only the very device is good enough: any other
        // file could be one that the image wants the host to change.
        Err(Errno::EXIST) => {
            let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).step(step)?;
            if !device.is(&stat) {
                return Err(Failure::because(step(), "something else is there already").into());
            }
            return Ok(());
        }
        Err(errno) => return Err(errno).step(step),
    }
    if (device.uid, device.gid) != (0, 0) {
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .step(step)?;
    }
    Ok(())
}

fn bind_device(device: &Device, parent: &OwnedFd, name: &OsStr) -> Result<(), Error> {
    let step = || format!("bind device {}", device.path.display());
    let inside = Rooted::new(parent);
    let target = || inside.make_file(name.as_ref()).step(step);
    if let Some(node) = &device.node {
        return attach(node, &target()?).step(step);
    }
    let tree = clone_tree(&device.path, false)?;
    if !device.is(&rustix::fs::fstat(&tree).step(step)?) {
        return Err(Failure::because(step(), "the host has another device there").into());
    }
    attach(&tree, &target()?).step(step)
}
