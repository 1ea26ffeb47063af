//! The Task API: `containerd.task.v2.Task` (containerd 1.x) and `v3`, which are the same messages
//! under two names.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::events::task;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::Request;
use kiln_cgroups::{Cgroup, Paths};
use kiln_runtime::channel::receive_descriptor;
use kiln_runtime::order::{self, NoEngine, Order, Streams};
use kiln_runtime::state::{ContainerDir, StateRoot};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::container::{Container, Process};
use crate::error::{Context, Error};
use crate::jobs::{Done, Job};
use crate::options::Options;
use crate::server::{Call, Server};
use crate::stdio;
use crate::terminal::Terminal;

mod creating;
mod ending;
mod running;
mod starting;

/// What the API is called.
pub const SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// The exit status of what was killed.
const KILLED: u32 = 128 + libc::SIGKILL.cast_unsigned();

/// An answer now, or none yet.
pub type Reply = Result<Option<Vec<u8>>, Error>;

/// How to go on when a job is done.
#[derive(Debug)]
pub enum After {
    /// The module of a container without a rootfs has been looked for; the descriptor is it.
    LookUp(Creation),
    /// There is a container.
    Create(Creation),
    /// A container's process runs, its init if the exec's id is empty.
    Start { call: Call, id: String, exec_id: String, console: Option<OwnedFd> },
    /// A container has gone.
    Delete { call: Call, id: String },
    /// A container is frozen, or is not any more.
    Freeze { call: Call, id: String, frozen: bool },
    /// A checkpoint is written.
    Checkpoint { call: Call, id: String, path: String },
    /// What a creation that has failed left behind is removed.
    Undo { call: Call, id: String, error: Error },
    /// Something that has no event.
    Answer(Call),
    /// Nobody waits for it.
    Nothing,
}

/// A container that is being made.
#[derive(Debug)]
pub struct Creation {
    call: Call,
    request: CreateTaskRequest,
    order: order::Create,
    /// Opened once, and kept until somebody else has them: without a writer a reader finds the end.
    streams: Option<Streams>,
    /// Where the terminal's master arrives.
    console: Option<OwnedFd>,
    /// Whether the warm parent does it, which may have died before it began.
    warm: bool,
    again: bool,
    /// The entrypoint's, where it does not lie in the rootfs.
    module: Option<OwnedFd>,
}

fn parse<M: Message>(request: &Request) -> Result<M, Error> {
    M::parse_from_bytes(&request.payload)
        .map_err(|error| Error::Request { field: "payload", problem: error.to_string() })
}

fn encoded(message: &impl Message) -> Vec<u8> {
    message.write_to_bytes().unwrap_or_default()
}

fn encode(message: &impl Message) -> Reply {
    Ok(Some(encoded(message)))
}

/// google.protobuf.Empty.
fn empty() -> Reply {
    Ok(Some(Vec::new()))
}

impl Server {
    /// Begins to do what a request asks for.
    ///
    /// # Errors
    /// It is refused.
    pub fn dispatch(&mut self, call: Call, request: &Request) -> Reply {
        if !SERVICES.contains(&request.service.as_str()) {
            return Err(Error::Unsupported(format!("{}/{}", request.service, request.method)));
        }
        match request.method.as_str() {
            "State" => self.state(&parse(request)?),
            "Create" => self.create(call, parse(request)?),
            "Start" => self.start(call, &parse(request)?),
            "Delete" => self.delete(call, &parse(request)?),
            "Pids" => self.pids(call, &parse(request)?),
            "Pause" => self.pause(call, &parse(request)?),
            "Resume" => self.resume(call, &parse(request)?),
            "Checkpoint" => self.checkpoint(call, &parse(request)?),
            "Kill" => self.kill(&parse(request)?),
            "Exec" => self.exec(parse(request)?),
            "ResizePty" => self.resize_pty(&parse(request)?),
            "CloseIO" => self.close_io(&parse(request)?),
            "Update" => self.update(call, &parse(request)?),
            "Wait" => self.wait_for(call, &parse(request)?),
            "Stats" => self.stats(&parse(request)?),
            "Connect" => self.connect(call, &parse(request)?),
            "Shutdown" => self.shutdown(&parse(request)?),
            other => Err(Error::Unsupported(other.to_owned())),
        }
    }

    /// Goes on when a job is done.
    pub fn go_on(&mut self, after: After, result: Result<Done, Error>) {
        match after {
            After::LookUp(creation) => self.looked_up(creation, result),
            After::Create(creation) => self.created(creation, result),
            After::Start { call, id, exec_id, console } => {
                let answer = self.started(&id, &exec_id, console, result);
                self.answer(call, answer);
                self.tell_early_exit(&id, &exec_id);
            }
            After::Delete { call, id } => {
                let answer = match result {
                    Ok(_) => self.deleted(&id),
                    Err(error) => {
                        self.stays(&id);
                        Err(error)
                    }
                };
                self.answer(call, answer);
            }
            After::Freeze { call, id, frozen } => {
                let answer = result.map(|_| self.frozen(id, frozen));
                self.answer(call, answer);
            }
            After::Checkpoint { call, id, path } => {
                let answer = result.map(|_| {
                    let mut event = task::TaskCheckpointed::new();
                    (event.container_id, event.checkpoint) = (id, path);
                    self.publisher.publish(&event);
                    Vec::new()
                });
                self.answer(call, answer);
            }
            After::Undo { call, id, error } => {
                if let Err(left) = result {
                    log::warn!("undo the creation of {id}: {left}");
                }
                self.forget(&id);
                self.answer(call, Err(error));
            }
            After::Answer(call) => self.answer(call, result.map(|_| Vec::new())),
            After::Nothing => {
                if let Err(error) = result {
                    log::warn!("{error}");
                }
            }
        }
    }

    fn container(&self, id: &str) -> Result<&Container, Error> {
        self.containers.get(id).ok_or_else(|| Error::NotFound(format!("container {id}")))
    }

    fn container_mut(&mut self, id: &str) -> Result<&mut Container, Error> {
        self.containers.get_mut(id).ok_or_else(|| Error::NotFound(format!("container {id}")))
    }

    fn process(&self, id: &str, exec_id: &str) -> Result<&Process, Error> {
        let container = self.container(id)?;
        container.process(exec_id).ok_or_else(|| Error::NotFound(format!("process {exec_id}")))
    }

    fn process_mut(&mut self, id: &str, exec_id: &str) -> Result<&mut Process, Error> {
        let container = self.container_mut(id)?;
        container.process_mut(exec_id).ok_or_else(|| Error::NotFound(format!("process {exec_id}")))
    }

    /// The container's directory below the state root.
    fn find(&self, id: &str) -> Result<(StateRoot, ContainerDir), Error> {
        let root = self.container(id)?.options.state_root(&self.namespace);
        find(&root, id)
    }

    /// Has a job do something to the container's state.
    fn with_state(
        &self,
        id: &str,
        work: impl FnOnce(StateRoot, ContainerDir) -> Result<(), Error>,
    ) -> Result<Job, Error> {
        let root = self.container(id)?.options.state_root(&self.namespace);
        Job::start(&[], || {
            let (root, dir) = find(&root, id)?;
            work(root, dir).map(|()| (0, None))
        })
    }

    fn cgroup_paths(&self, id: &str) -> Result<Paths, Error> {
        let (_, dir) = self.find(id)?;
        let missing = || Error::NotFound(format!("cgroup of {id}"));
        dir.read()?.and_then(|state| state.cgroup).ok_or_else(missing)
    }

    fn cgroup(&self, id: &str) -> Result<Cgroup, Error> {
        Ok(Cgroup::open(&self.cgroup_paths(id)?).map_err(kiln_runtime::Error::from)?)
    }

    /// Opens a process's streams, or makes the socket over which its terminal is to come.
    fn streams(
        &mut self,
        id: &str,
        exec_id: &str,
        console: &mut Option<OwnedFd>,
    ) -> Result<Streams, Error> {
        let namespace = self.namespace.clone();
        let Options { io_uid, io_gid, .. } = self.container(id)?.options;
        let process = self.process_mut(id, exec_id)?;
        if process.io.terminal {
            let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
            let pair = rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None);
            let (ours, theirs) = pair.step("make a console socket")?;
            *console = Some(ours);
            return Ok(Streams::Console(theirs));
        }
        let (files, held) = stdio::open(&process.io, id, &namespace)?;
        if (io_uid, io_gid) != (0, 0) {
            stdio::give(&files, io_uid, io_gid)?;
        }
        process.held = held;
        Ok(Streams::Files(files))
    }

    /// Takes the terminal's master, which has been sent by now.
    fn take_terminal(&mut self, id: &str, exec_id: &str, console: &OwnedFd) -> Result<(), Error> {
        let master = receive_descriptor(console).step("receive the terminal")?;
        let io = &self.process(id, exec_id)?.io;
        let (terminal, held) = Terminal::new(master, io, id, &self.namespace)?;
        let number = self.add_terminal(terminal);
        let process = self.process_mut(id, exec_id)?;
        process.terminal = Some(number);
        process.held = held;
        Ok(())
    }
}

/// A path that is given, or else the other one.
fn first(given: &str, other: PathBuf) -> PathBuf {
    match given {
        "" => other,
        given => PathBuf::from(given),
    }
}

fn find(root: &Path, id: &str) -> Result<(StateRoot, ContainerDir), Error> {
    let missing = || kiln_runtime::Error::NotFound(id.to_owned());
    let root = StateRoot::open(root)?.ok_or_else(missing)?;
    let dir = root.find(&id.parse()?)?;
    Ok((root, dir))
}

/// Has a job carry an order out that needs no engine.
fn carry_out(order: &Order, streams: &Streams) -> Result<Job, Error> {
    Job::start(&streams.descriptors(), || {
        Ok((order::carry_out(order, streams, &mut NoEngine)?, None))
    })
}
