//! Orders: what a supervisor has another process do that forks for it.
//!
//! Creating a container forks, which only a process with one thread may do, and blocks, which a
//! server must not. So containerd's shim has a child of its own do it: one that it has just
//! forked, or for wasm one that has the engine loaded (`kiln-wasmedge`), to which the order goes
//! over a socket. The child ends when the order is carried out, and the container's init, or the
//! exec'd process, becomes the child of the nearest subreaper, which is the supervisor.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::{Process, Spec};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::bundle::Bundle;
use crate::channel::Channel;
use crate::checkpoint;
use crate::create::{self, Console};
use crate::delete;
use crate::engine::Engine;
use crate::error::{Error, Failure, Step, shortened};
use crate::exec::process::complete;
use crate::exec::{self, Target};
use crate::lenient;
use crate::placement::Driver;
use crate::rootless::Rootless;
use crate::snapshot::{self, Mount};
use crate::state::StateRoot;
use crate::sys;
use crate::wait::Child;

/// What is to be done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Create a container that waits for `start`.
    Create(Create),
    /// Execute a process in a container.
    Exec(Exec),
    /// Make a running container from the images of a checkpoint.
    Restore(Restore),
}

/// See [`checkpoint::Restore`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as there")]
pub struct Restore {
    pub container: Create,
    pub image_path: PathBuf,
    pub work_path: Option<PathBuf>,
}

/// See [`create::Options`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as there")]
pub struct Create {
    pub root: PathBuf,
    pub id: String,
    /// Its directory, absolute.
    pub bundle: PathBuf,
    pub pid_file: Option<PathBuf>,
    pub pivot: bool,
    pub keyring: bool,
    /// Whether systemd makes the cgroups.
    pub systemd: bool,
    /// The rootfs is to be mounted: these mounts, below the bundle.
    pub snapshot: Vec<Mount>,
    /// Whether a snapshot without files will do.
    pub empty: bool,
}

/// See [`exec::Options`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as there")]
pub struct Exec {
    pub root: PathBuf,
    pub id: String,
    /// The process, as JSON; what it leaves out is the container's.
    pub process: String,
    pub pid_file: Option<PathBuf>,
}

/// Where the process's stdin, stdout and stderr go.
#[derive(Debug)]
pub enum Streams {
    /// To these three.
    Files([OwnedFd; 3]),
    /// To these three, and the process gets these from descriptor 3 on: at most [`MOST_SOCKETS`], and
    /// only from a process that has called [`reserve`].
    Sockets([OwnedFd; 3], Vec<OwnedFd>),
    /// To a terminal, whose master goes over this connected socket.
    Console(OwnedFd),
}

impl Streams {
    fn into_descriptors(self) -> Vec<OwnedFd> {
        match self {
            Self::Files(files) => files.into(),
            Self::Sockets(files, sockets) => files.into_iter().chain(sockets).collect(),
            Self::Console(socket) => vec![socket],
        }
    }

    /// The descriptors.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Files(files) => files.iter().map(AsFd::as_fd).collect(),
            Self::Sockets(files, sockets) => files.iter().chain(sockets).map(AsFd::as_fd).collect(),
            Self::Console(socket) => vec![socket.as_fd()],
        }
    }

    /// The same files once more.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(match self {
            Self::Files([stdin, stdout, stderr]) => {
                Self::Files([stdin.try_clone()?, stdout.try_clone()?, stderr.try_clone()?])
            }
            Self::Sockets([stdin, stdout, stderr], sockets) => Self::Sockets(
                [stdin.try_clone()?, stdout.try_clone()?, stderr.try_clone()?],
                sockets.iter().map(OwnedFd::try_clone).collect::<std::io::Result<_>>()?,
            ),
            Self::Console(socket) => Self::Console(socket.try_clone()?),
        })
    }

    /// How many descriptors the process gets beyond stdio.
    fn sockets(&self) -> u32 {
        match self {
            Self::Sockets(_, sockets) => sockets.len() as u32,
            Self::Files(_) | Self::Console(_) => 0,
        }
    }

    /// Makes them this process's own; where there is to be a terminal, that is returned.
    fn adopt(&self) -> Result<Option<Console>, Error> {
        let connect = |stdin: BorrowedFd<'_>, stdout: BorrowedFd<'_>, stderr: BorrowedFd<'_>| {
            rustix::stdio::dup2_stdin(stdin)
                .and_then(|()| rustix::stdio::dup2_stdout(stdout))
                .and_then(|()| rustix::stdio::dup2_stderr(stderr))
                .step(|| "connect the standard streams".to_owned())
        };
        match self {
            Self::Files([stdin, stdout, stderr]) => {
                connect(stdin.as_fd(), stdout.as_fd(), stderr.as_fd()).map(|()| None)
            }
            Self::Sockets([stdin, stdout, stderr], sockets) => {
                connect(stdin.as_fd(), stdout.as_fd(), stderr.as_fd())?;
                place(sockets).map(|()| None)
            }
            Self::Console(socket) => {
                let step = || "open /dev/null".to_owned();
                let flags = OFlags::RDWR | OFlags::CLOEXEC;
                let null = rustix::fs::open("/dev/null", flags, Mode::empty()).step(step)?;
                connect(null.as_fd(), null.as_fd(), null.as_fd())?;
                let socket = socket.try_clone().step(|| "keep the console socket".to_owned())?;
                Ok(Some(Console::of_caller(socket)))
            }
        }
    }
}

/// How many sockets a container gets at the most.
pub const MOST_SOCKETS: usize = 4;
const FIRST_SOCKET: i32 = 3;

/// Keeps the numbers of a container's sockets free of anything else, in a process that will carry
/// out orders with [`Streams::Sockets`], or fork for them: what it opens later has higher ones.
///
/// # Errors
/// One of them is taken, or there is no /dev/null.
pub fn reserve() -> Result<(), Error> {
    let step = || "reserve descriptors for sockets".to_owned();
    for number in FIRST_SOCKET..FIRST_SOCKET + MOST_SOCKETS as i32 {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let null = rustix::fs::open("/dev/null", flags, Mode::empty()).step(step)?;
        if null.into_raw_fd() != number {
            return Err(Failure::because(step(), format!("{number} is taken")).into());
        }
    }
    Ok(())
}

/// Puts sockets where [`reserve`] has kept the place for them. The rest of the places is closed.
fn place(sockets: &[OwnedFd]) -> Result<(), Error> {
    let step = || "pass the sockets".to_owned();
    if sockets.len() > MOST_SOCKETS {
        return Err(Failure::because(step(), format!("more than {MOST_SOCKETS}")).into());
    }
    let end = FIRST_SOCKET + MOST_SOCKETS as i32;
    if let Some(taken) = sockets.iter().find(|socket| socket.as_raw_fd() < end) {
        let problem = format!("one is descriptor {}, which is not reserved", taken.as_raw_fd());
        return Err(Failure::because(step(), problem).into());
    }
    sys::close_between(FIRST_SOCKET as u32, end as u32 - 1).step(step)?;
    for (number, socket) in (FIRST_SOCKET..).zip(sockets) {
        sys::leave_open(socket.as_fd(), number).step(step)?;
    }
    Ok(())
}

/// Why an order was not carried out, as it crosses a socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For whoever acts on it.
    pub kind: RefusalKind,
    /// For whoever reads it.
    pub message: String,
}

/// The kinds of [`Refusal`] that a supervisor tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// The id is taken.
    Exists,
    /// There is no such container, or its process has ended.
    NotFound,
    /// Not in this status.
    Status,
    /// Whoever was to do it has died without a word.
    Died,
    /// The snapshot has no files.
    EmptyRootfs,
    /// Anything else.
    Failed,
}

impl From<&Error> for Refusal {
    fn from(error: &Error) -> Self {
        let kind = match error {
            Error::Exists(_) => RefusalKind::Exists,
            Error::NotFound(_) | Error::NotRunning | Error::Ended(_) => RefusalKind::NotFound,
            Error::Status { .. } | Error::ExecPaused | Error::ExecStopped | Error::NotPaused => {
                RefusalKind::Status
            }
            Error::EmptyRootfs => RefusalKind::EmptyRootfs,
            _ => RefusalKind::Failed,
        };
        Self { kind, message: shortened(error.to_string()) }
    }
}

/// The pid of the new process, or why there is none.
pub type Answer = Result<i32, Refusal>;

/// Chooses what runs an entrypoint, where execve(2) may not be it.
pub trait Engines {
    /// For a container's bundle, whose rootfs is mounted.
    ///
    /// # Errors
    /// It cannot be told.
    fn for_bundle(&mut self, bundle: &Bundle) -> Result<Option<Box<dyn Engine>>, Error>;

    /// For a process to be executed in `target`. The engine is prepared.
    ///
    /// # Errors
    /// It cannot be told, or the engine refuses the entrypoint.
    fn for_exec(
        &mut self,
        target: &Target,
        process: &Process,
    ) -> Result<Option<Box<dyn Engine>>, Error>;
}

/// All is executed by execve(2).
#[derive(Debug)]
pub struct NoEngine;

impl Engines for NoEngine {
    fn for_bundle(&mut self, _: &Bundle) -> Result<Option<Box<dyn Engine>>, Error> {
        Ok(None)
    }

    fn for_exec(&mut self, _: &Target, _: &Process) -> Result<Option<Box<dyn Engine>>, Error> {
        Ok(None)
    }
}

/// Carries `order` out and returns the new process's pid. To be called by a process with one thread
/// that has nothing else to do and ends afterwards: its standard streams are replaced, and the new
/// process is its child until then.
///
/// # Errors
/// Those of [`create::create`] and [`exec::exec`]; nothing is left behind.
pub fn carry_out(
    order: &Order,
    streams: &Streams,
    engines: &mut dyn Engines,
) -> Result<i32, Error> {
    let console = streams.adopt()?;
    match order {
        Order::Create(create) => create.carry_out(console, streams.sockets(), engines),
        Order::Exec(exec) => exec.carry_out(console, engines),
        Order::Restore(restore) => restore.carry_out(console),
    }
}

/// Takes back what [`carry_out`] has done, for whoever finds that nobody is left to be told of it:
/// the supervisor has died, and whoever cleans up after it may have looked too early.
///
/// # Errors
/// Those of [`delete::delete`].
pub fn take_back(order: &Order, pid: i32) -> Result<(), Error> {
    let container = match order {
        Order::Create(container) | Order::Restore(Restore { container, .. }) => container,
        Order::Exec(_) => {
            // Our child: the pid is its. If it has ended, so much the better.
            let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
            return Ok(());
        }
    };
    let Some(root) = StateRoot::open(&container.root)? else { return Ok(()) };
    let dir = match root.find(&container.id.parse()?) {
        Err(Error::NotFound(_)) => return Ok(()),
        dir => dir?,
    };
    // By now it may be another's.
    let init = dir.read()?.and_then(|state| state.init);
    if init.is_some_and(|init| init.pid == pid) {
        delete::delete(&root, &dir, true)?;
        if !container.snapshot.is_empty() {
            snapshot::unmount_all(&container.bundle);
        }
    }
    Ok(())
}

impl Create {
    fn carry_out(
        &self,
        console: Option<Console>,
        sockets: u32,
        engines: &mut dyn Engines,
    ) -> Result<i32, Error> {
        self.with_snapshot(|| self.create(console, sockets, engines))
    }

    /// With the rootfs in place, which goes if `work` fails.
    fn with_snapshot(&self, work: impl FnOnce() -> Result<i32, Error>) -> Result<i32, Error> {
        snapshot::mount_all(&self.snapshot, &self.bundle)?;
        let nothing = !self.empty && !self.snapshot.is_empty() && snapshot::is_empty(&self.bundle);
        let done = if nothing { Err(Error::EmptyRootfs) } else { work() };
        done.inspect_err(|_| {
            if !self.snapshot.is_empty() {
                snapshot::unmount_all(&self.bundle);
            }
        })
    }

    fn create(
        &self,
        console: Option<Console>,
        sockets: u32,
        engines: &mut dyn Engines,
    ) -> Result<i32, Error> {
        let bundle = Bundle::load(&self.bundle)?;
        create::check_terminal(bundle.has_terminal(), console.is_some())?;
        let engine = engines.for_bundle(&bundle)?;
        create::create(create::Options {
            root: &self.root,
            id: self.id.parse()?,
            bundle,
            pid_file: self.pid_file.as_deref(),
            console,
            pidfd_socket: None,
            preserve_fds: sockets,
            pivot: self.pivot,
            keyring: self.keyring,
            rootless: Rootless::Auto,
            driver: self.driver(),
            engine,
            // That is containerd's, if it has one.
            manager: None,
        })
    }

    fn driver(&self) -> Driver {
        if self.systemd { Driver::Systemd } else { Driver::Cgroupfs }
    }
}

impl Restore {
    fn carry_out(&self, console: Option<Console>) -> Result<i32, Error> {
        self.container.with_snapshot(|| self.restore(console))
    }

    fn restore(&self, console: Option<Console>) -> Result<i32, Error> {
        let Create { root, id, bundle, pid_file, .. } = &self.container;
        let image_path = self.image_path.clone();
        let work_path = self.work_path.clone();
        let restored = checkpoint::restore(checkpoint::Restore {
            root,
            id: id.parse()?,
            bundle: Bundle::load(bundle)?,
            pid_file: pid_file.as_deref(),
            console,
            driver: self.container.driver(),
            shared: checkpoint::Shared { image_path, work_path, ..Default::default() },
            lsm_profile: None,
            lsm_mount_context: None,
        })?;
        Ok(restored.pid())
    }
}

impl Exec {
    fn carry_out(&self, console: Option<Console>, engines: &mut dyn Engines) -> Result<i32, Error> {
        let missing = || Error::NotFound(self.id.clone());
        let root = StateRoot::open(&self.root)?.ok_or_else(missing)?;
        let target = Target::open(root.find(&self.id.parse()?)?, false)?;
        let init = target.init().clone();
        self.execute(target, console, engines).map_err(|error| match init.is_leaving() {
            // What failed, failed for that.
            true => Error::ExecStopped,
            false => error,
        })
    }

    fn execute(
        &self,
        target: Target,
        console: Option<Console>,
        engines: &mut dyn Engines,
    ) -> Result<i32, Error> {
        let process = self.described(&target, console.is_some())?;
        let engine = engines.for_exec(&target, &process)?;
        let executed = exec::exec(
            target,
            exec::Options {
                process: &process,
                cgroup: kiln_cgroups::Below::default(),
                pid_file: self.pid_file.as_deref(),
                pidfd_socket: None,
                console,
                preserve_fds: 0,
                engine,
                confirm: true,
            },
        )?;
        Ok(executed.pid())
    }

    /// Who gives the order says whether there is a terminal.
    fn described(&self, target: &Target, terminal: bool) -> Result<Process, Error> {
        let json = lenient::from_slice(self.process.as_bytes());
        let json = json.map_err(|error| Error::config("process", error.to_string()))?;
        let mut process = complete(json, target.process()?);
        process.set_terminal(Some(terminal));
        Ok(process)
    }
}

/// The spec that decides about an exec's engine: the container's, with the process, and without
/// mounts, which are in place.
pub fn spec_for_exec(target: &Target, process: &Process) -> Spec {
    let mut spec = target.config().clone();
    spec.set_mounts(None).set_process(Some(process.clone()));
    spec
}

/// An order as it arrives at another process.
#[derive(Debug)]
pub struct Received {
    /// What is to be done.
    pub order: Order,
    /// For the new process.
    pub streams: Streams,
    /// Where the [`Answer`] goes.
    pub reply: Channel,
    /// The entrypoint's module, if it does not lie in the rootfs.
    pub module: Option<OwnedFd>,
}

/// Tells how to take the descriptors that come with it: the order's text, the reply's channel, the
/// module if there is one, and the streams.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Envelope {
    module: bool,
    console: bool,
    #[serde(default)]
    sockets: usize,
}

/// Sends an order over `channel`. The answer comes over the other end of `reply`, or its end says
/// that whoever took the order has died.
///
/// # Errors
/// Those of sendmsg(2): EPIPE if nobody takes orders any more.
pub fn send(
    channel: &Channel,
    order: &Order,
    streams: Streams,
    reply: Channel,
    module: Option<OwnedFd>,
) -> Result<(), Errno> {
    let console = matches!(streams, Streams::Console(_));
    let sockets = streams.sockets() as usize;
    let envelope = Envelope { module: module.is_some(), console, sockets };
    let mut descriptors = vec![text_of(order)?, reply.into_socket()];
    descriptors.extend(module);
    descriptors.extend(streams.into_descriptors());
    channel.send_with(&envelope, &descriptors)
}

/// A process's description may be longer than a message.
fn text_of(order: &Order) -> Result<OwnedFd, Errno> {
    let json = serde_json::to_vec(order).map_err(|_| Errno::INVAL)?;
    let mut text = File::from(rustix::fs::memfd_create("order", MemfdFlags::CLOEXEC)?);
    let written = text.write_all(&json).and_then(|()| text.rewind());
    written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(text.into())
}

/// Waits for the next order; None when nobody can send one any more.
///
/// # Errors
/// Those of recvmsg(2); what arrived is no order.
pub fn receive(channel: &Channel) -> Result<Option<Received>, Error> {
    let step = || "wait for an order".to_owned();
    let Some((envelope, descriptors)) = channel.receive_with::<Envelope>().step(step)? else {
        return Ok(None);
    };
    let wrong = || Failure::because(step(), "a descriptor is missing");
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or_else(wrong);
    let mut json = Vec::new();
    File::from(next()?).read_to_end(&mut json).step(step)?;
    let order = serde_json::from_slice(&json)
        .map_err(|error| Failure::because(step(), error.to_string()))?;
    let reply = Channel::from_socket(next()?);
    let module = envelope.module.then(&mut next).transpose()?;
    let streams = match (envelope.console, envelope.sockets) {
        (true, _) => Streams::Console(next()?),
        (false, 0) => Streams::Files([next()?, next()?, next()?]),
        (false, sockets) => {
            let files = [next()?, next()?, next()?];
            let sockets = (0..sockets).map(|_| next()).collect::<Result<_, _>>()?;
            Streams::Sockets(files, sockets)
        }
    };
    Ok(Some(Received { order, streams, reply, module }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(process: &str) -> Order {
        let (root, id) = (PathBuf::from("/run/kiln"), "web".to_owned());
        Order::Exec(Exec { root, id, process: process.to_owned(), pid_file: None })
    }

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn an_order_arrives_whole_with_its_descriptors() {
        let (ours, theirs) = Channel::pair().unwrap();
        let long = "x".repeat(100_000);
        let (answer, reply) = Channel::pair().unwrap();
        let streams = Streams::Files([null(), null(), null()]);
        send(&ours, &order(&long), streams, reply, Some(null())).unwrap();
        let received = receive(&theirs).unwrap().unwrap();
        let Order::Exec(exec) = &received.order else { panic!("{received:?}") };
        assert_eq!(exec.process, long);
        assert!(received.module.is_some() && matches!(received.streams, Streams::Files(_)));
        received.reply.send(&Answer::Ok(7)).unwrap();
        assert_eq!(answer.receive::<Answer>().unwrap(), Some(Ok(7)));
        drop(received);
        assert_eq!(answer.receive::<Answer>().unwrap(), None, "its taker has gone");

        let (_answer, reply) = Channel::pair().unwrap();
        send(&ours, &order(""), Streams::Console(null()), reply, None).unwrap();
        let received = receive(&theirs).unwrap().unwrap();
        assert!(received.module.is_none() && matches!(received.streams, Streams::Console(_)));

        let (_answer, reply) = Channel::pair().unwrap();
        let streams = Streams::Sockets([null(), null(), null()], vec![null(), null()]);
        send(&ours, &order(""), streams, reply, None).unwrap();
        let received = receive(&theirs).unwrap().unwrap();
        assert_eq!((received.streams.sockets(), received.streams.descriptors().len()), (2, 5));
        drop(ours);
        assert!(receive(&theirs).unwrap().is_none());
    }
}
