//! A container's cgroups, open: made, entered and removed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;
use rustix::io::Errno;

use crate::error::{Error, Hint};
use crate::paths::{Hierarchy, Paths};
use crate::{cpuset, dir, events, resources, subtree};

/// How long [`Cgroup::remove`] waits for processes that are already dying.
const REMOVE_PATIENCE: Duration = Duration::from_secs(2);

/// A container's cgroup in every hierarchy of its [`Paths`], held open.
///
/// Owns two descriptors per hierarchy, close-on-exec: the cgroup and its
/// parent. Dropping it closes them and changes nothing.
#[derive(Debug, Default)]
pub struct Cgroup {
    pub(crate) members: Vec<Member>,
}

/// The cgroup in one hierarchy.
#[derive(Debug)]
pub(crate) struct Member {
    pub hierarchy: Hierarchy,
    pub parent: OwnedFd,
    pub dir: OwnedFd,
}

impl Cgroup {
    /// Makes the container's cgroup in every hierarchy, parents included.
    ///
    /// An existing cgroup is used if it has no processes and is not frozen. On
    /// v1, each new cpuset takes its parent's CPUs and memory nodes. With v2
    /// alone, all controllers are enabled for it in its ancestors, as runc
    /// does; in the hybrid layout, those that a limit asks for, when it is
    /// applied.
    ///
    /// # Errors
    ///
    /// [`Error::Create`], [`Error::NotEmpty`], [`Error::Frozen`]; whatever was
    /// made has been removed again.
    pub fn create(paths: &Paths) -> Result<Self, Error> {
        // Not the two steps below: a failure must undo both.
        let cgroup =
            Self { members: create_members(paths.hierarchies().iter(), Found::MustBeUnused)? };
        cgroup.enable_controllers(paths);
        Ok(cgroup)
    }

    /// As [`Cgroup::create`], but in the unified hierarchy only: enough for a process to be born
    /// in it (CLONE_INTO_CGROUP). [`Cgroup::create_v1`] makes the rest.
    ///
    /// # Errors
    ///
    /// As for [`Cgroup::create`].
    pub fn create_unified(paths: &Paths) -> Result<Self, Error> {
        let unified = paths.hierarchies().iter().filter(|hierarchy| hierarchy.is_v2());
        let cgroup = Self { members: create_members(unified, Found::MustBeUnused)? };
        cgroup.enable_controllers(paths);
        Ok(cgroup)
    }

    fn enable_controllers(&self, paths: &Paths) {
        if let Some(member) = self.unified().filter(|_| paths.is_v2()) {
            subtree::enable(&member.hierarchy, None);
        }
    }

    /// Makes what [`Cgroup::create_unified`] has left.
    ///
    /// # Errors
    ///
    /// As for [`Cgroup::create`]; the unified hierarchy's cgroup stays.
    pub fn create_v1(&mut self, paths: &Paths) -> Result<(), Error> {
        let v1 = paths.hierarchies().iter().filter(|hierarchy| !hierarchy.is_v2());
        self.members.extend(create_members(v1, Found::MustBeUnused)?);
        Ok(())
    }

    /// Opens the cgroup of systemd's unit, and makes it in the hierarchies where systemd has not:
    /// the container's init may be in it already.
    ///
    /// # Errors
    ///
    /// [`Error::Create`]; whatever was made has been removed again.
    pub(crate) fn adopt(paths: &Paths) -> Result<Self, Error> {
        let cgroup = Self { members: create_members(paths.hierarchies().iter(), Found::IsOurs)? };
        cgroup.enable_controllers(paths);
        Ok(cgroup)
    }

    /// Opens the container's cgroup. A hierarchy where it does not exist (any
    /// more) is left out: `delete` has to work on what a crash left.
    ///
    /// # Errors
    ///
    /// [`Error::Open`].
    pub fn open(paths: &Paths) -> Result<Self, Error> {
        Self::open_some(paths.hierarchies().iter())
    }

    /// As [`Cgroup::open`], but only what [`Cgroup::update`] needs for these limits.
    ///
    /// # Errors
    ///
    /// [`Error::Open`].
    pub fn open_for(paths: &Paths, resources: &LinuxResources) -> Result<Self, Error> {
        let concerned = |hierarchy: &&Hierarchy| resources::concern(resources, hierarchy);
        Self::open_some(paths.hierarchies().iter().filter(concerned))
    }

    /// As [`Cgroup::open`], but only the hierarchy of one controller.
    ///
    /// # Errors
    ///
    /// [`Error::Open`].
    pub(crate) fn open_with(paths: &Paths, controller: &str) -> Result<Self, Error> {
        Self::open_some(paths.hierarchies().iter().filter(|hierarchy| hierarchy.has(controller)))
    }

    fn open_some<'a>(hierarchies: impl Iterator<Item = &'a Hierarchy>) -> Result<Self, Error> {
        let mut members = Vec::with_capacity(hierarchies.size_hint().1.unwrap_or_default());
        for hierarchy in hierarchies {
            match open_member(hierarchy) {
                Ok(member) => members.push(member),
                Err(Errno::NOENT) => {}
                Err(errno) => {
                    return Err(Error::Open { path: hierarchy.full_path(), errno });
                }
            }
        }
        Ok(Self { members })
    }

    /// Where it is: the hierarchies in which it has been made or opened.
    pub fn paths(&self) -> Paths {
        Paths::new(self.members.iter().map(|member| member.hierarchy.clone()).collect())
    }

    /// Whether the cgroup was there in any hierarchy when it was opened.
    pub fn exists(&self) -> bool {
        !self.members.is_empty()
    }

    /// Moves a process, all its threads, into the cgroup in every hierarchy.
    /// The children that it has already stay where they are.
    ///
    /// # Errors
    ///
    /// [`Error::Attach`]; the process may then be in some of the hierarchies.
    pub fn attach(&self, pid: i32) -> Result<(), Error> {
        self.members.iter().try_for_each(|member| member.attach(pid))
    }

    /// The v1 hierarchies' `tasks` files, open for writing, close-on-exec, for [`enter`].
    ///
    /// # Errors
    ///
    /// [`Error::Open`].
    pub fn entrances(&self) -> Result<Vec<OwnedFd>, Error> {
        let v1 = self.members.iter().filter(|member| !member.hierarchy.is_v2());
        v1.map(|member| {
            dir::open_for_writing(&member.dir, "tasks")
                .map_err(|errno| Error::Open { path: member.path().join("tasks"), errno })
        })
        .collect()
    }

    /// The cgroup in the unified hierarchy (O_PATH), for CLONE_INTO_CGROUP,
    /// clone(2), Linux 5.7; none on v1, and in a hybrid layout where the
    /// unified hierarchy is not used.
    pub fn v2_dir(&self) -> Option<BorrowedFd<'_>> {
        self.unified().map(|member| member.dir.as_fd())
    }

    /// As [`Cgroup::remove`], without waiting; false if something is left: processes that are
    /// alive or dying, or descendants.
    pub fn remove_now(&self) -> bool {
        let left = |member: &&Member| {
            dir::remove_empty(&member.parent, member.hierarchy.split().1).is_err()
        };
        self.members.iter().filter(left).count() == 0
    }

    /// Removes the cgroup from every hierarchy, descendants that were made
    /// from inside included. Kills nothing. That it is gone already is
    /// success.
    ///
    /// A hierarchy that still has processes is waited for, two seconds in all:
    /// the kernel takes them out only as they finish dying.
    ///
    /// # Errors
    ///
    /// [`Error::Remove`] for the first hierarchy that failed; the others have
    /// been removed all the same.
    pub fn remove(&self) -> Result<(), Error> {
        let deadline = Instant::now() + REMOVE_PATIENCE;
        let remove =
            |member: &Member| remove_tree(&member.parent, &member.hierarchy, deadline).err();
        first_error(self.members.iter().filter_map(remove))
    }

    pub(crate) fn unified(&self) -> Option<&Member> {
        self.members.iter().find(|member| member.hierarchy.is_v2())
    }

    /// The member of the v1 hierarchy that has the controller.
    pub(crate) fn v1(&self, controller: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.hierarchy.is_v1_with(controller))
    }
}

/// Moves the calling thread, which must be its process's only one, into a v1 cgroup through one of
/// its [`Cgroup::entrances`].
///
/// Much cheaper than [`Cgroup::attach`]: a thread that moves itself cannot end or fork meanwhile,
/// so the kernel does without the lock of all cgroups, whose taking waits for an RCU grace period
/// (cgroup_procs_write_start() in kernel/cgroup/cgroup.c). Who may enter was decided when the
/// file was opened, so a child may do it that has given up its privileges.
///
/// # Errors
///
/// Those of write(2).
pub fn enter(entrance: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::io::write(entrance, b"0").map(drop)
}

/// As [`Cgroup::remove`], without opening the cgroups first.
///
/// # Errors
///
/// [`Error::Remove`].
pub fn remove(paths: &Paths) -> Result<(), Error> {
    let deadline = Instant::now() + REMOVE_PATIENCE;
    let remove = |hierarchy: &Hierarchy| match open_parent(hierarchy) {
        Ok(parent) => remove_tree(&parent, hierarchy, deadline).err(),
        Err(Errno::NOENT) => None,
        Err(errno) => Some(remove_error(hierarchy, errno)),
    };
    first_error(paths.hierarchies().iter().filter_map(remove))
}

/// All of them are tried; the first failure is reported.
fn first_error(mut errors: impl Iterator<Item = Error>) -> Result<(), Error> {
    let first = errors.next();
    errors.for_each(drop);
    first.map_or(Ok(()), Err)
}

impl Member {
    pub(crate) fn path(&self) -> PathBuf {
        self.hierarchy.full_path()
    }

    fn attach(&self, pid: i32) -> Result<(), Error> {
        let value = pid.to_string();
        dir::write_file(&self.dir, "cgroup.procs", value.as_bytes()).map_err(|errno| {
            let hint = match errno {
                Errno::BUSY if self.hierarchy.is_v2() => {
                    "a v2 cgroup that gives controllers to its children takes no processes"
                }
                Errno::OPNOTSUPP => "the cgroup is threaded or invalid, see its cgroup.type",
                Errno::NOSPC => "its cpuset has no CPUs or no memory nodes",
                _ => {
                    return Error::Attach { pid, path: self.path(), errno, hint: Hint::none() };
                }
            };
            Error::Attach { pid, path: self.path(), errno, hint: Hint::new(hint) }
        })
    }
}

/// The directories made so far, for a failure.
#[derive(Default)]
struct Made<'a> {
    cgroups: Vec<&'a Hierarchy>,
    /// Mount point and path below it; outermost first.
    parents: Vec<(&'a Path, PathBuf)>,
}

impl Made<'_> {
    /// Nobody is in them yet, so a plain rmdir(2) does; a parent that somebody
    /// else has begun to use stays.
    fn undo(&self) {
        let rmdir = |path: PathBuf| {
            if let Err(error) = std::fs::remove_dir(&path) {
                log::debug!("undo: remove cgroup {}: {error}", path.display());
            }
        };
        self.cgroups.iter().rev().for_each(|hierarchy| rmdir(hierarchy.full_path()));
        self.parents.iter().rev().for_each(|(mount, path)| rmdir(mount.join(path)));
    }
}

/// What goes for a cgroup that is there already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    MustBeUnused,
    IsOurs,
}

/// All or none.
fn create_members<'a>(
    hierarchies: impl Iterator<Item = &'a Hierarchy>,
    found: Found,
) -> Result<Vec<Member>, Error> {
    let mut made = Made::default();
    let mut members = Vec::new();
    for hierarchy in hierarchies {
        match create_member(hierarchy, found, &mut made) {
            Ok(member) => members.push(member),
            Err(error) => {
                made.undo();
                return Err(error);
            }
        }
    }
    Ok(members)
}

/// In one hierarchy.
pub(crate) fn create_member_alone(hierarchy: &Hierarchy) -> Result<Member, Error> {
    let mut made = Made::default();
    create_member(hierarchy, Found::MustBeUnused, &mut made).inspect_err(|_| made.undo())
}

fn create_member<'a>(
    hierarchy: &'a Hierarchy,
    found: Found,
    made: &mut Made<'a>,
) -> Result<Member, Error> {
    let failed = |errno| create_error(hierarchy, errno);
    let (parents, name) = hierarchy.split();
    let mut attempts = 3;
    let (parent, new) = loop {
        let mount = dir::open_mount(hierarchy.mount_point()).map_err(failed)?;
        let parent = match dir::open_below(mount, parents) {
            Err(Errno::NOENT) => make_parents(hierarchy, parents, made),
            result => result,
        };
        attempts -= 1;
        match parent.and_then(|parent| dir::make(&parent, name).map(|new| (parent, new))) {
            // Somebody removed an empty parent between two of our steps.
            Err(Errno::NOENT) if attempts > 0 => {}
            result => break result.map_err(failed)?,
        }
    };
    if new {
        made.cgroups.push(hierarchy);
    }
    let dir = dir::open_child(&parent, name).map_err(failed)?;
    let member = Member { hierarchy: hierarchy.clone(), parent, dir };
    if !new && found == Found::MustBeUnused {
        member.check_unused()?;
    }
    if hierarchy.is_v1_with("cpuset") {
        fill_cpuset(&member, new).map_err(failed)?;
    }
    Ok(member)
}

fn make_parents<'a>(
    hierarchy: &'a Hierarchy,
    parents: &Path,
    made: &mut Made<'a>,
) -> Result<OwnedFd, Errno> {
    let mut current = dir::open_mount(hierarchy.mount_point())?;
    let mut path = PathBuf::new();
    for name in parents.iter() {
        path.push(name);
        if dir::make(&current, Path::new(name))? {
            made.parents.push((hierarchy.mount_point(), path.clone()));
        }
        current = dir::open_child(&current, Path::new(name))?;
    }
    Ok(current)
}

fn fill_cpuset(member: &Member, new: bool) -> Result<(), Errno> {
    if cpuset::inherit(&member.parent, &member.dir, new)? {
        return Ok(());
    }
    let mount = dir::open_mount(member.hierarchy.mount_point())?;
    cpuset::fill_path(mount, member.hierarchy.path())
}

fn create_error(hierarchy: &Hierarchy, errno: Errno) -> Error {
    let hint = match errno {
        Errno::ROFS => {
            Hint::new(format!("{} is mounted read-only", hierarchy.mount_point().display()))
        }
        Errno::AGAIN => Hint::new("an ancestor's cgroup.max.depth or cgroup.max.descendants"),
        _ => Hint::none(),
    };
    Error::Create { path: hierarchy.full_path(), errno, hint }
}

fn open_parent(hierarchy: &Hierarchy) -> Result<OwnedFd, Errno> {
    let mount = dir::open_mount(hierarchy.mount_point())?;
    dir::open_below(mount, hierarchy.split().0)
}

pub(crate) fn open_member(hierarchy: &Hierarchy) -> Result<Member, Errno> {
    let parent = open_parent(hierarchy)?;
    let dir = dir::open_child(&parent, hierarchy.split().1)?;
    Ok(Member { hierarchy: hierarchy.clone(), parent, dir })
}

fn remove_tree(parent: &OwnedFd, hierarchy: &Hierarchy, deadline: Instant) -> Result<(), Error> {
    let (_, name) = hierarchy.split();
    let mut pause = Duration::from_millis(1);
    loop {
        match remove_once(parent.as_fd(), name) {
            Ok(()) => return Ok(()),
            Err(Errno::BUSY | Errno::NOTEMPTY) if Instant::now() < deadline => {}
            Err(errno) => return Err(remove_error(hierarchy, errno)),
        }
        // v2 says when the last process has gone; v1 has to be asked again.
        if hierarchy.is_v2()
            && let Ok(dir) = dir::open_child(parent, name)
        {
            let _ = events::wait(&dir, "populated 0", deadline);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// rmdir(2) first: nearly always there are no descendants.
fn remove_once(parent: BorrowedFd<'_>, name: &Path) -> Result<(), Errno> {
    match dir::remove_empty(parent, name) {
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        result => return result,
    }
    let dir = match dir::open_child(parent, name) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    for child in dir::children(&dir)? {
        remove_once(dir.as_fd(), &child)?;
    }
    dir::remove_empty(parent, name)
}

fn remove_error(hierarchy: &Hierarchy, errno: Errno) -> Error {
    let hint = match errno {
        Errno::BUSY | Errno::NOTEMPTY => {
            Hint::new("there are still processes in it, see cgroup.procs")
        }
        _ => Hint::none(),
    };
    Error::Remove { path: hierarchy.full_path(), errno, hint }
}
