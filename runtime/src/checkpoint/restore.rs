//! `restore`: a container from CRIU's images.
//!
//! The runtime makes what it makes for `create` (state, cgroup, mount points), CRIU the rest:
//! namespaces, mounts and processes. CRIU works in the container's cgroup, whose limits hold from
//! its first page on; the restored init is our child, as one that we have cloned.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kiln_cgroups::Paths;
use rustix::process::{Pid, PidfdFlags};

use super::criu::{self, Criu, Kind, Version};
use super::options::{Directories, Shared};
use super::wire::Message;
use super::{EXTERNAL, external, mount_space, quote, stdio};
use crate::bundle::Bundle;
use crate::create::{Console, Container, Undo, check_terminal, describe, write_pid_file};
use crate::error::{Error, Failure, Step};
use crate::id::ContainerId;
use crate::mounts;
use crate::net_devices;
use crate::placement::{Driver, Made, Placement};
use crate::plan::{Plan, RUNTIME_HOOKS};
use crate::process::Process;
use crate::state::{ContainerDir, State, StateRoot, Status};

const LOG: &str = "restore.log";
/// The kinds of namespaces that CRIU joins by itself: names in /proc/PID/ns.
const JOINABLE: [&str; 4] = ["ipc", "time", "user", "uts"];

/// What `restore` is asked for.
pub struct Restore<'a> {
    /// The state root.
    pub root: &'a Path,
    /// The new container's id.
    pub id: ContainerId,
    /// Its bundle, read.
    pub bundle: Bundle,
    /// Where init's pid goes, decimal, without newline.
    pub pid_file: Option<&'a Path>,
    /// Where the terminal's master is sent.
    pub console: Option<Console>,
    /// Who makes its cgroups.
    pub driver: Driver,
    /// What `checkpoint` is asked for, too.
    pub shared: Shared,
    /// `apparmor:NAME` or `selinux:LABEL` instead of the image's.
    pub lsm_profile: Option<String>,
    /// SELinux label for mounts that have one.
    pub lsm_mount_context: Option<String>,
}

/// Makes a running container from the images of a checkpoint.
///
/// # Errors
/// The config is wrong, CRIU is missing or refuses (its log is quoted and named), a hook failed.
/// Nothing is left behind; the images stay.
pub fn restore(mut options: Restore<'_>) -> Result<Container, Error> {
    let plan = Plan::new(&options.bundle)?;
    check_terminal(plan.process.terminal, options.console.is_some())?;
    if let Some(mount) = plan.mounts.iter().find(|mount| mount.is_idmapped()) {
        let field = format!("mounts on {}", mount.destination.display());
        return Err(Error::config(field, "criu cannot restore an idmapped mount"));
    }
    let Restore { id, bundle, driver, .. } = &options;
    let placement = Placement::new(*driver, &bundle.spec, id, plan.privilege, false)?;
    let images = Directories::open(&options.shared, false)?.images;
    let inherited = stdio::inherited(&images, &options.shared.image_path)?;

    let root = StateRoot::create(options.root)?;
    let dir = root.make(&options.id)?;
    let mut undo = Undo {
        root: &root,
        dir: &dir,
        made: Made::default(),
        init: None,
        state: None,
        devices: None,
        rdt: Vec::new(),
    };
    match build(&mut options, &plan, placement, &inherited, &mut undo) {
        Ok((state, pidfd)) => {
            let cgroup = undo.made.cgroup.take();
            // The restored processes have no copy of the lock's descriptor, but a caller waits.
            dir.unlock();
            Ok(Container::new(root, dir, state, cgroup, pidfd))
        }
        Err(error) => {
            undo.undo();
            Err(error)
        }
    }
}

/// Makes all of the container; what `undo` knows of when this fails has been made.
fn build(
    options: &mut Restore<'_>,
    plan: &Plan,
    placement: Placement,
    inherited: &[stdio::Inherited],
    undo: &mut Undo<'_>,
) -> Result<(State, OwnedFd), Error> {
    let mut state = describe(&options.bundle, &options.id, plan, &placement);
    undo.dir.write(&state, &options.bundle.json)?;
    undo.state = Some(state.clone());
    let later = placement.make(plan.resources.as_ref(), &mut undo.made)?;
    external::make_mount_points(&options.bundle.spec, &plan.rootfs)?;

    let at = undo.root.join(&options.id);
    let at = at.canonicalize().step(|| format!("open {}", at.display()))?;
    let tree = mounts::clone_rootfs(plan)?;
    let namespaces = external_namespaces(plan)?;
    let descriptors = inherited.iter().filter_map(|one| one.descriptor.as_ref());
    let descriptors: Vec<_> = descriptors.chain(namespaces.iter().map(|(_, fd)| fd)).collect();
    let (directories, mut criu) = mount_space::with(&tree, &at, || {
        // Opened here, because CRIU mounts in them, which it may only in its own namespace.
        let directories = Directories::open(&options.shared, false)?;
        Ok((directories, Criu::spawn(criu::Streams::Ours, &descriptors)?))
    })?;
    drop(tree);
    let version = criu.version()?;
    log::debug!("container {}: restore by criu {version}", state.id);
    criu.need_features(false, options.shared.lazy_pages)?;
    later.make(plan.resources.as_ref(), &mut undo.made, &state.id, criu.pid())?;
    if let Some(cgroup) = &undo.made.cgroup {
        cgroup.attach(criu.pid())?;
    }
    if let (Some(rdt), Some(groups)) = (&plan.rdt, &state.rdt) {
        rdt.make(groups, &mut undo.rdt)?;
        groups.join(criu.pid())?;
    }

    let mut message = message(options, plan, state.cgroup.as_ref(), &directories, version)?;
    message.bytes(13, at.as_os_str().as_bytes());
    for (key, number) in inherited
        .iter()
        .map(|one| (one.key.as_str(), one.number))
        .chain(namespaces.iter().map(|(key, fd)| (*key, fd.as_raw_fd())))
    {
        let mut inherit = Message::default();
        message.message(27, inherit.bytes(1, key.as_bytes()).int(2, number));
    }
    for (controllers, path) in cgroup_roots(criu.pid())? {
        let mut root = Message::default();
        message.message(25, root.bytes(1, controllers.as_bytes()).bytes(2, path.as_bytes()));
    }
    let console = options.console.take();
    let Undo { dir, init, devices, .. } = undo;
    let restored = criu.request(Kind::Restore, &message, |notification| {
        if init.is_none() && notification.pid > 0 {
            *init = Some(record(notification.pid, dir, &mut state)?);
        }
        match (notification.script.as_str(), &init) {
            ("setup-namespaces", Some(init)) => {
                plan.namespaces.loopback_of(notification.pid)?;
                if !plan.net_devices.is_empty() {
                    *devices = Some(net_devices::move_all(&plan.net_devices, init)?);
                }
                run_hooks(plan, &state, dir)
            }
            // All of it is there, and nothing runs yet.
            ("post-restore", _) => mount_space::set_options(plan, notification.pid),
            ("orphan-pts-master", _) => match (&notification.descriptor, &console) {
                (Some(master), Some(console)) => console.give(master),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    });
    restored.map_err(|failed| {
        let operation = format!("restore container {}", state.id);
        quote::explain(failed, &operation, directories.log(), &directories.log_path, LOG)
    })?;
    let step = || "keep init's pidfd".to_owned();
    let pidfd = match init {
        Some(pidfd) => pidfd.try_clone().step(step)?,
        None => return Err(Failure::because(step(), "criu does not name init").into()),
    };
    if let (Some(path), Some(process)) = (options.pid_file, &state.init) {
        write_pid_file(path, process.pid)?;
    }
    Ok((state, pidfd))
}

/// Namespaces that are joined and that CRIU takes as they are, under their names in the image.
fn external_namespaces(plan: &Plan) -> Result<Vec<(&'static str, OwnedFd)>, Error> {
    let mut all = Vec::new();
    for (_, file, path, fd) in plan.namespaces.joined() {
        if let Some((_, _, key)) = EXTERNAL.iter().find(|(_, name, _)| *name == file) {
            let fd = fd.try_clone_to_owned().step(|| format!("keep {path}"))?;
            all.push((*key, fd));
        } else if !JOINABLE.contains(&file) {
            let problem = format!("criu cannot restore into the {file} namespace {path}");
            return Err(Error::config("linux.namespaces", problem));
        }
    }
    Ok(all)
}

/// criu_opts, but for what is known only once CRIU runs.
fn message(
    options: &Restore<'_>,
    plan: &Plan,
    cgroups: Option<&Paths>,
    directories: &Directories,
    version: Version,
) -> Result<Message, Error> {
    let spec = &options.bundle.spec;
    let mut message = options.shared.message(spec, directories, LOG, version)?;
    message
        .flag(6, true) // a device is the same wherever its node is
        .flag(26, true); // init is to be our child
    for mount in external::restored(spec, &plan.rootfs_path, cgroups)? {
        message.bytes(37, external::bytes(&mount));
    }
    for (_, file, path, _) in plan.namespaces.joined() {
        if JOINABLE.contains(&file) {
            let mut join = Message::default();
            message.message(39, join.bytes(1, file.as_bytes()).bytes(2, path.as_bytes()));
        }
    }
    for (field, label) in [(53, &options.lsm_profile), (63, &options.lsm_mount_context)] {
        if let Some(label) = label {
            if version < Version(3, 16, 0) {
                let reason = format!("version {version} cannot change labels, 3.16 can");
                return Err(Failure::because("criu", reason).into());
            }
            message.bytes(field, label.as_bytes());
        }
    }
    Ok(message)
}

/// Where CRIU is: each controller with its cgroup. What the image has below the old container's
/// cgroup is to be below this one.
fn cgroup_roots(pid: i32) -> Result<Vec<(String, String)>, Error> {
    let path = format!("/proc/{pid}/cgroup");
    let text = std::fs::read_to_string(&path).step(|| format!("read {path}"))?;
    Ok(parse_cgroups(&text))
}

fn parse_cgroups(text: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        if let (Some(controllers), Some(path)) = (fields.next(), fields.next()) {
            all.extend(controllers.split(',').map(|name| (name.to_owned(), path.to_owned())));
        }
    }
    all
}

/// From here on `delete` finds the process, should the runtime die. Returns its pidfd.
fn record(pid: i32, dir: &ContainerDir, state: &mut State) -> Result<OwnedFd, Error> {
    let step = || format!("open process {pid}");
    let raw = Pid::from_raw(pid).ok_or_else(|| Failure::because(step(), "it is not a process"))?;
    let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::empty()).step(step)?;
    let process = Process::of(pid)?;
    dir.write_init(&process)?;
    state.init = Some(process);
    Ok(pidfd)
}

/// As at `create`: the container's namespaces are there, its processes are not.
fn run_hooks(plan: &Plan, state: &State, dir: &ContainerDir) -> Result<(), Error> {
    let input = state.hook_input(Status::Creating);
    let bell = dir.bell()?;
    let context = plan.hook_output.context(&input, Some(bell.as_fd()));
    for stage in RUNTIME_HOOKS {
        kiln_hooks::run(stage, stage.of(&plan.hooks), &context)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_controller_has_its_cgroup() {
        let text = "5:cpu,cpuacct:/a:b\n1:name=systemd:/s\n0::/u\n";
        let pairs = parse_cgroups(text);
        let names: Vec<_> = pairs.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["cpu", "cpuacct", "name=systemd", ""]);
        assert_eq!((pairs[0].1.as_str(), pairs[3].1.as_str()), ("/a:b", "/u"));
    }
}
