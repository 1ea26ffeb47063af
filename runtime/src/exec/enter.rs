//! The two processes of an exec: one that joins the container, and its child, which becomes the
//! program.
//!
//! ```text
//! runtime    clone3, on cgroup v2 straight into the cgroup
//! - joiner   v1 cgroups; what takes the host's privileges; one setns(2) for all namespaces;
//!            clone3 with CLONE_PARENT: the runtime's child, in the container's pid namespace
//!   - child  session, keyring, terminal; then as init: limits, user, seccomp, execve
//! ```
//!
//! The joiner is needed because only a child is in a joined pid namespace, and the child must not
//! be there before it has the container's root and nothing of the host's open: processes of the
//! container could reach through it (CVE-2016-9962, CVE-2024-21626).

use std::os::fd::{AsFd, OwnedFd};

use rustix::thread::ThreadNameSpaceType;

use crate::affinity::Affinity;
use crate::channel::{Channel, ToRuntime};
use crate::create::Console;
use crate::engine::Engine;
use crate::error::{Error, Step};
use crate::init::exec::close_descriptors;
use crate::init::{
    Launch, close_to_others, console, credentials, end_with_runtime, limits, sysctl,
};
use crate::labels::When;
use crate::mounts::open_dir;
use crate::namespaces::{Membership, become_root};
use crate::plan::ProcessPlan;
use crate::privilege::Privilege;
use crate::rdt;
use crate::seccomp::Filter;
use crate::sys::{self, Cloned};

/// What both inherit from the runtime.
pub struct Exec {
    /// What to run, as whom.
    pub process: ProcessPlan,
    /// linux.seccomp of the container.
    pub seccomp: Option<Filter>,
    /// process.execCPUAffinity.
    pub affinity: Affinity,
    /// To the runtime.
    pub channel: Channel,
    /// Where the terminal's master goes.
    pub console: Option<Console>,
    /// Runs the program instead of execve(2).
    pub engine: Option<Box<dyn Engine>>,
    /// Mount destinations, for the engine.
    pub mounts: Vec<std::path::PathBuf>,
    /// The container's id, for a session keyring of its own; None to keep the caller's.
    pub keyring: Option<String>,
    /// How many descriptors from 3 on the program gets.
    pub preserve_fds: u32,
}

/// The way into the container; closed before the child exists.
pub struct Way {
    /// The container's init.
    pub pidfd: OwnedFd,
    /// The namespaces to join.
    pub membership: Membership,
    /// The container's root, where that is not its mount namespace's.
    pub root: Option<OwnedFd>,
    /// The `tasks` of its v1 cgroups, and where it has one its unified cgroup.
    pub cgroups: kiln_cgroups::Entrances,
    /// Its resctrl groups.
    pub rdt: Option<rdt::Groups>,
}

/// The joiner. Holds at its beginning all that the runtime has; on v2 it is in the cgroup.
pub fn join(mut exec: Exec, way: Way) -> ! {
    match enter(&mut exec, way) {
        Ok(Cloned::Child) => become_program(&mut exec),
        Ok(Cloned::Parent { pid, .. }) => {
            let _ = exec.channel.send(&ToRuntime::Cloned(pid));
            sys::exit_now(0)
        }
        Err(error) => fail(&exec.channel, error),
    }
}

fn fail(channel: &Channel, error: Error) -> ! {
    let _ = channel.send(&ToRuntime::Failed(error.into_failure()));
    sys::exit_now(1)
}

fn enter(exec: &mut Exec, way: Way) -> Result<Cloned, Error> {
    end_with_runtime()?;
    let Way { pidfd, membership, root, cgroups, rdt } = way;
    for entrance in &cgroups.v1 {
        let step = || "enter the container's cgroup".to_owned();
        kiln_cgroups::enter(entrance.as_fd()).step(step)?;
    }
    drop(cgroups);
    if let Some(groups) = rdt {
        // 0 is the one who writes, as for a cgroup.
        groups.join(0)?;
    }
    let process = &mut exec.process;
    exec.affinity.apply_final()?;
    if process.oom_score_adj.is_some() {
        limits::set_oom_score(process, "self", Privilege::of_caller())?;
    }
    if process.labels.any() && exec.engine.is_none() {
        // Through the host's procfs; the child's execve counts, which inherits them.
        let proc = open_dir("/proc".as_ref()).step(|| "open /proc".to_owned())?;
        std::mem::take(&mut process.labels).apply(When::Exec, Some(&proc))?;
    }
    let user = membership.flags & libc::CLONE_NEWUSER != 0;
    if user {
        raise_limits(process)?;
        // The container's root may trace what is in its user namespace, and where the container
        // has no pid namespace it sees this process, too.
        close_to_others()?;
    }
    let namespaces = ThreadNameSpaceType::from_bits_retain(membership.flags as u32);
    rustix::thread::move_into_thread_name_spaces(pidfd.as_fd(), namespaces)
        .step(|| "join the container's namespaces".to_owned())?;
    drop(pidfd);
    if let Some(root) = root {
        let step = || "enter the container's root".to_owned();
        rustix::process::fchdir(&root).step(step)?;
        rustix::process::chroot(".").step(step)?;
    }
    // From here on: the container's mounts, network and user namespace, of which this is root.
    if user {
        become_root(None)?;
    }
    // The log, above all: nothing of this process's own is used any more.
    let keep = [Some(exec.channel.as_fd()), exec.console.as_ref().map(AsFd::as_fd)];
    close_descriptors(exec.preserve_fds, &keep)?;
    // For the child, before it can be seen; a change of ids has set it anew.
    close_to_others()?;
    if !exec.process.labels.any() {
        credentials::shed(&mut exec.process, exec.seccomp.is_some())?;
    }
    sys::clone3(libc::CLONE_PARENT as u64, None).step(|| "clone the process".to_owned())
}

/// Only the host's root may raise a hard limit: before the user namespace is joined. Lowered, they
/// are set where the others are.
fn raise_limits(process: &ProcessPlan) -> Result<(), Error> {
    for (resource, wanted) in &process.rlimits {
        let mut limit = rustix::process::getrlimit(*resource);
        // None is no limit.
        let raised = limit.maximum.is_some_and(|now| wanted.maximum.is_none_or(|new| new > now));
        if raised {
            limit.maximum = wanted.maximum;
            rustix::process::setrlimit(*resource, limit)
                .step(|| format!("set process.rlimits {resource:?}"))?;
        }
    }
    Ok(())
}

/// The child: in all of the container's namespaces and its cgroup, its root there, with no more
/// capabilities than it takes to become the user; nothing of the host's is open but stdio, the channel, the console socket,
/// and what is preserved.
fn become_program(exec: &mut Exec) -> ! {
    match prepare(exec).and_then(|()| launch(exec)) {
        Ok(status) => sys::exit_now(status),
        Err(error) => fail(&exec.channel, error),
    }
}

fn prepare(exec: &mut Exec) -> Result<(), Error> {
    let step = || "prepare the process".to_owned();
    end_with_runtime()?;
    rustix::process::setsid().step(step)?;
    rustix::process::umask(rustix::fs::Mode::empty());
    if let Some(id) = &exec.keyring {
        credentials::join_keyring(id)?;
    }
    if exec.process.terminal {
        console::open_inside(&exec.process, exec.console.take())?;
    }
    // A runtime that does not wait leaves as soon as the program runs.
    rustix::process::set_parent_process_death_signal(None).step(step)
}

fn launch(exec: &mut Exec) -> Result<i32, Error> {
    // Only an engine's: what is left of them is to be set by the process itself.
    let proc = exec.process.labels.any().then(sysctl::open_proc).transpose()?;
    let launch = Launch {
        process: &mut exec.process,
        seccomp: exec.seccomp.as_ref(),
        mounts: exec.mounts.iter().map(std::path::PathBuf::as_path).collect(),
        is_init: false,
        channel: &exec.channel,
        engine: exec.engine.take(),
        preserve_fds: exec.preserve_fds,
        limits: true,
        proc: proc.as_ref(),
        verify_cwd: true,
    };
    launch.run()
}
