//! The warm parent: a process that has the engine loaded, and of which each wasm container is a
//! fork. It is started while the pod's sandbox is being made, so that no container waits for it;
//! where it has died, the next container starts another.
//!
//! It is `kiln-wasmedge warm`, out of the engine folder, with the socket that orders come over as
//! its standard input, and the log as its standard error. It ends when that socket does.

use std::os::fd::{AsFd, OwnedFd};

use kiln_runtime::channel::Channel;
use kiln_runtime::order::{self, Order, Streams};
use kiln_runtime::sealed;
use kiln_runtime::sys::{self, Cloned};
use kiln_wasm::folder::{Folder, Libraries};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, getpid};

use crate::error::{Context, Error};
use crate::jobs::{self, Job};
use crate::logger;

/// The command of `kiln-wasmedge`.
const COMMAND: &str = "warm";

/// The pod's warm parent, if it has one.
#[derive(Debug, Default)]
pub struct Warm {
    parent: Option<Parent>,
}

#[derive(Debug)]
struct Parent {
    pid: i32,
    channel: Channel,
}

impl Warm {
    /// Starts it unless it is there. Returns at once: it takes orders before it is ready for them.
    ///
    /// # Errors
    /// The engine is not installed.
    pub fn start(&mut self) -> Result<(), Error> {
        self.channel().map(drop)
    }

    /// Has it carry out an order for a wasm container; `module` is the entrypoint's if that does
    /// not lie in the rootfs.
    ///
    /// # Errors
    /// There is none, and none can be started.
    pub fn order(
        &mut self,
        order: &Order,
        streams: Streams,
        module: Option<OwnedFd>,
    ) -> Result<Job, Error> {
        let (ours, theirs) = Channel::pair()?;
        let sent = order::send(self.channel()?, order, streams, theirs, module);
        // Whoever does not answer is seen by the end of the job's channel.
        match sent {
            Ok(()) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(Job::of(ours)),
            Err(errno) => Err(errno).step("send an order to the warm parent"),
        }
    }

    /// Whether the process that has ended was the warm parent.
    pub fn has_ended(&mut self, pid: i32) -> bool {
        self.parent.take_if(|parent| parent.pid == pid).is_some()
    }

    /// Lets go of one that does not answer: another is started by the next order.
    pub fn forget(&mut self) {
        self.parent = None;
    }

    fn channel(&mut self) -> Result<&Channel, Error> {
        let parent = match self.parent.take() {
            Some(parent) => parent,
            None => spawn()?,
        };
        Ok(&self.parent.insert(parent).channel)
    }
}

fn spawn() -> Result<Parent, Error> {
    let folder = Folder::find(&sealed::own_path())?;
    let (ours, theirs) = Channel::pair()?;
    let shim = getpid();
    match sys::clone3(0, None).step("fork")? {
        Cloned::Parent { pid, .. } => {
            log::debug!("the warm parent is process {pid}");
            Ok(Parent { pid, channel: ours })
        }
        Cloned::Child => {
            if let Err(error) = become_parent(shim, &folder, &theirs) {
                log::error!("start the warm parent: {error}");
            }
            sys::exit_now(1)
        }
    }
}

fn become_parent(shim: Pid, folder: &Folder, channel: &Channel) -> Result<(), Error> {
    let log = logger::descriptor();
    let keep: Vec<_> = [Some(channel.as_fd()), log].into_iter().flatten().collect();
    jobs::alone(shim, &keep)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let null = null.file("open", "/dev/null")?;
    rustix::stdio::dup2_stdin(channel)
        .and_then(|()| rustix::stdio::dup2_stdout(&null))
        .and_then(|()| rustix::stdio::dup2_stderr(log.unwrap_or(null.as_fd())))
        .step("connect the standard streams")?;
    let command = folder.command(Libraries::Run, [COMMAND.into()]);
    match sealed::execute(&folder.linker(), command)? {}
}
