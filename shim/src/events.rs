//! Events for containerd: `containerd.services.events.ttrpc.v1.Events/Forward`, one at a time and
//! in order, kept while containerd is away.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use containerd_shim_protos::events::task;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::ttrpc::{Request, Response};
use containerd_shim_protos::{shim, topics};

use crate::exit::now;
use crate::frames::{self, Connection};

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";
/// How many are kept while containerd is away; then the oldest go.
const KEPT: usize = 4096;
/// How long to wait before containerd is called again.
const PAUSE: Duration = Duration::from_millis(500);

/// An event of the Task API.
pub trait Event: Message {
    /// Where it is published.
    const TOPIC: &'static str;
    /// Its type, as containerd's typeurl names it. Not asked of the message: its descriptor would
    /// have to be parsed first.
    const TYPE: &'static str;
}

macro_rules! topics {
    ($($event:ident $topic:ident),* $(,)?) => {$(
        impl Event for task::$event {
            const TOPIC: &'static str = topics::$topic;
            const TYPE: &'static str = concat!("containerd.events.", stringify!($event));
        }
    )*};
}

topics! {
    TaskCreate TASK_CREATE_EVENT_TOPIC,
    TaskStart TASK_START_EVENT_TOPIC,
    TaskOOM TASK_OOM_EVENT_TOPIC,
    TaskExit TASK_EXIT_EVENT_TOPIC,
    TaskDelete TASK_DELETE_EVENT_TOPIC,
    TaskExecAdded TASK_EXEC_ADDED_EVENT_TOPIC,
    TaskExecStarted TASK_EXEC_STARTED_EVENT_TOPIC,
    TaskPaused TASK_PAUSED_EVENT_TOPIC,
    TaskResumed TASK_RESUMED_EVENT_TOPIC,
    TaskCheckpointed TASK_CHECKPOINTED_EVENT_TOPIC,
}

/// Sends events to containerd's ttrpc socket.
#[derive(Debug)]
pub struct Publisher {
    address: PathBuf,
    namespace: String,
    connection: Option<Connection>,
    /// The first is the one that is on its way, if `sent`.
    queue: VecDeque<Request>,
    sent: bool,
    stream: u32,
    /// Not before this is a connection tried again.
    again: Option<Instant>,
}

impl Publisher {
    /// For events of `namespace`, to the socket at `address`, which may begin with `unix://`.
    pub fn new(address: &str, namespace: &str) -> Self {
        Self {
            address: PathBuf::from(address.strip_prefix("unix://").unwrap_or(address)),
            namespace: namespace.to_owned(),
            connection: None,
            queue: VecDeque::new(),
            sent: false,
            stream: 1,
            again: None,
        }
    }

    /// Queues an event, and sends it if nothing else is on its way.
    pub fn publish<E: Event>(&mut self, event: &E) {
        log::debug!("event {}", E::TOPIC);
        let mut envelope = shim::event::Envelope::new();
        envelope.timestamp = MessageField::some(now());
        envelope.namespace.clone_from(&self.namespace);
        E::TOPIC.clone_into(&mut envelope.topic);
        envelope.event = MessageField::some(any(E::TYPE, event));
        let mut forward = shim::events::ForwardRequest::new();
        forward.envelope = MessageField::some(envelope);
        let mut request = Request::new();
        SERVICE.clone_into(&mut request.service);
        "Forward".clone_into(&mut request.method);
        request.payload = forward.write_to_bytes().unwrap_or_default();
        request.timeout_nano = 0;
        if self.queue.len() >= KEPT {
            log::warn!("containerd is away: an event is lost");
            // The first may be on its way.
            self.queue.remove(1);
        }
        self.queue.push_back(request);
        self.proceed();
    }

    /// Sends the next event, if there is one and containerd is there.
    pub fn proceed(&mut self) {
        if self.sent || self.queue.is_empty() || self.again.is_some_and(|at| at > Instant::now()) {
            return;
        }
        if self.connection.is_none() {
            self.connection = frames::connect(&self.address).ok().map(Connection::new);
        }
        match (&mut self.connection, self.queue.front()) {
            (Some(connection), Some(request)) => {
                self.again = None;
                connection.request(self.stream, request);
                // A client's numbers are odd.
                self.stream = self.stream.wrapping_add(2);
                self.sent = true;
            }
            _ => self.again = Some(Instant::now() + PAUSE),
        }
    }

    /// Reads containerd's answers. To be called when the connection is readable.
    pub fn answered(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        connection.flush();
        match connection.read() {
            Ok(frames) => {
                for frame in frames {
                    if let Ok(payload) = frame.payload
                        && let Ok(response) = Response::parse_from_bytes(&payload)
                        && !response.status().message.is_empty()
                    {
                        log::warn!("containerd refuses an event: {}", response.status().message);
                    }
                    self.queue.pop_front();
                    self.sent = false;
                }
            }
            // It will get the event again.
            Err(_) => {
                self.connection = None;
                self.sent = false;
                self.again = Some(Instant::now() + PAUSE);
            }
        }
        self.proceed();
    }

    /// Its connection, as long as there is one.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.connection.as_ref().map(AsFd::as_fd)
    }

    /// When to call [`Self::proceed`] though nothing has happened.
    pub fn wakes(&self) -> Option<Instant> {
        self.again.filter(|_| !self.queue.is_empty())
    }

    /// Whether all is delivered.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }
}

/// A message as containerd's typeurl wraps it, under its bare name.
pub fn any(name: &str, message: &impl Message) -> Any {
    let mut any = Any::new();
    name.clone_into(&mut any.type_url);
    any.value = message.write_to_bytes().unwrap_or_default();
    any
}
