//! The warm parent: `kiln-wasmedge warm`, a process that has the engine loaded, and of which each
//! container is a fork. It takes [orders](kiln_runtime::order) over a socket, its standard input, and
//! ends with it.
//!
//! It is started by way of this executable ([`become_parent`]), because a process with threads must
//! not do between fork and exec what [`kiln_runtime::sealed`] does.

use std::cell::RefCell;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use kiln_runtime::channel::Channel;
use kiln_runtime::order::{self, Answer, Order, Refusal, RefusalKind, Streams};
use kiln_runtime::sealed;
use kiln_wasm::folder::{Folder, Libraries};
use rustix::io::Errno;

use crate::sys::readable;

/// The hidden command.
pub const COMMAND: &str = "warm-parent";

/// The gateway's warm parent.
#[derive(Debug)]
pub struct Warm {
    /// kiln, beside which the engine is looked for.
    kiln: PathBuf,
    channel: RefCell<Option<Channel>>,
}

impl Warm {
    /// Does nothing yet. `kiln` is the executable beside which the engine folder is.
    ///
    /// # Errors
    /// The engine is not installed.
    pub fn new(kiln: PathBuf) -> Result<Self> {
        folder(&kiln)?;
        Ok(Self { kiln, channel: RefCell::new(None) })
    }

    /// Starts it unless it is there. Returns at once: it takes orders before it is ready for them.
    ///
    /// # Errors
    /// There can be no other process.
    pub fn start(&self) -> Result<()> {
        let mut channel = self.channel.borrow_mut();
        if channel.is_none() {
            *channel = Some(spawn(&self.kiln)?);
        }
        Ok(())
    }

    /// Has it create a container; returns init's pid. Where it has died, another is started.
    ///
    /// # Errors
    /// Why there is no container.
    pub async fn order(&self, order: &Order, streams: &Streams) -> Result<i32, String> {
        for attempt in 0..2 {
            match self.ask(order, streams).await.map_err(|error| format!("{error:#}"))? {
                Ok(pid) => return Ok(pid),
                Err(refusal) if refusal.kind == RefusalKind::Died && attempt == 0 => {
                    log::warn!("the warm parent has died; another is started");
                    self.channel.borrow_mut().take();
                }
                Err(refusal) => return Err(refusal.message),
            }
        }
        Err(died().message)
    }

    async fn ask(&self, order: &Order, streams: &Streams) -> Result<Answer> {
        self.start()?;
        let (ours, theirs) = Channel::pair()?;
        let streams = streams.try_clone().context("pass the streams")?;
        let sent = match &*self.channel.borrow() {
            Some(channel) => order::send(channel, order, streams, theirs, None),
            None => Err(Errno::PIPE),
        };
        match sent {
            Ok(()) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Ok(Err(died())),
            Err(errno) => return Err(errno).context("send an order to the warm parent"),
        }
        readable(&ours).await.context("wait for the warm parent")?;
        let answer = ours.receive::<Answer>().context("hear from the warm parent")?;
        Ok(answer.unwrap_or_else(|| Err(died())))
    }
}

fn died() -> Refusal {
    Refusal {
        kind: RefusalKind::Died,
        message: "the process that creates containers has died".into(),
    }
}

fn folder(kiln: &Path) -> Result<Folder> {
    Folder::find(kiln).with_context(|| format!("beside {}", kiln.display()))
}

fn spawn(kiln: &Path) -> Result<Channel> {
    let (ours, theirs) = Channel::pair()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg(COMMAND).arg(kiln).stdin(Stdio::from(theirs.into_socket())).stdout(Stdio::null());
    // Nobody waits for it but the reaper.
    let child = command.spawn().context("start the warm parent")?;
    log::debug!("the warm parent is process {}", child.id());
    Ok(ours)
}

/// The hidden command: this process becomes the warm parent. Returns only with an error.
///
/// # Errors
/// The engine is not installed, or cannot be executed.
pub fn become_parent(kiln: &Path) -> Result<()> {
    // What a terminal sends to the gateway is the gateway's to handle.
    rustix::process::setsid().context("start a session")?;
    let folder = folder(kiln)?;
    let command: Vec<OsString> = folder.command(Libraries::Run, ["warm".into()]);
    match sealed::execute(&folder.linker(), command)? {}
}

/// The streams of a container: nothing to read, `log` for both outputs, and its sockets.
///
/// # Errors
/// There are too many descriptors, or no /dev/null.
pub fn streams(log: OwnedFd, sockets: Vec<OwnedFd>) -> std::io::Result<Streams> {
    let null = std::fs::File::open("/dev/null")?;
    let other = log.try_clone()?;
    Ok(Streams::Sockets([null.into(), log, other], sockets))
}
