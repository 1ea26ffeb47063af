//! From a process in its container to the user's program: what init and an exec'd process
//! ([`crate::exec`]) do alike, once they are where the program is to run.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::{credentials, exec, limits};
use crate::channel::Channel;
use crate::engine::Engine;
use crate::error::{Error, Step};
use crate::labels::When;
use crate::passwd;
use crate::plan::ProcessPlan;
use crate::seccomp::Filter;
use crate::sys;

/// The program and all that is decided about its process.
pub struct Launch<'a> {
    /// What to run, as whom.
    pub process: &'a mut ProcessPlan,
    /// linux.seccomp.
    pub seccomp: Option<&'a Filter>,
    /// The destinations of the spec's mounts, for the engine.
    pub mounts: Vec<&'a Path>,
    /// Whether it is the container's init.
    pub is_init: bool,
    /// To the runtime, which learns from it how the launch went.
    pub channel: &'a Channel,
    /// Runs the program instead of execve(2).
    pub engine: Option<Box<dyn Engine>>,
    /// How many descriptors from 3 on the program gets.
    pub preserve_fds: u32,
    /// Whether process.rlimits are still to be set; else the runtime has.
    pub limits: bool,
    /// A procfs of this process's pid namespace, made by us, where the process has labels.
    pub proc: Option<&'a OwnedFd>,
    /// Whether others may be at work in the container, so that the working directory is looked at
    /// once more.
    pub verify_cwd: bool,
}

impl Launch<'_> {
    /// Gives up everything that the program must not have and runs it; returns the engine's exit
    /// status, execve(2) does not return. Closes all descriptors but stdio, the preserved ones and
    /// the channel: the process must end without dropping what owned the others.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn run(mut self) -> Result<i32, Error> {
        let engine = self.engine.iter().flat_map(|engine| engine.descriptors());
        let mut keep: Vec<_> = engine.chain([self.channel.as_fd()]).map(Some).collect();
        keep.push(self.proc.map(AsFd::as_fd));
        exec::close_descriptors(self.preserve_fds, &keep)?;
        keep.pop();
        let process = &mut *self.process;
        let entered = exec::enter_cwd(process);
        set_home(process);
        if let Some(persona) = process.personality {
            sys::personality(persona).step(|| "set linux.personality".to_owned())?;
        }
        if self.limits {
            limits::set(process)?;
        }
        if let Some(policy) = &process.memory_policy {
            policy.apply()?;
        }
        process.scheduling.apply()?;
        if self.engine.is_none() {
            process.labels.apply(When::Exec, self.proc)?;
        }
        // From here on this process is the container's user, with its capabilities only (and what
        // it takes to install the seccomp filter, which comes last).
        credentials::become_user(process, self.seccomp.is_some())?;
        // Either may lack the permission: root in a directory of NFS, the user in one of root's.
        exec::enter_cwd(process).or(entered)?;
        if self.verify_cwd {
            exec::verify_cwd(process)?;
        }
        if self.engine.is_some() {
            process.labels.apply(When::Now, self.proc)?;
        }
        if self.proc.is_some() {
            exec::close_descriptors(self.preserve_fds, &keep)?;
        }
        match self.engine.take() {
            None => exec::execute(process, self.seccomp, self.channel),
            Some(engine) => exec::run_engine(engine, &self),
        }
    }
}

/// HOME from the container's /etc/passwd, else `/`, where the config has none: as runc and crun do.
pub fn set_home(process: &mut ProcessPlan) {
    if process.variable("HOME").is_none_or(str::is_empty) {
        process.env.retain(|entry| entry != "HOME=");
        let home = passwd::home(process.uid).filter(|home| !home.contains('\0'));
        process.env.push(format!("HOME={}", home.as_deref().unwrap_or("/")));
    }
}
