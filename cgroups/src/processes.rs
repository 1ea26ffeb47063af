//! The processes in a container's cgroup: listing, signalling, killing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::cgroup::{Cgroup, Member};
use crate::error::Error;
use crate::{dir, events, sys};

/// How long killed processes may take to die.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How long they are waited for before they are killed again.
const ROUND: Duration = Duration::from_millis(500);

impl Cgroup {
    /// The processes of the cgroup and its descendants, in ascending order.
    ///
    /// On v1, of the freezer hierarchy (else pids, devices, or the first): a
    /// container's processes are in the same cgroup of each, unless somebody
    /// moved them by hand.
    ///
    /// # Errors
    ///
    /// [`Error::Read`]; that the cgroup has gone means no processes.
    pub fn pids(&self) -> Result<Vec<i32>, Error> {
        self.roll().map_or(Ok(Vec::new()), Member::pids)
    }

    /// Sends a signal once to each process of the cgroup and its descendants, and to nobody who
    /// has got the number of one that has ended meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::Signal`] for the first that could not be signalled, after all
    /// have been tried; [`Error::Read`].
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        let opened: Vec<_> = self.pids()?.into_iter().map(|pid| (pid, open(pid))).collect();
        // A number that is still listed is no stranger's: its pidfd is of a process that is in the
        // cgroup, or has ended.
        let listed = self.pids()?;
        let mut result = Ok(());
        for (pid, pidfd) in opened {
            let sent = match pidfd {
                _ if listed.binary_search(&pid).is_err() => continue,
                Ok(pidfd) => done(pid, signal, sys::pidfd_send_signal(&pidfd, signal)),
                Err(Errno::SRCH) => continue,
                Err(_) => signal_one(pid, signal),
            };
            result = result.and(sent);
        }
        result
    }

    /// Kills every process in the cgroup and its descendants, frozen ones too
    /// (it ends thawed), and returns when they are dead; not all need be
    /// reaped.
    ///
    /// In the unified hierarchy the kernel does it (`cgroup.kill`, Linux
    /// 5.14). Else the cgroup is frozen, so that no process can fork out of
    /// our reach, each is sent SIGKILL through a pidfd, and it is thawed.
    ///
    /// # Errors
    ///
    /// [`Error::StillAlive`] after ten seconds, [`Error::Signal`],
    /// [`Error::Read`].
    pub fn kill(&self) -> Result<(), Error> {
        let deadline = Instant::now() + KILL_PATIENCE;
        let mut pause = Duration::from_millis(1);
        self.kill_by_kernel(deadline);
        loop {
            let left = self.pids()?;
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::StillAlive {
                    path: self.roll().map(Member::path).unwrap_or_default(),
                    count: left.len(),
                    seconds: KILL_PATIENCE.as_secs(),
                });
            }
            if !self.kill_frozen(deadline)? {
                thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(100));
            }
        }
    }

    /// `cgroup.kill`, where there is one. What it does not reach (a process
    /// that was attached to the v1 hierarchies only) the caller finds.
    fn kill_by_kernel(&self, deadline: Instant) {
        let Some(unified) = self.unified() else {
            return;
        };
        if dir::write_file(&unified.dir, "cgroup.kill", b"1").is_err() {
            return;
        }
        // v2's freezer lets killed processes die, v1's does not.
        if let Ok(freezer) = self.freezer("thaw") {
            let _ = freezer.thaw_for_death();
        }
        let deadline = deadline.min(Instant::now() + ROUND);
        let _ = events::wait(&unified.dir, "populated 0", deadline);
    }

    /// One round of freeze, kill, thaw, and wait. False if it could not wait for the
    /// deaths (no pidfds before Linux 5.3, or no descriptors left).
    fn kill_frozen(&self, deadline: Instant) -> Result<bool, Error> {
        let freezer = self.freezer("freeze").ok();
        // If it cannot be frozen, a fork may escape this round, but not all.
        let frozen = freezer.as_ref().is_some_and(|freezer| freezer.freeze().is_ok());
        let killed = self.kill_each();
        if let Some(freezer) = freezer.filter(|_| frozen) {
            freezer.thaw_for_death()?;
        }
        let (pidfds, all) = killed?;
        // Whoever is still there was frozen anew, by a process that has died since: once more.
        let deadline = deadline.min(Instant::now() + ROUND);
        for pidfd in &pidfds {
            // Readable once the process has exited, reaped or not.
            let _ = events::wait_ready(pidfd, PollFlags::IN, deadline);
        }
        Ok(all && !pidfds.is_empty())
    }

    /// Returns pidfds to wait on, and whether there is one for each process.
    fn kill_each(&self) -> Result<(Vec<OwnedFd>, bool), Error> {
        let pids = self.pids()?;
        let mut pidfds = Vec::with_capacity(pids.len());
        let mut all = true;
        for pid in pids {
            match open(pid) {
                Ok(pidfd) => {
                    done(pid, libc::SIGKILL, sys::pidfd_send_signal(&pidfd, libc::SIGKILL))?;
                    pidfds.push(pidfd);
                }
                Err(Errno::SRCH) => {}
                Err(_) => {
                    all = false;
                    signal_one(pid, libc::SIGKILL)?;
                }
            }
        }
        Ok((pidfds, all))
    }

    /// The hierarchy whose list of processes counts.
    fn roll(&self) -> Option<&Member> {
        let v1 = ["freezer", "pids", "devices"].iter().find_map(|name| self.v1(name));
        v1.or_else(|| self.members.first())
    }
}

impl Member {
    /// The processes of this cgroup and its descendants, in ascending order.
    pub(crate) fn pids(&self) -> Result<Vec<i32>, Error> {
        let mut pids = Vec::new();
        collect(self.dir.as_fd(), &mut pids)
            .map_err(|errno| Error::Read { path: self.path().join("cgroup.procs"), errno })?;
        // v1 may list a process twice.
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }
}

fn collect(cgroup: BorrowedFd<'_>, pids: &mut Vec<i32>) -> Result<(), Errno> {
    match dir::read_file(cgroup, "cgroup.procs") {
        // 0 is a process that our pid namespace cannot see.
        Ok(text) => {
            let listed = text.lines().filter_map(|line| line.parse::<i32>().ok());
            pids.extend(listed.filter(|pid| *pid > 0));
        }
        // Removed meanwhile; or a threaded cgroup, whose processes are all in
        // an ancestor's list.
        Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => {}
        Err(errno) => return Err(errno),
    }
    let children = match dir::children(cgroup) {
        Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
        result => result?,
    };
    for name in children {
        match dir::open_child(cgroup, &name) {
            Ok(child) => collect(child.as_fd(), pids)?,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn open(pid: i32) -> Result<OwnedFd, Errno> {
    match pidfd_open(Pid::from_raw(pid).ok_or(Errno::SRCH)?, PidfdFlags::empty()) {
        // What older kernels say of one that has ended while others are in its session.
        Err(Errno::INVAL) => Err(Errno::SRCH),
        pidfd => pidfd,
    }
}

fn signal_one(pid: i32, signal: i32) -> Result<(), Error> {
    done(pid, signal, sys::kill(pid, signal))
}

/// That the process has gone already is as good as a delivered signal.
fn done(pid: i32, signal: i32, result: Result<(), Errno>) -> Result<(), Error> {
    match result {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(Error::Signal { signal, pid, errno }),
    }
}
