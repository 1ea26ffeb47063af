//! A pidfd socket as a caller has it: it receives the pidfd of the container's or the exec'd
//! process.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::console::readable;

/// The listening side of `--pidfd-socket`.
#[derive(Debug)]
pub struct PidfdSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl PidfdSocket {
    /// Listens in the folder `dir`.
    pub fn listen(dir: &Path) -> Self {
        let path = dir.join("pidfd.sock");
        PidfdSocket { listener: UnixListener::bind(&path).unwrap(), path }
    }

    /// The value for `--pidfd-socket`.
    pub fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// Takes the pidfd, and the text that comes with it.
    pub fn accept(&self) -> (String, OwnedFd) {
        assert!(readable(&self.listener, crate::patience(10)), "nobody connected");
        let (stream, _) = self.listener.accept().unwrap();
        let mut text = [0; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let message =
            recvmsg(&stream, &mut [IoSliceMut::new(&mut text)], &mut control, flags).unwrap();
        let fds = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let mut fds: Vec<OwnedFd> = fds.flatten().collect();
        assert_eq!(fds.len(), 1, "descriptors in the message");
        let text = String::from_utf8_lossy(&text[..message.bytes]).into_owned();
        (text, fds.remove(0))
    }
}

/// The process that a pidfd refers to: pidfd_open(2), `/proc/PID/fdinfo`; -1 once it has been
/// reaped.
pub fn pid_of(pidfd: &OwnedFd) -> i32 {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap();
    line.trim().parse().unwrap()
}
