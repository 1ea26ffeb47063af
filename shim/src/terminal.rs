//! Terminals: what a container's terminal says goes to containerd's FIFO, and back. The only bytes
//! that pass through the shim.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::termios::Winsize;

use crate::container::Io;
use crate::error::{Context, Error};
use crate::stdio::{self, Held};

/// Names a terminal in the server.
pub type TerminalId = u64;

/// How much is read at once, and kept while the reader is slow.
const CHUNK: usize = 16 * 1024;

/// A terminal's master, between two FIFOs.
#[derive(Debug)]
pub struct Terminal {
    master: OwnedFd,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    /// For the master.
    typed: Vec<u8>,
    /// For stdout.
    said: Vec<u8>,
    /// The container's side is closed, and all that it said was read.
    ended: bool,
}

impl Terminal {
    /// Connects the master, which init has sent over a socket, with the process's streams. With it
    /// comes what keeps these alive while nobody is at their other end.
    ///
    /// # Errors
    /// A FIFO cannot be opened.
    pub fn new(master: OwnedFd, io: &Io, id: &str, namespace: &str) -> Result<(Self, Held), Error> {
        let flags = rustix::fs::fcntl_getfl(&master).step("look at the terminal")?;
        rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK).step("prepare the terminal")?;
        let mut held = Held::default();
        let stdin = stdio::terminal_input(&io.stdin, &mut held)?;
        let stdout = stdio::terminal_output(&io.stdout, id, namespace, &mut held)?;
        let (typed, said) = (Vec::new(), Vec::new());
        Ok((Self { master, stdin, stdout, typed, said, ended: false }, held))
    }

    /// Moves what can be moved.
    pub fn proceed(&mut self) {
        if self.typed.is_empty()
            && let Some(stdin) = &self.stdin
        {
            match fill(stdin.as_fd(), &mut self.typed) {
                Progress::Some | Progress::None => {}
                // It is kept open, so this is no client's detaching.
                Progress::End => self.stdin = None,
            }
        }
        drain(self.master.as_fd(), &mut self.typed);
        loop {
            if self.said.is_empty() && !self.ended {
                // EIO: nobody has the other end open any more.
                self.ended = fill(self.master.as_fd(), &mut self.said) == Progress::End;
            }
            match &self.stdout {
                Some(stdout) => drain(stdout.as_fd(), &mut self.said),
                None => self.said.clear(),
            }
            if self.ended || !self.said.is_empty() || !self.has_more() {
                return;
            }
        }
    }

    fn has_more(&self) -> bool {
        self.polls(PollFlags::IN | PollFlags::HUP)
    }

    fn polls(&self, flags: PollFlags) -> bool {
        let mut polled = [PollFd::new(&self.master, flags)];
        let _ = poll(&mut polled, Some(&Timespec::default()));
        polled[0].revents().intersects(flags)
    }

    /// What to wait for: each descriptor, and whether for reading, writing.
    pub fn interests(&self) -> Vec<(BorrowedFd<'_>, bool, bool)> {
        let mut interests = Vec::new();
        let (typed, said) = (!self.typed.is_empty(), !self.said.is_empty());
        if !self.ended {
            interests.push((self.master.as_fd(), !said, typed));
            interests.extend(self.stdin.as_ref().map(|stdin| (stdin.as_fd(), !typed, false)));
        }
        interests.extend(self.stdout.as_ref().map(|stdout| (stdout.as_fd(), false, said)));
        interests
    }

    /// Whether the container can say no more, though not all of it may have been read yet.
    pub fn has_ended(&self) -> bool {
        self.ended || self.polls(PollFlags::HUP)
    }

    /// Whether all that the container said has been passed on.
    pub fn is_done(&self) -> bool {
        self.ended && self.said.is_empty()
    }

    /// Whether something is still to be passed on.
    pub fn has_said(&self) -> bool {
        !self.said.is_empty()
    }

    /// Sets its size, in characters.
    ///
    /// # Errors
    /// Those of TIOCSWINSZ.
    pub fn resize(&self, width: u32, height: u32) -> Result<(), Error> {
        let [width, height] = [width, height].map(|size| u16::try_from(size).unwrap_or(u16::MAX));
        let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.master, size).step("resize the terminal")
    }
}

#[derive(PartialEq)]
enum Progress {
    Some,
    None,
    End,
}

fn fill(from: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> Progress {
    let mut chunk = [0; CHUNK];
    match rustix::io::read(from, &mut chunk[..]) {
        Ok(0) => Progress::End,
        Ok(length) => {
            buffer.extend_from_slice(&chunk[..length]);
            Progress::Some
        }
        Err(Errno::AGAIN | Errno::INTR) => Progress::None,
        Err(_) => Progress::End,
    }
}

fn drain(to: BorrowedFd<'_>, buffer: &mut Vec<u8>) {
    while !buffer.is_empty() {
        match rustix::io::write(to, buffer) {
            Ok(length) => drop(buffer.drain(..length)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return,
            // Nobody will ever take it.
            Err(_) => buffer.clear(),
        }
    }
    *buffer = Vec::new();
}
