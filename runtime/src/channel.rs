//! What the runtime and a container's init say to each other, from clone3 to the workload.
//!
//! One SOCK_SEQPACKET pair per container while it is created; for a container that waits for
//! `start`, afterwards one connection to the socket in its state directory. A message is one
//! packet; the end of the connection means that the peer is gone, or, after
//! [`ToInit::Start`], that execve(2) succeeded (every descriptor is close-on-exec).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Failure, Step};

/// From the runtime to init.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToInit {
    /// The user namespace has its maps: init may become its root.
    Mapped,
    /// The network namespace is made and comes with the message.
    Network,
    /// The cgroups are there, with the limits in place; with the message come the descriptors
    /// through which init enters those that it was not born in ([`kiln_cgroups::enter`]).
    CgroupReady,
    /// linux.netDevices are in the container's network namespace.
    DevicesMoved,
    /// The prestart and createRuntime hooks have run.
    HooksDone,
    /// Everything is recorded; wait for `start` on the listening socket.
    Created,
    /// Execute the workload.
    Start,
}

/// From init to the runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToRuntime {
    /// The rootfs is mounted and the host's is still there: run the hooks that belong here.
    HooksPlease,
    /// Init is in its network namespace: move linux.netDevices there.
    DevicesPlease,
    /// All but the workload is done.
    Ready,
    /// The engine has the workload and runs it (execve says so by closing the connection).
    Started,
    /// The seccomp filter is installed; with the message comes its listener, for the agent.
    Listener,
    /// From the process that has joined the container's namespaces for an exec: the exec'd process
    /// is this one, in the runtime's pid namespace.
    Cloned(i32),
    /// A step failed; init is ending.
    Failed(Failure),
}

/// One for each cgroup v1 hierarchy that there can be: Linux has 14 controllers, and systemd's own.
const MAX_DESCRIPTORS: usize = 32;
/// The largest message: an error with two paths in it.
const MAX_MESSAGE: usize = 32 * 1024;

/// One end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Two connected ends, close-on-exec.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub fn pair() -> Result<(Self, Self), Error> {
        let flags = SocketFlags::CLOEXEC;
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map(|(a, b)| (Self(a), Self(b)))
            .step(|| "open the channel to init".to_owned())
    }

    /// Takes a connected SOCK_SEQPACKET socket.
    pub fn from_socket(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Gives the socket up.
    pub fn into_socket(self) -> OwnedFd {
        self.0
    }

    /// Sends a message with descriptors.
    ///
    /// # Errors
    /// EPIPE if the peer is gone.
    pub fn send_with(
        &self,
        message: &impl Serialize,
        descriptors: &[OwnedFd],
    ) -> Result<(), Errno> {
        let bytes = serde_json::to_vec(message).map_err(|_| Errno::INVAL)?;
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
            return Err(Errno::TOOMANYREFS);
        }
        let (text, flags) = ([IoSlice::new(&bytes)], SendFlags::NOSIGNAL);
        retry(|| rustix::net::sendmsg(&self.0, &text, &mut control, flags)).map(drop)
    }

    /// Waits for one message and its descriptors, close-on-exec; None when the peer has closed its
    /// end.
    ///
    /// # Errors
    /// Those of recvmsg(2); EBADMSG for what is no message.
    pub fn receive_with<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = [0; MAX_MESSAGE];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = retry(|| {
            let mut text = [IoSliceMut::new(&mut buffer)];
            rustix::net::recvmsg(&self.0, &mut text, &mut control, flags)
        });
        let length = match received {
            Ok(received) if received.bytes == 0 => return Ok(None),
            Ok(received) => received.bytes,
            // See receive().
            Err(Errno::CONNRESET) => return self.receive_with(),
            Err(errno) => return Err(errno),
        };
        let descriptors = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let descriptors = descriptors.flatten().collect();
        let message = serde_json::from_slice(&buffer[..length]).map_err(|_| Errno::BADMSG)?;
        Ok(Some((message, descriptors)))
    }

    /// In init: waits for `expected` and returns its descriptors, close-on-exec.
    ///
    /// # Errors
    /// EPIPE for the runtime's death and for another message.
    pub fn expect_with(&self, expected: ToInit) -> Result<Vec<OwnedFd>, Errno> {
        match self.receive_with()? {
            Some((message, descriptors)) if expected == message => Ok(descriptors),
            _ => Err(Errno::PIPE),
        }
    }

    /// Sends one message.
    ///
    /// # Errors
    /// EPIPE if the peer is gone.
    pub fn send(&self, message: &impl Serialize) -> Result<(), Errno> {
        let mut bytes = serde_json::to_vec(message).map_err(|_| Errno::INVAL)?;
        bytes.truncate(MAX_MESSAGE);
        retry(|| rustix::net::send(&self.0, &bytes, SendFlags::NOSIGNAL)).map(drop)
    }

    /// Waits for one message; None when the peer has closed its end.
    ///
    /// # Errors
    /// Those of recv(2); EBADMSG for what is no message.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<Option<T>, Errno> {
        let mut buffer = [0; MAX_MESSAGE];
        let received = retry(|| rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty()));
        let length = match received {
            Ok((_, 0)) => return Ok(None),
            Ok((_, length)) => length,
            // Said once, before what the peer sent, if it closed its end with a message of ours
            // unread (unix_release_sock() in net/unix/af_unix.c).
            Err(Errno::CONNRESET) => return self.receive(),
            Err(errno) => return Err(errno),
        };
        serde_json::from_slice(&buffer[..length]).map(Some).map_err(|_| Errno::BADMSG)
    }

    /// In init: waits for `expected`. The runtime's death, or another message, is EPIPE.
    ///
    /// # Errors
    /// EPIPE.
    pub fn expect(&self, expected: ToInit) -> Result<(), Errno> {
        match self.receive()? {
            Some(message) if expected == message => Ok(()),
            _ => Err(Errno::PIPE),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sends `text` with one descriptor over a connected socket: the terminal of a console socket, the
/// pidfd of a pidfd socket.
///
/// # Errors
/// Those of sendmsg(2).
pub fn send_descriptor(socket: impl AsFd, text: &[u8], descriptor: impl AsFd) -> Result<(), Errno> {
    let descriptors = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let text = [IoSlice::new(text)];
    retry(|| rustix::net::sendmsg(&socket, &text, &mut control, SendFlags::NOSIGNAL)).map(drop)
}

/// The other side of [`send_descriptor`]: waits for a message, and takes the first descriptor that
/// comes with it, close-on-exec.
///
/// # Errors
/// Those of recvmsg(2); ENOMSG if none came.
pub fn receive_descriptor(socket: impl AsFd) -> Result<OwnedFd, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; 64];
    let flags = RecvFlags::CMSG_CLOEXEC;
    retry(|| {
        let mut text = [IoSliceMut::new(&mut text)];
        rustix::net::recvmsg(&socket, &mut text, &mut control, flags)
    })?;
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    descriptors.flatten().next().ok_or(Errno::NOMSG)
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_and_the_end_is_seen() {
        let (a, b) = Channel::pair().unwrap();
        let failure = ToRuntime::Failed(Failure::because("mount /dev", "x".repeat(9000)));
        a.send(&ToRuntime::Ready).unwrap();
        a.send(&failure).unwrap();
        assert_eq!(b.receive().unwrap(), Some(ToRuntime::Ready));
        assert_eq!(b.receive().unwrap(), Some(failure));
        drop(a);
        assert_eq!(b.receive::<ToRuntime>().unwrap(), None);
        assert_eq!(b.expect(ToInit::Start), Err(Errno::PIPE));
    }

    #[test]
    fn descriptors_come_with_their_message() {
        let (a, b) = Channel::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        a.send_with(&ToInit::CgroupReady, &[write]).unwrap();
        let descriptors = b.expect_with(ToInit::CgroupReady).unwrap();
        rustix::io::write(&descriptors[0], b"x").unwrap();
        assert_eq!(rustix::io::read(&read, &mut [0; 2]).unwrap(), 1);
        a.send_with(&ToInit::CgroupReady, &[]).unwrap();
        assert_eq!(b.expect_with(ToInit::Network).unwrap_err(), Errno::PIPE);
        drop(a);
        assert_eq!(b.expect_with(ToInit::Network).unwrap_err(), Errno::PIPE);
    }
}
