//! The checked plan of a container: what [`crate::bundle`] has read, in a form that holds only
//! what can be done. Everything wrong with a config is found here, before anything is created.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use kiln_hooks::Stage;
use oci_spec::runtime::{
    Hooks, Linux, LinuxPersonality, LinuxPersonalityDomain, LinuxResources, LinuxSeccomp,
    PosixRlimitType, Process, Spec,
};
use rustix::process::{Resource, Rlimit};
use rustix::thread::CapabilitySet;

use crate::annotations::{Extensions, HookOutput};
use crate::bundle::Bundle;
use crate::devices::{self, Device};
use crate::error::{Error, Step};
use crate::labels::{self, Labels};
use crate::listener::Listener;
use crate::memory_policy::MemoryPolicy;
use crate::mounts::{self, MountPlan};
use crate::namespaces::Namespaces;
use crate::net_devices::{self, NetDevice};
use crate::privilege::Privilege;
use crate::rdt;
use crate::rootless;
use crate::scheduling::Scheduling;
use crate::seccomp;
use crate::sys::CStringArray;

/// personality(2).
const PER_LINUX: u32 = 0;
const PER_LINUX32: u32 = 8;

/// What a container will be.
#[derive(Debug)]
pub struct Plan {
    /// What we may ask of the kernel.
    pub privilege: Privilege,
    /// Whether init opens the rootfs and the bind mounts' sources, because the runtime may not
    /// mount.
    pub late: bool,
    /// The namespaces, those to join opened.
    pub namespaces: Namespaces,
    /// The root directory, O_PATH.
    pub rootfs: OwnedFd,
    /// Its path on the host, for messages and the state.
    pub rootfs_path: PathBuf,
    /// root.readonly.
    pub rootfs_readonly: bool,
    /// linux.rootfsPropagation, with whether it is recursive.
    pub rootfs_propagation: Option<(u64, bool)>,
    /// In the config's order.
    pub mounts: Vec<MountPlan>,
    /// The spec's default devices and linux.devices.
    pub devices: Vec<Device>,
    /// linux.maskedPaths.
    pub masked_paths: Vec<PathBuf>,
    /// linux.readonlyPaths.
    pub readonly_paths: Vec<PathBuf>,
    /// linux.sysctl as paths below /proc/sys.
    pub sysctl: Vec<(PathBuf, String)>,
    /// hostname.
    pub hostname: Option<String>,
    /// domainname.
    pub domainname: Option<String>,
    /// linux.resources.
    pub resources: Option<LinuxResources>,
    /// hooks; checked.
    pub hooks: Hooks,
    /// Where they write to.
    pub hook_output: HookOutput,
    /// process.
    pub process: ProcessPlan,
    /// linux.seccomp, compiled.
    pub seccomp: Option<seccomp::Filter>,
    /// Who answers for SCMP_ACT_NOTIFY, where the filter has it.
    pub listener: Option<Listener>,
    /// linux.mountLabel.
    pub mount_label: Option<String>,
    /// linux.netDevices.
    pub net_devices: Vec<NetDevice>,
    /// linux.intelRdt.
    pub rdt: Option<rdt::Plan>,
}

/// The workload: what `process` asks for.
#[derive(Debug)]
pub struct ProcessPlan {
    /// At least one.
    pub args: Vec<String>,
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// Absolute.
    pub cwd: PathBuf,
    /// process.terminal.
    pub terminal: bool,
    /// process.consoleSize as rows and columns.
    pub console_size: Option<(u16, u16)>,
    /// process.user.uid.
    pub uid: u32,
    /// process.user.gid.
    pub gid: u32,
    /// process.user.additionalGids.
    pub additional_gids: Vec<u32>,
    /// Keep the supplementary groups of whoever called the runtime (crun's
    /// `run.oci.keep_original_groups`), for which `additional_gids` is not looked at.
    pub keep_groups: bool,
    /// process.user.umask.
    pub umask: Option<u32>,
    /// process.capabilities.
    pub capabilities: Capabilities,
    /// Whether the bounding set is that one already.
    pub bounded: bool,
    /// process.noNewPrivileges.
    pub no_new_privileges: bool,
    /// process.rlimits.
    pub rlimits: Vec<(Resource, Rlimit)>,
    /// process.oomScoreAdj.
    pub oom_score_adj: Option<i32>,
    /// process.scheduler and process.ioPriority.
    pub scheduling: Scheduling,
    /// linux.personality.
    pub personality: Option<u32>,
    /// process.apparmorProfile and process.selinuxLabel.
    pub labels: Labels,
    /// linux.memoryPolicy.
    pub memory_policy: Option<MemoryPolicy>,
}

/// The five capability sets; without process.capabilities all are empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "capabilities(7) has the words")]
pub struct Capabilities {
    pub bounding: CapabilitySet,
    pub effective: CapabilitySet,
    pub permitted: CapabilitySet,
    pub inheritable: CapabilitySet,
    pub ambient: CapabilitySet,
}

impl Default for Capabilities {
    fn default() -> Self {
        let none = CapabilitySet::empty();
        Self { bounding: none, effective: none, permitted: none, inheritable: none, ambient: none }
    }
}

impl Capabilities {
    /// Leaves out what this process does not have itself and so cannot grant, with a warning: "MUST
    /// be logged as a warning by the runtime. Runtimes SHOULD NOT fail" (config.md#process). In a
    /// user namespace of the container's, init has them all.
    ///
    /// # Errors
    /// Those of capget(2).
    pub fn grant_only_held(&mut self) -> Result<(), Error> {
        let held = rustix::thread::capabilities(None).step(|| "look at capabilities".to_owned())?;
        let held = held.permitted;
        let wanted = self.bounding | self.permitted | self.inheritable;
        if held.contains(wanted) {
            return Ok(());
        }
        let missing = (wanted - held).bits();
        let names: Vec<_> = numbers(missing).map(capability_name).collect();
        log::warn!("ignoring unknown or unavailable capabilities: {}", names.join(" "));
        for set in [
            &mut self.bounding,
            &mut self.effective,
            &mut self.permitted,
            &mut self.inheritable,
            &mut self.ambient,
        ] {
            *set &= held;
        }
        Ok(())
    }
}

fn numbers(bits: u64) -> impl Iterator<Item = u32> {
    (0..u64::BITS).filter(move |number| bits >> number & 1 == 1)
}

fn capability_name(number: u32) -> String {
    let known = caps::all().into_iter().find(|known| u32::from(known.index()) == number);
    known.map_or_else(|| number.to_string(), |known| known.to_string())
}

impl Plan {
    /// Checks the whole config and opens what it names on the host.
    ///
    /// # Errors
    /// The first thing that is wrong, by its field.
    pub fn new(bundle: &Bundle) -> Result<Self, Error> {
        let spec = &bundle.spec;
        check_version(spec)?;
        let linux = spec.linux().clone().unwrap_or_default();
        let process =
            spec.process().as_ref().ok_or_else(|| Error::config("process", "is needed"))?;
        let privilege = Privilege::of_caller();
        let namespaces = Namespaces::new(&linux, privilege)?;
        let hostname = named(&namespaces, "hostname", spec.hostname())?;
        let domainname = named(&namespaces, "domainname", spec.domainname())?;
        let mounts = spec.mounts().iter().flatten().enumerate();
        let mut mounts = mounts
            .map(|(index, mount)| MountPlan::new(index, mount))
            .collect::<Result<Vec<_>, _>>()?;
        let mut process = ProcessPlan::new(process, &linux)?;
        if !namespaces.has(libc::CLONE_NEWUSER) {
            process.capabilities.grant_only_held()?;
        }
        let mut extensions = Extensions::new(spec.annotations().iter().flatten())?;
        process.keep_groups = extensions.keep_groups;
        let hooks = spec.hooks().clone().unwrap_or_default();
        kiln_hooks::validate(&hooks)?;
        let net_devices = net_devices::plan(&linux, &namespaces)?;
        let sysctl = sysctl(&linux, &namespaces)?;
        let devices = devices::plan(linux.devices().as_deref().unwrap_or_default())?;
        let rootfs_propagation = match linux.rootfs_propagation().as_deref() {
            None | Some("") => None,
            Some(word) => Some(mounts::propagation(word).ok_or_else(|| {
                Error::config("linux.rootfsPropagation", format!("{word:?} is not a propagation"))
            })?),
        };
        let rootfs_path = bundle.rootfs()?;
        let rootfs = mounts::open_dir(&rootfs_path)
            .step(|| format!("root.path: open {}", rootfs_path.display()))?;
        mounts.iter_mut().for_each(|mount| mount.locate(&bundle.path, &rootfs_path));
        let (seccomp, listener) = extensions.seccomp(linux.seccomp().as_ref())?;
        let hook_output = HookOutput::open(spec.annotations().iter().flatten(), &bundle.path)?;
        let late = rootless::mounts_late(privilege, &rootfs)?;
        rootless::check(&namespaces, &mounts, &process, late)?;
        for mount in mounts.iter_mut().filter(|_| !late) {
            mount.open(&namespaces, privilege, &rootfs_path)?;
        }
        let mount_label = labels::mount_label(&linux)?;
        if let Some(label) = &mount_label {
            mounts.iter_mut().for_each(|mount| mount.label(label));
        }
        Ok(Self {
            privilege,
            late,
            namespaces,
            rootfs,
            rootfs_path,
            rootfs_readonly: spec.root().as_ref().and_then(|r| r.readonly()).unwrap_or(false),
            rootfs_propagation,
            mounts,
            devices,
            masked_paths: paths("linux.maskedPaths", linux.masked_paths().as_ref()),
            readonly_paths: paths("linux.readonlyPaths", linux.readonly_paths().as_ref()),
            sysctl,
            hostname,
            domainname,
            resources: linux.resources().clone(),
            hooks,
            hook_output,
            process,
            seccomp,
            listener,
            mount_label,
            net_devices,
            rdt: linux.intel_rdt().as_ref().map(rdt::Plan::new).transpose()?,
        })
    }
}

/// What [`Plan::new`] checks without opening anything, for the fuzz target.
#[cfg(fuzzing)]
pub fn check(spec: &Spec) -> Result<(), Error> {
    check_version(spec)?;
    let linux = spec.linux().clone().unwrap_or_default();
    let process = spec.process().as_ref().ok_or_else(|| Error::config("process", "is needed"))?;
    let namespaces = Namespaces::new(&linux, Privilege::of_caller())?;
    named(&namespaces, "hostname", spec.hostname())?;
    let mut mounts = Vec::new();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        mounts.push(MountPlan::new(index, mount)?);
    }
    let process = ProcessPlan::new(process, &linux)?;
    Extensions::new(spec.annotations().iter().flatten())?;
    kiln_hooks::validate(&spec.hooks().clone().unwrap_or_default())?;
    net_devices::plan(&linux, &namespaces)?;
    for (path, _) in sysctl(&linux, &namespaces)? {
        let inside = |part| matches!(part, std::path::Component::Normal(_));
        assert!(path.components().all(inside), "{path:?}");
    }
    devices::plan(linux.devices().as_deref().unwrap_or_default())?;
    let _ = mounts::propagation(linux.rootfs_propagation().as_deref().unwrap_or_default());
    paths("linux.maskedPaths", linux.masked_paths().as_ref());
    rootless::check(&namespaces, &mounts, &process, false)
}

/// linux.seccomp, compiled, with the agent that it needs if it notifies.
///
/// # Errors
/// The section is wrong, or there is no agent.
pub fn seccomp_filter(
    section: &LinuxSeccomp,
) -> Result<(Option<seccomp::Filter>, Option<Listener>), Error> {
    let filter = seccomp::filter(section, seccomp::Cache::system().as_ref())?;
    let listener = filter.needs_listener().then(|| Listener::new(section)).transpose()?;
    Ok((Some(filter), listener))
}

/// The hooks that the runtime runs while init waits, in their order.
pub const RUNTIME_HOOKS: [Stage; 2] = [Stage::Prestart, Stage::CreateRuntime];

impl Plan {
    /// Makes what [`Device::make_node`] is for: devices of linux.devices in a new user namespace.
    /// `dir` is the container's directory.
    ///
    /// # Errors
    /// As there.
    pub fn make_nodes(&mut self, dir: BorrowedFd<'_>) -> Result<(), Error> {
        let maps = self.namespaces.maps().filter(|_| self.privilege.is_root());
        let Some(maps) = maps else { return Ok(()) };
        let mut number = 0;
        for device in self.devices.iter_mut().filter(|device| !device.is_default) {
            if device.make_node(dir, &devices::node_name(number), maps)? {
                number += 1;
            }
        }
        Ok(())
    }

    /// Whether there are any of [`RUNTIME_HOOKS`]: runtime and init must agree on it.
    pub fn has_runtime_hooks(&self) -> bool {
        let any = |stage: &Stage| stage.of(&self.hooks).is_some_and(|hooks| !hooks.is_empty());
        RUNTIME_HOOKS.iter().any(any)
    }

    /// Whether hooks run while the container is created: that may take long.
    pub fn hooks_before_start(&self) -> bool {
        let inside = self.hooks.create_container().as_ref();
        self.has_runtime_hooks() || inside.is_some_and(|hooks| !hooks.is_empty())
    }
}

impl ProcessPlan {
    /// Checks process.
    ///
    /// # Errors
    /// The first thing that is wrong, by its field.
    pub fn new(process: &Process, linux: &Linux) -> Result<Self, Error> {
        let args = process.args().clone().filter(|args| !args.is_empty());
        let args = args.ok_or_else(|| Error::config("process.args", "must not be empty"))?;
        let cwd = process.cwd().clone();
        if !cwd.is_absolute() {
            let problem = format!("{:?} is not absolute", cwd.display().to_string());
            return Err(Error::config("process.cwd", problem));
        }
        let user = process.user();
        let more = user.additional_gids().iter().flatten().map(|&gid| ("additionalGids", gid));
        for (field, id) in [("uid", user.uid()), ("gid", user.gid())].into_iter().chain(more) {
            // (uid_t)-1 means "leave it" to setresuid(2): the process would stay root.
            if id == u32::MAX {
                return Err(Error::config(format!("process.user.{field}"), "is not an id"));
            }
        }
        let plan = Self {
            args,
            env: last_of_each(process.env().clone().unwrap_or_default()),
            cwd,
            terminal: process.terminal().unwrap_or(false),
            console_size: process.console_size().map(|size| {
                let clamp = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
                (clamp(size.height()), clamp(size.width()))
            }),
            uid: user.uid(),
            gid: user.gid(),
            additional_gids: user.additional_gids().clone().unwrap_or_default(),
            keep_groups: false,
            bounded: false,
            umask: user.umask(),
            capabilities: process
                .capabilities()
                .as_ref()
                .map_or_else(Default::default, capabilities),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            rlimits: rlimits(process)?,
            oom_score_adj: process.oom_score_adj(),
            scheduling: Scheduling::new(process)?,
            personality: linux.personality().as_ref().map(personality),
            labels: Labels::new(process)?,
            memory_policy: MemoryPolicy::new(linux)?,
        };
        plan.c_strings()?;
        if let Some(score) = plan.oom_score_adj.filter(|score| !(-1000..=1000).contains(score)) {
            let problem = format!("{score} is not between -1000 and 1000");
            return Err(Error::config("process.oomScoreAdj", problem));
        }
        Ok(plan)
    }

    /// Arguments and environment for execve(2).
    ///
    /// # Errors
    /// One of them has a NUL byte in it.
    pub fn c_strings(&self) -> Result<(CStringArray, CStringArray), Error> {
        let convert = |field: &str, strings: &[String]| {
            let strings = strings.iter().enumerate().map(|(index, string)| {
                CString::new(string.as_bytes())
                    .map_err(|_| Error::config(format!("{field}[{index}]"), "has a NUL byte"))
            });
            Ok::<_, Error>(CStringArray::new(strings.collect::<Result<_, _>>()?))
        };
        Ok((convert("process.args", &self.args)?, convert("process.env", &self.env)?))
    }

    /// The value of a variable in `env`.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.env.iter().rev().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
    }
}

fn personality(personality: &LinuxPersonality) -> u32 {
    if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        // "Currently no flag values are supported" (config-linux.md#personality).
        log::warn!("ignoring linux.personality.flags: the spec has none");
    }
    match personality.domain() {
        LinuxPersonalityDomain::PerLinux => PER_LINUX,
        LinuxPersonalityDomain::PerLinux32 => PER_LINUX32,
    }
}

/// Of variables with one name the last, as runc has it: getenv(3) would find the first.
fn last_of_each(mut env: Vec<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    env.reverse();
    env.retain(|entry| seen.insert(entry.split('=').next().unwrap_or_default().to_owned()));
    env.reverse();
    env
}

/// ociVersion: SemVer; kiln implements 1.x.
fn check_version(spec: &Spec) -> Result<(), Error> {
    let version = spec.version();
    let mut numbers = version.split(['-', '+']).next().unwrap_or_default().split('.');
    let mut number = || numbers.next().and_then(|n| n.parse::<u32>().ok());
    match (number(), number(), number()) {
        (Some(1), Some(_), Some(_)) => Ok(()),
        (Some(_), Some(_), Some(_)) => {
            Err(Error::config("ociVersion", format!("{version} is not supported, 1.x is")))
        }
        _ => Err(Error::config("ociVersion", format!("{version:?} is not a version"))),
    }
}

/// hostname and domainname belong to the uts namespace; without one they would be the host's.
fn named(
    namespaces: &Namespaces,
    field: &str,
    name: &Option<String>,
) -> Result<Option<String>, Error> {
    let name = name.clone().filter(|name| !name.is_empty());
    match &name {
        Some(_) if !namespaces.has(libc::CLONE_NEWUTS) => {
            Err(Error::config(field, "needs a uts namespace in linux.namespaces"))
        }
        Some(name) if name.len() > 64 => Err(Error::config(field, "is longer than 64 bytes")),
        _ => Ok(name),
    }
}

/// sysctl(8) keys as paths below /proc/sys, only those that belong to a namespace of the
/// container's: the others are the host's.
fn sysctl(linux: &Linux, namespaces: &Namespaces) -> Result<Vec<(PathBuf, String)>, Error> {
    const IPC: [&str; 8] =
        ["msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"];
    let mut plan = Vec::new();
    for (key, value) in linux.sysctl().iter().flatten() {
        let field = format!("linux.sysctl.{key}");
        // Like sysctl(8): with a slash before any dot, slashes separate and dots are literal.
        let slashes = key.find('/') < key.find('.') && key.contains('/') || !key.contains('.');
        let path: String = match slashes {
            true => key.clone(),
            false => key
                .chars()
                .map(|c| match c {
                    '.' => '/',
                    '/' => '.',
                    c => c,
                })
                .collect(),
        };
        let mut names = path.split('/');
        if path.split('/').any(|name| matches!(name, "" | "." | "..")) {
            return Err(Error::config(field, "is not a sysctl"));
        }
        let (needed, flag) = match (names.next(), names.next()) {
            (Some("net"), _) => ("network", libc::CLONE_NEWNET),
            (Some("fs"), Some("mqueue")) => ("ipc", libc::CLONE_NEWIPC),
            (Some("kernel"), Some("hostname")) => {
                return Err(Error::config(field, "is not for sysctl: hostname sets it"));
            }
            (Some("kernel"), Some("domainname")) => ("uts", libc::CLONE_NEWUTS),
            (Some("kernel"), Some(name)) if IPC.contains(&name) => ("ipc", libc::CLONE_NEWIPC),
            (Some("user"), _) => ("user", libc::CLONE_NEWUSER),
            _ => {
                return Err(Error::config(field, "is not namespaced: it would be the host's"));
            }
        };
        if !namespaces.has(flag) {
            let problem = format!("needs a {needed} namespace, else it would be the host's");
            return Err(Error::config(field, problem));
        }
        plan.push((PathBuf::from(path), value.clone()));
    }
    Ok(plan)
}

/// Paths to hide or to make read-only. An empty one is none: runc, which takes it for a file that
/// is not there, hides nothing either.
fn paths(field: &str, paths: Option<&Vec<String>>) -> Vec<PathBuf> {
    let paths = paths.into_iter().flatten().enumerate().filter(|(_, path)| !path.is_empty());
    let from_root =
        |(index, path)| mounts::from_root(Path::new(path), || format!("{field}[{index}]"));
    paths.map(from_root).collect()
}

fn capabilities(config: &oci_spec::runtime::LinuxCapabilities) -> Capabilities {
    let set = |capabilities: &Option<oci_spec::runtime::Capabilities>| {
        let bits = capabilities.iter().flatten().map(|capability| {
            // oci-spec and caps name them alike; caps knows their numbers.
            let name = format!("CAP_{capability}");
            name.parse::<caps::Capability>().map_or(0, |capability| 1_u64 << capability.index())
        });
        CapabilitySet::from_bits_retain(bits.fold(0, |all, bit| all | bit))
    };
    let ambient = set(config.ambient());
    let (permitted, inheritable) = (set(config.permitted()), set(config.inheritable()));
    // capabilities(7): an ambient capability must be permitted and inheritable.
    let cannot = ambient - (permitted & inheritable);
    if !cannot.is_empty() {
        // One line: Buildah asks for all that it gives, none of them inheritable, with every RUN.
        let names: Vec<_> = numbers(cannot.bits()).map(capability_name).collect();
        let names = names.join(", ");
        log::warn!("can't raise ambient capabilities {names}: not permitted and inheritable");
    }
    Capabilities {
        bounding: set(config.bounding()),
        effective: set(config.effective()),
        permitted,
        inheritable,
        ambient: ambient & permitted & inheritable,
    }
}

fn rlimits(process: &Process) -> Result<Vec<(Resource, Rlimit)>, Error> {
    let mut plan: Vec<(Resource, Rlimit)> = Vec::new();
    for (index, limit) in process.rlimits().iter().flatten().enumerate() {
        let resource = match limit.typ() {
            PosixRlimitType::RlimitCpu => Resource::Cpu,
            PosixRlimitType::RlimitFsize => Resource::Fsize,
            PosixRlimitType::RlimitData => Resource::Data,
            PosixRlimitType::RlimitStack => Resource::Stack,
            PosixRlimitType::RlimitCore => Resource::Core,
            PosixRlimitType::RlimitRss => Resource::Rss,
            PosixRlimitType::RlimitNproc => Resource::Nproc,
            PosixRlimitType::RlimitNofile => Resource::Nofile,
            PosixRlimitType::RlimitMemlock => Resource::Memlock,
            PosixRlimitType::RlimitAs => Resource::As,
            PosixRlimitType::RlimitLocks => Resource::Locks,
            PosixRlimitType::RlimitSigpending => Resource::Sigpending,
            PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
            PosixRlimitType::RlimitNice => Resource::Nice,
            PosixRlimitType::RlimitRtprio => Resource::Rtprio,
            PosixRlimitType::RlimitRttime => Resource::Rttime,
        };
        if plan.iter().any(|(other, _)| *other == resource) {
            let field = format!("process.rlimits[{index}].type");
            return Err(Error::config(field, format!("{} stands there twice", limit.typ())));
        }
        if limit.soft() > limit.hard() {
            let field = format!("process.rlimits[{index}].soft");
            return Err(Error::config(field, "is greater than hard"));
        }
        let value = |n: u64| (n != libc::RLIM_INFINITY).then_some(n);
        let limit = Rlimit { current: value(limit.soft()), maximum: value(limit.hard()) };
        plan.push((resource, limit));
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(json: &str) -> Result<ProcessPlan, Error> {
        ProcessPlan::new(&serde_json::from_str(json).unwrap(), &Linux::default())
    }

    fn problem(fields: &str) -> String {
        let json = format!(r#"{{"user":{{"uid":0,"gid":0}},"cwd":"/",{fields}}}"#);
        process(&json).unwrap_err().to_string()
    }

    #[test]
    fn wrong_processes_are_named() {
        assert_eq!(problem(r#""args":[]"#), "process.args: must not be empty");
        assert_eq!(problem(r#""args":["a","b\u0000"]"#), "process.args[1]: has a NUL byte");
        assert!(problem(r#""args":["a"],"oomScoreAdj":1001"#).starts_with("process.oomScoreAdj"));
        let twice = r#""args":["a"],"rlimits":[{"type":"RLIMIT_CPU","hard":1,"soft":1},
            {"type":"RLIMIT_CPU","hard":1,"soft":1}]"#;
        assert!(problem(twice).starts_with("process.rlimits[1].type"));
        let root = r#"{"user":{"uid":4294967295,"gid":0},"cwd":"/","args":["a"]}"#;
        assert!(process(root).unwrap_err().to_string().starts_with("process.user.uid"));
        let cwd = r#"{"user":{"uid":0,"gid":0},"cwd":"tmp","args":["a"]}"#;
        assert_eq!(process(cwd).unwrap_err().to_string(), "process.cwd: \"tmp\" is not absolute");
    }

    #[test]
    fn capabilities_become_bits() {
        let plan = process(
            r#"{"user":{"uid":0,"gid":0},"cwd":"/","args":["a"],"capabilities":{
                "bounding":["CAP_CHOWN","CAP_CHECKPOINT_RESTORE"],"permitted":["CAP_KILL"],
                "inheritable":["CAP_KILL"],"ambient":["CAP_KILL","CAP_CHOWN"]}}"#,
        )
        .unwrap();
        let sets = plan.capabilities;
        assert_eq!(sets.bounding.bits(), 1 | 1 << 40);
        assert_eq!((sets.permitted.bits(), sets.ambient.bits()), (1 << 5, 1 << 5));
        assert_eq!(sets.effective.bits(), 0);
    }

    #[test]
    fn only_the_containers_own_sysctls() {
        let sysctl = |key: &str, namespaces: &str| {
            let linux: Linux = serde_json::from_str(&format!(
                r#"{{"sysctl":{{"{key}":"1"}},"namespaces":[{{"type":"mount"}}{namespaces}]}}"#
            ))
            .unwrap();
            super::sysctl(&linux, &Namespaces::new(&linux, Privilege::Root).unwrap())
        };
        let net = r#",{"type":"network"}"#;
        assert_eq!(
            sysctl("net.ipv4.ip_forward", net).unwrap()[0].0,
            Path::new("net/ipv4/ip_forward")
        );
        let dotted = sysctl("net/ipv4/conf/eth0.1/forwarding", net).unwrap();
        assert_eq!(dotted[0].0, Path::new("net/ipv4/conf/eth0.1/forwarding"));
        for (key, namespaces) in [
            ("net.ipv4.ip_forward", ""),
            ("kernel.panic", net),
            ("net...x", net),
            ("net/../kernel/panic", net),
            ("vm.overcommit_memory", net),
        ] {
            assert!(sysctl(key, namespaces).is_err(), "{key}");
        }
    }

    #[test]
    fn versions() {
        let check = |version: &str| {
            let json = format!(r#"{{"ociVersion":"{version}"}}"#);
            check_version(&serde_json::from_str(&json).unwrap())
        };
        for good in ["1.0.0", "1.3.0", "1.0.2-dev", "1.1.0-rc.1"] {
            check(good).unwrap();
        }
        for bad in ["", "2.0.0", "0.9.0", "1", "1.x.0", "latest"] {
            assert!(check(bad).unwrap_err().to_string().starts_with("ociVersion"), "{bad}");
        }
    }
}
