//! linux.namespaces, linux.uidMappings, linux.gidMappings and linux.timeOffsets: which namespaces
//! a container has, and the one clone3(2) that puts its init in them.
//!
//! One process suffices for nearly all of them. What a process cannot do for itself the runtime does
//! around the clone: it joins a pid namespace for its children (setns(2)), opens a time namespace
//! and writes its offsets, and, because a process in a new user namespace may no longer join what
//! belongs to another one, joins the other namespaces first; afterwards it returns to its own.
//! Only where it could not return, or may not do so itself, a second, short-lived process does it
//! all and makes init the runtime's child: for a new pid namespace in a joined user namespace, and
//! for callers without the machine's root.
//!
//! Everything else is left to init ([`Namespaces::enter`]), but for the network namespace, which
//! takes the kernel as long as all the mounts together: the runtime makes it, and then the cgroups,
//! on the other core meanwhile ([`Namespaces::make_network`]).

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, LinuxTimeOffset};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::LinkNameSpaceType;

use crate::channel::Channel;
use crate::error::{Error, Failure, Step};
use crate::idmaps::IdMaps;
use crate::privilege::Privilege;
use crate::sys::{self, Cloned};

/// One kind of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    typ: LinuxNamespaceType,
    /// As in config.json.
    name: &'static str,
    /// As in /proc/PID/ns.
    file: &'static str,
    flag: i32,
    link: LinkNameSpaceType,
}

/// In the order in which they are joined: the user namespace first, because it decides what may
/// be done to the others; the mount namespace last, because it takes the host's paths away.
const KINDS: [Kind; 8] = {
    use LinkNameSpaceType as L;
    use LinuxNamespaceType as T;
    const fn kind(typ: T, name: &'static str, file: &'static str, flag: i32, link: L) -> Kind {
        Kind { typ, name, file, flag, link }
    }
    [
        kind(T::User, "user", "user", libc::CLONE_NEWUSER, L::User),
        kind(T::Pid, "pid", "pid", libc::CLONE_NEWPID, L::ProcessID),
        kind(T::Time, "time", "time", libc::CLONE_NEWTIME, L::Time),
        kind(T::Network, "network", "net", libc::CLONE_NEWNET, L::Network),
        kind(T::Ipc, "ipc", "ipc", libc::CLONE_NEWIPC, L::InterProcessCommunication),
        kind(T::Uts, "uts", "uts", libc::CLONE_NEWUTS, L::HostNameAndNISDomainName),
        kind(T::Cgroup, "cgroup", "cgroup", libc::CLONE_NEWCGROUP, L::ControlGroup),
        kind(T::Mount, "mount", "mnt", libc::CLONE_NEWNS, L::Mount),
    ]
};

#[derive(Debug)]
struct Join {
    kind: Kind,
    namespace: OwnedFd,
    path: String,
}

/// A container's namespaces, checked and opened.
#[derive(Debug)]
pub struct Namespaces {
    new: i32,
    joined: Vec<Join>,
    maps: Option<IdMaps>,
    time_offsets: String,
    privilege: Privilege,
}

impl Namespaces {
    /// Checks linux.namespaces with what belongs to it, and opens the namespaces to join.
    ///
    /// # Errors
    /// A kind stands there twice, a path is not a namespace of its kind, maps are missing or
    /// superfluous; without the machine's root or a user namespace's, there is no user namespace.
    pub fn new(linux: &Linux, privilege: Privilege) -> Result<Self, Error> {
        let listed = linux.namespaces().as_deref().unwrap_or_default();
        let (mut new, mut joined) = (0, Vec::new());
        for kind in KINDS {
            let mut of_kind = listed.iter().enumerate().filter(|(_, ns)| ns.typ() == kind.typ);
            let Some((index, namespace)) = of_kind.next() else {
                continue;
            };
            if let Some((index, _)) = of_kind.next() {
                let field = format!("linux.namespaces[{index}].type");
                return Err(Error::config(field, format!("{} stands there twice", kind.name)));
            }
            match given_path(namespace) {
                None => new |= kind.flag,
                Some(path) => joined.extend(Join::open(kind, index, path)?),
            }
        }
        let has = |flag| new & flag != 0;
        if !has(libc::CLONE_NEWNS) && !joined.iter().any(|j| j.kind.flag == libc::CLONE_NEWNS) {
            // Without one, the container's mounts would be the host's.
            return Err(Error::config("linux.namespaces", "a mount namespace is needed"));
        }
        let (uids, gids) = (linux.uid_mappings().as_ref(), linux.gid_mappings().as_ref());
        let maps =
            if has(libc::CLONE_NEWUSER) { Some(IdMaps::new("linux", uids, gids)?) } else { None };
        let time_offsets = time_offsets(linux.time_offsets().as_ref(), has(libc::CLONE_NEWTIME))?;
        let namespaces = Self { new, joined, maps, time_offsets, privilege };
        if privilege == Privilege::User && !namespaces.has(libc::CLONE_NEWUSER) {
            // runc's words.
            let problem = "rootless container requires user namespaces (hint: spec --rootless)";
            return Err(Error::config("linux.namespaces", problem));
        }
        Ok(namespaces)
    }

    /// Whether a new namespace of this kind (CLONE_NEW*) is made.
    pub fn makes(&self, flag: i32) -> bool {
        self.new & flag != 0
    }

    /// Whether the container has a namespace of this kind (CLONE_NEW*) that is not the runtime's:
    /// made or joined.
    pub fn has(&self, flag: i32) -> bool {
        self.makes(flag) || self.joined.iter().any(|join| join.kind.flag == flag)
    }

    /// The maps of the user namespace that is made, if one is.
    pub fn maps(&self) -> Option<&IdMaps> {
        self.maps.as_ref()
    }

    /// Whether the runtime must join this one for init, see the module's text.
    fn joined_by_runtime(&self, join: &Join) -> bool {
        join.kind.flag == libc::CLONE_NEWPID
            || join.kind.flag == libc::CLONE_NEWTIME
            || self.makes(libc::CLONE_NEWUSER)
    }

    /// The user namespace to join.
    fn joined_user(&self) -> Option<&Join> {
        self.joined.iter().find(|join| join.kind.flag == libc::CLONE_NEWUSER)
    }

    /// The user namespace, if it is joined by a path: of an idmapped mount without maps.
    pub fn user_by_path(&self) -> Option<BorrowedFd<'_>> {
        self.joined_user().map(|join| join.namespace.as_fd())
    }

    /// The user namespace that must be joined before the clone, because the pid namespace that the
    /// clone makes is to belong to it: procfs can be mounted only by its owner's root. A user must
    /// join it before anything else.
    fn joined_before_clone(&self) -> Option<&Join> {
        let first = || self.privilege == Privilege::User && self.leaves();
        self.joined_user().filter(|_| self.makes(libc::CLONE_NEWPID) || first())
    }

    /// Whether [`Self::leave`] has something to do.
    fn leaves(&self) -> bool {
        self.makes(libc::CLONE_NEWTIME)
            || self.joined.iter().any(|join| self.joined_by_runtime(join))
    }

    /// Whether a second process must do what a process cannot do for itself, because the runtime
    /// could not return from it or may not do it.
    fn by_helper(&self) -> bool {
        self.joined_before_clone().is_some() || !self.privilege.is_root() && self.leaves()
    }

    /// Forks init: clone3(2) with the pid and user namespace. The runtime is back in its own
    /// namespaces when this returns.
    ///
    /// # Errors
    /// A namespace cannot be joined or made. No process is left then.
    pub fn clone(&self, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned, Error> {
        let flags = self.new & (libc::CLONE_NEWPID | libc::CLONE_NEWUSER);
        if self.by_helper() {
            return self.clone_by_helper(flags, cgroup);
        }
        let mut away = Vec::new();
        let cloned = self.leave(&mut away).and_then(|()| {
            sys::clone3(flags as u64, cgroup).map_err(|errno| refused(errno, flags))
        });
        if matches!(cloned, Ok(Cloned::Child)) {
            return cloned;
        }
        for (kind, own) in away.iter().rev() {
            let back = rustix::thread::move_into_link_name_space(own.as_fd(), Some(kind.link));
            if let Err(errno) = back {
                if let Ok(Cloned::Parent { pidfd, .. }) = &cloned {
                    let _ = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
                }
                return Err(errno).step(|| format!("return to the {} namespace", kind.name));
            }
        }
        cloned
    }

    /// Forks init from a process that need not return. With CLONE_PARENT init is the runtime's
    /// child all the same.
    fn clone_by_helper(&self, flags: i32, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned, Error> {
        // A user may do nothing before a user namespace gives the right to.
        let early = match self.privilege {
            Privilege::User => flags & libc::CLONE_NEWUSER,
            _ => 0,
        };
        let (ours, theirs) = Channel::pair()?;
        let cloned = sys::clone3(early as u64, cgroup).map_err(|errno| refused(errno, early))?;
        let parent = match cloned {
            Cloned::Parent { pidfd, .. } => pidfd,
            Cloned::Child => {
                let flags = (flags & !early | libc::CLONE_PARENT) as u64;
                let cloned = self.leave_for_good().and_then(|()| {
                    sys::clone3(flags, None).map_err(|errno| refused(errno, flags as i32))
                });
                let answer = match cloned {
                    Ok(Cloned::Child) => return Ok(Cloned::Child),
                    Ok(Cloned::Parent { pid, .. }) => Ok(pid),
                    Err(error) => Err(error.into_failure()),
                };
                let _ = theirs.send(&answer);
                sys::exit_now(0)
            }
        };
        drop(theirs);
        let answer: Option<Result<i32, Failure>> = ours.receive().step(clone_step)?;
        let id = rustix::process::WaitId::PidFd(parent.as_fd());
        let _ = rustix::process::waitid(id, rustix::process::WaitIdOptions::EXITED);
        let pid = answer.ok_or_else(|| Failure::because(clone_step(), "its parent ended"))??;
        // Our child, not reaped: the pid is its.
        let raw = rustix::process::Pid::from_raw(pid);
        let raw = raw.ok_or_else(|| Failure::because(clone_step(), "no pid"))?;
        let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty());
        Ok(Cloned::Parent { pid, pidfd: pidfd.step(clone_step)? })
    }

    /// In the helper. A user has no right to join the others but as the user namespace's root.
    fn leave_for_good(&self) -> Result<(), Error> {
        let user = self.joined_before_clone();
        match (self.privilege, user) {
            (Privilege::User, Some(user)) => {
                user.enter().and_then(|()| self.leave(&mut Vec::new()))
            }
            (_, Some(user)) => self.leave(&mut Vec::new()).and_then(|()| user.enter()),
            (_, None) => self.leave(&mut Vec::new()),
        }
    }

    /// Joins and opens what init will inherit, and records how to return.
    fn leave(&self, away: &mut Vec<(Kind, OwnedFd)>) -> Result<(), Error> {
        let own = |kind: Kind| {
            let path = format!("/proc/self/ns/{}", kind.file);
            open_namespace(Path::new(&path)).step(|| format!("open {path}"))
        };
        for join in self.joined.iter().filter(|join| self.joined_by_runtime(join)) {
            away.push((join.kind, own(join.kind)?));
            join.enter()?;
        }
        if self.makes(libc::CLONE_NEWTIME) {
            let time = KINDS[2];
            away.push((time, own(time)?));
            unshare(libc::CLONE_NEWTIME).step(|| "make a time namespace".to_owned())?;
            if !self.time_offsets.is_empty() {
                std::fs::write("/proc/self/timens_offsets", &self.time_offsets)
                    .step(|| "write linux.timeOffsets".to_owned())?;
            }
        }
        Ok(())
    }

    /// Whether the runtime makes the network namespace. One that is to belong to the container's
    /// user namespace only init can make; and only the machine's root can return to its own.
    fn network_by_runtime(&self) -> bool {
        self.privilege.is_root() && self.makes(libc::CLONE_NEWNET) && !self.has(libc::CLONE_NEWUSER)
    }

    /// In the runtime, while init works: makes the network namespace, brings its loopback interface
    /// up, and returns to its own. None if the container has none of its own, or init makes it.
    ///
    /// # Errors
    /// The namespace cannot be made, or the runtime cannot return.
    pub fn make_network(&self) -> Result<Option<OwnedFd>, Error> {
        if !self.network_by_runtime() {
            return Ok(None);
        }
        let step = || "make a network namespace".to_owned();
        let path = Path::new("/proc/self/ns/net");
        let own = open_namespace(path).step(step)?;
        unshare(libc::CLONE_NEWNET).step(step)?;
        let made =
            open_namespace(path).step(step).and_then(|namespace| loopback_up().map(|()| namespace));
        let link = LinkNameSpaceType::Network;
        rustix::thread::move_into_link_name_space(own.as_fd(), Some(link))
            .step(|| "return to the network namespace".to_owned())?;
        made.map(Some)
    }

    /// In the runtime, for a container that another has made (CRIU) and whose init is `pid`: brings
    /// up the loopback interface of its network namespace, and returns to the runtime's own. Nothing
    /// if it joins one.
    ///
    /// # Errors
    /// The namespace cannot be joined, or the runtime cannot return.
    pub fn loopback_of(&self, pid: i32) -> Result<(), Error> {
        if !self.makes(libc::CLONE_NEWNET) {
            return Ok(());
        }
        let step = || "join the network namespace".to_owned();
        let link = Some(LinkNameSpaceType::Network);
        let own = open_namespace(Path::new("/proc/self/ns/net")).step(step)?;
        let other = open_namespace(Path::new(&format!("/proc/{pid}/ns/net"))).step(step)?;
        rustix::thread::move_into_link_name_space(other.as_fd(), link).step(step)?;
        let up = loopback_up();
        rustix::thread::move_into_link_name_space(own.as_fd(), link)
            .step(|| "return to the network namespace".to_owned())?;
        up
    }

    /// The namespaces that are joined: CLONE_NEW*, the name in /proc/PID/ns, the path in the config.
    pub fn joined(&self) -> impl Iterator<Item = (i32, &'static str, &str, BorrowedFd<'_>)> {
        self.joined.iter().map(|join| {
            (join.kind.flag, join.kind.file, join.path.as_str(), join.namespace.as_fd())
        })
    }

    /// In init: takes the network namespace that the runtime has made, by way of `made`, or makes
    /// it.
    ///
    /// # Errors
    /// It cannot be joined or made.
    pub fn enter_network(
        &self,
        made: impl FnOnce() -> Result<OwnedFd, Error>,
    ) -> Result<(), Error> {
        if self.network_by_runtime() {
            let link = LinkNameSpaceType::Network;
            return rustix::thread::move_into_link_name_space(made()?.as_fd(), Some(link))
                .step(|| "join the network namespace".to_owned());
        }
        if self.makes(libc::CLONE_NEWNET) {
            unshare(libc::CLONE_NEWNET).step(|| "make a network namespace".to_owned())?;
            loopback_up()?;
        }
        Ok(())
    }

    /// In init: joins and makes all that [`Self::clone`] has left, but the network and the cgroup
    /// namespace ([`Self::enter_network`], [`Self::enter_cgroup`]). `mapped` waits until a new user
    /// namespace has its maps. `sources`, if given, opens what is bound from the host: in the
    /// container's mount namespace, but where it can be, before init becomes root of the user
    /// namespace, who may be somebody without the caller's rights to those files.
    ///
    /// From here on init is root of the container's user namespace.
    ///
    /// # Errors
    /// A namespace cannot be joined or made.
    pub fn enter(
        &self,
        mapped: impl FnOnce() -> Result<(), Error>,
        mut sources: Option<impl FnOnce() -> Result<(), Error>>,
    ) -> Result<(), Error> {
        let step = || "make the container's namespaces".to_owned();
        let mut left = self.new;
        if self.makes(libc::CLONE_NEWUSER) {
            mapped()?;
        }
        if let Some(user) = self.joined_user().filter(|_| self.joined_before_clone().is_none()) {
            user.enter()?;
        }
        if self.makes(libc::CLONE_NEWNS)
            && let Some(open) = sources.take()
        {
            unshare(libc::CLONE_NEWNS).step(step)?;
            left &= !libc::CLONE_NEWNS;
            open()?;
        }
        if self.has(libc::CLONE_NEWUSER) {
            become_root(self.maps.as_ref())?;
        }
        let own =
            |join: &&Join| join.kind.flag != libc::CLONE_NEWUSER && !self.joined_by_runtime(join);
        self.joined.iter().filter(own).try_for_each(Join::enter)?;
        let later = libc::CLONE_NEWPID
            | libc::CLONE_NEWUSER
            | libc::CLONE_NEWTIME
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWCGROUP;
        unshare(left & !later).step(step)?;
        sources.map_or(Ok(()), |open| open())
    }

    /// In init, once it is in its cgroup: that cgroup becomes the root of a new cgroup namespace.
    ///
    /// # Errors
    /// Those of unshare(2).
    pub fn enter_cgroup(&self) -> Result<(), Error> {
        unshare(self.new & libc::CLONE_NEWCGROUP).step(|| "make a cgroup namespace".to_owned())
    }
}

impl Join {
    /// None for the runtime's own namespace: there is nothing to join, and what is set in it would
    /// be the host's.
    fn open(kind: Kind, index: usize, path: &Path) -> Result<Option<Self>, Error> {
        let field = || format!("linux.namespaces[{index}].path");
        if !path.is_absolute() {
            return Err(Error::config(field(), format!("{} is not absolute", path.display())));
        }
        let namespace =
            open_namespace(path).step(|| format!("{}: open {}", field(), path.display()))?;
        let id = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        let step = || format!("{}: stat {}", field(), path.display());
        let own = rustix::fs::stat(format!("/proc/self/ns/{}", kind.file)).step(step)?;
        if id(own) == id(rustix::fs::fstat(&namespace).step(step)?) {
            return Ok(None);
        }
        Ok(Some(Self { kind, namespace, path: path.display().to_string() }))
    }

    fn enter(&self) -> Result<(), Error> {
        // With its kind given the kernel refuses a namespace of another kind, or another file.
        rustix::thread::move_into_link_name_space(self.namespace.as_fd(), Some(self.kind.link))
            .step(|| format!("join the {} namespace {}", self.kind.name, self.path))
    }
}

/// The namespaces that another process is in and this one is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// CLONE_NEW*, for setns(2).
    pub flags: i32,
    /// Whether the mount namespace is one whose root is not the container's: it was joined.
    pub foreign_root: bool,
    /// Whether /proc/PID was looked at.
    pub compared: bool,
}

/// Which namespaces to join in order to be where the init `pid` of a container with these
/// linux.namespaces is. Those that were made for the container are not this process's own; the
/// others are compared, for to join one's own may need a privilege (setns(2)).
///
/// # Errors
/// A namespace cannot be looked at.
pub fn membership(listed: &[LinuxNamespace], pid: i32) -> Result<Membership, Error> {
    let mut membership = Membership { flags: 0, foreign_root: false, compared: false };
    for kind in KINDS {
        let namespace = listed.iter().find(|namespace| namespace.typ() == kind.typ);
        let made = namespace.is_some_and(|namespace| given_path(namespace).is_none());
        if !made {
            if namespace.is_none() && kind.flag == libc::CLONE_NEWTIME {
                continue; // as Linux before 5.6 has none
            }
            membership.compared = true;
            membership.foreign_root |= kind.flag == libc::CLONE_NEWNS;
            let id = |process: &str| {
                let path = format!("/proc/{process}/ns/{}", kind.file);
                match rustix::fs::stat(&path) {
                    // A kernel without this kind.
                    Err(Errno::NOENT) => Ok(None),
                    stat => stat.map(|stat| Some(stat.st_ino)).step(|| format!("look at {path}")),
                }
            };
            if id("self")? == id(&pid.to_string())? {
                continue;
            }
        }
        membership.flags |= kind.flag;
    }
    Ok(membership)
}

fn clone_step() -> String {
    "clone the container's init".to_owned()
}

/// Says what a user can do about a kernel that gives no user namespaces.
fn refused(errno: Errno, flags: i32) -> Error {
    const SWITCHES: &str = "user namespaces may be switched off: see \
        /proc/sys/user/max_user_namespaces, kernel.unprivileged_userns_clone and \
        kernel.apparmor_restrict_unprivileged_userns";
    let user = flags & libc::CLONE_NEWUSER != 0;
    let failure = Failure::new(clone_step(), errno);
    let hint = (user && matches!(errno, Errno::PERM | Errno::NOSPC)).then(|| SWITCHES.to_owned());
    Failure { hint: hint.or(failure.hint), step: failure.step, ..failure }.into()
}

fn given_path(namespace: &LinuxNamespace) -> Option<&Path> {
    // runc takes an empty path for no path.
    namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty())
}

/// Opens a namespace's file.
pub(crate) fn open_namespace(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// A new network namespace has a loopback interface that is down; runc and crun bring it up, too.
/// The rest of the network is CNI's or a hook's.
fn loopback_up() -> Result<(), Error> {
    let step = || "bring the loopback interface up".to_owned();
    let (family, kind) = (AddressFamily::UNIX, SocketType::DGRAM);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).step(step)?;
    sys::interface_up(socket.as_fd(), c"lo").step(step)
}

/// unshare(2); nothing for no flags.
pub(crate) fn unshare(flags: i32) -> Result<(), Errno> {
    if flags == 0 {
        return Ok(());
    }
    nix::sched::unshare(nix::sched::CloneFlags::from_bits_retain(flags))
        .map_err(|errno| Errno::from_raw_os_error(errno as i32))
}

/// The runtime's uid has no name in the user namespace until this, or not root's: what init makes
/// from here on belongs to the container's root. `maps` are a new namespace's.
pub(crate) fn become_root(maps: Option<&IdMaps>) -> Result<(), Error> {
    use rustix::process::{Gid, Uid};
    let step = || "become root of the user namespace".to_owned();
    let (uid, gid) = maps.map_or((0, 0), IdMaps::root);
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let changed = rustix::thread::set_thread_res_gid(gid, gid, gid)
        .and_then(|()| rustix::thread::set_thread_res_uid(uid, uid, uid));
    match changed {
        // Joined, and without an id 0: the capabilities are root's all the same.
        Err(Errno::INVAL) if maps.is_none() => Ok(()),
        changed => changed.step(step),
    }
}

/// Lines for /proc/PID/timens_offsets: time_namespaces(7).
fn time_offsets(
    offsets: Option<&HashMap<String, LinuxTimeOffset>>,
    made: bool,
) -> Result<String, Error> {
    let mut text = String::new();
    for (clock, offset) in offsets.into_iter().flatten() {
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            let field = format!("linux.timeOffsets.{clock}");
            return Err(Error::config(field, "only monotonic and boottime have an offset"));
        }
        let (secs, nanosecs) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        text += &format!("{clock} {secs} {nanosecs}\n");
    }
    if !text.is_empty() && !made {
        let problem = "needs a time namespace without a path in linux.namespaces";
        return Err(Error::config("linux.timeOffsets", problem));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linux(json: &str) -> Linux {
        serde_json::from_str(json).unwrap()
    }

    fn problem(json: &str) -> String {
        Namespaces::new(&linux(json), Privilege::Root).unwrap_err().to_string()
    }

    #[test]
    fn kinds_are_made_or_joined() {
        let config = linux(
            r#"{"namespaces":[{"type":"mount"},{"type":"pid"},
                {"type":"network","path":"/proc/self/ns/net"},{"type":"ipc","path":""}]}"#,
        );
        let namespaces = Namespaces::new(&config, Privilege::Root).unwrap();
        assert!(namespaces.makes(libc::CLONE_NEWNS) && namespaces.makes(libc::CLONE_NEWIPC));
        // The runtime's own: what is set in it would be the host's.
        assert!(!namespaces.has(libc::CLONE_NEWNET) && !namespaces.makes(libc::CLONE_NEWNET));
        assert!(!namespaces.has(libc::CLONE_NEWUSER));
    }

    #[test]
    fn wrong_ones_are_named() {
        let twice = r#"{"namespaces":[{"type":"mount"},{"type":"pid"},{"type":"pid"}]}"#;
        assert!(problem(twice).starts_with("linux.namespaces[2].type: pid"));
        let gone = r#"{"namespaces":[{"type":"mount"},{"type":"pid","path":"/nowhere"}]}"#;
        assert!(problem(gone).contains("/nowhere: no such file"));
        assert!(problem(r#"{"namespaces":[{"type":"pid"}]}"#).contains("mount namespace"));
        let user = r#"{"namespaces":[{"type":"mount"},{"type":"user"}]}"#;
        assert!(problem(user).starts_with("linux.uidMappings"));
        let time = r#"{"namespaces":[{"type":"mount"}],"timeOffsets":{"boottime":{"secs":1}}}"#;
        assert!(problem(time).starts_with("linux.timeOffsets"));
    }
}
