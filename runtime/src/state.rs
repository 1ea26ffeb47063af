//! The container's state on disk: one directory per container below the state root.
//!
//! ```text
//! ROOT/ID/state.json   written before anything else is made (and once more, beside and renamed, if
//!                      a user got fewer cgroups than there might be): the state, and after it the
//!                      config.json as it was, for what `exec` must know whatever becomes of it
//! ROOT/ID/init         a symlink to nowhere, whose text is init's pid and start time
//! ROOT/ID/start.sock   init listens here until `start`; gone once it was asked to start
//! ```
//!
//! A symlink is made by one system call, whole or not at all, and costs a filesystem less than a
//! file written beside another and renamed.
//!
//! The directory is locked (flock(2)) by what changes the container while it works: create, start,
//! delete, pause, resume, update, checkpoint, restore. It is 0700: nobody else can reach the socket
//! or read annotations.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use oci_spec::runtime::{Hook, Spec};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, inotify};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Failure, Step};
use crate::id::ContainerId;
use crate::lenient;
use crate::listener::Listener;
use crate::net_devices::NetDevice;
use crate::process::Process;
use crate::rdt;
use crate::sys;

/// The socket on which a created container's init waits for `start`.
pub const START_SOCKET: &str = "start.sock";
/// The mark of [`ContainerDir::mark_creating`]: a bit that means nothing for a socket.
const CREATING: Mode = Mode::SVTX;
const STATE_FILE: &str = "state.json";
const NEW_STATE_FILE: &str = "state.json.new";
const INIT_LINK: &str = "init";

/// Where a container is in its life: runtime-spec, runtime.md#state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` is at work.
    Creating,
    /// Init waits for `start`.
    Created,
    /// The workload runs.
    Running,
    /// The workload is frozen (not in the runtime-spec; runc's and crun's).
    Paused,
    /// Init has ended.
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// What is kept of a container: all that later commands need, whatever becomes of its bundle.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// `ociVersion` of the config.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// Init; absent until it exists. Not in the file: recorded beside it.
    #[serde(skip)]
    pub init: Option<Process>,
    /// The bundle, absolute.
    pub bundle: PathBuf,
    /// The root directory on the host, absolute.
    pub rootfs: PathBuf,
    /// When `create` began, RFC 3339 in UTC.
    pub created: String,
    /// The config's annotations.
    pub annotations: BTreeMap<String, String>,
    /// Who created it: the effective uid.
    pub owner: u32,
    /// Where its cgroups are; absent where it has none.
    pub cgroup: Option<kiln_cgroups::Paths>,
    /// Its unit, if systemd has made its cgroups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<kiln_cgroups::systemd::Unit>,
    /// linux.resources.memory.checkBeforeUpdate, for `update`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub check_memory: bool,
    /// Hooks that are still to run, as they were at `create`.
    pub poststart: Option<Vec<Hook>>,
    /// The same, after the container has stopped.
    pub poststop: Option<Vec<Hook>>,
    /// The seccomp agent that is to be told of the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener: Option<Listener>,
    /// Whether its processes get a session keyring that is not the caller's.
    #[serde(default)]
    pub keyring: bool,
    /// Whether an engine runs its workload, so that init has executed nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub engine: bool,
    /// linux.netDevices that it has taken, to be returned if it is never started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub net_devices: Vec<NetDevice>,
    /// Its resctrl groups: exec'd processes join them, and some go with the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rdt: Option<rdt::Groups>,
}

/// The state as `state` prints it and as hooks get it: runtime.md#state, with runc's additions
/// `rootfs`, `created` and `owner`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StateDocument {
    /// `ociVersion` of the config.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// Init in the runtime's pid namespace; 0 once it has ended.
    pub pid: i32,
    /// As of now.
    pub status: Status,
    /// The bundle, absolute.
    pub bundle: PathBuf,
    /// The root directory on the host, absolute.
    pub rootfs: PathBuf,
    /// When `create` began, RFC 3339 in UTC.
    pub created: String,
    /// The config's annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Name of the user who created it: in lists only, as runc has it.
    pub owner: String,
}

impl State {
    /// The document for a container in `status`.
    pub fn document(&self, status: Status) -> StateDocument {
        StateDocument {
            oci_version: self.oci_version.clone(),
            id: self.id.clone(),
            status,
            pid: match status {
                Status::Stopped => 0,
                _ => self.init.as_ref().map_or(0, |init| init.pid),
            },
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            created: self.created.clone(),
            annotations: self.annotations.clone(),
            owner: String::new(),
        }
    }

    /// Whether its cgroup is frozen, as far as that can be told.
    fn is_frozen(&self) -> bool {
        self.cgroup.as_ref().is_some_and(|paths| kiln_cgroups::is_frozen(paths).unwrap_or(false))
    }

    /// The document as hooks get it on stdin.
    pub fn hook_input(&self, status: Status) -> Vec<u8> {
        serde_json::to_vec(&self.document(status)).unwrap_or_default()
    }
}

/// RFC 3339 in UTC with nanoseconds, as runc writes it.
pub fn timestamp() -> String {
    humantime::format_rfc3339_nanos(SystemTime::now()).to_string()
}

/// The directory that holds all containers' directories.
#[derive(Debug)]
pub struct StateRoot {
    path: PathBuf,
    dir: OwnedFd,
}

impl StateRoot {
    /// Opens the state root, making it (0700) where missing.
    ///
    /// # Errors
    /// It cannot be made, belongs to somebody else, or is writable by others.
    pub fn create(path: &Path) -> Result<Self, Error> {
        if let Some(root) = Self::open(path)? {
            return Ok(root);
        }
        use std::os::unix::fs::DirBuilderExt;
        // What is not used for six hours is removed there, unless it is sticky (XDG Base Directory
        // Specification).
        let session = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
        let sticky = session.is_some_and(|session| path.starts_with(session));
        let mode = if sticky { 0o1700 } else { 0o700 };
        let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
        made.step(|| format!("make state root {}", path.display())).map_err(
            |error| match error {
                Error::Step(failure) if failure.errno == Some(libc::EACCES) => {
                    let hint = "--root, or XDG_RUNTIME_DIR, names a directory of the user's";
                    Failure { hint: Some(hint.to_owned()), ..failure }.into()
                }
                error => error,
            },
        )?;
        Self::open(path)?.ok_or_else(|| Error::file(path, "vanished"))
    }

    /// Opens the state root; None if it is not there.
    ///
    /// # Errors
    /// It is not a directory, belongs to somebody else, or is writable by others.
    pub fn open(path: &Path) -> Result<Option<Self>, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            dir => dir.step(|| format!("open state root {}", path.display()))?,
        };
        let stat = rustix::fs::fstat(&dir).step(|| "stat the state root".to_owned())?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(Error::file(path, format!("belongs to uid {}, not to us", stat.st_uid)));
        }
        if stat.st_mode & 0o022 != 0 {
            return Err(Error::file(path, "is writable by others"));
        }
        Ok(Some(Self { path: path.to_owned(), dir }))
    }

    /// Makes the directory of a new container and locks it. Of many at once, one succeeds.
    ///
    /// # Errors
    /// [`Error::Exists`] if the id is taken.
    pub fn make(&self, id: &ContainerId) -> Result<ContainerDir, Error> {
        match rustix::fs::mkdirat(&self.dir, id.as_str(), Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(Error::Exists(id.to_string())),
            Err(errno) => return Err(errno).step(|| format!("make {}", self.join(id).display())),
        }
        self.claim(id).inspect_err(|error| {
            // Somebody else's, or nobody's.
            if !matches!(error, Error::Exists(_) | Error::NotFound(_)) {
                let _ = rustix::fs::unlinkat(&self.dir, id.as_str(), AtFlags::REMOVEDIR);
            }
        })
    }

    /// Locks the directory that was just made. Meanwhile another may have deleted it, and a third
    /// made it anew: whoever has the lock first writes the state, and the container is theirs.
    fn claim(&self, id: &ContainerId) -> Result<ContainerDir, Error> {
        let container = self.find(id)?;
        container.lock()?;
        match rustix::fs::statat(&container.dir, STATE_FILE, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(container),
            Ok(_) => Err(Error::Exists(id.to_string())),
            Err(errno) => Err(errno).step(|| format!("look into {}", self.join(id).display())),
        }
    }

    /// Opens the directory of an existing container.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn find(&self, id: &ContainerId) -> Result<ContainerDir, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.dir, id.as_str(), flags, Mode::empty()) {
            Ok(dir) => Ok(ContainerDir { id: id.clone(), dir }),
            Err(Errno::NOENT) => Err(Error::NotFound(id.to_string())),
            Err(errno) => Err(errno).step(|| format!("open {}", self.join(id).display())),
        }
    }

    /// The ids of all containers, sorted.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn ids(&self) -> Result<Vec<ContainerId>, Error> {
        let step = || format!("read state root {}", self.path.display());
        let mut ids = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.dir).step(step)? {
            let entry = entry.step(step)?;
            if let Ok(id) = entry.file_name().to_string_lossy().parse::<ContainerId>() {
                ids.push(id);
            }
        }
        ids.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        Ok(ids)
    }

    /// Removes the directory of a container with all in it. Being gone already is success.
    ///
    /// # Errors
    /// A file or the directory cannot be removed.
    pub fn remove(&self, container: &ContainerDir) -> Result<(), Error> {
        let step = || format!("remove {}", self.join(&container.id).display());
        for name in [START_SOCKET, INIT_LINK, STATE_FILE] {
            match rustix::fs::unlinkat(&container.dir, name, AtFlags::empty()) {
                // Not of our making; it goes with what else there is.
                Err(Errno::ISDIR) => {}
                removed => ignore_missing(removed).step(step)?,
            }
        }
        let remove = || {
            let removed =
                rustix::fs::unlinkat(&self.dir, container.id.as_str(), AtFlags::REMOVEDIR);
            ignore_missing(removed)
        };
        match remove() {
            // Of a runtime that died while it wrote it, devices that the host lacks, or not ours.
            Err(Errno::NOTEMPTY) => {
                container.clear().step(step)?;
                remove().step(step)
            }
            removed => removed.step(step),
        }
    }

    /// The path of a container's directory, as the root's was given.
    pub(crate) fn join(&self, id: &ContainerId) -> PathBuf {
        self.path.join(id.as_str())
    }
}

fn ignore_missing(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// One container's directory.
#[derive(Debug)]
pub struct ContainerDir {
    id: ContainerId,
    dir: OwnedFd,
}

impl AsFd for ContainerDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl ContainerDir {
    /// The container's id.
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// Removes whatever is in the directory. Follows no link.
    fn clear(&self) -> std::io::Result<()> {
        for entry in std::fs::read_dir(self.short_path("."))? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => std::fs::remove_dir_all(entry.path())?,
                false => std::fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    }

    /// Waits for the lock that whatever changes the container holds while it works.
    ///
    /// # Errors
    /// Those of flock(2); [`Error::NotFound`] if the container has been deleted meanwhile.
    pub fn lock(&self) -> Result<(), Error> {
        let step = || format!("lock container {}", self.id);
        rustix::fs::flock(&self.dir, FlockOperation::LockExclusive).step(step)?;
        self.is_there()
    }

    /// The same without waiting; false if somebody else has it locked.
    ///
    /// # Errors
    /// As for [`Self::lock`].
    pub fn try_lock(&self) -> Result<bool, Error> {
        match rustix::fs::flock(&self.dir, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Ok(false),
            locked => {
                locked.step(|| format!("lock container {}", self.id))?;
                self.is_there().map(|()| true)
            }
        }
    }

    fn is_there(&self) -> Result<(), Error> {
        let stat = rustix::fs::fstat(&self.dir).step(|| format!("stat container {}", self.id))?;
        match stat.st_nlink {
            0 => Err(Error::NotFound(self.id.to_string())),
            _ => Ok(()),
        }
    }

    /// A descriptor that becomes readable when somebody [rings](Self::ring).
    ///
    /// # Errors
    /// Those of inotify(7).
    pub fn bell(&self) -> Result<OwnedFd, Error> {
        let watch = || {
            let bell = inotify::init(inotify::CreateFlags::CLOEXEC)?;
            inotify::add_watch(&bell, self.short_path(""), inotify::WatchFlags::ATTRIB)?;
            Ok::<_, Errno>(bell)
        };
        watch().step(|| format!("watch container {}", self.id))
    }

    /// Has the signals of [`crate::wait::catch_interrupts`] end `init`, and a hook as
    /// [`Self::ring`] does, until [`sys::interrupt_ends`] is told otherwise.
    pub(crate) fn interrupt_ends(&self, init: Option<BorrowedFd<'_>>) {
        sys::interrupt_ends(init, Some(self.dir.as_fd()));
    }

    /// Asks whoever has the container locked to come to an end: to kill the hook that it waits
    /// for. Only a hook that has begun before hears it.
    ///
    /// # Errors
    /// Those of fchmod(2).
    pub fn ring(&self) -> Result<(), Error> {
        // Changes nothing, but is an event.
        rustix::fs::fchmod(&self.dir, Mode::RWXU).step(|| format!("ring for {}", self.id))
    }

    /// While the mark stands on the start socket, `create` is at work: for one with hooks, which
    /// may take long.
    ///
    /// # Errors
    /// Those of fchmodat(2).
    pub fn mark_creating(&self) -> Result<(), Error> {
        self.mark(Mode::RWXU | CREATING)
    }

    /// Takes the mark away.
    ///
    /// # Errors
    /// Those of fchmodat(2).
    pub fn mark_created(&self) -> Result<(), Error> {
        self.mark(Mode::RWXU)
    }

    fn mark(&self, mode: Mode) -> Result<(), Error> {
        rustix::fs::chmodat(&self.dir, START_SOCKET, mode, AtFlags::empty())
            .step(|| format!("mark the start socket of {}", self.id))
    }

    /// Gives the lock back, also for the copies of the descriptor that a child has.
    pub fn unlock(&self) {
        let _ = rustix::fs::flock(&self.dir, FlockOperation::Unlock);
    }

    /// Whether another process holds the lock now.
    pub fn is_locked(&self) -> bool {
        match rustix::fs::flock(&self.dir, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {
                self.unlock();
                false
            }
            Err(_) => true,
        }
    }

    /// Writes the state and the text of config.json, right into their file: there is no old one to
    /// keep, the directory is locked, and if the runtime dies meanwhile nothing else has been made
    /// yet.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, state: &State, config: &[u8]) -> Result<(), Error> {
        self.write_file(STATE_FILE, state, config)
    }

    fn write_file(&self, name: &str, state: &State, config: &[u8]) -> Result<(), Error> {
        let step = || format!("write the state of container {}", self.id);
        let mut json = serde_json::to_vec(state).map_err(std::io::Error::from).step(step)?;
        json.push(b'\n');
        json.extend_from_slice(config);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(&self.dir, name, flags, mode).step(step)?;
        File::from(file).write_all(&json).step(step)
    }

    /// Writes the state again, beside the old one and renamed over it. The config stays.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn rewrite(&self, state: &State) -> Result<(), Error> {
        let step = || format!("write the state of container {}", self.id);
        ignore_missing(rustix::fs::unlinkat(&self.dir, NEW_STATE_FILE, AtFlags::empty()))
            .step(step)?;
        let old = self.read_file()?.unwrap_or_default();
        let config = self.parse(&old)?.map_or(&[][..], |(_, end)| old[end..].trim_ascii_start());
        self.write_file(NEW_STATE_FILE, state, config)?;
        rustix::fs::renameat(&self.dir, NEW_STATE_FILE, &self.dir, STATE_FILE).step(step)
    }

    /// Records init: there at once and whole, or not at all.
    ///
    /// # Errors
    /// Those of symlinkat(2).
    pub fn write_init(&self, init: &Process) -> Result<(), Error> {
        rustix::fs::symlinkat(init.to_string(), &self.dir, INIT_LINK)
            .step(|| format!("record the init of container {}", self.id))
    }

    /// Reads the state; None if the runtime died before it wrote one.
    ///
    /// # Errors
    /// The file is damaged or cannot be read.
    pub fn read(&self) -> Result<Option<State>, Error> {
        let Some(json) = self.read_file()? else { return Ok(None) };
        Ok(self.parse(&json)?.map(|(state, _)| state))
    }

    /// Reads the state with the config as it was when the container was created.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub fn read_with_config(&self) -> Result<Option<(State, Spec)>, Error> {
        let Some(json) = self.read_file()? else { return Ok(None) };
        let Some((state, rest)) = self.parse(&json)? else { return Ok(None) };
        let config = lenient::from_slice(&json[rest..]);
        Ok(Some((state, config.map_err(|error| self.damaged(&error))?)))
    }

    fn read_file(&self) -> Result<Option<Vec<u8>>, Error> {
        let step = || format!("read the state of container {}", self.id);
        // A FIFO would be waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.dir, STATE_FILE, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(self.damaged(&"state.json is a link")),
            file => file.step(step)?,
        };
        let mut json = Vec::new();
        match File::from(file).read_to_end(&mut json) {
            Err(error) if error.raw_os_error() == Some(libc::EISDIR) => {
                Err(self.damaged(&"state.json is a directory"))
            }
            read => read.step(step).map(|_| Some(json)),
        }
    }

    /// The state at the beginning of `json`, and where it ends.
    fn parse(&self, json: &[u8]) -> Result<Option<(State, usize)>, Error> {
        let mut documents = serde_json::Deserializer::from_slice(json).into_iter::<State>();
        match documents.next() {
            Some(Ok(state)) => {
                let state = State { init: self.read_init()?, ..state };
                Ok(Some((state, documents.byte_offset())))
            }
            // Being written for the first time.
            _ if self.is_locked() => Ok(None),
            Some(Err(error)) => Err(self.damaged(&error)),
            None => Err(self.damaged(&"it is empty")),
        }
    }

    fn damaged(&self, error: &dyn std::fmt::Display) -> Error {
        Error::Damaged { id: self.id.to_string(), problem: error.to_string() }
    }

    fn read_init(&self) -> Result<Option<Process>, Error> {
        let step = || format!("read the init of container {}", self.id);
        match rustix::fs::readlinkat(&self.dir, INIT_LINK, Vec::new()) {
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::INVAL) => Err(self.damaged(&"init is not a link")),
            Err(errno) => Err(errno).step(step),
            Ok(text) => match text.to_string_lossy().parse() {
                Ok(init) => Ok(Some(init)),
                Err(()) => Err(self.damaged(&format!("init is {text:?}"))),
            },
        }
    }

    /// What is still to be known of a container whose [state is damaged](Error::Damaged): the
    /// state without init, and init.
    pub(crate) fn salvage(&self) -> (Option<State>, Option<Process>) {
        let json = self.read_file().ok().flatten().unwrap_or_default();
        let mut documents = serde_json::Deserializer::from_slice(&json).into_iter::<State>();
        (documents.next().and_then(Result::ok), self.read_init().ok().flatten())
    }

    /// The status of the container whose state is `state`, as of now.
    pub fn status(&self, state: &State) -> Status {
        let Some(init) = &state.init else {
            return if self.is_locked() { Status::Creating } else { Status::Stopped };
        };
        if !init.is_alive() {
            return Status::Stopped;
        }
        if state.is_frozen() {
            return Status::Paused;
        }
        // `start` removes the socket when it asks init to go on.
        match rustix::fs::statat(&self.dir, START_SOCKET, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if Mode::from_raw_mode(stat.st_mode).contains(CREATING) => Status::Creating,
            Ok(_) => Status::Created,
            Err(_) => Status::Running,
        }
    }

    /// A path to `name` in this directory that is short enough for a socket address (108 bytes)
    /// and goes through the descriptor.
    pub fn short_path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.dir.as_raw_fd()))
    }

    /// Removes the start socket: of several callers, exactly one is told that it did.
    ///
    /// # Errors
    /// Those of unlinkat(2).
    pub fn take_start_socket(&self) -> Result<bool, Error> {
        match rustix::fs::unlinkat(&self.dir, START_SOCKET, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno).step(|| format!("remove the start socket of {}", self.id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(id: &str) -> State {
        State {
            oci_version: "1.0.2".into(),
            id: id.into(),
            init: None,
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: timestamp(),
            annotations: BTreeMap::new(),
            owner: 0,
            cgroup: None,
            unit: None,
            check_memory: false,
            poststart: None,
            poststop: None,
            listener: None,
            keyring: true,
            engine: false,
            net_devices: Vec::new(),
            rdt: None,
        }
    }

    #[test]
    fn one_of_many_wins_and_all_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = StateRoot::create(&dir.path().join("kiln")).unwrap();
        let id: ContainerId = "web".parse().unwrap();
        let container = root.make(&id).unwrap();
        assert!(matches!(root.make(&id), Err(Error::Exists(_))));
        let config = br#"{"ociVersion":"1.0.2","hostname":"there"}"#;
        container.write(&state("web"), config).unwrap();
        let other = root.find(&id).unwrap();
        assert_eq!(other.status(&other.read().unwrap().unwrap()), Status::Creating);
        container.unlock();
        assert_eq!(other.status(&other.read().unwrap().unwrap()), Status::Stopped);
        let (_, config) = other.read_with_config().unwrap().unwrap();
        assert_eq!(config.hostname().as_deref(), Some("there"));
        assert_eq!(root.ids().unwrap(), std::slice::from_ref(&id));
        root.remove(&container).unwrap();
        root.remove(&container).unwrap();
        assert!(matches!(root.find(&id), Err(Error::NotFound(_))));
    }

    #[test]
    fn a_damaged_state_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = StateRoot::create(dir.path()).unwrap();
        let container = root.make(&"c".parse().unwrap()).unwrap();
        assert!(container.read().unwrap().is_none());
        container.unlock();
        for text in ["{", "", "{}"] {
            std::fs::write(dir.path().join("c/state.json"), text).unwrap();
            assert!(container.read().unwrap_err().to_string().contains("damaged"), "{text}");
        }
        let whole = serde_json::to_string(&state("c")).unwrap();
        std::fs::write(dir.path().join("c/state.json"), whole + "\n{\"oci").unwrap();
        assert!(container.read().unwrap().is_some());
        assert!(container.read_with_config().unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn a_state_root_that_others_can_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(StateRoot::open(dir.path()).is_err());
    }
}
