//! `events`: statistics of a container, and the processes that it loses for want of memory. Not in
//! the runtime-spec; as runc has it, whose JSON this is.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use kiln_cgroups::stats::Stats;
use kiln_cgroups::{Cgroup, OomWatch};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;

use crate::error::{Error, Step};
use crate::network_stats::{self, NetworkInterface};
use crate::process::Process;
use crate::state::ContainerDir;

/// How long a process may take to die.
const DYING: Duration = Duration::from_secs(1);

/// One line of `events`.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The container's id.
    pub id: String,
    /// Of [`Kind::Stats`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Data>,
}

/// The kind of an [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Statistics.
    Stats,
    /// The kernel ran out of memory in the container's cgroup.
    Oom,
}

/// A container's statistics.
#[derive(Clone, Debug, Serialize)]
pub struct Data {
    /// Those of its cgroups.
    #[serde(flatten)]
    pub cgroup: Stats,
    /// Those of Intel RDT: the object is empty where there is no group.
    pub intel_rdt: IntelRdt,
    /// Those of its own network namespace, if it has interfaces: see [`NetworkInterface`].
    pub network_interfaces: Option<Vec<NetworkInterface>>,
}

/// Nothing is measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct IntelRdt {}

/// A container that is looked at.
#[derive(Debug)]
pub struct Observed {
    id: String,
    init: Process,
    pidfd: OwnedFd,
    cgroup: Cgroup,
}

impl Observed {
    /// Finds the container's cgroups and its init.
    ///
    /// # Errors
    /// It has ended (`container with id ID is not running`).
    pub fn new(dir: &ContainerDir) -> Result<Self, Error> {
        let id = dir.id().to_string();
        let state = dir.read()?.ok_or_else(|| Error::NotFound(id.clone()))?;
        let init = state.init.ok_or_else(|| Error::Ended(id.clone()))?;
        let pidfd = init.pidfd()?.ok_or_else(|| Error::Ended(id.clone()))?;
        let paths = state.cgroup.as_ref();
        let paths = paths.ok_or_else(|| Error::config("events", "the container has no cgroup"))?;
        Ok(Self { id, init, pidfd, cgroup: Cgroup::open(paths)? })
    }

    /// Its statistics as of now.
    ///
    /// # Errors
    /// The container has ended; a file of the kernel cannot be read or understood.
    pub fn stats(&self) -> Result<Event, Error> {
        let interfaces = network_stats::interfaces(&self.init)?;
        let data = Data {
            cgroup: self.cgroup.stats()?,
            intel_rdt: IntelRdt {},
            network_interfaces: Some(interfaces).filter(|interfaces| !interfaces.is_empty()),
        };
        Ok(Event { kind: Kind::Stats, id: self.id.clone(), data: Some(data) })
    }

    /// Gives `tell` the statistics every `interval`, for the first time after one, and each OOM at
    /// once, until the container ends or `tell` says false. Sleeps in between: the kernel wakes it.
    ///
    /// # Errors
    /// OOM events cannot be subscribed to; those of [`Observed::stats`], but not of a container
    /// that ends meanwhile; those of `tell`.
    pub fn watch<E: From<Error>>(
        &self,
        interval: Duration,
        mut tell: impl FnMut(&Event) -> Result<bool, E>,
    ) -> Result<(), E> {
        let mut watch = OomWatch::new(&self.cgroup).map_err(Error::from)?;
        let mut next = Instant::now() + interval;
        loop {
            let ended = self.wait(&watch, next)?;
            let news = watch.read().step(|| "read OOM events".to_owned())?;
            for _ in 0..news.ooms {
                let event = Event { kind: Kind::Oom, id: self.id.clone(), data: None };
                if !tell(&event)? {
                    return Ok(());
                }
            }
            if ended || news.ended {
                return Ok(());
            }
            if next <= Instant::now() {
                next = Instant::now() + interval;
                match self.stats() {
                    Ok(event) if !tell(&event)? => return Ok(()),
                    Err(error) if !self.ends_soon() => return Err(error.into()),
                    // The next turn says that it has ended.
                    _ => {}
                }
            }
        }
    }

    /// Whether init is dying, as what could not be read is to be explained: it gives its
    /// namespaces up some time before it is a zombie.
    fn ends_soon(&self) -> bool {
        let mut polled = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll(&mut polled, Some(&timespec(DYING))).is_ok_and(|ready| ready > 0)
    }

    /// Until `deadline`, an OOM, or the container's end; whether it was the end.
    fn wait(&self, watch: &OomWatch, deadline: Instant) -> Result<bool, Error> {
        let timeout = timespec(deadline.saturating_duration_since(Instant::now()));
        let mut polled = [&self.pidfd.as_fd(), &watch.as_fd()]
            .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN));
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(!polled[0].revents().is_empty()),
            Err(errno) => Err(errno).step(|| "wait for events".to_owned()),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as _, tv_nsec: duration.subsec_nanos().into() }
}
