//! Makes the planned mounts, with the new mount API: everything by descriptor.
//!
//! The target is found inside the rootfs by one openat2(2) and handed to move_mount(2) as a
//! descriptor, so that nothing can be swapped for a symlink in between.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::cgroup::{self, Ready};
use super::{copy_up, shared};
use crate::error::{Error, Failure, Step};
use crate::mounts::{CONTEXT, MountPlan, Source, clone_open, clone_tree};
use crate::plan::Plan;
use crate::rooted::Rooted;
use crate::sys::{self, MountAttr};

/// fsconfig(2) takes no longer values; mount(2) takes a page.
const MAX_VALUE: usize = 255;

/// What was mounted on /proc and /sys, by descriptor: a peer that writes to the rootfs can move
/// the directories that they lie on, and the masks must follow them.
#[derive(Debug, Default)]
pub struct Kernel {
    proc: Option<OwnedFd>,
    sys: Option<OwnedFd>,
}

impl Kernel {
    /// The mount that `path` lies in, with the rest of the path.
    pub fn split<'p>(&self, path: &'p Path) -> Option<(&OwnedFd, &'p Path)> {
        let inside = |mount: &'_ str| path.strip_prefix(mount).ok();
        let proc = self.proc.as_ref().zip(inside("/proc"));
        proc.or_else(|| self.sys.as_ref().zip(inside("/sys")))
    }

    /// The last mount on a place is the one that is seen; None if it cannot be told by descriptor.
    fn note(&mut self, mount: &MountPlan, tree: Option<OwnedFd>) {
        let at = |path: &str| Path::new(path).components().eq(mount.destination.components());
        if at("/proc") {
            self.proc = tree;
        } else if at("/sys") {
            self.sys = tree;
        }
    }
}

/// Makes all mounts in the config's order.
pub fn make_all(
    plan: &Plan,
    root: &Rooted<'_>,
    cgroups: Option<&kiln_cgroups::Paths>,
    ready: &mut Ready<'_>,
) -> Result<Kernel, Error> {
    let mut kernel = Kernel::default();
    for mount in &plan.mounts {
        match &mount.source {
            Source::Bind { path, recursive, tree, inside } => {
                let made;
                let tree = match (tree, inside) {
                    (Some(tree), _) => tree,
                    (None, Some(inside)) => {
                        made = clone_inside(mount, root, inside, *recursive)?;
                        &made
                    }
                    (None, None) => {
                        made = clone_tree(path, *recursive)?;
                        &made
                    }
                };
                bind(mount, root, tree)?;
                kernel.note(mount, None);
            }
            Source::New { fstype, data, flags } => {
                if fstype == "sysfs" {
                    // It shows the network namespace of the process that mounts it.
                    ready.network()?;
                }
                if mount.copy_up {
                    // What the image makes us copy is charged to the container, not to the host.
                    ready.cgroup()?;
                }
                let tree = new(mount, root, fstype, data, flags)
                    .or_else(|error| shared::instead(plan, mount, root, fstype, error))?;
                kernel.note(mount, Some(tree));
                if let ("mqueue", Some(label)) = (fstype.as_str(), &plan.mount_label) {
                    label_root(mount, root, label)?;
                }
            }
            Source::Cgroup => {
                ready.cgroup()?;
                cgroup::mount(mount, root, cgroups, ready.has_namespace())?;
                kernel.note(mount, None);
            }
            Source::Remount => {
                let target = root.open(&mount.destination, OFlags::PATH).step(|| name(mount))?;
                set_attributes(mount, &target)?;
            }
        }
    }
    Ok(kernel)
}

/// `mount SOURCE on DESTINATION`, for errors.
pub fn name(mount: &MountPlan) -> String {
    format!("mount {} on {}", mount.source_name, mount.destination.display())
}

/// A detached copy of the mount at a path in the container.
fn clone_inside(
    mount: &MountPlan,
    root: &Rooted<'_>,
    inside: &Path,
    recursive: bool,
) -> Result<OwnedFd, Error> {
    let source = root.open(inside, OFlags::PATH).step(|| name(mount))?;
    clone_open(&source, recursive).step(|| name(mount))
}

fn bind(mount: &MountPlan, root: &Rooted<'_>, tree: &OwnedFd) -> Result<(), Error> {
    let source = rustix::fs::fstat(tree).step(|| name(mount))?;
    let is_dir = FileType::from_raw_mode(source.st_mode).is_dir();
    let target = match is_dir {
        true => root.make_dirs(&mount.destination),
        false => root.make_file(&mount.destination),
    };
    let target = target.step(|| name(mount))?;
    let target_stat = rustix::fs::fstat(&target).step(|| name(mount))?;
    if FileType::from_raw_mode(target_stat.st_mode).is_dir() != is_dir {
        let hint = "a file cannot be mounted on a directory, nor a directory on a file";
        let failure = Failure::new(name(mount), Errno::NOTDIR);
        return Err(Failure { hint: Some(hint.to_owned()), ..failure }.into());
    }
    refuse_proc(mount, &target)?;
    set_attributes(mount, tree)?;
    attach(tree, &target).step(|| name(mount))
}

/// Attributes and propagation of a bind mount, and of one that is there already.
fn set_attributes(mount: &MountPlan, tree: &OwnedFd) -> Result<(), Error> {
    for (attr, recursive) in [(mount.attr, false), (mount.recursive_attr, true)] {
        if attr != MountAttr::default() {
            sys::mount_setattr(tree.as_fd(), attr, recursive, None)
                .step(|| format!("set the options of {}", name(mount)))?;
        }
    }
    set_propagation(mount, tree)
}

/// As the options say, in their order.
pub fn set_propagation(mount: &MountPlan, tree: &OwnedFd) -> Result<(), Error> {
    for &(propagation, recursive) in &mount.propagation {
        super::rootfs::set_propagation(tree, propagation, recursive)
            .step(|| format!("set the propagation of {}", name(mount)))?;
    }
    Ok(())
}

fn new(
    mount: &MountPlan,
    root: &Rooted<'_>,
    fstype: &str,
    data: &[(String, Option<String>)],
    flags: &[&'static str],
) -> Result<OwnedFd, Error> {
    let takes_mode = fstype == "tmpfs" && !data.iter().any(|(key, _)| key == "mode");
    let existing = takes_mode
        .then(|| root.open(&mount.destination, OFlags::PATH | OFlags::DIRECTORY).ok())
        .flatten();
    // A tmpfs has the mode of the directory that was there; else its own default, 1777.
    let covers = existing.as_ref().map(rustix::fs::fstat).transpose().step(|| name(mount))?;
    let mode = covers.as_ref().map(|stat| format!("{:o}", stat.st_mode & 0o7777));
    let mode = mode.map(|mode| ("mode".to_owned(), Some(mode)));
    let data: Vec<_> = data.iter().cloned().chain(mode).collect();
    let data = data.as_slice();
    let target = match (existing, fstype) {
        (Some(directory), _) => directory,
        // What reads as kernel state must be where its name says, not where an image's symlink
        // leads (CVE-2019-19921, CVE-2023-27561).
        (None, "proc" | "sysfs") => real_dir(root, &mount.destination).map_err(|errno| {
            let failure = Failure::new(name(mount), errno);
            let hint = format!("{fstype} must be mounted on ordinary directory");
            let hint = matches!(errno, Errno::LOOP | Errno::NOTDIR).then_some(hint);
            Failure { hint: hint.or(failure.hint), step: failure.step, ..failure }
        })?,
        (None, _) => root.make_dirs(&mount.destination).step(|| name(mount))?,
    };
    refuse_proc(mount, &target)?;
    if data.iter().any(|(_, value)| value.as_ref().is_some_and(|v| v.len() > MAX_VALUE)) {
        return old_api(mount, root, &target, fstype, data);
    }
    let filesystem = Filesystem { fstype, source: &mount.source_name, data, flags };
    let mut attr = mount.attr.set | mount.recursive_attr.set;
    if mount.is_read_only_dev() {
        attr &= !libc::MOUNT_ATTR_RDONLY;
    }
    let failed = |failure| Failure { step: name(mount), ..failure };
    let tree = if fstype == "tmpfs" {
        // Read-only only once it is filled.
        let tree = filesystem.make(attr & !libc::MOUNT_ATTR_RDONLY).map_err(failed)?;
        copy_up::fill(&tree, &target, mount.copy_up, covers.as_ref())
            .step(|| format!("fill {}", name(mount)))?;
        if attr & libc::MOUNT_ATTR_RDONLY != 0 {
            let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
            sys::mount_setattr(tree.as_fd(), attr, false, None).step(|| name(mount))?;
        }
        tree
    } else {
        filesystem.make(attr).map_err(failed)?
    };
    set_propagation(mount, &tree)?;
    attach(&tree, &target).step(|| name(mount))?;
    Ok(tree)
}

/// Once all is made in it: a `/dev` that is to be read-only.
pub fn finish(plan: &Plan, root: &Rooted<'_>) -> Result<(), Error> {
    for mount in plan.mounts.iter().filter(|mount| mount.is_read_only_dev()) {
        let step = || format!("make {} read-only", mount.destination.display());
        let target = root.open(&mount.destination, OFlags::PATH).step(step)?;
        let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        sys::mount_setattr(target.as_fd(), attr, false, None).step(step)?;
    }
    Ok(())
}

/// mqueue takes no context option; its root has an attribute instead, as runc sets it.
fn label_root(mount: &MountPlan, root: &Rooted<'_>, label: &str) -> Result<(), Error> {
    let step = || format!("set linux.mountLabel of {}", name(mount));
    let dir = root.open(&mount.destination, OFlags::RDONLY | OFlags::DIRECTORY).step(step)?;
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::fsetxattr(&dir, "security.selinux", label.as_bytes(), flags).step(step)
}

/// Opens the directory `path` (O_PATH), made where missing; any symlink on the way is ELOOP.
pub fn real_dir(root: &Rooted<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match root.open_real(path, flags) {
        Err(Errno::NOENT) => {
            root.make_dirs(path)?;
            root.open_real(path, flags)
        }
        other => other,
    }
}

/// Nothing may cover what the kernel says in the container's own /proc, but what lxcfs and their
/// like replace on purpose (runc's list).
fn refuse_proc(mount: &MountPlan, target: &OwnedFd) -> Result<(), Error> {
    const PROC: i64 = 0x9fa0; // PROC_SUPER_MAGIC
    const ALLOWED: [&str; 11] = [
        "/proc/cpuinfo",
        "/proc/diskstats",
        "/proc/meminfo",
        "/proc/stat",
        "/proc/swaps",
        "/proc/uptime",
        "/proc/loadavg",
        "/proc/slabinfo",
        "/proc/net/dev",
        "/proc/sys/kernel/ns_last_pid",
        "/proc/sys/crypto/fips_enabled",
    ];
    let below = rustix::fs::fstatfs(target).step(|| name(mount))?;
    let destination: std::path::PathBuf = mount.destination.components().collect();
    if below.f_type == PROC && !ALLOWED.iter().any(|path| destination == Path::new(path)) {
        return Err(Failure::because(name(mount), "cannot be mounted: it is inside /proc").into());
    }
    Ok(())
}

/// Attaches a detached mount to what `target` refers to.
pub fn attach(tree: &OwnedFd, target: &OwnedFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", target, "", flags)
}

/// A new instance of a filesystem.
pub struct Filesystem<'a> {
    /// As in /proc/filesystems.
    pub fstype: &'a str,
    /// What /proc/mounts will say.
    pub source: &'a str,
    /// Its own options.
    pub data: &'a [(String, Option<String>)],
    /// Generic flags.
    pub flags: &'a [&'static str],
}

impl Filesystem<'_> {
    /// Makes it as a detached mount with MOUNT_ATTR_* `attr`: fsopen(2), fsconfig(2), fsmount(2).
    /// The failure holds what the filesystem itself says of it.
    pub fn make(&self, attr: u64) -> Result<OwnedFd, Failure> {
        let failure = |errno| Failure::new(format!("mount {}", self.fstype), errno);
        let context =
            fsopen(self.fstype, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| match errno {
                Errno::NODEV => Failure::because(
                    format!("mount {}", self.fstype),
                    format!("the kernel knows no filesystem {:?}", self.fstype),
                ),
                errno => failure(errno),
            })?;
        self.configure(&context).map_err(|errno| {
            let said = messages(&context);
            Failure { reason: (!said.is_empty()).then_some(said), ..failure(errno) }
        })?;
        let attr = MountAttrFlags::from_bits_retain(attr as _);
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attr).map_err(failure)
    }

    fn configure(&self, context: &OwnedFd) -> Result<(), Errno> {
        if !self.source.is_empty() {
            fsconfig_set_string(context, "source", self.source)?;
        }
        for flag in self.flags {
            fsconfig_set_flag(context, *flag)?;
        }
        for (key, value) in self.data {
            match value {
                Some(value) => fsconfig_set_string(context, key.as_str(), value.as_str())?,
                None => fsconfig_set_flag(context, key.as_str())?,
            }
        }
        fsconfig_create(context)
    }
}

/// What the kernel logged for a filesystem context: `e invalid value for ...`.
fn messages(context: &OwnedFd) -> String {
    let mut said = Vec::new();
    let mut buffer = [0; 512];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut buffer) {
        let line = String::from_utf8_lossy(&buffer[..length]);
        said.push(line.trim_start_matches(['e', 'w', 'i', ' ']).trim_end().to_owned());
    }
    said.join(", ")
}

/// mount(2), for options that are too long for fsconfig(2) (an overlay's lowerdir). The target is
/// reached through its descriptor in the host's /proc, which is still there.
fn old_api(
    mount: &MountPlan,
    root: &Rooted<'_>,
    target: &OwnedFd,
    fstype: &str,
    data: &[(String, Option<String>)],
) -> Result<OwnedFd, Error> {
    use std::os::fd::AsRawFd;
    let words = data.iter().map(|(key, value)| match value {
        // A label's categories have commas between them.
        Some(value) if key == CONTEXT => format!("{key}=\"{value}\""),
        Some(value) => format!("{key}={value}"),
        None => key.clone(),
    });
    let data = words.collect::<Vec<_>>().join(",");
    let data = std::ffi::CString::new(data)
        .map_err(|_| Error::config(name(mount), "has a NUL byte in its options"))?;
    let target_path = format!("/proc/self/fd/{}", target.as_raw_fd());
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount(mount.source_name.as_str(), &target_path, fstype, flags, data.as_c_str())
        .step(|| name(mount))?;
    // `target`, and a link to it, still lead to the directory below the new mount.
    let mounted = root.open(&mount.destination, OFlags::PATH).step(|| name(mount))?;
    if mount_id(&mounted).step(|| name(mount))? == mount_id(target).step(|| name(mount))? {
        return Err(Failure::because(name(mount), "it cannot be found where it was made").into());
    }
    set_attributes(mount, &mounted)?;
    Ok(mounted)
}

/// Tells mounts apart: statx(2), Linux 5.8.
fn mount_id(file: &OwnedFd) -> Result<u64, Errno> {
    let flags = rustix::fs::AtFlags::EMPTY_PATH;
    let stat = rustix::fs::statx(file, "", flags, rustix::fs::StatxFlags::MNT_ID)?;
    Ok(stat.stx_mnt_id)
}
