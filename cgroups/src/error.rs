//! The crate's error type.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use rustix::io::Errno;

/// What went wrong with a container's cgroups.
///
/// Each message is complete: it names the field or path, the value, the errno
/// and, where one is known, what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `linux.cgroupsPath` (or the container id used in its place) is unusable.
    #[error("linux.cgroupsPath {}: {reason}", path.display())]
    CgroupsPath {
        /// The path as configured.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No cgroup file system is mounted, or none that we are a member of.
    #[error("no cgroup hierarchy is mounted (hint: mount cgroup2 on /sys/fs/cgroup)")]
    NotMounted,
    /// A file could not be read.
    #[error("read {}: {text}", path.display(), text = said(errno))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// A file has something in it that we do not understand.
    #[error("read {}: unexpected {text:?}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is in it, cut short.
        text: String,
    },
    /// OOM events could not be subscribed to.
    #[error("{step} {}: {text}", path.display(), text = said(errno))]
    Watch {
        /// What was tried.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// A cgroup could not be made.
    #[error("create cgroup {}: {text}{hint}", path.display(), text = said(errno))]
    Create {
        /// Its directory.
        path: PathBuf,
        /// Why.
        errno: Errno,
        /// What to do about it, if known.
        hint: Hint,
    },
    /// A cgroup could not be opened.
    #[error("open cgroup {}: {text}", path.display(), text = said(errno))]
    Open {
        /// Its directory.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// A cgroup that a further process is to be in is not there, or takes none: runc's words.
    #[error("adding pid 0 to cgroups {}/cgroup.procs: {text}", path.display(), text = said(errno))]
    Join {
        /// Its directory.
        path: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// A path that would leave the container's cgroup: runc's words.
    #[error("--cgroup: {path} is not a sub cgroup path")]
    NotBelow {
        /// The path.
        path: String,
    },
    /// The cgroup for a new container already has processes.
    #[error("container's cgroup is not empty: {count} process(es) found in {}", path.display())]
    NotEmpty {
        /// Its directory.
        path: PathBuf,
        /// How many processes it and its descendants have.
        count: usize,
    },
    /// The cgroup for a new container is frozen: its init would never run.
    #[error("container's cgroup unexpectedly frozen: {} (hint: thaw or remove it)", path.display())]
    Frozen {
        /// Its directory.
        path: PathBuf,
    },
    /// A process could not be moved into the cgroup.
    #[error("attach process {pid} to cgroup {}: {text}{hint}", path.display(), text = said(errno))]
    Attach {
        /// The process (0: the caller).
        pid: i32,
        /// The cgroup's directory.
        path: PathBuf,
        /// Why.
        errno: Errno,
        /// What to do about it, if known.
        hint: Hint,
    },
    /// The kernel refused a limit.
    #[error("{field}: write {value:?} to {}: {text}{hint}", path.display(), text = said(errno))]
    Write {
        /// The configuration field, such as `linux.resources.memory.limit`.
        field: String,
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// Why.
        errno: Errno,
        /// What to do about it, if known.
        hint: Hint,
    },
    /// A limit was asked for whose controller this machine does not offer.
    #[error("{field}: no {controller} controller{hint}")]
    NoController {
        /// The configuration field.
        field: String,
        /// The controller, such as `memory`.
        controller: String,
        /// What to do about it, if known.
        hint: Hint,
    },
    /// A value in `linux.resources` cannot be used.
    #[error("{field}: {value:?}: {reason}")]
    Invalid {
        /// The configuration field.
        field: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: Cow<'static, str>,
    },
    /// A step of loading or attaching the device filter failed.
    #[error("linux.resources.devices: {step} on cgroup {}: {text}{hint}", path.display(), text = said(errno))]
    DeviceFilter {
        /// The bpf(2) command.
        step: &'static str,
        /// The cgroup's directory.
        path: PathBuf,
        /// Why.
        errno: Errno,
        /// What to do about it, if known.
        hint: Hint,
    },
    /// Freezing or thawing failed, or did not finish in time.
    #[error("{action} cgroup {}: {reason}", path.display())]
    Freezer {
        /// `freeze` or `thaw`.
        action: &'static str,
        /// The cgroup's directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A process in the cgroup could not be signalled.
    #[error("send signal {signal} to process {pid}: {text}", text = said(errno))]
    Signal {
        /// The signal's number.
        signal: i32,
        /// The process.
        pid: i32,
        /// Why.
        errno: Errno,
    },
    /// Processes were still there after they had been killed.
    #[error("kill cgroup {}: {count} process(es) left after {seconds} s", path.display())]
    StillAlive {
        /// Its directory.
        path: PathBuf,
        /// How many are left.
        count: usize,
        /// How long we waited.
        seconds: u64,
    },
    /// The systemd driver.
    #[error("systemd: {step}: {reason}{hint}")]
    Systemd {
        /// What was being done, to which unit.
        step: String,
        /// Why it failed, mostly in systemd's words.
        reason: String,
        /// What to do about it, if known.
        hint: Hint,
    },
    /// A cgroup could not be removed.
    #[error("remove cgroup {}: {text}{hint}", path.display(), text = said(errno))]
    Remove {
        /// Its directory.
        path: PathBuf,
        /// Why.
        errno: Errno,
        /// What to do about it, if known.
        hint: Hint,
    },
}

impl Error {
    /// `field` cannot be `value`, because of `reason`.
    pub(crate) fn invalid(
        field: impl Into<String>,
        value: impl ToString,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::Invalid { field: field.into(), value: value.to_string(), reason: reason.into() }
    }
}

impl Error {
    /// Whether the caller lacks the permission, or there is no cgroup filesystem at all: a
    /// container without limits can do without then.
    pub fn is_permission(&self) -> bool {
        match self {
            Self::NotMounted => true,
            Self::Create { errno, .. }
            | Self::Open { errno, .. }
            | Self::Attach { errno, .. }
            | Self::Write { errno, .. }
            | Self::DeviceFilter { errno, .. } => {
                matches!(*errno, Errno::PERM | Errno::ACCESS | Errno::ROFS)
            }
            _ => false,
        }
    }

    /// Whether it is about device rules.
    pub fn is_about_devices(&self) -> bool {
        const FIELD: &str = "linux.resources.devices";
        match self {
            Self::DeviceFilter { .. } => true,
            Self::Write { field, .. } | Self::NoController { field, .. } => field == FIELD,
            _ => false,
        }
    }
}

/// strerror(3) in lower case and without std's `(os error N)`, as `runtime` says it.
fn said(errno: &Errno) -> String {
    let text = errno.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(chars).collect()
}

/// What to do about an error, when we know it; prints as ` (hint: ...)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hint(Option<String>);

impl Hint {
    /// Nothing is known.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// One sentence without its full stop.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(Some(text.into()))
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(text) => write!(f, " (hint: {text})"),
            None => Ok(()),
        }
    }
}
