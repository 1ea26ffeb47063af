//! `run` and `exec` with a terminal in the foreground: the caller's terminal is connected to the
//! container's.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use kiln_runtime::create::Console;
use kiln_runtime::wait::{self, Child};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};
use rustix::termios::{OptionalActions, OutputModes, Termios};

/// The end of the console socket that the master arrives on.
pub struct Terminal(OwnedFd);

impl Terminal {
    /// Takes the place of a console socket.
    pub fn open(console: &mut Option<Console>) -> Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        *console = Some(Console::foreground(theirs));
        Ok(Self(ours))
    }

    /// Connects both terminals until the process ends; returns its exit status. The caller's
    /// terminal is raw meanwhile.
    ///
    /// A thread does the copying: this process does not fork any more, and the main thread waits
    /// for signals, which all threads have blocked.
    pub fn serve(self, child: &impl Child) -> Result<i32> {
        let master = self.receive()?;
        let stdin = rustix::stdio::stdin();
        let _raw = RawMode::enter(stdin);
        let resize = || {
            if let Ok(size) = rustix::termios::tcgetwinsize(stdin) {
                let _ = rustix::termios::tcsetwinsize(&master, size);
            }
        };
        resize();
        let copier = std::thread::spawn({
            let master = master.try_clone().context("share the terminal")?;
            move || copy(&master)
        });
        let status = wait::wait(child, resize)?;
        // What the container has written is still to be read: the copier ends with its terminal.
        drop(master);
        let _ = copier.join();
        Ok(status)
    }

    fn receive(&self) -> Result<OwnedFd> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 64];
        let flags = RecvFlags::CMSG_CLOEXEC;
        rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(&mut name)], &mut control, flags)
            .context("receive the terminal")?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
                && let Some(master) = descriptors.next()
            {
                return Ok(master);
            }
        }
        bail!("receive the terminal: no descriptor came")
    }
}

/// stdin to the container, the container to stdout, until the container's side is closed.
fn copy(master: &OwnedFd) {
    let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    let mut stdin_open = true;
    loop {
        let mut polled = vec![PollFd::new(master, PollFlags::IN)];
        if stdin_open {
            polled.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
        }
        match rustix::event::poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        // The container's end gives EIO.
        if ready[0] && !matches!(forward(master.as_fd(), stdout), Ok(true)) {
            return;
        }
        if ready.get(1) == Some(&true) {
            stdin_open = matches!(forward(stdin, master.as_fd()), Ok(true));
        }
    }
}

/// Moves what there is; false at the end.
fn forward(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut buffer = [0; 4096];
    let length = match rustix::io::read(from, &mut buffer) {
        Err(Errno::INTR) => return Ok(true),
        length => length?,
    };
    let mut rest = &buffer[..length];
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Err(Errno::INTR) => {}
            written => rest = &rest[written?..],
        }
    }
    Ok(length > 0)
}

/// The caller's terminal in raw mode, given back as it was.
struct RawMode<'a>(BorrowedFd<'a>, Termios);

impl<'a> RawMode<'a> {
    /// None if stdin is no terminal.
    fn enter(stdin: BorrowedFd<'a>) -> Option<Self> {
        let saved = rustix::termios::tcgetattr(stdin).ok()?;
        let mut raw = saved.clone();
        raw.make_raw();
        // Newlines arrive without carriage returns (see `Console::foreground`).
        raw.output_modes.set(OutputModes::OPOST, saved.output_modes.contains(OutputModes::OPOST));
        rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self(stdin, saved))
    }
}

impl Drop for RawMode<'_> {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(self.0, OptionalActions::Now, &self.1);
    }
}
