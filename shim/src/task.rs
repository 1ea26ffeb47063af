//! The Task API: `containerd.task.v2.Task` (containerd 1.x) and `v3`, which are the same messages
//! under two names.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::events::task;
use containerd_shim_protos::protobuf::{EnumOrUnknown, Message, MessageField};
use containerd_shim_protos::shim::oci;
use containerd_shim_protos::ttrpc::Request;
use containerd_shim_protos::types::mount as api;
use kiln_cgroups::{Cgroup, OomWatch, Paths};
use kiln_image::containerd::module_of;
use kiln_runtime::channel::receive_descriptor;
use kiln_runtime::checkpoint::{self, CgroupsMode};
use kiln_runtime::order::{self, NoEngine, Order, RefusalKind, Streams};
use kiln_runtime::snapshot::{self, Mount};
use kiln_runtime::state::{ContainerDir, StateRoot};
use kiln_runtime::{delete, kill, pause, start, sys, update};
use oci_spec::runtime::LinuxResources;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::PidfdFlags;

use crate::container::{Awaited, Container, Io, Process, Stage};
use crate::error::{Context, Error};
use crate::events::any;
use crate::exit::Exit;
use crate::facts::Facts;
use crate::jobs::{Done, Job};
use crate::options::{self, Options};
use crate::server::{Call, Server};
use crate::stats;
use crate::stdio;
use crate::terminal::Terminal;

/// What the API is called.
pub const SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// The exit status of what was killed.
const KILLED: u32 = 128 + libc::SIGKILL.cast_unsigned();
/// How long containerd may take to hand a module over.
const LOOKUP_LIMIT: Duration = Duration::from_secs(30);

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

    // --- create ---

    fn create(&mut self, call: Call, request: CreateTaskRequest) -> Reply {
        let id = request.id.clone();
        if self.containers.contains_key(&id) {
            return Err(Error::Exists(format!("container {id}")));
        }
        if self.is_ending() {
            return Err(Error::Status("the shim is shut down".to_owned()));
        }
        let bundle = PathBuf::from(&request.bundle);
        let options = Options::read(request.options.as_ref())?;
        options.save(&bundle)?;
        let facts = Facts::read(&bundle)?;
        let io = Io {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let order = order::Create {
            root: options.state_root(&self.namespace),
            id: id.clone(),
            bundle: bundle.clone(),
            pid_file: Some(bundle.join("init.pid")),
            pivot: !options.no_pivot_root,
            keyring: !options.no_new_keyring,
            systemd: options.systemd_cgroup,
            snapshot: request.rootfs.iter().map(mount).collect(),
            empty: false,
        };
        let warm = facts.may_be_wasm() && !facts.is_sandbox();
        let restore = (!request.checkpoint.is_empty()).then(|| order::Restore {
            container: order.clone(),
            image_path: PathBuf::from(&request.checkpoint),
            work_path: Some(first(&options.criu_work_path, bundle.join("work"))),
        });
        let container = Container {
            bundle,
            options,
            init: Process::new(io, Stage::Making),
            execs: Default::default(),
            paused: false,
            restore,
            oom: None,
            leaving: false,
            awaited: Vec::new(),
            facts,
        };
        if container.facts.may_be_wasm()
            && let Err(error) = self.warm.start()
        {
            // Of a sandbox: its containers will say it.
            log::warn!("{error}");
        }
        self.containers.insert(id.clone(), container);
        let creation = Creation {
            call,
            request,
            order,
            streams: None,
            console: None,
            warm,
            again: false,
            module: None,
        };
        let begun = self.make(creation).map_err(|(_, error)| error);
        begun.inspect_err(|_| drop(self.forget(&id)))?;
        Ok(None)
    }

    /// Of a container that is no more: whoever waits for something of it is told.
    fn forget(&mut self, id: &str) -> Option<Container> {
        let mut container = self.containers.remove(id)?;
        let missing = || Err(Error::NotFound(format!("container {id}")));
        for (call, awaited) in container.awaited.drain(..) {
            let answer = match awaited {
                Awaited::Delete => Ok(encoded(&delete_response(&container.init))),
                Awaited::Connect | Awaited::Pids => missing(),
            };
            self.answer(call, answer);
        }
        for process in container.execs.values_mut().chain([&mut container.init]) {
            self.drop_terminal(process.terminal);
            process.waiters.drain(..).for_each(|call| self.answer(call, missing()));
        }
        Some(container)
    }

    /// Of a container that is there, after all.
    fn stays(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.leaving = false;
        for (call, awaited) in std::mem::take(&mut container.awaited) {
            let answer = match awaited {
                Awaited::Connect => self.connect_response(id),
                Awaited::Pids => self.pids_response(id),
                // It was to go before it was there: `created` sees to that.
                Awaited::Delete => continue,
            };
            self.answer(call, answer);
        }
    }

    /// Has a job make the container, or the warm parent where an engine may be needed.
    fn make(&mut self, creation: Creation) -> Result<(), (Box<Creation>, Error)> {
        let mut creation = creation;
        match self.begin(&mut creation) {
            Ok(Some(job)) => self.expect(job, After::Create(creation)),
            // Its process comes with `start`.
            Ok(None) => self.created(creation, Ok((0, None))),
            Err(error) => return Err((Box::new(creation), error)),
        }
        Ok(())
    }

    fn begin(&mut self, creation: &mut Creation) -> Result<Option<Job>, Error> {
        let id = creation.order.id.clone();
        if self.container(&id)?.restore.is_some() {
            return Ok(None);
        }
        let streams = match creation.streams.take() {
            Some(streams) => streams,
            None => self.streams(&id, "", &mut creation.console)?,
        };
        let streams = &*creation.streams.insert(streams);
        let order = Order::Create(creation.order.clone());
        if !creation.warm {
            return carry_out(&order, streams).map(Some);
        }
        let streams = streams.try_clone().step("keep the streams")?;
        let module = creation.module.as_ref().map(OwnedFd::try_clone).transpose();
        self.warm.order(&order, streams, module.step("keep the module")?).map(Some)
    }

    /// The same once more, after something has been found out.
    fn make_again(&mut self, creation: Creation) {
        if let Err((creation, error)) = self.make(creation) {
            self.failed(*creation, error);
        }
    }

    /// Looks for the module of a container whose rootfs is empty: its image may be a wasm artifact,
    /// which nobody unpacks.
    fn look_up(&mut self, creation: Creation) {
        let id = creation.order.id.clone();
        let begun = self.container(&id).and_then(|container| {
            let entrypoint = container.facts.entrypoint();
            Job::start(&[], || {
                let (address, limit) = (&self.address, LOOKUP_LIMIT);
                let module = module_of(address, &self.namespace, &id, entrypoint, limit)?;
                Ok((0, module.map(|module| module.file)))
            })
        });
        match begun {
            Ok(job) => self.expect(job, After::LookUp(creation)),
            Err(error) => self.failed(creation, error),
        }
    }

    fn looked_up(&mut self, mut creation: Creation, result: Result<Done, Error>) {
        match result {
            Ok((_, module)) => {
                creation.warm |= module.is_some();
                creation.module = module;
                // If there is none, this is a rootfs like any other.
                creation.order.empty = true;
                self.make_again(creation);
            }
            Err(error) => self.failed(creation, error),
        }
    }

    fn created(&mut self, mut creation: Creation, result: Result<Done, Error>) {
        let id = creation.order.id.clone();
        let error = match result {
            Ok((pid, _)) => match self.announce(&creation, pid) {
                Ok(answer) => {
                    self.answer(creation.call, Ok(answer));
                    return self.settle(&id);
                }
                Err(error) => error,
            },
            Err(error) => error,
        };
        let is = |kind| matches!(&error, Error::Refused(refusal) if refusal.kind == kind);
        if is(RefusalKind::EmptyRootfs) {
            return self.look_up(creation);
        }
        let untouched = find(&creation.order.root, &id).is_err();
        if is(RefusalKind::Died) && creation.warm && !creation.again && untouched {
            // The warm parent died before it began: another does it.
            log::warn!("container {id}: {error}; another warm parent is started");
            self.warm.forget();
            snapshot::unmount_all(&creation.order.bundle);
            creation.again = true;
            return self.make_again(creation);
        }
        self.failed(creation, error);
    }

    fn failed(&mut self, creation: Creation, error: Error) {
        let order::Create { id, root, bundle, .. } = creation.order;
        // What was mounted is unmounted, and what a job that was killed has left is removed. It is
        // answered afterwards: the id is free then, and containerd has the shim end.
        let undone = Job::start(&[], || {
            if let Ok((root, dir)) = find(&root, &id) {
                delete::delete(&root, &dir, true)?;
            }
            snapshot::unmount_all(&bundle);
            Ok((0, None))
        });
        let after = After::Undo { call: creation.call, id, error };
        match undone {
            Ok(job) => self.expect(job, after),
            Err(left) => self.go_on(after, Err(left)),
        }
    }

    fn announce(&mut self, creation: &Creation, pid: i32) -> Result<Vec<u8>, Error> {
        let id = &creation.order.id;
        if self.container(id)?.leaving {
            return Err(Error::Status(format!("container {id} was deleted while it was made")));
        }
        if let Some(console) = &creation.console
            && pid != 0
        {
            self.take_terminal(id, "", console)?;
        }
        let process = self.process_mut(id, "")?;
        process.pid = pid;
        process.stage = Stage::Created;
        let request = &creation.request;
        let mut event = task::TaskCreate::new();
        event.container_id.clone_from(id);
        event.bundle.clone_from(&request.bundle);
        event.checkpoint.clone_from(&request.checkpoint);
        event.pid = pid.cast_unsigned();
        event.rootfs.clone_from(&request.rootfs);
        let mut io = task::TaskIO::new();
        io.stdin.clone_from(&request.stdin);
        io.stdout.clone_from(&request.stdout);
        io.stderr.clone_from(&request.stderr);
        io.terminal = request.terminal;
        event.io = MessageField::some(io);
        self.publisher.publish(&event);
        let mut response = CreateTaskResponse::new();
        response.pid = pid.cast_unsigned();
        Ok(encoded(&response))
    }

    /// What nobody waits for: an end that was seen too early, and the watch on memory.
    fn settle(&mut self, id: &str) {
        let Ok(process) = self.process(id, "") else { return };
        if let Some(exit) = self.claim(process.pid) {
            self.process_ended(id, "", exit);
        }
        let watch = self
            .cgroup_paths(id)
            .and_then(|paths| Ok(OomWatch::at(&paths).map_err(kiln_runtime::Error::from)?));
        let Some(container) = self.containers.get_mut(id) else { return };
        match watch {
            Ok(watch) => container.oom = Some(watch),
            Err(error) => log::info!("container {id}: no OOM events: {error}"),
        }
        self.stays(id);
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

    // --- start ---

    fn start(&mut self, call: Call, request: &StartRequest) -> Reply {
        let StartRequest { id, exec_id, .. } = request;
        let process = self.process(id, exec_id)?;
        if process.stage != Stage::Created {
            let status = self.container(id)?.status(process);
            let killed = process.exit().is_some_and(|exit| exit.status == KILLED);
            let hint = if killed { ": killed (hint: is the memory limit too small?)" } else { "" };
            return Err(Error::Status(format!("cannot start a process that is {status:?}{hint}")));
        }
        let mut console = None;
        let begun = match exec_id.as_str() {
            "" if self.container(id)?.restore.is_some() => self.restore(id, &mut console),
            "" => self.start_init(id),
            _ => self.execute(id, exec_id, &mut console),
        };
        let job = begun?;
        self.process_mut(id, exec_id)?.stage = Stage::Starting;
        let (id, exec_id) = (id.clone(), exec_id.clone());
        self.expect(job, After::Start { call, id, exec_id, console });
        Ok(None)
    }

    /// Mostly no more than a word to init.
    fn start_init(&self, id: &str) -> Result<Job, Error> {
        match start::begin(self.find(id)?.1)? {
            Some(begun) => Ok(Job::starting(begun)),
            None => self.with_state(id, |_, dir| Ok(start::start(&dir, None)?)),
        }
    }

    fn execute(
        &mut self,
        id: &str,
        exec_id: &str,
        console: &mut Option<OwnedFd>,
    ) -> Result<Job, Error> {
        let streams = self.streams(id, exec_id, console)?;
        let container = self.container(id)?;
        let order = Order::Exec(order::Exec {
            root: container.options.state_root(&self.namespace),
            id: id.to_owned(),
            process: self.process(id, exec_id)?.spec.clone(),
            pid_file: None,
        });
        if container.facts.may_be_wasm() && !container.facts.is_sandbox() {
            return self.warm.order(&order, streams, None);
        }
        carry_out(&order, &streams)
    }

    fn restore(&mut self, id: &str, console: &mut Option<OwnedFd>) -> Result<Job, Error> {
        let streams = self.streams(id, "", console)?;
        let restore = self.container(id)?.restore.clone();
        let missing = || Error::Status("the container is no checkpoint's".to_owned());
        let order = Order::Restore(restore.ok_or_else(missing)?);
        carry_out(&order, &streams)
    }

    fn started(
        &mut self,
        id: &str,
        exec_id: &str,
        console: Option<OwnedFd>,
        result: Result<Done, Error>,
    ) -> Result<Vec<u8>, Error> {
        let is_init = exec_id.is_empty();
        let (pid, _) = result.inspect_err(|_| self.start_failed(id, exec_id))?;
        if let Some(console) = &console {
            self.take_terminal(id, exec_id, console)?;
        }
        let process = self.process_mut(id, exec_id)?;
        // A created container has its pid already.
        if process.pid == 0 {
            process.pid = pid;
        }
        let pid = process.pid;
        process.stage = Stage::Running;
        if is_init {
            let mut event = task::TaskStart::new();
            (event.container_id, event.pid) = (id.to_owned(), pid.cast_unsigned());
            self.publisher.publish(&event);
        } else {
            let mut event = task::TaskExecStarted::new();
            (event.container_id, event.exec_id) = (id.to_owned(), exec_id.to_owned());
            event.pid = pid.cast_unsigned();
            self.publisher.publish(&event);
        }
        let mut response = StartResponse::new();
        response.pid = pid.cast_unsigned();
        Ok(encoded(&response))
    }

    /// An exec that could not be started has ended; a container ends by itself.
    fn start_failed(&mut self, id: &str, exec_id: &str) {
        let Ok(process) = self.process_mut(id, exec_id) else { return };
        process.stage = Stage::Created;
        if process.pid == 0 {
            process.stage = Stage::Stopped(Exit::now(255));
            process.held = stdio::Held::default();
            let waiters = std::mem::take(&mut process.waiters);
            self.tell(waiters, id, exec_id);
        }
    }

    fn tell_early_exit(&mut self, id: &str, exec_id: &str) {
        let Ok(process) = self.process_mut(id, exec_id) else { return };
        let (pid, early) = (process.pid, process.early_exit.take());
        let running = process.exit().is_none();
        if let Some(exit) = early.or_else(|| self.claim(pid)).filter(|_| running) {
            self.process_ended(id, exec_id, exit);
        }
    }

    // --- the end ---

    fn delete(&mut self, call: Call, request: &DeleteRequest) -> Reply {
        if self.put_off(call, request) {
            return Ok(None);
        }
        self.delete_now(call, request)
    }

    /// The same, without a look at its output.
    ///
    /// # Errors
    /// It is refused.
    pub fn delete_now(&mut self, call: Call, request: &DeleteRequest) -> Reply {
        let DeleteRequest { id, exec_id, .. } = request;
        let container = self.container(id)?;
        let process = self.process(id, exec_id)?;
        if process.stage == Stage::Making && exec_id.is_empty() {
            return self.delete_unmade(call, id);
        }
        if matches!(process.stage, Stage::Making | Stage::Starting | Stage::Running) {
            let status = container.status(process);
            return Err(Error::Status(format!("cannot delete a process that is {status:?}")));
        }
        if container.leaving {
            return Err(Error::Status(format!("container {id} is being deleted")));
        }
        if !exec_id.is_empty() {
            let response = delete_response(process);
            if let Some(process) = self.container_mut(id)?.execs.remove(exec_id) {
                self.drop_terminal(process.terminal);
                // One that was never started has nobody else to end it.
                self.tell(process.waiters, id, exec_id);
            }
            return encode(&response);
        }
        let bundle = container.bundle.clone();
        let root = container.options.state_root(&self.namespace);
        let job = Job::start(&[], || {
            match find(&root, id) {
                Ok((root, dir)) => delete::delete(&root, &dir, false)?,
                // Never restored, or deleted by hand.
                Err(Error::Runtime(kiln_runtime::Error::NotFound(_))) => {}
                Err(error) => return Err(error),
            }
            snapshot::unmount_all(&bundle);
            Ok((0, None))
        })?;
        self.container_mut(id)?.leaving = true;
        self.expect(job, After::Delete { call, id: id.clone() });
        Ok(None)
    }

    /// One that is being made is what a caller leaves who did not want to wait any more: a hook may
    /// hang. It is told to end; when nobody is at work any more, what has come of it is undone.
    fn delete_unmade(&mut self, call: Call, id: &str) -> Reply {
        let job = self.with_state(id, |root, dir| Ok(delete::delete(&root, &dir, true)?))?;
        let container = self.container_mut(id)?;
        container.leaving = true;
        container.awaited.push((call, Awaited::Delete));
        self.expect(job, After::Nothing);
        Ok(None)
    }

    fn deleted(&mut self, id: &str) -> Result<Vec<u8>, Error> {
        let init = &self.container(id)?.init;
        if init.stage == Stage::Created && init.pid != 0 {
            // The job has killed it: its end comes before its removal.
            self.process_ended(id, "", killed());
        }
        let container = self.forget(id);
        let container = container.ok_or_else(|| Error::NotFound(format!("container {id}")))?;
        let response = delete_response(&container.init);
        let mut event = task::TaskDelete::new();
        id.clone_into(&mut event.container_id);
        event.pid = response.pid;
        event.exit_status = response.exit_status;
        event.exited_at.clone_from(&response.exited_at);
        self.publisher.publish(&event);
        Ok(encoded(&response))
    }

    fn kill(&mut self, request: &KillRequest) -> Reply {
        let KillRequest { id, exec_id, .. } = request;
        let signal = i32::try_from(request.signal).unwrap_or(-1);
        let process = self.process(id, exec_id)?;
        if process.exit().is_some() && !request.all {
            return Err(Error::Finished);
        }
        if exec_id.is_empty() {
            let (_, dir) = self.find(id)?;
            match kill::kill(&dir, signal, request.all) {
                Err(kiln_runtime::Error::NotRunning) => return Err(Error::Finished),
                killed => killed?,
            }
            return empty();
        }
        let pid = match process.stage {
            Stage::Running => rustix::process::Pid::from_raw(process.pid),
            _ => return Err(Error::Status(format!("process {exec_id} does not run"))),
        };
        // Our child, not reaped: the pid is its.
        let process = pid.ok_or(Error::Finished)?;
        let process = rustix::process::pidfd_open(process, PidfdFlags::empty()).step("find it")?;
        // Not by an enumeration: that has neither 0 nor the real-time ones.
        match sys::pidfd_send_signal(process.as_fd(), signal) {
            Err(Errno::SRCH) => Err(Error::Finished),
            sent => sent.step(format!("send signal {signal}")).and_then(|()| empty()),
        }
    }

    /// SIGKILL to what a shared pid namespace has kept of a container.
    pub fn kill_what_is_left(&mut self, id: &str) {
        let job = self.with_state(id, |_, dir| match kill::kill(&dir, libc::SIGKILL, true) {
            Err(kiln_runtime::Error::NotRunning) => Ok(()),
            killed => Ok(killed?),
        });
        match job {
            Ok(job) => self.expect(job, After::Nothing),
            Err(error) => log::warn!("container {id}: {error}"),
        }
    }

    fn wait_for(&mut self, call: Call, request: &WaitRequest) -> Reply {
        let process = self.process_mut(&request.id, &request.exec_id)?;
        if process.exit().is_none() {
            process.waiters.push(call);
            return Ok(None);
        }
        self.wait_response(&request.id, &request.exec_id).map(Some)
    }

    /// Answers those who wait for a process.
    pub fn tell(&mut self, waiters: Vec<Call>, id: &str, exec_id: &str) {
        for call in waiters {
            let answer = self.wait_response(id, exec_id);
            self.answer(call, answer);
        }
    }

    /// How the process has ended, encoded.
    ///
    /// # Errors
    /// It has been deleted.
    pub fn wait_response(&self, id: &str, exec_id: &str) -> Result<Vec<u8>, Error> {
        let mut response = WaitResponse::new();
        if let Some(exit) = self.process(id, exec_id)?.exit() {
            response.exit_status = exit.status;
            response.exited_at = MessageField::some(exit.at.clone());
        }
        Ok(encoded(&response))
    }

    fn shutdown(&mut self, request: &ShutdownRequest) -> Reply {
        if request.now || self.containers.is_empty() {
            self.end();
        }
        empty()
    }

    // --- while it runs ---

    fn exec(&mut self, request: ExecProcessRequest) -> Reply {
        let container = self.container_mut(&request.id)?;
        if request.exec_id.is_empty() {
            return Err(Error::Request { field: "exec_id", problem: "is empty".to_owned() });
        }
        if container.execs.contains_key(&request.exec_id) {
            return Err(Error::Exists(format!("process {}", request.exec_id)));
        }
        let io = Io {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let mut process = Process::new(io, Stage::Created);
        let spec = request.spec.into_option().unwrap_or_default().value;
        process.spec = String::from_utf8(spec)
            .map_err(|_| Error::Request { field: "spec", problem: "is not UTF-8".to_owned() })?;
        container.execs.insert(request.exec_id.clone(), process);
        let mut event = task::TaskExecAdded::new();
        (event.container_id, event.exec_id) = (request.id, request.exec_id);
        self.publisher.publish(&event);
        empty()
    }

    fn state(&self, request: &StateRequest) -> Reply {
        let container = self.container(&request.id)?;
        let process = self.process(&request.id, &request.exec_id)?;
        let mut response = StateResponse::new();
        response.id.clone_from(&request.id);
        response.exec_id.clone_from(&request.exec_id);
        response.bundle = container.bundle.to_string_lossy().into_owned();
        response.pid = process.pid.cast_unsigned();
        response.status = EnumOrUnknown::new(container.status(process));
        response.stdin.clone_from(&process.io.stdin);
        response.stdout.clone_from(&process.io.stdout);
        response.stderr.clone_from(&process.io.stderr);
        response.terminal = process.io.terminal;
        if let Some(exit) = process.exit() {
            response.exit_status = exit.status;
            response.exited_at = MessageField::some(exit.at.clone());
        }
        encode(&response)
    }

    /// What containerd asks first after its restart. It forgets a container of which it hears
    /// nothing good, and has `delete` remove what is left; so of one that is being made or removed
    /// it hears only when it is known what becomes of it.
    fn connect(&mut self, call: Call, request: &ConnectRequest) -> Reply {
        if self.is_awaited(&request.id, call, Awaited::Connect)? {
            return Ok(None);
        }
        self.connect_response(&request.id).map(Some)
    }

    fn connect_response(&self, id: &str) -> Result<Vec<u8>, Error> {
        let mut response = ConnectResponse::new();
        response.shim_pid = std::process::id();
        response.task_pid = self.process(id, "")?.pid.cast_unsigned();
        env!("CARGO_PKG_VERSION").clone_into(&mut response.version);
        Ok(encoded(&response))
    }

    /// Whether the container is being made or removed; the call is answered then when it is.
    fn is_awaited(&mut self, id: &str, call: Call, awaited: Awaited) -> Result<bool, Error> {
        let container = self.container_mut(id)?;
        let changes = container.leaving || container.init.stage == Stage::Making;
        if changes {
            container.awaited.push((call, awaited));
        }
        Ok(changes)
    }

    fn pids(&mut self, call: Call, request: &PidsRequest) -> Reply {
        if self.is_awaited(&request.id, call, Awaited::Pids)? {
            return Ok(None);
        }
        self.pids_response(&request.id).map(Some)
    }

    /// Of a container that has ended, which was init: from 1.7 on a restarted containerd forgets a
    /// task without a process, and its exit status with it.
    fn pids_response(&self, id: &str) -> Result<Vec<u8>, Error> {
        let container = self.container(id)?;
        let mut pids = self.cgroup(id)?.pids().map_err(kiln_runtime::Error::from)?;
        if pids.is_empty() && container.init.exit().is_some() {
            pids.push(container.init.pid);
        }
        let mut response = PidsResponse::new();
        for pid in pids {
            let mut info = ProcessInfo::new();
            info.pid = pid.cast_unsigned();
            let mut execs = container.execs.iter();
            let exec = execs.find(|(_, exec)| exec.pid == pid && exec.exit().is_none());
            if let Some((exec_id, _)) = exec {
                let mut details = oci::ProcessDetails::new();
                details.exec_id.clone_from(exec_id);
                info.info = MessageField::some(any("containerd.runc.v1.ProcessDetails", &details));
            }
            response.processes.push(info);
        }
        Ok(encoded(&response))
    }

    fn stats(&self, request: &StatsRequest) -> Reply {
        let mut response = StatsResponse::new();
        response.stats = MessageField::some(stats::metrics(&self.cgroup(&request.id)?)?);
        encode(&response)
    }

    fn pause(&mut self, call: Call, request: &PauseRequest) -> Reply {
        let job = self.with_state(&request.id, |_, dir| Ok(pause::pause(&dir)?))?;
        self.expect(job, After::Freeze { call, id: request.id.clone(), frozen: true });
        Ok(None)
    }

    fn resume(&mut self, call: Call, request: &ResumeRequest) -> Reply {
        let job = self.with_state(&request.id, |_, dir| Ok(pause::resume(&dir)?))?;
        self.expect(job, After::Freeze { call, id: request.id.clone(), frozen: false });
        Ok(None)
    }

    fn frozen(&mut self, id: String, frozen: bool) -> Vec<u8> {
        if let Some(container) = self.containers.get_mut(&id) {
            container.paused = frozen;
        }
        if frozen {
            let mut event = task::TaskPaused::new();
            event.container_id = id;
            self.publisher.publish(&event);
        } else {
            let mut event = task::TaskResumed::new();
            event.container_id = id;
            self.publisher.publish(&event);
        }
        Vec::new()
    }

    fn update(&mut self, call: Call, request: &UpdateTaskRequest) -> Reply {
        self.container(&request.id)?;
        let json = request.resources.as_ref().map(|any| any.value.as_slice()).unwrap_or_default();
        let resources: LinuxResources = serde_json::from_slice(json)
            .map_err(|error| Error::Request { field: "resources", problem: error.to_string() })?;
        let job = self.with_state(&request.id, |_, dir| Ok(update::update(&dir, &resources)?))?;
        self.expect(job, After::Answer(call));
        Ok(None)
    }

    fn checkpoint(&mut self, call: Call, request: &CheckpointTaskRequest) -> Reply {
        let container = self.container(&request.id)?;
        let wanted = options::of_checkpoint(request.options.as_ref())?;
        let leave_running = !wanted.exit;
        let options = &container.options;
        let image_path = first(&wanted.image_path, PathBuf::from(&request.path));
        let work_path =
            first(&wanted.work_path, first(&options.criu_work_path, container.bundle.join("work")));
        let shared = checkpoint::Shared {
            image_path,
            work_path: Some(work_path),
            tcp_established: wanted.open_tcp,
            ext_unix_sk: wanted.external_unix_sockets,
            shell_job: wanted.terminal,
            file_locks: wanted.file_locks,
            cgroups_mode: cgroups_mode(&wanted.cgroups_mode)?,
            ..Default::default()
        };
        let job = self.with_state(&request.id, |root, dir| {
            std::fs::create_dir_all(shared.work_path.as_deref().unwrap_or(&shared.image_path))
                .step("make CRIU's working directory")?;
            let options = checkpoint::Checkpoint { shared, leave_running, ..Default::default() };
            Ok(checkpoint::checkpoint(&root, &dir, options)?)
        })?;
        let (id, path) = (request.id.clone(), request.path.clone());
        self.expect(job, After::Checkpoint { call, id, path });
        Ok(None)
    }

    fn resize_pty(&mut self, request: &ResizePtyRequest) -> Reply {
        let process = self.process(&request.id, &request.exec_id)?;
        // One that is not started yet, or has ended, has none: runc's shim is silent, too.
        let terminal = process.terminal.and_then(|number| self.terminals.get(&number));
        terminal.map_or(Ok(()), |terminal| terminal.resize(request.width, request.height))?;
        empty()
    }

    fn close_io(&mut self, request: &CloseIORequest) -> Reply {
        if !request.stdin {
            return empty();
        }
        let process = self.process_mut(&request.id, &request.exec_id)?;
        process.held.stdin = None;
        empty()
    }
}

fn mount(mount: &api::Mount) -> Mount {
    let api::Mount { type_, source, options, .. } = mount;
    Mount { kind: type_.clone(), source: source.clone(), options: options.clone() }
}

/// A path that is given, or else the other one.
fn first(given: &str, other: PathBuf) -> PathBuf {
    match given {
        "" => other,
        given => PathBuf::from(given),
    }
}

fn find(root: &std::path::Path, id: &str) -> Result<(StateRoot, ContainerDir), Error> {
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

/// The end of what was never started.
fn killed() -> Exit {
    Exit::now(KILLED)
}

fn delete_response(process: &Process) -> DeleteResponse {
    let mut response = DeleteResponse::new();
    response.pid = process.pid.cast_unsigned();
    let exit = process.exit().cloned().unwrap_or_else(killed);
    response.exit_status = exit.status;
    response.exited_at = MessageField::some(exit.at);
    response
}

fn cgroups_mode(mode: &str) -> Result<CgroupsMode, Error> {
    match mode {
        "" => Ok(CgroupsMode::Default),
        "ignore" => Ok(CgroupsMode::Ignore),
        "soft" => Ok(CgroupsMode::Soft),
        "full" => Ok(CgroupsMode::Full),
        "strict" => Ok(CgroupsMode::Strict),
        other => Err(Error::Request {
            field: "options.cgroups_mode",
            problem: format!("{other:?} is not known"),
        }),
    }
}
