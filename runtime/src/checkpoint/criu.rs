//! One `criu swrk` process and the requests that it serves: criu.org/RPC.
//!
//! The process is a child of ours that speaks over a socket; while it works it asks us back
//! (notifications). It ends with the socket, whatever happens to us.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use rustix::io::{Errno, FdFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags,
    Shutdown, SocketFlags, SocketType,
};

use super::wire::{Fields, Message};
use crate::error::{Error, Failure, Step, errno_text};

/// external pid namespaces and the `status-ready` notification: what youki and crun ask for, too.
const OLDEST: Version = Version(3, 15, 0);
/// The largest answer is a notification with a name; errors may quote a path or two.
const MAX_ANSWER: usize = 40 * 1024;

/// Version of CRIU: major, minor, sublevel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub i32, pub i32, pub i32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)?;
        if self.2 > 0 { write!(f, ".{}", self.2) } else { Ok(()) }
    }
}

/// What is asked of CRIU: criu_req_type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Dump = 1,
    Restore = 2,
    PreDump = 4,
    Notify = 6,
    FeatureCheck = 9,
    Version = 10,
}

/// A step of CRIU's work that it waits for us in.
#[derive(Debug)]
pub struct Notification {
    /// Which: `setup-namespaces`, `orphan-pts-master`, ...
    pub script: String,
    /// The root process of the tree, where there is one; 0 otherwise.
    pub pid: i32,
    /// What came with it: the terminal's master.
    pub descriptor: Option<OwnedFd>,
}

/// Who ended a request.
#[derive(Debug)]
pub enum Failed {
    /// CRIU; the reason is mostly in its log.
    Criu(Error),
    /// We did, by this error in a notification.
    Ours(Error),
}

/// criu_resp, as far as it is looked at.
#[derive(Debug, Default)]
struct Answer {
    kind: u64,
    success: bool,
    pid: i32,
    script: String,
    errno: i32,
    message: String,
    mem_track: bool,
    lazy_pages: bool,
    version: (i32, i32, i32),
}

impl Answer {
    fn read(bytes: &[u8]) -> Self {
        let mut answer = Self::default();
        for (field, value) in Fields::of(bytes) {
            let inner = || Fields::of(value.bytes());
            match field {
                1 => answer.kind = value.number(),
                2 => answer.success = value.number() != 0,
                4 => {
                    inner().filter(|(field, _)| *field == 1).for_each(|(_, v)| answer.pid = v.int())
                }
                5 => inner().for_each(|(field, value)| match field {
                    1 => answer.script = value.text(),
                    2 => answer.pid = value.int(),
                    _ => {}
                }),
                7 => answer.errno = value.int(),
                8 => inner().for_each(|(field, value)| match field {
                    1 => answer.mem_track = value.number() != 0,
                    2 => answer.lazy_pages = value.number() != 0,
                    _ => {}
                }),
                9 => answer.message = value.text(),
                10 => inner().for_each(|(field, value)| match field {
                    1 => answer.version.0 = value.int(),
                    2 => answer.version.1 = value.int(),
                    4 => answer.version.2 = value.int(),
                    _ => {}
                }),
                _ => {}
            }
        }
        answer
    }

    /// Why the request failed, as far as CRIU says it here: mostly only its log does.
    fn why(&self) -> String {
        match (self.message.is_empty(), self.errno) {
            (false, _) => self.message.trim_end().to_owned(),
            (true, 0) => "it does not say why".to_owned(),
            (true, errno) => errno_text(errno.saturating_abs()),
        }
    }
}

/// A running `criu swrk`.
#[derive(Debug)]
pub struct Criu {
    child: Child,
    socket: OwnedFd,
}

/// Who CRIU's standard streams are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// Nobody.
    Null,
    /// Ours, which become the restored container's.
    Ours,
}

impl Criu {
    /// Starts it, from PATH. It inherits, besides its socket, `descriptors` under their numbers.
    ///
    /// # Errors
    /// There is no `criu`.
    pub fn spawn(streams: Streams, descriptors: &[&OwnedFd]) -> Result<Self, Error> {
        let step = || "execute criu".to_owned();
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (socket, theirs) =
            rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None).step(step)?;
        let mut command = Command::new("criu");
        command.arg("swrk").arg(theirs.as_raw_fd().to_string());
        if streams == Streams::Null {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        }
        let inherited = || descriptors.iter().copied().chain([&theirs]);
        let mark =
            |flags| inherited().try_for_each(|fd| rustix::io::fcntl_setfd(fd, flags)).step(step);
        mark(FdFlags::empty())?;
        let child = command.spawn();
        mark(FdFlags::CLOEXEC)?;
        match child {
            Ok(child) => Ok(Self { child, socket }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let hint = "checkpoint and restore need CRIU (package criu)";
                let failure = Failure::because(step(), "it is not in PATH");
                Err(Failure { hint: Some(hint.to_owned()), ..failure }.into())
            }
            Err(error) => Err(error).step(step),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// CRIU's version, which is recent enough.
    ///
    /// # Errors
    /// It is too old, or does not answer.
    pub fn version(&mut self) -> Result<Version, Error> {
        let answer = self.ask(Kind::Version, |_| {})?;
        let version = Version(answer.version.0, answer.version.1, answer.version.2);
        match version < OLDEST {
            true => {
                Err(problem("criu", format!("version {version} is too old, {OLDEST} is needed")))
            }
            false => Ok(version),
        }
    }

    /// That the kernel lets CRIU track written memory (for `--pre-dump`), and serve pages on demand
    /// (`--lazy-pages`).
    ///
    /// # Errors
    /// Something that is asked for is missing.
    pub fn need_features(&mut self, mem_track: bool, lazy_pages: bool) -> Result<(), Error> {
        if !mem_track && !lazy_pages {
            return Ok(());
        }
        let mut features = Message::default();
        features.flag(1, mem_track).flag(2, lazy_pages);
        let answer = self.ask(Kind::FeatureCheck, |request| {
            request.message(5, &features);
        })?;
        for (asked, there, name) in [
            (mem_track, answer.mem_track, "memory tracking (--pre-dump)"),
            (lazy_pages, answer.lazy_pages, "userfaultfd (--lazy-pages)"),
        ] {
            if asked && !there {
                return Err(problem("criu", format!("the kernel or criu lacks {name}")));
            }
        }
        Ok(())
    }

    /// A question after which it goes on listening.
    fn ask(&mut self, kind: Kind, more: impl FnOnce(&mut Message)) -> Result<Answer, Error> {
        let mut request = Message::default();
        request.number(1, kind as u64).flag(4, true);
        more(&mut request);
        self.send(&request)?;
        match self.receive()? {
            (answer, _) if answer.success => Ok(answer),
            (answer, _) => Err(problem("ask criu", answer.why())),
        }
    }

    /// Has it do `kind` with these options (criu_opts), and waits for its end. `notified` is called
    /// for each notification; its error ends the work, and is the one that is returned.
    ///
    /// # Errors
    /// Which of the two failed: CRIU's reasons are in its log ([`super::quote::explain`]).
    pub fn request(
        mut self,
        kind: Kind,
        options: &Message,
        mut notified: impl FnMut(Notification) -> Result<(), Error>,
    ) -> Result<(), Failed> {
        let mut ours = None;
        let done = self.serve(kind, options, |notification| {
            if ours.is_none() {
                ours = notified(notification).err();
            }
            ours.is_none()
        });
        match (ours, done) {
            // What has become of CRIU is what our refusal has led to.
            (Some(error), _) => Err(Failed::Ours(error)),
            (None, done) => done.map_err(Failed::Criu),
        }
    }

    fn serve(
        &mut self,
        kind: Kind,
        options: &Message,
        mut notified: impl FnMut(Notification) -> bool,
    ) -> Result<(), Error> {
        let mut request = Message::default();
        request.number(1, kind as u64).message(2, options);
        self.send(&request)?;
        loop {
            let (answer, descriptor) = self.receive()?;
            if answer.kind != Kind::Notify as u64 {
                return match answer.success {
                    true => self.end(kind),
                    false => Err(problem("criu", answer.why())),
                };
            }
            log::debug!("criu: {}", answer.script);
            let Answer { script, pid, .. } = answer;
            let go_on = notified(Notification { script, pid, descriptor });
            let mut reply = Message::default();
            reply.number(1, Kind::Notify as u64).number(3, go_on.into());
            self.send(&reply)?;
        }
    }

    /// After a pre-dump it waits for the next request and calls it a failure that none comes.
    fn end(&mut self, kind: Kind) -> Result<(), Error> {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        let status = self.child.wait().step(|| "wait for criu".to_owned())?;
        match status.success() || kind == Kind::PreDump {
            true => Ok(()),
            false => Err(problem("criu", status.to_string())),
        }
    }

    fn send(&mut self, message: &Message) -> Result<(), Error> {
        let flags = SendFlags::NOSIGNAL;
        match rustix::net::send(&self.socket, message.as_bytes(), flags) {
            Err(Errno::PIPE | Errno::CONNRESET) => Err(self.gone()),
            sent => sent.step(|| "talk to criu".to_owned()).map(drop),
        }
    }

    fn receive(&mut self) -> Result<(Answer, Option<OwnedFd>), Error> {
        let step = || "listen to criu".to_owned();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = vec![0; MAX_ANSWER];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            let text = &mut [IoSliceMut::new(&mut buffer)];
            match rustix::net::recvmsg(&self.socket, text, &mut control, flags) {
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Err(self.gone()),
                received => break received.step(step)?,
            }
        };
        if received.bytes == 0 {
            return Err(self.gone());
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(problem(&step(), "its answer is too long".to_owned()));
        }
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        Ok((Answer::read(&buffer[..received.bytes]), descriptor))
    }

    fn gone(&mut self) -> Error {
        let status = self.child.wait().map_or_else(|error| error.to_string(), |s| s.to_string());
        problem("criu", format!("it ended without an answer: {status}"))
    }
}

impl Drop for Criu {
    fn drop(&mut self) {
        // It ends, and undoes what it has begun, when its socket does.
        let _ = rustix::net::shutdown(self.socket.as_fd(), Shutdown::Both);
        let _ = self.child.wait();
    }
}

fn problem(step: &str, reason: String) -> Error {
    Failure::because(step, reason).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let mut notify = Message::default();
        notify.bytes(1, b"post-restore").int(2, 77);
        let mut message = Message::default();
        message.number(1, 6).flag(2, true).message(5, &notify);
        let answer = Answer::read(message.as_bytes());
        assert_eq!((answer.kind, answer.success, answer.pid), (6, true, 77));
        assert_eq!(answer.script, "post-restore");

        let mut message = Message::default();
        message.number(1, 1).number(2, 0).int(7, 3);
        assert_eq!(Answer::read(message.as_bytes()).why(), "no such process");
        message.bytes(9, b"it is so");
        assert_eq!(Answer::read(message.as_bytes()).why(), "it is so");
    }

    #[test]
    fn versions_are_ordered() {
        assert!(Version(3, 9, 1) < OLDEST && Version(4, 0, 0) > OLDEST);
        assert_eq!(Version(3, 17, 1).to_string(), "3.17.1");
        assert_eq!(Version(4, 0, 0).to_string(), "4.0");
    }
}
