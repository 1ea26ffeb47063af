//! The workers' parent: a process that holds the module and nothing of any request, and forks a
//! worker whenever the server asks for one. What a request leaves behind is never in its memory, so
//! it is never in that of a new worker.
//!
//! Server and parent talk over a SOCK_SEQPACKET socket, one message a packet. The parent answers in
//! the order in which it is asked.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions, waitpid};
use serde::{Deserialize, Serialize};

use crate::board::Board;
use crate::call::receive;
use crate::guest::Module;
use crate::memory;
use crate::settings::Settings;
use crate::sys::{self, Forked};
use crate::worker::Worker;

/// What the server asks for.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub enum Ask {
    /// A worker that has this place on the board. With it come its ends, see [`Ends::theirs`].
    Fork(u32),
    /// How a worker ended, which has ended or is about to.
    Reap(i32),
    /// The same of one that is to be killed. Until it has been reaped nobody else has its pid.
    Kill(i32),
    /// Nothing; the module's compiled code comes with it.
    Compiled,
}

/// What the parent says.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum Tell {
    /// To [`Ask::Fork`]: the worker's pid, or an errno.
    Forked(Result<i32, i32>),
    /// To [`Ask::Compiled`]: whether workers from before are slower than new ones now, or why the
    /// code is of no use.
    Compiled(Result<(), String>),
    /// To [`Ask::Reap`], as soon as it has ended: its pid, and the signal that ended it or its exit
    /// status.
    Ended(i32, End),
}

/// How a process has ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum End {
    /// It was killed.
    Signal(i32),
    /// By itself.
    Exit(i32),
}

/// The longest message, in bytes. Of a reason that would be longer the end is left out.
pub const PACKET: usize = 1024;
/// How long a reason may be, in bytes.
const REASON: usize = PACKET - 64;

/// How often the parent looks whether those have ended that are about to.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };

/// The parent, as the server has it.
#[derive(Debug)]
pub struct Started {
    /// The server's end of the socket.
    pub socket: OwnedFd,
    /// Its pid.
    pub pid: Pid,
    /// What server and workers share.
    pub board: Rc<Board>,
}

/// Starts the parent. What the server holds beyond stdio is
/// closed in the parent.
///
/// # Errors
/// No socket or no process can be had.
pub fn start(module: &mut dyn Module, settings: &Settings) -> io::Result<Started> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // Some leases keep the place of who was discarded a little longer.
    let board = Board::new(2 * settings.max)?;
    let server = rustix::process::getpid();
    match sys::fork()? {
        Forked::Parent(pid) => Ok(Started { socket: ours, pid, board: Rc::new(board) }),
        Forked::Child => {
            drop(ours);
            let ended = become_parent(server, &theirs).and_then(|stderr| {
                Parent { module, settings, socket: theirs, stderr, board, dying: Vec::new() }
                    .serve()
            });
            match ended {
                Ok(()) => sys::exit(0),
                // The server has ended first.
                Err(error) if is_gone(&error) => sys::exit(0),
                Err(error) => {
                    eprintln!("kiln: the workers' parent: {error}");
                    sys::exit(1)
                }
            }
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// Lets go of all that is the server's but its standard error, of which it returns a copy.
fn become_parent(server: Pid, socket: &OwnedFd) -> io::Result<Stderr> {
    die_with(server)?;
    sys::reset_signals();
    let descriptor = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3)?;
    close_all_but(&[socket.as_fd(), descriptor.as_fd()])?;
    let flags = rustix::fs::fcntl_getfl(&descriptor)?;
    Ok(Stderr { descriptor, flags })
}

/// Ends when `maker` does, whatever becomes of it.
fn die_with(maker: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before.
    match rustix::process::getppid() {
        Some(parent) if parent == maker => Ok(()),
        _ => sys::exit(1),
    }
}

fn close_all_but(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let kept: Vec<i32> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    sys::close_from(3, |number| kept.contains(&number))
}

/// The server's standard error, which all share: a guest that has it not block would have it so for
/// every other, and for whoever has started the server.
#[derive(Debug)]
pub struct Stderr {
    /// A copy of it.
    pub descriptor: OwnedFd,
    flags: OFlags,
}

impl Stderr {
    /// Gives it the flags back that it had before there were guests.
    ///
    /// # Errors
    /// fcntl(2)'s.
    pub fn restore(&self) -> io::Result<()> {
        Ok(rustix::fs::fcntl_setfl(&self.descriptor, self.flags)?)
    }
}

struct Parent<'a> {
    module: &'a mut dyn Module,
    settings: &'a Settings,
    socket: OwnedFd,
    stderr: Stderr,
    board: Board,
    dying: Vec<Pid>,
}

impl Parent<'_> {
    fn serve(&mut self) -> io::Result<()> {
        loop {
            self.reap()?;
            if !self.is_asked()? {
                continue;
            }
            let (mut packet, mut descriptors) = ([0; PACKET], Vec::new());
            let count = match receive(&self.socket, &mut packet, &mut descriptors) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            match postcard::from_bytes::<Ask>(&packet[..count]).map_err(io::Error::other)? {
                Ask::Fork(place) => {
                    let forked = self.fork(place, descriptors);
                    let forked = forked.map_err(|error| error.raw_os_error().unwrap_or(0));
                    self.tell(Tell::Forked(forked.map(Pid::as_raw_pid)))?;
                }
                Ask::Reap(pid) => self.dying.extend(Pid::from_raw(pid)),
                Ask::Kill(pid) => {
                    if let Some(pid) = Pid::from_raw(pid) {
                        let _ = rustix::process::kill_process(pid, Signal::KILL);
                        self.dying.push(pid);
                    }
                }
                Ask::Compiled => {
                    let code = descriptors.pop().ok_or_else(|| "no code came".to_owned());
                    let replaced = code.and_then(|code| self.module.replace(code));
                    let replaced = replaced.map_err(|mut reason| {
                        reason.truncate(reason.floor_char_boundary(REASON));
                        reason
                    });
                    self.tell(Tell::Compiled(replaced))?;
                }
            }
        }
    }

    /// Until the server asks; false if that takes long while somebody is dying.
    fn is_asked(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
        let pause = (!self.dying.is_empty()).then_some(&PAUSE);
        match poll(&mut polled, pause) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn reap(&mut self) -> io::Result<()> {
        for pid in std::mem::take(&mut self.dying) {
            match waitpid(Some(pid), WaitOptions::NOHANG) {
                Ok(None) => self.dying.push(pid),
                Ok(Some((_, status))) => {
                    let end = match status.terminating_signal() {
                        Some(signal) => End::Signal(signal),
                        None => End::Exit(status.exit_status().unwrap_or(0)),
                    };
                    self.tell(Tell::Ended(pid.as_raw_pid(), end))?;
                }
                Err(Errno::INTR) => self.dying.push(pid),
                Err(_) => self.tell(Tell::Ended(pid.as_raw_pid(), End::Exit(0)))?,
            }
        }
        Ok(())
    }

    fn tell(&self, tell: Tell) -> io::Result<()> {
        let packet = postcard::to_stdvec(&tell).map_err(io::Error::other)?;
        rustix::net::send(&self.socket, &packet, rustix::net::SendFlags::NOSIGNAL)?;
        Ok(())
    }

    fn fork(&mut self, place: u32, descriptors: Vec<OwnedFd>) -> io::Result<Pid> {
        let [calls, answers, stdout, output] =
            <[OwnedFd; 4]>::try_from(descriptors).map_err(|_| io::Error::from(Errno::INVAL))?;
        if self.board.turn(place).is_none() {
            return Err(Errno::INVAL.into());
        }
        let parent = rustix::process::getpid();
        match sys::fork()? {
            Forked::Parent(pid) => Ok(pid),
            Forked::Child => {
                self.board.keep(place);
                let Some(turn) = self.board.turn(place) else { sys::exit(1) };
                let directories = self.module.directories() > 0;
                let files = directories.then_some(self.settings.files);
                let worker = Worker { calls, answers, output, stderr: &self.stderr, files, turn };
                let worked = self
                    .become_worker(parent, &worker, stdout)
                    .and_then(|()| worker.work(self.module, self.settings.uses()));
                if let Err(error) = &worked {
                    eprintln!("kiln: a worker: {error}");
                }
                sys::exit(i32::from(worked.is_err()))
            }
        }
    }

    fn become_worker(&self, parent: Pid, own: &Worker<'_>, stdout: OwnedFd) -> io::Result<()> {
        die_with(parent)?;
        rustix::stdio::dup2_stdout(&stdout)?;
        drop(stdout);
        let stderr = own.stderr.descriptor.as_fd();
        close_all_but(&[own.calls.as_fd(), own.answers.as_fd(), own.output.as_fd(), stderr])?;
        // If memory is short, a request ends, and not the server. Without /proc it is left to luck.
        let _ = std::fs::write("/proc/self/oom_score_adj", "900");
        let limit = |resource, most: u64| {
            let Rlimit { maximum, .. } = rustix::process::getrlimit(resource);
            let most = Some(maximum.map_or(most, |maximum| maximum.min(most)));
            rustix::process::setrlimit(resource, Rlimit { current: most, maximum: most })
        };
        limit(Resource::Core, 0)?;
        // An interpreter keeps its stack in memory of its own, and lets it grow into all there is.
        if let Some(used) = memory::writable() {
            let most = used.saturating_add(self.settings.memory).saturating_add(OVERHEAD);
            limit(Resource::Data, most)?;
        }
        Ok(())
    }
}

/// What a worker may take beside what it was made with and its guest's memory, in bytes: for the
/// call, for what the engine makes of it, and for an interpreter's stack.
const OVERHEAD: u64 = 128 << 20;

/// The server's messages to the parent.
pub fn encode(ask: Ask) -> io::Result<Vec<u8>> {
    postcard::to_stdvec(&ask).map_err(io::Error::other)
}

/// The parent's message in `packet`.
pub fn decode(packet: &[u8]) -> io::Result<Tell> {
    postcard::from_bytes(packet).map_err(io::Error::other)
}

/// What connects server and worker.
#[derive(Debug)]
pub struct Ends {
    /// A socket, to which calls are written.
    pub calls: OwnedFd,
    /// The end of a pipe from which their ends are read. Not the same socket: whoever reads from a
    /// socket wakes who waits at its other end, for nothing.
    pub answers: OwnedFd,
    /// The end of a pipe from which the guest's output is read.
    pub output: OwnedFd,
    /// The other ends, in the same order, and a copy of the one before: what a short call has written
    /// the worker reads itself and sends with the call's end, which saves the server a system call.
    pub theirs: [OwnedFd; 4],
}

impl Ends {
    /// New ones. The server's do not block.
    ///
    /// # Errors
    /// No more descriptors can be had.
    pub fn new() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let (calls, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let (answers, answer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (output, stdout) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        for ours in [&calls, &answers, &output] {
            rustix::io::ioctl_fionbio(ours, true)?;
        }
        let theirs = [theirs, answer, stdout, output.try_clone()?];
        Ok(Ends { calls, answers, output, theirs })
    }
}
