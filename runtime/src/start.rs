//! `start`: runtime.md#start.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::channel::{Channel, ToInit};
use crate::create::{await_workload, run_poststart};
use crate::error::{Error, Step};
use crate::listener::{Agent, Listener};
use crate::net_devices;
use crate::ready::{Manager, Ready};
use crate::state::{ContainerDir, START_SOCKET, State, Status};

/// Executes the workload of a created container and returns once it runs; if it was created with a
/// NOTIFY_SOCKET and there is a `manager` (as in [`crate::create::Options`]), once it is ready, or
/// has ended.
///
/// # Errors
/// The container is not created, or the workload cannot be executed; the container is stopped
/// then.
pub fn start(dir: &ContainerDir, manager: Option<Manager>) -> Result<(), Error> {
    dir.lock()?;
    let state = waiting(dir)?;
    // Before anything is started: without the agent the container stays as it is.
    let agent = state.listener.as_ref().map(Listener::connect).transpose()?;
    let devices = net_devices::of_waiting(&state)?;
    let ready = manager.map(|manager| Ready::listen(dir, manager)).transpose()?.flatten();
    let channel = call(dir)?;
    let started = go(dir, &state, &channel, agent);
    if let (Err(_), Some(devices)) = (&started, devices) {
        devices.give_back();
    }
    started?;
    if let (Some(ready), Some(init)) = (ready, &state.init) {
        // It may take as long as it likes; others have work to do.
        dir.unlock();
        let pidfd = init.pidfd()?;
        pidfd.inspect(|pidfd| ready.pass_on(pidfd.as_fd(), init.pid, true));
    }
    Ok(())
}

/// The state of a container that waits for its start.
fn waiting(dir: &ContainerDir) -> Result<State, Error> {
    let state = dir.read()?.ok_or_else(|| Error::NotFound(dir.id().to_string()))?;
    match dir.status(&state) {
        Status::Created => Ok(state),
        status => Err(refused(dir, status)),
    }
}

fn refused(dir: &ContainerDir, status: Status) -> Error {
    Error::Status { id: dir.id().to_string(), operation: "start", status }
}

/// Connects to init, which listens no more from here on.
fn call(dir: &ContainerDir) -> Result<Channel, Error> {
    let step = || format!("start container {}", dir.id());
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).step(step)?;
    let address = SocketAddrUnix::new(dir.short_path(START_SOCKET)).step(step)?;
    rustix::net::connect(&socket, &address).step(step)?;
    // Before the message: if we are killed in between, init sees the end of the connection and
    // ends; a status of `created` with a running workload cannot be.
    match dir.take_start_socket()? {
        true => Ok(Channel::from_socket(socket)),
        false => Err(refused(dir, Status::Running)),
    }
}

/// A start that is on its way. Poll its descriptor for reading, then call [`Begun::finish`].
#[derive(Debug)]
pub struct Begun {
    /// Locked until then.
    _dir: ContainerDir,
    state: State,
    channel: Channel,
}

impl AsFd for Begun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// As [`start`], for a caller that must not wait: says go, and returns. None if there is more to do
/// than that (poststart hooks, a seccomp agent, network devices), or another command is at work on the
/// container: then nothing has been done.
///
/// # Errors
/// The container is not created.
pub fn begin(dir: ContainerDir) -> Result<Option<Begun>, Error> {
    if !dir.try_lock()? {
        return Ok(None);
    }
    let state = waiting(&dir)?;
    if state.poststart.is_some() || state.listener.is_some() || !state.net_devices.is_empty() {
        return Ok(None);
    }
    let channel = call(&dir)?;
    channel.send(&ToInit::Start).step(|| format!("start container {}", dir.id()))?;
    Ok(Some(Begun { _dir: dir, state, channel }))
}

impl Begun {
    /// Whether the workload runs; blocks until it does.
    ///
    /// # Errors
    /// It cannot be executed; the container is stopped.
    pub fn finish(&self) -> Result<(), Error> {
        let pid = self.state.init.as_ref().map_or(0, |init| init.pid);
        await_workload(&self.channel, &self.state, Status::Created, pid, None)
    }
}

/// Says go, and waits until the workload runs.
fn go(
    dir: &ContainerDir,
    state: &State,
    channel: &Channel,
    agent: Option<Agent<'_>>,
) -> Result<(), Error> {
    channel.send(&ToInit::Start).step(|| format!("start container {}", dir.id()))?;
    let notifies = agent.is_some();
    let pid = state.init.as_ref().map_or(0, |init| init.pid);
    let workload = await_workload(channel, state, Status::Created, pid, agent);
    if let (true, Err(_), Some(init)) = (notifies, &workload, &state.init) {
        // It would wait for the agent for ever. If it has ended by itself, so much the better.
        let _ = init.signal(libc::SIGKILL);
    }
    workload?;
    after_start(state, dir)
}

/// The poststart hooks; where one fails the container is stopped.
fn after_start(state: &State, dir: &ContainerDir) -> Result<(), Error> {
    let hooks = run_poststart(state, dir);
    if let (Err(_), Some(init)) = (&hooks, &state.init) {
        init.signal(libc::SIGKILL)?;
    }
    hooks
}
