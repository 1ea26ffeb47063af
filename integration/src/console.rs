//! A console socket as a container engine has one: it receives the master side
//! of the container's terminal.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::{Cli, reaper};

/// The listening side of `--console-socket`.
#[derive(Debug)]
pub struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens in the folder `dir`.
    pub fn listen(dir: &Path) -> Self {
        let path = dir.join("console.sock");
        ConsoleSocket { listener: UnixListener::bind(&path).unwrap(), path }
    }

    /// The value for `--console-socket`.
    pub fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// Whether somebody has connected.
    pub fn was_called(&self) -> bool {
        readable(&self.listener, Duration::ZERO)
    }

    /// Takes the terminal from the runtime, which must send exactly one
    /// descriptor in one message.
    pub fn accept(&self) -> Terminal {
        assert!(readable(&self.listener, crate::patience(10)), "nobody connected");
        let (stream, _) = self.listener.accept().unwrap();
        assert!(readable(&stream, crate::patience(10)), "no message on the console socket");
        let mut name = [0; 256];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        recvmsg(&stream, &mut [IoSliceMut::new(&mut name)], &mut control, flags).unwrap();
        let mut fds: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        assert_eq!(fds.len(), 1, "descriptors in the message");
        // Nothing else, and nobody keeps it open.
        assert!(readable(&stream, crate::patience(10)), "the console socket stays open");
        assert_eq!((&stream).read(&mut [0]).unwrap(), 0, "a second message");
        Terminal { master: File::from(fds.remove(0)) }
    }
}

/// The master side of a container's terminal.
#[derive(Debug)]
pub struct Terminal {
    /// The descriptor.
    pub master: File,
}

impl Terminal {
    /// A terminal, and its other side, for a command that the test starts.
    pub fn with_slave() -> (Self, OwnedFd) {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        (Terminal { master: File::from(master) }, slave.into())
    }

    /// Sets its size in characters.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).unwrap();
    }

    /// Types `text`.
    pub fn send(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Reads until `end` was seen or the container has closed its side.
    ///
    /// # Panics
    /// If neither comes within ten seconds.
    pub fn read_until(&mut self, end: &str) -> String {
        let mut text = String::new();
        let mut buffer = [0; 4096];
        while !text.contains(end) {
            assert!(readable(&self.master, crate::patience(10)), "only got {text:?}");
            // EIO: the last process with the terminal open has gone.
            match self.master.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(count) => text += &String::from_utf8_lossy(&buffer[..count]),
            }
        }
        text
    }
}

/// Starts a command on a terminal of `rows` and `columns`. The caller waits for its end
/// ([`crate::command::wait_child`]).
pub fn on_terminal(cli: &Cli, rows: u16, columns: u16) -> (Terminal, Child) {
    let (terminal, slave) = Terminal::with_slave();
    terminal.resize(columns, rows);
    let stdio = || Stdio::from(slave.try_clone().unwrap());
    let mut command = cli.command();
    let child = reaper::spawn(command.stdin(stdio()).stdout(stdio()).stderr(stdio()));
    (terminal, child)
}

/// Waits for a descriptor to have something to read, or its other end gone.
pub fn readable(fd: &impl std::os::fd::AsFd, limit: Duration) -> bool {
    let limit = Timespec {
        tv_sec: limit.as_secs().cast_signed(),
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    let mut polled = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut polled, Some(&limit)).unwrap() > 0
}
