//! Freezes and thaws; cgroup-v1/freezer-subsystem.rst, cgroup-v2.rst.

use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::cgroup::{Cgroup, Member, open_member};
use crate::error::Error;
use crate::paths::Paths;
use crate::{dir, events};

/// A process in uninterruptible sleep delays freezing for as long as that
/// lasts, so there must be an end.
const PATIENCE: Duration = Duration::from_secs(5);

impl Cgroup {
    /// Stops every process in the cgroup and its descendants; returns when
    /// they have all stopped.
    ///
    /// v2 (Linux 5.2) tells when; on v1 the state is read again until it is
    /// FROZEN, which it mostly is at once.
    ///
    /// # Errors
    ///
    /// [`Error::Freezer`], also if it took more than five seconds; then the
    /// cgroup has been thawed again.
    pub fn freeze(&self) -> Result<(), Error> {
        self.freezer("freeze")?.freeze()
    }

    /// Lets the processes go on.
    ///
    /// # Errors
    ///
    /// [`Error::Freezer`].
    pub fn thaw(&self) -> Result<(), Error> {
        self.freezer("thaw")?.thaw()
    }

    /// Whether the cgroup is frozen, or being frozen.
    ///
    /// # Errors
    ///
    /// [`Error::Read`]; [`Error::Freezer`] if there is no freezer.
    pub fn is_frozen(&self) -> Result<bool, Error> {
        self.freezer("look at")?.0.is_frozen()
    }

    pub(crate) fn freezer(&self, action: &'static str) -> Result<Freezer<'_>, Error> {
        let member = self.v1("freezer").or_else(|| self.unified());
        member.map(Freezer).ok_or_else(|| Error::Freezer {
            action,
            path: self.members.first().map(Member::path).unwrap_or_default(),
            reason: "no freezer controller, or no such cgroup".to_owned(),
        })
    }
}

/// Whether the container is frozen, opening no more of its cgroups than is needed to know. One
/// that has no cgroup any more is not.
///
/// # Errors
///
/// [`Error::Read`], [`Error::Open`].
pub fn is_frozen(paths: &Paths) -> Result<bool, Error> {
    let v1 = paths.hierarchies().iter().find(|hierarchy| hierarchy.is_v1_with("freezer"));
    let unified = || paths.hierarchies().iter().find(|hierarchy| hierarchy.is_v2());
    let Some(hierarchy) = v1.or_else(unified) else {
        return Ok(false);
    };
    match open_member(hierarchy) {
        Ok(member) => member.is_frozen(),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(Error::Open { path: hierarchy.full_path(), errno }),
    }
}

impl Member {
    /// That a cgroup which was there before is fit for a new container.
    pub(crate) fn check_unused(&self) -> Result<(), Error> {
        let count = self.pids()?.len();
        if count > 0 {
            return Err(Error::NotEmpty { path: self.path(), count });
        }
        if self.is_frozen()? {
            return Err(Error::Frozen { path: self.path() });
        }
        Ok(())
    }

    /// False also where the hierarchy has no freezer.
    fn is_frozen(&self) -> Result<bool, Error> {
        let file = self.freezer_file();
        match dir::read_file(&self.dir, file) {
            Ok(state) => Ok(!matches!(state.trim_end(), "THAWED" | "0")),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(Error::Read { path: self.path().join(file), errno }),
        }
    }

    fn freezer_file(&self) -> &'static str {
        if self.hierarchy.is_v2() { "cgroup.freeze" } else { "freezer.state" }
    }
}

/// The hierarchy that freezes: v1's controller, else v2, which always can.
pub(crate) struct Freezer<'a>(pub &'a Member);

impl Freezer<'_> {
    pub fn freeze(&self) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        let frozen = if self.0.hierarchy.is_v2() {
            self.freeze_v2(deadline)
        } else {
            self.freeze_v1(deadline)
        };
        let reason = match frozen {
            Ok(true) => return Ok(()),
            Ok(false) => format!("not frozen after {} s", PATIENCE.as_secs()),
            Err(errno) => errno.to_string(),
        };
        // A half-frozen container is worse than a running one.
        let _ = self.thaw();
        Err(Error::Freezer { action: "freeze", path: self.0.path(), reason })
    }

    pub fn thaw(&self) -> Result<(), Error> {
        let value: &[u8] = if self.0.hierarchy.is_v2() { b"0" } else { b"THAWED" };
        dir::write_file(&self.0.dir, self.0.freezer_file(), value).map_err(|errno| Error::Freezer {
            action: "thaw",
            path: self.0.path(),
            reason: errno.to_string(),
        })
    }

    /// As [`Freezer::thaw`], and on v1 whatever the container has frozen by itself below: that
    /// stays frozen, and not even dies, when only the whole is thawed. (v2 lets killed processes
    /// die.)
    pub fn thaw_for_death(&self) -> Result<(), Error> {
        if !self.0.hierarchy.is_v2() {
            thaw_below(self.0.dir.as_fd());
        }
        self.thaw()
    }

    fn freeze_v2(&self, deadline: Instant) -> Result<bool, Errno> {
        dir::write_file(&self.0.dir, "cgroup.freeze", b"1")?;
        events::wait(&self.0.dir, "frozen 1", deadline)
    }

    /// v1 tells nobody when it has finished, and may never finish while the
    /// processes fork; reading the state makes the kernel look again, and a
    /// short thaw now and then lets a stuck one move on (runc found both to
    /// be needed).
    fn freeze_v1(&self, deadline: Instant) -> Result<bool, Errno> {
        let mut pause = Duration::from_micros(10);
        for round in 1.. {
            dir::write_file(&self.0.dir, "freezer.state", b"FROZEN")?;
            if dir::read_file(&self.0.dir, "freezer.state")?.trim_end() == "FROZEN" {
                return Ok(true);
            }
            if Instant::now() > deadline {
                break;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
            if round % 50 == 0 {
                dir::write_file(&self.0.dir, "freezer.state", b"THAWED")?;
                thread::sleep(pause);
            }
        }
        Ok(false)
    }
}

/// All that can be; what has gone meanwhile needs it no more.
fn thaw_below(cgroup: BorrowedFd<'_>) {
    for name in dir::children(cgroup).unwrap_or_default() {
        if let Ok(child) = dir::open_child(cgroup, &name) {
            let _ = dir::write_file(&child, "freezer.state", b"THAWED");
            thaw_below(child.as_fd());
        }
    }
}
