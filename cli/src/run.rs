//! `kiln run`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use kiln_runtime::create::{Confirm, Container};
use kiln_runtime::engine::Engine;
use kiln_runtime::wait;

use crate::create::{console, options, pidfd_socket};
use crate::global::{Global, NewContainer};
use crate::terminal::{Terminal, adopt_size};

#[derive(Args, Debug)]
pub struct Run {
    /// Do not wait for the container's end
    #[arg(short, long)]
    detach: bool,
    /// Do not delete the container once it has ended
    #[arg(long)]
    keep: bool,
    /// Leave processes that lose their parent to the system's reaper
    #[arg(long)]
    no_subreaper: bool,
    #[command(flatten)]
    pub new: NewContainer,
}

impl Run {
    pub fn execute(self, global: &Global, engine: Option<Box<dyn Engine>>) -> Result<ExitCode> {
        let root = global.root();
        let mut options = options(global, &self.new, &root, engine)?;
        options.console = console(&self.new, &options.bundle)?;
        let terminal = match options.console {
            Some(_) => None,
            None if self.detach => None,
            // In the foreground the terminal is ours to serve.
            None if options.bundle.has_terminal() => {
                options.bundle.spec.process_mut().as_mut().map(adopt_size);
                Some(Terminal::open(&mut options.console)?)
            }
            None => None,
        };
        options.pidfd_socket = pidfd_socket(&self.new, &options.bundle)?;
        if self.detach {
            wait::catch_interrupts();
            kiln_runtime::create::run(options, Confirm::AtStart)?.await_ready()?;
            return Ok(ExitCode::SUCCESS);
        }
        prepare_to_wait(self.no_subreaper)?;
        let confirm = if terminal.is_some() { Confirm::AtStart } else { Confirm::AtEnd };
        let mut container = kiln_runtime::create::run(options, confirm)?;
        container.tell_when_ready();
        wait_for(&container, terminal, self.keep)
    }
}

/// Before the container exists: takes in its orphans, unless not wanted, and blocks all signals.
pub fn prepare_to_wait(no_subreaper: bool) -> Result<()> {
    if !no_subreaper {
        let own = Some(rustix::process::getpid());
        rustix::process::set_child_subreaper(own)?;
    }
    wait::block_signals();
    Ok(())
}

/// Until the container's end, with the caller's terminal connected if there is one; then removes
/// it, unless it is to be kept. The exit status is the container's.
pub fn wait_for(container: &Container, terminal: Option<Terminal>, keep: bool) -> Result<ExitCode> {
    let waited = match terminal {
        Some(terminal) => terminal.serve(container),
        None => wait::wait(container, || {}).map_err(Into::into),
    };
    let status = waited.inspect_err(|_| container.abandon())?;
    if !keep {
        container.remove()?;
    }
    match u8::try_from(status) {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(_) => bail!("the container ended with status {status}"),
    }
}
