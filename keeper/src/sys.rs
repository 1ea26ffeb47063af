//! fork(2) and what goes with it: all of this crate's `unsafe`.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;

use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Which side of a fork this is.
#[derive(Clone, Copy, Debug)]
pub enum Forked {
    /// The new process.
    Child,
    /// The one that has made it.
    Parent(Pid),
}

/// Makes a process, whose memory and descriptors are as this one's. It must not return from where it
/// was made, but end, by [`exit`].
///
/// # Errors
/// fork(2)'s.
pub fn fork() -> io::Result<Forked> {
    // SAFETY: this process has one thread: the engine starts none, tokio's runtime is the
    // current-thread one. So no lock is held by anyone whom the child does not have. If there is an
    // access log, a thread writes that, with write(2) and a queue that no child uses.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Pid::from_raw(pid).map(Forked::Parent).ok_or_else(io::Error::last_os_error),
    }
}

/// Ends this process without running what was registered to be run then.
pub fn exit(status: i32) -> ! {
    // SAFETY: does not return.
    unsafe { libc::_exit(status) }
}

/// Every signal does again what it does by default, but SIGPIPE: who writes to what nobody reads any
/// more gets an error. SIGHUP stays ignored if it is: nohup(1).
pub fn reset_signals() {
    for number in 1..=libc::SIGRTMAX() {
        let action = if number == libc::SIGPIPE { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: neither action is a function. Signals that cannot be changed are refused.
        unsafe {
            if libc::signal(number, action) == libc::SIG_IGN && number == libc::SIGHUP {
                libc::signal(number, libc::SIG_IGN);
            }
        }
    }
}

/// Closes every descriptor from `first` on that is not `kept`.
///
/// # Errors
/// close_range(2)'s.
pub fn close_from(first: i32, kept: impl Fn(i32) -> bool) -> io::Result<()> {
    let mut from = first;
    for number in (first..LOOKED_AT).filter(|number| kept(*number)) {
        close_between(from, number - 1)?;
        from = number + 1;
    }
    close_between(from, i32::MAX)
}

/// The highest descriptor that may be kept: those were just made, and there are few.
const LOOKED_AT: i32 = 4096;

fn close_between(first: i32, last: i32) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: closes descriptors alone. The objects that own them are not used or dropped any more:
    // this is a process that was forked just now, and never returns to where they are.
    match unsafe { libc::close_range(first as u32, last as u32, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has tokio's runtime watch a descriptor, which must not block.
///
/// # Errors
/// epoll_ctl(2)'s, for what cannot be watched.
pub fn watch(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is one descriptor for as long as it is there, and says so each time.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}

/// Unmaps the pages of a mapping of this process's, in bytes, until they are needed.
///
/// The caller has seen that it is a private mapping of a file, that it is not writable, and that it
/// has no page that differs from the file.
pub fn give_back(start: usize, length: usize) {
    // SAFETY: such pages read the same when they are mapped again: the file is not changed, or what
    // is executed from it would have changed before, too. One thread: nobody writes there meanwhile.
    unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
}

/// Pages of words that this process and all that are forked from it from then on share.
#[derive(Debug)]
pub struct Shared {
    start: std::ptr::NonNull<AtomicU64>,
    /// Those that are mapped here, of all from `start` on.
    pages: Range<usize>,
    page_size: usize,
}

impl Shared {
    /// So many pages, each word 0.
    ///
    /// # Errors
    /// mmap(2)'s.
    pub fn new(pages: usize) -> io::Result<Self> {
        let page_size = rustix::param::page_size();
        let (length, rights) = (pages * page_size, libc::PROT_READ | libc::PROT_WRITE);
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a mapping where the kernel finds room is in nobody's way.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, rights, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = std::ptr::NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Shared { start, pages: 0..pages, page_size })
    }

    /// The words of a page; nothing if it is not here.
    pub fn words(&self, page: usize) -> Option<&[AtomicU64]> {
        let count = self.page_size / size_of::<AtomicU64>();
        self.pages.contains(&page).then(|| {
            // SAFETY: mapped, and until this is changed or dropped; other processes write there as
            // well, which is what atomic integers allow.
            unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(page * count), count) }
        })
    }

    /// Lets go of all pages but one.
    pub fn keep(&mut self, page: usize) {
        let kept = page.clamp(self.pages.start, self.pages.end);
        let rest = kept.saturating_add(1).min(self.pages.end);
        self.unmap(self.pages.start..kept);
        self.unmap(rest..self.pages.end);
        self.pages = kept..rest;
    }

    fn unmap(&self, pages: Range<usize>) {
        if pages.is_empty() {
            return;
        }
        let length = pages.len() * self.page_size;
        // SAFETY: they are this object's, and nobody who calls this has a reference into them.
        unsafe {
            let start = self.start.as_ptr().byte_add(pages.start * self.page_size);
            libc::munmap(start.cast(), length);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.unmap(self.pages.clone());
    }
}

/// How this process is scheduled: see sched(7). One of SCHED_BATCH does not interrupt others when it is
/// woken, and has as much of the processors as one of SCHED_OTHER.
#[derive(Debug)]
pub struct Schedule {
    /// Unless it is scheduled in a way of its own, or may not change that.
    is_batch: Option<bool>,
}

impl Schedule {
    /// As it is.
    pub fn new() -> Self {
        // SAFETY: has no effect.
        let policy = unsafe { libc::sched_getscheduler(0) };
        Schedule { is_batch: (policy == libc::SCHED_OTHER).then_some(false) }
    }

    /// Changes from the one to the other.
    pub fn set_batch(&mut self, batch: bool) {
        if self.is_batch.is_none_or(|is_batch| is_batch == batch) {
            return;
        }
        let policy = if batch { libc::SCHED_BATCH } else { libc::SCHED_OTHER };
        let parameters = libc::sched_param { sched_priority: 0 };
        // SAFETY: reads the parameters; of this process.
        let set = unsafe { libc::sched_setscheduler(0, policy, &parameters) };
        self.is_batch = (set == 0).then_some(batch);
    }
}
