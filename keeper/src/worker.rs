//! A worker: a process of its own that makes instances ahead of time and answers one call after the
//! other.
//!
//! Its standard output is a pipe to the server. What is left in it when a call ends goes with the
//! answer, so no more comes for that call. The rest of what a guest can change is given back here after each call, or goes
//! with its instance.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::board::Turn;
use crate::call::{Answer, Call, Incoming, Sent, encode};
use crate::guest::{Ended, Instance, Module};
use crate::parent::Stderr;
use crate::sys::Schedule;

/// How many bytes are received at once, of a call or of what a guest has written: a pipe's capacity.
const BUFFER: usize = 64 << 10;

/// A worker's descriptors.
#[derive(Debug)]
pub struct Worker<'a> {
    /// The socket on which calls come.
    pub calls: OwnedFd,
    /// The pipe to which their ends are written.
    pub answers: OwnedFd,
    /// The other end of the pipe that is its standard output, which does not block.
    pub output: OwnedFd,
    /// For the calls that bring none.
    pub stderr: &'a Stderr,
    /// How many files a guest may open that can open any.
    pub files: Option<u64>,
    /// Where it says which call it has begun.
    pub turn: Turn<'a>,
}

impl Worker<'_> {
    /// Serves calls until nobody sends them any more, each instance `uses` times.
    ///
    /// # Errors
    /// The socket is of no use, or no more descriptors can be had.
    pub fn work(&self, module: &dyn Module, uses: u32) -> io::Result<()> {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        // A rootfs without it: what nobody writes to reads as empty as well.
        let null = null.or_else(|_| rustix::pipe::pipe().map(|(end, _)| end))?;
        rustix::stdio::dup2_stdin(&null)?;
        // Somebody may have been killed before it could do that.
        self.stderr.restore()?;
        let (mut buffer, mut incoming) = (vec![0; BUFFER], Incoming::default());
        let mut schedule = Schedule::new();
        let mut instance = self.prepare(module)?;
        loop {
            let Some(sent) = next(&self.calls, &mut incoming, &mut buffer)? else { return Ok(()) };
            let (number, call) = (sent.number(), sent.call);
            let (stdin, own_stderr) = incoming.streams(&call);
            if !self.turn.begin(number) {
                continue;
            }
            let begun = Instant::now();
            schedule.set_batch(self.turn.is_crowded());
            if let Some(stdin) = &stdin {
                rustix::stdio::dup2_stdin(stdin)?;
            }
            if let Some(stderr) = &own_stderr {
                rustix::stdio::dup2_stderr(stderr)?;
            }
            // Ours are closed, so that whoever writes to the one or reads the other sees the guest's end.
            let streams = (stdin.is_some(), own_stderr.is_some());
            drop((stdin, own_stderr));
            let ended = instance.call(&call);
            if streams.0 {
                rustix::stdio::dup2_stdin(&null)?;
            }
            if streams.1 {
                rustix::stdio::dup2_stderr(&self.stderr.descriptor)?;
            }
            let written = self.written(&mut buffer)?;
            let spent = std::mem::take(&mut instance.made_in) + begun.elapsed();
            let nanoseconds = u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX);
            let answer = Answer { number, nanoseconds, ended, output: written.to_vec() };
            if !tell(&self.answers, &answer)? {
                return Ok(());
            }
            let ended = answer.ended;
            if instance.calls >= uses || !matches!(ended, Ended::Exit(_)) {
                // Its memory is given back before the next is made.
                instance.instance = Err(String::new());
                instance = self.prepare(module)?;
            }
            restore_flags(rustix::stdio::stdout())?;
            self.stderr.restore()?;
        }
    }

    /// What the guest has written and the server has not read. All of it: no pipe holds more.
    fn written<'b>(&self, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        loop {
            match rustix::io::read(&self.output, &mut *buffer) {
                Ok(count) => return Ok(&buffer[..count]),
                Err(Errno::AGAIN) => return Ok(&[]),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Makes an instance. Its directories are not among the files that its guest may open: there may be
    /// many, and WASI opens them more than once.
    fn prepare(&self, module: &dyn Module) -> io::Result<Prepared> {
        let Some(files) = self.files else { return Ok(Prepared::new(module)) };
        limit_files(u64::MAX)?;
        let prepared = Prepared::new(module);
        let next = rustix::io::fcntl_dupfd_cloexec(&self.calls, 3)?.as_raw_fd();
        limit_files(files.saturating_add(next.unsigned_abs().into()).saturating_add(STREAMS))?;
        Ok(prepared)
    }
}

/// The descriptors that come with a call.
const STREAMS: u64 = 2;

/// Bounds the numbers of the descriptors that this process may open, as far as it may itself.
fn limit_files(most: u64) -> io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = Some(maximum.map_or(most, |maximum| maximum.min(most)));
    Ok(setrlimit(Resource::Nofile, Rlimit { current, maximum })?)
}

/// An instance, or why there is none.
struct Prepared {
    instance: Result<Box<dyn Instance>, String>,
    calls: u32,
    /// How long that took, until it is said.
    made_in: Duration,
}

impl Prepared {
    fn new(module: &dyn Module) -> Self {
        let begun = Instant::now();
        let instance = module.instantiate();
        Prepared { instance, calls: 0, made_in: begun.elapsed() }
    }

    fn call(&mut self, call: &Call) -> Ended {
        self.calls += 1;
        match &mut self.instance {
            Ok(instance) => instance.call(&call.args, &call.env),
            Err(reason) => Ended::Failed(reason.clone()),
        }
    }
}

fn next(socket: &OwnedFd, incoming: &mut Incoming, buffer: &mut [u8]) -> io::Result<Option<Sent>> {
    loop {
        if let Some(sent) = incoming.message()? {
            return Ok(Some(sent));
        }
        match incoming.fill(socket, buffer) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// False if nobody hears it any more.
fn tell(answers: &OwnedFd, answer: &Answer) -> io::Result<bool> {
    let message = encode(answer)?;
    let mut rest = &message[..];
    while !rest.is_empty() {
        match rustix::io::write(answers, rest) {
            Ok(count) => rest = &rest[count..],
            Err(Errno::INTR) => {}
            Err(Errno::PIPE) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(true)
}

/// A guest may have made its stdout non-blocking or appending, and the next has the same one.
fn restore_flags(stream: BorrowedFd<'_>) -> io::Result<()> {
    rustix::fs::fcntl_setfl(stream.as_fd(), OFlags::empty())?;
    Ok(())
}
