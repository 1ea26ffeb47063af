//! mounts: from what the config says to a checked list of mounts.
//!
//! What each option means is one table, [`OPTIONS`]; `features` prints its names. The mounts
//! themselves are made by [`crate::init::mounts`].

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use crate::error::{Error, Failure, Step};
use crate::idmaps::IdMaps;
use crate::namespaces::Namespaces;
use crate::plan::Plan;
use crate::privilege::Privilege;
use crate::sys::{self, MountAttr};

/// What one word among a mount's options does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Nothing,
    /// Sets (true) or clears a MOUNT_ATTR_* of this mount.
    Attr(u64, bool),
    /// The same for all mounts below it too.
    RecursiveAttr(u64, bool),
    /// One of the access time modes, of which a mount has exactly one.
    Atime(u64),
    RecursiveAtime(u64),
    /// Propagation type, and whether for all mounts below it too.
    Propagation(u64, bool),
    /// A bind mount, and whether with all mounts below it.
    Bind(bool),
    /// A flag of the filesystem itself, fsconfig(2).
    Filesystem(&'static str),
    /// Takes such a flag, set by a word before, back.
    NoFilesystem(&'static str),
    CopyUp,
    Remount,
    /// An idmapped mount, and whether with all mounts below it.
    IdMap(bool),
}

/// Every option that is not handed to the filesystem: mount(8), and the runtime-spec's own
/// (config.md#linux-mount-options).
const OPTIONS: &[(&str, Effect)] = {
    use Effect::*;
    use libc::*;
    const SYMLINKS: u64 = MOUNT_ATTR_NOSYMFOLLOW;
    &[
        ("async", NoFilesystem("sync")),
        ("atime", Atime(MOUNT_ATTR_RELATIME)),
        ("bind", Bind(false)),
        ("defaults", Nothing),
        ("dev", Attr(MOUNT_ATTR_NODEV, false)),
        ("diratime", Attr(MOUNT_ATTR_NODIRATIME, false)),
        ("dirsync", Filesystem("dirsync")),
        ("exec", Attr(MOUNT_ATTR_NOEXEC, false)),
        ("idmap", IdMap(false)),
        // A flag of mount(2) alone. What could keep a version does so by itself (btrfs, xfs, ext4
        // since Linux 6.1), or has an option of its own.
        ("iversion", Nothing),
        ("lazytime", Filesystem("lazytime")),
        ("loud", Nothing),
        ("mand", Filesystem("mand")),
        ("noatime", Atime(MOUNT_ATTR_NOATIME)),
        ("nodev", Attr(MOUNT_ATTR_NODEV, true)),
        ("nodiratime", Attr(MOUNT_ATTR_NODIRATIME, true)),
        ("noexec", Attr(MOUNT_ATTR_NOEXEC, true)),
        ("noiversion", Nothing),
        ("nolazytime", NoFilesystem("lazytime")),
        ("nomand", NoFilesystem("mand")),
        ("norelatime", Nothing),
        ("nostrictatime", Atime(MOUNT_ATTR_RELATIME)),
        ("nosuid", Attr(MOUNT_ATTR_NOSUID, true)),
        ("nosymfollow", Attr(SYMLINKS, true)),
        ("private", Propagation(MS_PRIVATE, false)),
        ("ratime", RecursiveAtime(MOUNT_ATTR_RELATIME)),
        ("rbind", Bind(true)),
        ("rdev", RecursiveAttr(MOUNT_ATTR_NODEV, false)),
        ("rdiratime", RecursiveAttr(MOUNT_ATTR_NODIRATIME, false)),
        ("relatime", Atime(MOUNT_ATTR_RELATIME)),
        ("remount", Remount),
        ("rexec", RecursiveAttr(MOUNT_ATTR_NOEXEC, false)),
        ("ridmap", IdMap(true)),
        ("rnoatime", RecursiveAtime(MOUNT_ATTR_NOATIME)),
        ("rnodev", RecursiveAttr(MOUNT_ATTR_NODEV, true)),
        ("rnodiratime", RecursiveAttr(MOUNT_ATTR_NODIRATIME, true)),
        ("rnoexec", RecursiveAttr(MOUNT_ATTR_NOEXEC, true)),
        ("rnorelatime", RecursiveAtime(MOUNT_ATTR_RELATIME)),
        ("rnostrictatime", RecursiveAtime(MOUNT_ATTR_RELATIME)),
        ("rnosuid", RecursiveAttr(MOUNT_ATTR_NOSUID, true)),
        ("rnosymfollow", RecursiveAttr(SYMLINKS, true)),
        ("ro", Attr(MOUNT_ATTR_RDONLY, true)),
        ("rprivate", Propagation(MS_PRIVATE, true)),
        ("rrelatime", RecursiveAtime(MOUNT_ATTR_RELATIME)),
        ("rro", RecursiveAttr(MOUNT_ATTR_RDONLY, true)),
        ("rrw", RecursiveAttr(MOUNT_ATTR_RDONLY, false)),
        ("rshared", Propagation(MS_SHARED, true)),
        ("rslave", Propagation(MS_SLAVE, true)),
        ("rstrictatime", RecursiveAtime(MOUNT_ATTR_STRICTATIME)),
        ("rsuid", RecursiveAttr(MOUNT_ATTR_NOSUID, false)),
        ("rsymfollow", RecursiveAttr(SYMLINKS, false)),
        ("runbindable", Propagation(MS_UNBINDABLE, true)),
        ("rw", Attr(MOUNT_ATTR_RDONLY, false)),
        ("shared", Propagation(MS_SHARED, false)),
        ("silent", Nothing),
        ("slave", Propagation(MS_SLAVE, false)),
        ("strictatime", Atime(MOUNT_ATTR_STRICTATIME)),
        ("suid", Attr(MOUNT_ATTR_NOSUID, false)),
        ("symfollow", Attr(SYMLINKS, false)),
        ("sync", Filesystem("sync")),
        ("tmpcopyup", CopyUp),
        ("unbindable", Propagation(MS_UNBINDABLE, false)),
    ]
};

/// The option that gives all files of a filesystem an SELinux label: mount(8).
pub const CONTEXT: &str = "context";

/// The names of all options that kiln itself understands, sorted, for `features`.
pub fn option_names() -> Vec<&'static str> {
    OPTIONS.iter().map(|(name, _)| *name).collect()
}

/// The propagation type that `word` names, with whether it is recursive: for
/// linux.rootfsPropagation.
pub fn propagation(word: &str) -> Option<(u64, bool)> {
    match OPTIONS.iter().find(|(name, _)| *name == word)?.1 {
        Effect::Propagation(kind, recursive) => Some((kind, recursive)),
        _ => None,
    }
}

/// What is mounted.
#[derive(Debug)]
pub enum Source {
    /// A file or directory of the host, with the mounts below it if `recursive`.
    Bind {
        /// On the host.
        path: PathBuf,
        /// With all mounts below it.
        recursive: bool,
        /// The mount itself, detached, where the runtime had to make it: see [`MountPlan::open`].
        tree: Option<OwnedFd>,
        /// Where it is in the container, if it is to be found there: see [`MountPlan::open`].
        inside: Option<PathBuf>,
    },
    /// A new instance of a filesystem.
    New {
        /// As in /proc/filesystems.
        fstype: String,
        /// The filesystem's own options; a word without value is a flag.
        data: Vec<(String, Option<String>)>,
        /// Generic flags, as fsconfig(2) names them.
        flags: Vec<&'static str>,
    },
    /// The container's view of its cgroups.
    Cgroup,
    /// What is mounted there already gets new attributes.
    Remount,
}

/// One mount, checked.
#[derive(Debug)]
pub struct MountPlan {
    /// In the container, as the config says it.
    pub destination: PathBuf,
    /// What is mounted.
    pub source: Source,
    /// The config's source, for messages and for the filesystem.
    pub source_name: String,
    /// Attributes of the mount itself.
    pub attr: MountAttr,
    /// Attributes of the mount and all below it.
    pub recursive_attr: MountAttr,
    /// Propagation changes, in order, each with whether it is recursive.
    pub propagation: Vec<(u64, bool)>,
    /// Fill a tmpfs with what the directory under it holds.
    pub copy_up: bool,
    /// Ids of an idmapped mount, and whether of all mounts below it too.
    id_map: Option<(IdMapSource, bool)>,
}

#[derive(Debug)]
enum IdMapSource {
    Own(IdMaps),
    /// Those of the container's user namespace.
    Container,
}

impl MountPlan {
    /// Checks mounts[index].
    ///
    /// # Errors
    /// Options that contradict each other, a bind mount without source, ids without maps.
    pub fn new(index: usize, mount: &Mount) -> Result<Self, Error> {
        let field = |name: &str| format!("mounts[{index}].{name}");
        let destination = from_root(mount.destination(), || field("destination"));
        if destination.as_os_str().is_empty() {
            return Err(Error::config(field("destination"), "must not be empty"));
        }
        let mut options = Options::default();
        for option in mount.options().iter().flatten() {
            options.add(option);
        }
        let fstype = mount.typ().as_deref().unwrap_or_default();
        let source_name = mount.source().as_ref().map(|s| s.display().to_string());
        let source = if options.remount {
            Source::Remount
        } else if options.bind.is_some() || fstype == "bind" {
            let path = mount.source().clone().filter(|path| !path.as_os_str().is_empty());
            let path = path.ok_or_else(|| Error::config(field("source"), "is needed"))?;
            let recursive = options.bind.unwrap_or(false);
            Source::Bind { path, recursive, tree: None, inside: None }
        } else if matches!(fstype, "cgroup" | "cgroup2") {
            Source::Cgroup
        } else if fstype.is_empty() || fstype == "none" {
            let problem = "is needed for a mount that is not a bind mount";
            return Err(Error::config(field("type"), problem));
        } else {
            let (data, flags) = (options.data, options.filesystem);
            Source::New { fstype: fstype.to_owned(), data, flags }
        };
        if options.copy_up && fstype != "tmpfs" {
            return Err(Error::config(field("options"), "tmpcopyup is for tmpfs only"));
        }
        let has_maps = mount.uid_mappings().is_some() || mount.gid_mappings().is_some();
        let id_map = if has_maps {
            let (uids, gids) = (mount.uid_mappings().as_ref(), mount.gid_mappings().as_ref());
            let maps = IdMaps::new(&format!("mounts[{index}]"), uids, gids)?;
            Some((IdMapSource::Own(maps), options.id_map.unwrap_or(false)))
        } else {
            options.id_map.map(|recursive| (IdMapSource::Container, recursive))
        };
        if id_map.is_some() && !matches!(source, Source::Bind { .. }) {
            return Err(Error::config(field("uidMappings"), "only bind mounts can be idmapped"));
        }
        Ok(Self {
            destination,
            source,
            source_name: source_name.unwrap_or_else(|| fstype.to_owned()),
            attr: options.attr,
            recursive_attr: options.recursive_attr,
            propagation: options.propagation,
            copy_up: options.copy_up,
            id_map,
        })
    }

    /// Gives a new filesystem the SELinux label `label`. Not those whose files the policy labels
    /// (runc's list); mqueue takes it another way, see [`crate::init::mounts`].
    pub fn label(&mut self, label: &str) {
        if let Source::New { fstype, data, .. } = &mut self.source
            && !matches!(fstype.as_str(), "proc" | "sysfs" | "mqueue")
        {
            data.push((CONTEXT.to_owned(), Some(label.to_owned())));
        }
    }

    /// Whether the mount has an option like `gid=5` with an id that the container's new user
    /// namespace lacks: the kernel would say no more than EINVAL.
    ///
    /// # Errors
    /// The option, named.
    pub fn check_ids(&self, index: usize, maps: &IdMaps) -> Result<(), Error> {
        let Source::New { data, .. } = &self.source else {
            return Ok(());
        };
        for (key, value) in data {
            let id = value.as_deref().and_then(|value| value.parse().ok());
            let (mapped, field) = match (key.as_str(), id) {
                ("uid", Some(id)) => (maps.has_uid(id), "uidMappings"),
                ("gid", Some(id)) => (maps.has_gid(id), "gidMappings"),
                _ => continue,
            };
            if !mapped {
                let problem = format!(
                    "{key}={} is not in linux.{field} (hint: leave the option out)",
                    value.as_deref().unwrap_or_default()
                );
                return Err(Error::config(format!("mounts[{index}].options"), problem));
            }
        }
        Ok(())
    }

    /// In the runtime, before init exists: makes the detached mount of a bind mount that init
    /// could not make itself. In a user namespace it may not reach the source; nobody but the owner
    /// of a filesystem may map its ids.
    ///
    /// What lies below the rootfs may be a mount of the container's, which is yet to be made: init
    /// reaches that, and finds it from its root, where no symlink leads to the host. Not if its ids
    /// are to be mapped: init may not.
    ///
    /// # Errors
    /// The source cannot be opened, or its filesystem cannot be idmapped.
    pub fn open(
        &mut self,
        namespaces: &Namespaces,
        privilege: Privilege,
        rootfs: &Path,
    ) -> Result<(), Error> {
        let userns = namespaces.maps().is_some() || namespaces.user_by_path().is_some();
        if self.id_map.is_none() && !userns {
            return Ok(());
        }
        if let (None, Source::Bind { path, inside, .. }) = (&self.id_map, &mut self.source)
            && rootfs != Path::new("/")
            && let Ok(below) = path.strip_prefix(rootfs)
        {
            *inside = Some(below.to_owned());
            return Ok(());
        }
        self.open_source()?;
        let (Some((source, recursive)), Source::Bind { path, tree: Some(tree), .. }) =
            (&self.id_map, &self.source)
        else {
            return Ok(());
        };
        let made;
        let userns = match (source, namespaces.maps(), namespaces.user_by_path()) {
            (IdMapSource::Own(maps), ..) | (IdMapSource::Container, Some(maps), _) => {
                made = maps.namespace(privilege)?;
                made.as_fd()
            }
            (IdMapSource::Container, None, Some(joined)) => joined,
            (IdMapSource::Container, None, None) => {
                let field = format!("mounts on {}: idmap", self.destination.display());
                return Err(Error::config(field, "needs maps, here or in linux"));
            }
        };
        let attr = MountAttr::default();
        sys::mount_setattr(tree.as_fd(), attr, *recursive, Some(userns)).map_err(|errno| {
            let hint = match errno {
                Errno::INVAL => Some("its filesystem, or this kernel's, takes no id maps"),
                Errno::PERM => Some("only the owner of a filesystem may map its ids"),
                _ => None,
            };
            let failure = Failure::new(format!("map the ids of {}", path.display()), errno);
            Failure {
                hint: hint.map(str::to_owned).or(failure.hint),
                step: failure.step,
                ..failure
            }
            .into()
        })
    }

    /// Makes the detached mount of a bind mount here and now, by the caller's rights.
    ///
    /// # Errors
    /// The source cannot be opened.
    pub fn open_source(&mut self) -> Result<(), Error> {
        let Source::Bind { path, recursive, tree, .. } = &mut self.source else {
            return Ok(());
        };
        let mount = clone_tree(path, *recursive)?;
        // The clone is a peer of the host's mount; what the container mounts below it must not
        // appear on the host. Init does the same for all others at once.
        let slave = MountAttr { propagation: libc::MS_SLAVE, ..MountAttr::default() };
        sys::mount_setattr(mount.as_fd(), slave, true, None)
            .step(|| format!("make {} a slave mount", path.display()))?;
        *tree = Some(mount);
        Ok(())
    }

    /// Places what is written with the bundle in mind: the source of a bind mount is relative to it
    /// (config.md#mounts), and a destination on the host, below the rootfs, means the place inside,
    /// as runc and crun have it.
    pub fn locate(&mut self, bundle: &Path, rootfs: &Path) {
        if let Source::Bind { path, .. } = &mut self.source
            && path.is_relative()
        {
            *path = bundle.join(&*path);
        }
        if rootfs != Path::new("/")
            && let Ok(inside) = self.destination.strip_prefix(rootfs)
        {
            self.destination = Path::new("/").join(inside);
        }
    }

    /// Whether it is made read-only only when the container is complete: devices are made in it,
    /// and other mounts.
    pub fn is_read_only_dev(&self) -> bool {
        self.destination == Path::new("/dev")
            && matches!(self.source, Source::New { .. })
            && (self.attr.set | self.recursive_attr.set) & libc::MOUNT_ATTR_RDONLY != 0
    }

    /// Whether the mount is to be idmapped.
    pub fn is_idmapped(&self) -> bool {
        self.id_map.is_some()
    }
}

/// A path in the container. One that is not absolute is taken from the root, with a warning: the
/// spec has forbidden it since 1.0, but configs have it, and runc takes it.
pub fn from_root(path: &Path, field: impl Fn() -> String) -> PathBuf {
    if !path.is_absolute() && !path.as_os_str().is_empty() {
        log::warn!("{}: {} is not absolute: taken from the root", field(), path.display());
        return Path::new("/").join(path);
    }
    path.to_owned()
}

/// A detached copy of the mount at `path` on the host: open_tree(2), OPEN_TREE_CLONE.
///
/// # Errors
/// Those of open_tree(2).
pub fn clone_tree(path: &Path, recursive: bool) -> Result<OwnedFd, Error> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(rustix::fs::CWD, path, flags).map_err(|errno| {
        let failure = Failure::new(format!("bind {}", path.display()), errno);
        // mount_namespaces(7), restrictions: it would uncover what the mounts below it hide.
        let locked = "without the machine's root, what is mounted below it must come along: rbind";
        let hint = (errno == Errno::INVAL && !recursive).then(|| locked.to_owned());
        Failure { hint: hint.or(failure.hint), step: failure.step, ..failure }.into()
    })
}

/// The same of what `file` refers to.
///
/// # Errors
/// Those of open_tree(2).
pub fn clone_open(file: &OwnedFd, recursive: bool) -> Result<OwnedFd, rustix::io::Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(file, "", flags)
}

/// A detached copy of the rootfs with all mounts below it, for init to attach. Made by the runtime
/// because init, in a user namespace, may not be able to reach it.
///
/// # Errors
/// Those of open_tree(2) and mount_setattr(2).
pub fn clone_rootfs(plan: &Plan) -> Result<OwnedFd, Error> {
    let step = || format!("root.path: bind {}", plan.rootfs_path.display());
    let tree = clone_open(&plan.rootfs, true).step(step)?;
    // What is mounted inside must not appear below the host's rootfs.
    let slave = MountAttr { propagation: libc::MS_SLAVE, ..MountAttr::default() };
    sys::mount_setattr(tree.as_fd(), slave, true, None).step(step)?;
    Ok(tree)
}

/// Opens a directory of the host for resolving paths below it.
///
/// # Errors
/// Those of open(2).
pub fn open_dir(path: &Path) -> Result<OwnedFd, rustix::io::Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

#[derive(Debug, Default)]
struct Options {
    attr: MountAttr,
    recursive_attr: MountAttr,
    propagation: Vec<(u64, bool)>,
    bind: Option<bool>,
    filesystem: Vec<&'static str>,
    data: Vec<(String, Option<String>)>,
    copy_up: bool,
    remount: bool,
    id_map: Option<bool>,
}

impl Options {
    fn add(&mut self, option: &str) {
        let Some((_, effect)) = OPTIONS.iter().find(|(name, _)| *name == option) else {
            // Not ours: the filesystem's.
            let (key, value) = match option.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (option, None),
            };
            if !key.is_empty() {
                self.data.push((key.to_owned(), value));
            }
            return;
        };
        match *effect {
            Effect::Nothing => {}
            Effect::Attr(bits, on) => set(&mut self.attr, bits, on),
            Effect::RecursiveAttr(bits, on) => set(&mut self.recursive_attr, bits, on),
            Effect::Atime(mode) => set_atime(&mut self.attr, mode),
            Effect::RecursiveAtime(mode) => set_atime(&mut self.recursive_attr, mode),
            Effect::Propagation(kind, recursive) => self.propagation.push((kind, recursive)),
            Effect::Bind(recursive) => self.bind = Some(recursive),
            Effect::Filesystem(flag) => self.filesystem.push(flag),
            Effect::NoFilesystem(flag) => self.filesystem.retain(|set| *set != flag),
            Effect::CopyUp => self.copy_up = true,
            Effect::Remount => self.remount = true,
            Effect::IdMap(recursive) => self.id_map = Some(recursive),
        }
    }
}

/// The last word wins.
fn set(attr: &mut MountAttr, bits: u64, on: bool) {
    let (to, from) = match on {
        true => (&mut attr.set, &mut attr.clear),
        false => (&mut attr.clear, &mut attr.set),
    };
    *to |= bits;
    *from &= !bits;
}

/// The mode is a number in a field: the field is cleared, then the mode is set.
fn set_atime(attr: &mut MountAttr, mode: u64) {
    attr.clear |= libc::MOUNT_ATTR__ATIME;
    attr.set = attr.set & !libc::MOUNT_ATTR__ATIME | mode;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(json: &str) -> Result<MountPlan, Error> {
        MountPlan::new(2, &serde_json::from_str(json).unwrap())
    }

    #[test]
    fn the_last_option_wins() {
        let plan = plan(
            r#"{"destination":"/a","type":"tmpfs","source":"tmpfs",
                "options":["ro","nosuid","rw","noatime","strictatime","size=64k","huge"]}"#,
        )
        .unwrap();
        let strict = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_STRICTATIME;
        assert_eq!(plan.attr.set, strict);
        assert_eq!(plan.attr.clear, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR__ATIME);
        let Source::New { fstype, data, .. } = plan.source else { panic!() };
        assert_eq!(fstype, "tmpfs");
        assert_eq!(data, [("size".into(), Some("64k".into())), ("huge".into(), None)]);
    }

    #[test]
    fn wrong_mounts_are_named() {
        let problem = |json| plan(json).unwrap_err().to_string();
        assert_eq!(problem(r#"{"destination":"/a","type":"bind"}"#), "mounts[2].source: is needed");
        assert!(problem(r#"{"destination":"/a"}"#).starts_with("mounts[2].type"));
        assert!(problem(r#"{"destination":""}"#).starts_with("mounts[2].destination"));
        assert!(
            problem(r#"{"destination":"/a","type":"proc","options":["tmpcopyup"]}"#)
                .starts_with("mounts[2].options")
        );
    }

    #[test]
    fn options_are_sorted_and_unique() {
        let names = option_names();
        assert!(names.is_sorted());
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
        assert_eq!(propagation("rslave"), Some((libc::MS_SLAVE, true)));
        assert_eq!(propagation("ro"), None);
    }
}
