//! process.terminal: a pseudo-terminal of the container's own devpts.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, OutputModes, Winsize};

use super::mounts::attach;
use crate::channel::send_descriptor;
use crate::error::{Error, Failure, Step};
use crate::mounts::{clone_open, open_dir};
use crate::plan::ProcessPlan;
use crate::rooted::Rooted;

/// DEVPTS_SUPER_MAGIC, include/uapi/linux/magic.h.
const DEVPTS: i64 = 0x1cd1;

/// Where the master of a terminal goes: over a connected socket, which this owns.
#[derive(Debug)]
pub struct Console {
    socket: OwnedFd,
    foreground: bool,
}

impl Console {
    /// A console socket of the caller's.
    pub fn of_caller(socket: OwnedFd) -> Self {
        Self { socket, foreground: false }
    }

    /// Our own, to be connected to the caller's stdin and stdout. A newline that the container
    /// writes reaches stdout as one then: adding a carriage return is left to the caller's
    /// terminal, if it is one (as for runc).
    pub fn foreground(socket: OwnedFd) -> Self {
        Self { socket, foreground: true }
    }
}

impl AsFd for Console {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Console {
    /// Sends it the master of a terminal that is there already, under the name that runc sends.
    ///
    /// # Errors
    /// Those of sendmsg(2).
    pub(crate) fn give(&self, master: &OwnedFd) -> Result<(), Error> {
        send_descriptor(&self.socket, b"/dev/ptmx", master)
            .step(|| "send the terminal to the console socket".to_owned())
    }
}

/// Opens a terminal, sends its master to `console`, and makes the other end /dev/console, the
/// controlling terminal, and stdin, stdout and stderr.
pub fn open(
    process: &ProcessPlan,
    root: &Rooted<'_>,
    console: Option<Console>,
) -> Result<(), Error> {
    let (socket, pair) = make(process, root, console)?;
    mount_console(root, &pair.terminal)?;
    pair.give(&socket)
}

/// As [`open`], for a process that finds /dev/console in place: in its container.
pub fn open_inside(process: &ProcessPlan, console: Option<Console>) -> Result<(), Error> {
    let root = open_dir("/".as_ref()).step(step)?;
    let (socket, pair) = make(process, &Rooted::new(&root), console)?;
    pair.give(&socket)
}

fn step() -> String {
    "open the terminal".to_owned()
}

struct Pair {
    master: OwnedFd,
    terminal: OwnedFd,
}

/// The master is the container's devpts's, checked to be one, so that the name in /dev/pts is
/// right inside; the other end is taken from the master (TIOCGPTPEER), not from a path that the
/// image could have prepared.
fn make(
    process: &ProcessPlan,
    root: &Rooted<'_>,
    console: Option<Console>,
) -> Result<(OwnedFd, Pair), Error> {
    let console = console.ok_or_else(|| {
        Error::config("process.terminal", "needs a console socket (--console-socket)")
    })?;
    let hint = Some("a terminal needs a devpts mount on /dev/pts".to_owned());
    let pts = root
        .open(Path::new("/dev/pts"), OFlags::PATH | OFlags::DIRECTORY)
        .map_err(|errno| Failure { hint: hint.clone(), ..Failure::new(step(), errno) })?;
    // Before anything is opened in it: the image could have any device there, and opening a
    // watchdog, say, is enough to start it. A devpts holds terminals and nothing else.
    if rustix::fs::fstatfs(&pts).step(step)?.f_type != DEVPTS {
        let failure = Failure::because(step(), "/dev/pts is not a devpts");
        return Err(Failure { hint, ..failure }.into());
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let master = rustix::fs::openat2(&pts, "ptmx", flags, Mode::empty(), beneath).step(step)?;
    rustix::pty::unlockpt(&master).step(step)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = rustix::pty::ioctl_tiocgptpeer(&master, flags).step(step)?;
    if console.foreground {
        let mut termios = rustix::termios::tcgetattr(&terminal).step(step)?;
        termios.output_modes.remove(OutputModes::ONLCR);
        rustix::termios::tcsetattr(&terminal, OptionalActions::Now, &termios).step(step)?;
    }
    if let Some((rows, columns)) = process.console_size {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&master, size).step(step)?;
    }
    let uid = Uid::from_raw(process.uid);
    match rustix::fs::fchown(&terminal, Some(uid), None::<Gid>) {
        // An id that has no name in the user namespace keeps what it has.
        Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
        Err(errno) => return Err(errno).step(step),
    }
    Ok((console.socket, Pair { master, terminal }))
}

impl Pair {
    /// The message's text is the name that runc sends.
    fn give(self, socket: &OwnedFd) -> Result<(), Error> {
        send_descriptor(socket, b"/dev/ptmx", &self.master)
            .step(|| "send the terminal to the console socket".to_owned())?;
        take(&self.terminal).step(step)
    }
}

fn mount_console(root: &Rooted<'_>, terminal: &OwnedFd) -> Result<(), Error> {
    let step = || "mount the terminal on /dev/console".to_owned();
    let tree = clone_open(terminal, false).step(step)?;
    let path = Path::new("/dev/console");
    root.make_file(path).step(step)?;
    // Not through a symlink that the image has there.
    let target = root.open_real(path, OFlags::PATH).step(step)?;
    attach(&tree, &target).step(step)
}

fn take(terminal: &OwnedFd) -> Result<(), Errno> {
    rustix::process::ioctl_tiocsctty(terminal)?;
    rustix::stdio::dup2_stdin(terminal)?;
    rustix::stdio::dup2_stdout(terminal)?;
    rustix::stdio::dup2_stderr(terminal)
}
