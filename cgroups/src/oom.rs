//! Tells when the kernel runs out of memory in a container's cgroup: `memory.oom_control` with an
//! eventfd on v1 (cgroup-v1/memory.rst), `memory.events` with inotify on v2 (cgroup-v2.rst).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::EventfdFlags;
use rustix::fs::OFlags;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use crate::cgroup::Cgroup;
use crate::dir;
use crate::error::{Error, Hint};
use crate::paths::Paths;
use crate::target::Target;

/// v1 announces an OOM before it kills, and may announce it again for a process that dies of the
/// first. What comes this soon after another belongs to it, unless another process was killed.
const SAME: Duration = Duration::from_millis(200);

/// A watch on a container's memory cgroup.
///
/// Poll its descriptor for reading; when it is ready, [`OomWatch::read`] tells why. Owns three
/// descriptors at most, all close-on-exec and non-blocking; holds nothing of the [`Cgroup`]. What
/// happened before the watch was made is not told.
#[derive(Debug)]
pub struct OomWatch {
    /// v1: an eventfd. v2: an inotify instance.
    notices: OwnedFd,
    files: Files,
    seen: Counts,
    tally: Tally,
}

#[derive(Debug)]
enum Files {
    V1 { control: OwnedFd },
    V2 { events: OwnedFd, populated: OwnedFd },
}

/// What [`OomWatch::read`] found since it was last called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OomNews {
    /// How often the kernel killed for want of memory, or, with `disableOOMKiller`, stopped
    /// somebody for it. Several processes that are killed together (`memory.oom.group`) are one.
    pub ooms: u64,
    /// Nothing more will come: no process is left in the cgroup (v2), or it has gone.
    pub ended: bool,
}

/// The kernel's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// How often the OOM killer was called; v2 only.
    ooms: u64,
    kills: u64,
    group_kills: u64,
    /// `disableOOMKiller`; v1 only.
    killer_off: bool,
    /// `oom_kill` is there: since Linux 4.13.
    counted: bool,
}

impl OomWatch {
    /// [`OomWatch::new`] for a cgroup of which nothing else is needed.
    ///
    /// # Errors
    ///
    /// As there; [`Error::Open`].
    pub fn at(paths: &Paths) -> Result<Self, Error> {
        Self::new(&Cgroup::open_with(paths, "memory")?)
    }

    /// Begins to watch.
    ///
    /// # Errors
    ///
    /// [`Error::NoController`] if the container has no memory controller, [`Error::Read`],
    /// [`Error::Watch`].
    pub fn new(cgroup: &Cgroup) -> Result<Self, Error> {
        let target = cgroup.target_if_any("memory").ok_or_else(|| Error::NoController {
            field: "OOM events".to_owned(),
            controller: "memory".to_owned(),
            hint: Hint::new("see /proc/cgroups and cgroup.controllers for what there is"),
        })?;
        let (notices, files) = if target.is_v2() { watch_v2(target)? } else { watch_v1(target)? };
        // After the watch has begun, so that nothing falls between.
        let seen = files.counts().and_then(|counts| counts.ok_or(Errno::NODEV));
        let file = if target.is_v2() { "memory.events" } else { "memory.oom_control" };
        let seen = seen.map_err(|errno| Error::Read { path: target.path(file), errno })?;
        Ok(Self { notices, files, seen, tally: Tally::default() })
    }

    /// Says what has happened, and makes the descriptor unready. Does not block; may be called at
    /// any time, and should be when the container has ended: v2's notices come up to 10 ms late.
    ///
    /// # Errors
    ///
    /// Those of read(2).
    pub fn read(&mut self) -> Result<OomNews, Errno> {
        let notices = self.drain()?;
        // Before the counters: when nobody is left, they are final.
        let mut ended = self.files.is_deserted()?;
        let ooms = match self.files.counts()? {
            Some(counts) => {
                let before = std::mem::replace(&mut self.seen, counts);
                self.tally.count(before, counts, notices, Instant::now())
            }
            None => {
                ended = true;
                self.tally.at_end(notices)
            }
        };
        Ok(OomNews { ooms, ended })
    }

    /// How many OOMs were announced; on v2 the counters alone tell.
    fn drain(&self) -> Result<u64, Errno> {
        let mut buffer = [0u8; 4096];
        let mut found = 0;
        loop {
            match rustix::io::read(&self.notices, &mut buffer) {
                Ok(8) if matches!(self.files, Files::V1 { .. }) => {
                    let mut count = [0; 8];
                    count.copy_from_slice(&buffer[..8]);
                    found += u64::from_ne_bytes(count);
                }
                Ok(0) | Err(Errno::AGAIN) => return Ok(found),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notices.as_fd()
    }
}

/// What of the counters has been told.
#[derive(Debug, Default)]
struct Tally {
    /// v1: one was told when it was announced, before its kill was counted.
    ahead: bool,
    /// v2: the killer was called, and has not killed yet.
    called: bool,
    last: Option<Instant>,
}

impl Tally {
    fn count(&mut self, before: Counts, now: Counts, notices: u64, time: Instant) -> u64 {
        let since = |before: u64, now: u64| now.saturating_sub(before);
        let kills = match since(before.group_kills, now.group_kills) {
            0 => since(before.kills, now.kills),
            groups => groups,
        };
        self.called = kills == 0 && (self.called || now.ooms > before.ooms);
        let announced = notices > 0;
        let recent = self.last.is_some_and(|last| time.duration_since(last) < SAME);
        let told = match kills {
            0 if announced && (now.killer_off || !now.counted) => notices,
            0 if announced && !recent => {
                self.ahead = true;
                1
            }
            0 => 0,
            kills => kills - u64::from(std::mem::take(&mut self.ahead)),
        };
        if told > 0 || kills > 0 {
            self.last = Some(time);
        }
        told
    }

    /// The counters have gone. v1 sends one notice for that.
    fn at_end(&mut self, notices: u64) -> u64 {
        let called = std::mem::take(&mut self.called);
        u64::from(called || (notices > 1 && self.last.is_none()))
    }
}

impl Files {
    /// None if the cgroup has gone.
    fn counts(&self) -> Result<Option<Counts>, Errno> {
        let file = match self {
            Self::V1 { control } => control,
            Self::V2 { events, .. } => events,
        };
        let Some(text) = reread(file)? else { return Ok(None) };
        Ok(Some(Counts::parse(&text)))
    }

    /// Whether nobody is left, as far as v2 tells.
    fn is_deserted(&self) -> Result<bool, Errno> {
        match self {
            Self::V1 { .. } => Ok(false),
            Self::V2 { populated, .. } => Ok(reread(populated)?
                .is_none_or(|text| text.lines().any(|line| line == "populated 0"))),
        }
    }
}

impl Counts {
    /// Of `memory.oom_control` or `memory.events`; keys that are not there or not understood are 0.
    fn parse(text: &str) -> Self {
        let mut counts = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once(' ')) {
            let value: u64 = value.trim().parse().unwrap_or(0);
            match key {
                "oom" => counts.ooms = value,
                "oom_kill" => (counts.kills, counts.counted) = (value, true),
                "oom_group_kill" => counts.group_kills = value,
                "oom_kill_disable" => counts.killer_off = value == 1,
                _ => {}
            }
        }
        counts
    }
}

/// A file's text from its beginning, which is shorter than a page; none if its cgroup has gone.
fn reread(file: &OwnedFd) -> Result<Option<String>, Errno> {
    let mut buffer = [0u8; 4096];
    match rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut buffer[..], 0)) {
        Ok(length) => Ok(Some(String::from_utf8_lossy(&buffer[..length]).into_owned())),
        Err(Errno::NODEV) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn watch_v1(target: Target<'_>) -> Result<(OwnedFd, Files), Error> {
    let failed = |step, file| move |errno| Error::Watch { step, path: target.path(file), errno };
    let open = failed("open", "memory.oom_control");
    let control = target.open_as("memory.oom_control", OFlags::RDONLY).map_err(open)?;
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let notices = rustix::event::eventfd(0, flags)
        .map_err(failed("make an eventfd for", "memory.oom_control"))?;
    let register = format!("{} {}", notices.as_raw_fd(), control.as_raw_fd());
    let file = "cgroup.event_control";
    let event_control = target.open_as(file, OFlags::WRONLY).map_err(failed("open", file))?;
    dir::write_all(event_control, register.as_bytes()).map_err(failed("register with", file))?;
    Ok((notices, Files::V1 { control }))
}

fn watch_v2(target: Target<'_>) -> Result<(OwnedFd, Files), Error> {
    let failed = |step, file| move |errno| Error::Watch { step, path: target.path(file), errno };
    let notices = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
        .map_err(failed("make an inotify instance for", "memory.events"))?;
    let watch = |file| {
        let opened = target.open_as(file, OFlags::RDONLY).map_err(failed("open", file))?;
        // By its descriptor: the same file, whatever the path leads to by now.
        let path = format!("/proc/self/fd/{}", opened.as_raw_fd());
        inotify::add_watch(&notices, path, WatchFlags::MODIFY).map_err(failed("watch", file))?;
        Ok::<_, Error>(opened)
    };
    let files = Files::V2 { events: watch("memory.events")?, populated: watch("cgroup.events")? };
    Ok((notices, files))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: Counts =
        Counts { ooms: 0, kills: 0, group_kills: 0, killer_off: false, counted: true };

    #[test]
    fn counters_are_parsed() {
        let v1 = Counts::parse("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n");
        assert_eq!(v1, Counts { kills: 3, ..V1 });
        let old = Counts::parse("oom_kill_disable 1\nunder_oom 0\n");
        assert_eq!(old, Counts { killer_off: true, counted: false, ..V1 });
        let v2 = "low 0\nhigh 0\nmax 9\noom 2\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(Counts::parse(v2), Counts { ooms: 2, kills: 2, group_kills: 1, ..V1 });
        assert_eq!(Counts::parse("oom_kill\noom -1\n\noom_kill many"), V1);
    }

    #[test]
    fn a_notice_before_the_kill_and_one_after_are_one_oom() {
        let start = Instant::now();
        let mut tally = Tally::default();
        let killed = Counts { kills: 1, ..V1 };
        assert_eq!(tally.count(V1, V1, 1, start), 1);
        assert_eq!(tally.count(V1, killed, 1, start), 0);
        assert_eq!(tally.count(killed, killed, 1, start), 0);
        let later = start + 2 * SAME;
        assert_eq!(tally.count(killed, killed, 0, later), 0);
        assert_eq!(tally.count(killed, Counts { kills: 3, ..V1 }, 2, later), 2);
        assert_eq!(tally.at_end(1), 0);
    }

    #[test]
    fn without_the_killer_every_notice_counts() {
        let mut tally = Tally::default();
        let off = Counts { killer_off: true, ..V1 };
        for _ in 0..2 {
            assert_eq!(tally.count(off, off, 1, Instant::now()), 1);
        }
    }

    #[test]
    fn kills_count_on_v2_and_a_call_of_the_killer_at_the_end() {
        let mut tally = Tally::default();
        let called = Counts { ooms: 1, ..V1 };
        let killed = Counts { kills: 1, ..called };
        let time = Instant::now();
        assert_eq!(tally.count(V1, called, 0, time), 0);
        assert_eq!(tally.count(called, killed, 0, time), 1);
        assert_eq!(tally.at_end(0), 0);
        let group = Counts { ooms: 2, kills: 5, group_kills: 1, ..V1 };
        assert_eq!(tally.count(killed, group, 0, time), 1);
        // The cgroup went before the kill could be read.
        assert_eq!(tally.count(group, Counts { ooms: 3, ..group }, 0, time), 0);
        assert_eq!(tally.at_end(0), 1);
    }

    #[test]
    fn a_cgroup_that_went_unread_on_v1() {
        assert_eq!(Tally::default().at_end(1), 0);
        assert_eq!(Tally::default().at_end(2), 1);
    }
}
