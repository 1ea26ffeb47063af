//! The container's view of its own cgroups, and waiting for what the runtime makes meanwhile.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};

use super::mounts::{Filesystem, attach, name};
use crate::channel::{Channel, ToInit};
use crate::error::{Error, Failure, Step};
use crate::mounts::{MountPlan, clone_tree};
use crate::namespaces::Namespaces;
use crate::rooted::Rooted;
use crate::sys::{self, MountAttr};

/// What the runtime makes while init mounts, the network namespace and then the cgroups: each
/// waited for once, as late as possible.
pub struct Ready<'a> {
    channel: &'a Channel,
    namespaces: &'a Namespaces,
    network: bool,
    cgroup: bool,
}

impl<'a> Ready<'a> {
    /// Nothing is known yet.
    pub fn new(channel: &'a Channel, namespaces: &'a Namespaces) -> Self {
        Self { channel, namespaces, network: false, cgroup: false }
    }

    /// Waits if need be; afterwards init is in its network namespace.
    pub fn network(&mut self) -> Result<(), Error> {
        if self.network {
            return Ok(());
        }
        self.network = true;
        self.namespaces.enter_network(|| {
            let step = || "wait for the network namespace".to_owned();
            let namespace = self.channel.expect_with(ToInit::Network).step(step)?.pop();
            namespace.ok_or_else(|| Failure::because(step(), "it did not come").into())
        })
    }

    /// Waits if need be; afterwards init is in its cgroups and cgroup namespace, too.
    pub fn cgroup(&mut self) -> Result<(), Error> {
        self.network()?;
        if !self.cgroup {
            let step = || "enter the container's cgroup".to_owned();
            for entrance in self.channel.expect_with(ToInit::CgroupReady).step(step)? {
                kiln_cgroups::enter(entrance.as_fd()).step(step)?;
            }
            self.namespaces.enter_cgroup()?;
            self.cgroup = true;
        }
        Ok(())
    }

    /// Whether the container has a cgroup namespace of its own.
    pub fn has_namespace(&self) -> bool {
        self.namespaces.has(libc::CLONE_NEWCGROUP)
    }
}

/// Mounts the cgroup filesystem: on v2 that one, on v1 and hybrid a tmpfs with one directory per
/// hierarchy. Without a cgroup namespace the container's own cgroup is bound in its place: the
/// rest of the host's tree is never there.
pub fn mount(
    mount: &MountPlan,
    root: &Rooted<'_>,
    cgroups: Option<&kiln_cgroups::Paths>,
    namespace: bool,
) -> Result<(), Error> {
    let attr = mount.attr.set | mount.recursive_attr.set;
    let target = root.make_dirs(&mount.destination).step(|| name(mount))?;
    let Some(cgroups) = cgroups else {
        // Rootless, or --cgroup-manager disabled. An empty directory is what there is to see, and hides what a bound /sys shows.
        let empty = Filesystem { fstype: "tmpfs", source: "cgroup", data: &[], flags: &[] };
        let empty = empty.make(attr | libc::MOUNT_ATTR_RDONLY)?;
        return attach(&empty, &target).step(|| name(mount));
    };
    if let [hierarchy] = cgroups.hierarchies()
        && cgroups.is_v2()
    {
        return attach(&view(hierarchy, namespace, attr)?, &target).step(|| name(mount));
    }
    let mode = [("mode".to_owned(), Some("755".to_owned()))];
    let tmpfs = Filesystem { fstype: "tmpfs", source: "cgroup", data: &mode, flags: &[] };
    // Read-only only once it is filled.
    let tmpfs = tmpfs
        .make(attr & !libc::MOUNT_ATTR_RDONLY)
        .map_err(|failure| Failure { step: name(mount), ..failure })?;
    attach(&tmpfs, &target).step(|| name(mount))?;
    for hierarchy in cgroups.hierarchies() {
        let directory = hierarchy.mount_point().file_name().unwrap_or(OsStr::new("cgroup"));
        let inside = Rooted::new(&tmpfs);
        let step = || format!("{}/{}", name(mount), directory.display());
        let target = inside.make_dirs(directory.as_ref()).step(step)?;
        attach(&view(hierarchy, namespace, attr)?, &target).step(step)?;
        // cpu -> cpu,cpuacct, as systemd and runc have it.
        let controllers = hierarchy.controllers();
        if controllers.len() > 1 && directory.to_string_lossy().contains(',') {
            for controller in controllers {
                rustix::fs::symlinkat(directory, &tmpfs, controller.as_str()).step(step)?;
            }
        }
    }
    if attr & libc::MOUNT_ATTR_RDONLY != 0 {
        let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        sys::mount_setattr(tmpfs.as_fd(), attr, false, None).step(|| name(mount))?;
    }
    Ok(())
}

/// One hierarchy as the container may see it, detached.
fn view(hierarchy: &kiln_cgroups::Hierarchy, namespace: bool, attr: u64) -> Result<OwnedFd, Error> {
    if !namespace {
        let tree = clone_tree(&hierarchy.full_path(), false)?;
        let attr = MountAttr { set: attr, ..MountAttr::default() };
        let step = || format!("set the options of {}", hierarchy.full_path().display());
        sys::mount_setattr(tree.as_fd(), attr, false, None).step(step)?;
        return Ok(tree);
    }
    if hierarchy.is_v2() {
        let cgroup2 = Filesystem { fstype: "cgroup2", source: "cgroup", data: &[], flags: &[] };
        return Ok(cgroup2.make(attr)?);
    }
    let word = |word: &str| match word.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (word.to_owned(), None),
    };
    let mut data: Vec<_> = hierarchy.name().split(',').map(word).collect();
    if hierarchy.name().starts_with("name=") {
        data.insert(0, ("none".to_owned(), None));
    }
    let cgroup = Filesystem { fstype: "cgroup", source: "cgroup", data: &data, flags: &[] };
    Ok(cgroup.make(attr)?)
}
