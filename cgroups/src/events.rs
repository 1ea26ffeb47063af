//! Waits for a line of a v2 cgroup's `cgroup.events`; the kernel makes the
//! file ready for POLLPRI at each change (cgroups(7)).

use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::dir;

/// Waits until `cgroup.events` in `dir` has `line` ("populated 0"); false if
/// the deadline came first. True if the cgroup has gone: nothing more will
/// happen there.
pub(crate) fn wait(dir: impl AsFd, line: &str, deadline: Instant) -> Result<bool, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(dir, "cgroup.events", flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NODEV) => return Ok(true),
        result => result?,
    };
    loop {
        // Reading also re-arms the notification, so no change is missed
        // between this and the poll.
        rustix::fs::seek(&file, SeekFrom::Start(0))?;
        match dir::read_all(&file) {
            Ok(text) if text.split(|&byte| byte == b'\n').any(|found| found == line.as_bytes()) => {
                return Ok(true);
            }
            Ok(_) => {}
            Err(Errno::NODEV) => return Ok(true),
            Err(errno) => return Err(errno),
        }
        if !wait_ready(&file, PollFlags::PRI, deadline)? {
            return Ok(false);
        }
    }
}

/// poll(2) on one descriptor; false if the deadline came first.
pub(crate) fn wait_ready(
    file: impl AsFd,
    flags: PollFlags,
    deadline: Instant,
) -> Result<bool, Errno> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&file, flags)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
