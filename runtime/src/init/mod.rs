//! Init: the container's first process, from clone3(2) to the workload.
//!
//! [`main`] is the whole path, top to bottom, one file per step. The process is single-threaded,
//! shares nothing with the runtime but the channel, and ends in execve(2), in the engine, or in
//! `_exit` after it has reported what failed.

mod cgroup;
pub(crate) mod console;
mod copy_up;
pub(crate) mod credentials;
mod devices;
pub(crate) mod exec;
mod hostname;
mod launch;
pub(crate) mod limits;
pub(crate) mod mounts;
mod notify;
pub(crate) mod paths;
mod pivot;
pub(crate) mod rootfs;
mod shared;
pub(crate) mod sysctl;

use std::os::fd::{AsFd, OwnedFd};

pub use launch::Launch;

use kiln_hooks::{Context, Stage};
use rustix::process::{DumpableBehavior, Signal};

use crate::affinity;
use crate::channel::{Channel, ToInit, ToRuntime};
use crate::create::Console;
use crate::engine::Engine;
use crate::error::{Error, Failure, Step};
use crate::mounts::MountPlan;
use crate::plan::Plan;
use crate::privilege::Privilege;
use crate::process::Process;
use crate::rooted::Rooted;
use crate::state::{State, Status};
use crate::sys;

/// What init inherits from the runtime.
pub struct Init {
    /// What to build.
    pub plan: Plan,
    /// To the runtime, until the workload runs or `start` takes over.
    pub channel: Channel,
    /// The rootfs as a detached mount; None if it is opened here ([`Plan::late`]).
    pub tree: Option<OwnedFd>,
    /// For the hooks' input.
    pub state: State,
    /// Say when all is done but the workload, and wait. Otherwise the runtime has already sent
    /// [`ToInit::Start`], which saves two switches between the processes.
    pub wait_before_start: bool,
    /// Where `start` will call; None if the runtime itself starts the workload (`run`).
    pub listener: Option<OwnedFd>,
    /// Where the terminal's master goes.
    pub console: Option<Console>,
    /// Runs the workload instead of execve(2).
    pub engine: Option<Box<dyn Engine>>,
    /// pivot_root(2) rather than MS_MOVE.
    pub pivot: bool,
    /// Join a session keyring of its own.
    pub keyring: bool,
    /// How many descriptors from 3 on the workload gets.
    pub preserve_fds: u32,
    /// A procfs of the container's pid namespace, where the workload's labels need one; init
    /// makes it.
    pub proc: Option<OwnedFd>,
}

impl Init {
    /// On the runtime's side, after the clone: all that is init's is closed, above all its end of
    /// the channel, without which its death would not be seen.
    pub fn into_plan(self) -> Plan {
        self.plan
    }
}

/// Everything from here to the workload. Holds, at its beginning: the runtime's root, mounts and
/// network, its uid and capabilities, a pid namespace and user namespace of its own if the
/// container has them.
pub fn main(mut init: Init) -> ! {
    let built = build(&mut init).and_then(|()| ready(&mut init));
    let failure = match built.and_then(|()| wait_for_start(&mut init)) {
        Ok(()) => match start(&mut init) {
            Ok(status) => sys::exit_now(status),
            Err(error) => error.into_failure(),
        },
        Err(error) => error.into_failure(),
    };
    // The runtime may be gone, which is often why we are here: then there is nobody to tell.
    let _ = init.channel.send(&ToRuntime::Failed(failure));
    sys::exit_now(1);
}

/// Up to the status `created`: everything that needs no `start`.
fn build(init: &mut Init) -> Result<(), Error> {
    die_with_runtime(&init.plan)?;
    // Hooks in the container's namespaces get the pid that is init's there.
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    init.state.init = Some(Process { pid, start_ticks: 0 });
    let Init { plan, channel, state, .. } = init;
    let runtime_gone = || "wait for the runtime".to_owned();

    let mut tree = init.tree.take();
    let late = plan.late.then_some(|| {
        plan.mounts.iter_mut().try_for_each(MountPlan::open_source)?;
        tree = Some(rootfs::open(&plan.rootfs_path)?);
        Ok(())
    });
    plan.namespaces.enter(|| channel.expect(ToInit::Mapped).step(runtime_gone), late)?;
    // A change of uid, to a user namespace's root, has cleared the signal (prctl(2)).
    end_with_runtime()?;
    if plan.privilege == Privilege::User {
        close_to_others()?;
    }
    hostname::set(plan)?;

    let tree = tree.ok_or_else(|| Failure::because("open the rootfs", "it is not there"))?;
    let old_root = rootfs::attach(plan, &tree)?;
    let root = Rooted::new(&tree);
    // The runtime makes network and cgroups meanwhile; only what shows them must wait.
    let cgroup_paths = state.cgroup.as_ref();
    let mut ready = cgroup::Ready::new(channel, &plan.namespaces);
    let kernel = mounts::make_all(plan, &root, cgroup_paths, &mut ready)?;
    devices::make_all(plan, &root)?;
    ready.cgroup()?;
    affinity::reset();

    if !plan.net_devices.is_empty() {
        let step = || "wait for linux.netDevices".to_owned();
        channel.send(&ToRuntime::DevicesPlease).step(step)?;
        channel.expect(ToInit::DevicesMoved).step(step)?;
    }
    run_create_hooks(plan, &tree, channel, state)?;
    if let Some(engine) = &mut init.engine {
        let name = engine.name();
        engine.load(tree.as_fd()).map_err(|source| Error::Engine { engine: name, source })?;
    }
    if plan.process.terminal {
        console::open(&plan.process, &root, init.console.take())?;
    }
    let null = paths::host_null()?;
    let proc = sysctl::needs_proc(plan).then(sysctl::open_proc).transpose()?;

    // From here on nothing of the host can be reached by a path.
    pivot::enter(plan, &tree, old_root, init.pivot)?;
    if let Some(proc) = &proc {
        sysctl::write_all(&plan.sysctl, proc)?;
    }
    init.proc = proc.filter(|_| plan.process.labels.any());
    // While the root can still be written to: what is missing is made in a read-only one, too.
    exec::make_cwd(&plan.process, &root)?;
    paths::make_readonly(plan, &root, &kernel)?;
    paths::mask(plan, &root, &kernel, &null)?;
    mounts::finish(plan, &root)?;
    rootfs::finish(plan, &tree)?;
    if init.keyring {
        credentials::join_keyring(&state.id)?;
    }
    if init.engine.is_none() {
        exec::check_executable(&plan.process, &root)?;
    }
    Ok(())
}

/// All is made and nothing of the host is needed any more: lets go of it, and says so.
fn ready(init: &mut Init) -> Result<(), Error> {
    // Where the launch does not follow at once and close them anyway.
    let hooks = init.plan.hooks.start_container().is_some();
    if init.listener.is_some() || hooks {
        let output = if hooks { init.plan.hook_output.files() } else { [None; 2] };
        let others = [init.listener.as_ref(), init.proc.as_ref()];
        let others = others.into_iter().map(|fd| fd.map(AsFd::as_fd));
        let engine = init.engine.iter().flat_map(|engine| engine.descriptors()).map(Some);
        let channel = [Some(init.channel.as_fd())];
        let keep: Vec<_> = others.chain(output).chain(engine).chain(channel).collect();
        exec::close_descriptors(init.preserve_fds, &keep)?;
    }
    if init.listener.is_some() && !hooks {
        // Hooks are not the workload: they run with all that init has.
        credentials::shed(&mut init.plan.process, init.plan.seccomp.is_some())?;
    }
    // From here on init only waits: the end of the channel tells it that the runtime is gone, and
    // the runtime may leave as soon as it has said so.
    rustix::process::set_parent_process_death_signal(None).step(|| "detach init".to_owned())?;
    if init.wait_before_start {
        let runtime_gone = || "wait for the runtime".to_owned();
        init.channel.send(&ToRuntime::Ready).step(runtime_gone)?;
    }
    Ok(())
}

/// Waits until the runtime (`run`) or `start` says go, and puts the channel that leads to the one
/// who said so in place of the first.
fn wait_for_start(init: &mut Init) -> Result<(), Error> {
    let runtime_gone = || "wait for the runtime".to_owned();
    match init.listener.take() {
        None => init.channel.expect(ToInit::Start).step(runtime_gone),
        Some(listener) => {
            // The first process of a pid namespace is immune to what has no handler; a container
            // that is stopped before it was started ends like any other.
            sys::die_on_signals();
            init.channel.expect(ToInit::Created).step(runtime_gone)?;
            let step = || "wait for start".to_owned();
            let flags = rustix::net::SocketFlags::CLOEXEC;
            let connection = loop {
                match rustix::net::accept_with(&listener, flags) {
                    Err(rustix::io::Errno::INTR) => {}
                    connection => break connection.step(step)?,
                }
            };
            init.channel = Channel::from_socket(connection);
            init.channel.expect(ToInit::Start).step(step)
        }
    }
}

/// From `start` to the workload; returns the engine's exit status, execve(2) does not return.
fn start(init: &mut Init) -> Result<i32, Error> {
    let Init { plan, state, .. } = init;
    if let Some(hooks) = plan.hooks.start_container() {
        launch::set_home(&mut plan.process);
        let state_json = state.hook_input(Status::Created);
        let context = plan.hook_output.context(&state_json, None);
        let context = Context { env: Some(&plan.process.env), ..context };
        kiln_hooks::run(Stage::StartContainer, Some(hooks), &context)?;
    }
    let launch = Launch {
        mounts: plan.mounts.iter().map(|mount| mount.destination.as_path()).collect(),
        is_init: true,
        process: &mut plan.process,
        seccomp: plan.seccomp.as_ref(),
        channel: &init.channel,
        engine: init.engine.take(),
        preserve_fds: init.preserve_fds,
        limits: !init.wait_before_start,
        proc: init.proc.as_ref(),
        verify_cwd: false,
    };
    launch.run()
}

/// Until it is complete init must not outlive the runtime, or nobody would know of it. It must
/// not be opened by others either: a process of a joined pid namespace with the capabilities of a
/// joined user namespace could reach the host through /proc/PID/root (CVE-2016-9962).
fn die_with_runtime(plan: &Plan) -> Result<(), Error> {
    end_with_runtime()?;
    // A session of its own: the caller's terminal and process group are no business of the
    // container's; kill(0, ...) reaches a whole group, whatever pid namespace it comes from.
    rustix::process::setsid().step(|| "prepare the process".to_owned())?;
    rustix::process::umask(rustix::fs::Mode::empty());
    if plan.privilege == Privilege::User {
        // The runtime can no longer reach init's files in /proc when it has done with the maps.
        limits::set_oom_score(&plan.process, "self", plan.privilege)?;
        if plan.namespaces.makes(libc::CLONE_NEWUSER) {
            // What is not dumpable belongs to root in /proc, where this user must write the maps
            // first. Nobody has rights over the new user namespace but this very user.
            return Ok(());
        }
    }
    close_to_others()
}

/// Closes this process to those who have its ids but not its privileges.
pub(crate) fn close_to_others() -> Result<(), Error> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .step(|| "prepare the process".to_owned())
}

/// SIGKILL for this process when the runtime has gone.
pub(crate) fn end_with_runtime() -> Result<(), Error> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .step(|| "prepare the process".to_owned())
}

/// The hooks between the rootfs and pivot_root(2): those of the runtime's namespaces by the
/// runtime, then those of the container's here.
fn run_create_hooks(
    plan: &Plan,
    tree: &OwnedFd,
    channel: &Channel,
    state: &State,
) -> Result<(), Error> {
    if plan.has_runtime_hooks() {
        let step = || "wait for the runtime's hooks".to_owned();
        channel.send(&ToRuntime::HooksPlease).step(step)?;
        channel.expect(ToInit::HooksDone).step(step)?;
    }
    let hooks = plan.hooks.create_container().as_ref();
    if hooks.is_some_and(|hooks| !hooks.is_empty()) {
        // In the rootfs, as for runc: hooks use paths relative to it.
        rustix::process::fchdir(tree).step(|| "enter the rootfs".to_owned())?;
        let state_json = state.hook_input(Status::Creating);
        let context = plan.hook_output.context(&state_json, None);
        kiln_hooks::run(Stage::CreateContainer, hooks, &context)?;
    }
    Ok(())
}
