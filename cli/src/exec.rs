//! `kiln exec`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use kiln_cgroups::Below;
use kiln_runtime::create::Console;
use kiln_runtime::engine::Engine;
use kiln_runtime::exec::{self, Options, Target};
use kiln_runtime::order::spec_for_exec;
use kiln_runtime::{sys, wait};
use oci_spec::runtime::{Capability, LinuxCapabilities, Process};
use rustix::fs::MemfdFlags;

use crate::create::connect;
use crate::global::{Global, announce_sockets, descriptors};
use crate::handover;
use crate::terminal::{Terminal, adopt_size};

/// runc's exit status for what it could not execute.
pub const FAILED: u8 = 255;
/// A process file is a few KiB; nothing that large is one.
const MAX_PROCESS: u64 = 16 << 20;

#[derive(Args, Debug)]
pub struct Exec {
    /// File with the process as JSON; the flags that describe one do not count then
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// What that file says, where it had to be read early.
    #[arg(skip)]
    process_json: Option<Vec<u8>>,
    /// User and group by number [default: the container's]
    #[arg(short, long, value_name = "UID[:GID]", allow_hyphen_values = true)]
    user: Option<String>,
    /// Further group, by number; repeatable
    #[arg(short = 'g', long, value_name = "GID", allow_hyphen_values = true)]
    #[arg(value_delimiter = ',')]
    additional_gids: Vec<String>,
    /// Working directory [default: the container's]
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Environment variable on top of the container's; repeatable
    #[arg(short, long, value_name = "NAME=VALUE", allow_hyphen_values = true)]
    env: Vec<String>,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Capability on top of the container's; repeatable
    #[arg(short, long, value_name = "CAP", value_delimiter = ',')]
    cap: Vec<String>,
    /// Keep it from gaining privileges by executing a program
    #[arg(long)]
    no_new_privs: bool,
    /// SELinux label
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// Do not wait for its end
    #[arg(short, long)]
    detach: bool,
    /// File that its process id is written to
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Socket that receives the terminal's master
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Socket that receives its pidfd
    #[arg(long, value_name = "SOCKET")]
    pidfd_socket: Option<PathBuf>,
    /// Pass N more descriptors, from 3 on, to it
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// Cgroup below the container's; with controllers, for cgroup v1, repeatable
    #[arg(long, value_name = "[CONTROLLER,...:]PATH")]
    cgroup: Vec<String>,
    /// Also in a paused container, where it waits until that is resumed
    #[arg(long)]
    ignore_paused: bool,
    /// Ignored: exec does not become a subreaper
    #[arg(long, hide = true)]
    no_subreaper: bool,
    /// Name of the container
    #[arg(value_name = "ID")]
    id: String,
    /// Program and arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: Option<u32>,
}

impl Exec {
    /// How many descriptors it gets beyond stdio.
    pub fn descriptors(&self) -> Result<u32> {
        descriptors(self.preserve_fds)
    }

    /// Reads a process file that is one of the caller's descriptors, as in
    /// `--process <(printf ...)`: those are closed before anything else is done.
    pub fn read_descriptor(&mut self) -> Result<()> {
        let given = |path: &&PathBuf| ["/dev/fd", "/proc/self/fd"].map(|dir| path.starts_with(dir));
        if let Some(path) = self.process.as_ref().filter(|path| given(path).contains(&true)) {
            self.process_json = Some(read(path)?);
        }
        Ok(())
    }

    /// Leaves under the descriptor's number what was read from it, now that it is closed: this
    /// executable may be replaced by a copy of it, or by the engine's, which read it again.
    pub fn keep_descriptor(&self) -> Result<()> {
        let (Some(path), Some(json)) = (&self.process, &self.process_json) else { return Ok(()) };
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        let Some(number) = number.filter(|number| *number > 2) else { return Ok(()) };
        let keep = || {
            let memory = rustix::fs::memfd_create("process", MemfdFlags::CLOEXEC)?;
            File::from(memory.try_clone()?).write_all(json)?;
            match sys::leave_open(memory.as_fd(), number) {
                // Preserved for the program, so still the caller's.
                Err(rustix::io::Errno::BUSY) => Ok(()),
                kept => Ok::<_, std::io::Error>(kept?),
            }
        };
        keep().with_context(|| name(path))
    }

    pub fn execute(self, global: &Global, engine: Option<Box<dyn Engine>>) -> Result<ExitCode> {
        self.run(global, engine).context("exec failed")
    }

    fn run(self, global: &Global, engine: Option<Box<dyn Engine>>) -> Result<ExitCode> {
        let cgroup = Below::parse(&self.cgroup)?;
        let (root, container) = global.find(&self.id)?;
        drop(root);
        let target = Target::open(container, self.ignore_paused)?;
        let mut process = self.described(target.process()?)?;
        announce_sockets(Some(&mut process))?;
        let engine = self.engine(&target, &process, engine)?;
        let socket = self.console_socket.as_deref().map(connect).transpose()?;
        let mut console = socket.map(Console::of_caller);
        let wanted = process.terminal().unwrap_or(false) && console.is_none() && !self.detach;
        if wanted {
            adopt_size(&mut process);
        }
        let terminal = wanted.then(|| Terminal::open(&mut console)).transpose()?;
        if !self.detach {
            wait::block_signals();
        }
        let executed = exec::exec(
            target,
            Options {
                process: &process,
                cgroup,
                pid_file: self.pid_file.as_deref(),
                pidfd_socket: self.pidfd_socket.as_deref().map(connect).transpose()?,
                console,
                preserve_fds: self.descriptors()?,
                engine,
                confirm: self.detach || terminal.is_some(),
            },
        )?;
        if self.detach {
            return Ok(ExitCode::SUCCESS);
        }
        let status = match terminal {
            Some(terminal) => terminal.serve(&executed)?,
            None => wait::wait(&executed, || {})?,
        };
        match u8::try_from(status) {
            Ok(code) => Ok(ExitCode::from(code)),
            Err(_) => bail!("the process ended with status {status}"),
        }
    }

    fn engine(
        &self,
        target: &Target,
        process: &Process,
        engine: Option<Box<dyn Engine>>,
    ) -> Result<Option<Box<dyn Engine>>> {
        if !kiln_wasm::detect::may_be_wasm(target.config()) {
            return Ok(None);
        }
        let root = target.root()?;
        let spec = spec_for_exec(target, process);
        let Some(mut engine) = handover::engine_for_exec(&spec, root.as_fd(), engine)? else {
            return Ok(None);
        };
        engine.prepare(&spec, root.as_fd(), false).with_context(|| engine.name())?;
        Ok(Some(engine))
    }

    /// The process that the file or the flags describe.
    fn described(&self, container: &Process) -> Result<Process> {
        if let Some(path) = &self.process {
            let json = self.process_json.clone().map_or_else(|| read(path), Ok)?;
            let json = kiln_runtime::lenient::from_slice(&json).with_context(|| name(path))?;
            let mut process = exec::process::complete(json, container);
            if self.tty {
                process.set_terminal(Some(true));
            }
            return Ok(process);
        }
        let mut process = container.clone();
        process.set_args(Some(strings(&self.command)?)).set_terminal(Some(self.tty));
        if process.args().as_ref().is_none_or(Vec::is_empty) {
            bail!("process.args: must not be empty");
        }
        if let Some(cwd) = &self.cwd {
            process.set_cwd(cwd.clone());
        }
        process.env_mut().get_or_insert_default().extend(self.env.iter().cloned());
        let user = process.user_mut();
        if let Some(text) = &self.user {
            let User { uid, gid } = self::user(text).context("--user")?;
            let gid = gid.unwrap_or(user.gid());
            user.set_uid(uid).set_gid(gid);
        }
        for text in &self.additional_gids {
            let gid = id(text).context("--additional-gids")?;
            user.additional_gids_mut().get_or_insert_default().push(gid);
        }
        if !self.cap.is_empty() {
            let more: Vec<_> = self.cap.iter().filter_map(|name| capability(name)).collect();
            process.set_capabilities(Some(with(process.capabilities(), &more)));
        }
        if self.no_new_privs {
            process.set_no_new_privileges(Some(true));
        }
        if let Some(label) = &self.process_label {
            process.set_selinux_label(Some(label.clone()));
        }
        if let Some(profile) = &self.apparmor {
            process.set_apparmor_profile(Some(profile.clone()));
        }
        Ok(process)
    }
}

fn strings(words: &[OsString]) -> Result<Vec<String>> {
    let text = |word: &OsString| word.to_str().map(str::to_owned);
    words.iter().map(text).collect::<Option<_>>().context("process.args: is not UTF-8")
}

/// Not to the inheritable set (CVE-2022-29162); to the ambient one what is inheritable already, as
/// runc has it.
fn with(sets: &Option<LinuxCapabilities>, more: &[Capability]) -> LinuxCapabilities {
    let none = || {
        let mut none = LinuxCapabilities::default();
        none.set_bounding(None).set_effective(None).set_permitted(None);
        none.set_inheritable(None).set_ambient(None);
        none
    };
    let mut sets = sets.clone().unwrap_or_else(none);
    let extended = |set: &Option<oci_spec::runtime::Capabilities>| {
        let mut set = set.clone().unwrap_or_default();
        set.extend(more);
        Some(set)
    };
    let (bounding, effective) = (extended(sets.bounding()), extended(sets.effective()));
    let permitted = extended(sets.permitted());
    if let Some(inheritable) = sets.inheritable().clone() {
        let both = more.iter().copied().filter(|capability| inheritable.contains(capability));
        let mut ambient = sets.ambient().clone().unwrap_or_default();
        ambient.extend(both);
        sets.set_ambient(Some(ambient));
    }
    sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    sets
}

/// Reads the process file.
fn read(path: &Path) -> Result<Vec<u8>> {
    let read = || {
        let mut json = Vec::new();
        File::open(path)?.take(MAX_PROCESS + 1).read_to_end(&mut json)?;
        Ok::<_, std::io::Error>(json)
    };
    let json = read().with_context(|| name(path))?;
    if json.len() as u64 > MAX_PROCESS {
        bail!("{}: is larger than {MAX_PROCESS} bytes", name(path));
    }
    Ok(json)
}

fn name(path: &Path) -> String {
    format!("process file {}", path.display())
}

/// A user or group: digits only, and not (uid_t)-1, which means "leave it" to setresuid(2).
fn id(text: &str) -> Result<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(id) if digits && id != u32::MAX => Ok(id),
        _ => bail!("{text:?} is not an id: a number from 0 to {}", u32::MAX - 1),
    }
}

fn user(text: &str) -> Result<User> {
    match text.split_once(':') {
        None => Ok(User { uid: id(text)?, gid: None }),
        Some((uid, gid)) => Ok(User { uid: id(uid)?, gid: Some(id(gid)?) }),
    }
}

/// With or without `CAP_`, in any case. One that nobody knows is warned of and left out, as in a
/// config.
fn capability(text: &str) -> Option<Capability> {
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    let known = serde_json::from_value(serde_json::Value::String(name)).ok();
    if known.is_none() {
        log::warn!("--cap: ignoring unknown capability {text:?}");
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers() {
        assert_eq!(user("7:8").unwrap(), User { uid: 7, gid: Some(8) });
        assert_eq!(user("4294967294").unwrap(), User { uid: 4_294_967_294, gid: None });
        for bad in
            ["", "root", "-1", "+1", "4294967295", "4294967296", "1:", ":1", "1:2:3", "0x1", "1:-1"]
        {
            assert!(user(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn capabilities_by_name() {
        assert_eq!(capability("CAP_KILL"), Some(Capability::Kill));
        assert_eq!(capability("net_raw"), Some(Capability::NetRaw));
        assert!(capability("CAP_NONE").is_none() && capability("").is_none());
    }

    #[test]
    fn more_capabilities_are_not_inheritable() {
        let sets = with(&None, &[Capability::Kill]);
        let one = |set: &Option<oci_spec::runtime::Capabilities>| set.as_ref().map(|s| s.len());
        assert_eq!((one(sets.bounding()), one(sets.permitted())), (Some(1), Some(1)));
        assert_eq!((one(sets.inheritable()), one(sets.ambient())), (None, None));

        let mut inheritable = LinuxCapabilities::default();
        inheritable.set_inheritable(Some([Capability::Kill].into())).set_ambient(None);
        let sets = with(&Some(inheritable), &[Capability::Kill, Capability::Chown]);
        assert_eq!((one(sets.inheritable()), one(sets.ambient())), (Some(1), Some(1)));
    }
}
