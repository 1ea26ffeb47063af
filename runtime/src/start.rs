//! `start`: runtime.md#start.

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::channel::{Channel, ToInit};
use crate::create::{await_workload, run_poststart};
use crate::error::{Error, Step};
use crate::listener::{Agent, Listener};
use crate::net_devices;
use crate::state::{ContainerDir, START_SOCKET, State, Status};

/// Executes the workload of a created container and returns once it runs.
///
/// # Errors
/// The container is not created, or the workload cannot be executed; the container is stopped
/// then.
pub fn start(dir: &ContainerDir) -> Result<(), Error> {
    dir.lock()?;
    let state = dir.read()?.ok_or_else(|| Error::NotFound(dir.id().to_string()))?;
    let refused = |status| Error::Status { id: dir.id().to_string(), operation: "start", status };
    match dir.status(&state) {
        Status::Created => {}
        status => return Err(refused(status)),
    }
    // Before anything is started: without the agent the container stays as it is.
    let agent = state.listener.as_ref().map(Listener::connect).transpose()?;
    let devices = net_devices::of_waiting(&state)?;
    let step = || format!("start container {}", dir.id());
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).step(step)?;
    let address = SocketAddrUnix::new(dir.short_path(START_SOCKET)).step(step)?;
    rustix::net::connect(&socket, &address).step(step)?;
    // Before the message: if we are killed in between, init sees the end of the connection and
    // ends; a status of `created` with a running workload cannot be.
    if !dir.take_start_socket()? {
        return Err(refused(Status::Running));
    }
    let channel = Channel::from_socket(socket);
    let started = go(dir, &state, &channel, agent);
    if let (Err(_), Some(devices)) = (&started, devices) {
        devices.give_back();
    }
    started
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
