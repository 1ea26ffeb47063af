//! `checkpoint` and `restore`: a container's processes written to files by CRIU, and back. Not in
//! the runtime-spec; as runc has them.
//!
//! Owns what CRIU has to be told of a container: what of it is not its own, where its cgroups are,
//! who its streams are. CRIU itself is a program, spoken to over its RPC ([`criu`]); none of it is
//! linked. Needs CRIU 3.15.

mod criu;
mod external;
mod mount_space;
mod options;
mod quote;
mod restore;
mod stdio;
mod wire;

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kiln_cgroups::{Cgroup, Hierarchy, Paths};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

pub use options::{CgroupsMode, Shared};
pub use restore::{Restore, restore};

use crate::delete;
use crate::error::{Error, Failure, Step};
use crate::kill;
use crate::mount_table::MountTable;
use crate::process::Process;
use crate::state::{ContainerDir, State, StateRoot, Status};
use criu::{Criu, Kind, Version};
use options::Directories;
use wire::Message;

const LOG: &str = "dump.log";

/// What `checkpoint` is asked for.
#[derive(Debug, Default)]
pub struct Checkpoint {
    /// What `restore` is asked for, too.
    pub shared: Shared,
    /// Images of an earlier pre-dump, relative to the new ones.
    pub parent_path: Option<PathBuf>,
    /// The container goes on.
    pub leave_running: bool,
    /// Only memory is written, and the container goes on.
    pub pre_dump: bool,
    /// Connections that are being made are left out.
    pub tcp_skip_in_flight: bool,
    /// Deleted files that are open get a name again.
    pub link_remap: bool,
    /// Where pages are sent to instead of the image: address and port.
    pub page_server: Option<(String, u16)>,
    /// Gets a NUL byte once lazy pages are served.
    pub status_fd: Option<OwnedFd>,
}

/// Writes a running container to files. Afterwards it is deleted, unless it is to go on.
///
/// # Errors
/// The container is not running, CRIU is missing or refuses; the container goes on then. The error
/// quotes CRIU's log and names it.
pub fn checkpoint(
    root: &StateRoot,
    dir: &ContainerDir,
    mut options: Checkpoint,
) -> Result<(), Error> {
    dir.lock()?;
    let found = dir.read_with_config()?;
    let (state, spec) = found.ok_or_else(|| Error::NotFound(dir.id().to_string()))?;
    let init = running(dir, &state)?;
    let directories = Directories::open(&options.shared, true)?;
    check_parent(&options)?;
    let mut criu = Criu::spawn(criu::Streams::Null, &[])?;
    let version = criu.version()?;
    log::debug!("container {}: checkpoint by criu {version}", state.id);
    criu.need_features(options.pre_dump, options.shared.lazy_pages)?;
    let message = message(&options, &state, &init, &spec, &directories, version)?;
    let kind = if options.pre_dump { Kind::PreDump } else { Kind::Dump };
    let dumped = criu.request(kind, &message, |notification| {
        match (notification.script.as_str(), options.status_fd.take()) {
            ("status-ready", Some(fd)) => ready(fd),
            (_, fd) => {
                options.status_fd = fd;
                Ok(())
            }
        }
    });
    dumped.map_err(|failed| {
        let operation = format!("checkpoint container {}", state.id);
        quote::explain(failed, &operation, directories.log(), &directories.log_path, LOG)
    })?;
    if options.leave_running || options.pre_dump {
        return Ok(());
    }
    end(root, dir, &state, &init)
}

/// Init of a container that can be checkpointed.
fn running(dir: &ContainerDir, state: &State) -> Result<Process, Error> {
    let id = dir.id().to_string();
    match (dir.status(state), &state.init) {
        (Status::Running | Status::Paused, Some(init)) if !state.engine => Ok(init.clone()),
        (Status::Running | Status::Paused, Some(_)) => {
            let reason = "its engine's code lies outside of the container, where CRIU does not \
                          reach";
            Err(Failure::because(format!("checkpoint wasm container {id}"), reason).into())
        }
        (status, _) => Err(Error::Status { id, operation: "checkpoint", status }),
    }
}

fn check_parent(options: &Checkpoint) -> Result<(), Error> {
    let Some(parent) = &options.parent_path else { return Ok(()) };
    let wrong = |problem| Error::config("--parent-path", problem);
    if parent.is_absolute() {
        return Err(wrong(format!("{} must be relative to --image-path", parent.display())));
    }
    let path = options.shared.image_path.join(parent);
    match path.metadata() {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(wrong(format!("{} is not a directory", path.display()))),
        Err(error) => Err(error).step(|| format!("--parent-path: {}", path.display())),
    }
}

fn message(
    options: &Checkpoint,
    state: &State,
    init: &Process,
    spec: &Spec,
    directories: &Directories,
    version: Version,
) -> Result<Message, Error> {
    let mut message = options.shared.message(spec, directories, LOG, version)?;
    message
        .int(2, init.pid)
        .flag(3, options.leave_running)
        .bytes(13, state.rootfs.as_os_str().as_bytes())
        .flag(18, options.link_remap)
        .flag(46, options.tcp_skip_in_flight);
    if let Some((address, port)) = &options.page_server {
        let mut server = Message::default();
        server.bytes(1, address.as_bytes()).int(2, (*port).into());
        message.message(11, &server);
    }
    if let Some(parent) = &options.parent_path {
        message.bytes(14, parent.as_os_str().as_bytes()).flag(15, true);
    }
    if let Some(path) = state.cgroup.as_ref().and_then(freezer) {
        message.bytes(44, path.as_os_str().as_bytes());
    }
    for name in joined_namespaces(spec, init.pid)? {
        message.bytes(37, name.as_bytes());
    }
    if !options.pre_dump {
        let table = MountTable::of(&init.pid.to_string())?;
        let cgroups = state.cgroup.as_ref();
        for mount in external::dumped(spec, &state.rootfs, cgroups, init.pid, &table)? {
            message.bytes(37, external::bytes(&mount));
        }
        let streams = stdio::Streams::of(init.pid, &table);
        for name in &streams.external {
            message.bytes(37, name.as_bytes());
        }
        streams.write(&directories.images)?;
    }
    Ok(message)
}

/// The cgroup by which CRIU stops all of the container's processes at once.
fn freezer(paths: &Paths) -> Option<PathBuf> {
    let has = |hierarchy: &&Hierarchy| hierarchy.controllers().iter().any(|name| name == "freezer");
    let v1 = paths.hierarchies().iter().find(|hierarchy| !hierarchy.is_v2() && has(hierarchy));
    let unified = || paths.hierarchies().iter().find(|hierarchy| hierarchy.is_v2());
    v1.or_else(unified).map(Hierarchy::full_path)
}

/// The kinds of namespaces that CRIU leaves out where they are joined: as in /proc/PID/ns, with the
/// names that runc gives them in an image.
const EXTERNAL: [(LinuxNamespaceType, &str, &str); 2] = [
    (LinuxNamespaceType::Network, "net", "extRootNetNS"),
    (LinuxNamespaceType::Pid, "pid", "extRootPidNS"),
];

/// `net[INODE]:NAME` for each namespace that the config joins and that is not the runtime's own.
fn joined_namespaces(spec: &Spec, pid: i32) -> Result<Vec<String>, Error> {
    let inode = |pid: &str, file| {
        let path = format!("/proc/{pid}/ns/{file}");
        Path::new(&path).metadata().step(|| format!("stat {path}")).map(|found| found.ino())
    };
    let linux = spec.linux().as_ref();
    let listed = linux.and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let mut names = Vec::new();
    for (kind, file, key) in EXTERNAL {
        let joined = listed.iter().any(|namespace| {
            namespace.typ() == kind
                && namespace.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty())
        });
        if joined {
            let inode_of_init = inode(&pid.to_string(), file)?;
            if inode_of_init != inode("self", file)? {
                names.push(format!("{file}[{inode_of_init}]:{key}"));
            }
        }
    }
    Ok(names)
}

/// Says that lazy pages are served, and that no more will be said.
fn ready(fd: OwnedFd) -> Result<(), Error> {
    File::from(fd).write_all(&[0]).step(|| "write to --status-fd".to_owned())
}

/// CRIU has killed the processes; what else there is goes as by `delete`.
fn end(root: &StateRoot, dir: &ContainerDir, state: &State, init: &Process) -> Result<(), Error> {
    let cgroup = state.cgroup.as_ref().map(Cgroup::open).transpose()?;
    if let Some(cgroup) = &cgroup {
        // What was paused is so still, and ends only when it goes on.
        cgroup.kill()?;
    }
    kill::end_init(init, cgroup.as_ref())?;
    delete::remove(root, dir, state, cgroup.as_ref())
}
