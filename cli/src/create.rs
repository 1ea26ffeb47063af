//! `kiln create`.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use kiln_runtime::annotations::PIDFD_RECEIVER;
use kiln_runtime::bundle::Bundle;
use kiln_runtime::create::{Console, Options, check_terminal};
use kiln_runtime::engine::Engine;
use kiln_runtime::error::errno_text;
use kiln_runtime::ready::Manager;
use kiln_runtime::sys::{CloseRange, close_range, watch_children};
use kiln_runtime::{sealed, wait};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::global::{Global, NewContainer, announce_sockets};
use crate::handover;

#[derive(Args, Debug)]
pub struct Create {
    /// Ignored: nobody is reaped while a container is created
    #[arg(long, hide = true)]
    no_subreaper: bool,
    #[command(flatten)]
    pub new: NewContainer,
}

impl Create {
    pub fn execute(self, global: &Global, engine: Option<Box<dyn Engine>>) -> Result<ExitCode> {
        let root = global.root();
        let mut options = options(global, &self.new, &root, engine)?;
        options.console = console(&self.new, &options.bundle)?;
        options.pidfd_socket = pidfd_socket(&self.new, &options.bundle)?;
        wait::catch_interrupts();
        kiln_runtime::create::create(options)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What `create` and `run` do first: let go of what the caller leaked, make sure that the
/// container cannot reach a writable kiln, read the bundle, and find out what runs it.
pub fn options<'a>(
    global: &Global,
    new: &'a NewContainer,
    root: &'a Path,
    engine: Option<Box<dyn Engine>>,
) -> Result<Options<'a>> {
    let id = new.id.parse()?;
    let mut bundle = Bundle::load_with(&new.bundle, new.config.as_deref())?;
    announce_sockets(bundle.spec.process_mut().as_mut())?;
    let engine = handover::engine_for(&bundle, engine)?;
    Ok(Options {
        root,
        id,
        bundle,
        pid_file: new.pid_file.as_deref(),
        // Only now is it certain that this process makes the container: another one (handover)
        // could not connect a second time.
        console: None,
        pidfd_socket: None,
        preserve_fds: new.descriptors()?,
        pivot: !new.no_pivot,
        keyring: !new.no_new_keyring,
        rootless: global.rootless(),
        driver: global.driver()?,
        engine,
        manager: Manager::from_environment(),
    })
}

/// Before anything is opened: closes what the caller left open beyond stdio and the `preserved`
/// descriptors that the container is to get, and sees to it that this executable is read-only.
/// `closed` is called between the two: another executable may take over afterwards.
pub fn begin(preserved: u32, engine: bool, closed: impl FnOnce() -> Result<()>) -> Result<()> {
    check_preserved(preserved)?;
    let first = 3_u32.saturating_add(preserved);
    close_range(first, CloseRange::Close).map_err(|errno| {
        anyhow::anyhow!("close descriptors: {}", errno_text(errno.raw_os_error()))
    })?;
    closed()?;
    watch_children();
    if engine && !sealed::is_safe()? {
        bail!("this executable is for kiln, which executes it for wasm containers");
    }
    Ok(sealed::ensure()?)
}

/// Each must be open: else one of ours would take its number and reach the container, as
/// runc says it of a descriptor that it cannot stat.
fn check_preserved(count: u32) -> Result<()> {
    for number in 3..3_u32.saturating_add(count) {
        if std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_err() {
            bail!("--preserve-fds or LISTEN_FDS: descriptor {number} is not open");
        }
    }
    Ok(())
}

/// The console socket, connected, if one was asked for.
pub fn console(new: &NewContainer, bundle: &Bundle) -> Result<Option<Console>> {
    let Some(path) = &new.console_socket else { return Ok(None) };
    check_terminal(bundle.has_terminal(), true)?;
    connect(path).map(Console::of_caller).map(Some)
}

/// The socket for init's pidfd, by flag as for runc or by annotation as for crun, connected.
pub fn pidfd_socket(new: &NewContainer, bundle: &Bundle) -> Result<Option<OwnedFd>> {
    let annotation = || bundle.spec.annotations().as_ref()?.get(PIDFD_RECEIVER).map(Path::new);
    let path = new.pidfd_socket.as_deref().or_else(annotation);
    path.map(connect).transpose()
}

/// Connects to a socket that is to receive a descriptor.
pub fn connect(path: &Path) -> Result<OwnedFd> {
    let connect = || {
        let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket)
    };
    connect()
        .map_err(|errno: rustix::io::Errno| anyhow::anyhow!(errno_text(errno.raw_os_error())))
        .with_context(|| format!("connect to socket {}", path.display()))
}
