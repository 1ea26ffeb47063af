//! containerd's side of ttrpc: a client that blocks, for the Task API of a shim, and the server
//! that shims send their events to.
//!
//! PROTOCOL.md of containerd/ttrpc: a header of ten bytes (length, stream, kind, flags), then a
//! request or a response.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use containerd_shim_protos::events::task;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::ttrpc::proto::{
    Code, MESSAGE_HEADER_LENGTH, MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE, MessageHeader,
};
use containerd_shim_protos::ttrpc::{Request, Response};
use rustix::event::{PollFd, PollFlags, poll};

use crate::eventually;

/// The Task API under its name in containerd 1.x.
pub const TASK_V2: &str = "containerd.task.v2.Task";
/// And in 2.x.
pub const TASK_V3: &str = "containerd.task.v3.Task";

/// Why a call was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// gRPC's code.
    pub code: Code,
    /// For people.
    pub text: String,
}

/// What a call gives.
pub type Answer<T> = Result<T, Refused>;

/// Asserts that a call is refused, with this code and a text that has all of `parts`.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Answer<T>, code: Code, parts: &[&str]) {
    let refused = answer.expect_err("it was not refused");
    assert_eq!(refused.code, code, "{refused:?}");
    for part in parts {
        assert!(refused.text.contains(part), "no {part:?} in {refused:?}");
    }
}

/// A connection to a shim. Answers may come in another order than the calls.
#[derive(Debug)]
pub struct Client {
    /// The connection, for what is no call.
    pub socket: UnixStream,
    /// The Task API's name.
    pub service: &'static str,
    stream: u32,
    answers: HashMap<u32, Response>,
}

impl Client {
    /// Connects.
    #[track_caller]
    pub fn connect(socket: &Path) -> Self {
        let connected = UnixStream::connect(socket);
        let socket = connected.unwrap_or_else(|err| panic!("{}: {err}", socket.display()));
        socket.set_read_timeout(Some(crate::patience(30))).unwrap();
        Client { socket, service: TASK_V2, stream: 1, answers: HashMap::new() }
    }

    /// Calls a method of the Task API and waits for the answer.
    #[track_caller]
    pub fn call<T: Message>(&mut self, method: &str, request: &impl Message) -> Answer<T> {
        let stream = self.send(method, request);
        self.answer(stream)
    }

    /// Sends a call; returns its number.
    #[track_caller]
    pub fn send(&mut self, method: &str, message: &impl Message) -> u32 {
        let mut request = Request::new();
        request.service = self.service.to_owned();
        request.method = method.to_owned();
        request.payload = message.write_to_bytes().unwrap();
        let stream = self.next_stream();
        let frame = frame(stream, MESSAGE_TYPE_REQUEST, &request);
        self.socket.write_all(&frame).unwrap();
        stream
    }

    /// A number for a frame that the test makes itself.
    pub fn next_stream(&mut self) -> u32 {
        self.stream += 2;
        self.stream - 2
    }

    /// Waits for the answer to a call that was sent.
    ///
    /// # Panics
    /// If the connection ends, or nothing comes for half a minute.
    #[track_caller]
    pub fn answer<T: Message>(&mut self, stream: u32) -> Answer<T> {
        while !self.answers.contains_key(&stream) {
            let (number, response) = self.receive();
            self.answers.insert(number, response);
        }
        let response = self.answers.remove(&stream).unwrap();
        match response.status.as_ref() {
            Some(status) if status.code() != Code::OK => {
                Err(Refused { code: status.code(), text: status.message.clone() })
            }
            _ => Ok(T::parse_from_bytes(&response.payload).unwrap()),
        }
    }

    #[track_caller]
    fn receive(&mut self) -> (u32, Response) {
        let mut header = [0; MESSAGE_HEADER_LENGTH];
        self.socket.read_exact(&mut header).expect("an answer");
        let header = MessageHeader::from(header);
        assert_eq!((header.type_, header.flags), (MESSAGE_TYPE_RESPONSE, 0));
        let mut payload = vec![0; header.length as usize];
        self.socket.read_exact(&mut payload).unwrap();
        (header.stream_id, Response::parse_from_bytes(&payload).unwrap())
    }

    /// Whether the shim closes the connection.
    pub fn is_closed(&mut self) -> bool {
        match self.socket.read(&mut [0; 1]) {
            Ok(count) => count == 0,
            // So it ends if something was not read.
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

/// A whole frame.
pub fn frame(stream: u32, kind: u8, message: &impl Message) -> Vec<u8> {
    let payload = message.write_to_bytes().unwrap();
    let length = u32::try_from(payload.len()).unwrap();
    let header = MessageHeader { length, stream_id: stream, type_: kind, flags: 0 };
    [Vec::from(header), payload].concat()
}

/// An event that a shim has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The container.
    pub id: String,
    /// In short: `create`, `exit 3`, `exec-started e`, `exit e 3`.
    pub words: String,
    /// The process, where the event names one.
    pub pid: u32,
}

/// What the server and the test share.
#[derive(Debug, Default)]
struct Heard {
    events: Mutex<Vec<Event>>,
    namespaces: Mutex<Vec<String>>,
    silent: AtomicBool,
}

/// containerd's end of a shim's events.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    heard: Arc<Heard>,
    serving: Option<(OwnedFd, JoinHandle<()>)>,
}

impl Events {
    /// Listens at this path.
    pub fn listen(path: &Path) -> Self {
        let mut events =
            Events { path: path.to_path_buf(), heard: Arc::new(Heard::default()), serving: None };
        events.resume();
        events
    }

    /// Where, for `TTRPC_ADDRESS`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Goes away, with its connections and its socket, as containerd does when it is restarted.
    pub fn stop(&mut self) {
        if let Some((wake, thread)) = self.serving.take() {
            drop(wake);
            let judged = thread.join();
            let _ = std::fs::remove_file(&self.path);
            // What it has asserted about events.
            assert!(judged.is_ok() || std::thread::panicking(), "a bad event");
        }
    }

    /// Comes back.
    pub fn resume(&mut self) {
        let listener = UnixListener::bind(&self.path).unwrap();
        let (stopped, wake) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let heard = Arc::clone(&self.heard);
        self.serving = Some((wake, std::thread::spawn(move || serve(&listener, &stopped, &heard))));
    }

    /// From now on events are taken, but not confirmed.
    pub fn be_silent(&self, silent: bool) {
        self.heard.silent.store(silent, Ordering::SeqCst);
    }

    /// The events so far.
    pub fn all(&self) -> Vec<Event> {
        lock(&self.heard.events).clone()
    }

    /// The namespaces that they were sent for, one for each.
    pub fn namespaces(&self) -> Vec<String> {
        lock(&self.heard.namespaces).clone()
    }

    /// The words of a container's events so far.
    pub fn of(&self, id: &str) -> Vec<String> {
        let events = self.all().into_iter().filter(|event| event.id == id);
        events.map(|event| event.words).collect()
    }

    /// Waits for the last of these events of a container, which must be all of them, in this order.
    #[track_caller]
    pub fn expect(&self, id: &str, words: &[&str]) {
        let last = words.last().copied().unwrap_or_default();
        eventually(&format!("the event {last:?}"), || {
            let seen = self.of(id);
            seen.len() >= words.len() || seen.iter().any(|words| words == last)
        });
        assert_eq!(self.of(id), words);
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn serve(listener: &UnixListener, stopped: &OwnedFd, heard: &Heard) {
    let mut connections: Vec<UnixStream> = Vec::new();
    loop {
        let fds = [listener.as_fd(), stopped.as_fd()].into_iter();
        let fds = fds.chain(connections.iter().map(AsFd::as_fd));
        let mut polled: Vec<_> =
            fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        poll(&mut polled, None).unwrap();
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[1] {
            return;
        }
        let mut ready_connections = ready[2..].iter();
        connections.retain_mut(|connection| match ready_connections.next() {
            Some(true) => answer(connection, heard).is_some(),
            _ => true,
        });
        if ready[0] {
            connections.push(listener.accept().unwrap().0);
        }
    }
}

/// Takes one event; None if the shim has closed the connection.
fn answer(connection: &mut UnixStream, heard: &Heard) -> Option<()> {
    let mut header = [0; MESSAGE_HEADER_LENGTH];
    connection.read_exact(&mut header).ok()?;
    let header = MessageHeader::from(header);
    let mut payload = vec![0; header.length as usize];
    connection.read_exact(&mut payload).ok()?;
    let request = Request::parse_from_bytes(&payload).unwrap();
    assert_eq!(request.service, "containerd.services.events.ttrpc.v1.Events");
    assert_eq!((request.method.as_str(), header.stream_id % 2), ("Forward", 1));
    let forward = ForwardRequest::parse_from_bytes(&request.payload).unwrap();
    let envelope = forward.envelope.unwrap();
    assert!(envelope.timestamp.seconds > 1_700_000_000);
    lock(&heard.namespaces).push(envelope.namespace.clone());
    lock(&heard.events).push(read(
        &envelope.topic,
        &envelope.event.type_url,
        &envelope.event.value,
    ));
    if !heard.silent.load(Ordering::SeqCst) {
        let response = frame(header.stream_id, MESSAGE_TYPE_RESPONSE, &Response::new());
        let _ = connection.write_all(&response);
    }
    Some(())
}

fn read(topic: &str, kind: &str, value: &[u8]) -> Event {
    fn parse<M: Message>(value: &[u8]) -> M {
        M::parse_from_bytes(value).unwrap()
    }
    let word = topic.strip_prefix("/tasks/").unwrap_or(topic);
    let (id, words, pid) = match kind.strip_prefix("containerd.events.").unwrap_or(kind) {
        "TaskCreate" => {
            let event: task::TaskCreate = parse(value);
            (event.container_id, word.to_owned(), event.pid)
        }
        "TaskStart" => {
            let event: task::TaskStart = parse(value);
            (event.container_id, word.to_owned(), event.pid)
        }
        "TaskExit" => {
            let event: task::TaskExit = parse(value);
            assert!(event.exited_at.seconds > 1_700_000_000);
            let exec = if event.id == event.container_id { "" } else { &event.id };
            let words = [word, exec, &event.exit_status.to_string()];
            (event.container_id.clone(), join(&words), event.pid)
        }
        "TaskDelete" => {
            let event: task::TaskDelete = parse(value);
            (event.container_id, join(&[word, &event.exit_status.to_string()]), event.pid)
        }
        "TaskExecAdded" => {
            let event: task::TaskExecAdded = parse(value);
            (event.container_id, join(&[word, &event.exec_id]), 0)
        }
        "TaskExecStarted" => {
            let event: task::TaskExecStarted = parse(value);
            (event.container_id, join(&[word, &event.exec_id]), event.pid)
        }
        "TaskOOM" => (parse::<task::TaskOOM>(value).container_id, word.to_owned(), 0),
        "TaskPaused" => (parse::<task::TaskPaused>(value).container_id, word.to_owned(), 0),
        "TaskResumed" => (parse::<task::TaskResumed>(value).container_id, word.to_owned(), 0),
        "TaskCheckpointed" => {
            (parse::<task::TaskCheckpointed>(value).container_id, word.to_owned(), 0)
        }
        other => panic!("an event of type {other} on {topic}"),
    };
    Event { id, words, pid }
}

fn join(words: &[&str]) -> String {
    let words: Vec<_> = words.iter().filter(|word| !word.is_empty()).copied().collect();
    words.join(" ")
}
