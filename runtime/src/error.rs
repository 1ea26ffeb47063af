//! What can go wrong, and how it is said.

use std::fmt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::missing;
use crate::state::Status;

/// A step that the kernel refused, whole: it crosses from init to the runtime as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What was being done, to which path or field: `mount tmpfs on /dev`.
    pub step: String,
    /// Why, where the kernel said so.
    pub errno: Option<i32>,
    /// Why, where something else did.
    pub reason: Option<String>,
    /// What to do about it, where that is known.
    pub hint: Option<String>,
}

/// How many bytes a text may take in a message: a step with two paths in it, and two of them to a
/// message.
const LONGEST_TEXT: usize = 12 * 1024;

impl Failure {
    /// A step that failed with an errno.
    pub fn new(step: impl Into<String>, errno: Errno) -> Self {
        let hint = (errno == Errno::NOSYS).then(missing::hint).flatten();
        Self { step: step.into(), errno: Some(errno.raw_os_error()), reason: None, hint }
    }

    /// A step that failed for a reason of ours.
    pub fn because(step: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { step: step.into(), errno: None, reason: Some(reason.into()), hint: None }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.step)?;
        if let Some(reason) = &self.reason {
            write!(f, ": {reason}")?;
        }
        if let Some(errno) = self.errno {
            write!(f, ": {}", errno_text(errno))?;
        }
        if let Some(hint) = &self.hint {
            write!(f, " (hint: {hint})")?;
        }
        Ok(())
    }
}

/// strerror(3) without its capital letter and without std's `(os error N)`: what containerd and
/// Podman look for (`permission denied`, `no such file or directory`).
pub fn errno_text(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if !chars.as_str().starts_with(char::is_uppercase) => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}

/// Any failure of an operation on a container.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The container id breaks the rules of [`crate::id::ContainerId`].
    #[error("container id {id:?}: {problem}")]
    Id {
        /// The id as given.
        id: String,
        /// Which rule.
        problem: String,
    },
    /// No container of this id below the state root.
    #[error("container \"{0}\" does not exist")]
    NotFound(String),
    /// The id is taken.
    #[error("container with given ID already exists: {0}")]
    Exists(String),
    /// The operation is not allowed in the container's status.
    #[error("cannot {operation} container {id}: container is {status}")]
    Status {
        /// The container.
        id: String,
        /// `start`, `delete`, ...
        operation: &'static str,
        /// The status that it is in.
        status: Status,
    },
    /// `exec` into a container that is paused: runc's words.
    #[error("cannot exec in a paused container (hint: --ignore-paused)")]
    ExecPaused,
    /// `exec` into a container that has ended: runc's words, and those that callers look for.
    #[error("cannot exec in a stopped container: container not running")]
    ExecStopped,
    /// `kill` found no process: the text is the one that callers of runc match.
    #[error("container not running")]
    NotRunning,
    /// `events` of a container that has ended: runc's words.
    #[error("container with id {0} is not running")]
    Ended(String),
    /// `resume` of a container that is not paused.
    #[error("container not paused")]
    NotPaused,
    /// The configuration cannot be used: which field, and why.
    #[error("{field}: {problem}")]
    Config {
        /// The field's path in config.json: `linux.namespaces[2].path`.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// What is recorded of a container cannot be understood.
    #[error("state of container {id}: is damaged: {problem} (hint: delete --force removes it)")]
    Damaged {
        /// The container.
        id: String,
        /// What is wrong.
        problem: String,
    },
    /// A file that is not what it should be.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A step that the kernel refused, here or in init.
    #[error("{0}")]
    Step(Failure),
    /// The cgroup.
    #[error("cgroup: {0}")]
    Cgroup(#[from] kiln_cgroups::Error),
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] kiln_hooks::Error),
    /// linux.seccomp cannot be used.
    #[error(transparent)]
    Seccomp(#[from] crate::seccomp::Error),
    /// The engine refused the entrypoint.
    #[error("{engine}: {source}")]
    Engine {
        /// Its name.
        engine: &'static str,
        /// Its reason.
        source: crate::engine::EngineError,
    },
    /// The snapshot has no files: the entrypoint is to be found elsewhere, if anywhere.
    #[error("root.path: the rootfs is empty")]
    EmptyRootfs,
    /// SIGTERM, SIGINT or SIGHUP came while the container was made.
    #[error("interrupted by signal {0}")]
    Interrupted(i32),
    /// Init ended without a word: killed, most often for want of memory.
    #[error("the container's init ended before it was ready{0}")]
    InitGone(String),
}

impl Error {
    /// `field` is wrong because of `problem`.
    pub fn config(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Config { field: field.into(), problem: problem.into() }
    }

    /// `path` is wrong because of `problem`.
    pub fn file(path: &Path, problem: impl fmt::Display) -> Self {
        Self::File { path: path.to_owned(), problem: problem.to_string() }
    }

    /// This error as what crosses from init to the runtime.
    pub fn into_failure(self) -> Failure {
        match self {
            Self::Step(failure) => Failure {
                step: shortened(failure.step),
                reason: failure.reason.map(shortened),
                ..failure
            },
            other => {
                let step = shortened(other.to_string());
                Failure { step, errno: None, reason: None, hint: None }
            }
        }
    }
}

/// A text as it may cross a [`crate::channel::Channel`], whose messages have a limit: of one that
/// is too long, because an argument of 100 KB is in it, the beginning and the end.
pub fn shortened(text: String) -> String {
    // With JSON's escapes.
    let cost = |part: &str| serde_json::to_string(part).map_or(0, |json| json.len());
    if cost(&text) <= LONGEST_TEXT {
        return text;
    }
    let chars: Vec<char> = text.chars().collect();
    // No character takes more than six bytes.
    let kept = LONGEST_TEXT / 6 / 2;
    let (head, tail) = (&chars[..kept], &chars[chars.len() - kept..]);
    head.iter().chain(&[' ', '.', '.', '.', ' ']).chain(tail).collect()
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Step(failure)
    }
}

/// Names the step that a system call was made for.
pub trait Step<T> {
    /// Turns an errno into [`Error::Step`], naming the step.
    ///
    /// # Errors
    /// Its own, named.
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Step<T> for Result<T, Errno> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|errno| Failure::new(step(), errno).into())
    }
}

impl<T> Step<T> for std::io::Result<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|error| match error.raw_os_error() {
            Some(errno) => Failure::new(step(), Errno::from_raw_os_error(errno)).into(),
            None => Failure::because(step(), error.to_string()).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_reads_as_runc_says_it() {
        assert_eq!(errno_text(libc::EACCES), "permission denied");
        assert_eq!(errno_text(libc::ENOENT), "no such file or directory");
        assert_eq!(errno_text(libc::EPERM), "operation not permitted");
        assert_eq!(errno_text(libc::EIO), "input/output error");
    }

    #[test]
    fn a_long_text_is_shortened() {
        let text = |middle: &str| format!("exec: \"{middle}\": not found");
        for whole in ["x".repeat(9000), "\n".repeat(5000)] {
            assert_eq!(shortened(text(&whole)), text(&whole));
        }
        for long in ["x".repeat(100_000), "\u{1}".repeat(4096), "ü".repeat(9000)] {
            let short = shortened(text(&long));
            assert!(serde_json::to_string(&short).unwrap().len() <= LONGEST_TEXT + 16);
            assert!(short.starts_with("exec: \"") && short.ends_with("\": not found"), "{short}");
        }
    }

    #[test]
    fn failure_reads_outermost_first() {
        let failure = Failure::new("mount tmpfs on /dev", Errno::PERM);
        assert_eq!(failure.to_string(), "mount tmpfs on /dev: operation not permitted");
        let json = serde_json::to_string(&failure).unwrap();
        assert_eq!(serde_json::from_str::<Failure>(&json).unwrap(), failure);
    }
}
