//! The options before the subcommand.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use kiln_runtime::Error;
use kiln_runtime::id::ContainerId;
use kiln_runtime::placement::Driver;
use kiln_runtime::privilege::Privilege;
use kiln_runtime::state::{ContainerDir, StateRoot};
use oci_spec::runtime::Process;

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// time="..." level=... msg="..."
    Text,
    /// One object a line: level, msg, time
    Json,
}

/// Whether cgroup failures are forgiven because we are not root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rootless {
    /// Look
    Auto,
    /// Yes
    True,
    /// No
    False,
}

/// Who manages the cgroups, as crun has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CgroupManager {
    /// This runtime
    Cgroupfs,
    /// systemd, as with --systemd-cgroup
    Systemd,
    /// Nobody: the container stays in the caller's cgroups, without limits
    Disabled,
}

#[derive(Args, Debug)]
pub struct Global {
    /// Directory for the containers' state [default: /run/kiln, or $XDG_RUNTIME_DIR/kiln]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// File that the log is appended to [default: stderr]
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Format of the log
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Log every step
    #[arg(long)]
    pub debug: bool,
    /// Let systemd manage the cgroups: cgroupsPath is slice:prefix:name
    #[arg(long)]
    systemd_cgroup: bool,
    /// Who manages the cgroups [default: cgroupfs]
    #[arg(long, value_name = "MANAGER")]
    cgroup_manager: Option<CgroupManager>,
    /// Run without root's privileges
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    rootless: Rootless,
    /// Ignored: criu is found along PATH
    #[arg(long, value_name = "PATH", hide = true)]
    criu: Option<PathBuf>,
}

impl Global {
    /// Refuses what is not there yet rather than doing something else.
    pub fn check(&self) -> Result<()> {
        self.driver().map(drop)
    }

    /// Who makes a new container's cgroups; those that there are remember theirs.
    pub fn driver(&self) -> Result<Driver> {
        match (self.systemd_cgroup, self.cgroup_manager) {
            (false, None | Some(CgroupManager::Cgroupfs)) => Ok(Driver::Cgroupfs),
            (true, None) | (_, Some(CgroupManager::Systemd)) => Ok(Driver::Systemd),
            (false, Some(CgroupManager::Disabled)) => Ok(Driver::Disabled),
            (true, Some(_)) => bail!("--systemd-cgroup contradicts --cgroup-manager"),
        }
    }

    /// The state root's path.
    pub fn root(&self) -> PathBuf {
        if let Some(root) = &self.root {
            return root.clone();
        }
        match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
            Some(dir) if has_runtime_dir() => PathBuf::from(dir).join("kiln"),
            _ => PathBuf::from("/run/kiln"),
        }
    }

    /// Whether missing permission for cgroups is forgiven.
    pub fn rootless(&self) -> kiln_runtime::rootless::Rootless {
        use kiln_runtime::rootless::Rootless as Forgiven;
        match self.rootless {
            Rootless::Auto => Forgiven::Auto,
            Rootless::True => Forgiven::True,
            Rootless::False => Forgiven::False,
        }
    }

    /// The state root if there is one.
    pub fn open_root(&self) -> Result<Option<StateRoot>> {
        Ok(StateRoot::open(&self.root())?)
    }

    /// An existing container.
    pub fn find(&self, id: &str) -> Result<(StateRoot, ContainerDir)> {
        let id: ContainerId = id.parse()?;
        let root = self.open_root()?.ok_or_else(|| Error::NotFound(id.to_string()))?;
        let container = root.find(&id)?;
        Ok((root, container))
    }
}

/// Whether XDG_RUNTIME_DIR is where a caller like us keeps state: runc's rule. Root of a user
/// namespace that a user has made is still that user, unless USER says otherwise.
fn has_runtime_dir() -> bool {
    match Privilege::of_caller() {
        Privilege::Root => false,
        Privilege::User => true,
        Privilege::NestedRoot => std::env::var_os("USER").is_none_or(|user| user != "root"),
    }
}

// What `create` and `run` share. Not a doc comment: clap would make it the about of both.
#[derive(Args, Debug)]
pub struct NewContainer {
    /// Path to the root of the bundle directory
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// The config to use instead of the bundle's config.json
    #[arg(short = 'f', long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Socket that receives the terminal's master
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// File that the process id is written to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Socket that receives the pidfd of the container's process
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// Do not use pivot_root (for a root on a ramdisk)
    #[arg(long)]
    pub no_pivot: bool,
    /// Do not make a session keyring for the container
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Pass N more descriptors, from 3 on, to the container
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Name of the container, unique on this machine
    #[arg(value_name = "ID")]
    pub id: String,
}

impl NewContainer {
    /// How many descriptors the container gets beyond stdio.
    pub fn descriptors(&self) -> Result<u32> {
        descriptors(self.preserve_fds)
    }
}

/// The descriptors asked for and those of LISTEN_FDS, as for runc.
pub fn descriptors(preserve: u32) -> Result<u32> {
    preserve.checked_add(listen_fds()?).context("--preserve-fds: too many")
}

/// How many sockets a service manager hands over (sd_listen_fds(3)).
fn listen_fds() -> Result<u32> {
    match std::env::var("LISTEN_FDS") {
        Ok(count) if !count.is_empty() => {
            count.parse().with_context(|| format!("LISTEN_FDS={count:?}"))
        }
        _ => Ok(0),
    }
}

/// Tells a process in a container of these sockets, as runc and crun do: it is the first process
/// there.
pub fn announce_sockets(process: Option<&mut Process>) -> Result<()> {
    let count = listen_fds()?;
    if let Some(process) = process.filter(|_| count > 0) {
        let env = process.env_mut().get_or_insert_default();
        env.extend([format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()]);
    }
    Ok(())
}
