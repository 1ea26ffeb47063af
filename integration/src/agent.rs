//! A seccomp agent: takes listeners that the runtime sends and answers for the
//! calls that they notify of.

use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};

use libseccomp::{ScmpNotifReq, ScmpNotifResp, ScmpNotifRespFlags, notify_id_valid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;

/// What the agent heard, in order.
#[derive(Debug)]
pub enum Heard {
    /// A container process state came over a connection, with this many descriptors.
    State(Value, usize),
    /// A process made this call.
    Call(u32, String),
}

/// An agent on a socket of its own; gone with the test's process.
#[derive(Debug)]
pub struct Agent {
    /// The socket, for `listenerPath`.
    pub path: PathBuf,
    heard: Receiver<Heard>,
}

impl Agent {
    /// Listens in `dir`. Fails calls of these names with the error number, lets all others go on.
    pub fn new(dir: &Path, answers: &[(&'static str, i32)]) -> Self {
        let path = dir.join("agent.sock");
        let _ = std::fs::remove_file(&path);
        let socket = UnixListener::bind(&path).unwrap();
        let (sender, heard) = channel();
        let answers = answers.to_vec();
        std::thread::spawn(move || {
            for connection in socket.incoming() {
                let (sender, answers) = (sender.clone(), answers.clone());
                let listener = take(connection.unwrap(), &sender);
                std::thread::spawn(move || answer(&listener, &answers, &sender));
            }
        });
        Agent { path, heard }
    }

    /// The next thing that it heard.
    ///
    /// # Panics
    /// If nothing comes in 20 seconds.
    #[track_caller]
    pub fn next(&self) -> Heard {
        self.heard.recv_timeout(crate::patience(20)).expect("the agent heard nothing")
    }

    /// The next container process state, with the number of descriptors; skips calls.
    #[track_caller]
    pub fn next_state(&self) -> (Value, usize) {
        loop {
            if let Heard::State(state, count) = self.next() {
                return (state, count);
            }
        }
    }

    /// The process that next makes this call; skips others.
    #[track_caller]
    pub fn next_call(&self, name: &str) -> u32 {
        loop {
            match self.next() {
                Heard::Call(pid, call) if call == name => return pid,
                _ => {}
            }
        }
    }
}

/// Reads one message to its end and returns its first descriptor.
fn take(mut connection: UnixStream, sender: &Sender<Heard>) -> OwnedFd {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = [0; 16384];
    let mut text = [IoSliceMut::new(&mut buffer)];
    let length = recvmsg(&connection, &mut text, &mut control, RecvFlags::CMSG_CLOEXEC);
    let length = length.unwrap().bytes;
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let mut descriptors: Vec<OwnedFd> = descriptors.flatten().collect();
    let mut json = buffer[..length].to_vec();
    connection.read_to_end(&mut json).unwrap();
    let state = serde_json::from_slice(&json).unwrap();
    sender.send(Heard::State(state, descriptors.len())).unwrap();
    descriptors.remove(0)
}

/// Answers until the last process under the filter has ended.
fn answer(listener: &OwnedFd, answers: &[(&str, i32)], sender: &Sender<Heard>) {
    let fd = listener.as_raw_fd();
    loop {
        let mut polled = [PollFd::new(listener, PollFlags::IN)];
        let limit = Timespec { tv_sec: 30, tv_nsec: 0 };
        let ready = poll(&mut polled, Some(&limit)).unwrap() == 1;
        if !ready || !polled[0].revents().contains(PollFlags::IN) {
            return;
        }
        // The process may have been killed meanwhile.
        let Ok(request) = ScmpNotifReq::receive(fd) else { continue };
        let name = request.data.syscall.get_name().unwrap();
        let none = ScmpNotifRespFlags::empty();
        let response = match answers.iter().find(|(call, _)| *call == name) {
            Some((_, errno)) => ScmpNotifResp::new_error(request.id, -errno, none),
            None => ScmpNotifResp::new_continue(request.id, none),
        };
        let _ = sender.send(Heard::Call(request.pid, name));
        if let Err(error) = response.respond(fd) {
            assert!(notify_id_valid(fd, request.id).is_err(), "answer: {error}");
        }
    }
}
