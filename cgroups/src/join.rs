//! How a further process gets into a running container's cgroup (`exec`).

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::dir;
use crate::error::Error;
use crate::paths::{Hierarchy, Paths};

const FLAG: &str = "--cgroup";

/// The cgroups below the container's own that the process is to be in; by default none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Below {
    all: PathBuf,
    /// By controller, v1 only.
    each: Vec<(String, PathBuf)>,
    asked: bool,
}

impl Below {
    /// Reads runc's `[CONTROLLER[,CONTROLLER...]:]PATH`, one or more: without a controller the path
    /// is meant in every hierarchy, and stands alone.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`]: a path climbs, a controller stands there twice.
    pub fn parse<S: AsRef<str>>(args: &[S]) -> Result<Self, Error> {
        let mut below = Self { asked: !args.is_empty(), ..Self::default() };
        for arg in args.iter().map(AsRef::as_ref) {
            let Some((controllers, path)) = arg.split_once(':') else {
                if args.len() > 1 {
                    return Err(invalid(arg, "without a controller it must stand alone"));
                }
                below.all = normal(arg, arg)?;
                continue;
            };
            let path = normal(arg, path)?;
            for controller in controllers.split(',') {
                if controller.is_empty() || path.to_string_lossy().contains(':') {
                    return Err(invalid(arg, "is not CONTROLLER[,CONTROLLER...]:PATH"));
                }
                if below.each.iter().any(|(other, _)| other == controller) {
                    return Err(invalid(arg, "names a controller for the second time"));
                }
                below.each.push((controller.to_owned(), path.clone()));
            }
        }
        Ok(below)
    }

    /// Whether none was asked for, not even the container's own (`/`): then the process may be in
    /// another one where that takes none.
    pub fn is_default(&self) -> bool {
        !self.asked
    }

    fn path_in(&self, hierarchy: &Hierarchy) -> &Path {
        let own = self.each.iter().find(|(controller, _)| {
            hierarchy.is_v1_with(controller) || hierarchy.name() == format!("name={controller}")
        });
        own.map_or(&self.all, |(_, path)| path)
    }

    /// A controller that no hierarchy of the container has is an error, as for runc.
    fn check(&self, paths: &Paths) -> Result<(), Error> {
        let known = |controller: &str| {
            let named = format!("name={controller}");
            let mut all = paths.hierarchies().iter();
            all.any(|one| one.is_v1_with(controller) || one.name() == named)
        };
        match self.each.iter().find(|(controller, _)| !known(controller)) {
            None => Ok(()),
            Some((controller, _)) => Err(invalid(
                controller,
                "unknown controller (the container is in no cgroup v1 of it)",
            )),
        }
    }
}

fn invalid(value: &str, reason: &'static str) -> Error {
    Error::Invalid { field: FLAG.to_owned(), value: value.to_owned(), reason: reason.into() }
}

/// Relative to the container's cgroup, whether it begins with a slash or not.
fn normal(arg: &str, path: &str) -> Result<PathBuf, Error> {
    let mut normal = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::NotBelow { path: path.to_owned() });
            }
        }
    }
    if path.contains('\0') {
        return Err(invalid(arg, "must not have a NUL byte"));
    }
    Ok(normal)
}

/// The container's cgroups, opened for a process that is to be in them; close-on-exec.
#[derive(Debug)]
pub struct Entrances {
    /// One per v1 hierarchy, for [`crate::enter`].
    pub v1: Vec<OwnedFd>,
    /// The cgroup in the unified hierarchy (O_PATH), for CLONE_INTO_CGROUP; none where the
    /// container has none.
    pub unified: Option<OwnedFd>,
}

impl Entrances {
    /// Opens the container's cgroup, or those in it that `below` names, in every hierarchy: one
    /// system call each.
    ///
    /// # Errors
    ///
    /// [`Error::Join`] also if one is not there any more; [`Error::Invalid`].
    pub fn open(paths: &Paths, below: &Below) -> Result<Self, Error> {
        below.check(paths)?;
        let mut entrances = Self { v1: Vec::new(), unified: None };
        for hierarchy in paths.hierarchies() {
            let path = hierarchy.full_path().join(below.path_in(hierarchy));
            let opened = match hierarchy.is_v2() {
                true => dir::open_mount(&path).map(|dir| entrances.unified = Some(dir)),
                false => open_tasks(&path).map(|file| entrances.v1.push(file)),
            };
            opened.map_err(|errno| Error::Join { path, errno })?;
        }
        Ok(entrances)
    }
}

/// That the unified cgroup which `below` names takes no process, in words.
pub fn refused(paths: &Paths, below: &Below, errno: Errno) -> Error {
    let unified = paths.hierarchies().iter().find(|hierarchy| hierarchy.is_v2());
    let path = unified.map(|hierarchy| hierarchy.full_path().join(below.path_in(hierarchy)));
    Error::Join { path: path.unwrap_or_default(), errno }
}

fn open_tasks(cgroup: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, cgroup.join("tasks"), flags, Mode::empty())
}

/// The cgroup that process `pid` of the container is in now, in the unified hierarchy (O_PATH); it
/// may have moved itself below the container's. None if the container has none there.
///
/// # Errors
///
/// [`Error::Read`], [`Error::Open`].
pub fn unified_of(paths: &Paths, pid: i32) -> Result<Option<OwnedFd>, Error> {
    let Some(hierarchy) = paths.hierarchies().iter().find(|hierarchy| hierarchy.is_v2()) else {
        return Ok(None);
    };
    let file = PathBuf::from(format!("/proc/{pid}/cgroup"));
    let text =
        dir::read_file(CWD, &file).map_err(|errno| Error::Read { path: file.clone(), errno })?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = own.ok_or(Error::Read { path: file, errno: Errno::NODATA })?;
    let path = hierarchy.mount_point().join(own);
    dir::open_mount(&path).map(Some).map_err(|errno| Error::Open { path, errno })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runcs_notation() {
        assert!(Below::parse::<&str>(&[]).unwrap().is_default());
        let own = Below::parse(&["/"]).unwrap();
        assert!(!own.is_default() && own.all.as_os_str().is_empty());
        let all = Below::parse(&["/a//b/"]).unwrap();
        let memory = Hierarchy::for_test(false, &["memory"], Path::new("/m"));
        let cpu = Hierarchy::for_test(false, &["cpu", "cpuacct"], Path::new("/c"));
        assert_eq!(all.path_in(&memory), Path::new("a/b"));
        let each = Below::parse(&["cpu,pids:x", "memory:/y"]).unwrap();
        assert_eq!(each.path_in(&memory), Path::new("y"));
        assert_eq!(each.path_in(&cpu), Path::new("x"));
        assert_eq!(Below::parse(&["pids:z"]).unwrap().path_in(&cpu), Path::new(""));
    }

    #[test]
    fn nothing_gets_out() {
        let problem = |args: &[&str]| Below::parse(args).unwrap_err().to_string();
        for path in ["..", "../other", "/..", "a/../../b", "memory:../x"] {
            assert!(problem(&[path]).contains("is not a sub cgroup path"), "{path}");
        }
        assert!(problem(&["a", "b"]).contains("stand alone"));
        assert!(problem(&["memory:a", "cpu,memory:b"]).contains("second time"));
        assert!(problem(&[":a"]).contains("is not CONTROLLER"));
        assert!(problem(&["cpu:a:b"]).contains("is not CONTROLLER"));
    }

    #[test]
    fn one_descriptor_per_hierarchy() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("c/sub")).unwrap();
        std::fs::write(root.path().join("c/tasks"), "").unwrap();
        let v1 = Hierarchy::for_test(false, &["memory"], root.path());
        let v2 = Hierarchy::for_test(true, &["cpu"], root.path());
        let paths = Paths::for_test(vec![v1, v2]);
        let entrances = Entrances::open(&paths, &Below::default()).unwrap();
        assert_eq!((entrances.v1.len(), entrances.unified.is_some()), (1, true));
        let open = |args: &[&str]| {
            Entrances::open(&paths, &Below::parse(args).unwrap()).unwrap_err().to_string()
        };
        assert!(open(&["gone"]).contains("c/gone/cgroup.procs: no such file"));
        assert!(open(&["pids:gone"]).contains("unknown controller "));
    }
}
