//! `kiln restore`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use kiln_runtime::bundle::Bundle;
use kiln_runtime::checkpoint::{Restore as Options, restore};
use kiln_runtime::create::{Console, check_terminal};
use kiln_runtime::error::errno_text;
use kiln_runtime::sys::{CloseRange, close_range, watch_children};

use crate::checkpoint::Criu;
use crate::create::connect;
use crate::global::Global;
use crate::run::{prepare_to_wait, wait_for};
use crate::terminal::Terminal;

#[derive(Args, Debug)]
pub struct Restore {
    #[command(flatten)]
    criu: Criu,
    /// Path to the root of the bundle directory
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// Socket that receives the terminal's master
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Do not wait for the container's end
    #[arg(short, long)]
    detach: bool,
    /// File that the process id is written to
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Leave processes that lose their parent to the system's reaper
    #[arg(long)]
    no_subreaper: bool,
    /// Ignored: CRIU decides how the root is entered
    #[arg(long)]
    no_pivot: bool,
    /// Security profile instead of the checkpoint's: apparmor:NAME or selinux:LABEL
    #[arg(long, value_name = "TYPE:NAME")]
    lsm_profile: Option<String>,
    /// SELinux label for mounts instead of the checkpoint's
    #[arg(long, value_name = "LABEL")]
    lsm_mount_context: Option<String>,
    /// Name of the container, unique on this machine
    #[arg(value_name = "ID")]
    id: String,
}

impl Restore {
    pub fn execute(self, global: &Global) -> Result<ExitCode> {
        if !rustix::process::geteuid().is_root() {
            bail!("root is needed: rootless containers are not restored");
        }
        // CRIU, and by it the container, gets nothing that the caller leaked.
        close_range(3, CloseRange::Cloexec).map_err(|errno| {
            anyhow::anyhow!("close descriptors: {}", errno_text(errno.raw_os_error()))
        })?;
        watch_children();
        let root = global.root();
        let mut options = Options {
            root: &root,
            id: self.id.parse()?,
            bundle: Bundle::load(&self.bundle)?,
            pid_file: self.pid_file.as_deref(),
            console: None,
            driver: global.driver()?,
            shared: self.criu.shared()?,
            lsm_profile: self.lsm_profile.filter(|profile| !profile.is_empty()),
            lsm_mount_context: self.lsm_mount_context.filter(|context| !context.is_empty()),
        };
        let terminal = match &self.console_socket {
            Some(path) => {
                check_terminal(options.bundle.has_terminal(), true)?;
                options.console = Some(Console::of_caller(connect(path)?));
                None
            }
            None if self.detach || !options.bundle.has_terminal() => None,
            None => Some(Terminal::open(&mut options.console)?),
        };
        if self.detach {
            restore(options)?;
            return Ok(ExitCode::SUCCESS);
        }
        prepare_to_wait(self.no_subreaper)?;
        let container = restore(options)?;
        wait_for(&container, terminal, false)
    }
}
