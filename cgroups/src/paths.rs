//! Where a container's cgroups are: which hierarchies there are, and the
//! container's place in each.
//!
//! Finding that out reads `/proc` and changes nothing. The rules are runc's:
//!
//! - An absolute `linux.cgroupsPath` is below the root of each hierarchy, as
//!   far as its mount shows it.
//! - A relative one, or the container id where there is none, is below the
//!   runtime's own cgroup. On v2 it is beside the runtime's own cgroup: that
//!   one has the runtime in it, and a v2 cgroup with processes cannot hand
//!   controllers to children ("no internal processes", cgroups(7)).
//! - In the hybrid layout the unified hierarchy is used if, and only if, the
//!   kernel offers controllers there (those that are not mounted as v1). With
//!   none it can limit nothing, and systemd tracks its own services in it:
//!   moving processes there would only take them out of their service.

use std::borrow::Cow;
use std::path::{Component, Path, PathBuf};

use rustix::fs::CWD;
use serde::{Deserialize, Serialize};

use crate::dir;
use crate::error::Error;
use crate::mountinfo::{self, Membership, Mount};

/// A container's cgroups. Belongs in the container's saved state: all later
/// operations find the cgroups through it, whatever is mounted by then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    hierarchies: Vec<Hierarchy>,
}

/// One mounted hierarchy and the container's cgroup in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    v2: bool,
    name: String,
    controllers: Vec<String>,
    mount_point: PathBuf,
    path: PathBuf,
}

impl Paths {
    pub(crate) fn new(hierarchies: Vec<Hierarchy>) -> Self {
        Self { hierarchies }
    }

    /// Whether the unified hierarchy is the only one (not hybrid).
    pub fn is_v2(&self) -> bool {
        self.hierarchies.iter().all(Hierarchy::is_v2)
    }

    /// Every hierarchy that the container is a member of, v1 and unified.
    pub fn hierarchies(&self) -> &[Hierarchy] {
        &self.hierarchies
    }
}

#[cfg(test)]
impl Paths {
    /// These hierarchies.
    pub(crate) fn for_test(hierarchies: Vec<Hierarchy>) -> Self {
        Self { hierarchies }
    }
}

impl Hierarchy {
    /// Whether this is the unified hierarchy.
    pub fn is_v2(&self) -> bool {
        self.v2
    }

    /// The name as the kernel has it: "cpu,cpuacct", "name=systemd", or ""
    /// for the unified hierarchy. It is the option of a v1 mount, too.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The controllers: of a v1 hierarchy those mounted with it (none if it is
    /// a named one), of the unified hierarchy those that its root offers.
    pub fn controllers(&self) -> &[String] {
        &self.controllers
    }

    /// Where the hierarchy is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// The container's cgroup, relative to the mount point; never empty.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The container's cgroup as an absolute path, such as a bind mount's
    /// source.
    pub fn full_path(&self) -> PathBuf {
        self.mount_point.join(&self.path)
    }

    /// The cgroup's parent, relative to the mount point (empty for the mount
    /// point itself), and its name.
    pub(crate) fn split(&self) -> (&Path, &Path) {
        let parent = self.path.parent().unwrap_or(Path::new(""));
        let name = self.path.file_name().map_or(self.path.as_path(), Path::new);
        (parent, name)
    }

    pub(crate) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    pub(crate) fn is_v1_with(&self, controller: &str) -> bool {
        !self.v2 && self.has(controller)
    }

    /// The cgroup `c` of a hierarchy at `mount_point`.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn for_test(v2: bool, controllers: &[&str], mount_point: &Path) -> Self {
        Self {
            v2,
            name: controllers.join(","),
            controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
            mount_point: mount_point.to_owned(),
            path: "c".into(),
        }
    }

    /// The same hierarchy, another cgroup.
    #[cfg(test)]
    pub(crate) fn moved(self, path: &str) -> Self {
        Self { path: path.into(), ..self }
    }
}

/// Finds the cgroups of the container `id` with the given `linux.cgroupsPath`.
///
/// Reads `/proc/self/mountinfo`, `/proc/self/cgroup` and, where the unified
/// hierarchy is mounted, its list of controllers; creates nothing.
///
/// # Errors
///
/// [`Error::CgroupsPath`] for a path (or id) that has a `..` component or
/// names no cgroup below a hierarchy's root; [`Error::NotMounted`];
/// [`Error::Read`].
pub fn resolve(cgroups_path: Option<&Path>, id: &str) -> Result<Paths, Error> {
    find(&Wanted::parse(cgroups_path, id)?)
}

fn find(wanted: &Wanted) -> Result<Paths, Error> {
    let mounts = mountinfo::cgroup_mounts(&read("/proc/self/mountinfo")?);
    let memberships = mountinfo::memberships(&read("/proc/self/cgroup")?);
    place(wanted, &mounts, &memberships, |mount| {
        let path = mount.join("cgroup.controllers");
        dir::read_file(CWD, &path).map_err(|errno| Error::Read { path, errno })
    })
}

/// The cgroups of a unit of systemd's: below the root of each hierarchy, also of a unified one
/// without controllers, in which systemd tracks its units.
///
/// # Errors
///
/// As [`resolve`].
pub(crate) fn of_unit(path: &Path) -> Result<Paths, Error> {
    let wanted = Wanted { unit: true, ..Wanted::parse(Some(path), "")? };
    find(&wanted)
}

/// The cgroup that the configuration asks for, checked.
#[derive(Debug)]
struct Wanted {
    absolute: bool,
    /// Of systemd's unit.
    unit: bool,
    /// Normal components only, at least one.
    path: PathBuf,
}

impl Wanted {
    fn parse(cgroups_path: Option<&Path>, id: &str) -> Result<Self, Error> {
        let given = match cgroups_path {
            Some(path) if !path.as_os_str().is_empty() => path,
            _ => Path::new(id),
        };
        let error = |reason| Error::CgroupsPath { path: given.to_owned(), reason };
        let mut path = PathBuf::new();
        for component in given.components() {
            match component {
                Component::Normal(name) => path.push(name),
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir => return Err(error("must not have a .. component")),
                Component::Prefix(_) => return Err(error("is not a path")),
            }
        }
        if path.as_os_str().is_empty() {
            return Err(error("names no cgroup"));
        }
        if path.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(error("must not have a NUL byte"));
        }
        Ok(Self { absolute: given.is_absolute(), unit: false, path })
    }
}

/// The pure part of [`resolve`], for the fuzz target.
#[cfg(fuzzing)]
pub(crate) fn place_in(
    path: &Path,
    mounts: &[Mount],
    memberships: &[Membership],
) -> Result<Paths, Error> {
    let wanted = Wanted::parse(Some(path), "id")?;
    place(&wanted, mounts, memberships, |_| Ok("cpu memory pids".to_owned()))
}

/// The pure part of [`resolve`]. `unified_controllers` reads the list in the
/// unified mount's root.
fn place(
    wanted: &Wanted,
    mounts: &[Mount],
    memberships: &[Membership],
    unified_controllers: impl Fn(&Path) -> Result<String, Error>,
) -> Result<Paths, Error> {
    let mut hierarchies = Vec::with_capacity(memberships.len());
    let mut unified = None;
    for member in memberships {
        let Some(mount) = mount_of(member, mounts) else {
            continue;
        };
        let v2 = member.name.is_empty();
        let hierarchy = Hierarchy {
            v2,
            name: member.name.clone(),
            controllers: v1_controllers(&member.name),
            mount_point: mount.mount_point.clone(),
            path: path_below(wanted, mount, member),
        };
        if v2 {
            unified = Some(hierarchy);
        } else {
            hierarchies.push(hierarchy);
        }
    }
    if let Some(mut unified) = unified {
        let controllers = unified_controllers(&unified.mount_point)?;
        unified.controllers = controllers.split_whitespace().map(str::to_owned).collect();
        if wanted.unit || hierarchies.is_empty() || !unified.controllers.is_empty() {
            hierarchies.push(unified);
        }
    }
    if hierarchies.is_empty() {
        return Err(Error::NotMounted);
    }
    Ok(Paths { hierarchies })
}

/// The mount that shows this hierarchy. There may be more than one, bind
/// mounts in other containers' file systems for example: the usual place wins,
/// then the first.
fn mount_of<'a>(member: &Membership, mounts: &'a [Mount]) -> Option<&'a Mount> {
    let shows = |mount: &&Mount| {
        if member.name.is_empty() {
            return mount.v2;
        }
        let has = |name: &str| mount.options.iter().any(|option| option == name);
        !mount.v2 && member.name.split(',').all(has)
    };
    let usual = |mount: &&Mount| mount.mount_point.starts_with("/sys/fs/cgroup");
    mounts.iter().filter(shows).find(usual).or_else(|| mounts.iter().find(shows))
}

fn v1_controllers(name: &str) -> Vec<String> {
    name.split(',')
        .filter(|name| !name.is_empty() && !name.contains('='))
        .map(str::to_owned)
        .collect()
}

/// The container's cgroup relative to the mount point.
fn path_below(wanted: &Wanted, mount: &Mount, member: &Membership) -> PathBuf {
    if wanted.absolute {
        return wanted.path.clone();
    }
    let own = own_cgroup(mount, member);
    let base = if mount.v2 { own.parent().unwrap_or(Path::new("")) } else { &own };
    base.join(&wanted.path)
}

/// Our own cgroup relative to the mount point.
///
/// A mount may show only a part of the hierarchy (its root field): in a
/// container without a cgroup namespace of its own, `/proc/self/cgroup` has
/// the host's path and the mount's root is the container's cgroup. Where our
/// cgroup is not below that root (a mount from outside of our cgroup
/// namespace), what the mount shows is the best place there is; runc does the
/// same.
fn own_cgroup<'a>(mount: &Mount, member: &'a Membership) -> Cow<'a, Path> {
    let Ok(below) = member.path.strip_prefix(&mount.root) else {
        return Cow::Borrowed(Path::new(""));
    };
    let normal = |component: &Component<'_>| matches!(component, Component::Normal(_));
    if below.components().all(|component| normal(&component)) {
        Cow::Borrowed(below)
    } else {
        // "/../x": we are outside of our cgroup namespace's root.
        Cow::Borrowed(Path::new(""))
    }
}

fn read(path: &str) -> Result<Vec<u8>, Error> {
    dir::read_bytes(CWD, path).map_err(|errno| Error::Read { path: path.into(), errno })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/systemd rw shared:9 - cgroup cgroup rw,xattr,name=systemd
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/memory rw shared:11 - cgroup cgroup rw,memory
35 99 0:31 /other /var/lib/x/sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
";
    const V1_SELF: &str = "\
4:memory:/user.slice/session-1.scope
3:cpu,cpuacct:/user.slice
1:name=systemd:/user.slice/user-0.slice
";
    const UNIFIED: &str = "36 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    const V2: &str = "36 23 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";

    fn place_text(
        path: Option<&str>,
        mountinfo: &str,
        own: &str,
        unified: &str,
    ) -> Result<Paths, Error> {
        let wanted = Wanted::parse(path.map(Path::new), "web1")?;
        place(
            &wanted,
            &mountinfo::cgroup_mounts(mountinfo.as_bytes()),
            &mountinfo::memberships(own.as_bytes()),
            |_| Ok(unified.to_owned()),
        )
    }

    fn full(paths: &Paths) -> Vec<String> {
        let text = |hierarchy: &Hierarchy| hierarchy.full_path().display().to_string();
        paths.hierarchies().iter().map(text).collect()
    }

    #[test]
    fn v1_absolute_is_below_each_root() {
        let paths = place_text(Some("/pods//a/./b/"), V1, V1_SELF, "").unwrap();
        assert!(!paths.is_v2());
        assert_eq!(
            full(&paths),
            [
                "/sys/fs/cgroup/memory/pods/a/b",
                "/sys/fs/cgroup/cpu,cpuacct/pods/a/b",
                "/sys/fs/cgroup/systemd/pods/a/b"
            ]
        );
        let cpu = &paths.hierarchies()[1];
        assert_eq!(cpu.name(), "cpu,cpuacct");
        assert_eq!(cpu.controllers(), ["cpu", "cpuacct"]);
        assert_eq!(cpu.path(), Path::new("pods/a/b"));
        assert!(paths.hierarchies()[2].controllers().is_empty());
    }

    #[test]
    fn v1_relative_or_absent_is_below_our_own() {
        let paths = place_text(Some("a"), V1, V1_SELF, "").unwrap();
        assert_eq!(full(&paths)[1], "/sys/fs/cgroup/cpu,cpuacct/user.slice/a");
        let paths = place_text(None, V1, V1_SELF, "").unwrap();
        assert_eq!(full(&paths)[0], "/sys/fs/cgroup/memory/user.slice/session-1.scope/web1");
        assert_eq!(place_text(Some(""), V1, V1_SELF, "").unwrap(), paths);
    }

    #[test]
    fn v1_in_a_container_takes_the_mounts_root_into_account() {
        let mounts = "\
40 39 0:31 /docker/c0ffee /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory
41 39 0:32 /docker/c0ffee /sys/fs/cgroup/pids ro - cgroup cgroup rw,pids
";
        let own = "5:pids:/docker/c0ffee\n4:memory:/docker/c0ffee/inner\n";
        let paths = place_text(None, mounts, own, "").unwrap();
        assert_eq!(full(&paths), ["/sys/fs/cgroup/pids/web1", "/sys/fs/cgroup/memory/inner/web1"]);
        let paths = place_text(Some("/x"), mounts, own, "").unwrap();
        assert_eq!(full(&paths)[1], "/sys/fs/cgroup/memory/x");
    }

    #[test]
    fn a_mount_from_outside_the_cgroup_namespace_is_used_from_its_root() {
        let mounts = "40 39 0:31 /../.. /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let paths = place_text(None, mounts, "4:memory:/\n", "").unwrap();
        assert_eq!(full(&paths), ["/sys/fs/cgroup/memory/web1"]);
        let mounts = "40 39 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let paths = place_text(None, mounts, "4:memory:/../x\n", "").unwrap();
        assert_eq!(full(&paths), ["/sys/fs/cgroup/memory/web1"]);
    }

    #[test]
    fn v2_relative_is_beside_our_own() {
        let own = "0::/user.slice/user-0.slice/session-1.scope\n";
        let paths = place_text(None, V2, own, "cpu memory pids\n").unwrap();
        assert!(paths.is_v2());
        assert_eq!(full(&paths), ["/sys/fs/cgroup/user.slice/user-0.slice/web1"]);
        assert_eq!(paths.hierarchies()[0].controllers(), ["cpu", "memory", "pids"]);
        let paths = place_text(None, V2, "0::/\n", "cpu\n").unwrap();
        assert_eq!(full(&paths), ["/sys/fs/cgroup/web1"]);
        let paths = place_text(Some("/a/b"), V2, own, "cpu\n").unwrap();
        assert_eq!(full(&paths), ["/sys/fs/cgroup/a/b"]);
    }

    #[test]
    fn v2_without_controllers_is_still_used_when_it_is_the_only_one() {
        assert!(place_text(None, V2, "0::/\n", "\n").unwrap().is_v2());
    }

    #[test]
    fn hybrid_joins_unified_only_if_it_has_controllers() {
        let mounts = format!("{V1}{UNIFIED}");
        let own = format!("{V1_SELF}0::/init.scope\n");
        let paths = place_text(Some("/a"), &mounts, &own, "hugetlb\n").unwrap();
        assert!(!paths.is_v2());
        let unified = paths.hierarchies().last().unwrap();
        assert!(unified.is_v2());
        assert_eq!(unified.name(), "");
        assert_eq!(unified.full_path(), Path::new("/sys/fs/cgroup/unified/a"));
        let paths = place_text(Some("/a"), &mounts, &own, "\n").unwrap();
        assert!(!paths.hierarchies().iter().any(Hierarchy::is_v2));
    }

    #[test]
    fn paths_that_climb_or_name_nothing_are_refused() {
        for path in ["/a/../b", "..", "../x", "/..", "a/.."] {
            let error = place_text(Some(path), V1, V1_SELF, "").unwrap_err().to_string();
            assert_eq!(error, format!("linux.cgroupsPath {path}: must not have a .. component"));
        }
        for path in ["/", ".", "//", "/./"] {
            let error = place_text(Some(path), V1, V1_SELF, "").unwrap_err().to_string();
            assert!(error.starts_with("linux.cgroupsPath"), "{error}");
            assert!(error.ends_with("names no cgroup"), "{error}");
        }
        assert!(place_text(Some("a\0b"), V1, V1_SELF, "").is_err());
        assert!(matches!(place_text(None, "", V1_SELF, ""), Err(Error::NotMounted)));
    }

    #[test]
    fn a_unit_is_in_a_unified_hierarchy_without_controllers_too() {
        let mounts = mountinfo::cgroup_mounts(format!("{V1}{UNIFIED}").as_bytes());
        let own = mountinfo::memberships(format!("{V1_SELF}0::/init.scope\n").as_bytes());
        let path = Path::new("/a.slice/b.scope");
        let wanted = Wanted { unit: true, ..Wanted::parse(Some(path), "").unwrap() };
        let paths = place(&wanted, &mounts, &own, |_| Ok(String::new())).unwrap();
        assert_eq!(full(&paths).last().unwrap(), "/sys/fs/cgroup/unified/a.slice/b.scope");
    }

    #[test]
    fn state_survives_json() {
        let paths = place_text(Some("/a"), V1, V1_SELF, "").unwrap();
        let json = serde_json::to_string(&paths).unwrap();
        assert_eq!(serde_json::from_str::<Paths>(&json).unwrap(), paths);
    }
}
