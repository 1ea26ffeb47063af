//! The server: one thread that waits for everything at once and blocks for nobody.
//!
//! What arrives is a call of containerd's (`task.rs` has the methods), the end of a job, the end of
//! a process, a container that runs out of memory, or bytes of a terminal.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::ttrpc::proto::MESSAGE_TYPE_REQUEST;
use containerd_shim_protos::ttrpc::{Request, Response};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::WaitOptions;

use crate::container::{Container, Process, Stage};
use crate::error::{Context, Error};
use crate::events::Publisher;
use crate::exit::Exit;
use crate::frames::{Broken, Connection, Frame};
use crate::jobs::{Done, Job};
use crate::task::{After, Reply};
use crate::terminal::{Terminal, TerminalId};
use crate::unread::Readers;
use crate::warm::Warm;

/// How long a shim that is to end waits until containerd has taken the last events.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long it waits for jobs that remove something: they would be killed with it.
const CLEANING: Duration = Duration::from_secs(20);
/// How long a shim stays that has no container and whom nobody is connected with: containerd, or
/// who was to tell it of this shim, was killed before there was a task.
const LONELINESS: Duration = Duration::from_secs(10);

/// A call that is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    connection: u64,
    stream: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Server {
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's gRPC socket.
    pub address: PathBuf,
    /// By id.
    pub containers: BTreeMap<String, Container>,
    /// Tells containerd.
    pub publisher: Publisher,
    /// Makes wasm containers.
    pub warm: Warm,
    /// By number.
    pub terminals: BTreeMap<TerminalId, Terminal>,
    listener: Listener,
    signals: SignalFd,
    connections: BTreeMap<u64, Connection>,
    jobs: BTreeMap<u64, (Job, After)>,
    /// Processes that have ended while a job was at work which may yet say that they are its.
    unclaimed: Vec<(i32, Exit)>,
    /// Jobs that have answered, and have not been reaped.
    ending: Vec<i32>,
    /// The next number for a connection, job or terminal.
    number: u64,
    /// Since when it is to end, if it is.
    ends: Option<Instant>,
    /// Since when nobody needs it.
    alone_since: Option<Instant>,
    /// Who is to read what processes have said that have ended.
    pub readers: Readers,
}

/// The socket that containerd calls, and its place.
#[derive(Debug)]
pub struct Listener {
    /// It must not block.
    pub socket: UnixListener,
    /// Where it is.
    pub path: PathBuf,
}

/// What there is to wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Listener,
    Signals,
    Connection(u64),
    Publisher,
    Job(u64),
    Oom(String),
    Terminal(TerminalId),
}

impl Server {
    /// Serves `listener`. All signals must be blocked.
    ///
    /// # Errors
    /// Those of signalfd(2).
    pub fn new(
        listener: Listener,
        publisher: Publisher,
        namespace: String,
        address: PathBuf,
    ) -> Result<Self, Error> {
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self {
            namespace,
            address,
            containers: BTreeMap::new(),
            publisher,
            warm: Warm::default(),
            terminals: BTreeMap::new(),
            listener,
            signals: SignalFd::with_flags(&SigSet::all(), flags).step("watch signals")?,
            connections: BTreeMap::new(),
            jobs: BTreeMap::new(),
            unclaimed: Vec::new(),
            ending: Vec::new(),
            number: 0,
            ends: None,
            alone_since: None,
            readers: Readers::default(),
        })
    }

    /// Serves until `Shutdown`.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn run(&mut self) -> Result<(), Error> {
        while !self.is_over() {
            self.look_around();
            for source in self.wait()? {
                self.attend(source);
            }
            self.publisher.proceed();
            self.look_for_readers();
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        let Some(since) = self.ends else { return false };
        let said = || {
            self.publisher.is_idle() && !self.connections.values().any(Connection::wants_to_write)
        };
        let done = self.jobs.is_empty() || since.elapsed() >= CLEANING;
        done && (said() || since.elapsed() >= FAREWELL)
    }

    /// Ends if nobody has needed it for long.
    fn look_around(&mut self) {
        let alone =
            self.containers.is_empty() && self.connections.is_empty() && self.jobs.is_empty();
        if !alone || self.is_ending() {
            self.alone_since = None;
        } else if self.alone_since.get_or_insert_with(Instant::now).elapsed() >= LONELINESS {
            log::info!("no container, and nobody is connected: the shim ends");
            self.end();
        }
    }

    /// To end, as soon as all is said and done. Who wants a shim from now on gets another.
    pub fn end(&mut self) {
        if self.ends.is_none() {
            let _ = std::fs::remove_file(&self.listener.path);
        }
        self.ends.get_or_insert_with(Instant::now);
    }

    /// Whether it is about to end.
    pub fn is_ending(&self) -> bool {
        self.ends.is_some()
    }

    /// Sleeps until there is something to do.
    fn wait(&self) -> Result<Vec<Source>, Error> {
        let mut sources = Vec::new();
        let mut polled = Vec::new();
        for (source, fd, reads, writes) in self.sources() {
            let reads = if reads { PollFlags::IN } else { PollFlags::empty() };
            let writes = if writes { PollFlags::OUT } else { PollFlags::empty() };
            polled.push(PollFd::from_borrowed_fd(fd, reads | writes));
            sources.push(source);
        }
        let timeout = self.timeout();
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).step("wait"),
        }
        let ready = polled.iter().zip(sources).filter(|(fd, _)| !fd.revents().is_empty());
        let mut ready: Vec<_> = ready.map(|(_, source)| source).collect();
        ready.dedup();
        Ok(ready)
    }

    /// Everything that there is to wait for, and whether for reading, for writing.
    fn sources(&self) -> Vec<(Source, BorrowedFd<'_>, bool, bool)> {
        let mut sources = Vec::new();
        let mut add = |source, fd, reads, writes| sources.push((source, fd, reads, writes));
        // Ends of processes before the jobs that they belong to: see `unclaimed`.
        add(Source::Signals, self.signals.as_fd(), true, false);
        for (number, (job, _)) in &self.jobs {
            add(Source::Job(*number), job.as_fd(), true, false);
        }
        add(Source::Listener, self.listener.socket.as_fd(), true, false);
        for (number, connection) in &self.connections {
            let writes = connection.wants_to_write();
            add(Source::Connection(*number), connection.as_fd(), true, writes);
        }
        if let Some(connection) = self.publisher.descriptor() {
            add(Source::Publisher, connection, true, false);
        }
        for (id, container) in &self.containers {
            if let Some(oom) = &container.oom {
                add(Source::Oom(id.clone()), oom.as_fd(), true, false);
            }
        }
        for (number, terminal) in &self.terminals {
            for (fd, reads, writes) in terminal.interests() {
                // A hang-up is always told, and means nothing to one that is not to be read.
                if reads || writes {
                    add(Source::Terminal(*number), fd, reads, writes);
                }
            }
        }
        sources
    }

    fn timeout(&self) -> Option<Timespec> {
        let ends = self.ends.map(|since| match since.elapsed() < FAREWELL {
            true => since + FAREWELL,
            false => since + CLEANING,
        });
        let alone = self.alone_since.map(|since| since + LONELINESS);
        let wakes = [self.publisher.wakes(), ends, alone, self.readers.next()];
        let at = wakes.into_iter().flatten().min()?;
        let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        Some(Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() })
    }

    fn attend(&mut self, source: Source) {
        match source {
            Source::Listener => self.accept(),
            Source::Signals => self.reap(),
            Source::Connection(number) => self.receive(number),
            Source::Publisher => self.publisher.answered(),
            Source::Job(number) => self.finish(number),
            Source::Oom(id) => self.out_of_memory(&id),
            Source::Terminal(number) => self.copy(number),
        }
    }

    fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    // --- calls ---

    fn accept(&mut self) {
        let accepted = self.listener.socket.accept().and_then(|(socket, _)| {
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        match accepted {
            Ok(socket) => {
                let number = self.next_number();
                self.connections.insert(number, Connection::new(socket));
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => log::warn!("accept: {error}"),
        }
    }

    fn receive(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.flush();
        match connection.read() {
            Ok(frames) => {
                for frame in frames {
                    self.take(number, frame);
                }
            }
            Err(broken) => {
                if broken == Broken::Garbage {
                    log::warn!("a client does not speak ttrpc");
                }
                self.connections.remove(&number);
                for container in self.containers.values_mut() {
                    let processes = container.execs.values_mut().chain([&mut container.init]);
                    for process in processes {
                        process.waiters.retain(|call| call.connection != number);
                    }
                }
            }
        }
    }

    fn take(&mut self, connection: u64, frame: Frame) {
        if frame.kind != MESSAGE_TYPE_REQUEST {
            return log::warn!("not a request: kind {}", frame.kind);
        }
        let call = Call { connection, stream: frame.stream };
        let request = frame.payload.map_err(Error::from).and_then(|payload| {
            let parsed = Request::parse_from_bytes(&payload);
            parsed.map_err(|error| Error::Request { field: "request", problem: error.to_string() })
        });
        match request {
            Ok(request) => self.call(call, &request),
            Err(error) => self.answer(call, Err(error)),
        }
    }

    fn call(&mut self, call: Call, request: &Request) {
        log::debug!("{} {}", request.service, request.method);
        let reply = self.dispatch(call, request);
        self.reply(call, reply);
    }

    /// Answers a call, if there is an answer yet.
    pub fn reply(&mut self, call: Call, reply: Reply) {
        if let Some(result) = reply.transpose() {
            self.answer(call, result);
        }
    }

    /// Answers a call with an encoded message.
    pub fn answer(&mut self, call: Call, result: Result<Vec<u8>, Error>) {
        let mut response = Response::new();
        match result {
            Ok(payload) => response.payload = payload,
            Err(error) => {
                log::info!("{error}");
                response.status = MessageField::some(error.status());
            }
        }
        // Whoever has asked may be gone.
        if let Some(connection) = self.connections.get_mut(&call.connection) {
            connection.respond(call.stream, &response);
        }
    }

    // --- jobs ---

    /// Goes on with `after` when the job is done.
    pub fn expect(&mut self, job: Job, after: After) {
        let number = self.next_number();
        self.jobs.insert(number, (job, after));
    }

    fn finish(&mut self, number: u64) {
        let Some((job, after)) = self.jobs.remove(&number) else { return };
        let result: Result<Done, Error> = job.result();
        // It ends now: that is no process of a container's.
        self.ending.extend(job.pid());
        drop(job);
        self.go_on(after, result);
        if self.jobs.is_empty() {
            self.unclaimed.clear();
        }
    }

    /// A process's end, if that was seen before it was known to be one of ours.
    pub fn claim(&mut self, pid: i32) -> Option<Exit> {
        let at = self.unclaimed.iter().rposition(|(other, _)| *other == pid)?;
        Some(self.unclaimed.swap_remove(at).1)
    }

    // --- processes ---

    fn reap(&mut self) {
        use nix::sys::signal::Signal;
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if matches!(Signal::try_from(signal.ssi_signo.cast_signed()), Ok(Signal::SIGTERM)) {
                log::info!("SIGTERM is ignored: containerd ends a shim by Shutdown");
            }
        }
        // Not by nix: it takes the end by a real-time signal for an error, when it is reaped.
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let signal = status.terminating_signal().map(|signal| 128 + signal);
            if let Some(status) = status.exit_status().or(signal) {
                self.ended(pid.as_raw_nonzero().get(), Exit::now(status.cast_unsigned()));
            }
        }
    }

    fn ended(&mut self, pid: i32, exit: Exit) {
        if let Some(at) = self.ending.iter().position(|job| *job == pid) {
            self.ending.swap_remove(at);
            return;
        }
        if let Some((job, _)) = self.jobs.values_mut().find(|(job, _)| job.pid() == Some(pid)) {
            job.has_ended();
            return;
        }
        if self.warm.has_ended(pid) {
            log::warn!("the warm parent has ended with status {}", exit.status);
            return;
        }
        let known = self.containers.iter().find_map(|(id, container)| {
            if container.init.pid == pid && container.init.exit().is_none() {
                return Some((id.clone(), String::new()));
            }
            let mut execs = container.execs.iter();
            let exec = execs.find(|(_, exec)| exec.pid == pid && exec.exit().is_none())?;
            Some((id.clone(), exec.0.clone()))
        });
        match known {
            Some((id, exec_id)) => self.process_ended(&id, &exec_id, exit),
            None if !self.jobs.is_empty() => {
                // Its number may have been another's before.
                self.unclaimed.retain(|(other, _)| *other != pid);
                self.unclaimed.push((pid, exit));
            }
            None => {}
        }
    }

    /// Tells everybody of a process's end, but not before its beginning was told.
    pub fn process_ended(&mut self, id: &str, exec_id: &str, exit: Exit) {
        // It may be what has ended it.
        self.out_of_memory(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        let shares_pids = exec_id.is_empty() && container.facts.shares_pids();
        let Some(process) = container.process_mut(exec_id) else { return };
        if process.stage == Stage::Starting {
            process.early_exit = Some(exit);
            return;
        }
        let mut event = TaskExit::new();
        id.clone_into(&mut event.container_id);
        if exec_id.is_empty() { id } else { exec_id }.clone_into(&mut event.id);
        event.pid = process.pid.cast_unsigned();
        event.exit_status = exit.status;
        event.exited_at = MessageField::some(exit.at.clone());
        process.stage = Stage::Stopped(exit);
        let waiters = std::mem::take(&mut process.waiters);
        let terminal = process.terminal;
        // What it has said comes before its end.
        if let Some(terminal) = terminal {
            self.copy(terminal);
        }
        self.await_readers(id, exec_id);
        if shares_pids {
            self.kill_what_is_left(id);
        }
        self.publisher.publish(&event);
        self.tell(waiters, id, exec_id);
    }

    fn out_of_memory(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(watch) = &mut container.oom else { return };
        if !is_readable(watch.as_fd()) {
            return;
        }
        let news = watch.read();
        if news.as_ref().map_or(true, |news| news.ended) {
            container.oom = None;
        }
        for _ in 0..news.map_or(0, |news| news.ooms) {
            let mut event = TaskOOM::new();
            id.clone_into(&mut event.container_id);
            self.publisher.publish(&event);
        }
    }

    // --- terminals ---

    /// Takes a terminal in.
    pub fn add_terminal(&mut self, terminal: Terminal) -> TerminalId {
        let number = self.next_number();
        self.terminals.insert(number, terminal);
        number
    }

    /// Lets go of a deleted process's, whoever still has its other end. Its last words stay until
    /// they are read, or nobody is there any more who could.
    pub fn drop_terminal(&mut self, number: Option<TerminalId>) {
        self.terminals.retain(|other, terminal| Some(*other) != number || terminal.has_ended());
    }

    fn copy(&mut self, number: TerminalId) {
        let Some(terminal) = self.terminals.get_mut(&number) else { return };
        terminal.proceed();
        if !terminal.is_done() {
            return;
        }
        self.terminals.remove(&number);
        let of = |process: &Process| process.terminal == Some(number);
        let found = self.containers.iter().find_map(|(id, container)| {
            let exec = container.execs.iter().find(|(_, exec)| of(exec));
            let exec_id = exec.map(|(exec_id, _)| exec_id.clone());
            let exec_id = exec_id.or_else(|| of(&container.init).then(String::new));
            Some((id.clone(), exec_id?))
        });
        if let Some((id, exec_id)) = found {
            self.await_readers(&id, &exec_id);
        }
    }
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}
