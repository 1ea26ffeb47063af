//! `exec`: another process in a container that is there. Not in the runtime-spec; as runc and crun
//! have it.
//!
//! The runtime's side; [`enter`] is the other one. What the process is to be is checked first
//! ([`Target`], [`process`]); its user, capabilities and limits come from its own description, the
//! seccomp profile always from the config that the container was created with.

pub mod enter;
pub mod process;
mod target;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use kiln_cgroups::{Below, Entrances};
use oci_spec::runtime::Process as SpecProcess;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};

pub use target::Target;

use crate::affinity::Affinity;
use crate::annotations::Extensions;
use crate::channel::{Channel, ToRuntime, send_descriptor};
use crate::create::Console;
use crate::create::{await_workload, check_terminal, end, gone, write_pid_file};
use crate::engine::Engine;
use crate::error::{Error, Failure, Step};
use crate::listener::{Agent, Listener};
use crate::plan::ProcessPlan;
use crate::process::Process;
use crate::rootless;
use crate::state::{State, Status};
use crate::sys::{self, Cloned};
use crate::wait::Child;

use enter::{Exec, Way};

/// What `exec` is asked for.
pub struct Options<'a> {
    /// The process, complete ([`process::complete`]).
    pub process: &'a SpecProcess,
    /// The cgroup below the container's.
    pub cgroup: Below,
    /// Where the process's pid goes, decimal, without newline.
    pub pid_file: Option<&'a Path>,
    /// A connected socket that its pidfd is sent over.
    pub pidfd_socket: Option<OwnedFd>,
    /// Where the terminal's master goes.
    pub console: Option<Console>,
    /// How many descriptors from 3 on the program gets.
    pub preserve_fds: u32,
    /// What runs the program, if execve(2) does not; prepared.
    pub engine: Option<Box<dyn Engine>>,
    /// Whether to return only when the program runs; else [`crate::wait::wait`] tells if it could
    /// not.
    pub confirm: bool,
}

/// An exec'd process, our child.
#[derive(Debug)]
pub struct Executed {
    state: State,
    pid: i32,
    pidfd: OwnedFd,
    engine: bool,
    /// Until its last word has been heard.
    channel: Option<Channel>,
}

/// Executes a process in the container `target`. Forks; no process is left behind if it fails.
///
/// # Errors
/// The process cannot be what it should, or its program cannot be executed.
pub fn exec(target: Target, mut options: Options<'_>) -> Result<Executed, Error> {
    let linux = target.linux();
    let mut extensions = Extensions::new(&target.state.annotations)?;
    let mut process = ProcessPlan::new(options.process, &linux)?;
    process.keep_groups = extensions.keep_groups;
    check_terminal(process.terminal, options.console.is_some())?;
    rootless::check_groups(&process, target.init.pid)?;
    let affinity = Affinity::new(options.process)?;
    let (seccomp, _) = extensions.seccomp(linux.seccomp().as_ref())?;
    // Before there is a process that would wait for it.
    let agent = target.state.listener.as_ref().map(Listener::connect).transpose()?;
    let membership = target.membership()?;
    if membership.flags & libc::CLONE_NEWUSER == 0 {
        process.capabilities.grant_only_held()?;
    }
    let root = if membership.foreign_root { Some(target.root()?) } else { None };
    let (channel, theirs) = Channel::pair()?;
    let exec = Exec {
        process,
        seccomp,
        affinity: affinity.clone(),
        channel: theirs,
        console: options.console.take(),
        engine: options.engine.take(),
        mounts: mounts(&target),
        keyring: target.state.keyring.then(|| target.state.id.clone()),
        preserve_fds: options.preserve_fds,
    };
    let engine = exec.engine.is_some();
    let (cgroups, joiner) = affinity.on_initial(|| clone(&target, &options.cgroup))?;
    let joiner = match joiner {
        Cloned::Child => {
            // The other end must not stay open: its end is how the runtime's is seen.
            drop(channel);
            let Target { pidfd, state, .. } = target;
            enter::join(exec, Way { pidfd, membership, root, cgroups, rdt: state.rdt })
        }
        Cloned::Parent { pidfd, .. } => pidfd,
    };
    // Its end of the channel, above all: without that its death would not be seen.
    drop((exec, cgroups));
    log::debug!("container {}: a process joins it", target.state.id);
    let mut executed = executed(channel, &joiner, engine, target.state.clone())?;
    match executed.settle(&options, agent) {
        Ok(()) => Ok(executed),
        Err(error) => Err(executed.undone(error)),
    }
}

/// The joiner, born in the container's unified cgroup where it has one.
fn clone(target: &Target, below: &Below) -> Result<(Entrances, Cloned), Error> {
    let step = || "clone the process".to_owned();
    let Some(paths) = &target.state.cgroup else {
        let none = Entrances { v1: Vec::new(), unified: None };
        return Ok((none, sys::clone3(0, None).step(step)?));
    };
    let mut cgroups = Entrances::open(paths, below)?;
    match sys::clone3(0, cgroups.unified.as_ref().map(AsFd::as_fd)) {
        // A v2 cgroup that has given controllers to its children takes no processes: as runc does,
        // the process goes where init went.
        Err(errno @ (Errno::BUSY | Errno::OPNOTSUPP)) if cgroups.unified.is_some() => {
            if !below.is_default() {
                return Err(kiln_cgroups::refused(paths, below, errno).into());
            }
            cgroups.unified = kiln_cgroups::unified_of(paths, target.init.pid)?;
            target.check()?;
            let cloned = sys::clone3(0, cgroups.unified.as_ref().map(AsFd::as_fd)).step(step)?;
            Ok((cgroups, cloned))
        }
        cloned => Ok((cgroups, cloned.step(step)?)),
    }
}

fn mounts(target: &Target) -> Vec<PathBuf> {
    let mounts = target.config.mounts().iter().flatten();
    mounts.map(|mount| mount.destination().clone()).collect()
}

/// Hears from the joiner which process is ours now, and reaps the joiner.
fn executed(
    channel: Channel,
    joiner: &OwnedFd,
    engine: bool,
    state: State,
) -> Result<Executed, Error> {
    let step = || "listen to the process".to_owned();
    let mut failure = None;
    let pid = loop {
        match channel.receive().step(step)? {
            Some(ToRuntime::Cloned(pid)) => break Some(pid),
            // The joiner's, or its child's, which may be faster.
            Some(ToRuntime::Failed(failed)) => failure = Some(failed),
            Some(_) => {}
            None => break None,
        }
    };
    let id = WaitId::PidFd(joiner.as_fd());
    if pid.is_none() && failure.is_none() {
        return Err(gone(joiner));
    }
    let _ = rustix::process::waitid(id, WaitIdOptions::EXITED);
    let Some(pid) = pid.and_then(Pid::from_raw) else {
        return Err(failure.map_or_else(|| Failure::because(step(), "no pid").into(), Error::from));
    };
    // Our child, not reaped: the pid is its.
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).step(step)?;
    let pid = pid.as_raw_nonzero().get();
    let executed = Executed { state, pid, pidfd, engine, channel: Some(channel) };
    match failure {
        Some(failure) => Err(executed.undone(failure.into())),
        None => Ok(executed),
    }
}

impl Executed {
    fn settle(&mut self, options: &Options<'_>, agent: Option<Agent<'_>>) -> Result<(), Error> {
        if let Some(socket) = &options.pidfd_socket {
            send_descriptor(socket, b"setns", &self.pidfd)
                .step(|| "send the pidfd to the pidfd socket".to_owned())?;
        }
        if (options.confirm || options.pid_file.is_some() || agent.is_some())
            && let Some(channel) = self.channel.take()
        {
            await_workload(&channel, &self.state, Status::Running, self.pid, agent)?;
            // Its death closes the channel, too.
            let process = Process { pid: self.pid, start_ticks: 0 };
            if !self.engine && !process.has_left_runtime() {
                return Err(gone(&self.pidfd));
            }
        }
        options.pid_file.map_or(Ok(()), |path| write_pid_file(path, self.pid))
    }

    /// Ends and reaps the process; returns the reason.
    fn undone(&self, error: Error) -> Error {
        end(&self.pidfd);
        error
    }
}

impl Child for Executed {
    fn pid(&self) -> i32 {
        self.pid
    }

    fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    fn confirm_ended(&self) -> Result<(), Error> {
        let Some(channel) = &self.channel else { return Ok(()) };
        await_workload(channel, &self.state, Status::Running, self.pid, None)
    }
}
