//! What can go wrong with a hook, and how messages name one.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use oci_spec::runtime::Hook;
use rustix::io::Errno;

use crate::Stage;

/// Which hook of a spec: its field and its program.
///
/// Displayed in runc's words: `error running createRuntime hook #1: /usr/bin/net-setup`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HookName {
    /// The stage that lists the hook.
    pub stage: Stage,
    /// Its place in that list, from 0.
    pub index: usize,
    /// Its `path`.
    pub path: PathBuf,
}

impl HookName {
    pub(crate) fn new(stage: Stage, index: usize, hook: &Hook) -> Self {
        HookName { stage, index, path: hook.path().clone() }
    }

    /// The field in config.json, such as `hooks.createRuntime[1]`.
    pub fn field(&self) -> String {
        format!("hooks.{}[{}]", self.stage, self.index)
    }
}

impl fmt::Display for HookName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error running {} hook #{}: {}", self.stage, self.index, self.path.display())
    }
}

/// A hook that the spec describes wrongly, or that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The hook's path is relative.
    #[error("{}.path: {:?} is not an absolute path", hook.field(), hook.path)]
    RelativePath {
        /// The hook.
        hook: HookName,
    },
    /// The hook's timeout is zero or negative.
    #[error("{}.timeout: {secs} is not greater than 0", hook.field())]
    BadTimeout {
        /// The hook.
        hook: HookName,
        /// The timeout as given, in seconds.
        secs: i64,
    },
    /// An environment entry is not `name=value`. Its text may be a secret, so it is not shown.
    #[error("{}.env[{entry}]: not of the form name=value", hook.field())]
    BadEnv {
        /// The hook.
        hook: HookName,
        /// The entry's place in `env`, from 0.
        entry: usize,
    },
    /// The hook could not be executed.
    #[error("{hook}: {}", reason(source))]
    Start {
        /// The hook.
        hook: HookName,
        /// Why.
        source: std::io::Error,
    },
    /// The hook ended with a failure.
    #[error("{hook}: {}{}", describe(*status), quote(stderr))]
    Failed {
        /// The hook.
        hook: HookName,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote to stderr, at most 4 KiB.
        stderr: String,
    },
    /// The hook was still running at its timeout; its process group has been killed.
    #[error("{hook}: killed after its timeout of {} s{}", timeout.as_secs(), quote(stderr))]
    TimedOut {
        /// The hook.
        hook: HookName,
        /// The spec's timeout.
        timeout: Duration,
        /// The end of what it wrote to stderr, at most 4 KiB.
        stderr: String,
    },
    /// The hook was to end before it had; its process group has been killed.
    #[error("{hook}: killed, because the container is deleted")]
    Ended {
        /// The hook.
        hook: HookName,
    },
    /// A system call that prepares or watches the hook failed.
    #[error("{hook}: {call}: {}", reason(&(*errno).into()))]
    Watch {
        /// The hook.
        hook: HookName,
        /// The system call.
        call: &'static str,
        /// Its error.
        errno: Errno,
    },
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// strerror(3) as the runtime writes it: without its capital letter and std's `(os error N)`.
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let (first, rest) = text.split_at(text.chars().next().map_or(0, char::len_utf8));
    match rest.starts_with(char::is_uppercase) {
        true => text.to_owned(),
        false => first.to_lowercase() + rest,
    }
}

/// The last line that says something, behind a colon; nothing if there is none.
fn quote(stderr: &str) -> String {
    match stderr.lines().map(str::trim).rfind(|line| !line.is_empty()) {
        Some(line) => format!(": {line}"),
        None => String::new(),
    }
}
