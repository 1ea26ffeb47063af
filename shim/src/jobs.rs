//! Jobs: what would block the server, or forks, is done by a child that does nothing else.
//!
//! The shim has one thread, as the runtime demands of whoever forks; a create that waits for a hook
//! must not keep it from answering a kill. A fork of so small a process takes 0.1 ms. What the
//! child leaves behind, a container's init above all, becomes the shim's own child when the job
//! ends, because the shim is a subreaper.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use kiln_runtime::channel::Channel;
use kiln_runtime::error::errno_text;
use kiln_runtime::order::{Answer, Refusal, RefusalKind};
use kiln_runtime::start::Begun;
use kiln_runtime::sys::{self, Cloned};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, Signal, getpid, getppid, getrlimit, setrlimit};

use crate::error::{Context, Error};

/// A job's end on the shim's side.
#[derive(Debug)]
pub struct Job {
    worker: Worker,
    /// The child, if it is ours.
    pid: Option<i32>,
}

/// Who does it.
#[derive(Debug)]
enum Worker {
    /// A process that answers over this.
    Process(Channel),
    /// A container's init: to start a container takes no more than to tell it.
    Init(Box<Begun>),
}

impl AsFd for Job {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.worker {
            Worker::Process(channel) => channel.as_fd(),
            Worker::Init(begun) => begun.as_fd(),
        }
    }
}

/// What a job has done: a number, which is a pid where there is one, and perhaps a descriptor.
pub type Done = (i32, Option<OwnedFd>);

impl Job {
    /// Forks, and has the child do `work`. Of the shim's descriptors it keeps its standard streams
    /// and `keep`, so that nobody is kept waiting for the end of a connection by it.
    ///
    /// # Errors
    /// There can be no child.
    pub fn start(
        keep: &[BorrowedFd<'_>],
        work: impl FnOnce() -> Result<Done, Error>,
    ) -> Result<Self, Error> {
        let (channel, theirs) = Channel::pair()?;
        let shim = getpid();
        match sys::clone3(0, None).step("fork")? {
            Cloned::Parent { pid, .. } => {
                Ok(Self { worker: Worker::Process(channel), pid: Some(pid) })
            }
            Cloned::Child => {
                let kept: Vec<_> = keep.iter().copied().chain([theirs.as_fd()]).collect();
                let done = alone(shim, &kept).and_then(|()| work());
                let (answer, descriptor) = match done {
                    Ok((number, descriptor)) => (Answer::Ok(number), descriptor),
                    Err(error) => (Answer::Err(Refusal::from(&error)), None),
                };
                let _ = theirs.send_with(&answer, descriptor.as_slice());
                sys::exit_now(0)
            }
        }
    }

    /// One that another process does: its answer comes over `channel`.
    pub fn of(channel: Channel) -> Self {
        Self { worker: Worker::Process(channel), pid: None }
    }

    /// A start that has begun.
    pub fn starting(begun: Begun) -> Self {
        Self { worker: Worker::Init(Box::new(begun)), pid: None }
    }

    /// The child that does it, if it is the shim's own and not reaped.
    pub fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// The child has been reaped.
    pub fn has_ended(&mut self) {
        self.pid = None;
    }

    /// What has come of it. To be called when the job's descriptor is readable; blocks before that.
    ///
    /// # Errors
    /// It has failed, or its process was killed.
    pub fn result(&self) -> Result<Done, Error> {
        let channel = match &self.worker {
            Worker::Process(channel) => channel,
            Worker::Init(begun) => return Ok(begun.finish().map(|()| (0, None))?),
        };
        match channel.receive_with::<Answer>() {
            Ok(Some((Ok(number), descriptors))) => Ok((number, descriptors.into_iter().next())),
            Ok(Some((Err(refusal), _))) => Err(Error::Refused(refusal)),
            Ok(None) => Err(died("it was killed")),
            Err(errno) => Err(died(&errno_text(errno.raw_os_error()))),
        }
    }
}

/// The failure of a job that has not said why.
fn died(reason: &str) -> Error {
    let message = format!("the process that was to do it has ended: {reason}");
    Error::Refused(Refusal { kind: RefusalKind::Died, message })
}

/// The limit of open descriptors that the shim was started with, for its children.
static DESCRIPTORS: OnceLock<Rlimit> = OnceLock::new();

/// Lets the shim open as many descriptors as it may: a pod's containers take some each, and who
/// started it has left the limit where programs that use select(2) want it.
pub fn raise_limit() {
    let limit = *DESCRIPTORS.get_or_init(|| getrlimit(Resource::Nofile));
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(errno) = setrlimit(Resource::Nofile, raised) {
        log::warn!("raise the limit of open files: {errno}");
    }
}

/// In a child of the process `shim`: the signals and limits as a program expects them, nothing of
/// the shim's open but `keep`, and no life after the shim's.
///
/// # Errors
/// The shim has died; those of the system calls.
pub fn alone(shim: Pid, keep: &[BorrowedFd<'_>]) -> Result<(), Error> {
    let step = "prepare a job";
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).step(step)?;
    // It may have died before.
    if getppid() != Some(shim) {
        return Err(Errno::SRCH).step(step);
    }
    // Their actions are the default ones all along, or init's business.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).step("unblock signals")?;
    if let Some(limit) = DESCRIPTORS.get() {
        setrlimit(Resource::Nofile, *limit).step(step)?;
    }
    let mut keep: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
    keep.sort_unstable();
    let mut first = 3;
    for kept in keep {
        if first < kept {
            // What owns these is never dropped: the child ends in `exit_now`, or executes.
            sys::close_between(first, kept - 1).step("close descriptors")?;
        }
        first = first.max(kept + 1);
    }
    match sys::close_between(first, u32::MAX) {
        Err(Errno::INVAL) => Ok(()),
        closed => closed.step("close descriptors"),
    }
}
