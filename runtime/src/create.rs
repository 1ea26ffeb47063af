//! `create` and `run`: from a bundle to a process.
//!
//! The runtime's side of [`crate::init`]. Before anything is made, everything is checked
//! ([`Plan`]); before anything is made that could stay behind, the state directory says where to
//! find it. Whatever fails, what was made is undone in reverse.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use kiln_cgroups::Cgroup;
use kiln_hooks::Stage;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, WaitId, WaitIdOptions};

use crate::annotations::HookOutput;
use crate::bundle::Bundle;
use crate::channel::{Channel, ToInit, ToRuntime, send_descriptor};
use crate::delete;
use crate::engine::Engine;
use crate::error::{Error, Failure, Step};
use crate::id::ContainerId;
pub use crate::init::console::Console;
use crate::init::{self, Init, limits};
use crate::listener::{Agent, Listener};
use crate::mounts;
use crate::net_devices::{self, Moved};
use crate::placement::{Driver, Later, Made, Placement};
use crate::plan::{Plan, RUNTIME_HOOKS};
use crate::privilege::Privilege;
use crate::process::Process;
use crate::rdt;
use crate::ready::{self, Manager, Ready};
use crate::rootless::Rootless;
use crate::state::{ContainerDir, START_SOCKET, State, StateRoot, Status, timestamp};
use crate::sys::{self, Cloned};
use crate::update;
use crate::wait::Child;

/// What `create` and `run` are asked for.
pub struct Options<'a> {
    /// The state root.
    pub root: &'a Path,
    /// The new container's id.
    pub id: ContainerId,
    /// Its bundle, read.
    pub bundle: Bundle,
    /// Where init's pid goes, decimal, without newline.
    pub pid_file: Option<&'a Path>,
    /// Where the terminal's master goes.
    pub console: Option<Console>,
    /// A connected socket that init's pidfd is sent over.
    pub pidfd_socket: Option<OwnedFd>,
    /// How many descriptors from 3 on the workload gets.
    pub preserve_fds: u32,
    /// pivot_root(2) rather than moving the root.
    pub pivot: bool,
    /// A session keyring of its own.
    pub keyring: bool,
    /// Whether missing permission for cgroups is forgiven.
    pub rootless: Rootless,
    /// Who makes its cgroups.
    pub driver: Driver,
    /// What runs the entrypoint, if execve(2) does not.
    pub engine: Option<Box<dyn Engine>>,
    /// NOTIFY_SOCKET: the service manager that is to hear when the container is ready.
    pub manager: Option<Manager>,
}

/// A container whose init is our child.
#[derive(Debug)]
pub struct Container {
    root: StateRoot,
    dir: ContainerDir,
    state: State,
    cgroup: Option<Cgroup>,
    /// To init, until it has executed the workload; none if CRIU has restored it.
    channel: Option<Channel>,
    pidfd: OwnedFd,
    /// Whether an engine runs the workload: init does not execute another program then.
    engine: bool,
    confirm_at_end: bool,
    /// linux.netDevices, to be returned if the workload does not start.
    devices: Option<Moved>,
    /// resctrl groups that were made, to be removed then: some are others' to keep afterwards.
    rdt: Vec<PathBuf>,
    /// Until the container is ready, where somebody waits for that.
    ready: Option<Ready>,
}

/// Creates a container that waits for `start`, and returns init's pid: runtime.md#create.
///
/// # Errors
/// The config is wrong, or a step failed; nothing is left behind.
pub fn create(options: Options<'_>) -> Result<i32, Error> {
    let container = launch(options, true)?;
    if let Err(error) = settle() {
        container.abandon();
        return Err(error);
    }
    // Init has a copy of the locked descriptor: were the runtime killed after the message, the
    // lock would last as long as init waits. All is recorded, so it is no longer needed.
    container.dir.unlock();
    if let Err(errno) = container.tell(ToInit::Created) {
        let error = match errno {
            // It was ready, and has ended since: the kernel may have wanted its memory.
            Errno::PIPE | Errno::CONNRESET => gone(&container.pidfd),
            errno => Failure::new("detach the container's init", errno).into(),
        };
        container.abandon();
        return Err(error);
    }
    Ok(container.pid())
}

/// Creates a container and starts its workload: `run`.
///
/// # Errors
/// As for [`create`]; also if the workload cannot be executed. Nothing is left behind.
pub fn run(options: Options<'_>, confirm: Confirm) -> Result<Container, Error> {
    let manager = options.manager.clone();
    let mut container = launch(options, false)?;
    let state = &container.state;
    // A seccomp agent must be told of the workload.
    let attended = state.poststart.is_some() || state.listener.is_some();
    container.confirm_at_end = confirm == Confirm::AtEnd && !attended;
    let listening = manager.map(|manager| Ready::listen(&container.dir, manager)).transpose();
    let started = listening.and_then(|ready| {
        container.ready = ready.flatten();
        container.start()
    });
    if let Err(error) = settle().and(started) {
        container.abandon();
        return Err(error);
    }
    container.dir.unlock();
    Ok(container)
}

/// From here on an interrupt ends nothing: it comes too late, or has come.
fn settle() -> Result<(), Error> {
    sys::interrupt_ends(None, None);
    not_interrupted()
}

fn not_interrupted() -> Result<(), Error> {
    sys::interrupted().map_or(Ok(()), |signal| Err(Error::Interrupted(signal)))
}

/// When `run` looks whether the workload could be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirm {
    /// Before it returns.
    AtStart,
    /// When the container has ended ([`crate::wait::wait`]), for a caller that waits for that in
    /// any case: two switches between the processes fewer. With poststart hooks it is
    /// [`Self::AtStart`].
    AtEnd,
}

/// Up to init's message that it is ready. With `listen` init will wait for `start`.
fn launch(mut options: Options<'_>, listen: bool) -> Result<Container, Error> {
    let plan = Plan::new(&options.bundle)?;
    check_terminal(plan.process.terminal, options.console.is_some())?;
    if let Some(engine) = &mut options.engine {
        let name = engine.name();
        engine
            .prepare(&options.bundle.spec, plan.rootfs.as_fd(), true)
            .map_err(|source| Error::Engine { engine: name, source })?;
    }
    let forgiven = options.rootless.forgives(plan.privilege);
    let placement = Placement::new(
        options.driver,
        &options.bundle.spec,
        &options.id,
        plan.privilege,
        forgiven,
    )?;

    let root = StateRoot::create(options.root)?;
    let dir = root.make(&options.id)?;
    dir.interrupt_ends(None);
    let mut undo = Undo {
        root: &root,
        dir: &dir,
        made: Made::default(),
        init: None,
        state: None,
        devices: None,
        rdt: Vec::new(),
    };
    let engine = options.engine.is_some();
    match build(options, plan, placement, &mut undo, listen) {
        Ok(Built { state, channel, pidfd }) => {
            let (cgroup, devices) = (undo.made.cgroup.take(), undo.devices.take());
            let rdt = std::mem::take(&mut undo.rdt);
            let channel = Some(channel);
            let container = Container::new(root, dir, state, cgroup, pidfd);
            Ok(Container { channel, engine, devices, rdt, ..container })
        }
        Err(error) => {
            // What failed, failed for that.
            let interrupted = settle();
            undo.undo();
            interrupted.and(Err(error))
        }
    }
}

struct Built {
    state: State,
    channel: Channel,
    pidfd: OwnedFd,
}

/// Makes all of the container; what `undo` knows of when this fails has been made.
fn build(
    mut options: Options<'_>,
    mut plan: Plan,
    placement: Placement,
    undo: &mut Undo<'_>,
    listen: bool,
) -> Result<Built, Error> {
    let dir = undo.dir;
    let state = describe(&options.bundle, &options.id, &plan, &placement);
    let engine = options.engine.is_some();
    let mut state = State { keyring: options.keyring, engine, ..state };
    // From here on, whoever finds the directory finds all that is made.
    dir.write(&state, &options.bundle.json)?;
    undo.state = Some(state.clone());
    plan.make_nodes(dir.as_fd())?;
    if options.manager.is_some() {
        ready::prepare(dir, &mut plan)?;
    }
    let wait_before_start = listen || needs_attention(&plan);
    let listener = if listen { Some(self::listen(dir)?) } else { None };
    if listen && plan.hooks_before_start() {
        dir.mark_creating()?;
    }
    let (channel, init_channel) = Channel::pair()?;
    // On v2 init is born in its cgroup, limits and all; on v1 the cgroups are made while it works.
    let later = placement.make(plan.resources.as_ref(), &mut undo.made)?;
    if let Later::Nothing = later {
        let made = undo.made.cgroup.as_ref().map(Cgroup::paths);
        if state.cgroup != made {
            // Less than was hoped for: what is not ours may become somebody else's.
            state.cgroup = made;
            dir.rewrite(&state)?;
            undo.state = Some(state.clone());
        }
    }
    let init = Init {
        tree: if plan.late { None } else { Some(mounts::clone_rootfs(&plan)?) },
        plan,
        channel: init_channel,
        state: state.clone(),
        wait_before_start,
        listener,
        console: options.console.take(),
        engine: options.engine.take(),
        pivot: options.pivot,
        keyring: options.keyring,
        preserve_fds: options.preserve_fds,
        proc: None,
    };
    let (pid, pidfd) = match init.plan.namespaces.clone(undo.made.v2_dir())? {
        Cloned::Child => {
            // The other end must not stay open here: its end is how init sees the runtime's.
            drop(channel);
            sys::end_on_interrupts();
            init::main(init)
        }
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
    };
    dir.interrupt_ends(Some(pidfd.as_fd()));
    undo.init = Some(pidfd.try_clone().step(|| "keep init's pidfd".to_owned())?);
    // One that came before has not ended init.
    not_interrupted()?;
    log::debug!("container {}: init is process {pid}", state.id);
    let plan = init.into_plan();
    if let Some(maps) = plan.namespaces.maps() {
        maps.write(pid, plan.privilege)?;
        tell(&channel, ToInit::Mapped)?;
    }
    if let Some(network) = plan.namespaces.make_network()? {
        still_there(channel.send_with(&ToInit::Network, &[network]))?;
    }
    let entrances = later.make(plan.resources.as_ref(), &mut undo.made, &state.id, pid)?;
    still_there(channel.send_with(&ToInit::CgroupReady, &entrances))?;
    log::debug!("container {}: cgroups made", state.id);
    let process = Process::of(pid)?;
    dir.write_init(&process)?;
    state.init = Some(process);
    if plan.privilege != Privilege::User {
        // From outside, because init may lack the privilege in its user namespace.
        limits::set_oom_score(&plan.process, &pid.to_string(), plan.privilege)?;
    }
    if let (Some(rdt), Some(groups)) = (&plan.rdt, &state.rdt) {
        rdt.make(groups, &mut undo.rdt)?;
        groups.join(pid)?;
    }
    if wait_before_start {
        attend(&channel, &plan, &state, &pidfd, dir, &mut undo.devices)?;
        set_rlimits(&plan, pid)?;
        log::debug!("container {}: init is ready", state.id);
    }
    if let Some(socket) = &options.pidfd_socket {
        send_descriptor(socket, b"standard", &pidfd)
            .step(|| "send the pidfd to the pidfd socket".to_owned())?;
    }
    if listen && plan.hooks_before_start() {
        dir.mark_created()?;
    }
    if let Some(path) = options.pid_file {
        write_pid_file(path, pid)?;
    }
    Ok(Built { state, channel, pidfd })
}

/// Whether the runtime has something to do between init's last step and the workload: hooks, or
/// limits that a process in a user namespace may not set itself.
fn needs_attention(plan: &Plan) -> bool {
    plan.namespaces.has(libc::CLONE_NEWUSER)
        || plan.has_runtime_hooks()
        || !plan.net_devices.is_empty()
        || plan.rdt.is_some()
}

/// A terminal and a console socket go together, as for runc. To be asked before one connects to
/// the socket: whoever listens there would take that for a terminal to come.
///
/// # Errors
/// There is one without the other.
pub fn check_terminal(terminal: bool, console: bool) -> Result<(), Error> {
    let problem = match (terminal, console) {
        (true, false) => "is true: a process that is detached needs --console-socket",
        (false, true) => "is false: --console-socket is for a terminal",
        _ => return Ok(()),
    };
    Err(Error::config("process.terminal", problem))
}

/// The state of a container to be.
pub(crate) fn describe(
    bundle: &Bundle,
    id: &ContainerId,
    plan: &Plan,
    placement: &Placement,
) -> State {
    let spec = &bundle.spec;
    State {
        oci_version: spec.version().clone(),
        id: id.to_string(),
        init: None,
        bundle: bundle.path.clone(),
        rootfs: plan.rootfs_path.clone(),
        created: timestamp(),
        annotations: spec.annotations().clone().unwrap_or_default().into_iter().collect(),
        owner: plan.privilege.uid(),
        cgroup: placement.paths().cloned(),
        unit: placement.unit().cloned(),
        check_memory: update::checks_memory(spec),
        poststart: plan.hooks.poststart().clone(),
        poststop: plan.hooks.poststop().clone(),
        listener: plan.listener.clone(),
        keyring: true,
        engine: false,
        net_devices: plan.net_devices.clone(),
        rdt: plan.rdt.as_ref().map(|rdt| rdt.groups(id.as_str())),
    }
}

fn listen(dir: &ContainerDir) -> Result<OwnedFd, Error> {
    let step = || "listen for start".to_owned();
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).step(step)?;
    let address = SocketAddrUnix::new(dir.short_path(START_SOCKET)).step(step)?;
    rustix::net::bind(&socket, &address).step(step)?;
    rustix::net::listen(&socket, 1).step(step)?;
    Ok(socket)
}

/// From outside, because init may lack the privilege in its user namespace, and last, because some limits would hinder init itself.
fn set_rlimits(plan: &Plan, pid: i32) -> Result<(), Error> {
    for (resource, limit) in &plan.process.rlimits {
        rustix::process::prlimit(Pid::from_raw(pid), *resource, *limit)
            .step(|| format!("set process.rlimits {resource:?}"))?;
    }
    Ok(())
}

fn tell(channel: &Channel, message: ToInit) -> Result<(), Error> {
    still_there(channel.send(&message))
}

fn still_there(sent: Result<(), Errno>) -> Result<(), Error> {
    match sent {
        // Init has ended; why, it has said, or its exit status says: `attend` looks.
        Ok(()) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
        Err(errno) => Err(errno).step(|| "tell the container's init".to_owned()),
    }
}

/// Serves init until it is ready.
fn attend(
    channel: &Channel,
    plan: &Plan,
    state: &State,
    pidfd: &OwnedFd,
    dir: &ContainerDir,
    devices: &mut Option<Moved>,
) -> Result<(), Error> {
    loop {
        match channel.receive().step(|| "listen to the container's init".to_owned())? {
            Some(ToRuntime::HooksPlease) => {
                let input = state.hook_input(Status::Creating);
                let bell = dir.bell()?;
                not_interrupted()?;
                let context = plan.hook_output.context(&input, Some(bell.as_fd()));
                for stage in RUNTIME_HOOKS {
                    kiln_hooks::run(stage, stage.of(&plan.hooks), &context)?;
                }
                tell(channel, ToInit::HooksDone)?;
            }
            Some(ToRuntime::DevicesPlease) => {
                *devices = Some(net_devices::move_all(&plan.net_devices, pidfd)?);
                tell(channel, ToInit::DevicesMoved)?;
            }
            Some(ToRuntime::Ready) => return Ok(()),
            Some(ToRuntime::Failed(failure)) => return Err(failure.into()),
            Some(ToRuntime::Started | ToRuntime::Listener | ToRuntime::Cloned(_)) | None => {
                return Err(gone(pidfd));
            }
        }
    }
}

/// Init's end, as far as it can be told.
pub(crate) fn gone(pidfd: &OwnedFd) -> Error {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let status = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options);
    Error::InitGone(match status.ok().flatten().and_then(|status| status.terminating_signal()) {
        Some(libc::SIGKILL) => ": killed (hint: is the memory limit too small?)".to_owned(),
        Some(signal) => format!(": killed by signal {signal}"),
        None => String::new(),
    })
}

/// Written beside and renamed: whoever sees the file sees all of it.
pub(crate) fn write_pid_file(path: &Path, pid: i32) -> Result<(), Error> {
    let step = || format!("write pid file {}", path.display());
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::open(&temporary, flags, Mode::from_raw_mode(0o644)).step(step)?;
    let written = rustix::io::write(&file, pid.to_string().as_bytes())
        .and_then(|_| rustix::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = rustix::fs::unlink(&temporary);
    }
    written.step(step)
}

/// What has been made so far, to be taken back when a step fails.
pub(crate) struct Undo<'a> {
    pub root: &'a StateRoot,
    pub dir: &'a ContainerDir,
    /// What of it has been made: never what somebody else has there.
    pub made: Made,
    /// Our child.
    pub init: Option<OwnedFd>,
    pub state: Option<State>,
    /// Taken into the container's network namespace.
    pub devices: Option<Moved>,
    pub rdt: Vec<PathBuf>,
}

impl Undo<'_> {
    /// In reverse.
    pub fn undo(&self) {
        // Before the namespace goes, and many kinds of device with it.
        if let Some(devices) = &self.devices {
            devices.give_back();
        }
        if let Some(pidfd) = &self.init {
            end(pidfd);
        }
        // Without a pid namespace a hook that init has started is still there.
        tidy("remove the cgroup", self.made.undo(self.init.is_some()));
        remove_groups(&self.rdt);
        tidy("remove the state", self.root.remove(self.dir));
        // runtime.md#lifecycle: an error continues at the last step.
        if let Some(state) = &self.state {
            delete::run_poststop(state);
        }
    }
}

/// Logs what could not be undone: what is reported is the failure that made it necessary.
fn tidy(what: &str, result: Result<(), Error>) {
    if let Err(error) = result {
        log::warn!("{what}: {error}");
    }
}

/// The last made first.
fn remove_groups(made: &[PathBuf]) {
    for group in made.iter().rev() {
        tidy("remove the resctrl group", rdt::remove_group(group));
    }
}

/// Kills and reaps init, our child.
pub(crate) fn end(pidfd: &OwnedFd) {
    let _ = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
    let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
}

impl Container {
    /// One whose init, our child, runs without having anything to hear from us, as CRIU's do.
    pub(crate) fn new(
        root: StateRoot,
        dir: ContainerDir,
        state: State,
        cgroup: Option<Cgroup>,
        pidfd: OwnedFd,
    ) -> Self {
        Self {
            root,
            dir,
            state,
            cgroup,
            channel: None,
            pidfd,
            engine: false,
            confirm_at_end: false,
            devices: None,
            rdt: Vec::new(),
            ready: None,
        }
    }

    /// For a caller that leaves the container to itself: waits until it is ready, where a service
    /// manager is to be told so, or until it has ended.
    ///
    /// # Errors
    /// An interrupt, which undoes all as before; the manager has given up.
    pub fn await_ready(&self) -> Result<(), Error> {
        let Some(ready) = &self.ready else { return Ok(()) };
        self.dir.interrupt_ends(Some(self.pidfd.as_fd()));
        if not_interrupted().is_ok() {
            ready.pass_on(self.pidfd.as_fd(), self.pid(), true);
        }
        settle().inspect_err(|_| self.abandon())
    }

    /// For a caller that waits for the container's end: does the same beside it, in a thread, with
    /// this process as the service's.
    pub fn tell_when_ready(&mut self) {
        let Some(ready) = self.ready.take() else { return };
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let begun = self.pidfd.try_clone().and_then(|pidfd| {
            std::thread::Builder::new().spawn(move || ready.pass_on(pidfd.as_fd(), own, false))
        });
        if let Err(error) = begun {
            log::warn!("NOTIFY_SOCKET: {error}");
        }
    }

    fn tell(&self, message: ToInit) -> Result<(), Errno> {
        self.channel.as_ref().map_or(Ok(()), |channel| channel.send(&message))
    }

    /// Tells init to execute the workload and waits until it has, unless that is put off.
    fn start(&self) -> Result<(), Error> {
        let agent = self.state.listener.as_ref().map(Listener::connect).transpose()?;
        still_there(self.tell(ToInit::Start))?;
        if self.confirm_at_end {
            return Ok(());
        }
        self.confirm(agent)?;
        run_poststart(&self.state, &self.dir)
    }

    fn confirm(&self, agent: Option<Agent<'_>>) -> Result<(), Error> {
        if let Some(channel) = &self.channel {
            await_workload(channel, &self.state, Status::Created, self.pid(), agent)?;
        }
        // Init's death closes the channel, too.
        let executed = self.state.init.as_ref().is_none_or(Process::has_left_runtime);
        if !executed && !self.engine {
            return Err(gone(&self.pidfd));
        }
        Ok(())
    }

    /// After init has ended and been reaped: ends what it left, removes the container and runs
    /// its poststop hooks.
    ///
    /// # Errors
    /// Something could not be removed.
    pub fn remove(&self) -> Result<(), Error> {
        match self.dir.lock() {
            // Somebody has deleted it by force meanwhile.
            Err(Error::NotFound(_)) => return Ok(()),
            locked => locked?,
        }
        delete::remove(&self.root, &self.dir, &self.state, self.cgroup.as_ref())
    }

    /// After a failure: kills what there is and removes the container, as if it had never been.
    pub fn abandon(&self) {
        // A `delete` may be at work, if this is long after `create`; what it leaves is still ours.
        let locked = self.dir.lock();
        if let Some(devices) = &self.devices {
            devices.give_back();
        }
        end(&self.pidfd);
        if !matches!(locked, Err(Error::NotFound(_))) {
            let removed = delete::remove(&self.root, &self.dir, &self.state, self.cgroup.as_ref());
            tidy("remove the container", removed);
        }
        remove_groups(&self.rdt);
    }
}

impl Child for Container {
    fn pid(&self) -> i32 {
        self.state.init.as_ref().map_or(0, |init| init.pid)
    }

    fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    fn confirm_ended(&self) -> Result<(), Error> {
        if self.confirm_at_end { self.confirm(None) } else { Ok(()) }
    }
}

/// Waits for the last word of process `pid`: the end of the channel means that execve(2) has
/// succeeded. If its seccomp filter notifies, `agent` is told before, of a container in `status`.
pub(crate) fn await_workload(
    channel: &Channel,
    state: &State,
    status: Status,
    pid: i32,
    mut agent: Option<Agent<'_>>,
) -> Result<(), Error> {
    let step = || "wait for the workload".to_owned();
    let unexpected =
        |what: &ToRuntime| Failure::because(step(), format!("init said {what:?}")).into();
    let mut started = false;
    loop {
        match channel.receive_with().step(step)? {
            None => return Ok(()),
            Some((ToRuntime::Started, _)) => started = true,
            Some((ToRuntime::Failed(failure), _)) => return Err(failure.into()),
            Some((message @ ToRuntime::Listener, descriptors)) => {
                let [listener] = &descriptors[..] else { return Err(unexpected(&message)) };
                let agent = agent.take().ok_or_else(|| unexpected(&message))?;
                agent.send(listener, state, status, pid)?;
            }
            Some((other, _)) => return Err(unexpected(&other)),
        }
        if started && agent.is_none() {
            return Ok(());
        }
    }
}

/// runtime.md#lifecycle, step 9: after the workload has begun; a failure ends the container.
pub(crate) fn run_poststart(state: &State, dir: &ContainerDir) -> Result<(), Error> {
    if state.poststart.is_none() {
        return Ok(());
    }
    let input = state.hook_input(Status::Running);
    let output = HookOutput::open(&state.annotations, &state.bundle)?;
    let bell = dir.bell()?;
    not_interrupted()?;
    let context = output.context(&input, Some(bell.as_fd()));
    Ok(kiln_hooks::run(Stage::Poststart, state.poststart.as_ref(), &context)?)
}
