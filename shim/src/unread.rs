//! What a process has said and nobody has read when it ends.
//!
//! It would be lost with the last descriptor of its FIFO. Whoever is to read it may be just about
//! to open that, since a process can be over within a millisecond, or be a containerd that is
//! restarted. So the shim keeps the FIFO until it has been read, or is deleted, and puts a deletion
//! off for a moment: with the answer containerd's clients stop reading.
//!
//! It is kept for a reader that has not come, too, if there is nothing in it: containerd's open(2)
//! waits for a writer, and CRI's exec waits for that.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::DeleteRequest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags};

use crate::container::Process;
use crate::server::{Call, Server};
use crate::stdio::open_at_once;
use crate::terminal::Terminal;

/// How long after its end a process's output is waited for to be read, if it is to be deleted.
const LIMIT: Duration = Duration::from_secs(1);

/// A FIFO that somebody is still to read, or to open.
#[derive(Debug)]
pub struct Unread {
    /// A writing end: without one a reader's open(2) would wait.
    writer: OwnedFd,
}

impl Unread {
    /// Takes the shim's reading end; nothing if somebody else has one, and nothing is in the FIFO.
    pub fn new(reader: OwnedFd) -> Option<Self> {
        let mode = rustix::fs::fstat(&reader).ok()?.st_mode;
        if FileType::from_raw_mode(mode) != FileType::Fifo {
            return None;
        }
        // The FIFO may have been unlinked.
        let path = PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
        let writer = open_at_once(&path, OFlags::WRONLY).ok()?;
        drop(reader);
        Some(Self { writer }).filter(|fifo| !fifo.is_read())
    }

    /// Whether something in it would be lost.
    pub fn has_text(&self) -> bool {
        !is_empty(&self.writer)
    }

    /// Whether all has been read, by somebody who is still there.
    pub fn is_read(&self) -> bool {
        !self.has_text() && has_reader(&self.writer)
    }
}

/// Whether somebody has the FIFO open for reading, or waits in open(2): that counts, and a writer
/// that has come has ended the wait.
fn has_reader(writer: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(writer, PollFlags::empty())];
    // POLLERR comes unasked.
    let _ = poll(&mut polled, Some(&Timespec::default()));
    !polled[0].revents().contains(PollFlags::ERR)
}

fn is_empty(fifo: &OwnedFd) -> bool {
    rustix::io::ioctl_fionread(fifo).map_or(true, |length| length == 0)
}

/// Who waits for readers, and when to look for them: no descriptor tells that a FIFO is empty.
#[derive(Debug, Default)]
pub struct Readers {
    next: Option<Instant>,
    pause: Duration,
    deletions: Vec<Deletion>,
}

#[derive(Debug)]
struct Deletion {
    /// Not later than this.
    limit: Instant,
    call: Call,
    request: DeleteRequest,
}

impl Readers {
    const SHORTEST: Duration = Duration::from_millis(1);
    const LONGEST: Duration = Duration::from_secs(1);

    /// There is something new to look for: soon at first, then less and less often.
    pub fn expect(&mut self) {
        self.pause = Self::SHORTEST;
        self.next = Some(Instant::now() + self.pause);
    }

    /// When to look.
    pub fn next(&self) -> Option<Instant> {
        self.next
    }

    fn looked(&mut self, in_vain: bool) {
        self.pause = (self.pause * 2).min(Self::LONGEST);
        self.next = in_vain.then(|| Instant::now() + self.pause);
    }
}

impl Server {
    /// Begins to wait for the readers of a process that has ended and has said all.
    pub fn await_readers(&mut self, id: &str, exec_id: &str) {
        let container = self.containers.get_mut(id);
        let Some(process) = container.and_then(|it| it.process_mut(exec_id)) else { return };
        let says = process.terminal.is_some_and(|number| self.terminals.contains_key(&number));
        if process.exit().is_none() || says {
            return;
        }
        process.unread.extend(std::mem::take(&mut process.held).end());
        if !process.unread.is_empty() {
            self.readers.expect();
        }
    }

    /// Lets go of output that has been read, and goes on with the deletions that have waited for
    /// it. Does nothing before its time.
    pub fn look_for_readers(&mut self) {
        if self.readers.next.is_none_or(|next| next > Instant::now()) {
            return;
        }
        let containers = self.containers.values_mut();
        let processes = containers.flat_map(|one| one.execs.values_mut().chain([&mut one.init]));
        // Each is asked: that forgets what has been read.
        let unread = processes.map(Process::is_unread).filter(|unread| *unread).count() > 0;
        for deletion in std::mem::take(&mut self.readers.deletions) {
            let Deletion { limit, call, request } = &deletion;
            if *limit > Instant::now() && self.has_text(request) {
                self.readers.deletions.push(deletion);
            } else {
                let deleted = self.delete_now(*call, request);
                self.reply(*call, deleted);
            }
        }
        self.readers.looked(unread || !self.readers.deletions.is_empty());
    }

    /// Puts a deletion off if there is reason to. Whether it did.
    pub fn put_off(&mut self, call: Call, request: &DeleteRequest) -> bool {
        if !self.has_text(request) {
            return false;
        }
        let process = self.containers.get(&request.id).and_then(|it| it.process(&request.exec_id));
        let Some(exit) = process.and_then(Process::exit) else { return false };
        let limit = exit.seen + LIMIT;
        if limit <= Instant::now() {
            return false;
        }
        self.readers.deletions.push(Deletion { limit, call, request: request.clone() });
        self.readers.expect();
        true
    }

    fn has_text(&self, of: &DeleteRequest) -> bool {
        let container = self.containers.get(&of.id);
        let process = container.and_then(|container| container.process(&of.exec_id));
        process.is_some_and(|process| {
            let terminal = process.terminal.and_then(|number| self.terminals.get(&number));
            process.unread.iter().any(Unread::has_text) || terminal.is_some_and(Terminal::has_said)
        })
    }
}
