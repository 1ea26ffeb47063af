//! `run` and `exec` with a terminal in the foreground: the caller's terminal is connected to the
//! container's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kiln_runtime::channel::receive_descriptor;
use kiln_runtime::create::Console;
use kiln_runtime::wait::{self, Child};
use oci_spec::runtime::{BoxBuilder, Process};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::termios::{OptionalActions, OutputModes, SpecialCodeIndex, Termios};
use rustix::time::Timespec;

/// The kernel hands a terminal's output over a little later than it is written.
const QUIET: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

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
        let master = receive_descriptor(&self.0).context("receive the terminal")?;
        let stdin = rustix::stdio::stdin();
        let _raw = RawMode::enter(stdin);
        let resize = || {
            if let Ok(size) = rustix::termios::tcgetwinsize(stdin) {
                let _ = rustix::termios::tcsetwinsize(&master, size);
            }
        };
        resize();
        let (ended, end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("make a pipe")?;
        let copier = std::thread::spawn({
            let master = master.try_clone().context("share the terminal")?;
            move || {
                copy(&master, &ended);
                drain(&master);
            }
        });
        let status = wait::wait(child, resize)?;
        // What the container has written is still to be read.
        drop(end);
        let _ = copier.join();
        Ok(status)
    }
}

/// Makes the terminal that the process is to have as large as the caller's from the beginning,
/// unless its size is set: the program may look before [`Terminal::serve`] does.
pub fn adopt_size(process: &mut Process) {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdin());
    let (Ok(size), None) = (size, process.console_size()) else { return };
    let (rows, columns) = (u64::from(size.ws_row), u64::from(size.ws_col));
    let console = BoxBuilder::default().height(rows).width(columns).build();
    process.set_console_size(console.ok());
}

/// stdin to the container, the container to stdout, until the container's side is closed or the
/// other end of `ended` is.
fn copy(master: &OwnedFd, ended: &OwnedFd) {
    let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    let (mut stdin_open, mut last) = (true, b'\n');
    loop {
        let mut polled =
            vec![PollFd::new(master, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
        if stdin_open {
            polled.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
        }
        match rustix::event::poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[1] {
            return;
        }
        // The container's end gives EIO.
        if ready[0] && !matches!(forward(master.as_fd(), stdout), Ok(Some(_))) {
            return;
        }
        if ready.get(2) == Some(&true) {
            match forward(stdin, master.as_fd()) {
                Ok(Some(byte)) => last = byte,
                _ => {
                    stdin_open = false;
                    end_input(master, last);
                }
            }
        }
    }
}

/// After init's end: what has been written is copied, until the terminal has no more users, or
/// says nothing for a moment. A process that outlives init, and still has the terminal, is not
/// waited for, nor is one listened to that never stops.
fn drain(master: &OwnedFd) {
    let since = Instant::now();
    while since.elapsed() < DRAIN_LIMIT {
        let mut polled = [PollFd::new(master, PollFlags::IN)];
        match rustix::event::poll(&mut polled, Some(&QUIET)) {
            Err(Errno::INTR) => {}
            Ok(0) | Err(_) => return,
            Ok(_) if matches!(forward(master.as_fd(), rustix::stdio::stdout()), Ok(Some(_))) => {}
            Ok(_) => return,
        }
    }
}

/// Types the end of input, as script(1) does: once for the end of a line that was not, and once for
/// the end. Whoever reads would wait for ever.
fn end_input(master: &OwnedFd, last: u8) {
    let Ok(termios) = rustix::termios::tcgetattr(master) else { return };
    let end = termios.special_codes[SpecialCodeIndex::VEOF];
    let typed = if last == b'\n' { &[end][..] } else { &[end, end] };
    let _ = rustix::io::write(master, typed);
}

/// Moves what there is; gives the last byte, or nothing at the end.
fn forward(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<Option<u8>, Errno> {
    let mut buffer = [0; 4096];
    let length = loop {
        match rustix::io::read(from, &mut buffer) {
            Err(Errno::INTR) => {}
            length => break length?,
        }
    };
    let mut rest = &buffer[..length];
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Err(Errno::INTR) => {}
            written => rest = &rest[written?..],
        }
    }
    Ok(buffer[..length].last().copied())
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
