//! The OCI lifecycle hooks: programs that the bundle wants run at six points of a container's
//! life (runtime-spec v1.3, config.md#posix-platform-hooks).
//!
//! This crate checks the hooks of a spec and runs those of one stage. When a stage is due, in
//! which namespaces and with what state document is the caller's (`runtime`) to know: `run` runs
//! the hooks in the namespaces, root directory and credentials of the process that calls it. It
//! starts no thread, does not need /proc, and waits in poll(2) alone.

mod error;
mod process;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use oci_spec::runtime::{Hook, Hooks};

pub use error::{Error, HookName};

/// A point in a container's life at which hooks run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// In the runtime namespaces, with `createRuntime`; deprecated by the spec.
    Prestart,
    /// In the runtime namespaces, once the container's exist, before pivot_root.
    CreateRuntime,
    /// In the container's namespaces, before pivot_root.
    CreateContainer,
    /// In the container's namespaces and root, at `start`, before the workload.
    StartContainer,
    /// In the runtime namespaces, once the workload runs.
    Poststart,
    /// In the runtime namespaces, once the container is deleted.
    Poststop,
}

impl Stage {
    /// Every stage, in the order in which a container goes through them.
    pub const ALL: [Stage; 6] = [
        Stage::Prestart,
        Stage::CreateRuntime,
        Stage::CreateContainer,
        Stage::StartContainer,
        Stage::Poststart,
        Stage::Poststop,
    ];

    /// The stage's name as the spec spells it, which is also its field in `hooks`.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Prestart => "prestart",
            Stage::CreateRuntime => "createRuntime",
            Stage::CreateContainer => "createContainer",
            Stage::StartContainer => "startContainer",
            Stage::Poststart => "poststart",
            Stage::Poststop => "poststop",
        }
    }

    /// What `hooks` lists for this stage; `None` where the spec has no such field.
    #[allow(deprecated)] // prestart: bundles still use it, so it must still run
    pub fn of(self, hooks: &Hooks) -> Option<&Vec<Hook>> {
        match self {
            Stage::Prestart => hooks.prestart(),
            Stage::CreateRuntime => hooks.create_runtime(),
            Stage::CreateContainer => hooks.create_container(),
            Stage::StartContainer => hooks.start_container(),
            Stage::Poststart => hooks.poststart(),
            Stage::Poststop => hooks.poststop(),
        }
        .as_ref()
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the hooks of a stage are given.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The container's state document, on stdin.
    pub state_json: &'a [u8],
    /// The environment of hooks without `env`, `name=value` each; None for the caller's own. The
    /// spec leaves it open; runc and crun pass on the runtime's environment, and to startContainer
    /// hooks that of the container's process.
    pub env: Option<&'a [String]>,
    /// Where their stdout goes instead of nowhere.
    pub stdout: Option<BorrowedFd<'a>>,
    /// Where their stderr goes instead of into errors.
    pub stderr: Option<BorrowedFd<'a>>,
    /// A descriptor that becomes readable when they are to end: a hook is killed then, with its
    /// process group. It is not read from.
    pub end: Option<BorrowedFd<'a>>,
}

impl<'a> Context<'a> {
    /// With the caller's environment and nothing else.
    pub fn new(state_json: &'a [u8]) -> Self {
        Self { state_json, env: None, stdout: None, stderr: None, end: None }
    }
}

/// Checks all hooks of a spec without running any, to be called before anything is created.
///
/// A path need not exist: some hooks are there only once others have run, or only inside the
/// container.
///
/// # Errors
/// The first hook whose path is not absolute, whose timeout is not greater than zero, or whose
/// environment has an entry that is not `name=value`; the error names the field.
pub fn validate(hooks: &Hooks) -> Result<(), Error> {
    for stage in Stage::ALL {
        for (index, hook) in Stage::of(stage, hooks).into_iter().flatten().enumerate() {
            check(&HookName::new(stage, index, hook), hook)?;
        }
    }
    Ok(())
}

/// Runs the hooks of one stage in their order; the first failure ends it.
///
/// Each hook is a child process in a process group of its own, with exactly the spec's arguments
/// (by default the path alone) and environment (by default [`Context::env`]) and the caller's
/// working directory. It reads [`Context::state_json`] from stdin, and need not.
/// What it writes to stdout is thrown away; of stderr the last 4 KiB are kept for the error;
/// unless [`Context`] leads them elsewhere.
/// Blocks until the hook itself has ended, not until processes that it left behind have; their
/// stdout and stderr then lead nowhere. The caller must not have SIGCHLD ignored. Needs Linux
/// 5.3 for pidfd_open(2).
///
/// # Errors
/// - [`Error::RelativePath`], [`Error::BadTimeout`], [`Error::BadEnv`]: as for [`validate`].
/// - [`Error::Start`]: the hook could not be executed.
/// - [`Error::Failed`]: it ended with another status than 0, or by a signal.
/// - [`Error::TimedOut`]: its timeout passed; its whole process group has been killed.
/// - [`Error::Ended`]: [`Context::end`] became readable; likewise.
/// - [`Error::Watch`]: a system call of our own failed; the group has been killed.
pub fn run(stage: Stage, hooks: Option<&Vec<Hook>>, context: &Context<'_>) -> Result<(), Error> {
    hooks
        .into_iter()
        .flatten()
        .enumerate()
        .try_for_each(|(index, hook)| run_one(HookName::new(stage, index, hook), hook, context))
}

/// Runs all hooks of one stage in their order, whatever becomes of those before, and returns
/// the failures: for `poststart` and `poststop`, where the spec asks only for a warning.
pub fn run_all(stage: Stage, hooks: Option<&Vec<Hook>>, context: &Context<'_>) -> Vec<Error> {
    hooks
        .into_iter()
        .flatten()
        .enumerate()
        .filter_map(|(index, hook)| run_one(HookName::new(stage, index, hook), hook, context).err())
        .collect()
}

fn run_one(name: HookName, hook: &Hook, context: &Context<'_>) -> Result<(), Error> {
    let timeout = check(&name, hook)?;
    process::run(&name, hook, timeout, context)
}

/// Checks one hook and returns its timeout.
fn check(name: &HookName, hook: &Hook) -> Result<Option<Duration>, Error> {
    if !hook.path().is_absolute() {
        return Err(Error::RelativePath { hook: name.clone() });
    }
    for (entry, text) in hook.env().iter().flatten().enumerate() {
        if !text.contains('=') || text.contains('\0') {
            return Err(Error::BadEnv { hook: name.clone(), entry });
        }
    }
    match hook.timeout() {
        None => Ok(None),
        Some(secs) => match u64::try_from(secs) {
            Ok(secs @ 1..) => Ok(Some(Duration::from_secs(secs))),
            _ => Err(Error::BadTimeout { hook: name.clone(), secs }),
        },
    }
}

#[cfg(test)]
mod tests;
